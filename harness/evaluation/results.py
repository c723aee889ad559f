"""Joins stored evaluations, bench and provenance into the results.json contract. Encodes nothing, needs no model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness.evaluation.bars import STAGES, bar_rows, candidate, last_student
from harness.evaluation.caveats import caveats
from harness.evaluation.ledger import ledger
from harness.evaluation.per_query import PerQuery
from harness.evaluation.slices import Slice, cut_up, slice_results
from harness.evaluation.statistics import (
    METHOD,
    Samples,
    agreement,
    loses_less_than,
    paired_difference_of,
    quality,
    recovery_of,
    require_same_queries,
    resample,
)
from harness.metrics import is_quality
from harness.recipe import ReportSettings

Evaluations = Mapping[str, Mapping[str, PerQuery]]
Tree = dict[str, Any]

TESTED_METRICS = ("P@1", "nDCG@10")  # what systems are compared by, where a set has one of them


def build_results(  # noqa: PLR0913 - a join has as many inputs as there are files to join
    *,
    name: str,
    evaluations: Evaluations,
    reference: str,
    systems: Mapping[str, Tree],
    sets: Mapping[str, Tree],
    provenance: Tree,
    conditions: Tree,
    bench: Tree | None,
    training: Mapping[str, Tree],
    report: ReportSettings,
    resamples: int,
    confidence: float,
    seed: int,
    slices: Mapping[str, Mapping[str, Slice]],
    exported: str | None = None,
) -> Tree:
    """Build results.json (schema 1 of the design, and what came later): plain JSON, None for what is no number.

    "candidate": the student that bars and claims are about, on the headline set; "statistics": of all intervals here.

    Args:
        evaluations: system -> set -> what it answered; a system may lack a set.
        reference: the denominator of every recovery.
        systems, sets, provenance, conditions: taken over; sets may say what they share with training
            (``overlap.overlap_warnings``), and how many of their queries teachers read with "contexts"; each gains
            ``selected_on``; the conditions that the bench measured under override ours.
        bench: what ``bench`` returned; None where nothing was timed.
        training: stage -> {"curve": [{"step", "metric", "value"}], "loss", "seconds"}.
        report: bars, claims and warnings that the recipe asks for.
        slices: set -> slices of its queries.
        exported: the system that is deployed; the last student, where the recipe exports none.

    Raises:
        InputError: answers to a set that can't be compared (``statistics.resample`` says which).
    """
    by_set = _by_set(evaluations)
    samples = _samples(by_set, resamples, seed)
    sliced = _sliced(by_set, slices, resamples, seed)
    headline = headline_set(list(by_set))
    results: Tree = {
        "schema": 1, "name": name, "provenance": provenance, "reference": reference,
        "candidate": candidate(evaluations, headline, reference), "exported": exported,
        "statistics": {"confidence": confidence, "resamples": resamples, "seed": seed, "method": METHOD},
        "sets": {key: {**sets.get(key, {}), "selected_on": key == "select"} for key in by_set},
        "systems": dict(systems), "quality": _each(evaluations, quality),
        "recovery": _recoveries(samples, reference, confidence),
        "agreement": _without_empty(_each(evaluations, agreement)),
        **_timed(bench, conditions),
        "slices": _slices(sliced, slices, reference, confidence),
        "tests": [*_gains(samples, confidence), *_claims(samples, reference, report.loses_less_than, confidence)],
        "ann": {"verdict": "not measured"},
        "ledger": _ledger(samples, sliced, exported, reference, confidence),
        "training": _with_gain(training),
    }  # fmt: skip
    results["bars"] = bar_rows(results, report.bars, headline, samples.get(headline or ""), confidence)
    results["warnings"] = caveats(results, headline, report.warn_teacher_gain)
    return dict(_plain(results))


def headline_set(sets: Sequence[str]) -> str | None:
    """The set that tables, bars and the verdict use: ``test``, else ``report``, else ``select``."""
    return next((name for name in ("test", "report", "select") if name in sets), None)


def qualities(systems: Mapping[str, PerQuery]) -> list[str]:
    """The qualities that all systems of a set have."""
    first, *others = systems.values()
    return [metric for metric in first.metrics if is_quality(metric) and all(metric in o.metrics for o in others)]


def compared_metrics(measured: Sequence[str]) -> list[str]:
    """Of a set's ``qualities``, those that tests, slices and ledger are about: the first where it has none of those."""
    return [metric for metric in TESTED_METRICS if metric in measured] or list(measured[:1])


def last_quarter_gain(curve: Sequence[Tree]) -> float | None:
    """How much the metric of the curve's last point rose over the last quarter of the steps.

    Between two evaluations the metric is taken to change evenly; None where there are too few to tell.
    """
    if not curve:
        return None
    metric = curve[-1]["metric"]
    points = sorted((point["step"], point["value"]) for point in curve if point["metric"] == metric)
    steps, values = zip(*points, strict=True)
    start = 0.75 * steps[-1]
    return None if steps[0] > start else float(values[-1] - np.interp(start, steps, values))


# ------------------------------------------------------------------------------------------- the numbers


def _with_gain(training: Mapping[str, Tree]) -> Tree:
    """The stages, the teacher's with what it gained in its last quarter."""
    teacher = training.get("teacher")
    if teacher is None:
        return dict(training)
    return {**training, "teacher": {**teacher, "last_quarter_gain": last_quarter_gain(teacher.get("curve", []))}}


