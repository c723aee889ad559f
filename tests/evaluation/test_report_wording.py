"""What the report calls things: that each number is named for what it is, and nothing that was left out goes unsaid."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from builders.evaluations import per_query
from builders.results import example_results
from builders.rich_results import FEW, SET, SYSTEM, rich_results

from harness.evaluation.between import paired_between
from harness.evaluation.report import costs, curves, disagree, evidence, plots, tables
from harness.evaluation.report.compare import Comparison
from harness.evaluation.report.markdown import markdown
from harness.evaluation.report.page import _short, first_screen, page
from harness.evaluation.report.runs import read_runs
from harness.evaluation.report.sections import _paid
from harness.evaluation.report.svg import cut_within
from harness.evaluation.report.tables import Grid
from harness.evaluation.report.view import View

Tree = dict[str, Any]


def column(grid: Grid | None, name: str) -> list[str]:
    assert grid is not None
    place = grid.header.index(name)
    return [row.cells[place] for row in grid.rows]


def with_lowest(undecided: list[str], low: float | None = 0.918) -> Tree:
    """The lowest language that can be told is en, above the mean; an undecided one lies lower."""
    results = rich_results(("de", "en", "tr"))
    scopes = results["recovery"][SYSTEM][SET]
    scopes["en"]["P@1"] |= {"value": 1.016, "low": 0.94, "high": 1.09}
    scopes["tr"]["P@1"] |= {"value": 0.889}
    scopes["worst"]["P@1"] = {"value": 1.016, "low": low, "high": 1.1, "language": "en", "undecided": undecided}
    return results


def test_the_lowest_language_has_the_bound_of_all_and_names_what_cannot_be_told() -> None:
    shown = first_screen(View(with_lowest([FEW])))
    assert "<dt>Lowest language that can be told: en</dt><dd>1.016</dd>" in shown
    assert "at least 0.918, all languages at once; undecided: tr" in shown and "[0.940" not in shown
    results = with_lowest(["de", "en", "tr"], None)
    assert "<dt>Lowest language, undecided: en</dt>" in first_screen(View(results))
    results = with_lowest([])
    results["recovery"][SYSTEM][SET]["tr"]["P@1"]["simultaneous_low"] = 0.8
    assert "<dt>Lowest language: en</dt>" in first_screen(View(results))


def test_a_language_without_any_recovery_is_undecided_too() -> None:
    results = with_lowest([FEW])
    results["recovery"][SYSTEM][SET]["tr"]["P@1"] = {"value": None, "low": None, "high": None}
    view = View(results)
    assert view.undecided == view.empty == ["tr"]
    assert "Undecided languages, teacher finds nothing there: tr (1 of 3)." in tables.verdict_notes(view)
    assert not any("too small" in note for note in tables.verdict_notes(view))


def test_bounds_of_the_lowest_language_are_told_as_one_sided(tmp_path: Path) -> None:
    view = View(rich_results())
    grid = tables.recovery(view)
    assert grid is not None and "its two bounds are each one-sided" in grid.note
    assert "one-sided bounds" in str(plots.recovery(view, 960)) and "each one-sided" in page(view)


def test_confidence_and_resamples_stand_beside_intervals_and_at_the_foot() -> None:
    view = View(rich_results())
    told = "95 % confidence, 2,000 resamples"
    whole = page(view)
    assert f"Intervals: {told}; percentile bounds of a paired bootstrap" in first_screen(view)
    for part in ("allow for one more group", "wider than plain percentile intervals"):
        assert part in first_screen(view)
    assert told in whole[whole.index("<footer>") :]
    short = markdown(view)
    assert short.index(f"Intervals: {told}") < short.index("### Mean over languages")
    assert told in short[short.index("<sub>") :]
    assert "Intervals:" not in page(View(example_results()))
    results = rich_results()
    del results["statistics"]["method"]
    assert tables.confidence_note(View(results)) == f"Intervals: {told}.", "nobody knows what these allow for"


def test_the_first_screen_tells_the_claim_for_all_languages() -> None:
    view = View(rich_results())
    claim = "loses less than 5 % of P@1: shown for the mean over languages; undecided for all languages at once."
    assert claim in first_screen(view)
    assert claim in markdown(view)


def test_names_of_bars_are_no_markup() -> None:
    results = rich_results()
    results["bars"][0] |= {"name": "<b>*x*", "status": "missed"}
    assert "&lt;b&gt;" in first_screen(View(results)) and "<b>*x*" not in markdown(View(results))
    assert r"missed: &lt;b&gt;\*x\*" in markdown(View(results))


def test_the_p_that_decides_stands_in_the_table() -> None:
    grid = evidence.alike_tests(View(rich_results()))
    assert column(grid, "p of the share kept") == ["0.118", "0.118"]
    assert column(grid, "p of what is lost") == ["0.032", "0.400"]


def test_hits_that_nobody_judged_are_told_apart() -> None:
    told = disagree._hits([{"id": str(judged), "relevant": judged} for judged in (True, False, None)])
    assert re.findall(r'title="([^"]*)"', told) == ["relevant", "not relevant", "not judged"]
    assert disagree._first([{"id": "c", "relevant": None}]) == "? c"
    assert disagree._first([{"id": "b", "relevant": False}]) == "b"
    assert disagree.LEGEND in disagree.cards(View(rich_results()))


def test_labels_that_judged_the_run_are_told() -> None:
    view = View(rich_results())
    told = "120 labels of raters judged this run, read from pool-filled.tsv (120). They count for test 117."
    assert told in page(view) and told in markdown(view)
    assert tables.labels_note(View(example_results())) == []


def stored(folder: Path, results: Tree) -> Path:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def test_bars_that_decide_come_first() -> None:
    names = ["gain of align", "teacher P@1", "latency", "worst language, P@1", "recovery of P@1", "gain of refine"]
    told = [("reached", True), ("missed", False), ("undecided", None)]
    bars = [{"name": name, "what": f"{name}, at least", "value": 0.5, "low": None, "bar": 0.4, "status": status,
             "passed": passed} for status, passed in told for name in names]  # fmt: skip
    view = View({"bars": bars})
    kept = ["recovery of P@1", "worst language P@1", "latency", "gain of align", "teacher P@1", "gain of refine"]
    found = [(bar.status, bar.name) for bar in view.bars]
    assert found == [(status, name) for status in ("missed", "undecided", "reached") for name in kept]


def test_what_is_said_of_languages_alone_is_qualified_where_it_stands() -> None:
    (note,) = (note for note in tables.verdict_notes(View(rich_results())) if "clearly below" in note)
    assert note.endswith("of 8, uncorrected for their number).")


def test_a_caption_names_the_bar_only_where_there_is_one() -> None:
    results = rich_results()
    assert "dotted line: the bar" in page(View(results))
    assert "dotted line: the bar" not in page(View(results | {"bars": []}))


def test_a_name_in_the_plot_stands_nearest_to_its_own_mark() -> None:
    marks = [(100.0, 110.0), (150.0, 110.0)]
    taken = [(x - 8, y - 8, x + 20, y + 8) for x, y in marks]
    for mark, other in (marks, marks[::-1]):
        x, y = plots._free_place(mark, 110.0, taken, [other], (0, 16, 328, 262))
        box = (x - 55, y - 8, x + 55, y + 8)
        taken.append(box)
        assert plots._apart(box, mark) + 6 < plots._apart(box, other), (mark, box)


def test_bars_side_by_side_have_no_wording_of_one_run(tmp_path: Path) -> None:
    runs = []
    for name, lowest in (("a", "de"), ("b", "fr")):
        results = rich_results() | {"name": name}
        results["bars"].append(example_results()["bars"][2])
        results["bars"][2]["what"] = f"recovery of P@1 in its worst language ({lowest}; undecided: tr), at least"
        runs.append(stored(tmp_path / name, results))
    grid = Comparison(read_runs(runs)).bars()
    assert grid is not None
    assert {row.cells[0] for row in grid.rows} == {
        "teacher P@1, at least 0.42", "recovery of P@1, at least 0.97", "worst language P@1, at least 0.95",
        "latency ratio, at most 0.5", "gain of align, interval above 0",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda folder: None, ""),
        (lambda folder: [path.write_bytes(b"{") for path in folder.iterdir()], "is damaged"),
        (lambda folder: folder.rename(folder.with_name("gone")), "is not there"),
    ],
)
def test_an_interval_that_is_missing_is_cautioned(harm: Any, why: str, tmp_path: Path) -> None:
    folders = []
    for name in ("a", "b"):
        results = example_results() | {"name": name}
        results["sets"][SET]["sha256"] = "ab"
        values = dict.fromkeys(("P@1", "nDCG@10"), [1.0, 0.0] * 50)
        found = per_query(["de", "en"] * 50, [i // 2 for i in range(100)], values)
        for by_set in results["quality"].values():
            by_set[SET]["macro"] |= {"P@1": 0.5, "nDCG@10": 0.5}
        folders.append(stored(tmp_path / name, results))
        for system in results["quality"]:
            found.save(folders[-1] / "evaluations" / system / SET, {})
    harm(folders[1] / "evaluations" / SYSTEM / SET)
    cautions = Comparison(read_runs(folders), paired_between).cautions()
    if why:
        assert len(cautions) == 1 and "without an interval" in cautions[0] and f"{SYSTEM}/{SET} {why}" in cautions[0]
    else:
        assert cautions == []


def test_the_tails_and_the_whole_path_are_told_per_language() -> None:
    view = View(rich_results())
    row = view.results["latency"][SYSTEM]["torch"]["all"]
    assert column(tables.cost(view), "p90 ms")[1] == f"{row['p90_ms']:.2f}"
    assert column(tables.cost(view), "whole p90")[1] == f"{row['whole_p90_ms']:.2f}"
    grid = tables.latency_by_language(view)
    assert grid is not None
    told = {tuple(row.cells[:3]): row.cells[3:] for row in grid.rows}
    asked = view.results["latency"][SYSTEM]["torch"]["tr"]
    keys = ("p50_ms", "p90_ms", "p99_ms", "whole_p50_ms", "whole_p90_ms", "whole_p99_ms")
    assert told["tr", SYSTEM, "torch"] == ["150", *(f"{asked[key]:.2f}" for key in keys)]
    assert len(told) == 9 * 3
    few = tables.latency_by_language(View(example_results()))
    assert few is not None and not any("whole" in name for name in few.header)


def test_a_price_says_what_it_is_of() -> None:
    view = View(rich_results())
    grid = costs.batches(view)
    told = view.results["throughput"][SYSTEM]["torch"]["cost_per_million_batch_1"]
    assert column(grid, "per million, one by one")[1] == f"{told:.2f} EUR"
    assert grid is not None and "encoding only, at the best batch, on a machine that is never idle" in grid.note


def test_what_a_system_adds_to_a_bias_has_its_interval() -> None:
    (told,) = evidence.bias_note(View(rich_results()))
    assert "(teacher +2.0; added +3.0 [+1.2, +4.8])" in told


def test_the_stamp_stands_clear_of_the_marks() -> None:
    results = rich_results()
    results["ann"]["verdict"] = "too small to tell"
    for panel in curves.effort(View(results)):
        (stamp,) = re.findall(r"<text[^>]*stamp[^>]*>", panel)
        lowest = max(float(y) for y in re.findall(r' y="([\d.]+)"', stamp))
        assert lowest < 20, "above names, axis and marks"


def test_an_int8_engine_has_the_quality_of_the_int8_student() -> None:
    results = rich_results()
    assert "onnx-int8 that of student-int8" in _paid(View(results)) and "not drawn" not in _paid(View(results))
    results["latency"][SYSTEM]["onnx-int8-static"] = results["latency"][SYSTEM]["onnx-int8"]
    assert plots.not_drawn(View(results)).endswith(f"not drawn: {SYSTEM} in onnx-int8-static."), "another file"
    del results["quality"]["student-int8"]
    view = View(results)
    assert {engine for _, engine, *_ in plots.timed_points(view)} == {"torch"}, "the fp32 student is another system"
    told = _paid(view).split("<table")[0]
    assert f"not evaluated, so not drawn: {SYSTEM} in onnx-int8, {SYSTEM} in onnx-int8-static." in told


def test_one_engine_alone_is_named_where_others_were_timed() -> None:
    """The int8 student was evaluated and the student it is made of was not: the mark is not the student's."""
    results = rich_results()
    for system in [name for name in results["quality"] if name != "student-int8"]:
        del results["quality"][system]
    results["exported"] = SYSTEM
    drawing = plots.quality_and_latency(View(results), 960)
    assert drawing is not None and f">{SYSTEM} · onnx-int8</text>" in drawing and f">{SYSTEM}</text>" not in drawing
    told = plots.not_drawn(View(results))
    assert f"{SYSTEM} in torch" in told and "teacher in torch" in told and "int8" not in told


