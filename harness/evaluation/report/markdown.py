"""The report as Markdown, for a pull request: what text it holds can't become markup or a link."""

from __future__ import annotations

import html
import re

from harness.evaluation.report import tables
from harness.evaluation.report.tables import Grid
from harness.evaluation.report.view import View, clean


def escaped(text: str) -> str:
    """``text`` so that Markdown and the HTML within it show it as it is, in a table cell too."""
    return re.sub(r"([\\`*_|~]|(?<=\])[(\[])", r"\\\1", html.escape(clean(text), quote=False))


def table(grid: Grid) -> str:
    """One table in GitHub's Markdown, its title and note around it."""
    rule = [":--" if column in grid.left else "--:" for column in range(len(grid.header))]
    lines = [[escaped(cell) for cell in grid.header], rule]
    for row in grid.rows:
        cells = [escaped(cell) for cell in row.cells]
        lines.append([f"**{cell}**" if cell else "" for cell in cells] if row.strong else cells)
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return body + (f"\n\n{escaped(grid.note)}" if grid.note else "")


def _section(grid: Grid | None, folded: bool = False) -> str:
    if grid is None:
        return ""
    if folded:
        return f"<details><summary>{html.escape(grid.title)}</summary>\n\n{table(grid)}\n\n</details>"
    return f"### {escaped(grid.title)}\n\n{table(grid)}"


def markdown(view: View) -> str:
    """The whole report: verdict, bars, warnings, then every table, the longer ones folded."""
    verdict, lead = view.verdict, tables.by_language(view, view.lead)
    question = f"Can {escaped(view.candidate)} ship?" if view.candidate else "Can it ship?"
    others = [metric for metric in (*view.metrics, *tables.AGREEMENT) if metric != view.lead]
    facts = "; ".join(f"{escaped(key)}: {escaped(text)}" for key, text in tables.provenance(view))
    parts = [
        f"## {escaped(view.name)}",
        f"**{question} {verdict.word}.** {verdict.sentence} "
        f"Set: {escaped(view.set_label)}; reference: {escaped(view.reference)}.",
        "\n".join(f"- {escaped(note)}" for note in tables.verdict_notes(view)),
        "\n".join(f"> **Warning:** {escaped(text)}\n>" for text in view.warnings),
        _section(tables.bars(view)),
        _section(tables.recovery(view)),
        _section(tables.macro(view)),
        _section(lead),
        *(_section(tables.by_language(view, metric), folded=True) for metric in others),
        _section(tables.recovery_of_all_metrics(view), folded=True),
        _section(tables.gains(view)),
        _section(tables.parity(view)),
        _section(tables.hand_over(view)),
        _section(tables.cost(view)),
        _section(tables.latency_by_language(view), folded=True),
        _section(tables.systems(view), folded=True),
        _section(tables.sets(view), folded=True),
        f"<sub>{facts}</sub>" if facts else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
