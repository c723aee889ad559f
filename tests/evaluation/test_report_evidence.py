"""What stands behind the verdict: claims, ledger, slices, effort and the rest, drawn from a file that has all."""

from __future__ import annotations

import copy
import html as html_module
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from builders.results import example_results
from builders.rich_results import FEW, LONG, SCRIPTED, SET, SYSTEM, rich_results

from harness.evaluation.report import costs, curves, evidence, plots, terminal_tables
from harness.evaluation.report.disagree import cards
from harness.evaluation.report.markdown import LONGEST, markdown
from harness.evaluation.report.page import first_screen, page
from harness.evaluation.report.values import clean
from harness.evaluation.report.view import View

GOLDEN = Path(__file__).parent / "golden_report.md"
THREE = ("de", "en", "tr")
Tree = dict[str, Any]


def drawn(text: str | None) -> ElementTree.Element:
    assert text is not None
    return ElementTree.fromstring(text)


def words(element: ElementTree.Element) -> list[str]:
    return [str(text.text) for text in element.iter("text") if text.text]


# -------------------------------------------------------------------------------------------------- the whole of it


def test_the_markdown_is_the_one_that_was_read_by_people() -> None:
    """Where the text is meant to change: GOLDEN.write_text(markdown(View(rich_results(THREE))))."""
    assert markdown(View(rich_results(THREE))) == GOLDEN.read_text(encoding="utf-8")


def numbers(tree: Any) -> Iterator[float]:
    if isinstance(tree, dict):
        for value in tree.values():
            yield from numbers(value)
    elif isinstance(tree, list):
        yield float(len(tree))
        for value in tree:
            yield from numbers(value)
    elif isinstance(tree, (int, float)) and not isinstance(tree, bool):
        yield float(tree)


def texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        yield from tree
        for value in tree.values():
            yield from texts(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from texts(value)
    elif isinstance(tree, str):
        yield tree


def shown_forms(value: float) -> set[str]:
    """How the page may write a number."""
    forms = {f"{value:{sign}.{digits}f}" for sign in ("", "+") for digits in (0, 1, 2, 3, 5)}
    forms |= {f"{100 * value:.{digits}f} %" for digits in (0, 1)} | {f"{100 * value:g} %", f"{100 * value:+.1f}"}
    forms |= {f"{value:,.0f}", f"{value:,.1f}", f"{value:g}", f"{value / 1e6:,.1f}", f"{value:.2f}×"}
    if 0 <= value < 0.001:
        forms.add("< 0.001")
    return forms


def derived(results: Tree) -> Iterator[float]:
    """The few numbers that are worked out from two of the file's."""
    latency = results["latency"]
    base = latency["teacher"]["torch"]["all"]
    for by_engine in latency.values():
        for scopes in by_engine.values():
            yield from (scopes["all"][key] / base[key] for key in ("p50_ms", "whole_p50_ms"))
            yield from (base[key] / scopes["all"][key] for key in ("p50_ms", "whole_p50_ms"))
    for by_set in results["agreement"].values():  # the mean over languages
        rows = [row for lang, row in by_set[SET].items() if lang != "all"]
        yield from (sum(row[key] for row in rows) / len(rows) for key in rows[0])
    ranks = results["bias"][SYSTEM][SET]["rank_variance"]
    yield from (math.sqrt(ranks[key]) for key in ("value", "reference"))
    ledger = [row for row in results["ledger"] if row["scope"] == "macro"]
    yield ledger[-1]["after"] / ledger[0]["before"]


def test_every_number_of_the_page_is_in_the_results() -> None:
    """Cells of tables, the values beside plots, tiles, bars and sentences; not axes and not texts of the data."""
    results = rich_results()
    allowed = {form for value in (*numbers(results), *derived(results)) for form in shown_forms(value)}
    told = page(View(results))
    parts = re.findall(r"<td[^>]*>(.*?)</td>", told)
    parts += re.findall(r'<text[^>]*class="value[^"]*"[^>]*>(.*?)</text>', told)
    parts += re.findall(r"<dd[^>]*>(.*?)</dd>", told[: told.index("</header>")])
    parts += re.findall(r'<span class="numbers">(.*?)</li>', told) + re.findall(r"<p>(.*?)</p>", told)
    own = sorted({clean(text) for text in texts(results)}, key=len, reverse=True)
    unknown = set()
    for part in parts:
        text = html_module.unescape(re.sub(r"<[^>]*>", " ", part))
        for name in own:
            if re.search(r"\d", name) and re.search(r"[^\W\d]", name):
                text = text.replace(name, " ")
        for found in re.findall(r"(?:< )?[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?: %|×)?", text):
            plain = found.strip()
            if not {plain, plain.lstrip("+-"), plain.removesuffix(" %").removesuffix("×")} & allowed:
                unknown.add((plain, text.strip()[:90]))
    assert len(parts) > 900
    assert {number for number, _ in unknown} <= {"0", "1", "1 %", "100,000"}, unknown


def test_fifty_one_languages_and_seven_systems_stay_small() -> None:
    languages = tuple(f"l{number:02d}" for number in range(51))
    view = View(rich_results(languages))
    told, short = page(view), markdown(view)
    assert len(view.systems) >= 6 and len(told.encode()) < 3_000_000
    assert len(short) < LONGEST + 1000 and "In report.html only" in short
    assert all(language in told for language in languages)


def places(tree: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in the tree; of a list, and of mappings that hold the same, only the first."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree[:1]) if isinstance(tree, list) else ()
    seen: list[object] = []
    for key, value in inside:
        yield (*path, key)
        shape = sorted(map(str, value)) if isinstance(value, dict) else None
        if shape is None or shape not in seen or len(path) < 2:
            seen.append(shape)
            yield from places(value, (*path, key))


@pytest.mark.parametrize(("put", "every"), [(None, 1), ("x", 5)])
def test_it_stands_whatever_is_missing_or_strange(put: object, every: int) -> None:
    whole = rich_results(("de", "tr"))
    for part in ("quality", "recovery"):
        whole[part] = {name: {SET: whole[part][name][SET]} for name in whole[part] if name in ("teacher", SYSTEM)}
    for part in ("training", "agreement", "latency", "throughput"):
        whole[part] = {}
    parts = ("ledger", "slices", "leakage", "alike", "languages", "bias", "ann", "outside", "disagreements", "tests")
    found = [path for path in places(whole) if path[0] in parts]
    assert len(found) > 150
    for path in found[::every]:
        results = copy.deepcopy(whole)
        holder: Any = results
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = put
        told = page(View(results)) + markdown(View(results))
        leaked = re.search(r"\b(?:None|nan|inf)\b", told)
        assert leaked is None, (path, told[leaked.start() - 40 : leaked.end()])


@pytest.mark.parametrize("nasty", [SCRIPTED, '"><img src=x onerror=alert(1)>', "</style><b>", "a&b'|c"])
def test_text_of_the_new_parts_cannot_become_markup(nasty: str) -> None:
    def soiled(tree: Any) -> Any:
        """Every key that is data, and every text, with the nasty one behind it."""
        if isinstance(tree, dict):
            return {key: soiled(value) for key, value in tree.items()}
        if isinstance(tree, list):
            return [soiled(value) for value in tree]
        return tree + nasty if isinstance(tree, str) and tree not in (SET, SYSTEM, "teacher", "P@1", "macro") else tree

    results = rich_results()
    for part in ("ledger", "slices", "leakage", "alike", "languages", "bias", "ann", "outside", "disagreements"):
        results[part] = soiled(results[part])
    results["slices"][SYSTEM][SET][nasty] = {nasty: results["slices"][SYSTEM][SET]["length"]["short"]}
    results["bias"][SYSTEM][SET]["documents"][nasty] = results["bias"][SYSTEM][SET]["documents"]["de"]
    results["outside"][nasty] = results["outside"]["scifact"]
    results["ann"]["indexes"][nasty] = results["ann"]["indexes"]["hnsw"]
    results["languages"][SET][nasty] = results["languages"][SET]["de"]
    told, short = page(View(results)), markdown(View(results))
    assert not re.search(r"<(script|img|b)\b(?! class=\"yes\")[^/>]*(alert|onerror|document)", told)
    assert told.count("<script") == 0 and told.count("<img") == 0 and told.count("</style>") == 1
    assert "<script" not in short and "<img" not in short
    for drawing in re.findall(r"<svg.*?</svg>", told, re.DOTALL):
        ElementTree.fromstring(drawing)
    terminal_tables(results)


# ----------------------------------------------------------------------------------------------------- what is said


def test_bars_take_the_status_that_they_are_told() -> None:
    results = rich_results()
    view = View(results)
    assert [bar.status for bar in view.bars] == ["undecided", "reached", "reached", "reached"]
    assert view.verdict.word == "Undecided"
    shown = first_screen(view)
    assert "1 of 4 bars undecided: worst language P@1; none missed." in shown
    assert f"Undecided languages, too small to tell: {FEW} (1 of 8)." in shown
    results["bars"][3]["status"] = "missed"  # although "passed" still says True
    view = View(results)
    assert view.verdict.word == "Not yet"
    assert view.verdict.sentence == "1 of 4 bars missed: latency ratio; 1 undecided: worst language P@1."
    assert [bar.status for bar in view.bars] == ["missed", "undecided", "reached", "reached"]
    assert view.bars[0].at_most and not view.bars[1].at_most


def test_claims_name_what_is_shown_and_what_cannot_be_told() -> None:
    view = View(rich_results())
    (sentence,) = evidence.claim_sentences(view)
    assert sentence.startswith("That student-refined loses less than 5 % of P@1 is shown for the mean over languages")
    assert sentence.endswith(f"can't be told, for want of queries, for all languages at once, {FEW}.")
    grid = evidence.claims(view, "P@1")
    assert grid is not None
    verdicts = {row.cells[0]: row.cells[1] for row in grid.rows}
    assert list(verdicts)[:2] == ["the mean over languages", "all languages at once"]
    assert verdicts[FEW] == "? undecided"
    assert len(grid.rows) == 10 and evidence.claims(view, "MRR@10") is None
    assert all(test.get("kind") != "non-inferiority" for test in view.gains)


def test_too_small_languages_are_hollow_and_stand_last() -> None:
    view = View(rich_results())
    assert view.small == [FEW]
    picture = drawn(plots.recovery(view, 960))
    marks = [str(mark.get("class")) for mark in picture.iter("circle")]
    assert "few" in marks[-1] and "hollow" in marks[-1] and all("few" not in mark for mark in marks[:-1])
    thin = [line for line in picture.iter("line") if str(line.get("class")).startswith("thin")]
    assert len(thin) == 2 * 7  # seven languages have a bound that holds for all of them: a line and its end
    results = rich_results()
    results["recovery"][SYSTEM][SET]["worst"]["P@1"]["undecided"] = ["de"]
    assert View(results).small == ["de", FEW]
    assert View(example_results()).small == []


def test_the_waterfall_runs_from_before_to_after_step_by_step() -> None:
    results = rich_results()
    view = View(results)
    picture = drawn(plots.ledger(view, 960))
    bars = [(float(str(r.get("x"))), float(str(r.get("width"))), str(r.get("class"))) for r in picture.iter("rect")]
    rows = [row for row in results["ledger"] if row["scope"] == "macro"]
    assert len(bars) == len(rows) == 5
    scale = bars[0][1] / abs(rows[0]["difference"])
    for (_, width, kind), row in zip(bars, rows, strict=True):
        assert width == pytest.approx(max(1.5, abs(row["difference"]) * scale), abs=0.2)
        assert ("loss" in kind) == (row["difference"] < 0) and ("hollow" in kind) == (row["verdict"] == "undecided")
    assert bars[1][0] == pytest.approx(bars[0][0], abs=0.2)  # align starts where the cut ended
    assert {"cut", "align", "refine", "quantise", "approximate index", "teacher", "student-ann"} <= set(words(picture))
    grid = evidence.ledger(view)
    assert grid is not None and grid.rows[0].cells[0] == "macro" and grid.rows[-1].cells[0] == "length=short"
    assert grid.rows[0].cells[1] == "{difference:+.3f} [{low:+.3f}, {high:+.3f}]".format(**rows[0])
    results["ledger"] = []
    assert plots.ledger(View(results), 960) is None and evidence.ledger(View(results)) is None


def test_small_indexes_are_labelled_and_draw_no_conclusion() -> None:
    results = rich_results()
    panels = curves.effort(View(results))
    assert len(panels) == 6 and not any("too small" in panel for panel in panels)
    (told,) = costs.effort_note(View(results))
    assert "(264,112 documents): HNSW 2.00 [1.00, 2.00] undecided; IVF 2.00 [1.00, 2.00] undecided." in told
    results["ann"]["indexes"]["ivf"]["effort_ratio"] |= {"low": None, "high": None, "why": "12 groups of the 30 needed"}
    assert "; IVF 2.00 undecided (12 groups of the 30 needed)." in costs.effort_note(View(results))[0]
    results["ann"] |= {"verdict": "too small to tell", "documents": 3963}
    assert all("too small to tell" in panel for panel in curves.effort(View(results)))
    (told,) = costs.effort_note(View(results))
    assert "too small to tell (3,963 documents)" in told and "no conclusion" in told
    assert "too small to tell (3,963 documents)" in markdown(View(results))
    for unmeasured in ({"verdict": "not measured"}, {"verdict": "too small to tell"}):  # the latter: of earlier files
        results["ann"] = unmeasured
        (told,) = costs.effort_note(View(results))
        assert told == "The cost of an approximate index: not measured (set bench.ann)."


def test_which_index_is_searched_and_how_much_of_the_speed_is_left_is_told() -> None:
    results = rich_results()
    results["ann"]["deployed"] = {"system": "student-ann", "index": "ivf", "effort": 64, "why": "1 % not reached"}
    _, told = costs.effort_note(View(results))
    assert told == "student-ann searches IVF at effort 64, the largest measured: 1 % was not reached."
    results["ann"]["verdict"] = "too small to tell"
    assert costs.effort_note(View(results))[1] == told, "of a small collection, too"
    results["ann"]["indexes"]["ivf"]["built"]["parameters"] = {"lists": 64}
    assert costs.effort_note(View(results))[1] == f"{told} All 64 lists are searched: this is exhaustive."
    ivf = results["ann"]["indexes"]["ivf"]
    ivf["end_to_end"] = {"speed_up": 1.691, "encoder_speed_up": 3.094, "calls": 200}
    grid = costs.effort(View(results))
    assert grid is not None
    (row,) = [row.cells for row in grid.rows if row.cells[0] == "IVF"]
    assert row[-3:] == ["1.69×", "3.09×", "searches: 200 calls"]
    assert grid.note and "Threads" not in grid.note
    ivf["end_to_end"]["encode_calls"] = 100
    results["ann"]["threads"] = 4
    grid = costs.effort(View(results))
    assert grid is not None
    assert "searches: 200 calls; encoding: 100 calls" in [row.cells[-1] for row in grid.rows]
    assert grid.note and grid.note.endswith(" Threads: 4.")
    assert grid.header[-3:] == ["end to end", "encoder alone", "calls"]


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        ((2.8256, 1.0, None, "undecided"), "2.83 [1.00, –] undecided"),
        ((None, 8.1, None, "more"), "– [8.10, –] more"),
        ((2.0, None, None, "undecided"), "2.00 undecided"),
        ((None, None, None, "more"), "– more"),
    ],
)
def test_an_effort_ratio_keeps_the_bound_that_is_known(bounds: tuple[Any, ...], text: str) -> None:
    results = rich_results()
    ratio = dict(zip(("value", "low", "high", "verdict"), bounds, strict=True))
    results["ann"]["indexes"]["ivf"]["effort_ratio"] = ratio
    grid = costs.effort(View(results))
    assert grid is not None
    assert text in grid.rows[1].cells and f"; IVF {text}." in costs.effort_note(View(results))[0]