def test_the_axis_of_quality_is_labelled_where_its_lines_are() -> None:
    results = rich_results()
    lead = View(results).lead
    for system, value in (("teacher", 0.30), (SYSTEM, 0.27), ("student-int8", 0.25)):
        results["quality"][system]["test"]["macro"][lead] = value
    drawing = plots.quality_and_latency(View(results), 960)
    assert drawing is not None
    marks = [(float(y), float(text)) for y, text in
             re.findall(r'<text x="40" y="([0-9.]+)"[^>]*class="tick">([0-9.]+)</text>', drawing)]  # fmt: skip
    steps = [(a[0] - b[0]) / (b[1] - a[1]) for a, b in zip(marks, marks[1:], strict=False)]
    assert len(marks) > 2 and max(steps) / min(steps) < 1.02


def test_branches_stand_beside_the_system_that_they_are_made_of() -> None:
    results = rich_results()
    for row in results["ledger"]:
        if row["step"] in ("quantise", "approximate index"):
            row |= {"branch": True, "systems": [row["systems"][0], SYSTEM]}
    grid = evidence.ledger(View(results))
    assert grid is not None and f" quantise, approximate index: beside {SYSTEM}; no step" in grid.note
    for row in results["ledger"]:
        if row["step"] == "approximate index":
            row |= {"step": "refine + approximate index", "systems": ["student-ann", "student-aligned"]}
    grid = evidence.ledger(View(results))
    assert grid is not None
    assert f" quantise: beside {SYSTEM}; refine + approximate index: beside student-aligned; no step" in grid.note


