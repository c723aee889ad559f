"""The queries on which candidate and reference differ most, side by side. Texts may be of any script and length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.evaluation.report.evidence import disagreements
from harness.evaluation.report.parts import folded
from harness.evaluation.report.svg import cut, escaped
from harness.evaluation.report.tables import Grid, Row, grid
from harness.evaluation.report.values import MISSING, clean, decimals, items
from harness.evaluation.report.view import View

HITS, OPEN, LONGEST = 5, 4, 300  # hits shown of each side, queries that are not folded, characters of a text


MARKS = {True: '<b class="yes" title="relevant">✓</b>', False: '<span class="no" title="not relevant">·</span>',
         None: '<span class="no" title="not judged">?</span>'}  # fmt: skip
LEGEND = "✓: relevant; ?: not judged."


def _hits(hits: object) -> str:
    rows = []
    for hit in items(hits)[:HITS]:
        good = hit.get("relevant") is True
        mark = MARKS[good if isinstance(hit.get("relevant"), bool) else None]
        text = cut(hit.get("text") or hit.get("id") or MISSING, LONGEST)
        kind = ' class="relevant"' if good else ""
        rows.append(f'<li{kind}>{mark}<span dir="auto">{escaped(text)}</span></li>')
    return f"<ol>{''.join(rows)}</ol>" if rows else '<p class="note">nothing found</p>'


def _card(view: View, entry: Mapping[str, Any]) -> str:
    about = " · ".join(filter(None, [clean(entry.get("language") or ""), cut(entry.get("id") or "", 60)]))
    metric = clean(entry.get("metric") or view.lead)
    sides = (
        (view.reference, decimals(entry.get("reference_score")), entry.get("reference_hits")),
        (view.candidate, decimals(entry.get("score")), entry.get("hits")),
    )
    columns = "".join(
        f"<div><h4>{escaped(name)} <span>{escaped(metric)} {score}</span></h4>{_hits(hits)}</div>"
        for name, score, hits in sides
    )
    return (
        f'<article class="pair"><h3 dir="auto">{escaped(cut(entry.get("query", ""), LONGEST)) or "(empty)"}</h3>'
        f'<p class="note">{escaped(about)}</p><div class="sides">{columns}</div></article>'
    )


def cards(view: View) -> str:
    """A card per query; the first few stand open."""
    drawn = [_card(view, entry) for entry in disagreements(view)]
    more = (
        folded(f"{len(drawn) - OPEN} more", f'<div class="pairs">{"".join(drawn[OPEN:])}</div>') if drawn[OPEN:] else ""
    )
    legend = f'<p class="note">{LEGEND}</p>'
    return f'<div class="pairs">{"".join(drawn[:OPEN])}</div>{more}{legend}' if drawn else ""


def _first(hits: object) -> str:
    found = items(hits)
    if not found:
        return MISSING
    judged = found[0].get("relevant")
    mark = "✓ " if judged is True else "" if judged is False else "? "
    return mark + cut(found[0].get("text") or found[0].get("id") or MISSING, 60)


def short_table(view: View) -> Grid | None:
    """The same in one table: the query and the first hit of each side."""
    rows = [
        Row([cut(entry.get("query", ""), 80), clean(entry.get("language") or ""), _first(entry.get("reference_hits")),
             decimals(entry.get("reference_score")), _first(entry.get("hits")), decimals(entry.get("score"))])
        for entry in disagreements(view)[:10]
    ]  # fmt: skip
    header = [
        "query",
        "language",
        f"first of {clean(view.reference)}",
        "score",
        f"first of {clean(view.candidate)}",
        "score",
    ]
    return grid("Where the two differ most", header, rows, LEGEND, left=(0, 1, 2, 4))
