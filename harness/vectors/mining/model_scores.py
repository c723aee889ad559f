"""A relevance model's scores of (query, document) pairs, read from a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from harness.runtime.errors import InputError, Problem
from harness.runtime.process import progress

COLUMNS = ("query_id", "document_id", "score")
BATCH = 65_536
ALLOWED = "Parquet or JSONL with query_id, document_id (texts) and score (a finite number)"


class PairScores:
    """The scores of some queries' pairs, 12 bytes a pair.

    Args:
        key_P: query * documents + document, rising and distinct.
        score_P: float32.
        documents: how many documents there are.
    """

    def __init__(self, key_P: np.ndarray, score_P: np.ndarray, documents: int) -> None:
        self._key_P, self._score_P, self._documents = key_P, score_P, documents

    def __len__(self) -> int:
        return len(self._key_P)

    def of(self, query_B: np.ndarray, row_BK: np.ndarray) -> np.ndarray:
        """The scores of hits, float32 [B, K]; NaN where there is none, and for rows below 0.

        Args:
            query_B: the queries' numbers.
            row_BK: rows of documents.
        """
        key_BK = query_B[:, None].astype(np.int64) * self._documents + row_BK
        if not len(self._key_P):
            return np.full(row_BK.shape, np.nan, dtype=np.float32)
        place_BK = np.minimum(np.searchsorted(self._key_P, key_BK), len(self._key_P) - 1)
        known_BK = (self._key_P[place_BK] == key_BK) & (row_BK >= 0)
        return np.where(known_BK, self._score_P[place_BK], np.float32(np.nan))


def read_pair_scores(path: Path | str, query: Mapping[str, int], document: Mapping[str, int]) -> PairScores:
    """Read the pairs of the given queries; of a pair that stands twice, the higher score counts.

    Args:
        path: a Parquet file, or JSONL (any other suffix). Pairs of other queries or documents are passed over.
        query: id -> number, of the queries that are wanted.
        document: id -> row.

    Raises:
        InputError: not readable as such a file, or a pair that is not complete (the first is named).
    """
    path, keys, scores = Path(path), [], []
    batches = _parquet(path) if path.suffix == ".parquet" else _json_lines(path)
    for line, queries, documents, values in progress(batches, what="read model scores", unit="batch"):
        score_P = _checked(path, line, queries, documents, values)
        found = [
            (query[q] * len(document) + document[d], score)
            for q, d, score in zip(queries, documents, score_P.tolist(), strict=True) if q in query and d in document
        ]  # fmt: skip
        keys.append(np.array([key for key, _ in found], dtype=np.int64))
        scores.append(np.array([score for _, score in found], dtype=np.float32))
    key_P = np.concatenate([np.empty(0, dtype=np.int64), *keys])
    score_P = np.concatenate([np.empty(0, dtype=np.float32), *scores])
    order_P = np.lexsort((score_P, key_P))
    key_P, score_P = key_P[order_P], score_P[order_P]
    last_P = np.append(key_P[1:] != key_P[:-1], True) if len(key_P) else np.empty(0, dtype=bool)
    return PairScores(key_P[last_P], score_P[last_P], len(document))


Batch = tuple[int, list[Any], list[Any], list[Any]]  # number of the first line or row, then the three columns


def _parquet(path: Path) -> Iterator[Batch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in COLUMNS if name not in file.schema_arrow.names]
            if missing:
                raise InputError(Problem("columns are missing", where=str(path), got=", ".join(file.schema_arrow.names),
                                         allowed=ALLOWED, next="name the columns so"))
            start = 1
            for batch in file.iter_batches(BATCH, columns=list(COLUMNS)):
                queries, documents, scores = (batch.column(name).to_pylist() for name in COLUMNS)
                yield start, queries, documents, scores
                start += len(batch)
    except (OSError, pa.ArrowException) as error:
        raise InputError(Problem("no Parquet file, or a damaged one", where=str(path), got=str(error)[:200],
                                 allowed=ALLOWED)) from None


def _json_lines(path: Path) -> Iterator[Batch]:
    try:
        with open(path, encoding="utf-8") as stream:
            start = 1
            while lines := list(islice(stream, BATCH)):
                rows = [_parsed(path, start + at, line) for at, line in enumerate(lines)]
                queries, documents, scores = ([row.get(name) for row in rows] for name in COLUMNS)
                yield start, queries, documents, scores
                start += len(lines)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Problem("not readable", where=str(path), got=str(error)[:200], allowed=ALLOWED)) from None


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        row = None
    if not isinstance(row, dict):
        raise InputError(Problem("not a JSON object", where=f"{path}:{number}", got=line[:80].strip(), allowed=ALLOWED))
    return row


def _checked(path: Path, start: int, queries: list[Any], documents: list[Any], values: list[Any]) -> np.ndarray:
    """The scores, float32, after a look at every pair."""
    for at, pair in enumerate(zip(queries, documents, values, strict=True)):
        good = isinstance(pair[0], str) and isinstance(pair[1], str) and isinstance(pair[2], int | float)
        if not good or isinstance(pair[2], bool) or not np.isfinite(pair[2]):
            raise InputError(Problem("a pair that is not complete", where=f"{path}:{start + at}", got=repr(pair)[:120],
                                     allowed=ALLOWED, next="correct the file"))
    return np.array(values, dtype=np.float32)
