"""The report as one HTML page: no script, nothing loaded from elsewhere, every text from data escaped."""

from __future__ import annotations

import re

from harness.evaluation.report import tables
from harness.evaluation.report.dots import bar_picture
from harness.evaluation.report.parts import document
from harness.evaluation.report.sections import SECTIONS
from harness.evaluation.report.style import STYLE
from harness.evaluation.report.svg import escaped
from harness.evaluation.report.values import MISSING, count, decimals, listed, rate
from harness.evaluation.report.view import STATUS_MARKS, Bar, View


def _tile(name: str, value: str, more: str) -> str:
    if value == MISSING:
        return ""
    return (
        f'<dl class="tile"><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>'
        + (f'<dd class="more">{escaped(more)}</dd>' if more else "")
        + "</dl>"
    )


def _tiles(view: View) -> str:
    """The few numbers that a decision rests on."""
    ours, theirs = view.candidate, view.reference
    mean = view.recovery(ours, "macro", view.lead)
    worst = view.worst_language if len(view.languages) > 1 else None
    tiles = [
        _tile(f"{view.lead} kept, mean over languages", decimals(mean.value), _bounds(view, mean.text())),
        _lowest(view, worst) if worst is not None else "",
        _tile(f"{view.lead}, mean over languages", decimals(view.quality(ours, "macro", view.lead)),
              f"{theirs} {decimals(view.quality(theirs, 'macro', view.lead))}"),
        *_speed(view),
    ]  # fmt: skip
    return f'<div class="tiles">{"".join(tiles)}</div>' if any(tiles) else ""


def _speed(view: View) -> list[str]:
    """How fast the candidate is, in the engine of the bar of latency, beside the reference."""
    ours, theirs = view.candidate, view.reference
    engine, origin = view.fastest_engine(ours), view.fastest_engine(theirs)
    key = f"{view.path_key}p50_ms"
    fast, slow = view.latency(ours, engine, key), view.latency(theirs, origin, key)
    tail = view.latency(ours, engine, f"{view.path_key}p99_ms")
    longer = f"{theirs} in {origin} {slow:.2f} ms, {slow / fast:.1f}× as long" if fast and slow else ""
    parts = [f"p99 {tail:.2f} ms" if tail is not None else "", longer]
    speeds = [_rate(view, system, by) for system, by in ((ours, engine), (theirs, origin))]
    path = ", whole path" if view.path_key else ", encoder"
    return [
        _tile(f"One query in {engine}{path}, p50", MISSING if fast is None else f"{fast:.2f} ms",
              "; ".join(filter(None, parts))),
        _tile(f"Queries per second in {engine}, encoder{speeds[0][1]}", speeds[0][0],
              f"{theirs} in {origin} {speeds[1][0]}{speeds[1][1]}" if speeds[1][0] != MISSING else ""),
    ]  # fmt: skip


def _rate(view: View, system: str, engine: str) -> tuple[str, str]:
    """Queries per second, and at which batch."""
    batch = view.throughput(system, engine, "batch")
    return rate(view.throughput(system, engine)), "" if batch is None else f" at batch {count(batch)}"


def _lowest(view: View, worst: str) -> str:
    """The lowest language that can be told, with the bound that holds for all of them at once."""
    found, few = view.recovery(view.candidate, "worst", view.lead), view.undecided
    value = view.recovery(view.candidate, worst, view.lead).value if found.value is None else found.value
    if worst in few:  # none can be told
        return _tile(f"Lowest language, undecided: {worst}", decimals(value), "too little data in every language")
    bound = f"at least {decimals(found.low)}, all languages at once" if found.low is not None else "no bound"
    name = "Lowest language that can be told" if few else "Lowest language"
    return _tile(f"{name}: {worst}", decimals(value), bound + (f"; undecided: {listed(few, most=4)}" if few else ""))


def _bounds(view: View, text: str) -> str:
    """The bracket of an interval, as text of its own."""
    return text[text.index("[") :] + view.mark if "[" in text else ""


