"""The prepared folder: a BEIR folder with the final splits, written by the data step and read by all others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.data.records import Dataset, Documents, Record
from harness.data.source import Judgments, Queries, Split
from harness.runtime.errors import Problem, StaleArtefactError
from harness.runtime.process import file_sha256, fingerprint, read_json

SPLITS = ("train", "select", "report", "test")
_to_json = json.JSONEncoder(ensure_ascii=False).encode  # one encoder for all lines takes half the time


def write_folder(
    folder: Path,
    documents: Documents,
    queries: Queries,
    splits: Mapping[str, Split],
    groups: Mapping[str, str],
    unlabelled: Sequence[tuple[str, str]],
) -> None:
    """Write corpus, queries, judgments and unlabelled texts; a split without queries has no file."""
    columns = zip(documents.ids, documents.texts, documents.languages, documents.keys, strict=True)
    _write_lines(
        folder / "corpus.jsonl",
        ({"_id": id_, "text": text, "lang": lang} | ({"key": key} if key else {}) for id_, text, lang, key in columns),
    )
    kept = {query: known.row for split in splits.values() for query, known in split.items()}
    _write_lines(folder / "queries.jsonl", (_query_line(queries, row, groups) for row in sorted(kept.values())))
    (folder / "qrels").mkdir()
    for name, split in splits.items():
        if split:
            _write_qrels(folder / "qrels" / f"{name}.tsv", split)
    if unlabelled:
        _write_lines(folder / "unlabelled.jsonl", ({"text": text, "lang": language} for text, language in unlabelled))


def _query_line(queries: Queries, row: int, groups: Mapping[str, str]) -> dict[str, Any]:
    id_, weight = queries.ids[row], queries.weights[row]
    line = {"_id": id_, "text": queries.texts[row], "lang": queries.languages[row], "group": groups[id_]}
    context = {"context": queries.contexts[row]} if queries.contexts[row] else {}
    return (line if weight == 1.0 else {**line, "weight": weight}) | context


def _write_lines(path: Path, values: Iterable[dict[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(_to_json(value) + "\n" for value in values)


def _write_qrels(path: Path, split: Split) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as stream:
        stream.write("query-id\tcorpus-id\tscore\n")
        for query, known in split.items():
            stream.writelines(f"{query}\t{id_}\t{_number(score)}\n" for id_, score in known.positives.items())
            stream.writelines(f"{query}\t{id_}\t0\n" for id_ in known.negatives)


def _number(score: float) -> str:
    return str(int(score)) if score.is_integer() else repr(score)


def content_sha256(folder: Path) -> str:
    """The hash of everything in a prepared folder but ``data.json``, which holds it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "data.json")
    return fingerprint([(path.relative_to(folder).as_posix(), file_sha256(path)) for path in files])


def load_dataset(folder: Path) -> Dataset:
    """Read a folder that ``prepare_data`` wrote.

    Raises:
        InputError: there is none.
        StaleArtefactError: its files are no longer those that were written.
    """
    summary = read_json(folder / "data.json")
    found = content_sha256(folder)
    if found != summary["sha256"]:
        raise StaleArtefactError(
            Problem("the prepared data has been changed", where=str(folder), got=found[:12],
                    allowed=summary["sha256"][:12], next="change the source instead, and run the data step again")
        )  # fmt: skip
    documents = Documents()
    for line in read_lines(folder / "corpus.jsonl"):
        documents.ids.append(line["_id"])
        documents.texts.append(line["text"])
        documents.languages.append(line["lang"])
        documents.keys.append(line.get("key", ""))
    queries = {line["_id"]: line for line in read_lines(folder / "queries.jsonl")}
    splits = {
        name: _load_split(folder / "qrels" / f"{name}.tsv", queries) for name in SPLITS if name in summary["splits"]
    }
    unlabelled = [(line["text"], line["lang"]) for line in read_lines(folder / "unlabelled.jsonl")]
    return Dataset(documents, splits, unlabelled, summary["search_within"] == "lang", found)


def read_lines(path: Path) -> Iterable[dict[str, Any]]:
    """The objects of a JSONL file that we wrote ourselves; none where there is no file."""
    if not path.exists():
        return
    with open(path, encoding="utf-8", newline="\n") as stream:
        for line in stream:
            yield json.loads(line)


def _load_split(path: Path, queries: Mapping[str, dict[str, Any]]) -> list[Record]:
    if not path.exists():
        return []
    scores: Judgments = {}
    with open(path, encoding="utf-8", newline="\n") as stream:
        next(stream)
        for line in stream:
            asked, document, score = line.rstrip("\n").split("\t")
            scores.setdefault(asked, {})[document] = float(score)
    records = []
    for id_, judged in scores.items():
        query = queries[id_]
        positives = {document: grade for document, grade in judged.items() if grade > 0}
        negatives = tuple(document for document, grade in judged.items() if grade <= 0)
        records.append(
            Record(id_, query["text"], query["lang"], query["group"], positives, negatives, query.get("weight", 1.0),
                   query.get("context", ""))
        )
    return records
