"""The report in a real browser: Chromium lays it out at the widths of phones and desktops, in light, dark and print."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders.browser import Browser, chromium
from builders.results import example_results
from builders.rich_results import SCRIPTED, rich_results

from harness.evaluation.report import write_report
from harness.evaluation.report.compare import Comparison
from harness.evaluation.report.compare_page import write_comparison
from harness.evaluation.report.runs import read_runs

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="no chromium here: Debian's package chromium brings it"),
]

WIDTHS = (360, 390, 768, 1280)
FIFTY_ONE = tuple(f"l{number:02d}" for number in range(49)) + ("zh-Hant-TW", "sr-Latn")

# What is wrong with the layout, as a list of sentences. Only what is shown is looked at.
LOOK = """
(() => {
  const told = [], shown = e => e.checkVisibility() && e.getClientRects().length > 0;
  const name = e => e.tagName.toLowerCase() + '.' + (e.className.baseVal ?? e.className) + ' "'
    + (e.textContent || '').trim().slice(0, 40) + '"';
  const root = document.documentElement;
  if (root.scrollWidth > innerWidth) told.push(`the page scrolls sideways: ${root.scrollWidth} of ${innerWidth}`);
  for (const e of document.querySelectorAll('body *')) {
    if (!shown(e) || e.closest('svg') || e.closest('.box')) continue;
    const box = e.getBoundingClientRect();
    if (box.right > innerWidth + 1 || box.left < -1) told.push(`beyond the page: ${name(e)}`);
    if (e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== 'inline')
      told.push(`wider than its box: ${name(e)}`);
  }
  for (const drawing of document.querySelectorAll('svg')) {
    if (!shown(drawing)) continue;
    const frame = drawing.getBoundingClientRect();
    if (frame.width < 40 || frame.height < 15) told.push(`an empty drawing: ${name(drawing)}`);
    if (![...drawing.querySelectorAll('circle,polygon,polyline,rect')].some(m => m.getBoundingClientRect().width > 0.5))
      told.push(`a drawing without marks: ${name(drawing)}`);
    const texts = [...drawing.querySelectorAll('text')].filter(t => t.textContent.trim());
    const boxes = texts.map(t => t.getBoundingClientRect());
    boxes.forEach((a, i) => {
      if (a.left < frame.left || a.right > frame.right || a.top < frame.top - 2 || a.bottom > frame.bottom + 2)
        told.push(`text beyond its drawing: ${name(texts[i])}`);
      for (let j = 0; j < i; j++) {
        const b = boxes[j];
        const over = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const deep = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (over > 1 && deep > 4) told.push(`texts over each other: ${name(texts[i])} and ${name(texts[j])}`);
      }
    });
  }
  return JSON.stringify([...new Set(told)]);
})()
"""
DRAWN = "[...document.querySelectorAll('svg')].filter(e => e.checkVisibility()).length"
OPENED = "document.querySelectorAll('details').forEach(e => e.open = true)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = chromium()
    assert program is not None
    running = Browser(program)
    yield running
    running.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The whole report, one of many languages, an earlier one, one with next to nothing, and two runs side by side."""
    told = {"whole": rich_results(), "many": rich_results(FIFTY_ONE), "earlier": example_results(),
            "long": rich_results(), "nothing": {"schema": 1}}  # fmt: skip
    told["long"]["ledger"] = [row for row in told["long"]["ledger"] if row["step"] in ("cut", "align", "refine")]
    for index in told["long"]["ann"]["indexes"].values():
        for system in index["systems"].values():
            for point in system["curve"]:
                point["effort"] *= 10
    folder = tmp_path_factory.mktemp("pages")
    for name, results in told.items():
        write_report(results, folder / name)
        (folder / name / "results.json").write_text(json.dumps(results), encoding="utf-8")
    runs = ["whole", "earlier", "again", "once-more", "and-again"]
    for name in runs[2:]:
        shutil.copytree(folder / "whole", folder / name)
    write_comparison(Comparison(read_runs([folder / name for name in runs])), folder / "compared")
    written = {name: folder / name / "report.html" for name in told}
    return written | {"compared": folder / "compared" / "compare.html"}


