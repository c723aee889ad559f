"""The report: results.json in, tables for the terminal, a Markdown file and one HTML page out.

Everything is told from the results alone; no model, index or vector is ever needed here.

    values.py      one value out of the file, and its text; view.py  what there is, the verdict, any number, or None
    tables.py      every table as plain text; evidence.py, costs.py  those behind the verdict, and their sentences
    terminal.py  markdown.py  page.py    the three renderings; sections.py, parts.py, style.py  what a page is made of
    plots.py  curves.py  disagree.py     what is drawn, with dots.py and svg.py
    runs.py  compare.py  compare_page.py     runs side by side
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.evaluation.report.view import View
from harness.runtime.process import atomic_file

if TYPE_CHECKING:
    from rich.table import Table


def write_report(results: Mapping[str, Any], folder: Path) -> None:
    """Write ``report.md`` and ``report.html`` (one self-contained file) into ``folder``.

    Args:
        results: the content of results.json; any part of it may be missing.
        folder: where both files go; it is made if need be.
    """
    from harness.evaluation.report.markdown import markdown
    from harness.evaluation.report.page import page

    view = View(results)
    for name, content in (("report.md", markdown(view)), ("report.html", page(view))):
        with atomic_file(folder / name, "w") as stream:
            stream.write(content)


def terminal_tables(results: Mapping[str, Any], width: int = 100) -> list[Table]:
    """The tables that end a run, readable at 100 columns: quality, recovery, gains, cost, bars, warnings."""
    from harness.evaluation.report.terminal import tables

    return tables(View(results), width)
