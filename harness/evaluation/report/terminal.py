"""The report's tables for a terminal of 80 columns or more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from harness.evaluation.report import tables as plain
from harness.evaluation.report.tables import Grid, Row
from harness.evaluation.report.values import MISSING, clean, count, decimals
from harness.evaluation.report.view import View

METRICS = ("P@1", "P@10", "nDCG@10", "MRR@10")
STYLES = {"reached": "green", "missed": "red", "undecided": "yellow"}
LEAST_WIDTH = 17
GAP = 2  # between two columns


def rendered(grid: Grid, width: int) -> list[Table]:
    """A grid as rich tables of ``width`` columns at most; cells are texts, so that no data is read as markup.

    What does not fit beside each other stands below, the columns that name the rows again before it. Numbers are whole
    in their line unless a single column of them does not fit; nothing is cut.
    """
    return [_table(part, _widths(part, width)) for part in _parts(grid, width)]


def _spans(grid: Grid) -> list[tuple[int, int]]:
    """Of each column: how wide it must be at least (texts may be broken, numbers not), and how wide it would be."""
    spans = []
    for column, name in enumerate(grid.header):
        cells = [row.cells[column] for row in grid.rows]
        words = [name, *cells] if column in grid.left else [name]
        least = min(max((cell_len(word) for text in words for word in text.split()), default=0), LEAST_WIDTH)
        longest = max(map(cell_len, cells), default=0)
        spans.append((least if column in grid.left else max(least, longest), max(longest, cell_len(name), 1)))
    return spans


def _parts(grid: Grid, width: int) -> list[Grid]:
    """A grid whose columns do not fit into ``width``, as several that do."""
    least = [span[0] for span in _spans(grid)]
    texts = next((column for column in range(len(least)) if column not in grid.left), 1)  # these name the rows
    keys = list(range(texts))
    room = width - sum(least[:texts]) - GAP * texts
    portions = _filled(least, texts, room, len(least))
    if len(portions) == 1:
        return [grid]
    even = _filled(least, texts, room, -(-(len(least) - texts) // len(portions)))
    portions = even if len(even) == len(portions) else portions
    parts = []
    for place, taken in enumerate(portions, 1):
        kept = [*keys, *taken]
        rows = [replace(row, cells=[row.cells[column] for column in kept]) for row in grid.rows]
        left = frozenset(at for at, column in enumerate(kept) if column in grid.left)
        parts.append(Grid(f"{grid.title} ({place} of {len(portions)})", [grid.header[column] for column in kept], rows,
                          grid.note if place == len(portions) else "", left, grid.starts))  # fmt: skip
    return parts


def _filled(least: Sequence[int], start: int, room: int, most: int) -> list[list[int]]:
    """The columns from ``start`` on in portions that fit into ``room``, of one column at least and ``most`` at most."""
    portions: list[list[int]] = [[]]
    for column in range(start, len(least)):
        taken = portions[-1]
        wide = sum(least[at] for at in taken) + GAP * len(taken) + least[column]
        if taken and (wide > room or len(taken) == most):
            portions.append([])
        portions[-1].append(column)
    return portions


def _widths(grid: Grid, width: int) -> list[int]:
    """How wide each column is: as it would be where there is room, else what is left goes to those that want least."""
    spans = _spans(grid)
    room = width - GAP * (len(spans) - 1)
    given = [least for least, _ in spans]
    while sum(given) > room and max(given) > 1:  # one column of numbers is too wide: break what is longest
        given[given.index(max(given))] -= 1
    spare = max(0, room - sum(given))
    wishes = sorted((wanted - given[column], column) for column, (_, wanted) in enumerate(spans))
    for place, (wish, column) in enumerate(wishes):
        more = max(0, min(wish, spare // (len(wishes) - place)))
        given[column] += more
        spare -= more
    return [max(1, wide) for wide in given]


def _table(grid: Grid, widths: Sequence[int]) -> Table:
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
        table.add_column(
            Text(name), justify="left" if column in grid.left else "right", overflow="fold", width=widths[column]
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
    """The bars under the verdict, which stands alone where there are none."""
    grid, verdict = plain.bars(view), view.verdict
    question = f"Can {clean(view.candidate)} ship? {verdict.word}."
    if grid is None:
        return Grid(question, [""], [Row([verdict.sentence])]) if view.systems else None
    return replace(grid, title=f"{question} {verdict.sentence}")


def tables(view: View, width: int) -> list[Table]:
    """Quality, recovery, gains, cost, bars, warnings: those for which there is something to show."""
    warnings = [Row([text]) for text in view.warnings]
    grids = [
        *quality(view, width),
        plain.recovery(view),
        plain.recovery_of_all_metrics(view),
        _gains(view),
        _cost(view),
        _bars(view),
        Grid("Warnings", [""], warnings) if warnings else None,
    ]
    return [table for grid in grids if grid is not None for table in rendered(grid, width)]