def seen(browser: Browser, path: Path, width: int) -> list[str]:
    """What is wrong with a page at a width, all its folded parts open."""
    browser.size(width, 844 if width < 600 else 900)
    browser.open(path)
    found = json.loads(browser.ask(LOOK))
    browser.ask(OPENED)
    return [*found, *json.loads(browser.ask(LOOK)), *browser.complaints()]


def test_all_columns_of_latency_and_throughput_are_seen_on_a_desktop(browser: Browser, tmp_path: Path) -> None:
    results = rich_results()
    for by_engine in results["latency"].values():
        for scopes in by_engine.values():
            scopes["all"]["whole_p99_9_ms"] = 33.125  # then every column there is
    write_report(results, tmp_path)
    browser.size(1280, 900)
    browser.open(tmp_path / "report.html")
    box = "document.querySelector('.box[aria-label=\"Latency and throughput\"]')"
    assert browser.ask(f"{box}.querySelectorAll('thead th').length") == 15
    assert browser.ask(f"{box}.scrollWidth - {box}.clientWidth") == 0


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["whole", "many", "earlier", "long", "nothing", "compared"])
def test_it_is_laid_out_without_a_fault(name: str, width: int, browser: Browser, pages: dict[str, Path]) -> None:
    assert seen(browser, pages[name], width) == []
    if name != "nothing":
        assert browser.ask(DRAWN) >= (1 if name == "compared" else 15)
        small, large = (browser.ask(f"document.querySelector('figure .{kind}').checkVisibility()")
                        for kind in ("narrow", "wide"))  # fmt: skip
        assert (small, large) == (width < 900, width >= 900)


def test_the_answer_stands_on_the_first_screen(browser: Browser, pages: dict[str, Path]) -> None:
    for width, height in ((390, 844), (1280, 900)):
        browser.size(width, height)
        browser.open(pages["whole"])
        for what in (".answer", ".notes", ".bars li"):
            assert browser.ask(f"document.querySelector('{what}').getBoundingClientRect().bottom") < height, what


def test_a_phone_s_first_screen_has_the_verdict_and_the_bars_that_decide(
    browser: Browser, pages: dict[str, Path]
) -> None:
    for name, width, height in (("whole", 360, 780), ("whole", 390, 844), ("earlier", 360, 780)):
        browser.size(width, height)
        browser.open(pages[name])
        rows = browser.ask("[...document.querySelectorAll('.bars li')].map(e => [e.querySelector('.what').innerText, "
                           "e.getBoundingClientRect().bottom])")  # fmt: skip
        assert browser.ask("document.querySelector('.answer').getBoundingClientRect().bottom") < height / 3
        seen = [text for text, bottom in rows if bottom <= height]
        for kind in ("recovery", "worst", "latency"):
            assert any(text.startswith(kind) for text in seen) or name == "earlier" and kind == "worst", (name, rows)
    assert browser.ask("document.querySelector('.full').checkVisibility()") is False
    browser.size(1280, 900)
    assert browser.ask("document.querySelector('.full').checkVisibility()")


def test_a_bar_is_told_in_few_lines_and_whole_on_paper(browser: Browser, pages: dict[str, Path]) -> None:
    lines = ("Math.max(...[...document.querySelectorAll('.bars .what')].map(e => e.offsetHeight / "
             "parseFloat(getComputedStyle(e).lineHeight)))")  # fmt: skip
    for width, media in ((768, ""), (1024, ""), (690, "print")):
        browser.size(width, 1024)
        browser.scheme("light", media=media)
        browser.open(pages["whole"])
        try:
            assert browser.ask(lines) < 3.5, (width, media)
            assert browser.ask("document.querySelector('.full').checkVisibility()")
        finally:
            browser.scheme("light")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_text_of_plots_can_be_read(width: int, browser: Browser, pages: dict[str, Path]) -> None:
    browser.size(width, 900)
    browser.open(pages["whole"])
    least = browser.ask("Math.min(...[...document.querySelectorAll('svg text')].filter(e => e.checkVisibility()).map("
                        "e => parseFloat(getComputedStyle(e).fontSize) * e.closest('svg').getBoundingClientRect().width"
                        " / e.closest('svg').viewBox.baseVal.width))")  # fmt: skip
    assert least >= 10


