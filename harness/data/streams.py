"""Logs as a recipe names them: their files, whether these have the columns, and a look at their first rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from harness.data.reading import (
    NAMED_PLACES,
    PREVIEW_LINES,
    BadLine,
    Reading,
    check_language,
    check_text,
    open_parquet,
    require_text,
)
from harness.data.records import UNKNOWN_LANGUAGE
from harness.data.shards import find_shards
from harness.recipe import StreamSettings
from harness.runtime.errors import InputError, Problem, gather_problems

HEAD = 100  # lines of a JSONL file that tell its columns
SAMPLE = 2_000  # texts of a file that a preview keeps


def stream_files(name: str, settings: StreamSettings) -> list[Path]:
    """The files of a stream, as ``find_shards`` finds them."""
    return find_shards(settings.path, f"data.streams.{name}.path")


def check_stream(name: str, settings: StreamSettings) -> list[Path]:
    """The files, after a look at footers and first lines: every column that is named is there, and there are rows.

    Raises:
        InputError: naming every file that lacks something, and what it has.
    """
    files, where = stream_files(name, settings), f"data.streams.{name}"
    named = {"query": settings.query, "positive": settings.positive, "context": settings.context}
    if settings.language != "lang" and settings.default_language is None:  # the usual name may be absent
        named["language"] = settings.language
    rows: list[bool] = []

    def look(path: Path) -> None:
        present, any_row = _columns_of(path)
        rows.append(any_row)
        missing = {key: column for key, column in named.items() if column and column not in present}
        if any_row and missing:
            raise InputError([
                Problem(f"no column {column!r}", where=str(path), got=", ".join(sorted(present)[:20]) or "no columns",
                        next=f"set {where}.{key} to the name that it has") for key, column in missing.items()
            ])  # fmt: skip

    gather_problems(*(lambda path=path: look(path) for path in files))
    if not any(rows):
        raise InputError(Problem("the stream has no row", where=f"{where}.path", got=f"{len(files)} empty files",
                                 next="name files with rows"))  # fmt: skip
    return files


def _columns_of(path: Path) -> tuple[set[str], bool]:
    """The columns of a file, and whether it has a row."""
    if path.suffix == ".parquet":
        with open_parquet(path) as file:
            return set(file.schema_arrow.names), file.metadata.num_rows > 0
    present: set[str] = set()
    head = list(islice(Reading().rows(path, ()), HEAD))
    for _, row in head:
        present |= set(row)
    return present, bool(head) or path.stat().st_size > 0


@dataclass
class Preview:
    """What the first rows of a stream's files promise.

    Args:
        rows: of all files, estimated where a file was not read to its end; duplicates are not looked for.
        languages: of the rows read.
        texts: language -> some of its queries.
    """

    rows: int = 0
    complete: bool = True
    bad: int = 0
    bytes: int = 0
    languages: Counter[str] = field(default_factory=Counter)
    texts: dict[str, list[str]] = field(default_factory=dict)


def preview(
    name: str, settings: StreamSettings, files: Sequence[Path], limit: int | None = PREVIEW_LINES, *,
    pairs: bool = False,
) -> Preview:  # fmt: skip
    """Read up to ``limit`` rows of each file; with ``pairs`` every row needs its positive, too.

    Raises:
        InputError: rows can't be used (unless ``skip_bad``), or none can; the first places are named.
    """
    reading, found = Reading(limit), Preview()
    for path in files:
        read, usable = _preview_file(path, settings, reading, found, pairs)
        count = reading.files[str(path)]
        found.rows += usable if count.complete else round(max(count.estimated, read) * usable / max(read, 1))
        found.bytes += path.stat().st_size
    found.complete, found.bad = reading.complete, reading.bad_count
    remedy = f"correct the file, or set data.streams.{name}.skip_bad: true"
    problems = [replace(problem, next=remedy) for problem in reading.problems()]
    if problems and (not settings.skip_bad or not found.rows):
        raise InputError(problems)
    return found


def _preview_file(
    path: Path, settings: StreamSettings, reading: Reading, found: Preview, pairs: bool
) -> tuple[int, int]:
    """Count a file's rows into ``found``; how many were read, and how many can be used. Judged as tokens are made."""
    columns = [name for name in (settings.query, settings.positive, settings.context, settings.language) if name]
    languages: Counter[str] = Counter()
    without: list[int] = []  # the first lines without a language
    read = 0
    for number, row in reading.rows(path, columns):
        read += 1
        try:
            text = require_text(row.get(settings.query), settings.query)
            if pairs and settings.positive:
                require_text(row.get(settings.positive), settings.positive)
            if settings.context:
                check_text(row.get(settings.context), settings.context)
            language = check_language(row.get(settings.language), settings.language)
        except BadLine as problem:
            reading.bad(path, number, problem)
            continue
        language = language or settings.default_language or ""
        if not language and len(without) < NAMED_PLACES:
            without.append(number)
        languages[language] += 1
        if len(found.texts.setdefault(language or UNKNOWN_LANGUAGE, [])) < SAMPLE:
            found.texts[language or UNKNOWN_LANGUAGE].append(text)
    if "" in languages and len(languages) > 1:  # all rows have a language, or none has
        missing = BadLine(f"no {settings.language}, which other lines of the file have")
        unnamed = languages.pop("") - len(without)
        for number in without:
            reading.bad(path, number, missing, 1 + (unnamed if number == without[0] else 0))
    for language, rows in languages.items():
        found.languages[language or UNKNOWN_LANGUAGE] += rows
    return read, sum(languages.values())
