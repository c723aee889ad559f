"""The report: what it says, that nothing in the data can act in it, and that it stands whatever is missing."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from builders.results import LANGUAGES, example_results
from builders.rich_results import rich_results
from rich.console import Console

from harness.evaluation.report import curves, dots, plots, tables, terminal_tables, write_report
from harness.evaluation.report.markdown import escaped as escaped_markdown
from harness.evaluation.report.markdown import markdown
from harness.evaluation.report.page import page
from harness.evaluation.report.svg import Scale, log_ticks, ticks
from harness.evaluation.report.values import Interval, clean, decimals
from harness.evaluation.report.view import View

FIFTY = tuple(f"l{number:02d}" for number in range(48)) + ("zh-Hant-TW", "sr-Latn")
VOID = {"meta", "br", "img", "link", "input"}


def written(results: dict[str, Any], folder: Path) -> tuple[str, str]:
    write_report(results, folder)
    return (folder / "report.html").read_text(encoding="utf-8"), (folder / "report.md").read_text(encoding="utf-8")


def printed(results: dict[str, Any], width: int = 100) -> str:
    console = Console(file=StringIO(), width=width, color_system=None)
    for table in terminal_tables(results):
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


class Page(HTMLParser):
    """Collects elements and attributes, and checks that tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def drawings(html: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]


# ------------------------------------------------------------------------------------------------- what it says


def test_all_three_say_the_same_numbers(tmp_path: Path) -> None:
    results = example_results()
    results["recovery"]["student-refined"]["test"]["de"]["P@1"] = {"value": 0.9876, "low": 0.9514, "high": 1.0249}
    results["quality"]["teacher"]["test"]["macro"]["nDCG@10"] = 0.51249
    results["latency"]["teacher"]["torch"]["all"]["p99_ms"] = 14.906
    html, short = written(results, tmp_path)
    for text in (html, short, printed(results)):
        assert "0.988 [0.951, 1.025]" in text
        assert "0.512" in text
        assert "14.91" in text
        assert "1,187" in text
        assert "max length 64" in " ".join(text.split())
        assert "+0.026 [-0.002, +0.055]" in text
        assert "student-refined over student-aligned" in text  # the first less the second
        assert "fewer than 30 queries" in text
        assert "The teacher gained +0.006 on select" in text


def test_the_terminal_shows_every_language_metric_and_system_within_100_columns() -> None:
    for languages in (LANGUAGES, ("en",), FIFTY):
        text = printed(example_results(languages), width=400)
        assert max(map(len, (line.rstrip() for line in text.splitlines()))) <= 130  # only notes and bars may wrap
        text = printed(example_results(languages))
        assert "…" not in text
        for name in (*languages, "macro", "worst", "P@1", "P@10", "nDCG@10", "MRR@10", "overlap@10", "teacher-base",
                     "teacher", "student-untrained", "student-aligned", "student-refined", "queries/s"):  # fmt: skip
            assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text), name
    assert printed(example_results()).count("Quality on test") == 1  # eight languages stand side by side


@pytest.mark.parametrize(
    ("passed", "word"),
    [
        ([True, True], "Yes"),
        ([True, None], "Undecided"),
        ([None, None], "Undecided"),
        ([True, False], "Not yet"),
        ([None, False], "Not yet"),
        ([], "No bars set"),
    ],
)
def test_the_verdict_never_counts_undecided_as_reached(passed: list[bool | None], word: str, tmp_path: Path) -> None:
    results = example_results()
    results["bars"] = [
        {"name": "b", "what": f"number {i}, at least", "value": 1.0, "low": None, "bar": 0.5, "passed": p}
        for i, p in enumerate(passed)
    ]
    html, short = written(results, tmp_path)
    assert View(results).verdict.word == word
    assert f"{word}</b>" in html and word in short
    first_screen = html[: html.index("</header>")]
    if None in passed:
        assert "undecided: b" in first_screen
    if passed:
        assert word in printed(results)


def test_a_bar_reached_by_the_estimate_alone_is_told(tmp_path: Path) -> None:
    results = example_results()
    bar = results["bars"][1]
    doubt = "the interval reaches below the bar: macro recovery of P@1"
    assert doubt not in written(results, tmp_path)[0]
    bar["low"] = bar["bar"] - 0.001
    assert doubt in written(results, tmp_path)[0]


