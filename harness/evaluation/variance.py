"""Variance components of unbalanced data by the method of moments (Henderson 1953, method 1).

A value is a common mean, one random effect of each factor, and noise. The sum over a factor's levels of squared sums
over counts has an expectation that is linear in the variances; as many such sums as factors, and that of squares, are
solved for them. No distribution is assumed; an estimate below 0 is 0.

Axes: Q values, F factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]

FEW_VALUES = 100  # fewer can't be split
_SINGULAR = 1e-9
_NO_SLICES = ("language", "group", "rest")


def variance_components(value_Q: Floats, factors: Sequence[Numbers]) -> list[float] | None:
    """The variance of each factor's effect and, last, of the noise; None where they can't be told apart.

    Args:
        value_Q: values.
        factors: of each factor the level of each value, counted from 0.
    """
    matrix = _equations(factors)
    return _solved(value_Q, factors, matrix) if _solvable(matrix) else None


def _equations(factors: Sequence[Numbers]) -> Floats:
    """What the sums expect of each variance: rows and columns are the factors and, last, squares and noise."""
    count = len(factors[0])
    sizes = [np.bincount(level_Q) for level_Q in factors]
    mean_of = [float((size_F.astype(float) ** 2).sum()) / count for size_F in sizes]  # what each adds to the mean's sum
    equations = []
    for level_Q, size_F in zip(factors, sizes, strict=True):
        row = [_shared(level_Q, size_F, other) - mean for other, mean in zip(factors, mean_of, strict=True)]
        equations.append([*row, float((size_F > 0).sum()) - 1])
    equations.append([*(count - mean for mean in mean_of), count - 1])
    return np.array(equations)


def _solvable(matrix: Floats) -> bool:
    scale = np.abs(matrix).max(axis=1, keepdims=True)
    return bool((scale > 0).all() and np.linalg.matrix_rank(matrix / scale, tol=_SINGULAR) == len(matrix))


def _solved(value_Q: Floats, factors: Sequence[Numbers], matrix: Floats) -> list[float]:
    centred_Q = value_Q - value_Q.mean()  # the mean changes no difference of sums, and costs digits
    sums = []
    for level_Q in factors:
        size_F, squared_F = np.bincount(level_Q), np.bincount(level_Q, weights=centred_Q) ** 2
        sums.append(float((squared_F[size_F > 0] / size_F[size_F > 0]).sum()))
    sums.append(float((centred_Q**2).sum()))
    scale = np.abs(matrix).max(axis=1, keepdims=True)
    return [max(0.0, float(part)) for part in np.linalg.solve(matrix / scale, np.array(sums) / scale[:, 0])]


def _shared(level_Q: Numbers, size_F: Numbers, other_Q: Numbers) -> float:
    """The sum over a factor's levels of (values in common with a level of the other) squared over its size."""
    width = int(other_Q.max()) + 1
    cell, shared = np.unique(level_Q * width + other_Q, return_counts=True)
    return float((shared.astype(float) ** 2 / size_F[cell // width]).sum())


def variance_shares(value_Q: Floats, factors: Mapping[str, Numbers]) -> dict[str, Any] | None:
    """What share of the values' variance is that of language, of slices together, and the rest.

    Args:
        factors: ``language``, ``group``, and each slice: level of each value. A group's share belongs to the rest.

    Returns:
        ``{"language", "slice", "rest", "total", "slices": {SLICE: share}, "left_out": {SLICE: why}}``, shares of
        ``total``, a variance. A slice that the language tells, whose share would be language's, or that can't be told
        from what is kept is left out; slices are taken up in an order of their own, whatever theirs is in ``factors``.
        None where there are too few values, or all are equal.
    """
    if len(value_Q) < FEW_VALUES or not value_Q.var() > 0:
        return None
    names, left_out = _told_apart(factors, len(value_Q))
    if "language" not in names:
        return None
    levels = [factors[name] for name in names]
    parts = _solved(value_Q, levels, _equations(levels))
    if not sum(parts) > 0:
        return None
    total = sum(parts)
    share = {name: part / total for name, part in zip([*names, "rest"], parts, strict=True)}
    slices = {name: value for name, value in share.items() if name not in _NO_SLICES}
    return {"language": share["language"], "slice": sum(slices.values()), "slices": slices, "total": total,
            "left_out": left_out, "rest": share["rest"] + share.get("group", 0.0)}  # fmt: skip


def _told_by(factor_Q: Numbers, level_Q: Numbers) -> bool:
    """Whether a value's level of the factor says that of the other."""
    return len(np.unique(factor_Q * (int(level_Q.max()) + 1) + level_Q)) == len(np.unique(factor_Q))


def _told_apart(factors: Mapping[str, Numbers], count: int) -> tuple[list[str], dict[str, str]]:
    """The factors that can be told apart, ``language`` and ``group`` before slices, few levels before many; and of each
    slice that is left out, why."""
    levels = {name: len(np.unique(level_Q)) for name, level_Q in factors.items()}
    left_out = {name: "one value" if number == 1 else "another value for every query"
                for name, number in levels.items() if number in (1, count)}  # fmt: skip
    if (language_Q := factors.get("language")) is not None:
        left_out |= {name: "told by language" for name, level_Q in factors.items()
                     if name not in {*_NO_SLICES, *left_out} and _told_by(language_Q, level_Q)}  # fmt: skip
    names = sorted((name for name in factors if name not in left_out),
                   key=lambda name: (name != "language", name != "group", levels[name], name))  # fmt: skip
    if not names:
        return [], {}
    matrix, noise = _equations([factors[name] for name in names]), len(names)

    def tell(chosen: Sequence[int]) -> bool:
        places = [*chosen, noise]
        return _solvable(matrix[np.ix_(places, places)])

    kept: list[int] = []
    for place, name in enumerate(names):
        if tell([*kept, place]):
            kept.append(place)
        else:
            same = [names[other] for other in kept if not tell([other, place])]
            left_out[name] = f"not to be told apart from {' or '.join(same or [names[other] for other in kept])}"
    return [names[place] for place in kept], {name: left_out[name] for name in sorted({*left_out} - {*_NO_SLICES})}
