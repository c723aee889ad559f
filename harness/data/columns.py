"""Columns of the queries that an evaluation is sliced by (``evaluate.slices``), read again from where the data is from.

No model depends on them, so they are no part of the prepared data: a recipe that names another column trains nothing.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.data.beir import find_beir
from harness.data.emoji import make_emoji
from harness.data.hub import hub_rows
from harness.data.pairs import column_names, query_id
from harness.data.reading import PREVIEW_LINES, Reading, find_files, open_parquet
from harness.data.records import UNKNOWN_LANGUAGE
from harness.recipe import DataSettings, QrelsNames
from harness.runtime.errors import InputError, Problem

Value = str | int | float
Column = dict[str, Value]  # query id -> value, where the query has one
Row = tuple[str, Mapping[str, Any]]

MOST_VALUES = 50  # of a column of texts; numbers are put into classes
_METADATA = "metadata"  # the field of a BEIR line whose keys count as columns, too


def read_columns(
    settings: DataSettings, names: Sequence[str], wanted: Collection[str], *, full: bool = True
) -> dict[str, Column]:
    """Column -> query id -> value, of the queries ``wanted``; of a query that stands on several lines, the first value.

    A column is a field of the query's line or a key of its ``metadata``: a text, a number, or true or false (which
    become texts). A value that is missing or blank is left out.

    Args:
        full: ``False`` reads the first million lines of each file, and misses no column that may stand further down.

    Raises:
        InputError: no query wanted has such a column (those that there are are named); a value is of another kind; a
            column holds more than ``MOST_VALUES`` different texts.
    """
    reading = Reading(None if full else PREVIEW_LINES)
    found: dict[str, Column] = {name: {} for name in names}
    strange: dict[str, Any] = {}
    present: dict[str, None] = {}
    for id_, fields in _rows(settings, names, reading, present):
        present |= dict.fromkeys(fields)
        if id_ not in wanted:
            continue
        for name in names:
            value = _plain(fields.get(name))
            if isinstance(value, Value):
                found[name].setdefault(id_, value)
            elif value is not None:
                strange.setdefault(name, value)
    problems = [_unknown(name, present) for name in names if name not in present and reading.complete]
    problems += [
        Problem(f"column {name!r} holds what is no text, no number and neither true nor false", where="evaluate.slices",
                got=repr(value)[:60], next="name another column, or write single values")
        for name, value in strange.items()
    ]  # fmt: skip
    problems += [problem for name, column in found.items() if (problem := _too_many(name, column))]
    if problems:
        raise InputError(problems)
    return found


def _unknown(name: str, present: Collection[str]) -> Problem:
    return Problem("no query has this column", where="evaluate.slices", got=name,
                   allowed=", ".join(sorted(present)[:40]) or "none: the queries have no columns",
                   next="correct the name, or take it out")  # fmt: skip


def _too_many(name: str, column: Column) -> Problem | None:
    different = set(column.values())
    if len(different) <= MOST_VALUES or are_numbers(different):
        return None
    return Problem(f"column {name!r} holds too many different texts to slice by", where="evaluate.slices",
                   got=f"{len(different):,}, such as {', '.join(sorted(map(str, different))[:3])}",
                   allowed=f"at most {MOST_VALUES}, or numbers, which are put into classes",
                   next="name a coarser column")  # fmt: skip


def are_numbers(values: Collection[Value]) -> bool:
    """Whether all of them are numbers."""
    return all(isinstance(value, int | float) for value in values)


def _plain(value: Any) -> Any:
    """A text without whitespace around it and line breaks inside, a finite number, None for none; or what it is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return " ".join(value.split()) or None
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ------------------------------------------------------------------------------------------------ where they stand


def _rows(
    settings: DataSettings, names: Sequence[str], reading: Reading, present: dict[str, None]
) -> Iterator[Row]:
    """Each line of a query: its id and its fields; ``present`` gains columns that are there and not read."""
    if settings.source == "emoji":
        with tempfile.TemporaryDirectory() as temporary:
            make_emoji(Path(temporary) / "emoji", settings.languages)
            yield from _folder_rows(Path(temporary) / "emoji", QrelsNames(), reading)
    elif settings.source == "beir":
        assert isinstance(settings.path, str), "the recipe's validation asks for one path"
        yield from _folder_rows(Path(settings.path), settings.qrels, reading)
    else:
        yield from _pair_rows(settings, names, reading, present)


def _folder_rows(folder: Path, qrels: QrelsNames, reading: Reading) -> Iterator[Row]:
    files, problems = find_beir(folder, qrels)
    if problems:
        raise InputError(problems)
    for _, value in reading.objects(files["queries"]):
        fields = _fields(value, ("_id", "text"))
        yield str(value.get("_id")), fields


def _pair_rows(
    settings: DataSettings, names: Sequence[str], reading: Reading, present: dict[str, None]
) -> Iterator[Row]:
    columns = column_names(settings)
    query, language = columns["query"], columns["language"]
    texts = (query, columns["positive"], columns["negatives"])
    for rows in _pair_files(settings, [query, language, _METADATA, *names], reading, present):
        for _, value in rows:
            text, spoken = value.get(query), value.get(language)
            if isinstance(text, str):
                known = spoken.strip() if isinstance(spoken, str) else ""
                yield query_id(known or UNKNOWN_LANGUAGE, text.strip()), _fields(value, texts)


def _pair_files(
    settings: DataSettings, wanted: Sequence[str], reading: Reading, present: dict[str, None]
) -> Iterator[Iterator[tuple[int, dict[str, Any]]]]:
    if settings.source == "huggingface":
        yield hub_rows(settings, column_names(settings), reading)[1]
    for key in ("path", "dev_path"):
        for path in find_files(getattr(settings, key) or [], f"data.{key}"):
            if path.suffix == ".parquet":  # of which only the columns wanted are read
                with open_parquet(path) as file:
                    present |= dict.fromkeys(file.schema_arrow.names)
            yield reading.rows(path, wanted)


def _fields(value: Mapping[str, Any], texts: Collection[str]) -> dict[str, Any]:
    """What a line holds besides its texts, the keys of ``metadata`` among it."""
    inside = value.get(_METADATA)
    own = {name: field for name, field in value.items() if name not in texts}
    if isinstance(inside, dict):
        own = {**inside, **{name: field for name, field in own.items() if name != _METADATA}}
    return own
