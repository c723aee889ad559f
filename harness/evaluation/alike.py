"""Are languages treated alike by the compression? Tests and estimates over paired per-query differences.

A query's difference is the reference's metric less the system's: what the compression cost on this query. Several
questions, each with its own answer, none of which replaces another:

- **permutation**: is a query's loss independent of the language that it is asked in? Within a group that spans
  languages (the same emoji, product or question), its languages are permuted, a language's queries of the group
  together; groups of one language are permuted among each other, each as a whole. Exact where what is permuted is
  exchangeable; as each language's sum is divided by its own spread, also right for large sets where languages differ in
  spread alone (Janssen 1997; Chung and Romano 2013).
- **permutation_of_recovery**: the same for what a query keeps beyond the common recovery r, system - r * reference. A
  language in which the reference finds little has little to lose: points may differ where shares do not.
- **sd_recovery**: how much do the languages' recoveries differ, apart from noise? Method of moments: the variance among
  them less what the bootstrap says noise adds, at least 0. Of these languages, not of languages in general.
- **friedman** (only where groups hold every language): do the languages' ranks within a group differ? It sees who
  loses more often, not how much. **kruskal** otherwise: does one language's difference tend to be larger than
  another's? It takes each group's mean in a language as one independent number.
- **variance**: of the per-query differences, the shares of language, slices and the rest, by the method of moments
  (Henderson 1953, method 1); a group's queries may have something in common, which belongs to the rest. A slice that
  can't be told from the language or another slice is left out, and named.

Axes: Q queries, L languages, G groups, U units (a group's queries of one language), K columns (system and metric),
R resamples, S = 1 + R samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.evaluation.per_query import PerQuery
from harness.evaluation.statistics import FEW_GROUPS, Samples, resample
from harness.evaluation.statistics.means import numbered
from harness.evaluation.variance import variance_shares

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]
Tree = dict[str, Any]

PERMUTATIONS = 2_000
MOVED = 40_000_000  # units that all permutations move together, some seconds' work: of a large set there are fewer
FEWEST = 400  # but not fewer than these, or than were asked for
RESAMPLES = 2_000  # of the spread of recoveries; an interval of an interval's width needs no more
_ANSWERS = ("permutation", "permutation_of_recovery", "sd_recovery", "friedman", "kruskal", "variance")
FEW_COMPLETE = 10  # groups that hold every language: fewer are no parallel set


class Units(NamedTuple):
    """A set's queries as units: a group's queries of one language.

    ``block_U``: units of one block may change places; the group, or -1 for all groups of one language.
    """

    unit_Q: Numbers
    language_U: Numbers
    group_U: Numbers
    block_U: Numbers
    count_U: Floats

    @property
    def spanning(self) -> int:
        """How many groups span languages."""
        return len(np.unique(self.block_U[self.block_U >= 0]))

    def sums(self, value_QK: Floats) -> Floats:
        """value_UK, summed over a unit's queries."""
        columns = [np.bincount(self.unit_Q, weights=column, minlength=len(self.count_U)) for column in value_QK.T]
        return np.stack(columns, axis=1)


