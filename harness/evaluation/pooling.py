"""What nobody has judged yet: the pool of all systems' best hits for raters or a relevance model, and their answers.

A pool is a ``.jsonl`` or ``.tsv`` file with a line a pair. Raters fill in the column ``grade``, a whole number from 0
(not relevant); lines without a grade are not yet rated. A TSV may be opened in a spreadsheet: there a cell that would
be taken for a formula starts with an apostrophe, which is taken off again when ids are read, and control characters of
texts are spaces. Whatever a text holds, it is data.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.data.reading import BadLine, Reading
from harness.data.records import Documents, Record
from harness.evaluation.per_query import PerQuery
from harness.runtime.errors import InputError, Problem
from harness.runtime.process import atomic_file

SUFFIXES = (".jsonl", ".tsv")
GRADE = "grade"
LONGEST_CELL = 32_000  # characters: a spreadsheet's cell holds 32,767
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_FORMULA = re.compile(r"[=+\-@＝＋－＠']")  # what a spreadsheet computes, and the apostrophe that prevents it
_BREAKS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}  # some readers end a line there
_GRADE = re.compile(r"[0-9]{1,6}")
HIGHEST = 10  # grade of raters, unless the data's own go higher: more is a slip, and outweighs everything in nDCG


Labels = dict[str, dict[str, float]]  # query id -> document id -> grade


@dataclass
class Pair:
    """A query and a document that some system found for it; ``found``: system -> rank from 1."""

    record: Record
    document: str
    found: dict[str, int] = field(default_factory=dict)


def pooled(records: Iterable[Record], answers: Mapping[str, PerQuery], depth: int) -> list[Pair]:
    """The unjudged pairs among the first ``depth`` hits of every system, by query, best rank and id."""
    pairs: list[Pair] = []
    hits = {system: dict(zip(answer.ids, answer.hits, strict=True)) for system, answer in answers.items()}
    for record in records:
        judged = {*record.positives, *record.negatives}
        own: dict[str, Pair] = {}
        for system, by_query in hits.items():
            for rank, document in enumerate(by_query.get(record.id, ())[:depth], 1):
                if document not in judged:
                    own.setdefault(document, Pair(record, document)).found[system] = rank
        pairs += sorted(own.values(), key=lambda pair: (min(pair.found.values()), pair.document))
    return pairs


def write_pool(path: Path, pairs: Sequence[Pair], documents: Documents, *, blind: bool, seed: int) -> None:
    """Write a pool as JSONL or TSV, by the name's ending.

    Args:
        blind: leave out who found what at which rank, and shuffle with ``seed``: so raters can't tell systems apart.
    """
    assert path.suffix in SUFFIXES
    order = list(pairs)
    if blind:
        random.Random(seed).shuffle(order)
    lines = (_line(pair, documents, blind) for pair in order)
    with atomic_file(path, "w", newline="") as stream:
        if path.suffix == ".jsonl":
            stream.writelines(json.dumps(line, ensure_ascii=False).translate(_BREAKS) + "\n" for line in lines)
            return
        writer = csv.writer(stream, dialect="excel-tab", lineterminator="\n")
        writer.writerow(["query_id", "document_id", GRADE, "lang", "query", "document", *([] if blind else ["found"])])
        for line in lines:
            found = ", ".join(f"{system} {rank}" for system, rank in line.get("found", {}).items())
            cells = [line["query_id"], line["document_id"], "", line["lang"], line["query"], line["document"]]
            writer.writerow([cell(text) for text in (*cells, *([] if blind else [found]))])


def _line(pair: Pair, documents: Documents, blind: bool) -> dict[str, Any]:
    line = {"query_id": pair.record.id, "document_id": pair.document, GRADE: None, "lang": pair.record.language,
            "query": pair.record.text, "document": documents.texts[documents.row[pair.document]]}  # fmt: skip
    return line if blind else {**line, "found": pair.found}


def cell(text: str) -> str:
    """A text as a spreadsheet's cell: never a formula, no control characters, not longer than a cell may be."""
    plain = _CONTROL.sub(" ", text)
    shown = f"'{plain}" if _FORMULA.match(plain.lstrip()) else plain
    return shown if len(shown) <= LONGEST_CELL else shown[: LONGEST_CELL - 1] + "…"


def plain(text: str) -> str:
    """What ``cell`` was made of, where that was an id."""
    return text[1:] if text.startswith("'") else text


# ------------------------------------------------------------------------------------------------- labels come back


@dataclass(frozen=True)
class Known:
    """What labels are held against: the queries and documents that there are, and what has been judged before.

    ``languages``: document -> language, where a query is searched in its own alone.
    """

    queries: Mapping[str, Record]
    documents: Mapping[str, int]
    earlier: Labels
    languages: Mapping[str, str] = field(default_factory=dict)

    def by_data(self, query: str, document: str) -> float | None:
        """The grade that the data itself gives a pair; None where it gives none."""
        record = self.queries[query]
        return {**dict.fromkeys(record.negatives, 0.0), **record.positives}.get(document)

    def labelled(self, query: str, document: str) -> float | None:
        """The grade of an earlier label; None where there is none."""
        return self.earlier.get(query, {}).get(document)

    @property
    def highest(self) -> float:
        """The highest grade that a label may have: ``HIGHEST``, or what the data's own grades reach."""
        return max([HIGHEST, *(grade for record in self.queries.values() for grade in record.positives.values())])