def test_tables_use_test_then_report_then_select_and_mark_what_was_selected_on(tmp_path: Path) -> None:
    results = example_results(set_name="report")
    assert View(results).set == "report" and not View(results).selected_on
    assert "†" not in written(results, tmp_path)[0]
    results["quality"]["teacher"]["test"] = results["quality"]["teacher"]["report"]
    assert View(results).set == "test"
    results = example_results(set_name="select")
    assert View(results).set_label == "select (selected on)"
    for text in (*written(results, tmp_path), printed(results)):
        assert "1.001]†" in text
        assert "select (selected on)" in text
    results = example_results()
    results["sets"]["test"]["selected_on"] = True
    assert View(results).set_label == "test (selected on)"


def test_languages_are_told_apart_by_their_intervals() -> None:
    results = example_results(("aa", "bb", "cc"))
    scopes = results["recovery"]["student-refined"]["test"]
    for language, (low, high) in {"aa": (0.9, 0.99), "bb": (0.9, 1.0), "cc": (1.01, 1.1)}.items():
        scopes[language]["P@1"] = {"value": (low + high) / 2, "low": low, "high": high}
    scopes["worst"]["P@1"].pop("language")
    view = View(results)
    assert view.sides == {-1: ["aa"], 0: ["bb"], 1: ["cc"]}
    assert view.worst_language == "aa"
    scopes["worst"]["P@1"]["language"] = "bb"
    assert View(results).worst_language == "bb"


def test_the_candidate_is_the_furthest_student() -> None:
    results = example_results()
    assert View(results).candidate == "student-refined"
    del results["quality"]["student-refined"]
    assert View(results).candidate == "student-aligned"
    assert View({"quality": {"teacher": {"test": {"en": {"P@1": 1.0}}}}}).candidate == ""


def test_what_was_made_of_the_student_is_no_stage() -> None:
    results = example_results()
    for made in ("student-int8", "student-ann"):
        results["quality"][made] = copy.deepcopy(results["quality"]["student-refined"])
    view = View(results)
    stages = ["student-untrained", "student-aligned", "student-refined"]
    assert view.students == stages and view.candidate == "student-refined"
    drawn = ElementTree.fromstring(curves.stages(view)[0])
    assert [str(mark[0].text).split(":")[0] for mark in drawn.iter("circle")] == stages
    for stage in ("student-refined", "student-aligned"):
        del results["quality"][stage]
        assert View(results).candidate == View(results).students[-1] != stage


def test_macro_agreement_is_the_mean_over_languages() -> None:
    results = example_results(("de", "en"))
    results["agreement"]["student-refined"]["test"] = {"de": {"overlap@10": 0.5}, "en": {"overlap@10": 0.7}}
    assert View(results).agreement("student-refined", "macro") == pytest.approx(0.6)
    results["agreement"]["student-refined"]["test"]["macro"] = {"overlap@10": 0.1}
    assert View(results).agreement("student-refined", "macro") == 0.1


def test_numbers_for_people() -> None:
    assert decimals(0.98765) == "0.988" and decimals(None) == "–" and decimals(float("nan")) == "–"
    assert decimals(True) == "–" and decimals(0.5, sign=True) == "+0.500"
    assert Interval(0.989, 0.975, 1.002).text() == "0.989 [0.975, 1.002]"
    assert Interval(0.989, None, 1.002).text() == "0.989" and Interval().text() == "–"
    assert [tables.duration(s) for s in (41.6, 380, 11100)] == ["42 s", "6 min 20 s", "3 h 5 min"]


# ------------------------------------------------------------------------------------ nothing in the data can act


NASTY = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</style><b>", "a&b'|c",
         "https://evil.example www.evil.example @octocat a@b.example #12", "5 $ $x$ $$y$$ :tada: :+1:")  # fmt: skip