def test_what_is_not_shown_is_not_explained() -> None:
    results = rich_results()
    assert "pale band" in _paid(View(results))
    grid = tables.cost(View(results))
    assert grid is not None and "p50 to p99.9: the encoder" in grid.note and "timed in other calls" in grid.note
    for engines in results["latency"].values():
        for scopes in engines.values():
            for row in scopes.values():
                row.pop("p99_9_ms", None)
    results["conditions"]["encoder"] = "timed within the whole path"
    results["quality"]["student-int8"]["test"]["macro"] = results["quality"][SYSTEM]["test"]["macro"] = {}
    grid = tables.cost(View(results))
    assert grid is not None and "p50 to p99: the encoder" in grid.note and "other calls" not in grid.note
    assert "pale band" not in _paid(View(results)), "one mark alone"


def test_a_phone_tells_latency_with_percentile_engine_and_unit() -> None:
    results = rich_results()
    path = f"p99 in ms of a query's whole path (tokenise, encode, search) with {SYSTEM} by onnx, at most"
    results["bars"] = [{"name": "latency", "what": path, "value": 27.034, "bar": 5, "status": "missed"},
                       {"name": "latency ratio", "what": f"median encoder latency of {SYSTEM} over the teacher's",
                        "value": 0.4, "bar": 0.5, "status": "reached"}]  # fmt: skip
    shown = [_short(bar) for bar in View(results).bars]
    assert shown[0] == "latency p99, onnx ≤ 5 ms" and shown[1].startswith("latency ratio") and "ms" not in shown[1]