_BY_DATA = "the pair has another grade already, in the data"
_EARLIER = "the pair has another grade already, from an earlier file of labels"
_NEXT = {
    _BY_DATA: "correct the file: the data's own grades stay",
    _EARLIER: "correct the file, or correct the earlier labels by it: --replace",
}


def read_labels(path: Path, known: Known, *, replacing: bool = False) -> tuple[Labels, int]:
    """The grades of a filled-in pool that are new, and how many pairs of it have no grade yet.

    Args:
        replacing: a grade other than that of an earlier label counts as new; the data's own grades stay.

    Raises:
        InputError: everything that is wrong: unknown ids, pairs that stand twice, other grades than before, grades that
            are no whole numbers from 0 to ``Known.highest``, files of another kind, no grade at all.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(Problem("not a file of labels", where=str(path), allowed=" or ".join(SUFFIXES),
                                 next="give the pool back as it was written, with its grades filled in"))  # fmt: skip
    reading = Reading()
    rows = reading.objects(path) if path.suffix == ".jsonl" else _tsv(path, reading)
    seen: dict[tuple[str, str], float] = {}
    labels: Labels = {}
    empty, highest = 0, known.highest
    for number, row in rows:
        try:
            pair, grade = _pair(row, known), _grade(row.get(GRADE), highest)
            if grade is None:
                empty += 1
                continue
            if pair in seen:
                raise BadLine("the pair is labelled twice" + (", differently" if seen[pair] != grade else ""), pair)
            seen[pair] = grade
            if _is_new(pair, grade, known, replacing):
                labels.setdefault(pair[0], {})[pair[1]] = grade
        except BadLine as problem:
            reading.bad(path, number, problem)
    problems = [_told(problem, highest) for problem in reading.problems()]
    if not problems and not seen:
        problems.append(Problem("no pair has a grade", where=str(path), got=f"{empty} pairs without one",
                                next=f"fill in {GRADE}, and give the file again"))  # fmt: skip
    if problems:
        raise InputError(problems)
    return labels, empty


def _is_new(pair: tuple[str, str], grade: float, known: Known, replacing: bool) -> bool:
    """Whether the label says what was not known. Raises ``BadLine`` where it says otherwise than what is to stay."""
    for kind, before in ((_BY_DATA, known.by_data(*pair)), (_EARLIER, known.labelled(*pair))):
        if before is not None and before != grade and not (replacing and kind == _EARLIER):
            raise BadLine(kind, f"{pair}: {grade:g}, and before {before:g}")
        if before is not None:
            return before != grade
    return True


def _told(problem: Problem, highest: float) -> Problem:
    """With what to do about it, and what grades there may be."""
    kind = problem.what.rpartition(" (")[0]
    grades = f"whole numbers from 0 to {highest:g}, or nothing: not rated yet"
    allowed = grades if kind.startswith("the grade is") else ""
    return replace(problem, allowed=allowed, next=_NEXT.get(kind, "correct the file"))


def _tsv(path: Path, reading: Reading) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a TSV with the header that a pool has, in any order and with any columns beside."""
    header: list[str] = []
    for number, text in reading.lines(path):
        cells = next(csv.reader(io.StringIO(text), dialect="excel-tab"), [])
        if not header:
            header = cells
            missing = [name for name in ("query_id", "document_id", GRADE) if name not in header]
            if missing:
                raise InputError(
                    Problem("a column is missing", where=str(path), got=", ".join(header)[:200],
                            allowed=f"a first line with {', '.join(missing)} and tabs between")
                )  # fmt: skip
        elif len(cells) != len(header):
            reading.bad(path, number, BadLine(f"not the {len(header)} columns of the first line", text))
        else:
            row: dict[str, Any] = dict(zip(header, cells, strict=True))
            yield number, {**row, "query_id": plain(row["query_id"]), "document_id": plain(row["document_id"])}


def _pair(row: Mapping[str, Any], known: Known) -> tuple[str, str]:
    query, document = row.get("query_id"), row.get("document_id")
    if not isinstance(query, str) or query not in known.queries:
        raise BadLine("no such query among those evaluated", query)
    if not isinstance(document, str) or document not in known.documents:
        raise BadLine("no such document", document)
    if known.languages and known.languages[document] != known.queries[query].language:
        raise BadLine("the query is not searched in the document's language", f"{query}: {document}")
    return query, document


def _grade(value: Any, highest: float) -> float | None:
    """The grade; None where the pair is not rated yet."""
    text = "" if value is None else value.strip() if isinstance(value, str) else str(value)
    text = text.removesuffix(".0")  # a spreadsheet's or a table's whole number
    if not text:
        return None
    if isinstance(value, bool) or not _GRADE.fullmatch(text):
        raise BadLine("the grade is no whole number from 0", value)
    if float(text) > highest:
        raise BadLine(f"the grade is above {highest:g}, the highest that there may be", value)
    return float(text)


# -------------------------------------------------------------------------------------------------- labels are used


def with_labels(records: Sequence[Record], labels: Labels, documents: Mapping[str, int]) -> list[Record]:
    """The queries with labels among their judgments; those of documents that are no more are left out."""
    return [_labelled(record, labels.get(record.id, {}), documents) for record in records]


def _labelled(record: Record, grades: Mapping[str, float], documents: Mapping[str, int]) -> Record:
    new = {document: grade for document, grade in grades.items()
           if document in documents and document not in record.positives and document not in record.negatives}
    if not new:
        return record
    positives = {document: grade for document, grade in new.items() if grade > 0}
    negatives = tuple(document for document, grade in new.items() if grade <= 0)
    return replace(record, positives=record.positives | positives, negatives=record.negatives + negatives)
