"""The bars that a recipe sets, and whether a run reached them.

Reached: the estimate and its one-sided lower bound, at the recipe's confidence, clear the bar. Missed: the estimate
falls short of it. Undecided: the estimate clears it and its bound does not, or too little was measured to tell: fewer
than ``FEW_GROUPS`` groups of queries, a language that can't be told where the worst language counts, a reference at
zero, a system that was not evaluated or timed. The gain of a stage is a two-sided test of its own: reached where it is
a gain, missed where it is a loss. A latency is undecided behind few calls (``FEW_CALLS``: a percentile of fewer is one
call), and where it lies as near its bar as the machine was unsteady; ``what`` then says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.evaluation.statistics import FEW_GROUPS, Samples, mean_bound, recovery_bound
from harness.recipe import Bars

Tree = dict[str, Any]

# stage -> (the system before, the system after)
STAGES = {
    "teacher": ("teacher-base", "teacher"),
    "align": ("student-untrained", "student-aligned"),
    "refine": ("student-aligned", "student-refined"),
}
STUDENTS = ("student-untrained", "student-aligned", "student-refined")  # the last one that exists meets the bars
HEADLINE_METRIC = "P@1"
FEW_CALLS = {"p50": 30, "p99": 100}
UNSTEADY = 5.0  # % by which a value can be wrong at least, on a machine that was not quiet
OWN_PRECISION = ("torch", "torch-compile", "cuda-graphs", "onnx")  # engines that are the student that was evaluated
_PASSED = {"reached": True, "missed": False, "undecided": None}


def bar_rows(results: Tree, bars: Bars, headline: str | None, samples: Samples | None, confidence: float) -> list[Tree]:
    """One entry per bar: ``{"name", "what", "value", "low", "bar", "status", "passed"}``.

    ``passed`` is True where ``status`` is "reached", False where it is "missed", None where it is "undecided"; ``low``
    is the one-sided lower bound (of a stage's gain, its interval's).

    Args:
        results: of ``build_results``, as far as they are built.
        headline: the set that bars are about; samples: of that set.
    """
    student = last_student(results["quality"], headline, results["reference"])
    rows = [
        *(_teacher_bar(results, metric, bar, headline, samples, confidence) for metric, bar in bars.teacher.items()),
        *(_recovery_bar(results, metric, bar, (student, headline), samples, confidence)
          for metric, bar in bars.recovery.items()),
        *(_worst_bar(results, metric, bar, (student, headline)) for metric, bar in bars.worst.items()),
    ]  # fmt: skip
    if bars.stage_gain:
        rows += _gain_bars(results, headline)
    if bars.latency_ratio is not None:
        rows.append(_ratio_bar(results, student, bars.latency_ratio))
    if bars.latency_ms is not None:
        rows.append(_latency_bar(results, student, bars.latency_ms))
    return rows


def last_student(evaluated: Mapping[str, Mapping[str, Any]], set_name: str | None, reference: str) -> str:
    """The student that a run ends with, of those that were evaluated on a set: bars and claims are about it."""
    return candidate(evaluated, set_name, reference) or STUDENTS[-1]


def candidate(evaluated: Mapping[str, Mapping[str, Any]], set_name: str | None, reference: str) -> str | None:
    """``last_student``; None where none was evaluated. What is made of it (int8, approximate search) is none."""
    found = [system for system in STUDENTS if system != reference and set_name in evaluated.get(system, {})]
    return found[-1] if found else None


def at(tree: Any, *path: str | None) -> Any:
    """The value at a path of keys; None where a key is missing."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


# ------------------------------------------------------------------------------------------------------- one by one


def _row(name: str, what: str, value: float | None, low: float | None, bar: float, status: str) -> Tree:
    return {"name": name, "what": what, "value": value, "low": low, "bar": bar, "status": status,
            "passed": _PASSED[status]}  # fmt: skip


def _at_least(value: float | None, low: float | None, bar: float, *, told: bool = True) -> str:
    """The status of what has a lower bound; ``told``: whether there is data enough to claim anything."""
    if value is None or not told:
        return "undecided"
    if value < bar:
        return "missed"
    return "reached" if low is not None and low >= bar else "undecided"


def _enough(samples: Samples | None, *systems: str) -> bool:
    known = samples is not None and all(system in samples.sum_SLM for system in systems)
    return known and samples is not None and samples.groups >= FEW_GROUPS


def _teacher_bar(
    results: Tree, metric: str, bar: float, headline: str | None, samples: Samples | None, confidence: float
) -> Tree:
    value = at(results, "quality", "teacher", headline, "macro", metric)
    told = _enough(samples, "teacher")
    low = mean_bound(samples, "teacher", metric, confidence) if samples and told and metric in samples.metrics else None
    return _row(f"teacher {metric}", f"macro {metric} of the teacher on {headline}, at least", value, low, bar,
                _at_least(value, low, bar, told=told))  # fmt: skip