@pytest.mark.parametrize("nasty", NASTY)
def test_text_from_data_cannot_become_markup(nasty: str, tmp_path: Path) -> None:
    results = example_results((nasty, "en"))
    for part in ("quality", "recovery", "agreement", "latency", "throughput", "systems"):
        results[part][nasty] = copy.deepcopy(results[part].get("student-refined", {}))
    for part, system in (("quality", "teacher"), ("recovery", "student-refined")):
        for scope in results[part][system]["test"].values():
            scope[nasty] = copy.deepcopy(scope["P@1"])
    results |= {"name": nasty, "warnings": [nasty], "conditions": {nasty: nasty}, "reference": "teacher"}
    results["provenance"][nasty] = nasty
    results["bars"][0] |= {"what": nasty, "name": nasty}
    results["tests"][0] |= {"name": nasty, "systems": [nasty, nasty], "verdict": nasty, "metric": "P@1"}
    results["training"][nasty] = {"curve": [{"step": 1, "metric": nasty, "value": 1}], "loss": [{"step": 1, "loss": 1}]}
    html, short = written(results, tmp_path)
    found = Page(html)
    assert {"script", "img", "iframe"}.isdisjoint(tag for tag, _ in found.elements)
    assert len(found.all("b")) == 1 + len(results["warnings"]) + len(results["bars"])  # none but ours
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    assert nasty in "".join(found.words)  # and yet it is shown, as text
    assert drawings(html)
    assert "<script" not in short and "<img" not in short
    rows = [line for line in short.splitlines() if line.startswith("|")]
    assert all(re.fullmatch(r"\|.*(?<!\\)\|", row) for row in rows)
    assert not re.search(r"://|www\.|\W@\w|@b\.|#1", short)
    assert not re.search(r"[^ ]\$|:tada:|:\+1:", short)


def test_markdown_text_is_no_markup() -> None:
    assert escaped_markdown("a|b*c_`") == r"a\|b\*c\_\`"
    assert escaped_markdown("[click](x)") == r"[click]\(x)"
    assert escaped_markdown("0.9 [0.8, 1.0]") == "0.9 [0.8, 1.0]"
    assert escaped_markdown("one\ntwo<br>") == "one two&lt;br&gt;"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see https://a.example/x", "see https:~//a.example/x"),
        ("[click](HTTP://x)", r"[click]\(HTTP:~//x)"),
        ("_www.a.example", r"\_www~.a.example"),
        ("@octocat, (@org/team) é@octocat", "@~octocat, (@~org/team) é@~octocat"),
        ("a.b@c-d.example mailto:a@b.example", "a.b@~c-d.example mailto:a@~b.example"),
        ("#12 a/b#12 GH-12 gh-1", "#~12 a/b#~12 GH-~12 gh-~1"),
        ("P@1, nDCG@10. 3 @ 4; a: /b; # 1; www", "P@1, nDCG@10. 3 @ 4; a: /b; # 1; www"),
        (":tada::+1: 12:30:45 a: b: c", ":~tada::~+1: 12:~30:45 a: b: c"),
        ("$x$ $$y$$ 5 $, $5", "^x^ $^y^^ 5 $, $5"),
    ],
)
def test_markdown_text_becomes_no_link_and_mentions_nobody(text: str, shown: str) -> None:
    """``~`` stands for a space of no width, after which GitHub knows nothing by these signs."""
    shown = shown.replace("^", "<span>&#36;</span>")  # a dollar that closes no mathematics
    assert escaped_markdown(text) == shown.replace("~", "\N{ZERO WIDTH SPACE}")


def test_the_terminal_reads_neither_markup_nor_escapes(tmp_path: Path) -> None:
    nasty = "[red]x\x1b[31m\u202ey"
    results = example_results((nasty, "en"))
    results["warnings"] = [nasty]
    text = printed(results)
    assert "\x1b" not in text and "\u202e" not in text
    assert "[red]x" in text
    assert clean("a\x00b\ud800\nc") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER} c"
    results["name"] = "lone \ud800"
    written(results, tmp_path)


