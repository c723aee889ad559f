"""The bootstrap over groups: all systems of a set, resampled at once with the same draws.

Axes: Q queries, G groups, L languages, E cells (a language's queries of one group), C summed columns, R resamples,
S = 1 + R samples of which the first is the data itself, M metrics, P scopes (the languages, then the summaries).
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from harness.evaluation.per_query import PerQuery
from harness.evaluation.statistics.means import numbered, refuse_reserved
from harness.runtime.errors import InputError, Problem

Floats = NDArray[np.float64]
# Per language: the groups that have queries of it (rising), and their sums.
Cells = Sequence[tuple[NDArray[Any], NDArray[Any]]]

_COUNTS_AT_ONCE = 400_000  # resamples x groups held at a time by one thread: larger blocks fall out of the cache


@dataclass(frozen=True)
class Samples:
    """Sums over the queries of each language, in the data (sample 0) and in each resample.

    Attributes:
        languages: names, in the order of the axis L.
        groups_L: how many groups have queries of the language.
        groups: how many groups there are.
        metrics: names, in the order of the axis M.
        count_SL: queries; sum_SLM: system -> sums of the metrics.
        weight_S: weights of all queries, and weighted_SM: system -> sums of weight x metric; None and empty where all
            queries weigh the same.
        group_PM: system -> what the group of an average hit adds to a mean, in the data; share_P: to a mean of ones.
        more_SP: how many more groups the bounds allow for (``intervals``): drawn from the exponential distribution of
            mean 1, and 0 in sample 0.
    """

    languages: list[str]
    groups_L: NDArray[np.int64]
    groups: int
    metrics: tuple[str, ...]
    count_SL: Floats
    sum_SLM: dict[str, Floats]
    weight_S: Floats | None
    weighted_SM: dict[str, Floats]
    group_PM: dict[str, Floats]
    share_P: Floats
    more_SP: Floats

    @property
    def scopes(self) -> list[str]:
        """What the axis P stands for: the languages, ``macro``, ``micro`` and, where weights differ, ``weighted``."""
        return [*self.languages, "macro", "micro", *(["weighted"] if self.weighted_SM else [])]

    @property
    def groups_P(self) -> NDArray[np.int64]:
        """How many groups stand behind each scope."""
        summaries = len(self.scopes) - len(self.languages)
        return np.append(self.groups_L, np.full(summaries, self.groups))

    def means(self, system: str, metric: str) -> Floats:
        """mean_SL; NaN where a resample has no query of the language."""
        return divide(self._sum_SL(system, metric), self.count_SL)

    def macro(self, system: str, metric: str) -> Floats:
        """macro_S: the mean over the languages that the sample holds."""
        mean_SL = self.means(system, metric)
        return np.asarray(np.nansum(mean_SL, axis=1) / np.sum(~np.isnan(mean_SL), axis=1))

    def micro(self, system: str, metric: str) -> Floats:
        """micro_S: the mean over all queries."""
        return np.asarray(self._sum_SL(system, metric).sum(axis=1) / self.count_SL.sum(axis=1))

    def all_means(self, system: str, metric: str) -> Floats:
        """mean_SP: the mean of every scope."""
        columns = [self.means(system, metric), self.macro(system, metric)[:, None], self.micro(system, metric)[:, None]]
        if self.weight_S is not None:
            columns.append(divide(self.weighted_SM[system][:, self.metrics.index(metric)], self.weight_S)[:, None])
        return np.concatenate(columns, axis=1)

    def one_group(self, metric: str, *systems: str) -> Floats:
        """group_P: what one more group adds to a mean (``intervals``); the most of the systems."""
        place = self.metrics.index(metric)
        return np.max([self.group_PM[system][:, place] for system in systems], axis=0)

    def _sum_SL(self, system: str, metric: str) -> Floats:
        return self.sum_SLM[system][:, :, self.metrics.index(metric)]


def resample(
    systems: Mapping[str, PerQuery], *, metrics: Sequence[str], resamples: int, seed: int, added_group: bool = True
) -> Samples:
    """Bootstrap all systems of one set at once, with the same draws of groups.

    Without ``added_group`` bounds allow for no group beside those of the data (``intervals``): plain percentiles.

    10,000 resamples of 50,000 groups take some 4 s of processor time, which threads share; memory is what ``Samples``
    holds and a few MB a thread. The numbers depend on the seed, not on the number of threads.

    Raises:
        InputError: the systems answered different queries, or none; a language has the name of a summary row; a metric
            or a weight is not a number.
    """
    require_same_queries(systems)
    first = next(iter(systems.values()))
    if not len(first):
        raise InputError(Problem("there are no queries to resample", got="0 queries", allowed="one query or more",
                                 next="evaluate on a set with queries"))  # fmt: skip
    languages, language_Q = numbered(first.languages)
    groups, group_Q = numbered(first.groups)
    refuse_reserved(languages)
    _refuse_no_numbers(systems, metrics)
    cell_E, cell_Q = np.unique(language_Q * len(groups) + group_Q, return_inverse=True)
    weighted = bool(np.any(first.weights != first.weights[0]))
    columns = [np.ones(len(first)), *(system.metrics[metric] for system in systems.values() for metric in metrics)]
    if weighted:
        columns += [first.weights * column for column in columns]
    cell_sum_EC = np.stack([np.bincount(cell_Q, weights=column, minlength=len(cell_E)) for column in columns], axis=1)
    starts = np.searchsorted(cell_E, np.arange(len(languages) + 1) * len(groups))
    cells = [
        (cell_E[start:end] % len(groups), cell_sum_EC[start:end])
        for start, end in zip(starts[:-1], starts[1:], strict=True)
    ]
    sum_SLC = _sampled_sums(cells, len(groups), resamples, seed)
    plain = 1 + len(systems) * len(metrics)
    weighted_SC = sum_SLC[:, :, plain:].sum(axis=1)
    group_PC = _one_group(cells, len(groups), plain)
    return Samples(
        languages=languages,
        groups_L=np.diff(starts),
        groups=len(groups),
        metrics=tuple(metrics),
        count_SL=sum_SLC[:, :, 0],
        sum_SLM=_by_system(systems, sum_SLC[:, :, :plain]),
        weight_S=weighted_SC[:, 0] if weighted else None,
        weighted_SM=_by_system(systems, weighted_SC) if weighted else {},
        group_PM=_by_system(systems, group_PC),
        share_P=group_PC[:, 0],
        more_SP=_more(resamples, len(group_PC), seed) if added_group else np.zeros((1 + resamples, len(group_PC))),
    )


def _by_system(systems: Mapping[str, PerQuery], values_C: Floats) -> dict[str, Floats]:
    """The columns of each system; the first, of counts, is nobody's."""
    return dict(zip(systems, np.split(values_C[..., 1:], len(systems), axis=-1), strict=True))


