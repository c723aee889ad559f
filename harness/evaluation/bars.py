"""The bars that a recipe sets, and whether a run reached them.

Reached: the estimate and its one-sided lower bound, at the recipe's confidence, clear the bar. Missed: the estimate
falls short of it. Undecided: the estimate clears it and its bound does not, or too little was measured to tell: fewer
than ``FEW_GROUPS`` groups of queries, a language that can't be told where the worst language counts, a reference at
zero, a system that was not evaluated or timed. The gain of a stage is a two-sided test of its own: reached where it is
a gain, missed where it is a loss; stages beside a system that was not evaluated are asked for only by a recipe that
says so (``stage_gain: true``), so that what nobody asked for decides nothing. A latency is undecided behind few calls
(``FEW_CALLS``: a percentile of fewer is one call), and where it lies as near its bar as the machine was unsteady.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    """One entry per bar: ``{"name", "what", "value", "low", "bound", "bar", "status", "passed", "why"}``.

    ``passed`` is True where ``status`` is "reached", False where it is "missed", None where it is "undecided", and
    ``why`` then tells the reason. ``bound`` says what ``low`` is: a one-sided bound, or the lower end of an interval.

    Args:
        results: of ``build_results``, as far as they are built.
        headline: the set that bars are about; samples: of that set.
    """
    seen = _Seen(results, headline, last_student(results["quality"], headline, results["reference"]), samples,
                 confidence)  # fmt: skip
    rows = [
        *(_teacher_bar(seen, metric, bar) for metric, bar in bars.teacher.items()),
        *(_recovery_bar(seen, metric, bar) for metric, bar in bars.recovery.items()),
        *(_worst_bar(seen, metric, bar) for metric, bar in bars.worst.items()),
        *_gain_bars(seen, bars.stage_gain),
    ]
    if bars.latency_ratio is not None:
        rows.append(_ratio_bar(results, seen.student, bars.latency_ratio))
    if bars.latency_ms is not None:
        rows.append(_latency_bar(results, seen.student, bars.latency_ms))
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


@dataclass(frozen=True)
class _Seen:
    """What bars of quality are judged by: the student that they are about, on the headline set, and its samples."""

    results: Tree
    headline: str | None
    student: str
    samples: Samples | None
    confidence: float

    def bound(self, kind: str, of: str = "") -> str:
        """What kind of lower bound that is."""
        return f"{kind} {100 * self.confidence:g} %{of}"

    def unknown(self, metric: str, *systems: str) -> str:
        """Why nothing can be told of a metric of these systems; empty where something can."""
        found = {name: at(self.results, "quality", name, self.headline) for name in systems}
        if missing := [name for name in systems if found[name] is None]:
            are, them = ("is", "it") if len(missing) == 1 else ("are", "them")
            return f"{' and '.join(missing)} {are} not evaluated: add {them} to evaluate.systems"
        if self.samples is None or any(at(found[name], "macro", metric) is None for name in systems):
            return f"{metric} was not measured"
        if self.samples.groups < FEW_GROUPS:
            return f"too few groups of queries: {self.samples.groups} of {FEW_GROUPS}"
        return ""

    def sampled(self, metric: str) -> Samples | None:
        """The samples, where the metric is among those of all systems."""
        return self.samples if self.samples and metric in self.samples.metrics else None


def _row(
    name: str, what: str, bar: float, told: tuple[float | None, float | None, str], status: str, why: str = ""
) -> Tree:
    """``told``: the value, its lower bound, and what kind of bound that is."""
    value, low, bound = told
    return {"name": name, "what": what, "value": value, "low": low, "bound": None if low is None else bound, "bar": bar,
            "status": status, "passed": _PASSED[status], "why": why if status == "undecided" else None}  # fmt: skip


def _at_least(value: float | None, low: float | None, bar: float, unknown: str) -> tuple[str, str]:
    """The status of what has a lower bound, and why it is undecided; ``unknown``: why nothing can be told."""
    if value is None or unknown:
        return "undecided", unknown
    if value < bar:
        return "missed", ""
    if low is not None and low >= bar:
        return "reached", ""
    return "undecided", "it has no lower bound" if low is None else "the estimate reaches the bar, its bound does not"


def _teacher_bar(seen: _Seen, metric: str, bar: float) -> Tree:
    value = at(seen.results, "quality", "teacher", seen.headline, "macro", metric)
    unknown = seen.unknown(metric, "teacher")
    samples = None if unknown else seen.sampled(metric)
    low = mean_bound(samples, "teacher", metric, seen.confidence) if samples else None
    return _row(f"teacher {metric}", f"macro {metric} of the teacher on {seen.headline}, at least", bar,
                (value, low, seen.bound("one-sided")), *_at_least(value, low, bar, unknown))  # fmt: skip


def _recovery_bar(seen: _Seen, metric: str, bar: float) -> Tree:
    student, reference = seen.student, seen.results["reference"]
    value = at(seen.results, "recovery", student, seen.headline, "macro", metric, "value")
    unknown = seen.unknown(metric, student, reference) or (f"{reference} finds nothing" if value is None else "")
    samples = None if unknown else seen.sampled(metric)
    low = recovery_bound(samples, student, reference, metric, seen.confidence) if samples else None
    what = f"macro recovery of {metric} by {student} against {reference} on {seen.headline}, at least"
    return _row(f"recovery of {metric}", what, bar, (value, low, seen.bound("one-sided")),
                *_at_least(value, low, bar, unknown))  # fmt: skip


def _worst_bar(seen: _Seen, metric: str, bar: float) -> Tree:
    """A language that can't be told might be the worst: then the bar is missed by another one, or undecided."""
    student, reference = seen.student, seen.results["reference"]
    row = at(seen.results, "recovery", student, seen.headline, "worst", metric) or {}
    value, low, unclear = row.get("value"), row.get("low"), row.get("undecided") or []
    unknown = ""
    if row.get("high") is None and low is None:
        unknown = seen.unknown(metric, student, reference) or _few(reference, "every language")
    status, why = _at_least(value, low, bar, unknown)
    if status == "reached" and unclear:
        status, why = "undecided", _few(reference, ", ".join(unclear))
    named = f" ({row['language']}" + (f"; undecided: {', '.join(unclear)}" if unclear else "") + ")" if row else ""
    what = (f"recovery of {metric} by {student} against {reference} in its worst language{named} on {seen.headline}, "
            "at least")  # fmt: skip
    bound = seen.bound("one-sided", ", all languages at once")
    return _row(f"worst language, {metric}", what, bar, (value, low, bound), status, why)