def test_the_metric_in_front_is_one_that_tests_and_ledger_are_about() -> None:
    """P@10 and nDCG@10 are measured: nDCG@10 is tested, and P@10 comes first among the columns."""
    results = rich_results()
    for rows in (results["tests"], results["ledger"]):
        rows[:] = [row | {"metric": "nDCG@10"} for row in rows if row["metric"] == "P@1"]
    assert View(results).lead == "nDCG@10" and "P@1" in View(results).metrics
    results["tests"], results["ledger"] = [], []
    assert View(results).lead == "P@1"


def test_the_pareto_line_joins_what_nothing_beats() -> None:
    results = rich_results()
    view = View(results)
    assert view.path_key == "whole_"
    front = [(system, engine) for system, engine, *_ in plots.pareto(plots.timed_points(view))]
    assert front == [(SYSTEM, "onnx-int8"), (SYSTEM, "torch"), ("teacher", "torch")]
    # What an int8 engine answers is the quantised student's, and so has its quality.
    qualities = {engine: quality for system, engine, *_, quality in plots.timed_points(view) if system == SYSTEM}
    assert qualities["onnx-int8"] == view.quality("student-int8", "macro", "P@1") != qualities["torch"]
    results["quality"]["teacher"][SET]["macro"]["P@1"] = 0.2
    assert len(plots.pareto(plots.timed_points(View(results)))) == 2
    del results["latency"]["teacher"]["torch"]["all"]["whole_p50_ms"]
    assert View(results).path_key == ""  # the whole path stands only where all were timed so