def alike(
    systems: Mapping[str, PerQuery],
    reference: str,
    slices: Mapping[str, Sequence[str]],
    metrics: Sequence[str],
    resamples: int,
    confidence: float,
    seed: int,
    permutations: int = PERMUTATIONS,
) -> dict[str, dict[str, Tree]]:
    """Each system's answers on one set; the questions are at the top of this file.

    Args:
        systems: over the same queries, the reference among them.
        slices: slice -> value of each query, for the split of the variance.

    Returns:
        ``{NAME: {METRIC: {"languages", "queries", "permutation", "permutation_of_recovery", "sd_recovery", "friedman",
        "kruskal", "variance", "verdict", "note"}}}`` of every system but the reference. ``verdict``: ``not alike``
        (p of the recoveries' permutation is below 1 - confidence), ``not alike in points`` (only that of the losses is:
        as it must where the same share of more is lost), ``no difference found``, or ``undecided`` (too little data).
        Metrics and systems are tested one by one, uncorrected.
    """
    first = systems[reference]
    others = [name for name in systems if name != reference]
    languages, row_Q, note = _kept(first)
    if len(languages) < 2 or not others or not metrics:
        return {name: {metric: _undecided(languages, len(row_Q), note) for metric in metrics} for name in others}
    kept = {name: _part(system, row_Q) for name, system in systems.items()}
    language_Q, group_Q = numbered(kept[reference].languages)[1], numbered(kept[reference].groups)[1]
    units = units_of(language_Q, group_Q)
    columns = [(name, metric) for name in others for metric in metrics]
    reference_QK = np.stack([kept[reference].metrics[metric] for _, metric in columns], axis=1)
    system_QK = np.stack([kept[name].metrics[metric] for name, metric in columns], axis=1)
    lost_QK = reference_QK - system_QK
    with np.errstate(divide="ignore", invalid="ignore"):
        beyond_QK = system_QK - system_QK.sum(axis=0) / reference_QK.sum(axis=0) * reference_QK
    permutations = min(permutations, max(FEWEST, MOVED // len(units.count_U)))
    both = permutation_tests(units, np.hstack([lost_QK, np.nan_to_num(beyond_QK)]), permutations, seed)
    samples = resample(kept, metrics=metrics, resamples=min(resamples, RESAMPLES), seed=seed)
    factors = {"language": language_Q, "group": group_Q,
               **{name: numbered([values[row] for row in row_Q])[1] for name, values in slices.items()}}  # fmt: skip
    found: dict[str, dict[str, Tree]] = {name: {} for name in others}
    for number, (name, metric) in enumerate(columns):
        points, shares = both[number], both[number + len(columns)]
        lost_U = units.sums(lost_QK[:, number : number + 1])[:, 0] / units.count_U
        found[name][metric] = {
            "languages": languages, "queries": len(row_Q), "permutation": points, "permutation_of_recovery": shares,
            "sd_recovery": sd_of_recovery(samples, name, reference, metric, confidence),
            **_ranks(units, lost_U, len(languages)),
            "variance": variance_shares(lost_QK[:, number], factors),
            "verdict": _verdict(points["p"], shares["p"], 1 - confidence),
            "note": f"{note}; {_permuted(units)}".removeprefix("; "),
        }  # fmt: skip
    return found


def _kept(per_query: PerQuery) -> tuple[list[str], Numbers, str]:
    """The languages of enough groups, their queries, and what is to be said about the others."""
    groups: dict[str, set[str]] = {}
    for language, group in zip(per_query.languages, per_query.groups, strict=True):
        groups.setdefault(language, set()).add(group)
    languages = sorted(language for language, found in groups.items() if len(found) >= FEW_GROUPS)
    small = [f"{language} ({len(found)})" for language, found in sorted(groups.items()) if len(found) < FEW_GROUPS]
    wanted = set(languages)
    row_Q = np.array([row for row, language in enumerate(per_query.languages) if language in wanted], dtype=np.int64)
    parts = [f"left out, fewer than {FEW_GROUPS} groups: {', '.join(small)}"] if small else []
    if len(languages) < 2:
        parts.append("fewer than two languages are left to compare" if small else "one language: nothing to compare")
    return languages, row_Q, "; ".join(parts)


def _verdict(p_points: float, p_recovery: float, level: float) -> str:
    if p_recovery < level:
        return "not alike"
    return "not alike in points" if p_points < level else "no difference found"


def _undecided(languages: Sequence[str], queries: int, note: str) -> Tree:
    unknown = dict.fromkeys(_ANSWERS)
    return {"languages": list(languages), "queries": queries, **unknown, "verdict": "undecided", "note": note}


def _part(per_query: PerQuery, row_Q: Numbers) -> PerQuery:
    """Some queries of an evaluation, without their hits."""
    rows = row_Q.tolist()
    return PerQuery(
        ids=[per_query.ids[row] for row in rows],
        languages=[per_query.languages[row] for row in rows],
        groups=[per_query.groups[row] for row in rows],
        weights=per_query.weights[row_Q],
        hits=[[] for _ in rows],
        scores=np.zeros((len(rows), 0), np.float32),
        metrics={name: column[row_Q] for name, column in per_query.metrics.items()},
    )


# ------------------------------------------------------------------------------------------------- permutations


def units_of(language_Q: Numbers, group_Q: Numbers) -> Units:
    """The units, sorted by group and language."""
    count = int(language_Q.max()) + 1
    cell_U, unit_Q, count_U = np.unique(group_Q * count + language_Q, return_inverse=True, return_counts=True)
    group_U, language_U = cell_U // count, cell_U % count
    spans_G = np.bincount(group_U) > 1
    block_U = np.where(spans_G[group_U], group_U, -1)
    return Units(unit_Q, language_U, group_U, block_U, count_U.astype(np.float64))


def permutation_tests(units: Units, value_QK: Floats, permutations: int, seed: int) -> list[Tree]:
    """``{"statistic", "p", "permutations"}`` of each column, all under the same permutations.

    A unit's values are taken less the mean of its block. The statistic sums over languages the square of the sum of its
    units over the sum of their squares; p counts the data among the permutations and is never 0.
    """
    sum_UK = units.sums(value_QK)
    _, block_U = np.unique(units.block_U, return_inverse=True)
    size_B = np.bincount(block_U, weights=units.count_U)
    mean_BK = np.stack([np.bincount(block_U, weights=column) for column in sum_UK.T], axis=1) / size_B[:, None]
    rest_UK = sum_UK - units.count_U[:, None] * mean_BK[block_U]
    rest_UK[np.abs(rest_UK) < 1e-12] = 0.0  # what is left by rounding
    both = np.hstack([rest_UK, rest_UK**2])
    by_block = np.argsort(block_U, kind="stable")  # units of a block side by side, so that one sort permutes them all
    both, block_U, language_U = both[by_block], block_U[by_block], units.language_U[by_block]
    by_language = np.argsort(language_U, kind="stable")
    start_L = np.searchsorted(language_U[by_language], np.arange(language_U.max() + 1))
    observed_K = _statistic(both[by_language], start_L)
    random = np.random.default_rng([seed, 1])
    above_K = np.zeros(len(observed_K))
    for _ in range(permutations):
        moved = np.argsort(block_U + random.random(len(block_U)))
        above_K += _statistic(both[moved[by_language]], start_L) >= observed_K * (1 - 1e-9)
    p_K = (1 + above_K) / (1 + permutations)
    return [{"statistic": float(statistic), "p": float(p), "permutations": permutations}
            for statistic, p in zip(observed_K, p_K, strict=True)]  # fmt: skip


def _statistic(both_UK: Floats, start_L: Numbers) -> Floats:
    """The statistic of each column: ``both_UK`` has first values, then their squares, by language."""
    sum_LK, square_LK = np.split(np.add.reduceat(both_UK, start_L, axis=0), 2, axis=1)
    return np.asarray((sum_LK**2 / np.where(square_LK > 0, square_LK, 1.0)).sum(axis=0))


def _permuted(units: Units) -> str:
    """What the permutations moved."""
    spanning, alone = units.spanning, int((units.block_U < 0).sum())
    parts = []
    if spanning:
        parts.append(f"languages permuted within {spanning:,} groups that span several")
    if alone:
        parts.append(f"{alone:,} groups of one language permuted among each other")
    return ", ".join(parts)


# -------------------------------------------------------------------------------------------------- how much


def sd_of_recovery(samples: Samples, system: str, reference: str, metric: str, confidence: float) -> Tree | None:
    """The standard deviation of recovery between languages apart from noise: ``{"value", "low", "high"}``.

    The variance of the recoveries found is the true one plus that of noise, which is what the bootstrap's errors vary
    by; a resample's has noise twice. None where a language's recovery can't be told.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_SL = samples.means(system, metric) / samples.means(reference, metric)
    if not np.isfinite(ratio_SL[0]).all():
        return None
    ratio_SL = ratio_SL[np.isfinite(ratio_SL).all(axis=1)]  # a resample may lack a language
    if len(ratio_SL) < 2:
        return None
    spread_S = ratio_SL.var(axis=1, ddof=1)
    noise = float((ratio_SL[1:] - ratio_SL[0]).var(axis=1, ddof=1).mean())
    value = max(0.0, float(spread_S[0]) - noise)
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.maximum(spread_S[1:] - 2 * noise, 0.0), [tail, 1 - tail])
    bounds = {"value": value, "low": min(float(low), value), "high": max(float(high), value)}
    return {name: float(np.sqrt(bound)) for name, bound in bounds.items()}


# ---------------------------------------------------------------------------------------------------- ranks


def _ranks(units: Units, lost_U: Floats, languages: int) -> dict[str, Tree | None]:
    """Friedman's test where enough groups hold every language, else that of Kruskal and Wallis."""
    complete_G = np.bincount(units.group_U) == languages
    inside_U = complete_G[units.group_U]
    if complete_G.sum() >= FEW_COMPLETE:  # units are sorted by group and language
        return {"friedman": friedman(lost_U[inside_U].reshape(-1, languages)), "kruskal": None}
    return {"friedman": None, "kruskal": kruskal(lost_U, units.language_U, dependent=units.spanning > 0)}


_FRIEDMAN = "ranks of the languages within groups that hold every language: which loses more often"
_KRUSKAL = "whether a group's mean difference tends to be larger in one language than in another"
_DEPENDENT = "; groups span languages, so that these are not independent, and p is too large rather than too small"


def friedman(value_GL: Floats) -> Tree | None:
    """Friedman's test, corrected for ties; None where every group is tied in all languages."""
    groups, languages = value_GL.shape
    rank_GL = np.full(value_GL.shape, 0.5)
    for column in value_GL.T:
        rank_GL += (column[:, None] < value_GL) + 0.5 * (column[:, None] == value_GL)
    middle = groups * languages * (languages + 1) ** 2 / 4
    spread = float((rank_GL**2).sum() - middle)
    if spread <= 1e-9:
        return None
    statistic = (languages - 1) * float((rank_GL.sum(axis=0) ** 2).sum() - groups * middle) / spread
    return {"statistic": statistic, "p": _chi2_above(statistic, languages - 1), "groups": groups, "tests": _FRIEDMAN}


def kruskal(value_U: Floats, language_U: Numbers, *, dependent: bool) -> Tree | None:
    """The test of Kruskal and Wallis, corrected for ties; None where all values are equal."""
    distinct, number_U, size_V = np.unique(value_U, return_inverse=True, return_counts=True)
    count = len(value_U)
    if len(distinct) < 2:
        return None
    rank_U = (np.cumsum(size_V) - (size_V - 1) / 2)[number_U]
    sum_L, count_L = np.bincount(language_U, weights=rank_U), np.bincount(language_U)
    statistic = 12 / (count * (count + 1)) * float((sum_L**2 / count_L).sum()) - 3 * (count + 1)
    statistic /= 1 - float((size_V.astype(float) ** 3 - size_V).sum()) / (float(count) ** 3 - count)
    tests = _KRUSKAL + (_DEPENDENT if dependent else "")
    return {"statistic": statistic, "p": _chi2_above(statistic, len(sum_L) - 1), "units": count, "tests": tests}


def _chi2_above(statistic: float, degrees: int) -> float:
    from scipy.special import chdtrc

    return float(chdtrc(degrees, max(statistic, 0.0)))
