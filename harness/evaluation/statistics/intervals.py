"""From resamples to intervals, bounds and p-values.

Axes: S = 1 + R samples of which the first is the data itself, L languages, H hypotheses.

**One more group.** A plain percentile bootstrap can't see what did not happen: where a student lost none of 60 queries,
each resample has lost none, and the interval is [1, 1], though one that loses a twentieth of all shows no loss among 60
in one case of twenty. So each bound allows for one more group that speaks against it: one system finds nothing in it,
the other as many hits as lie in the group of the next lost hit; how often that group is drawn is exponential with mean
1. (Gaffke, Mathematical Methods of Statistics 2005, bounds a mean of bounded numbers with exponential weights for all
and the worst possible number added; here the data keeps the ordinary bootstrap's weights.)

What does the group of the next lost hit lose? It has the size of an average hit's group (the whole over Kish's
effective number of groups), and loses the share that groups with lost hits lost. That share is taken over pairs of a
lost hit and any hit of its group, so that large groups, of which little is lost, count for what they tell, and queries
alone tell nothing; three whole groups, drawn at random, count as lost beside those of the data, for so many may be
expected without that one is seen (the "rule of three"). Over groups, with lost and whole the sums of hits:

    (sum of whole^2 / sum of whole) * (3 mean of whole^2 + sum of lost^2) / (3 mean of whole^2 + sum of lost * whole)

Where every group is one query, that is one query (the average hit's weight, where they weigh unevenly), and where
nothing was lost, the lower bound is that of Clopper and Pearson. Where groups hold several queries and the student lost
some here and there, the data tells that losses don't come in whole groups, and bounds come close to plain percentiles.
Where it lost none, nothing tells how losses bunch, a whole group is allowed for, and the bound may lie lower than that
of a student with a few losses. ``benchmarks/intervals.py`` and ``intervals_uneven.py`` measure how often the bounds
hold, and how wide they are beside plain percentiles and beside bounds that always allow for a whole group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Estimate = dict[str, Any]  # {"value", "low", "high"}; None where it can't be told

METHOD = (
    "percentile bounds of a paired bootstrap over groups of queries that allow for one more group that speaks against "
    "them, so that they are wider than plain percentile intervals: somewhat where hits were lost here and there, much "
    "where next to none were"
)
FEW_GROUPS = 30  # behind fewer groups nothing is claimed: neither reached, nor shown, nor gained or lost


def interval(low_S: Floats, high_S: Floats, confidence: float, *, known: bool) -> Estimate:
    """The statistic of the data and its two-sided percentile interval.

    Ranks are rounded outwards, never interpolated. A resample without a value is left out; without any, or where
    ``known`` is false, there are no bounds; an infinite bound is None.

    Args:
        low_S, high_S: the statistic with one more group against it, and for it; equal in sample 0.
    """
    bounds = (math.nan, math.nan)
    if known and math.isfinite(low_S[0]):
        bounds = (_percentile(low_S, confidence), -_percentile(-high_S, confidence))
    value, low, high = (finite(number) for number in (low_S[0], *bounds))
    return {"value": value, "low": low, "high": high}


def _percentile(statistic_S: Floats, confidence: float) -> float:
    """The lower bound of a two-sided interval."""
    told_R = statistic_S[1:][~np.isnan(statistic_S[1:])]
    if not len(told_R):
        return math.nan
    rank = math.floor((1 - confidence) / 2 * (len(told_R) - 1))
    return float(np.partition(told_R, rank)[rank])


def lower_bound(low_S: Floats, confidence: float) -> float | None:
    """The one-sided lower bound: it lies above ``bar`` exactly if ``p_value(low_S, bar)`` is at most 1 - confidence."""
    ranks_R = _ranked(low_S[1:])
    rank = math.floor(_tail(confidence) * (len(ranks_R) + 1))
    return finite(np.partition(ranks_R, rank - 1)[rank - 1]) if rank else None


def p_value(low_S: Floats, bar: float) -> float:
    """One-sided: how probable such an estimate is where the truth is ``bar``, by the resamples at or below it."""
    ranks_R = _ranked(low_S[1:])
    return float(1 + np.sum(ranks_R <= bar)) / (1 + len(ranks_R))


def simultaneous_lower(low_SL: Floats, confidence: float) -> list[float | None]:
    """Lower bounds that hold for all languages at once: of the maximum over languages of a studentised distance.

    Each language is studentised by its own resampling distribution: its distance below the estimate is measured by the
    rank that it has there. So skewed ratios need no transformation, a standard error near zero blows nothing up, and
    all languages are bounded with equal care (Beran, "Balanced simultaneous confidence sets", 1988; computed as Mandel
    and Betensky 2008). With one language it is ``lower_bound``.
    """
    low_RL = _ranked(low_SL[1:])
    sorted_RL = np.sort(low_RL, axis=0)
    columns = zip(sorted_RL.T, low_RL.T, strict=True)
    rank_LR = [np.searchsorted(ours_R, at_R, side="right") for ours_R, at_R in columns]
    lowest_R = np.sort(np.min(rank_LR, axis=0))  # of each resample, the rank in the language where it lies lowest
    place = math.floor(_tail(confidence) * (len(low_RL) + 1)) - 1
    if place < 0:
        return [None] * low_RL.shape[1]
    return [finite(number) for number in sorted_RL[lowest_R[place] - 1]]


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment: naming all hypotheses at or below ``a`` errs in any of them with ``a`` at most."""
    adjusted, highest = {}, 0.0
    ordered: Sequence[str] = sorted(p_values, key=lambda name: p_values[name])
    for place, name in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - place) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def finite(number: float) -> float | None:
    """A number, or None for what is none."""
    return float(number) if math.isfinite(number) else None


def _tail(confidence: float) -> float:
    """1 - confidence without the rounding of binary fractions, which would cost a rank."""
    return round(1 - confidence, 12)


def _ranked(low_R: Floats) -> Floats:
    """A resample that says nothing lies below everything."""
    return np.where(np.isnan(low_R), -np.inf, low_R)
