"""Means per language, recovery and paired differences, with bootstrap intervals over groups.

Axes: Q queries, G groups, L languages, E cells (a language's queries of one group), C summed columns, R resamples,
S = 1 + R samples of which the first is the data itself, M metrics.

The bootstrap draws as many groups as there are, with replacement, and a drawn group brings its queries of all
languages (the same emoji or product asked for in several languages is no independent evidence). All systems see the
same draws, so every comparison is paired. Intervals are percentile intervals.

Definitions, with q(s, l) the mean of a metric over the queries of language l under system s:
- a language's recovery: q(student, l) / q(reference, l);
- ``macro``: mean over languages of q(student, l) / mean over languages of q(reference, l): a ratio of means, so that
  one language in which the reference is poor doesn't rule it;
- ``micro``: mean over all queries under the student / the same under the reference;
- ``worst``: the lowest recovery among languages; its interval is that of the lowest in each resample. The lowest of
  several noisy numbers lies below the truth, and the resamples' below that: a cautious reading, not a test.

A recovery from a reference at zero does not exist (value, low, high are None). Where a resample has the reference at
zero and the student above, the ratio is infinite, and a bound that falls there is None. A language with one group, or a
resample without its queries, says nothing about its spread: no interval, or that resample left out.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from harness.evaluation.per_query import PerQuery
from harness.metrics import METRICS
from harness.runtime.errors import InputError, Problem

Floats = NDArray[np.float64]
Estimate = dict[str, Any]  # {"value", "low", "high"}; None where it can't be told

RESERVED = ("all", "macro", "micro", "worst")
_COUNTS_AT_ONCE = 400_000  # resamples x groups held at a time by one thread: larger blocks fall out of the cache
_ROUNDING = 1e-9  # a bound this close to zero is zero: sums of equal numbers in another order differ by less


# ------------------------------------------------------------------------------------------------ means


def quality(per_query: PerQuery) -> dict[str, dict[str, float]]:
    """Mean metrics: ``{LANG | "macro" | "all": {"queries", METRIC}}``, ``macro`` over languages, ``all`` over queries.

    Raises:
        InputError: a language has the name of one of the summary rows.
    """
    means = _language_means(per_query, per_query.metrics)
    macro = {name: _mean([row[name] for row in means.values()]) for name in per_query.metrics}
    everything = {name: _mean(column) for name, column in per_query.metrics.items()}
    return {**means, "macro": {"queries": len(per_query), **macro}, "all": {"queries": len(per_query), **everything}}


def agreement(per_query: PerQuery) -> dict[str, dict[str, float]]:
    """Mean agreement with the reference: ``{LANG | "all": {"queries", MEASURE}}``; empty where nothing was measured."""
    if not per_query.agreement:
        return {}
    everything = {name: _mean(column) for name, column in per_query.agreement.items()}
    return {**_language_means(per_query, per_query.agreement), "all": {"queries": len(per_query), **everything}}


def _language_means(per_query: PerQuery, columns: Mapping[str, Floats]) -> dict[str, dict[str, float]]:
    languages, language_Q = _numbered(per_query.languages)
    refuse_reserved(languages)
    return {
        language: {"queries": int(rows.sum()), **{name: _mean(column[rows]) for name, column in columns.items()}}
        for language, rows in ((name, language_Q == i) for i, name in enumerate(languages))
    }


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else math.nan


# ---------------------------------------------------------------------------------------- the bootstrap


@dataclass(frozen=True)
class Samples:
    """Sums over the queries of each language, in the data (sample 0) and in each resample.

    Attributes:
        languages: names, in the order of the axis L.
        groups_L: how many groups have queries of the language.
        groups: how many groups there are.
        metrics: names, in the order of the axis M.
        count_SL: queries; sum_SLM: system -> sums of the metrics.
    """

    languages: list[str]
    groups_L: NDArray[np.int64]
    groups: int
    metrics: tuple[str, ...]
    count_SL: Floats
    sum_SLM: dict[str, Floats]

    def means(self, system: str, metric: str) -> Floats:
        """mean_SL; NaN where a resample has no query of the language."""
        sum_SL = self.sum_SLM[system][:, :, self.metrics.index(metric)]
        return _divide(sum_SL, self.count_SL)

    def macro(self, system: str, metric: str) -> Floats:
        """macro_S: the mean over the languages that the sample holds."""
        mean_SL = self.means(system, metric)
        return np.asarray(np.nansum(mean_SL, axis=1) / np.sum(~np.isnan(mean_SL), axis=1))

    def micro(self, system: str, metric: str) -> Floats:
        """micro_S: the mean over all queries."""
        sum_SL = self.sum_SLM[system][:, :, self.metrics.index(metric)]
        return np.asarray(sum_SL.sum(axis=1) / self.count_SL.sum(axis=1))


def resample(systems: Mapping[str, PerQuery], *, metrics: Sequence[str], resamples: int, seed: int) -> Samples:
    """Bootstrap all systems of one set at once, with the same draws of groups.

    10,000 resamples of 50,000 groups take some 4 s of processor time, which threads share; memory is what ``Samples``
    holds and a few MB a thread. The numbers depend on the seed, not on the number of threads.

    Raises:
        InputError: the systems answered different queries; a language has the name of a summary row.
    """
    require_same_queries(systems)
    first = next(iter(systems.values()))
    languages, language_Q = _numbered(first.languages)
    groups, group_Q = _numbered(first.groups)
    refuse_reserved(languages)
    cell_E, cell_Q = np.unique(language_Q * len(groups) + group_Q, return_inverse=True)
    columns = [np.ones(len(first)), *(system.metrics[metric] for system in systems.values() for metric in metrics)]
    assert all(np.isfinite(column).all() for column in columns), "a metric is not a number"
    cell_sum_EC = np.stack([np.bincount(cell_Q, weights=column, minlength=len(cell_E)) for column in columns], axis=1)
    starts = np.searchsorted(cell_E, np.arange(len(languages) + 1) * len(groups))
    cells = [
        (cell_E[start:end] % len(groups), cell_sum_EC[start:end])
        for start, end in zip(starts[:-1], starts[1:], strict=True)
    ]
    sum_SLC = _sampled_sums(cells, len(groups), resamples, seed)
    parts = np.split(sum_SLC[:, :, 1:], len(systems), axis=2)
    return Samples(
        languages=languages,
        groups_L=np.diff(starts),
        groups=len(groups),
        metrics=tuple(metrics),
        count_SL=sum_SLC[:, :, 0],
        sum_SLM=dict(zip(systems, parts, strict=True)),
    )


def _sampled_sums(
    cells: Sequence[tuple[NDArray[Any], NDArray[Any]]], groups: int, resamples: int, seed: int
) -> Floats:
    """sum_SLC: for each sample and language, its cells' sums weighed by how often their group was drawn.

    In sample 0, the data itself, each counts once. ``cells`` holds, per language, the groups that have queries of it
    (rising) and the sums over those queries.
    """
    sum_SLC = np.empty((1 + resamples, len(cells), cells[0][1].shape[1]))
    sum_SLC[0] = [sum_EC.sum(axis=0) for _, sum_EC in cells]
    sum_RLC = sum_SLC[1:]
    block = max(1, min(resamples, _COUNTS_AT_ONCE // groups))

    def fill(start: int) -> None:
        random = np.random.default_rng([seed, start])  # one stream a block: threads don't change the numbers
        drawn_BG = np.empty((min(block, resamples - start), groups))
        for row_G in drawn_BG:
            row_G[:] = np.bincount(random.integers(0, groups, size=groups, dtype=np.uint32), minlength=groups)
        for language, (group_E, sum_EC) in enumerate(cells):
            drawn_BE = drawn_BG if len(group_E) == groups else drawn_BG[:, group_E]
            sum_RLC[start : start + len(drawn_BG), language] = drawn_BE @ sum_EC

    with _one_blas_thread(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        list(threads.map(fill, range(0, resamples, block)))
    return sum_SLC


def _one_blas_thread() -> contextlib.AbstractContextManager[Any]:
    """One BLAS thread to each of ours: in products this small, BLAS threads wait for each other more than they work.

    Where ``threadpoolctl`` (which scikit-learn brings along) is missing, the numbers are the same, only slower to get.
    """
    try:
        threadpoolctl: Any = importlib.import_module("threadpoolctl")
    except ImportError:
        return contextlib.nullcontext()
    return cast("contextlib.AbstractContextManager[Any]", threadpoolctl.threadpool_limits(1, "blas"))


# ------------------------------------------------------------------------------------------ comparisons


def recovery(
    student: PerQuery,
    reference: PerQuery,
    *,
    metrics: Sequence[str] = METRICS,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, Estimate]]:
    """How much of the reference's quality the student kept; definitions at the top of this file.

    Returns:
        ``{LANG | "macro" | "micro" | "worst": {METRIC: {"value", "low", "high"}}}``; ``worst`` also names its
        ``"language"``.

    Raises:
        InputError: student and reference answered different queries; a language has the name of a summary row.
    """
    samples = resample(
        {"student": student, "reference": reference}, metrics=metrics, resamples=resamples, seed=seed
    )
    return recovery_of(samples, "student", "reference", confidence=confidence)


def recovery_of(
    samples: Samples, student: str, reference: str, *, confidence: float
) -> dict[str, dict[str, Estimate]]:
    """``recovery`` from samples that are there already."""
    rows: dict[str, dict[str, Estimate]] = {name: {} for name in (*samples.languages, "macro", "micro", "worst")}
    for metric in samples.metrics:
        ratio_SL = _divide(samples.means(student, metric), samples.means(reference, metric))
        for language, ratio_S, groups in zip(samples.languages, ratio_SL.T, samples.groups_L, strict=True):
            rows[language][metric] = _estimate(ratio_S, confidence, known=groups > 1)
        macro_S = _divide(samples.macro(student, metric), samples.macro(reference, metric))
        micro_S = _divide(samples.micro(student, metric), samples.micro(reference, metric))
        rows["macro"][metric] = _estimate(macro_S, confidence, known=samples.groups > 1)
        rows["micro"][metric] = _estimate(micro_S, confidence, known=samples.groups > 1)
        rows["worst"][metric] = _worst(samples, ratio_SL, confidence)
    return rows


def _worst(samples: Samples, ratio_SL: Floats, confidence: float) -> Estimate:
    told = np.flatnonzero(np.isfinite(ratio_SL[0]))
    if not len(told):
        return {"value": None, "low": None, "high": None, "language": None}
    worst = told[ratio_SL[0, told].argmin()]
    lowest_S = np.fmin.reduce(ratio_SL[:, told], axis=1)  # fmin passes over the languages that a resample lacks
    estimate = _estimate(lowest_S, confidence, known=samples.groups_L[worst] > 1)
    return {**estimate, "language": samples.languages[worst]}


def paired_difference(
    a: PerQuery, b: PerQuery, metric: str, *, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """Macro over languages of (mean of a - mean of b): ``{"difference", "low", "high", "verdict"}``.

    The verdict is ``gain`` or ``loss`` where the whole interval lies above or below zero, else ``undecided``.

    Raises:
        InputError: the systems answered different queries; a language has the name of a summary row.
    """
    samples = resample({"a": a, "b": b}, metrics=[metric], resamples=resamples, seed=seed)
    return paired_difference_of(samples, "a", "b", metric, confidence=confidence)


def paired_difference_of(samples: Samples, a: str, b: str, metric: str, *, confidence: float) -> dict[str, Any]:
    """``paired_difference`` from samples that are there already."""
    difference_S = samples.macro(a, metric) - samples.macro(b, metric)
    estimate = _estimate(difference_S, confidence, known=samples.groups > 1)
    low, high = estimate["low"], estimate["high"]
    verdict = "undecided"
    if low is not None and low > _ROUNDING:
        verdict = "gain"
    elif high is not None and high < -_ROUNDING:
        verdict = "loss"
    return {"difference": estimate["value"], "low": low, "high": high, "verdict": verdict}


def _estimate(statistic_S: Floats, confidence: float, *, known: bool) -> Estimate:
    """The statistic of the data and its percentile interval; ranks are rounded outwards, never interpolated."""
    told_R = np.sort(statistic_S[1:][~np.isnan(statistic_S[1:])])
    bounds = (math.nan, math.nan)
    if known and len(told_R) and math.isfinite(statistic_S[0]):
        tail = (1 - confidence) / 2 * (len(told_R) - 1)
        bounds = (told_R[math.floor(tail)], told_R[math.ceil(len(told_R) - 1 - tail)])
    numbers = (statistic_S[0], *bounds)
    value, low, high = (float(number) if math.isfinite(number) else None for number in numbers)
    return {"value": value, "low": low, "high": high}


def _divide(numerator: Floats, denominator: Floats) -> Floats:
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
    problems = []
    for name, other in others:
        what = ""
        if first.ids != other.ids:
            pairs = zip(first.ids, other.ids, strict=False)
            shorter = min(len(first), len(other))
            at = next((i for i, (mine, theirs) in enumerate(pairs) if mine != theirs), shorter)
            ids = [repr(ids[at]) if at < len(ids) else "nothing" for ids in (first.ids, other.ids)]
            what = f"{len(first)} and {len(other)} queries; they first differ at query {at + 1}: {ids[0]} and {ids[1]}"
        elif first.languages != other.languages or first.groups != other.groups:
            mine, theirs = (list(zip(x.languages, x.groups, strict=True)) for x in (first, other))
            at = next(i for i, (one, two) in enumerate(zip(mine, theirs, strict=True)) if one != two)
            what = f"query {first.ids[at]!r} has language and group {mine[at]} and {theirs[at]}"
        if what:
            problems.append(
                Problem(f"{first_name} and {name} did not answer the same queries", where=where, got=what,
                        allowed="the same queries in the same order", next="evaluate both again on the same data")
            )  # fmt: skip
    if problems:
        raise InputError(problems)


def refuse_reserved(languages: Sequence[str]) -> None:
    """A language called ``macro`` would overwrite the summary of that name."""
    taken = [language for language in languages if language in RESERVED]
    if taken:
        raise InputError(
            Problem("a language has the name of a summary row", got=", ".join(taken),
                    allowed=f"any name but {', '.join(RESERVED)}", next="rename it in the data")
        )  # fmt: skip


def _numbered(names: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct names, sorted, and the number of each. (numpy's unique would pad every name to the longest.)"""
    distinct = sorted(set(names))
    number = {name: i for i, name in enumerate(distinct)}
    return distinct, np.fromiter((number[name] for name in names), np.int64, len(names))