def _sampled_sums(cells: Cells, groups: int, resamples: int, seed: int) -> Floats:
    """sum_SLC: for each sample and language, its cells' sums weighed by how often their group was drawn.

    In sample 0, the data itself, each counts once.
    """
    sum_SLC = np.empty((1 + resamples, len(cells), cells[0][1].shape[1]))
    sum_SLC[0] = [sum_EC.sum(axis=0) for _, sum_EC in cells]
    sum_RLC = sum_SLC[1:]
    block = max(1, min(resamples, _COUNTS_AT_ONCE // groups))

    def fill(start: int) -> None:
        random = np.random.default_rng([seed, start])  # one stream a block: threads don't change the numbers
        drawn_BG = np.empty((min(block, resamples - start), groups))
        for row_G in drawn_BG:
            drawn = random.integers(0, groups, size=groups, dtype=np.uint32)
            row_G[:] = np.bincount(drawn.astype(np.intp), minlength=groups)  # five times as fast as bincount's own cast
        for language, (group_E, sum_EC) in enumerate(cells):
            drawn_BE = drawn_BG if len(group_E) == groups else drawn_BG[:, group_E]
            sum_RLC[start : start + len(drawn_BG), language] = drawn_BE @ sum_EC

    if block == resamples:  # threads would cost more than they spare
        fill(0)
        return sum_SLC
    with _one_blas_thread(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        list(threads.map(fill, range(0, resamples, block)))
    return sum_SLC


def _one_group(cells: Cells, groups: int, plain: int) -> Floats:
    """group_PC: what the group of an average hit adds to a scope's mean in the data.

    Of the cells' columns the first ``plain`` are sums, and the same number of weighted sums may follow.
    """
    macro_GC, all_GC = np.zeros((groups, plain)), np.zeros((groups, cells[0][1].shape[1]))
    rows = []
    for group_E, sum_EC in cells:
        share_EC = sum_EC[:, :plain] / sum_EC[:, 0].sum()
        rows.append(_of_average_hit(share_EC))
        macro_GC[group_E] += share_EC / len(cells)
        all_GC[group_E] += sum_EC
    rows.append(_of_average_hit(macro_GC))
    for sum_GC in np.split(all_GC, all_GC.shape[1] // plain, axis=1):  # micro and, where there is one, weighted
        rows.append(_of_average_hit(divide(sum_GC, sum_GC[:, 0].sum())))
    return np.stack(rows)


def _of_average_hit(part_GC: Floats) -> Floats:
    """Each group's part, averaged over groups by the part itself: the whole over Kish's effective number of groups."""
    return np.nan_to_num(divide((part_GC**2).sum(axis=0), part_GC.sum(axis=0)))


def _more(resamples: int, scopes: int, seed: int) -> Floats:
    """more_SP; no block of ``_sampled_sums`` starts at ``resamples``, so that the stream is nobody else's."""
    more_SP = np.zeros((1 + resamples, scopes))
    more_SP[1:] = np.random.default_rng([seed, resamples]).exponential(size=(resamples, scopes))
    return more_SP


def _one_blas_thread() -> contextlib.AbstractContextManager[Any]:
    """One BLAS thread to each of ours: in products this small, BLAS threads wait for each other more than they work.

    Where ``threadpoolctl`` (which scikit-learn brings along) is missing, the numbers are the same, only slower to get.
    """
    try:
        threadpoolctl: Any = importlib.import_module("threadpoolctl")
    except ImportError:
        return contextlib.nullcontext()
    return cast("contextlib.AbstractContextManager[Any]", threadpoolctl.threadpool_limits(1, "blas"))


def divide(numerator: Floats, denominator: Floats) -> Floats:
    """x / 0 is infinite and 0 / 0 is NaN, in silence."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(numerator / denominator)


# ------------------------------------------------------------------------------------- what is refused


def require_same_queries(systems: Mapping[str, PerQuery], where: str = "") -> None:
    """Refuse to compare systems over different queries, or over the same ones in another order, language or group.

    Raises:
        InputError: one problem per system that differs from the first, with the counts and the first differing ids.
    """
    (first_name, first), *others = systems.items()
    problems = [
        Problem(f"{first_name} and {name} did not answer the same queries", where=where, got=what,
                allowed="the same queries in the same order", next="evaluate both again on the same data")
        for name, other in others if (what := _how_different(first, other))
    ]  # fmt: skip
    if problems:
        raise InputError(problems)


def _how_different(first: PerQuery, other: PerQuery) -> str:
    if first.ids != other.ids:
        pairs = zip(first.ids, other.ids, strict=False)
        shorter = min(len(first), len(other))
        at = next((i for i, (mine, theirs) in enumerate(pairs) if mine != theirs), shorter)
        ids = [repr(ids[at]) if at < len(ids) else "nothing" for ids in (first.ids, other.ids)]
        return f"{len(first)} and {len(other)} queries; they first differ at query {at + 1}: {ids[0]} and {ids[1]}"
    if first.languages != other.languages or first.groups != other.groups:
        mine, theirs = (list(zip(x.languages, x.groups, strict=True)) for x in (first, other))
        at = next(i for i, (one, two) in enumerate(zip(mine, theirs, strict=True)) if one != two)
        return f"query {first.ids[at]!r} has language and group {mine[at]} and {theirs[at]}"
    unequal_Q = np.flatnonzero(~np.isclose(first.weights, other.weights, rtol=1e-9, atol=0, equal_nan=True))
    if len(unequal_Q):
        at = int(unequal_Q[0])
        return f"query {first.ids[at]!r} has the weights {first.weights[at]:g} and {other.weights[at]:g}"
    return ""


def _refuse_no_numbers(systems: Mapping[str, PerQuery], metrics: Sequence[str]) -> None:
    """A metric that is NaN for one query would make every mean NaN, in silence."""
    problems = []
    for name, system in systems.items():
        columns = {metric: system.metrics[metric] for metric in metrics} | {"weight": system.weights}
        for column, values in columns.items():
            wrong_Q = np.flatnonzero(~np.isfinite(values) | (np.asarray(values) < 0))
            if len(wrong_Q):
                at = int(wrong_Q[0])
                problems.append(
                    Problem(f"{column} is not a number from 0 on", where=name,
                            got=f"{values[at]} at query {system.ids[at]!r} ({len(wrong_Q)} of {len(system)} queries)",
                            next="evaluate the system again; were its vectors finite?")
                )  # fmt: skip
    if problems:
        raise InputError(problems)
