"""The report's tables for a terminal of 80 columns or more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rich import box
from rich.table import Table
from rich.text import Text

from harness.evaluation.report import tables as plain
from harness.evaluation.report.tables import Grid, Row
from harness.evaluation.report.values import MISSING, clean, count, decimals
from harness.evaluation.report.view import View

METRICS = ("P@1", "P@10", "nDCG@10", "MRR@10")
STYLES = {"reached": "green", "missed": "red", "undecided": "yellow"}
INTERVAL_WIDTH = 22
LEAST_WIDTH = 17


def rendered(grid: Grid) -> Table:
    """A grid as a rich table; cells are texts, so that nothing in the data is read as markup."""
    table = Table(
        title=Text("\n" + grid.title, style="bold"),
        title_justify="left",
        caption=Text(grid.note) if grid.note else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
        header_style="",
        show_header=any(grid.header),
    )
    for column, name in enumerate(grid.header):
        left = column in grid.left
        longest = max((len(word) for row in grid.rows for word in row.cells[column].split()), default=0)
        least = min(max(longest, len(name)), LEAST_WIDTH) if left else None  # a name is not broken into letters
        table.add_column(
            Text(name), justify="left" if left else "right", overflow="fold", no_wrap=not left, min_width=least
        )
    for index, row in enumerate(grid.rows):
        if index in grid.starts:
            table.add_section()
        style = STYLES[row.status] if row.status else "bold" if row.strong else ""
        table.add_row(*(Text(cell) for cell in row.cells), style=style)
    return table


def _portions(view: View, width: int) -> Iterator[list[str]]:
    """The languages in portions whose columns fit beside the metric's and system's names."""
    room = width - 20 - max((len(clean(name)) for name in view.systems), default=0)
    portion: list[str] = []
    used = 0
    for language in view.languages:
        wanted = 2 + max(5, len(clean(language)))
        if portion and used + wanted > room:
            yield portion
            portion, used = [], 0
        portion.append(language)
        used += wanted
    yield portion


def quality(view: View, width: int) -> Iterator[Grid]:
    """Rows: systems under each metric; columns: macro and the languages, in several tables where they are many."""
    metrics = [metric for metric in METRICS if metric in view.metrics] or view.metrics[:4]
    for languages in _portions(view, width) if view.systems else ():
        scopes = ["macro", *languages]
        rows: list[Row] = []
        starts = set()
        for metric in metrics:
            starts.add(len(rows))
            for index, name in enumerate(view.systems):
                values = [decimals(view.quality(name, scope, metric)) for scope in scopes]
                rows.append(Row(["" if index else clean(metric), clean(name), *values], name == view.candidate))
        starts.add(len(rows))
        rows.append(Row(["queries", "", *(count(view.queries(scope)) for scope in scopes)]))
        title = f"Quality on {view.set_label}"
        header = ["", "", *(clean(scope) or "(none)" for scope in scopes)]
        if any(cell != MISSING for row in rows for cell in row.cells[2:]):
            yield Grid(title, header, rows, left=frozenset({0, 1}), starts=frozenset(starts))


def _gains(view: View) -> Grid | None:
    grid = plain.gains(view)
    if grid is None:
        return None
    rows = [Row([systems or step, *rest], row.strong) for row in grid.rows for step, systems, *rest in [row.cells]]
    return Grid(grid.title, ["", *grid.header[2:]], rows, grid.note, frozenset({0, 1, 3}))


def _cost(view: View) -> Grid | None:
    """The cost without its least needed columns."""
    grid = plain.cost(view)
    if grid is None:
        return None
    kept = [i for i, name in enumerate(grid.header) if name not in ("tokeniser p50", "p90 ms", "whole p90")]
    rows = [Row([row.cells[i] for i in kept], row.strong) for row in grid.rows]
    return Grid(grid.title, [grid.header[i] for i in kept], rows, grid.note, grid.left)


def _bars(view: View) -> Grid | None:
    """The bars under the verdict."""
    grid = plain.bars(view)
    verdict = f"Can {clean(view.candidate)} ship? {view.verdict.word}. {view.verdict.sentence}"
    return replace(grid, title=verdict) if grid else None


def tables(view: View, width: int) -> list[Table]:
    """Quality, recovery, gains, cost, bars, warnings: those for which there is something to show."""
    shown = view.compared[: (width - 30) // INTERVAL_WIDTH]  # beside the language and the overlap
    warnings = [Row([text]) for text in view.warnings]
    grids = [
        *quality(view, width),
        plain.recovery(view, shown),
        plain.recovery_of_all_metrics(view, shown),
        _gains(view),
        _cost(view),
        _bars(view),
        Grid("Warnings", [""], warnings) if warnings else None,
    ]
    return [rendered(grid) for grid in grids if grid is not None]
