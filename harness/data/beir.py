"""A BEIR folder: ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/NAME.tsv``, each plain or ``.gz``."""

from __future__ import annotations

import functools
from collections.abc import Container
from pathlib import Path
from typing import Any, NamedTuple

from harness.data.reading import (
    BadLine,
    LanguageColumn,
    Reading,
    check_groups,
    check_id,
    check_label,
    check_language,
    check_number,
    check_text,
    group_fields,
    require_text,
)
from harness.data.records import Documents
from harness.data.source import Judgments, Queries, Source
from harness.recipe import DataSettings, QrelsNames
from harness.runtime.errors import InputError, Problem, gather_problems


def read_beir(folder: Path, settings: DataSettings, reading: Reading) -> Source:
    """Read a BEIR folder; a line that can't be used is counted in ``reading`` and left out.

    Raises:
        InputError: a file is missing (qrels that exist are named) or has nothing in it.
    """
    files, problems = find_beir(folder, settings.qrels)
    if problems:
        raise InputError(problems)
    corpus, asked = files.pop("corpus"), files.pop("queries")
    told: set[str] = set()  # ids of bad lines, which are counted: what judges them is not counted again
    documents, document_groups, document_parallels = _read_documents(corpus, settings, reading, told)
    queries = _read_queries(asked, settings, reading, told)
    for path, count, what in ((corpus, len(documents), "document"), (asked, len(queries.ids), "query")):
        if not count:
            problems.append(Problem(f"there is no {what} in it", where=str(path),
                                    allowed="on each line a JSON object with _id and text"))
    if problems:
        raise InputError(problems)
    known = _Known(set(queries.ids), documents.row, told)
    whole = reading.complete  # of a preview, an id unknown to us may stand further down
    judgments: dict[str, Judgments] = {}

    def judge(split: str, path: Path) -> None:
        judgments[split] = _read_qrels(path, known, reading, report_unknown=whole)

    gather_problems(*(functools.partial(judge, split, path) for split, path in files.items()))
    return Source(documents, document_groups, document_parallels, queries, judgments)


