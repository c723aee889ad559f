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
- A single language: naming those that pass is a search among many, so their p-values are Holm-corrected, over the
  languages that can be told. Where the claim about all languages holds, it holds of each: no corrected p is above that
  claim's. (Together that is the first step of Hochberg's procedure, Biometrika 1988, then Holm's. Hochberg's errs no
  more often than asked where p-values are independent or rise together, as those of languages do that share groups.)

``undecided``, whatever p is: fewer than ``FEW_GROUPS`` groups, or a reference at zero. And where the test does not
pass: so few groups that not even a student without any loss in this scope would have passed (for 2 % at 95 %: fewer
than some 150 groups in which the reference finds something; for the first of eight languages to be named: 250).
``not shown`` is no proof of a larger loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.evaluation.statistics.comparisons import ratios
from harness.evaluation.statistics.intervals import FEW_GROUPS, Floats, finite, holm, lower_bound, p_value
from harness.evaluation.statistics.samples import Samples, divide

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
    lossless_P = _lossless(samples, reference, metric, margin)
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
    lossless = dict(zip(samples.scopes, lossless_P.tolist(), strict=True))
    judged = _Judge(1 - confidence, sum(row["p"] is not None for row in languages))
    united = _united(languages, [judged(row, row["p"], lossless[row["scope"]]) for row in languages], rows["macro"])
    p_values = {row["scope"]: row["p"] for row in languages}
    adjusted = _adjusted(p_values)
    rows["macro"] |= {"p_adjusted": rows["macro"]["p"], **judged(rows["macro"], rows["macro"]["p"], lossless["macro"])}
    for row in languages:
        name = row["scope"]
        at_best = None if row["p"] is None else _adjusted({**p_values, name: lossless[name]})[name]
        row |= {"p_adjusted": adjusted[name], **judged(row, adjusted[name], at_best)}
    return [rows["macro"], united, *languages]


def _adjusted(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Holm's correction over those that have a p; none is above the largest, where all have one."""
    told = {name: p for name, p in p_values.items() if p is not None}
    largest = max(told.values(), default=1.0) if len(told) == len(p_values) else 1.0
    corrected = holm(told)
    return {name: min(corrected[name], largest) if name in told else None for name in p_values}


@dataclass(frozen=True)
class _Judge:
    """Verdict and reason of a row: by its p, and by the p of a student without any loss, both corrected or neither."""

    alpha: float
    languages: int

    def __call__(self, row: Mapping[str, Any], p: float | None, lossless: float | None) -> dict[str, Any]:
        if p is None or lossless is None:
            few = row["groups"] < FEW_GROUPS
            why = f"fewer than {FEW_GROUPS} groups of queries" if few else "the reference finds nothing"
            return {"verdict": "undecided", "why": why}
        if self._passes(p):
            return {"verdict": "shown", "why": None}
        hopeless = not self._passes(lossless)
        why = "the one-sided bound does not lie above 1 less the margin"
        if self._passes(row["p"]):
            why = f"its own bound lies above 1 less the margin, and not once corrected for {self.languages} languages"
        elif hopeless:
            why = "too few groups: not even a student without any loss would have passed"
        return {"verdict": "undecided" if hopeless else "not shown", "why": why}

    def _passes(self, p: float) -> bool:
        return p <= self.alpha + 1e-12


def _tested(low_S: Floats, groups: int, margin: float, confidence: float) -> dict[str, Any]:
    """Value, bound and p of one scope; no bound and no p where nothing can be claimed."""
    told = groups >= FEW_GROUPS and math.isfinite(low_S[0])
    return {
        "value": finite(low_S[0]),
        "low": lower_bound(low_S, confidence) if told else None,
        "p": p_value(low_S, 1 - margin) if told else None,
    }


def _lossless(samples: Samples, reference: str, metric: str, margin: float) -> Floats:
    """p_P of a student that found just what the reference found.

    Its draws are mean / (mean + one whole group * more), ``more`` exponential; p is how often they lie at 1 - margin or
    below.
    """
    mean_P = samples.all_means(reference, metric)[0]
    group_P = samples.lost_group(reference, reference, metric)
    return np.nan_to_num(np.exp(-divide(mean_P * margin, (1 - margin) * group_P)), nan=1.0)


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