def test_a_query_with_a_script_is_text(browser: Browser, pages: dict[str, Path]) -> None:
    browser.size(1280, 900)
    browser.open(pages["whole"])
    assert browser.ask("document.title") == "quickstart: Undecided"
    assert browser.ask("document.querySelectorAll('script, img, iframe').length") == 0
    queries = browser.ask("[...document.querySelectorAll('.pair h3')].map(e => e.textContent)")
    assert SCRIPTED in queries
    # Even if markup came in, it could not run: the page's policy allows no script.
    browser.ask("(() => { const s = document.createElement('script'); s.textContent = \"document.title = 'ran'\";"
                "document.body.append(s); })()")  # fmt: skip
    assert browser.ask("document.title") == "quickstart: Undecided"
    assert "Content Security Policy" in " ".join(browser.complaints())


def test_right_to_left_text_reads_so(browser: Browser, pages: dict[str, Path]) -> None:
    browser.size(390, 844)
    browser.open(pages["whole"])
    directions = browser.ask(
        "[...document.querySelectorAll('.pair h3')].map(e => e.matches(':dir(rtl)') ? 'rtl' : 'ltr')"
    )
    assert directions[:3] == ["ltr", "rtl", "ltr"]


def test_dark_is_dark_and_both_can_be_read(browser: Browser, pages: dict[str, Path]) -> None:
    """Contrast as WCAG has it: at least 4.5 for every text that is shown."""
    contrast = """
    (() => {
      const light = c => { const [r, g, b] = c.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92
        : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const parts = c => (c.match(/[\\d.]+/g) || []).map(Number);
      const ground = e => { for (; e; e = e.parentElement) { const c = parts(getComputedStyle(e).backgroundColor);
        if (c.length === 3 || c[3] === 1) return c.slice(0, 3); } return [255, 255, 255]; };
      const told = [];
      for (const e of document.querySelectorAll('body *')) {
        const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
        if (!own || !e.checkVisibility() || e.closest('title, desc, style')) continue;
        const style = getComputedStyle(e);
        const [a, b] = [parts(e.closest('svg') ? style.fill : style.color), ground(e)].map(light).sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) told.push(`${((a + 0.05) / (b + 0.05)).toFixed(2)} ${e.className} `
          + e.textContent.slice(0, 30));
      }
      return JSON.stringify([...new Set(told)]);
    })()
    """
    browser.size(1280, 900)
    grounds = []
    for scheme in ("dark", "light"):
        browser.scheme(scheme)
        browser.open(pages["whole"])
        grounds.append(browser.ask("getComputedStyle(document.body).backgroundColor"))
        assert json.loads(browser.ask(contrast)) == [], scheme
    assert grounds == ["rgb(18, 21, 26)", "rgb(251, 250, 247)"]


def test_nothing_is_loaded_from_elsewhere(browser: Browser, pages: dict[str, Path]) -> None:
    browser.size(1280, 900)
    browser.open(pages["whole"])
    assert browser.requests() == [pages["whole"].resolve().as_uri()]


def test_print_opens_what_is_folded(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    browser.size(794, 1123)
    browser.scheme("dark", media="print")
    browser.open(pages["whole"])
    try:
        assert json.loads(browser.ask(LOOK)) == []
        assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        heights = browser.ask("[...document.querySelectorAll('details table')].map(e => e.offsetHeight)")
        assert min(heights) > 30
        assert browser.ask("document.querySelectorAll('details:not([open]) table').length") > 5
    finally:
        browser.scheme("light")
    browser.print(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes()[:5] == b"%PDF-"