def test_names_that_begin_alike_are_told_apart_on_a_phone() -> None:
    assert cut_within("student-refined", 15) == "student-refined"
    assert cut_within("zh-Hant-TW-x-1234", 15) == "zh-Hant…-x-1234"
    languages = tuple(f"zh-Hant-TW-x-{number:04d}" for number in range(8))
    drawing = plots.recovery(View(rich_results(languages)), 328)
    names = re.findall(r'text-anchor="end"[^>]*>(zh-[^<]*)<', drawing or "")
    assert len(names) == len(set(names)) == 8


def test_the_tiles_are_of_the_engine_that_the_bar_takes() -> None:
    results = rich_results()
    latency, rates = results["latency"][SYSTEM], results["throughput"][SYSTEM]
    latency["onnx"] = copy.deepcopy(latency["torch"])
    latency["onnx"]["all"] |= {"whole_p50_ms": 2.33, "whole_p99_ms": 5.21}
    rates["onnx"] = {**rates["torch"], "batch": 8, "queries_per_second": 756.2}
    slow = results["latency"]["teacher"]["torch"]["all"]["whole_p50_ms"]
    shown = first_screen(View(results))
    assert "<dt>One query in onnx, whole path, p50</dt><dd>2.33 ms</dd>" in shown, "not int8, which is another system"
    assert f"p99 5.21 ms; teacher in torch {slow:.2f} ms, {slow / 2.33:.1f}× as long" in shown
    assert "<dt>Queries per second in onnx, encoder at batch 8</dt><dd>756</dd>" in shown
    assert "teacher in torch 402 at batch 128" in shown


