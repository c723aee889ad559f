"""The report as one HTML page: no script, nothing loaded from elsewhere, every text from data escaped."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.evaluation.report import plots, tables
from harness.evaluation.report.style import STYLE
from harness.evaluation.report.svg import escaped
from harness.evaluation.report.tables import Grid
from harness.evaluation.report.view import MISSING, STATUS_MARKS, View, count, decimals, listed

NARROW, WIDE = 328, 960  # widths of the two drawings of a plot: a phone of 360, a desktop
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def table(grid: Grid | None, titled: bool = True) -> str:
    """A table that scrolls in its own box, reachable by keyboard."""
    if grid is None:
        return ""
    side = [' class="left"' if column in grid.left else "" for column in range(len(grid.header))]
    head = "".join(f'<th scope="col"{side[i]}>{escaped(name)}</th>' for i, name in enumerate(grid.header))
    rows = []
    for row in grid.rows:
        cells = "".join(f"<td{side[i]}>{escaped(cell)}</td>" for i, cell in enumerate(row.cells[1:], start=1))
        kind = ' class="strong"' if row.strong else ""
        rows.append(f'<tr{kind}><th scope="row" class="left">{escaped(row.cells[0])}</th>{cells}</tr>')
    title = f'<h3 class="tabletitle">{escaped(grid.title)}</h3>' if titled else ""
    note = f'<p class="note">{escaped(grid.note)}</p>' if grid.note else ""
    return (
        f'<div>{title}<div class="box" role="region" tabindex="0" aria-label="{escaped(grid.title)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{note}</div>"
    )


def figure(view: View, draw: Callable[[View, int], str | None], caption: str) -> str:
    """A plot in two widths, of which the style sheet shows the one that fits."""
    narrow, wide = draw(view, NARROW), draw(view, WIDE)
    if narrow is None or wide is None:
        return ""
    return (
        f'<figure><div class="narrow">{narrow}</div><div class="wide">{wide}</div>'
        f"<figcaption>{escaped(caption)}</figcaption></figure>"
    )


def panels(drawn: Sequence[str], caption: str, kind: str = "") -> str:
    """Small drawings that flow."""
    if not drawn:
        return ""
    body = "".join(drawn)
    return f'<figure><div class="panels {kind}">{body}</div><figcaption>{escaped(caption)}</figcaption></figure>'


# ------------------------------------------------------------------------------------------------- the first screen


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
    least = view.recovery(ours, worst, view.lead) if worst is not None else None
    engine, origin = view.first_engine(ours), view.first_engine(theirs)
    fast, slow = view.latency(ours, engine, "p50_ms"), view.latency(theirs, origin, "p50_ms")
    rate, base = view.throughput(ours, engine), view.throughput(theirs, origin)
    tiles = [
        _tile(f"{view.lead} kept, mean over languages", decimals(mean.value), _bounds(view, mean.text())),
        _tile(f"Lowest language: {worst}", decimals(least.value), _bounds(view, least.text())) if least else "",
        _tile(f"{view.lead}, mean over languages", decimals(view.quality(ours, "macro", view.lead)),
              f"{theirs} {decimals(view.quality(theirs, 'macro', view.lead))}"),
        _tile("One query, p50", MISSING if fast is None else f"{fast:.2f} ms",
              f"{theirs} {slow:.2f} ms, {slow / fast:.1f}× as long" if fast and slow else ""),
        _tile("Queries per second", count(rate), f"{theirs} {count(base)}" if base else ""),
    ]  # fmt: skip
    return f'<div class="tiles">{"".join(tiles)}</div>' if any(tiles) else ""


def _bounds(view: View, text: str) -> str:
    """The bracket of an interval, as text of its own."""
    return text[text.index("[") :] + view.mark if "[" in text else ""


def _bars(view: View) -> str:
    rows = [
        f'<li class="{bar.status}"><span class="status">{STATUS_MARKS[bar.status]} {bar.status}</span>'
        f'<span class="what">{escaped(bar.what)}</span>'
        f'<span class="numbers"><b>{escaped(bar.value)}</b>'
        + (f" <span>lower bound {escaped(bar.low)}</span>" if bar.low != MISSING else "")
        + "</span></li>"
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
    warnings = "".join(f"<p><b>Warning.</b> {escaped(text)}</p>" for text in view.warnings)
    return (
        f'<header><div class="run"><h1>{escaped(view.name)}</h1><span>{escaped(shown)}</span></div>'
        f'<section class="verdict {verdict.status}" aria-label="Verdict"><p class="question">{escaped(question)}</p>'
        f'<p class="answer"><b>{mark}{verdict.word}</b> <small>{escaped(verdict.sentence)}</small></p>'
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
        + "</section>"
        + (f'<div class="warning" role="note">{warnings}</div>' if warnings else "")
        + _bars(view)
        + _tiles(view)
        + "</header>"
    )


# ------------------------------------------------------------------------------------------------------ the sections


def _kept(view: View) -> str:
    caption = (
        f"Recovery of {view.lead}: {view.candidate} divided by {view.reference}, with paired bootstrap intervals. "
        "A hollow mark: the interval holds 1, so the two can't be told apart. Diamonds: the mean over languages and "
        "the lowest of them. Dashed line: as good as the reference; dotted line: the bar."
    )
    note = tables.language_note(view)
    return (
        (f"<p>{escaped(note)}</p>" if note else "")
        + figure(view, plots.recovery, caption)
        + table(tables.recovery(view))
        + table(tables.recovery_of_all_metrics(view))
    )


def _paid(view: View) -> str:
    caption = (
        f"Macro {view.lead} against the encoder's latency for one query; up and to the left is better. The line runs "
        "from p50 to p99. Systems that were not timed are left out."
    )
    return (
        figure(view, plots.quality_and_latency, caption)
        + table(tables.cost(view))
        + table(tables.latency_by_language(view))
        + table(tables.parity(view))
        + table(tables.hand_over(view))
    )


def _stages(view: View) -> str:
    caption = f"{view.lead} of the student after each stage. Dashed line: {view.reference}. All panels share one scale."
    won = (
        f"Paired difference in {view.lead} of each stage over the one before it. "
        "A hollow mark: the interval holds 0, so it is undecided."
    )
    return panels(plots.stages(view), caption) + figure(view, plots.gains, won) + table(tables.gains(view))


def _all(view: View) -> str:
    others = [metric for metric in (*view.metrics, *tables.AGREEMENT) if metric != view.lead]
    each = "".join(table(tables.by_language(view, metric)) for metric in others)
    return (
        table(tables.macro(view))
        + table(tables.by_language(view, view.lead))
        + (f'<div class="tables">{each}</div>' if each else "")
    )


def _training(view: View) -> str:
    caption = "The metric that checkpoints are chosen by, and the loss, by step. " + tables.training_note(view)
    return panels(plots.training(view), caption.strip(), "large")


def _about(view: View) -> str:
    return table(tables.systems(view)) + table(tables.sets(view))


SECTIONS: tuple[tuple[str, str, str, Callable[[View], str]], ...] = (
    ("kept", "What is kept", "How much of the reference's precision the student keeps, language by language.", _kept),
    ("cost", "What it costs", "Quality beside the time that one query takes in the encoder.", _paid),
    ("stages", "What each stage did", "From the untrained student to the refined one.", _stages),
    ("quality", "All metrics", "Every system in every language.", _all),
    ("training", "How training went", "A curve that still rises at its end was stopped early.", _training),
    ("about", "Systems and sets", "What was compared, and on what.", _about),
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
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escaped(view.name)}: {escaped(view.verdict.word)}</title><style>{STYLE}</style></head><body>"
        f"{first_screen(view)}<main>"
        + (f'<nav aria-label="Sections">{links}</nav>' if links else "")
        + sections
        + "</main>"
        + (f"<footer><dl>{facts}</dl></footer>" if facts else "")
        + "</body></html>\n"
    )
