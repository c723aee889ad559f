"""Pairs: (query, positive, negatives, lang, score, weight, group) from JSONL, Parquet or a Hugging Face data set.

Equal queries of a language are one query, whose context is the first that is given; equal document texts are one
document. Ids are made from the text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.data.hub import hub_rows
from harness.data.reading import (
    BadLine,
    LanguageColumn,
    Reading,
    check_groups,
    check_label,
    check_language,
    check_number,
    check_text,
    find_files,
    group_fields,
    require_text,
)
from harness.data.records import Documents
from harness.data.source import Judgments, Queries, Source
from harness.recipe import Columns, DataSettings

Rows = Iterator[tuple[int, dict[str, Any]]]


class _Pair(NamedTuple):
    query: str
    positives: list[str]
    negatives: list[str]
    score: float
    weight: float
    group: str
    parallel: str
    key: str
    context: str


def read_pairs(settings: DataSettings, reading: Reading) -> Source:
    """Read ``data.path`` (or the data set ``data.dataset``) as training pairs and ``data.dev_path``, if given, as dev.

    Raises:
        InputError: a file can't be found or read; the data set can't be reached.
    """
    columns = column_names(settings)
    wanted = [*filter(None, columns.values())]
    collector = _Collector(per_language=settings.search_within == "lang")
    if settings.source == "huggingface":
        parts: list[tuple[str, str, Rows]] = [("train", *hub_rows(settings, columns, reading))]
    else:
        assert settings.path is not None, "the recipe's validation asks for a path"
        parts = _file_parts("train", settings.path, "data.path", wanted, reading)
    if settings.dev_path is not None:
        parts += _file_parts("dev", settings.dev_path, "data.dev_path", wanted, reading)
    for split, name, rows in parts:
        pairs, languages = _parse(rows, columns, name, reading)
        dropped = languages.settle(reading, name)
        for row, (pair, language) in enumerate(zip(pairs, languages.values, strict=True)):
            if row not in dropped:
                collector.add(split, pair, language)
    return collector.source()


def column_names(settings: DataSettings) -> dict[str, str]:
    """Part of a pair -> the name of its column, "" where it has none; ``key`` is ``data.equivalent``."""
    names = settings.columns.model_dump()
    names["group"], names["parallel"] = group_fields(settings, names["group"])
    others = [name for part, name in names.items() if part != "context"]
    names["context"] = "" if names["context"] in others else names["context"] or ""
    return {**names, "key": settings.equivalent or ""}


def _file_parts(
    split: str, paths: str | list[str], key: str, columns: Sequence[str], reading: Reading
) -> list[tuple[str, str, Rows]]:
    return [(split, str(path), reading.rows(path, columns)) for path in find_files(paths, key)]


def _parse(rows: Rows, columns: dict[str, str], name: str, reading: Reading) -> tuple[list[_Pair], LanguageColumn]:
    pairs, languages = [], LanguageColumn()
    for line, value in rows:
        try:
            pair = _pair(value, columns)
            language = check_language(value.get(columns["language"]), columns["language"])
        except BadLine as problem:
            reading.bad(name, line, problem)
            continue
        pairs.append(pair)
        languages.add(language, line)
    return pairs, languages


def _pair(value: dict[str, Any], columns: dict[str, str]) -> _Pair:
    """One line. Raises ``BadLine``."""
    positives = _texts(value, columns["positive"])
    if not positives:
        raise BadLine(f"no text in {columns['positive']!r}")
    return _Pair(
        require_text(value.get(columns["query"]), f"text in {columns['query']!r}"),
        positives,
        _texts(value, columns["negatives"], listed=columns["negatives"] == Columns().negatives),
        check_number(value.get(columns["score"]), columns["score"]),
        check_number(value.get(columns["weight"]), columns["weight"], lowest=0.0),
        *check_groups(value, columns["group"], columns["parallel"]),
        check_label(value.get(columns["key"]), columns["key"]) if columns["key"] else "",
        check_text(value.get(columns["context"]), columns["context"]) if columns["context"] else "",
    )


def _texts(value: dict[str, Any], column: str, *, listed: bool = False) -> list[str]:
    """A list of texts, or a text unless it must be ``listed``; blank ones left out. Raises ``BadLine``."""
    given = value.get(column)
    if listed and isinstance(given, str) and given.strip():
        raise BadLine(f"{column!r} is not a list of texts", given)
    texts = [check_text(text, f"text in {column!r}") for text in (given if isinstance(given, list) else [given])]
    return [text for text in texts if text]


class _Collector:
    """Joins lines into queries, documents and judgments."""

    def __init__(self, *, per_language: bool) -> None:
        self._per_language = per_language  # where a search sees one language, a text is a document of each
        self._documents = Documents()
        self._document_rows: dict[tuple[str, str], int] = {}
        self._queries = Queries()
        self._query_rows: dict[tuple[str, str], int] = {}
        self._line_counts: list[int] = []
        self._judgments: dict[str, Judgments] = {}

    def add(self, split: str, pair: _Pair, language: str) -> None:
        """Add one line. A text that is a positive on one line and a negative on another is a positive."""
        judged = self._judgments.setdefault(split, {}).setdefault(self._query(pair, language), {})
        for texts, score, key in ((pair.positives, pair.score, pair.key), (pair.negatives, 0.0, "")):
            for text in texts:
                document = self._document(text, language, key)
                judged[document] = max(judged.get(document, score), score)

    def _query(self, pair: _Pair, language: str) -> str:
        queries, row = self._queries, self._query_rows.setdefault((language, pair.query), len(self._queries.ids))
        if row == len(queries.ids):
            queries.ids.append(query_id(language, pair.query))
            queries.texts.append(pair.query)
            queries.languages.append(language)
            queries.groups.append(())
            queries.parallels.append(())
            queries.weights.append(0.0)
            queries.contexts.append("")
            self._line_counts.append(0)
        queries.weights[row] += pair.weight
        self._line_counts[row] += 1
        if pair.group and pair.group not in queries.groups[row]:
            queries.groups[row] += (pair.group,)
        if pair.parallel and pair.parallel not in queries.parallels[row]:
            queries.parallels[row] += (pair.parallel,)
        queries.contexts[row] = queries.contexts[row] or pair.context
        queries.other_contexts += bool(pair.context) and pair.context != queries.contexts[row]
        return queries.ids[row]

    def _document(self, text: str, language: str, key: str) -> str:
        documents, identity = self._documents, (language if self._per_language else "", text)
        row = self._document_rows.setdefault(identity, len(documents))
        if row == len(documents):
            documents.ids.append(_make_id("d", identity))
            documents.texts.append(text)
            documents.languages.append(language)
            documents.keys.append("")
        documents.keys[row] = documents.keys[row] or key
        return documents.ids[row]

    def source(self) -> Source:
        """Everything added; a query's weight is the mean over its lines."""
        weights = zip(self._queries.weights, self._line_counts, strict=True)
        self._queries.weights = [total / lines for total, lines in weights]
        none = [""] * len(self._documents)
        return Source(self._documents, none, none, self._queries, self._judgments)


