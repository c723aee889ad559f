"""The comparison of runs as a page, as Markdown, and as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.evaluation.report.compare import Comparison
from harness.evaluation.report.dots import ABREAST, Dot, whiskers
from harness.evaluation.report.markdown import as_html
from harness.evaluation.report.markdown import escaped as escaped_markdown
from harness.evaluation.report.markdown import table as markdown_table
from harness.evaluation.report.parts import NARROW, WIDE, document, table
from harness.evaluation.report.style import STYLE
from harness.evaluation.report.svg import cut, escaped
from harness.evaluation.report.terminal import rendered
from harness.evaluation.report.view import STATUS_MARKS
from harness.runtime.process import atomic_file

if TYPE_CHECKING:
    from rich.table import Table

PLOTTED = 24  # scopes in the plot; the table has all


def recovery_plot(told: Comparison, width: int) -> str | None:
    """Per scope a row for each run that can be held against the first."""
    dots = []
    for scope in told.scopes[:PLOTTED]:
        heading = {"macro": "mean over languages", "worst": "lowest language"}.get(scope, scope or "(none)")
        for run in told.runs:
            if run.reasons("recovery"):
                continue
            view = run.view
            few = scope in view.small
            found = view.recovery(view.candidate, scope, told.lead)
            kind = "few" if few else "base" if run is told.first else ""
            if found.value is not None:
                dots.append(Dot(cut(run.name, 28 if width > ABREAST else 14), found, kind, heading))
                heading = ""
    title = f"Recovery of {told.lead} by run"
    return whiskers(dots, width=width, reference=1.0, title=title)


def _tiles(told: Comparison) -> str:
    tiles = []
    for run in told.runs:
        verdict = run.view.verdict
        mark = f"{STATUS_MARKS[verdict.status]} " if verdict.status else ""
        kept = run.view.recovery(run.view.candidate, "macro", told.lead)
        tiles.append(
            f'<dl class="tile {verdict.status}"><dt>{escaped(run.name)}</dt>'
            f'<dd class="status">{mark}{escaped(verdict.word)}</dd>'
            f'<dd class="more">{escaped(told.lead)} kept: {escaped(kept.text(mark=run.view.mark))}</dd></dl>'
        )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def page(told: Comparison) -> str:
    """The whole page: no script, nothing loaded from elsewhere."""
    cautions = "".join(f"<p><b>Caution.</b> {escaped(text)}</p>" for text in told.cautions())
    narrow, wide = recovery_plot(told, NARROW), recovery_plot(told, WIDE)
    caption = (
        f"Recovery of {told.lead}, each run beside its own reference. Diamonds: {told.first.name}. "
        "A hollow mark: the interval holds 1."
    )
    plot = (
        f'<figure><div class="narrow">{narrow}</div><div class="wide">{wide}</div>'
        f"<figcaption>{escaped(caption)}</figcaption></figure>"
        if narrow and wide
        else ""
    )
    body = (
        f'<header><div class="run"><h1>Runs side by side</h1><span>{escaped(told.sentence())}</span></div>'
        f"{_tiles(told)}"
        + (f'<div class="warning" role="note">{cautions}</div>' if cautions else "")
        + f"</header><main>{plot}{''.join(table(grid) for grid in told.grids())}</main>"
    )
    return document(f"Runs side by side: {', '.join(told.names)}", STYLE, body)


def markdown(told: Comparison) -> str:
    """The same, short, for a pull request: the last tables are folded."""
    parts = ["## Runs side by side", escaped_markdown(told.sentence())]
    parts += [f"> **Caution:** {escaped_markdown(text)}" for text in told.cautions()]
    for place, grid in enumerate(told.grids()):
        if place < 3:
            parts.append(f"### {escaped_markdown(grid.title)}\n\n{markdown_table(grid)}")
        else:
            parts.append(f"<details><summary>{as_html(grid.title)}</summary>\n\n{markdown_table(grid)}\n\n</details>")
    return "\n\n".join(parts) + "\n"


def terminal_tables(told: Comparison, width: int = 110) -> list[Table]:
    """The tables for a terminal of ``width`` columns; cautions stand under the first."""
    grids = told.grids()
    if grids and told.cautions():
        grids[0] = replace(grids[0], note=" ".join(told.cautions()))
    return [table for grid in grids for table in rendered(grid, width)]


def write_comparison(told: Comparison, folder: Path) -> Sequence[Path]:
    """Write ``compare.html`` (one self-contained file) and ``compare.md`` into ``folder``."""
    paths = [folder / "compare.html", folder / "compare.md"]
    for path, content in zip(paths, (page(told), markdown(told)), strict=True):
        with atomic_file(path, "w") as stream:
            stream.write(content)
    return paths
