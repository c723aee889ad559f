"""Does a student lose less than x % of its reference? One-sided tests of non-inferiority.

The hypothesis to refute is that the recovery is 1 - x or less. It is tested by the paired bootstrap over groups with
one more group that the student loses (``intervals``): p is the share of resamples at or below 1 - x, and it is at most
1 - confidence exactly where the one-sided lower bound lies above 1 - x, so that test and bound can't disagree.

Why not by flipping the signs of student - (1 - x) * reference, group by group: that presumes that differences lie above
zero as often and as far as below. At a margin of 2 % they are many of 0.02 and few of -0.98. A student that truly loses
2 % has lost none of 50 queries in 36 of 100 cases, and each of those would be "shown" with p = 2 ** -50.
``benchmarks/intervals.py`` measures both.

- ``macro``: one test.
- ``all languages``: an intersection-union test. It claims that the loss is small in every language, and each language's
  own test must show it, uncorrected: the claim is wrong only where one of those is, and that one errs with
  1 - confidence at most. Value, bound and p are the worst of any language.
- A single language: naming those that pass is a search among many, so their p-values are Holm-corrected.

``undecided``, whatever p is: fewer than ``FEW_GROUPS`` groups, or a reference at zero. And where the test does not
pass: so few groups that not even a student without any loss would have passed (for 2 % at 95 %: fewer than some 150
groups in which the reference finds something). ``not shown`` is no proof of a larger loss.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from harness.evaluation.statistics.comparisons import ratios
from harness.evaluation.statistics.intervals import FEW_GROUPS, Floats, finite, holm, lower_bound, p_value
from harness.evaluation.statistics.samples import Samples

ALL_LANGUAGES = "all languages"


def loses_less_than(
    samples: Samples, student: str, reference: str, metric: str, *, margin: float, confidence: float
) -> list[dict[str, Any]]:
    """The tests of one metric: ``macro``, ``all languages``, then each language.

    Returns:
        ``[{"scope", "margin", "value", "low", "p", "p_adjusted", "queries", "groups", "verdict", "why"}]``; ``low`` is
        the one-sided bound before any correction, the verdict ``shown``, ``not shown`` or ``undecided``, and ``why``
        what speaks against "shown" (None where it is).
    """
    low_SP, _ = ratios(samples, student, reference, metric)
    hopeless_P = _hopeless(samples, reference, metric, margin, confidence)
    count_L = samples.count_SL[0]
    queries_P = [*count_L, *[count_L.sum()] * (low_SP.shape[1] - len(count_L))]
    rows = {
        scope: {
            "scope": scope, "margin": margin,
            **_tested(low_SP[:, place], int(samples.groups_P[place]), margin, confidence),
            "queries": int(queries_P[place]), "groups": int(samples.groups_P[place]),
        }
        for place, scope in enumerate(samples.scopes) if scope in (*samples.languages, "macro")
    }  # fmt: skip
    languages = [rows[language] for language in samples.languages]
    adjusted = holm({row["scope"]: 1.0 if row["p"] is None else row["p"] for row in languages})
    alpha = 1 - confidence

    def judged(row: dict[str, Any], p: float | None) -> dict[str, Any]:
        """The verdict by this p, and why."""
        if p is None:
            few = row["groups"] < FEW_GROUPS
            why = f"fewer than {FEW_GROUPS} groups of queries" if few else "the reference finds nothing"
            return {"verdict": "undecided", "why": why}
        if p <= alpha + 1e-12:
            return {"verdict": "shown", "why": None}
        hopeless = bool(hopeless_P[samples.scopes.index(row["scope"])])
        why = "the one-sided bound does not lie above 1 less the margin"
        if row["p"] <= alpha + 1e-12:
            why = f"its own bound lies above 1 less the margin, and not once corrected for {len(languages)} languages"
        elif hopeless:
            why = "too few groups: not even a student without any loss would have passed"
        return {"verdict": "undecided" if hopeless else "not shown", "why": why}

    united = _united(languages, [judged(row, row["p"]) for row in languages], rows["macro"])
    rows["macro"] |= {"p_adjusted": rows["macro"]["p"], **judged(rows["macro"], rows["macro"]["p"])}
    for row in languages:
        p = None if row["p"] is None else adjusted[row["scope"]]
        row |= {"p_adjusted": p, **judged(row, p)}
    return [rows["macro"], united, *languages]


def _tested(low_S: Floats, groups: int, margin: float, confidence: float) -> dict[str, Any]:
    """Value, bound and p of one scope; no bound and no p where nothing can be claimed."""
    told = groups >= FEW_GROUPS and math.isfinite(low_S[0])
    return {
        "value": finite(low_S[0]),
        "low": lower_bound(low_S, confidence) if told else None,
        "p": p_value(low_S, 1 - margin) if told else None,
    }


def _hopeless(samples: Samples, reference: str, metric: str, margin: float, confidence: float) -> Any:
    """hopeless_P: whether a student that found just what the reference found would not pass, for want of groups.

    Its lower bound is mean / (mean + one group * more), with ``more`` at its quantile.
    """
    mean_P = samples.all_means(reference, metric)[0]
    more = -math.log(1 - confidence)
    with np.errstate(invalid="ignore"):
        return ~(mean_P * margin > (1 - margin) * more * samples.lost_group(reference, reference, metric))


def _united(languages: list[dict[str, Any]], judged: list[dict[str, Any]], macro: dict[str, Any]) -> dict[str, Any]:
    """The claim about all languages; none can be told where one of them can't."""
    values = [row["value"] for row in languages if row["value"] is not None]
    lows, ps = ([row[key] for row in languages] for key in ("low", "p"))
    p = None if None in ps else max(ps)
    verdicts = [row["verdict"] for row in judged]
    verdict = next((told for told in ("not shown", "undecided") if told in verdicts), "shown")
    against: dict[str, list[str]] = {}  # reason -> languages
    for row, told in zip(languages, judged, strict=True):
        if told["verdict"] == verdict and told["why"]:
            against.setdefault(told["why"], []).append(row["scope"])
    why = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in against.items()) or None
    return {
        "scope": ALL_LANGUAGES, "margin": macro["margin"], "value": min(values, default=None),
        "low": None if None in lows else min(lows), "p": p, "queries": macro["queries"], "groups": macro["groups"],
        "p_adjusted": p, "verdict": verdict, "why": why,
    }  # fmt: skip