def _few(reference: str, languages: str) -> str:
    return f"too little data, or {reference} finds nothing, in {languages}"


def headline_metric(results: Tree, headline: str | None) -> str:
    """P@1, or where that was not measured the first metric that tests are about."""
    about = [test["metric"] for test in results["tests"] if test["set"] == headline]
    return HEADLINE_METRIC if HEADLINE_METRIC in about else next(iter(about), HEADLINE_METRIC)


def _gain_bars(seen: _Seen, asked: bool | str) -> list[Tree]:
    """A bar of each stage. One with a system beside it that was not evaluated can't be told: so it is undecided where
    the recipe asks for the gain of all stages (``asked`` is True), and left out where it does not say ("auto").
    """
    metric = headline_metric(seen.results, seen.headline)
    tests = {test["stage"]: test for test in seen.results["tests"]
             if "stage" in test and test["set"] == seen.headline and test["metric"] == metric}  # fmt: skip
    status = {"gain": "reached", "loss": "missed", "undecided": "undecided"}
    rows = []
    for stage, systems in STAGES.items() if asked else ():
        if stage not in tests and not (asked is True and stage in seen.results["training"]):
            continue
        test = tests.get(stage, {"difference": None, "low": None, "verdict": "undecided"})
        what = f"gain in macro {metric} of {systems[1]} over {systems[0]} on {seen.headline}, interval above"
        why = seen.unknown(metric, *systems) or "the interval holds 0"
        rows.append(_row(f"gain of {stage}", what, 0.0, (test["difference"], test["low"], seen.bound("interval")),
                         status[test["verdict"]], why))  # fmt: skip
    return rows


def _at_most(name: str, what: str, value: float | None, bar: float, doubt: str) -> Tree:
    status = "undecided" if value is None or doubt else "reached" if value <= bar else "missed"
    return _row(name, f"{what}, at most", bar, (value, None, ""), status, doubt)


def _doubt(value: float, bar: float, calls: list[int | None], percentile: str, noise: float) -> str:
    """Why a latency can't be told from its bar; empty where it can.

    Args:
        calls: behind each number that the value was made of.
        noise: by how many % the value can be wrong.
    """
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
    doubt = f"{student} or the teacher is not timed: add it to bench.systems"
    if value is not None:
        doubt = _doubt(value, bar, [row.get("calls") for row in rows], "p50", _noise(results, paired=True))
    what = f"median encoder latency of {student} in torch over the teacher's"
    return _at_most("latency ratio", what, value, bar, doubt)


def _latency_bar(results: Tree, student: str, bar: float) -> Tree:
    """By the fastest engine that is the student that was evaluated; one of lower precision finds something else."""
    timed = {
        engine: value for engine in OWN_PRECISION
        if (value := at(results, "latency", student, engine, "all", "whole_p99_ms")) is not None
    }  # fmt: skip
    engine = min(timed, key=lambda name: timed[name], default=None)
    by = f" by {engine}" if engine else ""
    what = f"p99 in ms of a query's whole path (tokenise, encode, search) with {student}{by}"
    if engine is None:
        return _at_most("latency", what, None, bar, f"{student} is not timed: add it to bench.systems")
    calls = [at(results, "latency", student, engine, "all", "calls")]
    doubt = _doubt(timed[engine], bar, calls, "p99", _noise(results, paired=False))
    return _at_most("latency", what, timed[engine], bar, doubt)
