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

_UNSEEN = 3.0  # whole losses that may be expected without that one was seen, at 95 %: the "rule of three"
_COUNT = 0  # the column of cells that counts queries
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
        cells: of each language, the groups that have queries of it, and their sums in the data.
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
    cells: Cells
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
        """macro_S: the mean over languages; one that a resample lacks keeps its mean in the data.

        Left out, the resample's mean would be one over other languages, and so of another quantity.
        """
        mean_SL = self.means(system, metric)
        return np.asarray(np.where(np.isnan(mean_SL), mean_SL[0], mean_SL).mean(axis=1))

    def micro(self, system: str, metric: str) -> Floats:
        """micro_S: the mean over all queries."""
        return np.asarray(self._sum_SL(system, metric).sum(axis=1) / self.count_SL.sum(axis=1))

    def all_means(self, system: str, metric: str) -> Floats:
        """mean_SP: the mean of every scope."""
        columns = [self.means(system, metric), self.macro(system, metric)[:, None], self.micro(system, metric)[:, None]]
        if self.weight_S is not None:
            columns.append(divide(self.weighted_SM[system][:, self.metrics.index(metric)], self.weight_S)[:, None])
        return np.concatenate(columns, axis=1)

    def lost_group(self, loser: str, other: str, metric: str) -> Floats:
        """group_P: what the group in which the loser's next lost hit lies takes from a mean (``intervals``)."""
        pairs = zip(self._parts(self._column(loser, metric)), self._parts(self._column(other, metric)), strict=True)
        return np.array([_of_next_lost(np.maximum(had - kept, 0), np.maximum(had, kept)) for kept, had in pairs])

    def missed_group(self, system: str, metric: str) -> Floats:
        """group_P: the share of a mean's queries that the group has in which the system's next miss lies."""
        pairs = zip(self._parts(self._column(system, metric)), self._parts(_COUNT), strict=True)
        return np.array([_of_next_lost(np.maximum(asked - found, 0), asked) for found, asked in pairs])

    def _column(self, system: str, metric: str) -> int:
        return 1 + list(self.sum_SLM).index(system) * len(self.metrics) + self.metrics.index(metric)

    def _parts(self, column: int) -> list[Floats]:
        """Of each scope, what each group adds to the mean, in the data; a language's groups are those of its cells."""
        macro_G, rows = np.zeros(self.groups), []
        for group_E, sum_EC in self.cells:
            rows.append(sum_EC[:, column] / sum_EC[:, _COUNT].sum())
            macro_G[group_E] += rows[-1] / len(self.cells)
        rows += [macro_G, self._over_all(column, _COUNT)]
        if self.weight_S is not None:
            weight = 1 + len(self.sum_SLM) * len(self.metrics)  # the weighted columns follow, in the same order
            rows.append(self._over_all(weight + column, weight))
        return rows

    def _over_all(self, column: int, count: int) -> Floats:
        """part_G: each group's sum over all languages, of the whole that the column ``count`` sums to."""
        sum_G, whole = np.zeros(self.groups), 0.0
        for group_E, sum_EC in self.cells:
            sum_G[group_E] += sum_EC[:, column]
            whole += sum_EC[:, count].sum()
        return divide(sum_G, np.array(whole))

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
    scopes = len(languages) + (3 if weighted else 2)
    return Samples(
        languages=languages,
        groups_L=np.diff(starts),
        groups=len(groups),
        metrics=tuple(metrics),
        count_SL=sum_SLC[:, :, 0],
        sum_SLM=_by_system(systems, sum_SLC[:, :, :plain]),
        weight_S=weighted_SC[:, 0] if weighted else None,
        weighted_SM=_by_system(systems, weighted_SC) if weighted else {},
        cells=cells,
        more_SP=_more(resamples, scopes, seed) if added_group else np.zeros((1 + resamples, scopes)),
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


def _of_next_lost(lost_G: Floats, whole_G: Floats) -> float:
    """What the group of the next lost hit loses: the size of an average hit's group times the share lost with a hit.

    The share is that of the groups in which hits were lost, over pairs of a lost hit and any hit of its group;
    ``_UNSEEN`` groups, drawn at random from those that have hits, count as lost whole beside them.
    """
    unseen = _UNSEEN * float(np.mean(whole_G[whole_G > 0] ** 2)) if np.any(whole_G > 0) else 0.0
    if not unseen:
        return 0.0
    share = (unseen + np.sum(lost_G**2)) / (unseen + np.sum(lost_G * whole_G))
    return float(np.sum(whole_G**2) / np.sum(whole_G) * share)


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