def _short(bar: Bar) -> str:
    """What a bar asks for, as short as it can be; latency with its percentile, engine and unit."""
    brief = bar.brief
    for words, sign in ((", at least", " ≥"), (", at most", " ≤"), (", interval above", " >")):
        brief = brief.replace(words, sign)
    if not bar.name.startswith("latency"):
        return brief
    engine = re.search(r" (?:by|in) (torch|torch-compile|cuda-graphs|onnx)(?=[ ,]|$)", bar.what)
    kind = (" p99" if "p99" in bar.what else "") + (f", {engine[1]}" if engine else "")
    return brief.replace(" ≤", f"{kind} ≤", 1) + (" ms" if " in ms " in bar.what else "")


def _bars(view: View) -> str:
    """The bars; a phone shows the brief name and the reason of what is undecided, a desktop the whole sentence."""
    rows = [
        f'<li class="{bar.status}"><span class="status">{STATUS_MARKS[bar.status]} {bar.status}</span>'
        f'<span class="what"><span class="full">{escaped(bar.what)}</span>'
        f'<span class="brief">{escaped(_short(bar))}</span></span>'
        f'<span class="picture">{bar_picture(bar)}</span>'
        f'<span class="numbers"><b>{escaped(bar.value)}</b> <span class="more">'
        + (f"lower bound {escaped(bar.low)}" if bar.low != MISSING else "")
        + (f'<span class="bound"><i>, </i>{escaped(bar.bound)}</span>' if bar.bound else "")
        + (f'<span class="brief">{"; " if bar.low != MISSING else ""}{escaped(bar.why)}</span>' if bar.why else "")
        + "</span></span></li>"
        for bar in view.bars
    ]
    return f'<ul class="bars" aria-label="Bars">{"".join(rows)}</ul>' if rows else ""


def first_screen(view: View) -> str:
    """Whose run this is, the answer, what is undecided, the few numbers, the bars and the warnings."""
    verdict = view.verdict
    mark = f"{STATUS_MARKS[verdict.status]} " if verdict.status else ""
    question = f"Can {view.candidate} stand in for {view.reference}?" if view.candidate else "Can it ship?"
    langs = listed(view.languages, most=1) if len(view.languages) == 1 else f"{len(view.languages)} languages"
    shown = " · ".join([f"Set: {view.set_label}", f"{count(view.queries('all'))} queries", langs]) if view.set else ""
    notes = "".join(f"<li>{escaped(note)}</li>" for note in tables.verdict_notes(view))
    if view.warnings:
        many = "One warning" if len(view.warnings) == 1 else f"{len(view.warnings)} warnings"
        notes += f'<li>{many} <a href="#warnings">below</a>.</li>'
    warnings = "".join(f"<p><b>Warning.</b> {escaped(text)}</p>" for text in view.warnings)
    return (
        f'<header><div class="run"><h1>{escaped(view.name)}</h1><span>{escaped(shown)}</span></div>'
        f'<section class="verdict {verdict.status}" aria-label="Verdict"><p class="question">{escaped(question)}</p>'
        f'<p class="answer"><b>{mark}{verdict.word}</b> <small>{escaped(verdict.sentence)}</small></p>'
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
        + "</section>"
        + _bars(view)
        + _tiles(view)
        + (f'<p class="note">{escaped(sure)}</p>' if (sure := tables.confidence_note(view)) else "")
        + (f'<div class="warning" id="warnings" role="note">{warnings}</div>' if warnings else "")
        + "</header>"
    )


def page(view: View) -> str:
    """The whole page."""
    bodies = [(key, title, lead, build(view)) for key, title, lead, build in SECTIONS]
    shown = [(key, title, lead, body) for key, title, lead, body in bodies if body]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _, _ in shown)
    sections = "".join(
        f'<section id="{key}"><h2>{title}</h2><p>{lead}</p>{body}</section>' for key, title, lead, body in shown
    )
    facts = "".join(f"<dt>{escaped(key)}</dt><dd>{escaped(text)}</dd>" for key, text in tables.provenance(view))
    body = (
        f"{first_screen(view)}<main>"
        + (f'<nav aria-label="Sections">{links}</nav>' if links else "")
        + sections
        + "</main>"
        + (f"<footer><dl>{facts}</dl></footer>" if facts else "")
    )
    return document(f"{view.name}: {view.verdict.word}", STYLE, body)
