"""Streams before anything is done with them: files, columns, rows, and the room they will take. Imports no torch."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from rich.table import Table
from rich.text import Text

from harness.data.reading import PREVIEW_LINES, parquet_length
from harness.data.streams import Preview, check_stream, preview, stream_files
from harness.pipeline.machine import free_disk
from harness.recipe import Recipe
from harness.runtime.errors import InputError, gather_problems
from harness.vectors.codec import row_bytes

FIRST_LOOK = 5_000_000  # rows of a stream that a run reads before any work: some ten seconds
SOME = 1_000  # rows of each file that are read in any case
HEAD = 1_000  # lines of a JSONL file whose mean length is taken
LARGE = 1e12  # bytes of vectors that are worth a thought
SHARE = 0.5  # of the free disk, likewise
BESIDE_TOKENS = 8 + 8 + 4 + 4  # bytes of a row in a token cache: offset, key, places in the source and its language
SMALLER = (1024, 512, 256)  # dimensions that are named where the vectors are large


def check_streams(recipe: Recipe) -> None:
    """Refuse, before any row is read, streams whose files or columns are not there, or that have no row.

    Raises:
        InputError: everything that is wrong with all of them.
    """
    gather_problems(*(functools.partial(check_stream, name, stream) for name, stream in recipe.data.streams.items()))


def preview_streams(recipe: Recipe, *, full: bool = False, most: int | None = None) -> dict[str, Preview]:
    """The first million rows of each file, or all; at ``most`` so many of a stream's files together, and some of each.

    Raises:
        InputError: rows that can't be used, where ``skip_bad`` does not leave them out.
    """
    found: dict[str, Preview] = {}

    def look(name: str) -> None:
        stream = recipe.data.streams[name]
        files = stream_files(name, stream)
        limit = PREVIEW_LINES if most is None else min(PREVIEW_LINES, max(SOME, most // len(files)))
        pairs = name in recipe.teacher.streams
        found[name] = preview(name, stream, files, None if full else limit, pairs=pairs)

    gather_problems(*(functools.partial(look, name) for name in recipe.data.streams))
    return found


def stream_table(previews: Mapping[str, Preview]) -> Table:
    """Rows of each stream and language."""
    table = Table(title="streams (duplicates not yet left out)")
    table.add_column("stream")
    table.add_column("language")
    for column in ("rows", "unusable"):
        table.add_column(column, justify="right")
    for name, told in previews.items():
        about = "" if told.complete else "about "
        table.add_row(Text(name), "all", f"{about}{told.rows:,}", f"{told.bad:,}" if told.bad else "")
        read = sum(told.languages.values())
        for language, rows in sorted(told.languages.items()):
            table.add_row("", Text(language), f"{about}{round(told.rows * rows / max(read, 1)):,}", "")
    return table


# -------------------------------------------------------------------------------------------------- how much there is


def estimated_rows(recipe: Recipe, names: Sequence[str]) -> dict[str, float]:
    """Rows of each stream, from Parquet's footers and the length of JSONL's first lines; 0 where none can be told."""
    found = {}
    for name in names:
        try:
            files = [(path, path.stat()) for path in stream_files(name, recipe.data.streams[name])]
            found[name] = sum(_rows_of(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in files)
        except (InputError, OSError):  # told by check_streams
            found[name] = 0.0
    return found


@functools.lru_cache(maxsize=2**16)
def _rows_of(name: str, size: int, changed_ns: int) -> float:
    """Rows of a file as it is with this size and time."""
    path = Path(name)
    if path.suffix == ".parquet":
        return float(parquet_length(path))
    with open(path, "rb") as stream:
        head = [len(line) for line in islice(stream, HEAD)]
    return size / (sum(head) / len(head)) if head else 0.0


def vector_bytes(rows: float, dimension: int, dtype: str) -> float:
    """What so many vectors take on the disk."""
    return rows * row_bytes(dtype, dimension)


def stream_disk(recipe: Recipe, step: str, dimension: int, tokens: Mapping[str, float]) -> dict[str, float]:
    """What a step that reads streams writes, in bytes, if no row is a duplicate; ``tokens``: mean of a text's."""
    align = recipe.align
    names = recipe.teacher.streams if step == "teacher.streams" else align.streams if align else []
    rows = sum(estimated_rows(recipe, names).values())
    width = 4.0  # of a token id, where the vocabulary is above 65,536; no more than twice too much
    query = rows * (tokens.get("query", 0) * width + BESIDE_TOKENS)
    if step == "teacher.streams":
        return {"tokens": query + rows * (tokens.get("document", 0) * width + 16)}
    if align is not None and align.targets == "online":
        return {"tokens": 2 * query}
    return {"tokens": query, "vectors": vector_bytes(rows, dimension, recipe.embed.stream_dtype)}


def advice(recipe: Recipe, rows: float, dimension: int, free: float) -> str | None:
    """What to do where the stored vectors of the alignment's streams would be large; None where they are not.

    Args:
        rows: of all streams, as far as it is known.
        dimension: of the teacher's vectors.
        free: bytes on the disk.
    """
    from harness.pipeline.needs import size_text

    dtype = recipe.embed.stream_dtype
    stored = vector_bytes(rows, dimension, dtype)
    if recipe.align is None or recipe.align.targets == "online" or stored <= min(LARGE, SHARE * free):
        return None
    sizes = [size for size in SMALLER if size < dimension]
    smaller = ", ".join(f"{size} ({size_text(vector_bytes(rows, size, dtype))})" for size in sizes)
    cut = f"cut the teacher with teacher.dimension: {smaller}, if it is a Matryoshka model; or " if smaller else ""
    return (f"stored vectors of streams take {size_text(stored)}: {rows:,.0f} queries x {dimension:,} dimensions x "
            f"{dtype}, and {size_text(free)} are free; {cut}set align.targets: online, which stores none and runs the "
            "teacher beside the student in every step")  # fmt: skip


def stream_advice(recipe: Recipe, dimension: int, place: Path) -> str | None:
    """``advice`` for a run that writes to ``place``."""
    if recipe.align is None or not recipe.align.streams:
        return None
    return advice(recipe, sum(estimated_rows(recipe, recipe.align.streams).values()), dimension, free_disk(place))