def test_the_page_is_self_contained_and_names_its_parts(tmp_path: Path) -> None:
    html, _ = written(example_results(), tmp_path)
    found = Page(html)
    outside = {"script", "link", "img", "iframe", "object", "embed", "video", "audio", "source", "base", "form"}
    assert outside.isdisjoint(tag for tag, _ in found.elements)
    assert not re.search(r"https?:|url\(|@import|//\w", html)
    links = [attributes["href"] for attributes in found.all("a")]
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert links and sorted(links) == sorted(f"#{name}" for name in ids) and len(set(ids)) == len(ids)
    assert found.all("html") == [{"lang": "en"}]
    assert {"default-src 'none'; style-src 'unsafe-inline'"} <= {str(a.get("content")) for a in found.all("meta")}
    assert all(attributes.get("scope") in ("col", "row") for attributes in found.all("th")) and found.all("th")
    assert len(found.all("figcaption")) == len(found.all("figure")) == 5
    for drawing in drawings(html):
        assert drawing.get("role") == "img"
        assert [child.tag for child in drawing][:2] == ["title", "desc"]
        assert all(child.text for child in list(drawing)[:2])


def test_fifty_languages_and_long_training_stay_small(tmp_path: Path) -> None:
    results = example_results(FIFTY)
    results["training"]["align"]["loss"] = [{"step": s, "loss": 1 / s} for s in range(1, 50_001)]
    html, short = written(results, tmp_path)
    assert len(html) < 1_000_000 and len(short) < 200_000
    assert all(language in html and language in short for language in FIFTY)


