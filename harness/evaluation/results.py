"""Joins stored evaluations, bench and provenance into the results.json contract. Encodes nothing, needs no model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from harness.data.overlap import overlap_warnings
from harness.evaluation.per_query import PerQuery
from harness.evaluation.statistics import (
    Samples,
    agreement,
    paired_difference_of,
    quality,
    recovery_of,
    require_same_queries,
    resample,
)
from harness.metrics import is_quality
from harness.recipe import Bars

Evaluations = Mapping[str, Mapping[str, PerQuery]]
Tree = dict[str, Any]

# stage -> (the system before, the system after)
STAGES = {
    "teacher": ("teacher-base", "teacher"),
    "align": ("student-untrained", "student-aligned"),
    "refine": ("student-aligned", "student-refined"),
}
STUDENTS = ("student-untrained", "student-aligned", "student-refined")  # the last one that exists meets the bars
HEADLINE_METRIC = "P@1"
TESTED_METRICS = ("P@1", "nDCG@10")
ANN_DOCUMENTS = 100_000
FEW_QUERIES = 30


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
    bars: Bars,
    resamples: int,
    confidence: float,
    seed: int,
    warn_teacher_gain: float,
) -> Tree:
    """Build the dict of results.json (schema 1 of the design, and "name", "bars", "training", "warnings").

    Args:
        evaluations: system -> set -> what it answered; a system may lack a set.
        reference: the denominator of every recovery.
        systems, sets, provenance, conditions: taken over; sets may say what they share with training
            (``overlap.overlap_warnings``), and how many of a set's queries teachers read with "contexts";
            ``selected_on`` is added to each set, and the conditions that the bench measured under override ours.
        bench: what ``bench`` returned; None where nothing was timed.
        training: stage -> {"curve": [{"step", "metric", "value"}], "loss", "seconds"}; the teacher's gains
            "last_quarter_gain".
        warn_teacher_gain: a teacher that gained more than this in its last quarter of steps was undertrained.

    Returns:
        Plain JSON, with None for what is no number.

    Raises:
        InputError: two systems answered different queries of a set; a language has the name of a summary row.
    """
    by_set = _by_set(evaluations)
    samples = _samples(by_set, resamples, seed)
    results: Tree = {
        "schema": 1,
        "name": name,
        "provenance": provenance,
        "reference": reference,
        "sets": {key: {**sets.get(key, {}), "selected_on": key == "select"} for key in by_set},
        "systems": dict(systems),
        "quality": _each(evaluations, quality),
        "recovery": _recoveries(samples, reference, confidence),
        "agreement": _without_empty(_each(evaluations, agreement)),
        **_timed(bench, conditions),
        "slices": {},
        "tests": _tests(samples, confidence),
        "ann": _ann(sets),
        "ledger": [],
        "training": _with_gain(training),
    }
    headline = headline_set(list(by_set))
    results["bars"] = _bars(results, bars, headline)
    results["warnings"] = _warnings(results, headline, warn_teacher_gain)
    return dict(_plain(results))


def headline_set(sets: Sequence[str]) -> str | None:
    """The set that tables, bars and the verdict use: ``test``, else ``report``, else ``select``."""
    return next((name for name in ("test", "report", "select") if name in sets), None)


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
    draw = partial(resample, resamples=resamples, seed=seed)
    return {name: draw(found, metrics=_metrics(found)) for name, found in by_set.items()}


def _timed(bench: Tree | None, conditions: Tree) -> Tree:
    """What was timed, and under which conditions."""
    if bench is None:
        return {"latency": {}, "throughput": {}, "conditions": dict(conditions)}
    timed = {key: bench[key] for key in ("latency", "throughput")}
    return {**timed, "conditions": {**conditions, **bench["conditions"]}}


def _metrics(systems: Mapping[str, PerQuery]) -> list[str]:
    """The qualities that all systems of a set have."""
    first, *others = systems.values()
    return [metric for metric in first.metrics if is_quality(metric) and all(metric in o.metrics for o in others)]


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


def _tests(samples: Mapping[str, Samples], confidence: float) -> list[Tree]:
    """The gain of each stage: ``difference`` is the first of ``systems`` less the second."""
    return [
        {"name": f"gain of {stage}", "stage": stage, "systems": [after, before], "set": set_name, "metric": metric,
         **paired_difference_of(sample, after, before, metric, confidence=confidence)}
        for set_name, sample in samples.items()
        for stage, (before, after) in STAGES.items()
        if before in sample.sum_SLM and after in sample.sum_SLM
        for metric in TESTED_METRICS
        if metric in sample.metrics
    ]  # fmt: skip


def _ann(sets: Mapping[str, Tree]) -> Tree:
    documents = max((described.get("documents", 0) for described in sets.values()), default=0)
    return {"verdict": "too small to tell"} if documents < ANN_DOCUMENTS else {}


# ---------------------------------------------------------------------------------- bars and warnings


def _bars(results: Tree, bars: Bars, headline: str | None) -> list[Tree]:
    """One entry per bar that the recipe sets; ``passed`` is None where it can't be told."""
    student = _last_student(results, headline)
    rows = [
        *(_teacher_bar(results, metric, bar, headline) for metric, bar in bars.teacher.items()),
        *(_recovery_bar(results, student, metric, bar, headline) for metric, bar in bars.recovery.items()),
    ]
    if bars.stage_gain:
        rows += _gain_bars(results, headline)
    if bars.latency_ratio is not None:
        rows.append(_latency_bar(results, student, bars.latency_ratio))
    return rows


