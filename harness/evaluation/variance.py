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


def variance_components(value_Q: Floats, factors: Sequence[Numbers]) -> list[float] | None:
    """The variance of each factor's effect and, last, of the noise; None where they can't be told apart.

    Args:
        value_Q: values.
        factors: of each factor the level of each value, counted from 0.
    """
    count = len(value_Q)
    sizes = [np.bincount(level_Q) for level_Q in factors]
    centred_Q = value_Q - value_Q.mean()  # the mean changes no difference of sums, and costs digits
    equations, sums = [], []
    mean_of = [float((size_F.astype(float) ** 2).sum()) / count for size_F in sizes]  # what each adds to the mean's sum
    for level_Q, size_F in zip(factors, sizes, strict=True):
        used = size_F > 0
        squared_F = np.bincount(level_Q, weights=centred_Q) ** 2
        sums.append(float((squared_F[used] / size_F[used]).sum()))
        row = [_shared(level_Q, size_F, other) - mean for other, mean in zip(factors, mean_of, strict=True)]
        equations.append([*row, float(used.sum()) - 1])
    sums.append(float((centred_Q**2).sum()))
    equations.append([*(count - mean for mean in mean_of), count - 1])
    matrix = np.array(equations)
    scale = np.abs(matrix).max(axis=1, keepdims=True)
    if (scale == 0).any() or np.linalg.matrix_rank(matrix / scale, tol=_SINGULAR) < len(matrix):
        return None
    return [max(0.0, float(part)) for part in np.linalg.solve(matrix / scale, np.array(sums) / scale[:, 0])]


def _shared(level_Q: Numbers, size_F: Numbers, other_Q: Numbers) -> float:
    """The sum over a factor's levels of (values in common with a level of the other) squared over its size."""
    width = int(other_Q.max()) + 1
    cell, shared = np.unique(level_Q * width + other_Q, return_counts=True)
    return float((shared.astype(float) ** 2 / size_F[cell // width]).sum())


def variance_shares(value_Q: Floats, factors: Mapping[str, Numbers]) -> dict[str, Any] | None:
    """What share of the values' variance is that of language, of slices together, and the rest.

    Args:
        factors: ``language``, ``group``, and each slice: level of each value. A group's share belongs to the rest; a
            factor that can't be told from others is left out.

    Returns:
        ``{"language", "slice", "rest", "total", "slices": {SLICE: share}}``, shares of ``total``, a variance; None
        where there are too few values, or all are equal.
    """
    if len(value_Q) < FEW_VALUES or not value_Q.var() > 0:
        return None
    names = [name for name, level_Q in factors.items() if 1 < len(np.unique(level_Q)) < len(value_Q)]
    if "language" not in names:
        return None
    parts = None
    while names and parts is None:
        parts = variance_components(value_Q, [factors[name] for name in names])
        if parts is None and names[-1] == "language":
            return None
        names = names if parts is not None else names[:-1]
    if parts is None or not sum(parts) > 0:
        return None
    total = sum(parts)
    share = {name: part / total for name, part in zip([*names, "rest"], parts, strict=True)}
    slices = {name: value for name, value in share.items() if name not in ("language", "group", "rest")}
    return {"language": share["language"], "slice": sum(slices.values()), "slices": slices, "total": total,
            "rest": share["rest"] + share.get("group", 0.0)}  # fmt: skip