def test_slices_without_a_part_in_the_variance_are_named() -> None:
    view = View(rich_results())
    assert "left out" not in evidence.alike(view)[0]
    variance = view.results["alike"][SYSTEM][SET][view.lead]["variance"]
    variance["left_out"] = {"market": "not to be told apart from language"}
    (told,) = evidence.alike(view)
    assert "slice 1.1 %, rest 98.7 % (left out: market, not to be told apart from language)" in told


def test_shares_stand_as_pairs() -> None:
    view = View(rich_results())
    picture = drawn(plots.bias(view, 960))
    dots = [float(str(mark.get("cx"))) for mark in picture.iter("circle")][1:]  # the first is the legend's
    assert len(dots) == 8
    assert "27.2 % / 22.2 %" in words(picture)  # de: found more often than it is relevant
    (told,) = evidence.bias_note(view)
    assert "English documents take +5.0 points more" in told and "(teacher +2.0; added" in told
    view.results["bias"][SYSTEM][SET] |= {"english": None, "note": "no document is in English"}
    assert evidence.bias_note(view)[0].endswith("; no document is in English.")


def test_disagreements_stand_side_by_side() -> None:
    told = cards(View(rich_results()))
    assert told.count("<article") == 7 and "3 more" in told
    assert html_module.escape(SCRIPTED) in told and "<script" not in told
    assert told.count('<b class="yes" title="relevant">') == 7
    assert 'dir="auto"' in told
    assert "\N{ZERO WIDTH JOINER}" in told and "🏴\U000e0067" in told  # families and flags stay whole
    assert LONG not in told or len(LONG) <= 300
    assert clean("a\u202eb\u200bc\u200dd\u2066") == "a\N{REPLACEMENT CHARACTER}bc\u200dd\N{REPLACEMENT CHARACTER}"


def test_alike_tells_its_numbers() -> None:
    (told,) = evidence.alike(View(rich_results()))
    for text in ("Not alike", "p = 0.032", "p = 0.118", "2,000 permutations", "0.009 [0.000, 0.018]", "language 0.2 %",
                 "Left out, fewer than 30 groups: tr (14)"):  # fmt: skip
        assert text in told, text
    assert evidence.alike(View(example_results())) == []


def test_leakage_tells_what_is_kept_on_unseen_queries() -> None:
    results = rich_results()
    results["slices"][SYSTEM][SET]["seen"]["no"]["recovery"]["P@1"] = {"value": 0.5, "low": 0.4, "high": 0.6}
    (told,) = evidence.leakage_note(View(results))
    for part in ("Of the 6,415 queries of test", "13 in the training queries", "402 in what the alignment read",
                 "in any of them 411 (6.4 %)"):  # fmt: skip
        assert part in told
    assert "trained on" not in told.replace("logs that were trained on", "")
    results["leakage"][SET]["seen"]["select"] = 2
    (also,) = evidence.leakage_note(View(results))
    assert "2 in select (chosen on, not trained on)" in also
    assert "keeps 0.500 [0.400, 0.600] of P@1" in told