def _existing(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def find_beir(folder: Path, names: QrelsNames) -> tuple[dict[str, Path], list[Problem]]:
    """The files by their part, and a problem for each that is missing."""
    if not folder.is_dir():
        what = "a BEIR data set is a folder, this is a file" if folder.exists() else "no such folder"
        content = "a folder with corpus.jsonl, queries.jsonl and qrels"
        return {}, [Problem(what, where=f"data.path: {folder}", allowed=content)]
    files: dict[str, Path] = {}
    problems = []
    for part in ("corpus", "queries"):
        if path := _existing(folder, f"{part}.jsonl"):
            files[part] = path
        else:
            problems.append(Problem(f"{part}.jsonl is missing", where=str(folder), allowed="plain or .gz"))
    qrels = sorted({path.name.split(".tsv")[0] for path in (folder / "qrels").glob("*.tsv*")})
    for part, name in (("train", names.train), ("dev", names.dev), ("test", names.test)):
        if name is None:
            continue
        if path := _existing(folder / "qrels", f"{name}.tsv"):
            files[part] = path
        elif part == "dev" or name != part:  # data without train or test is welcome, unless they are asked for by name
            problems.append(
                Problem(f"qrels/{name}.tsv is missing", where=f"data.qrels.{part}: {folder}",
                        got=f"qrels: {', '.join(qrels) or 'none'}", next=f"set data.qrels.{part} to one that exists")
            )  # fmt: skip
    return files, problems


def _read_documents(
    path: Path, settings: DataSettings, reading: Reading, told: set[str]
) -> tuple[Documents, list[str], list[str]]:
    fields, key_field = group_fields(settings, "group"), settings.equivalent
    documents, groups, parallels, languages = Documents(), [], [], LanguageColumn()
    seen: set[str] = set()
    for line, value in reading.objects(path):
        try:
            id_ = _new_id(value.get("_id"), seen)
            title, body = check_text(value.get("title"), "title"), check_text(value.get("text"))
            text = require_text(f"{title}\n{body}" if title and body else title or body)
            language = check_language(value.get("lang"))
            key = check_label(value.get(key_field), key_field) if key_field else ""
            group, parallel = check_groups(value, *fields)
        except BadLine as problem:
            reading.bad(path, line, problem)
            told.add(str(value.get("_id")))
            continue
        seen.add(id_)
        languages.add(language, line)
        documents.ids.append(id_)
        documents.texts.append(text)
        documents.keys.append(key)
        groups.append(group)
        parallels.append(parallel)
    documents.languages.extend(languages.values)
    dropped = languages.settle(reading, path)
    told.update(documents.ids[row] for row in dropped)
    _drop(dropped, documents.ids, documents.texts, documents.languages, documents.keys, groups, parallels)
    return documents, groups, parallels


def _read_queries(path: Path, settings: DataSettings, reading: Reading, told: set[str]) -> Queries:
    fields, context_field = group_fields(settings, "group"), settings.columns.context
    queries, languages = Queries(), LanguageColumn()
    seen: set[str] = set()
    for line, value in reading.objects(path):
        try:
            id_ = _new_id(value.get("_id"), seen)
            text = require_text(value.get("text"))
            language = check_language(value.get("lang"))
            group, parallel = check_groups(value, *fields)
            weight = check_number(value.get("weight"), "weight", lowest=0.0)
            context = check_text(value.get(context_field), context_field) if context_field else ""
        except BadLine as problem:
            reading.bad(path, line, problem)
            told.add(str(value.get("_id")))
            continue
        seen.add(id_)
        languages.add(language, line)
        queries.ids.append(id_)
        queries.texts.append(text)
        queries.groups.append((group,) if group else ())
        queries.parallels.append((parallel,) if parallel else ())
        queries.weights.append(weight)
        queries.contexts.append(context)
    queries.languages = languages.values
    dropped = languages.settle(reading, path)
    told.update(queries.ids[row] for row in dropped)
    columns = (queries.ids, queries.texts, queries.languages, queries.weights, queries.contexts)
    _drop(dropped, *columns, queries.groups, queries.parallels)
    return queries


def _new_id(value: object, seen: Container[str]) -> str:
    id_ = check_id(value)
    if id_ in seen:
        raise BadLine("the id stands twice", id_)
    return id_


def _drop(rows: set[int], *columns: list[Any]) -> None:
    if rows:
        for column in columns:
            column[:] = [value for row, value in enumerate(column) if row not in rows]


class _Known(NamedTuple):
    """The ids that a judgment may name, and those of lines that were found bad."""

    queries: Container[str]
    documents: Container[str]
    told: Container[str]


def _read_qrels(path: Path, known: _Known, reading: Reading, *, report_unknown: bool) -> Judgments:
    """The judgments of one file: ``query-id``, ``corpus-id``, ``score``, with or without a header line.

    Raises:
        InputError: nothing is judged in it.
    """
    judgments: Judgments = {}
    lines = 0
    for line, text in reading.lines(path):
        fields = text.split("\t")
        try:
            if line == 1 and len(fields) == 3 and fields[0] not in known.queries and not is_number(fields[2]):
                continue  # the header
            lines += 1
            if len(fields) != 3:
                raise BadLine("not query-id, corpus-id and score with tabs between", text)
            query, document, score_text = fields
            score = check_number(score_text, "score")
            if query not in known.queries or document not in known.documents:
                asked = query in known.queries
                if not report_unknown or (document if asked else query) in known.told:
                    continue
                raise BadLine(*(("unknown corpus-id", document) if asked else ("unknown query-id", query)))
            judged = judgments.setdefault(query, {})
            if judged.setdefault(document, score) != score:
                raise BadLine("judged twice with different scores", text)
        except BadLine as problem:
            reading.bad(path, line, problem)
    if not lines:
        raise InputError(Problem("nothing is judged here", where=str(path), allowed="query-id, corpus-id, score"))
    return judgments


def is_number(text: str) -> bool:
    """Whether a grade can be read as one."""
    try:
        float(text)
    except ValueError:
        return False
    return True