def query_id(language: str, text: str) -> str:
    """The id of a query of a language."""
    return _make_id("q", (language, text))


def _make_id(prefix: str, parts: Iterable[str]) -> str:
    return prefix + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def read_unlabelled(settings: DataSettings, reading: Reading) -> list[tuple[str, str]]:
    """The (text, language) of the files in ``data.unlabelled``: ``.txt`` (one a line), JSONL or Parquet (text, lang).

    ``language`` in the recipe stands in where a line has none.

    Raises:
        InputError: a file can't be found or read.
    """
    found: list[tuple[str, str]] = []
    for number, entry in enumerate(settings.unlabelled):
        for path in find_files(entry.path, f"data.unlabelled[{number}].path"):
            texts, languages = [], LanguageColumn(entry.language)
            for line, value in _unlabelled_rows(path, reading):
                try:
                    text, language = require_text(value.get("text")), check_language(value.get("lang"))
                except BadLine as problem:
                    reading.bad(path, line, problem)
                    continue
                texts.append(text)
                languages.add(language, line)
            dropped = languages.settle(reading, path)
            pairs = zip(texts, languages.values, strict=True)
            found += [pair for row, pair in enumerate(pairs) if row not in dropped]
    return found


def _unlabelled_rows(path: Path, reading: Reading) -> Rows:
    if path.name.removesuffix(".gz").endswith(".txt"):
        return ((line, {"text": text}) for line, text in reading.lines(path))
    return reading.rows(path, ("text", "lang"))