def _by_set(evaluations: Evaluations) -> dict[str, dict[str, PerQuery]]:
    """set -> system -> evaluation, the sets in the order in which they were found."""
    by_set: dict[str, dict[str, PerQuery]] = {}
    for system, found in evaluations.items():
        for set_name, per_query in found.items():
            by_set.setdefault(set_name, {})[system] = per_query
    for set_name, systems in by_set.items():
        require_same_queries(systems, where=f"set {set_name}")
    return by_set


def _samples(by_set: Mapping[str, Mapping[str, PerQuery]], resamples: int, seed: int) -> dict[str, Samples]:
    """set -> all its systems over the same draws of groups."""
    return {
        name: resample(systems, metrics=qualities(systems), resamples=resamples, seed=seed)
        for name, systems in by_set.items()
    }


def _sliced(
    by_set: Mapping[str, Mapping[str, PerQuery]], slices: Mapping[str, Mapping[str, Slice]], resamples: int, seed: int
) -> dict[str, Samples]:
    """The same of what is tested, cut up by slices; a set without slices is absent."""
    found = {}
    for name, systems in by_set.items():
        cuts, metrics = slices.get(name), compared_metrics(qualities(systems))
        if cuts and metrics:
            parts = {system: cut_up(per_query, cuts, metrics) for system, per_query in systems.items()}
            found[name] = resample(parts, metrics=metrics, resamples=resamples, seed=seed)
    return found


def _timed(bench: Tree | None, conditions: Tree) -> Tree:
    """What was timed, and under which conditions."""
    if bench is None:
        return {"latency": {}, "throughput": {}, "conditions": dict(conditions)}
    timed: Tree = {key: bench[key] for key in ("latency", "throughput", "noise") if key in bench}  # noise came later
    return {**timed, "conditions": {**conditions, **bench["conditions"]}}


def _each(evaluations: Evaluations, summary: Any) -> Tree:
    return {
        system: {set_name: summary(per_query) for set_name, per_query in found.items()}
        for system, found in evaluations.items()
    }


def _without_empty(tree: Tree) -> Tree:
    kept = {system: {key: rows for key, rows in sets.items() if rows} for system, sets in tree.items()}
    return {system: sets for system, sets in kept.items() if sets}


def _recoveries(samples: Mapping[str, Samples], reference: str, confidence: float) -> Tree:
    found: Tree = {}
    for set_name, sample in samples.items():
        if reference in sample.sum_SLM:
            for system in sample.sum_SLM:
                if system != reference:
                    rows = recovery_of(sample, system, reference, confidence=confidence)
                    found.setdefault(system, {})[set_name] = rows
    return found


def _gains(samples: Mapping[str, Samples], confidence: float) -> list[Tree]:
    """The gain of each stage: ``difference`` is the first of ``systems`` less the second."""
    return [
        {"name": f"gain of {stage}", "kind": "difference", "stage": stage, "systems": [after, before], "set": set_name,
         "metric": metric, **paired_difference_of(sample, after, before, metric, confidence=confidence)}
        for set_name, sample in samples.items()
        for stage, (before, after) in STAGES.items()
        if before in sample.sum_SLM and after in sample.sum_SLM
        for metric in compared_metrics(sample.metrics)
    ]  # fmt: skip


def _slices(
    sliced: Mapping[str, Samples], slices: Mapping[str, Mapping[str, Slice]], reference: str, confidence: float
) -> Tree:
    """What each system keeps of the reference on each part of each set."""
    found: Tree = {}
    for set_name, sample in sliced.items():
        if reference in sample.sum_SLM:
            for system, parts in slice_results(sample, reference, slices[set_name], confidence).items():
                found.setdefault(system, {})[set_name] = parts
    return found


def _ledger(
    samples: Mapping[str, Samples], sliced: Mapping[str, Samples], exported: str | None, reference: str,
    confidence: float,
) -> list[Tree]:  # fmt: skip
    """What each step cost or won, on every set."""
    return [
        row for name, sample in samples.items()
        for row in ledger(sample, sliced.get(name), set_name=name, metrics=compared_metrics(sample.metrics),
                          exported=exported or _student(sample, name, reference), confidence=confidence)
    ]  # fmt: skip


def _student(sample: Samples, set_name: str, reference: str) -> str:
    return last_student(dict.fromkeys(sample.sum_SLM, {set_name: True}), set_name, reference)


def _claims(samples: Mapping[str, Samples], reference: str, margin: float | None, confidence: float) -> list[Tree]:
    """That the last student loses less than ``margin`` of the reference: on average, in all languages, in each."""
    if margin is None:
        return []
    found = []
    for set_name, sample in samples.items():
        student = _student(sample, set_name, reference)
        if not {student, reference} <= set(sample.sum_SLM):
            continue
        for metric in compared_metrics(sample.metrics):
            told = {"name": f"loses less than {100 * margin:g} % of {metric}", "kind": "non-inferiority",
                    "systems": [student, reference], "set": set_name, "metric": metric}  # fmt: skip
            rows = loses_less_than(sample, student, reference, metric, margin=margin, confidence=confidence)
            found += [{**told, **row} for row in rows]
    return found


# --------------------------------------------------------------------------------------------- plain JSON


def _plain(value: Any) -> Any:
    """The same tree in JSON's types: numpy's numbers become Python's, numbers that JSON lacks become None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
