"""The page's building blocks: tables, figures, small multiples, folded parts. Every text from data is escaped here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.evaluation.report.svg import escaped
from harness.evaluation.report.tables import Grid, Row
from harness.evaluation.report.view import STATUS_MARKS, View

NARROW, WIDE = 328, 960  # widths of the two drawings of a plot: a phone of 360, a desktop
MANY_COLUMNS = 12  # of a table; more stand closer together


def table(grid: Grid | None, titled: bool = True) -> str:
    """A table that scrolls in its own box, reachable by keyboard."""
    if grid is None:
        return ""
    side = [' class="left"' if column in grid.left else "" for column in range(len(grid.header))]
    head = "".join(f'<th scope="col"{side[i]}>{escaped(name)}</th>' for i, name in enumerate(grid.header))
    rows = []
    for row in grid.rows:
        cells = "".join(_cell(cell, column in grid.left, row) for column, cell in enumerate(row.cells[1:], start=1))
        kinds = " ".join(filter(None, ["strong" if row.strong else "", row.status or ""]))
        kind = f' class="{kinds}"' if kinds else ""
        rows.append(f'<tr{kind}><th scope="row" class="left">{escaped(row.cells[0])}</th>{cells}</tr>')
    title = f'<h3 class="tabletitle">{escaped(grid.title)}</h3>' if titled else ""
    note = f'<p class="note">{escaped(grid.note)}</p>' if grid.note else ""
    dense = ' class="dense"' if len(grid.header) > MANY_COLUMNS else ""
    return (
        f'<div>{title}<div class="box" role="region" tabindex="0" aria-label="{escaped(grid.title)}"><table{dense}>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{note}</div>"
    )


def _cell(text: str, left: bool, row: Row) -> str:
    """A cell; one that begins with a status's mark shows its colour."""
    told = "told" if row.status and text[:1] in STATUS_MARKS.values() else ""
    kinds = " ".join(filter(None, ["left" if left else "", told]))
    return f"<td{f' class={chr(34)}{kinds}{chr(34)}' if kinds else ''}>{escaped(text)}</td>"


def folded_table(grid: Grid | None) -> str:
    """A table behind its title; printing opens it."""
    return folded(grid.title, table(grid, titled=False)) if grid is not None else ""


def folded(title: str, body: str) -> str:
    """Markup behind a title."""
    return f"<details><summary>{escaped(title)}</summary>{body}</details>" if body else ""


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


def sentences(texts: Sequence[str]) -> str:
    """A paragraph per text."""
    return "".join(f"<p>{escaped(text)}</p>" for text in texts if text)


def document(title: str, style: str, body: str) -> str:
    """A whole page: no script may run in it, and nothing is loaded from elsewhere."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escaped(title)}</title><style>{style}</style></head><body>{body}</body></html>\n"
    )