def test_memory_is_told_at_one_batch_beside_the_weights() -> None:
    results = rich_results()
    for system, best, weights in (("teacher", 8, 90.3), (SYSTEM, 32, 62.5)):
        row = results["throughput"][system]["torch"]
        row |= {"peak_memory_mb": 5.0 if best == 8 else 17.0, "weights_mb": weights}
        row["peak_memory_mb_by_batch"] = {"1": 1.0, "8": 5.0, "16": 11.0 if best == 8 else 9.0, "32": None}
    del results["throughput"][SYSTEM]["onnx-int8"], results["latency"][SYSTEM]["onnx-int8"]
    grid = costs.batches(View(results))
    assert grid is not None and column(grid, "peak MB at batch 16") == ["11", "9"]
    assert column(grid, "weights MB") == ["90", "62"]
    assert "without the weights. A service needs both" in grid.note and "one by one: the same at batch 1" in grid.note
    del results["throughput"][SYSTEM]["torch"]["peak_memory_mb_by_batch"]
    grid = costs.batches(View(results))
    assert grid is not None and column(grid, "peak MB") == ["5", "17"] and "can't be compared" in grid.note


def test_a_price_one_by_one_says_where_it_is_from() -> None:
    results = rich_results()
    for by_engine in results["throughput"].values():
        for row in by_engine.values():
            row["by_batch"].pop("1")
    grid = costs.batches(View(results))
    assert grid is not None and "one by one: the same by the mean time of single calls." in grid.note


def test_rare_calls_are_told_or_how_many_they_take() -> None:
    results = rich_results()
    for by_engine in results["latency"].values():
        for scopes in by_engine.values():
            scopes["all"]["whole_p99_9_ms"] = 33.125
    assert column(tables.cost(View(results)), "whole p99.9") == ["33.12"] * 3
    for by_engine in results["latency"].values():
        for scopes in by_engine.values():
            scopes["all"] |= {"p99_9_ms": None, "whole_p99_9_ms": None, "calls": 1200}
    grid = tables.cost(View(results))
    assert grid is not None and not any("99.9" in name for name in grid.header)
    told = "p99.9: needs 2,995 calls, had 1,200 (bench.repeats of 8 would do)."
    assert told in grid.note and "systems interleaved, 1,200 calls each" in grid.note
    assert told in _paid(View(results)) and told in markdown(View(results))


def test_the_axis_of_batches_has_the_sizes_that_were_timed() -> None:
    assert curves._marks([1, 4], log=True) == ([1, 4], True)
    sizes = [2**power for power in range(11)]
    assert set(curves._marks(sizes, log=True)[0]) <= set(sizes) and curves._marks(sizes, log=True)[0][-1] == 1024


def test_the_ratio_says_what_it_is_over() -> None:
    view = View(rich_results())
    grid = tables.cost(view)
    assert grid is not None and "p50 ratio: over teacher in torch, whatever the engine." in grid.note
