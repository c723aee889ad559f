"""results.json: the contract's shape, the bars, the warnings, and that it is JSON whatever is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

import numpy as np
import pytest
from builders.evaluations import per_query
from rich.console import Console

from harness.evaluation.caveats import ann_caveats
from harness.evaluation.per_query import PerQuery
from harness.evaluation.report import evidence, terminal
from harness.evaluation.report.markdown import markdown
from harness.evaluation.report.page import page
from harness.evaluation.report.view import View
from harness.evaluation.results import build_results, headline_set, last_quarter_gain
from harness.evaluation.slices import Slice
from harness.metrics import METRICS
from harness.recipe import Bars, ReportSettings
from harness.runtime.errors import InputError
from harness.runtime.process import write_json

FOUND = {"teacher-base": 20, "teacher": 60, "student-untrained": 22, "student-aligned": 50, "student-refined": 58}
LANGUAGES = ["de", "en"]


def evaluation(found: int, languages: Sequence[str] = LANGUAGES) -> PerQuery:
    """100 groups in every language, of which the first ``found`` are answered well."""
    names = [language for language in languages for _ in range(100)]
    return per_query(names, [*range(100)] * len(languages), ([1.0] * found + [0.0] * (100 - found)) * len(languages))


def evaluations(sets: Sequence[str] = ("select", "test"), **found: int) -> dict[str, dict[str, PerQuery]]:
    numbers = FOUND | {name.replace("_", "-"): number for name, number in found.items()}
    return {system: {name: evaluation(number) for name in sets} for system, number in numbers.items()}


def bench_result(teacher: float = 12.0, student: float = 5.0) -> dict[str, Any]:
    return {
        "latency": {system: {"torch": {"all": {"batch": 1, "calls": 300, "p50_ms": p50}}}
                    for system, p50 in (("teacher", teacher), ("student-refined", student))},
        "throughput": {"teacher": {"torch": {"batch": 32, "queries_per_second": np.float64(80.0)}}},
        "conditions": {"device": "cpu", "threads": 2},
    }  # fmt: skip


def curve(*values: float) -> dict[str, Any]:
    points = [{"step": 55 * (i + 1), "metric": "P@1", "value": value} for i, value in enumerate(values)]
    return {"curve": points, "loss": [], "seconds": 3.5}


def results(given: Mapping[str, Mapping[str, PerQuery]] | None = None, **changes: Any) -> dict[str, Any]:
    given = evaluations() if given is None else given
    sets = {name for by_set in given.values() for name in by_set}
    arguments: dict[str, Any] = {
        "name": "quickstart", "reference": "teacher", "systems": {name: {"layers": 2} for name in given},
        "sets": {name: {"split": "dev", "queries": 200, "documents": 3963, "languages": LANGUAGES} for name in sets},
        "provenance": {"commit": "abc", "seed": 7}, "conditions": {"device": "?", "dtype": "float32"},
        "bench": bench_result(), "training": {"teacher": curve(0.2, 0.4, 0.5, 0.51)}, "resamples": 200,
        "confidence": 0.95, "seed": 7, "slices": {},
    }  # fmt: skip
    set_bars = changes.pop("bars", Bars(teacher={"P@1": 0.5}, recovery={"P@1": 0.85}, latency_ratio=0.5))
    arguments["report"] = ReportSettings(bars=set_bars, loses_less_than=changes.pop("loses_less_than", 0.02))
    return build_results(evaluations=given, **{**arguments, **changes})


def bars(found: Mapping[str, Any]) -> dict[str, Any]:
    return {bar["name"]: bar for bar in found["bars"]}


def test_the_contract() -> None:
    found = results()
    assert list(found) == [
        "schema", "name", "provenance", "reference", "candidate", "exported", "statistics", "sets", "systems",
        "quality", "recovery", "agreement", "latency", "throughput", "conditions", "slices", "tests", "ann", "ledger",
        "training", "bars", "warnings",
    ]  # fmt: skip
    told = found["statistics"]
    assert (told["confidence"], told["resamples"], told["seed"]) == (0.95, 200, 7)
    assert "one more group" in told["method"] and "wider than plain" in told["method"]
    assert found["schema"] == 1 and found["reference"] == "teacher"
    assert found["sets"]["select"]["selected_on"] is True and found["sets"]["test"]["selected_on"] is False
    assert found["sets"]["test"]["documents"] == 3963
    assert set(found["quality"]) == set(FOUND) and set(found["quality"]["teacher"]) == {"select", "test"}
    assert set(found["quality"]["teacher"]["test"]) == {"de", "en", "macro", "all"}
    assert set(found["quality"]["teacher"]["test"]["de"]) == {"queries", *METRICS}
    assert set(found["recovery"]) == set(FOUND) - {"teacher"}
    assert set(found["recovery"]["student-refined"]["test"]) == {"de", "en", "macro", "micro", "worst"}
    assert found["recovery"]["student-refined"]["test"]["macro"]["P@1"]["value"] == pytest.approx(58 / 60)
    assert found["agreement"]["student-refined"]["test"]["all"]["cosine"] == 0.5
    assert found["conditions"] == {"device": "cpu", "dtype": "float32", "threads": 2}
    assert found["ann"] == {"verdict": "not measured"}
    assert found["slices"] == {}
    assert {(row["step"], row["set"], row["scope"]) for row in found["ledger"]} == {
        (step, name, scope) for step in ("cut", "align", "refine") for name in ("select", "test")
        for scope in ("macro", "de", "en")
    }  # fmt: skip


def test_the_gain_of_each_stage_is_tested_on_every_set() -> None:
    tests = results(loses_less_than=None)["tests"]
    assert len(tests) == 3 * 2 * 2
    assert set(tests[0]) == {
        "name", "kind", "stage", "systems", "set", "metric", "difference", "low", "high", "verdict"
    }  # fmt: skip
    refined = [t for t in tests if t["stage"] == "refine" and t["set"] == "test"]
    assert [t["metric"] for t in refined] == ["P@1", "nDCG@10"]
    assert refined[0]["systems"] == ["student-refined", "student-aligned"]
    assert refined[0]["difference"] == pytest.approx(0.08) and refined[0]["verdict"] == "gain"
    without = evaluations()
    del without["teacher-base"], without["student-aligned"]["select"]
    tests = results(without, loses_less_than=None)["tests"]
    assert {(t["stage"], t["set"]) for t in tests} == {("align", "test"), ("refine", "test")}


def test_bars_that_are_reached() -> None:
    found = results()
    assert {name: bar["passed"] for name, bar in bars(found).items()} == {
        "teacher P@1": True, "recovery of P@1": True, "gain of teacher": True, "gain of align": True,
        "gain of refine": True, "latency ratio": True,
    }  # fmt: skip
    assert all(
        set(bar) == {"name", "what", "value", "low", "bound", "bar", "status", "passed", "why"} for bar in found["bars"]
    )
    assert {name: bar["bound"] for name, bar in bars(found).items()} == {
        "teacher P@1": "one-sided 95 %", "recovery of P@1": "one-sided 95 %", "gain of teacher": "interval 95 %",
        "gain of align": "interval 95 %", "gain of refine": "interval 95 %", "latency ratio": None,
    }  # fmt: skip
    assert {bar["why"] for bar in found["bars"]} == {None}
    assert {bar["status"] for bar in found["bars"]} == {"reached"}
    recovered = bars(found)["recovery of P@1"]
    assert "student-refined against teacher on test" in recovered["what"]
    assert 0.85 < recovered["low"] < recovered["value"] == pytest.approx(58 / 60)
    assert bars(found)["latency ratio"]["value"] == pytest.approx(5 / 12)
    assert "of student-refined in torch over the teacher's" in bars(found)["latency ratio"]["what"]
    assert found["warnings"] == []


def test_bars_that_are_missed_or_undecided() -> None:
    given = evaluations(teacher=45, student_refined=40, student_aligned=41)
    asked = Bars(teacher={"P@1": 0.5}, recovery={"P@1": 0.95}, latency_ratio=0.5)
    found = results(given, bench=bench_result(8, 5), bars=asked)
    passed = {name: bar["passed"] for name, bar in bars(found).items()}
    assert passed["teacher P@1"] is False and passed["recovery of P@1"] is False and passed["latency ratio"] is False
    assert passed["gain of refine"] is None, "one of a hundred is no proof of a loss, and surely none of a gain"
    worse = results(evaluations(student_refined=30))
    assert bars(worse)["gain of refine"]["passed"] is False


def test_a_bar_that_the_estimate_clears_and_its_bound_does_not_is_undecided() -> None:
    """58 of 60 kept, in 100 groups: 0.967, bound about 0.92 on one side."""
    recovery = [(asked, results(bars=Bars(recovery={"P@1": asked}))) for asked in (0.85, 0.95, 0.98)]
    found = {asked: bars(told)["recovery of P@1"] for asked, told in recovery}
    assert [bar["status"] for bar in found.values()] == ["reached", "undecided", "missed"]
    assert [bar["passed"] for bar in found.values()] == [True, None, False]
    assert all(0.9 < bar["low"] < 0.95 for bar in found.values())
    assert [bar["why"] for bar in found.values()] == [None, "the estimate reaches the bar, its bound does not", None]
    teacher = {asked: bars(results(bars=Bars(teacher={"P@1": asked})))["teacher P@1"] for asked in (0.5, 0.58, 0.61)}
    assert [bar["status"] for bar in teacher.values()] == ["reached", "undecided", "missed"]
    assert 0.5 < teacher[0.5]["low"] < 0.55
    few = {system: {"test": per_query(["de"] * 29, range(29), [1.0] * 29)} for system in FOUND}
    told = bars(results(few, bars=Bars(teacher={"P@1": 0.1}, recovery={"P@1": 0.1}, worst={"P@1": 0.1})))
    three = [told[name] for name in ("teacher P@1", "recovery of P@1", "worst language, P@1")]
    assert {bar["status"] for bar in three} == {"undecided"}
    assert {bar["why"] for bar in three} == {"too few groups of queries: 29 of 30"}


def test_the_worst_language_has_a_bar() -> None:
    asked = Bars(worst={"P@1": 0.85}, stage_gain=False)
    (bar,) = results(bars=asked)["bars"]
    assert bar["status"] == "reached" and 0.85 < bar["low"] < bar["value"] == pytest.approx(58 / 60)
    assert bar["bound"] == "one-sided 95 %, all languages at once"
    assert "in its worst language (de) on test" in bar["what"] and bar["what"].endswith("at least")
    assert results(bars=Bars(worst={"P@1": 0.95}, stage_gain=False))["bars"][0]["status"] == "undecided"
    assert results(bars=Bars(worst={"P@1": 0.97}, stage_gain=False))["bars"][0]["status"] == "missed"


def test_a_language_too_small_to_tell_leaves_the_worst_language_undecided() -> None:
    """Latin has 10 queries, of which the student loses half: it is neither passed nor the worst that is told."""
    names, numbers = ["de"] * 100 + ["la"] * 10, [*range(100), *range(200, 210)]
    found = {"teacher": [1.0] * 110, "student-refined": [1.0] * 105 + [0.0] * 5}
    given = {system: {"test": per_query(names, numbers, values)} for system, values in found.items()}
    told = results(given, bars=Bars(worst={"P@1": 0.9}, stage_gain=False))
    (bar,) = told["bars"]
    assert bar["status"] == "undecided" and bar["passed"] is None
    assert bar["value"] == 1 and bar["low"] > 0.9 and "(de; undecided: la)" in bar["what"]
    assert bar["why"] == "too little data, or teacher finds nothing, in la"
    rows = told["recovery"]["student-refined"]["test"]
    assert rows["worst"]["P@1"]["undecided"] == ["la"] and rows["la"]["P@1"]["simultaneous_low"] is None
    verdicts = {test["scope"]: test["verdict"] for test in told["tests"] if test["metric"] == "P@1"}
    assert verdicts["la"] == verdicts["all languages"] == "undecided"


def test_a_language_in_which_the_reference_finds_nothing_is_undecided_in_the_file_and_on_the_page() -> None:
    names, numbers = ["de"] * 100 + ["el"] * 100 + ["la"] * 10, [*range(210)]
    found = {"teacher": [1.0] * 100 + [0.0] * 100 + [1.0] * 10, "student-refined": [1.0] * 210}
    told = results({system: {"test": per_query(names, numbers, values)} for system, values in found.items()})
    assert told["recovery"]["student-refined"]["test"]["worst"]["P@1"]["undecided"] == ["el", "la"]
    assert evidence.small_note(View(told)) == [
        "Too small to tell, so undecided: la (10 queries).", "teacher finds nothing in el, so undecided."
    ]  # fmt: skip


def test_the_latency_bar_is_of_the_whole_path_by_an_engine_that_is_the_student() -> None:
    timed = bench_result()
    asked = Bars(stage_gain=False, latency_ms=20)
    engines = timed["latency"]["student-refined"]
    (bar,) = results(bars=asked, bench=timed)["bars"]
    assert bar["status"] == "undecided", "the whole path was not timed"
    assert bar["why"] == "student-refined is not timed: add it to bench.systems"
    for engine, p99 in (("torch", 30.0), ("onnx", 18.0), ("onnx-int8", 9.0)):
        engines.setdefault(engine, {"all": {"calls": 300}})["all"]["whole_p99_ms"] = p99
    (bar,) = results(bars=asked, bench=timed)["bars"]
    assert (bar["value"], bar["status"]) == (18.0, "reached") and bar["what"].endswith("by onnx, at most")
    del engines["onnx"]
    assert results(bars=asked, bench=timed)["bars"][0]["status"] == "missed", "int8 is not what was evaluated"


@pytest.mark.parametrize(("threads", "told"), [(2, 0), (64, 1), ({"teacher": 64, "student-refined": 2}, 1)])
def test_more_threads_than_cores_are_warned_of(threads: Any, told: int) -> None:
    timed = bench_result() | {"noise": {"cores": 2, "warning": None}}
    timed["conditions"]["threads"] = threads
    found = [text for text in results(bench=timed)["warnings"] if "64 threads on 2 cores" in text]
    assert len(found) == told and all("set bench.threads to 2 at most" in text for text in found)
    if isinstance(threads, int):
        found = ann_caveats({"threads": threads, "cores": 2})
        assert len(found) == told and all("set bench.ann.threads to 2 at most" in text for text in found)
    assert ann_caveats({"verdict": "measured", "threads": 64}) == [], "of earlier files"


def latency_bar(value: float, calls: int, **noise: Any) -> dict[str, Any]:
    timed = bench_result() | {"noise": {"warning": None, "percent": None, **noise}}
    timed["latency"]["student-refined"]["torch"]["all"] |= {"calls": calls, "whole_p99_ms": value}
    (bar,) = results(bars=Bars(stage_gain=False, latency_ms=20), bench=timed)["bars"]
    return bar


def test_a_latency_behind_few_calls_is_undecided() -> None:
    few = latency_bar(10, 99)
    assert few["status"] == "undecided" and few["passed"] is None and few["value"] == 10
    assert few["why"] == "too few calls for a p99: 99 of 100" and few["what"].endswith("by torch, at most")
    assert latency_bar(10, 100)["status"] == "reached" and latency_bar(30, 100)["status"] == "missed"
    assert latency_bar(30, 10)["status"] == "undecided"
    for calls, status in ((29, "undecided"), (30, "reached")):
        timed = bench_result()
        timed["latency"]["teacher"]["torch"]["all"]["calls"] = calls
        assert bars(results(bench=timed))["latency ratio"]["status"] == status


def test_a_latency_as_near_its_bar_as_timings_vary_is_undecided() -> None:
    loud = {"warning": "the machine was not quiet", "others_cores": 0.8, "cores": 4, "drift_percent": -12.0}
    near = latency_bar(17, 300, percent=1.0, **loud)
    assert near["status"] == "undecided" and near["why"].endswith("as timings vary on this machine: 20 %")
    assert latency_bar(17, 300, percent=1.0)["status"] == "reached", "a quiet machine"
    assert latency_bar(15, 300, percent=1.0, **loud)["status"] == "reached"
    assert latency_bar(25, 300, percent=1.0, **loud)["status"] == "missed"
    assert latency_bar(19.9, 300, percent=1.0)["status"] == "undecided", "equal systems differ by as much"
    ratio = bench_result(12, 5.5) | {"noise": {"percent": 1.0, **loud}}
    assert bars(results(bench=ratio))["latency ratio"]["status"] == "reached", "systems took turns"
    ratio = bench_result(12, 5.8) | {"noise": {"percent": 1.0, **loud}}
    assert bars(results(bench=ratio))["latency ratio"]["status"] == "undecided"


def test_claims_of_losing_little_stand_beside_the_gains() -> None:
    found = results(evaluations(student_refined=60))["tests"]
    claims = [test for test in found if test["kind"] == "non-inferiority"]
    assert [test["scope"] for test in claims if test["set"] == "test" and test["metric"] == "P@1"] == [
        "macro", "all languages", "de", "en"
    ]  # fmt: skip
    assert set(claims[0]) == {
        "name", "kind", "systems", "set", "metric", "scope", "margin", "value", "low", "p", "p_adjusted", "queries",
        "groups", "verdict", "why",
    }  # fmt: skip
    assert claims[0]["systems"] == ["student-refined", "teacher"] and claims[0]["name"] == "loses less than 2 % of P@1"
    assert {test["verdict"] for test in claims} == {"undecided"}, "60 hits without a loss are no proof of 2 %"
    table = evidence.claims(View(results(evaluations(student_refined=60))), "P@1")
    assert table is not None and "Why not: the mean over languages, de, en: too few groups" in table.note
    rough = [test for test in results(loses_less_than=0.2)["tests"] if test["kind"] == "non-inferiority"]
    assert {test["verdict"] for test in rough} == {"shown"}


def test_the_ledger_is_cut_by_the_slices_given() -> None:
    halves = {"test": {"frequency": Slice(["head"] * 100 + ["tail"] * 100, ["head", "tail"], "")}}
    found = results(slices=halves)
    rows = found["ledger"]
    assert {row["scope"] for row in rows if row["set"] == "test"} == {
        "macro", "de", "en", "frequency=head", "frequency=tail"
    }  # fmt: skip
    assert {row["scope"] for row in rows if row["set"] == "select"} == {"macro", "de", "en"}
    assert set(found["slices"]) == set(FOUND) - {"teacher"} and set(found["slices"]["student-refined"]) == {"test"}
    kept = found["slices"]["student-refined"]["test"]["frequency"]["head"]
    head = next(row for row in rows if row["scope"] == "frequency=head" and row["step"] == "refine")
    assert kept["queries"] == head["queries"] == 100 and kept["system"]["P@1"] == head["after"] == 0.58
    assert results(slices=halves, reference="nobody")["slices"] == {}


def test_a_student_above_its_teacher_is_told_by_whatever_is_measured() -> None:
    given = evaluations()
    for by_set in given.values():
        for per_set in by_set.values():
            per_set.metrics = {"MRR@10": per_set.metrics["P@1"]}
    given["teacher"]["test"].metrics["MRR@10"] = given["teacher"]["test"].metrics["MRR@10"] * 0.5
    warned = [text for text in results(given, bars=Bars())["warnings"] if "above its teacher" in text]
    assert warned and all("recovery of MRR@10" in text for text in warned)


def test_a_recipe_that_measures_no_tested_metric_is_told_by_its_first_quality() -> None:
    given = evaluations()
    for by_set in given.values():
        for per_set in by_set.values():
            per_set.metrics = {name: per_set.metrics[name] for name in ("judged@10", "MRR@10", "Recall@100")
                               if name in per_set.metrics} | {"judged@1": np.ones(200)}  # fmt: skip
    halves = Slice(["head"] * 100 + ["tail"] * 100, ["head", "tail"], "")
    found = results(given, slices={"test": {"frequency": halves}}, bars=Bars())
    assert {row["metric"] for row in (*found["tests"], *found["ledger"])} == {"MRR@10"}
    gains = [bar for bar in found["bars"] if bar["name"].startswith("gain of")]
    assert len(gains) == 3 and all("MRR@10" in bar["what"] and bar["value"] is not None for bar in gains)
    row = found["slices"]["student-refined"]["test"]["frequency"]["head"]
    assert set(row["recovery"]) == {"MRR@10"} and row["undecided"] is False
    for by_set in given.values():
        del by_set["test"].metrics["MRR@10"], by_set["test"].metrics["Recall@100"]
    nothing = results(given, slices={"test": {"frequency": halves}}, bars=Bars(stage_gain=False))
    assert nothing["slices"] == {} and {row["set"] for row in nothing["ledger"]} == {"select"}


def test_bars_that_cannot_be_told() -> None:
    only_teacher = {"teacher": evaluations()["teacher"]}
    asked = Bars(teacher={"P@1": 0.5}, recovery={"P@1": 0.85}, latency_ratio=0.5, stage_gain=True)
    found = results(only_teacher, bars=asked, bench=None, training={"teacher": curve(0.5), "align": {"curve": []}})
    assert {name: (bar["passed"], bar["why"]) for name, bar in bars(found).items()} == {
        "teacher P@1": (True, None),
        "recovery of P@1": (None, "student-refined is not evaluated: add it to evaluate.systems"),
        "gain of teacher": (None, "teacher-base is not evaluated: add it to evaluate.systems"),
        "gain of align": (
            None, "student-untrained and student-aligned are not evaluated: add them to evaluate.systems"
        ),
        "latency ratio": (None, "student-refined or the teacher is not timed: add it to bench.systems"),
    }  # fmt: skip
    assert found["latency"] == {} and found["throughput"] == {}
    none = results(bars=Bars(stage_gain=False))
    assert none["bars"] == []
    for by_set in (given := evaluations()).values():
        del by_set["test"].metrics["P@10"]
    unknown = results(given, bars=Bars(teacher={"P@10": 0.1}, recovery={"P@10": 0.1}, stage_gain=False))
    assert [bar["passed"] for bar in unknown["bars"]] == [None, None]


def test_the_gain_of_a_stage_that_was_not_evaluated_is_asked_only_by_a_recipe_that_says_so() -> None:
    """The default systems lack teacher-base: that nobody asked for it is no reason to leave the verdict open."""
    given = evaluations()
    del given["teacher-base"]
    found = results(given)
    assert [name for name in bars(found) if name.startswith("gain")] == ["gain of align", "gain of refine"]
    assert View(found).verdict.word == "Yes"
    found = results(given, bars=Bars(stage_gain=True))
    assert bars(found)["gain of teacher"]["status"] == "undecided" and View(found).verdict.word == "Undecided"
    told = "(teacher-base is not evaluated: add it to evaluate.systems)"
    assert told in page(View(found)) and told in markdown(View(found))
    shown = Console(width=200, file=StringIO(), record=True)
    shown.print(*terminal.tables(View(found), 200))
    assert told in shown.export_text()


def test_the_last_student_meets_the_bars() -> None:
    given = evaluations()
    del given["student-refined"]
    recovered = bars(results(given))["recovery of P@1"]
    assert "student-aligned" in recovered["what"] and recovered["value"] == pytest.approx(50 / 60)


def test_bars_claims_and_the_page_are_about_one_candidate() -> None:
    """What is made of the student is not in question, though it comes last."""
    given = evaluations(student_int8=49, student_ann=48)
    del given["student-refined"]
    found = results(given, exported="student-aligned")
    assert found["candidate"] == View(found).candidate == "student-aligned" and View(found).claims
    assert "by student-aligned" in bars(found)["recovery of P@1"]["what"]
    assert found["warnings"] == []
    steps = {row["step"]: row["systems"][1] for row in found["ledger"]}
    assert steps["quantise"] == steps["approximate index"] == "student-aligned"
    old = {key: value for key, value in results().items() if key != "candidate"}
    assert View(old).candidate == "student-refined"
    nobody = results({"teacher": evaluations()["teacher"]}, exported="student-refined")
    assert nobody["candidate"] is None and not any("deployed" in told for told in nobody["warnings"])
    turned = results(reference="student-refined")
    assert turned["candidate"] == View(turned).candidate == "student-aligned"


def test_another_system_exported_than_the_candidate_is_warned_of() -> None:
    found = results(evaluations(student_int8=49), exported="student-aligned")
    assert found["candidate"] == "student-refined"
    assert any(told.startswith("student-aligned is what is deployed") for told in found["warnings"])
    assert {row["systems"][1] for row in found["ledger"] if row["step"] == "quantise"} == {"student-aligned"}
    assert results(exported="student-refined")["warnings"] == []


@pytest.mark.parametrize(
    ("evaluated", "exported", "told"),
    [
        (["student-aligned"], "student-refined", "student-refined is what is deployed and was not evaluated on test, "
         "and bars and claims are about student-aligned: add student-refined to evaluate.systems, or set export.system "
         "to student-aligned"),
        (["student-aligned", "student-refined"], "student-aligned", "student-aligned is what is deployed, and bars and "
         "claims are about student-refined: set export.system to student-refined, or evaluate no student after "
         "student-aligned"),
        (["student-refined"], "student-aligned", "student-aligned is what is deployed and was not evaluated on test, "
         "and bars and claims are about student-refined: set export.system to student-refined, or evaluate "
         "student-aligned and no student after it"),
        (["student-untrained"], "student-refined", "student-refined is what is deployed and was not evaluated on test, "
         "and bars and claims are about student-untrained: add student-refined to evaluate.systems"),
    ],
)  # fmt: skip
def test_the_cure_of_another_system_exported_is_one_that_helps(evaluated: list[str], exported: str, told: str) -> None:
    given = {name: found for name, found in evaluations().items() if name in ("teacher", *evaluated)}
    assert [text for text in results(given, exported=exported)["warnings"] if "deployed" in text] == [told]


def test_the_headline_is_test_then_report_then_select() -> None:
    assert headline_set(["select", "report", "test"]) == "test"
    assert headline_set(["select", "report"]) == "report"
    assert "on report" in bars(results(evaluations(["select", "report"])))["teacher P@1"]["what"]
    found = results(evaluations(["select"]))
    assert "on select" in bars(found)["teacher P@1"]["what"]
    assert any("selected on" in warning for warning in found["warnings"])


def test_a_student_above_its_teacher_is_a_warning() -> None:
    (warning,) = results(evaluations(student_refined=66))["warnings"]
    assert warning.startswith("student-refined is above its teacher on test (macro recovery of P@1 1.100 [1.0")
    assert warning.endswith("]): the teacher was undertrained")
    (warning,) = results(evaluations(student_refined=61))["warnings"]
    assert warning.startswith("student-refined may be above its teacher on test (macro recovery of P@1 1.017 [0.9")
    assert warning.endswith("]): the teacher may have been undertrained"), "its interval holds 1"


def test_a_teacher_that_reads_contexts_may_be_misled_by_them() -> None:
    contexts = {"test": {"documents": 9, "queries": 100, "contexts": 40}}
    _, warning = results(evaluations(student_refined=66), sets=contexts)["warnings"]
    assert warning.endswith("the teacher was undertrained, or misled by the contexts that it reads (teacher.context)")


def test_a_teacher_that_still_learns_is_a_warning() -> None:
    found = results(training={"teacher": curve(0.2, 0.3, 0.4, 0.45)})
    assert found["training"]["teacher"]["last_quarter_gain"] == pytest.approx(0.05)
    (warning,) = found["warnings"]
    assert "gained 0.050 of P@1 over its last quarter" in warning and "0.03" in warning


@pytest.mark.parametrize(
    "steps, values, gain",
    [
        ([55, 110, 165, 220], [0.1, 0.2, 0.3, 0.35], 0.05),
        ([100, 200], [0.2, 0.4], 0.1),  # half of the way between the two
        ([0, 10, 20, 30, 40], [0, 0, 0, 0.5, 0.4], -0.1),
        ([200], [0.4], None),
        ([190, 200], [0.3, 0.4], None),
        ([], [], None),
    ],
)
def test_last_quarter_gain(steps: list[int], values: list[float], gain: float | None) -> None:
    points = [{"step": s, "metric": "P@1", "value": v} for s, v in zip(steps, values, strict=True)]
    other = [{"step": s, "metric": "loss", "value": 9.0} for s in steps]
    found = last_quarter_gain([*other, *reversed(points[:-1]), *points[-1:]])
    assert found == (None if gain is None else pytest.approx(gain))


def test_small_languages_are_named() -> None:
    given = {system: {"test": per_query(["de"] * 40 + ["la"] * 29, range(69), [1.0] * 69)} for system in FOUND}
    (warning,) = results(given)["warnings"]
    assert warning == "fewer than 30 queries on test, too few to tell much: la (29)"


def test_it_is_json_whatever_is_missing(tmp_path: Any) -> None:
    given = evaluations()
    for by_set in given.values():
        for name, evaluated in by_set.items():
            evaluated.agreement["cosine"] = np.full(len(evaluated), np.nan)
            by_set[name] = evaluated
    given["teacher"]["test"].metrics["P@1"][:] = 0
    found = results(given)
    assert found["recovery"]["student-refined"]["test"]["macro"]["P@1"] == {"value": None, "low": None, "high": None}
    assert found["recovery"]["student-refined"]["select"]["macro"]["P@1"]["value"] is not None
    assert found["agreement"]["teacher"]["test"]["all"]["cosine"] is None
    assert bars(found)["recovery of P@1"]["passed"] is None
    write_json(tmp_path / "results.json", found)
    assert json.loads((tmp_path / "results.json").read_text()) == found


def test_systems_without_the_reference_or_a_common_set() -> None:
    given = {"teacher": {"select": evaluation(50)}, "student-aligned": {"test": evaluation(40)}}
    found = results(given)
    assert found["recovery"] == {} and found["tests"] == []
    assert found["quality"]["student-aligned"]["test"]["macro"]["P@1"] == pytest.approx(0.4)
    assert bars(found)["teacher P@1"]["passed"] is None


def test_systems_over_different_queries_are_refused_by_set() -> None:
    given = evaluations()
    given["student-aligned"]["test"] = evaluation(50, ["de"])
    with pytest.raises(InputError, match="set test: teacher-base and student-aligned .*\n.*200 and 100 queries"):
        results(given)


def test_a_set_that_shares_queries_with_training_is_warned_of() -> None:
    sets: dict[str, dict[str, Any]] = {name: {"queries": 200, "documents": 9} for name in ("select", "test")}
    sets["test"]["shared_with_train"] = {"texts": 50, "groups": 0}
    (warning,) = results(sets=sets)["warnings"]
    assert "50 of 200 queries of test (25.0%) are asked, word for word, in training too" in warning
    sets["test"]["shared_with_train"] = {"texts": 0, "groups": 0}
    assert results(sets=sets)["warnings"] == []


def test_languages_that_lost_every_query_are_warned_of() -> None:
    sets: dict[str, dict[str, Any]] = {name: {"queries": 200, "documents": 9} for name in ("select", "test")}
    sets["test"] |= {"dropped": {"de": 2, "nr": 40}, "lost_languages": ["nr"]}
    (warning,) = results(sets=sets)["warnings"]
    assert warning.startswith("test: no query in nr (40) has a document judged relevant;")
    assert "all languages" in warning


def test_a_machine_that_was_not_quiet_is_warned_of() -> None:
    noise = {"percent": 7.0, "warning": "the machine was not quiet"}
    found = results(bench={**bench_result(), "noise": noise})
    assert found["noise"] == noise and noise["warning"] in found["warnings"]
    for quiet in ({}, {"noise": {"percent": 0.5, "warning": None}}):
        assert not any("quiet" in told for told in results(bench={**bench_result(), **quiet})["warnings"])
