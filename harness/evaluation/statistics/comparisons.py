"""Recovery and paired differences of every scope, with their intervals. The package's docstring has the definitions.

Axes: S = 1 + R samples of which the first is the data itself, L languages, P scopes (languages, then summaries).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.evaluation.per_query import PerQuery
from harness.evaluation.statistics.intervals import (
    FEW_GROUPS,
    Estimate,
    Floats,
    interval,
    lower_bound,
    simultaneous_lower,
)
from harness.evaluation.statistics.samples import Samples, divide, resample
from harness.metrics import METRICS

_ROUNDING = 1e-9  # a bound this close to zero is zero: sums of equal numbers in another order differ by less


def ratios(samples: Samples, student: str, reference: str, metric: str) -> tuple[Floats, Floats]:
    """(low_SP, high_SP): student over reference with one more group against it, and for it (``intervals``).

    Metrics lie in [0, 1]: no draw's student finds more than everything, whatever one more group adds to it. So each
    draw's ratio is at most 1 over what its reference found, and ``high`` at most that of a poor draw of the reference.
    """
    student_SP, reference_SP = (samples.all_means(system, metric) for system in (student, reference))
    lost_SP = samples.more_SP * samples.lost_group(student, reference, metric)
    won_SP = samples.more_SP * samples.lost_group(reference, student, metric)
    return divide(student_SP, reference_SP + lost_SP), divide(np.minimum(student_SP + won_SP, 1), reference_SP)


def differences(samples: Samples, a: str, b: str, metric: str) -> tuple[Floats, Floats]:
    """(low_SP, high_SP): a less b with one more group against it, and for it; in [-1, 1], as metrics are in [0, 1]."""
    difference_SP = samples.all_means(a, metric) - samples.all_means(b, metric)
    lost_SP, won_SP = (samples.more_SP * samples.lost_group(*pair, metric) for pair in ((a, b), (b, a)))
    return np.maximum(difference_SP - lost_SP, -1), np.minimum(difference_SP + won_SP, 1)


# -------------------------------------------------------------------------------------------------------- recovery


def recovery(
    student: PerQuery,
    reference: PerQuery,
    *,
    metrics: Sequence[str] = METRICS,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
    added_group: bool = True,
) -> dict[str, dict[str, Estimate]]:
    """How much of the reference's quality the student kept.

    Args:
        added_group: false: plain paired percentile intervals, which are about these very queries; identical answers
            then give [1, 1]. True: bounds allow for one more group than there is (``intervals``).

    Returns:
        ``{LANG | "macro" | "micro" | "weighted" | "worst": {METRIC: {"value", "low", "high"}}}``. Languages also have
        ``simultaneous_low``; ``weighted`` is there only where weights differ; ``worst`` also has its ``language``, the
        ``method`` and the languages that are ``undecided``.

    Raises:
        InputError: student and reference answered different queries; a language has the name of a summary row; a metric
            or a weight is not a number.
    """
    samples = resample({"student": student, "reference": reference}, metrics=metrics, resamples=resamples, seed=seed,
                       added_group=added_group)  # fmt: skip
    return recovery_of(samples, "student", "reference", confidence=confidence)


def recovery_of(
    samples: Samples, student: str, reference: str, *, confidence: float
) -> dict[str, dict[str, Estimate]]:
    """``recovery`` from samples that are there already."""
    rows: dict[str, dict[str, Estimate]] = {name: {} for name in (*samples.scopes, "worst")}
    for metric in samples.metrics:
        low_SP, high_SP = ratios(samples, student, reference, metric)
        columns = zip(samples.scopes, low_SP.T, high_SP.T, samples.groups_P, strict=True)
        for scope, low_S, high_S, groups in columns:
            rows[scope][metric] = interval(low_S, high_S, confidence, known=groups > 1)
        worst, simultaneous = _worst(samples, low_SP, high_SP, confidence)
        for language in samples.languages:
            rows[language][metric]["simultaneous_low"] = simultaneous.get(language)
        rows["worst"][metric] = worst
    return rows


def told_languages(samples: Samples, ratio_SP: Floats) -> list[int]:
    """The languages that something can be claimed of: not of few groups, and the reference not at zero."""
    enough_L = samples.groups_L >= FEW_GROUPS
    return np.flatnonzero(enough_L & np.isfinite(ratio_SP[0, : len(samples.languages)])).tolist()


def _worst(
    samples: Samples, low_SP: Floats, high_SP: Floats, confidence: float
) -> tuple[Estimate, dict[str, float | None]]:
    """The row ``worst``, and the simultaneous lower bound of each language that can be told."""
    told = told_languages(samples, low_SP)
    value_L = low_SP[0, : len(samples.languages)]
    undecided = [name for place, name in enumerate(samples.languages) if place not in told]
    kept = told or np.flatnonzero(np.isfinite(value_L)).tolist()
    language = min(kept, key=lambda place: value_L[place], default=None)
    row: Estimate = {
        "value": None if language is None else float(value_L[language]), "low": None, "high": None,
        "language": None if language is None else samples.languages[language],
        "method": "max-t", "undecided": undecided,
    }  # fmt: skip
    if not told:
        return row, {}
    lower_L = simultaneous_lower(low_SP[:, told], confidence)
    upper_L = simultaneous_lower(-high_SP[:, told], confidence)
    if None not in lower_L:
        row["low"] = min(bound for bound in lower_L if bound is not None)
    row["high"] = min((-bound for bound in upper_L if bound is not None), default=None)
    return row, {samples.languages[place]: bound for place, bound in zip(told, lower_L, strict=True)}


# ----------------------------------------------------------------------------------------------- one-sided bounds


def recovery_bound(samples: Samples, student: str, reference: str, metric: str, confidence: float) -> float | None:
    """The one-sided lower bound of macro recovery; None behind few groups."""
    low_S = ratios(samples, student, reference, metric)[0][:, samples.scopes.index("macro")]
    told = samples.groups >= FEW_GROUPS and np.isfinite(low_S[0])
    return lower_bound(low_S, confidence) if told else None


def mean_bound(samples: Samples, system: str, metric: str, confidence: float) -> float | None:
    """The one-sided lower bound of a macro mean, one more group answered with zero; None behind few groups."""
    place = samples.scopes.index("macro")
    more_S = samples.more_SP[:, place] * samples.missed_group(system, metric)[place]
    low_S = samples.macro(system, metric) / (1 + more_S)
    return lower_bound(low_S, confidence) if samples.groups >= FEW_GROUPS else None


# ----------------------------------------------------------------------------------------------- paired differences


def paired_difference(
    a: PerQuery, b: PerQuery, metric: str, *, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """Macro over languages of (mean of a - mean of b): ``{"difference", "low", "high", "verdict"}``.

    The verdict is ``gain`` or ``loss`` where the whole interval lies above or below zero, else ``undecided``; so it is
    behind fewer than ``FEW_GROUPS`` groups.

    Raises:
        InputError: the systems answered different queries; a language has the name of a summary row; a metric or a
            weight is not a number.
    """
    samples = resample({"a": a, "b": b}, metrics=[metric], resamples=resamples, seed=seed)
    return paired_difference_of(samples, "a", "b", metric, confidence=confidence)


def paired_difference_of(samples: Samples, a: str, b: str, metric: str, *, confidence: float) -> dict[str, Any]:
    """``paired_difference`` from samples that are there already."""
    return differences_of(samples, a, b, metric, confidence=confidence)["macro"]


def differences_of(
    samples: Samples, a: str, b: str, metric: str, *, confidence: float
) -> dict[str, dict[str, Any]]:
    """``paired_difference`` of every scope of the samples."""
    low_SP, high_SP = differences(samples, a, b, metric)
    found = {}
    for scope, low_S, high_S, groups in zip(samples.scopes, low_SP.T, high_SP.T, samples.groups_P, strict=True):
        estimate = interval(low_S, high_S, confidence, known=groups > 1)
        low, high = estimate["low"], estimate["high"]
        verdict = "undecided"
        if groups >= FEW_GROUPS and low is not None and low > _ROUNDING:
            verdict = "gain"
        elif groups >= FEW_GROUPS and high is not None and high < -_ROUNDING:
            verdict = "loss"
        found[scope] = {"difference": estimate["value"], "low": low, "high": high, "verdict": verdict}
    return found