def _recovery_bar(
    results: Tree, metric: str, bar: float, of: tuple[str, str | None], samples: Samples | None, confidence: float
) -> Tree:
    (student, headline), reference = of, results["reference"]
    value = at(results, "recovery", student, headline, "macro", metric, "value")
    told, low = _enough(samples, student, reference), None
    if samples and told and metric in samples.metrics:
        low = recovery_bound(samples, student, reference, metric, confidence)
    what = f"macro recovery of {metric} by {student} against {reference} on {headline}, at least"
    return _row(f"recovery of {metric}", what, value, low, bar, _at_least(value, low, bar, told=told))


def _worst_bar(results: Tree, metric: str, bar: float, of: tuple[str, str | None]) -> Tree:
    """A language that can't be told might be the worst: then the bar is missed by another one, or undecided."""
    (student, headline), reference = of, results["reference"]
    row = at(results, "recovery", student, headline, "worst", metric) or {}
    value, low, unclear = row.get("value"), row.get("low"), row.get("undecided") or []
    status = _at_least(value, low, bar, told=row.get("high") is not None or low is not None)
    if status == "reached" and unclear:
        status = "undecided"
    named = f" ({row['language']}" + (f"; undecided: {', '.join(unclear)}" if unclear else "") + ")" if row else ""
    what = f"recovery of {metric} by {student} against {reference} in its worst language{named} on {headline}, at least"
    return _row(f"worst language, {metric}", what, value, low, bar, status)


def _gain_bars(results: Tree, headline: str | None) -> list[Tree]:
    """A stage that was trained has a bar, also where a system beside it was not evaluated: then it can't be told."""
    tests = {test["stage"]: test for test in results["tests"]
             if "stage" in test and test["set"] == headline and test["metric"] == HEADLINE_METRIC}  # fmt: skip
    status = {"gain": "reached", "loss": "missed", "undecided": "undecided"}
    rows = []
    for stage, (before, after) in STAGES.items():
        if stage in tests or stage in results["training"]:
            test = tests.get(stage, {"difference": None, "low": None, "verdict": "undecided"})
            what = f"gain in macro {HEADLINE_METRIC} of {after} over {before} on {headline}, interval above"
            rows.append(_row(f"gain of {stage}", what, test["difference"], test["low"], 0.0, status[test["verdict"]]))
    return rows


def _at_most(name: str, what: str, value: float | None, bar: float, doubt: str) -> Tree:
    status = "undecided" if value is None or doubt else "reached" if value <= bar else "missed"
    return _row(name, f"{what} ({doubt}), at most" if doubt else f"{what}, at most", value, None, bar, status)


def _doubt(value: float | None, bar: float, calls: list[int | None], percentile: str, noise: float) -> str:
    """Why a latency can't be told from its bar; empty where it can.

    Args:
        calls: behind each number that the value was made of.
        noise: by how many % the value can be wrong.
    """
    if value is None:
        return ""
    fewest = min(number or 0 for number in calls)
    if fewest < FEW_CALLS[percentile]:
        return f"too few calls for a {percentile}: {fewest} of {FEW_CALLS[percentile]}"
    if abs(value - bar) <= bar * noise / 100:
        return f"as near the bar as timings vary on this machine: {noise:.0f} %"
    return ""


def _noise(results: Tree, *, paired: bool) -> float:
    """By how many % a latency can be wrong (0 where nothing is known of it).

    That is what two equal systems differed by; on a machine that was not quiet ``UNSTEADY`` at least and, but for a
    ratio of systems that took turns (``paired``), its drift and the share of its cores that other programs had.
    """
    told = results.get("noise") or {}
    known = [told.get("percent") or 0.0]
    if told.get("warning"):
        known.append(UNSTEADY)
        if not paired:
            known += [abs(told.get("drift_percent") or 0.0),
                      100 * (told.get("others_cores") or 0.0) / (told.get("cores") or 1)]  # fmt: skip
    return max(known)


def _ratio_bar(results: Tree, student: str, bar: float) -> Tree:
    rows: list[Tree] = [at(results, "latency", system, "torch", "all") or {} for system in (student, "teacher")]
    p50: list[Any] = [row.get("p50_ms") for row in rows]
    value = p50[0] / p50[1] if all(p50) else None
    doubt = _doubt(value, bar, [row.get("calls") for row in rows], "p50", _noise(results, paired=True))
    return _at_most("latency ratio", f"median encoder latency of {student} over the teacher's", value, bar, doubt)


def _latency_bar(results: Tree, student: str, bar: float) -> Tree:
    """By the fastest engine that is the student that was evaluated; one of lower precision finds something else."""
    timed = {
        engine: value for engine in OWN_PRECISION
        if (value := at(results, "latency", student, engine, "all", "whole_p99_ms")) is not None
    }  # fmt: skip
    engine = min(timed, key=lambda name: timed[name], default=None)
    by = f" by {engine}" if engine else ""
    what = f"p99 in ms of a query's whole path (tokenise, encode, search) with {student}{by}"
    value = None if engine is None else timed[engine]
    calls = [at(results, "latency", student, engine, "all", "calls")]
    return _at_most("latency", what, value, bar, _doubt(value, bar, calls, "p99", _noise(results, paired=False)))