def _last_student(results: Tree, headline: str | None) -> str:
    evaluated = [system for system in STUDENTS if headline in results["quality"].get(system, {})]
    return evaluated[-1] if evaluated else STUDENTS[-1]


def _teacher_bar(results: Tree, metric: str, bar: float, headline: str | None) -> Tree:
    value = _at(results, "quality", "teacher", headline, "macro", metric)
    return {"name": f"teacher {metric}", "what": f"macro {metric} of the teacher on {headline}, at least",
            "value": value, "low": None, "bar": bar, "passed": None if value is None else value >= bar}  # fmt: skip


def _recovery_bar(results: Tree, student: str, metric: str, bar: float, headline: str | None) -> Tree:
    estimate = _at(results, "recovery", student, headline, "macro", metric) or {"value": None, "low": None}
    value = estimate["value"]
    return {"name": f"recovery of {metric}",
            "what": f"macro recovery of {metric} by {student} against {results['reference']} on {headline}, at least",
            "value": value, "low": estimate["low"], "bar": bar,
            "passed": None if value is None else value >= bar}  # fmt: skip


def _gain_bars(results: Tree, headline: str | None) -> list[Tree]:
    """A stage that was trained has a bar, also where a system beside it was not evaluated: then it can't be told."""
    tests = {test["stage"]: test for test in results["tests"]
             if test["set"] == headline and test["metric"] == HEADLINE_METRIC}  # fmt: skip
    reached = {"gain": True, "loss": False, "undecided": None}
    rows = []
    for stage, (before, after) in STAGES.items():
        if stage in tests or stage in results["training"]:
            test = tests.get(stage, {"difference": None, "low": None, "verdict": "undecided"})
            what = f"gain in macro {HEADLINE_METRIC} of {after} over {before} on {headline}, interval above"
            rows.append({"name": f"gain of {stage}", "what": what, "value": test["difference"], "low": test["low"],
                         "bar": 0.0, "passed": reached[test["verdict"]]})  # fmt: skip
    return rows


def _latency_bar(results: Tree, student: str, bar: float) -> Tree:
    p50 = [_at(results, "latency", system, "torch", "all", "p50_ms") for system in (student, "teacher")]
    value = p50[0] / p50[1] if all(p50) else None
    return {"name": "latency ratio", "what": f"median encoder latency of {student} over the teacher's, at most",
            "value": value, "low": None, "bar": bar, "passed": None if value is None else value <= bar}  # fmt: skip


def _warnings(results: Tree, headline: str | None, warn_teacher_gain: float) -> list[str]:
    if headline is None:
        return ["nothing was evaluated"]
    found = []
    if headline == "select":
        found.append("only the set that checkpoints were selected on was evaluated: its numbers are too good")
    found += [f"{told}: numbers of this set are too good" for told in overlap_warnings(results["sets"])]
    found += [
        f"teachers read {told['contexts']:,} of {told['queries']:,} queries of {name} with a context (teacher.context) "
        "that no student sees: what they find with it, a student is not shown"
        for name, told in results["sets"].items() if "contexts" in told
    ]  # fmt: skip
    read = _at(results, "sets", headline, "contexts")
    misled = ", or misled by the contexts that it reads (teacher.context)" if read else ""
    for system, by_set in results["recovery"].items():
        value = _at(by_set, headline, "macro", HEADLINE_METRIC, "value")
        if system in STUDENTS and results["reference"] == "teacher" and value is not None and value > 1:
            found.append(
                f"{system} is above its teacher on {headline} (macro recovery of {HEADLINE_METRIC} {value:.3f}): "
                "the teacher was undertrained" + misled
            )
    gain = _at(results, "training", "teacher", "last_quarter_gain")
    if gain is not None and gain > warn_teacher_gain:
        metric = results["training"]["teacher"]["curve"][-1]["metric"]
        found.append(
            f"the teacher still gained {gain:.3f} of {metric} over its last quarter of steps (more than "
            f"{warn_teacher_gain:g}): train it longer"
        )
    rows = next(by_set[headline] for by_set in results["quality"].values() if headline in by_set)
    small = [f"{language} ({row['queries']})" for language, row in rows.items()
             if language not in ("macro", "all") and row["queries"] < FEW_QUERIES]  # fmt: skip
    if small:
        found.append(f"fewer than {FEW_QUERIES} queries on {headline}, too few to tell much: {', '.join(small)}")
    return found


# --------------------------------------------------------------------------------------------- plain JSON


def _at(tree: Any, *path: str | None) -> Any:
    """The value at a path of keys; None where a key is missing."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


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
