"""Means per language, recovery, paired differences and claims about them, from a bootstrap over groups.

The bootstrap draws as many groups as there are, with replacement, and a drawn group brings its queries of all
languages (the same emoji or product asked for in several languages is no independent evidence). All systems see the
same draws, so every comparison is paired. Intervals are two-sided percentile intervals, claims rest on one-sided
bounds, and both allow for one more group that speaks against them (``intervals``).

Definitions, with q(s, l) the mean of a metric over the queries of language l under system s:
- a language's recovery: q(student, l) / q(reference, l);
- ``macro``: mean over languages of q(student, l) / mean over languages of q(reference, l): a ratio of means, so that
  one language in which the reference is poor doesn't rule it;
- ``micro``: mean over all queries under the student / the same under the reference;
- ``weighted``: as micro, each query counted by its weight (traffic, revenue); only where weights differ;
- ``worst``: the lowest recovery among the languages that can be told. The lowest of several noisy numbers lies below
  the truth, so its ``low`` is the least of lower bounds that hold for all those languages at once
  (``simultaneous_low``, from the maximum over languages of a studentised distance), and its ``high`` the least of such
  upper bounds, each one-sided at the given confidence. Languages that can't be told are named as ``undecided`` and are
  part of neither.

A language can't be told where it has fewer than ``FEW_GROUPS`` groups, or the reference is at zero. A recovery from a
reference at zero does not exist (value, low, high are None). Where a resample has the reference at zero and the student
above, the ratio is infinite, and a bound that falls there is None. A language with one group, or a resample without its
queries, says nothing about its spread: no interval, or that resample left out; in ``macro`` it keeps its mean there.

Files: ``means``; ``samples`` (the draws); ``intervals`` (from draws to bounds); ``comparisons`` (recovery and
differences); ``noninferiority`` ("loses less than x %").
"""

from harness.data.records import RESERVED
from harness.evaluation.statistics.comparisons import (
    differences_of,
    mean_bound,
    paired_difference,
    paired_difference_of,
    recovery,
    recovery_bound,
    recovery_of,
)
from harness.evaluation.statistics.intervals import (
    FEW_GROUPS,
    METHOD,
    Estimate,
    holm,
    lower_bound,
    simultaneous_lower,
)
from harness.evaluation.statistics.means import agreement, quality, refuse_reserved
from harness.evaluation.statistics.noninferiority import ALL_LANGUAGES, loses_less_than
from harness.evaluation.statistics.samples import Samples, require_same_queries, resample

__all__ = [
    "ALL_LANGUAGES",
    "Estimate",
    "FEW_GROUPS",
    "METHOD",
    "RESERVED",
    "Samples",
    "agreement",
    "differences_of",
    "holm",
    "loses_less_than",
    "lower_bound",
    "mean_bound",
    "paired_difference",
    "paired_difference_of",
    "quality",
    "recovery",
    "recovery_bound",
    "recovery_of",
    "refuse_reserved",
    "require_same_queries",
    "resample",
    "simultaneous_lower",
]
