"""Searching an index with a set of queries and judging the hits. Receives vectors and indexes, never a model.

Axes: Q queries, K hits, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from harness import metrics
from harness.data.records import Documents, Record
from harness.evaluation.per_query import PerQuery
from harness.runtime.distributed import join_rows, share
from harness.vectors.approximate import Searcher


def judgments(records: Sequence[Record], documents: Documents) -> list[dict[int, float]]:
    """Each query's relevant documents as row -> grade."""
    return [{documents.row[i]: grade for i, grade in record.positives.items()} for record in records]


def search(
    index: Searcher, query_QD: np.ndarray, records: Sequence[Record], depth: int, within: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Hits of every query as (score_QK, row_QK); ``within``: only documents of the query's language.

    Several processes, given the same queries, search a part of them each; all get all hits.
    """
    part = share(len(records))
    partition = [record.language for record in records[part]] if within else None
    score_QK, row_QK = index.search(query_QD[part], depth, partition)
    return join_rows(score_QK, len(records)), join_rows(row_QK, len(records))


def macro(value_Q: np.ndarray, records: Sequence[Record]) -> float:
    """The mean over languages of the mean over a language's queries."""
    languages = np.array([record.language for record in records])
    return float(np.mean([value_Q[languages == language].mean() for language in np.unique(languages)]))


def quick_quality(
    index: Searcher,
    query_QD: np.ndarray,
    records: Sequence[Record],
    documents: Documents,
    *,
    metric: str,
    within: bool,
) -> dict[str, float]:
    """What a stage is judged by while it trains: ``score`` (macro of ``metric``) and the metric by its name."""
    depth = int(metric.split("@")[1])
    _, row_QK = search(index, query_QD, records, depth, within)
    value_Q = metrics.score(row_QK, judgments(records, documents), (metric,))[metric]
    value = macro(value_Q, records)
    return {"score": value, metric: value}


def judge(
    index: Searcher,
    query_QD: np.ndarray,
    records: Sequence[Record],
    documents: Documents,
    *,
    depth: int,
    within: bool,
) -> PerQuery:
    """All metrics of every query, with its hits."""
    depth = min(depth, max(len(documents), 100))  # no more hits than documents, but as many as metrics look at
    score_QK, row_QK = search(index, query_QD, records, depth, within)
    return PerQuery(
        ids=[record.id for record in records],
        languages=[record.language for record in records],
        groups=[record.group for record in records],
        weights=np.array([record.weight for record in records]),
        hits=[[documents.ids[row] for row in rows if row >= 0] for rows in row_QK],
        scores=score_QK,
        metrics=metrics.score(row_QK, judgments(records, documents)),
        agreement={},
    )


def agreement(
    query_QD: np.ndarray, own: PerQuery, reference_QD: np.ndarray, reference: PerQuery, k: int = 10
) -> dict[str, np.ndarray]:
    """Label-free likeness to the reference: share of common hits in the top k, and the cosine of the query vectors."""
    row: dict[str, int] = {}
    for hits in (*own.hits, *reference.hits):
        for hit in hits[:k]:
            row.setdefault(hit, len(row))
    found = {f"overlap@{k}": metrics.overlap(_top(own, row, k), _top(reference, row, k), k)}
    if query_QD.shape == reference_QD.shape:
        norm_Q = np.linalg.norm(query_QD, axis=1) * np.linalg.norm(reference_QD, axis=1)
        found["cosine"] = np.einsum("qd,qd->q", query_QD, reference_QD) / np.maximum(norm_Q, 1e-12)
    return found


def _top(result: PerQuery, row: Mapping[str, int], k: int) -> np.ndarray:
    top_QK = np.full((len(result.hits), k), -1, dtype=np.int64)
    for query, hits in enumerate(result.hits):
        for place, hit in enumerate(hits[:k]):
            top_QK[query, place] = row[hit]
    return top_QK