def test_no_model_library_is_loaded() -> None:
    code = (
        "import sys; from harness.evaluation.report import write_report, plots, page, markdown, terminal;"
        "assert not {'torch', 'transformers', 'matplotlib', 'faiss'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


# --------------------------------------------------------------------------------------------- whatever is missing


def places(tree: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in the tree; of a list only the first."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree[:1]) if isinstance(tree, list) else ()
    for key, value in inside:
        yield (*path, key)
        yield from places(value, (*path, key))


def test_it_stands_whatever_is_missing() -> None:
    whole = example_results(("de", "en"))
    whole["quality"] = {name: {"test": whole["quality"][name]["test"]} for name in ("teacher", "student-refined")}
    whole["recovery"] = {"student-refined": {"test": whole["recovery"]["student-refined"]["test"]}}
    for by_set in (*whole["quality"].values(), *whole["recovery"].values()):
        for scope in by_set["test"].values():
            for metric in ("P@10", "MRR@10", "Recall@100"):
                del scope[metric]
    for stage in whole["training"].values():
        stage["loss"] = stage["loss"][:3]
    found = list(places(whole))
    assert len(found) > 200
    for path in found:
        results = copy.deepcopy(whole)
        holder: Any = results
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = None
        text = page(View(results)) + markdown(View(results))
        assert not re.search(r"\b(None|nan|inf)\b", text), path
        terminal_tables(results)


PARTS = ("latency", "recovery", "tests", "bars", "training", "sets", "quality", "agreement")


@pytest.mark.parametrize("without", PARTS)
def test_absent_parts_leave_no_empty_frames(without: str, tmp_path: Path) -> None:
    results = example_results()
    removed = {"latency": ("latency", "throughput", "conditions", "ann")}.get(without, (without,))
    for key in removed:
        results[key] = type(results[key])()
    html, short = written(results, tmp_path)
    found = Page(html)
    assert len(found.all("figure")) == len(found.all("figcaption")) == html.count("<figure><div")
    assert not re.search(r"<(figure|div|dl|ul|section|tbody)[^>]*></", html)
    assert "What it costs" not in html or without != "latency"
    assert not re.search(r"\| *\n\n\n", short)
    printed(results)


def test_a_narrow_terminal_loses_no_system() -> None:
    results = rich_results()
    view = View(results)
    for width in (80, 100):
        console = Console(file=StringIO(), width=width, color_system=None)
        for table in terminal_tables(results, width):
            console.print(table)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert max(map(len, text.splitlines())) <= width
        kept = [view.recovery(name, "macro", view.lead).text(mark=view.mark) for name in view.compared]
        assert len(kept) > 4 and all(cell in text for cell in kept)


def test_nothing_at_all(tmp_path: Path) -> None:
    html, short = written({"schema": 1}, tmp_path)
    assert "Nothing measured" in html and "Nothing measured" in short
    assert terminal_tables({"schema": 1}) == []
    unasked = {key: part for key, part in example_results().items() if key != "bars"}
    assert "Can student-refined ship? No bars set." in [str(table.title).strip() for table in terminal_tables(unasked)]


def test_unknown_intervals_leave_the_estimate(tmp_path: Path) -> None:
    results = example_results(("de", "en"))
    for scope in results["recovery"]["student-refined"]["test"].values():
        for metric in scope:
            scope[metric] = {"value": 0.5004, "low": None, "high": None}
    html, _ = written(results, tmp_path)
    assert "0.500" in html
    drawn = ElementTree.fromstring(str(plots.recovery(View(results), 960)))
    assert not [part for part in drawn.iter("line") if "whisker" in str(part.get("class"))]
    assert View(results).sides == {-1: [], 0: [], 1: []}


# --------------------------------------------------------------------------------------------------------- plots


def test_dots_and_whiskers_stand_where_their_numbers_are() -> None:
    rows = [dots.Dot("a", Interval(0.9, 0.8, 1.0)), dots.Dot("b", Interval(1.1, 1.05, 1.2), "worst")]
    drawn = ElementTree.fromstring(str(dots.whiskers(rows, width=960, reference=1.0, title="t")))
    marks = [float(str(mark.get("cx"))) for mark in drawn.iter("circle")]
    lines = {str(part.get("class")).strip(): part for part in drawn.iter("line")}
    low, high = (float(str(lines["whisker"].get(key))) for key in ("x1", "x2"))
    assert marks[0] == pytest.approx((low + high) / 2, abs=0.1)  # 0.9 is midway between 0.8 and 1.0
    per_unit = (high - low) / 0.2
    assert marks[1] - marks[0] == pytest.approx(0.2 * per_unit, abs=0.2)
    assert float(str(lines["reference"].get("x1"))) == pytest.approx(high, abs=0.1)
    kinds = [str(mark.get("class")) for mark in drawn.iter("circle")]
    assert "hollow" in kinds[0] and "hollow" not in kinds[1] and "worst" in kinds[1]


def test_the_bar_that_is_drawn_is_that_of_the_metric_in_front() -> None:
    results = example_results()
    (asked,) = (bar for bar in results["bars"] if bar["name"] == "recovery of P@1")
    results["bars"] = [asked | {"name": "recovery of P@10", "bar": 0.5}]
    assert View(results).lead == "P@1" and plots.recovery_bar(View(results)) is None
    results["bars"].append(asked)
    assert plots.recovery_bar(View(results)) == asked["bar"] == 0.97


def test_scales_and_ticks() -> None:
    assert Scale(0, 10, 100, 200)(2.5) == 125
    assert Scale(1, 100, 0, 200, log=True)(10) == pytest.approx(100)
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    for low, high in ((0.9, 1.05), (0.0, 0.0), (3.0, 3.0), (-0.002, 0.25), (1e-9, 2e-9), (0, 123456)):
        found = ticks(low, high)
        assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 8 and found == sorted(set(found))
    assert log_ticks(4, 13) == [2, 5, 10, 20] and log_ticks(5, 5) == [5, 10]


def test_labels_of_close_points_do_not_cover_each_other() -> None:
    results = example_results()
    for index, engine in enumerate(("torch-compile", "onnx", "cuda-graphs")):
        found = copy.deepcopy(results["latency"]["student-refined"]["torch"])
        found["all"]["p50_ms"] = 5.0 + 0.1 * index
        results["latency"]["student-refined"][engine] = found
    drawn = ElementTree.fromstring(str(plots.quality_and_latency(View(results), 328)))
    boxes = [(float(str(text.get("x"))), float(str(text.get("y"))), len(str(text.text)) * 6.5)
             for text in drawn.iter("text") if text.get("class") == "strong"]  # fmt: skip
    assert len(boxes) == 5
    for index, (x, y, wide) in enumerate(boxes):
        for other_x, other_y, other_wide in boxes[:index]:
            assert abs(y - other_y) >= 14 or abs(x - other_x) >= (wide + other_wide) / 2


def test_long_curves_are_thinned_and_keep_their_end() -> None:
    curve = curves._thinned([(float(i), float(i % 7)) for i in range(10_001)])
    assert len(curve) <= 161 and curve[-1] == (10_000.0, 10_000 % 7)
    assert curves._thinned(curve[:50]) == curve[:50]
