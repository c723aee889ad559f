"""Searching an index with a set of queries and judging the hits. Receives vectors and indexes, never a model.

Axes: Q queries, K hits, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness import metrics
from harness.data.records import Documents, Record
from harness.evaluation.per_query import PerQuery
from harness.runtime.distributed import join_rows, share
from harness.runtime.errors import InputError, Problem
from harness.vectors.approximate import Searcher
from harness.vectors.index import VectorIndex
from harness.vectors.store import name_some


def judgments(records: Sequence[Record], documents: Documents) -> list[dict[int, float]]:
    """Each query's judged documents as row -> grade, 0 for those judged not relevant.

    Raises:
        InputError: no queries, queries without a relevant document, judged documents that are not in the collection.
    """
    row, found = documents.row, []
    bare = [record.id for record in records if not any(grade > 0 for grade in record.positives.values())]
    if not records:
        found.append(Problem("there are no queries to evaluate", next="take the set out, or add queries to it"))
    if bare:
        found.append(Problem(f"{len(bare)} queries without a relevant document", got=name_some(bare),
                             next="judge a document relevant to each, or leave them out: they tell nothing"))
    unknown = sorted({i for record in records for i in (*record.positives, *record.negatives) if i not in row})
    if unknown:
        found.append(Problem(f"{len(unknown)} judged documents are not in the collection", got=name_some(unknown),
                             next="judge documents that can be found"))
    if found:
        raise InputError(found)
    return [
        {row[i]: grade for i, grade in (record.positives | dict.fromkeys(record.negatives, 0.0)).items()}
        for record in records
    ]


def search(
    index: Searcher, query_QD: np.ndarray, records: Sequence[Record], depth: int, within: bool, *, shared: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Hits of every query as (score_QK, row_QK); ``within``: only documents of the query's language.

    Several processes, given the same queries, search a part of the documents each, or of the queries where the index
    can't be parted; all get all hits. ``shared=False``: this process searches alone, and the others may do anything.

    Raises:
        InputError: query vectors that are not finite, or of another dimension than the index.
    """
    broken = np.flatnonzero(~np.isfinite(query_QD).all(axis=1))
    if broken.size:
        names = name_some(records[row].id for row in broken.tolist())
        raise InputError(Problem(f"{broken.size} query vectors are not finite", got=names,
                                 next="look at these queries, or encode them in higher precision (embed.precision)"))
    languages = [record.language for record in records] if within else None
    if not shared:
        return index.search(query_QD, depth, languages)
    if isinstance(index, VectorIndex):
        return index.search_shared(query_QD, depth, languages)
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
    depth = metrics.cutoff(metric)
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
    names: Sequence[str] = metrics.REPORTED,
) -> PerQuery:
    """The metrics ``names`` of every query, with its hits.

    Raises:
        InputError: what ``search`` and ``judgments`` refuse.
    """
    assert depth >= max(map(metrics.cutoff, names)), "rankings less deep than a metric looks"
    depth = min(depth, len(documents))
    return judged(*search(index, query_QD, records, depth, within), records, documents, names)


def judged(
    score_QK: np.ndarray,
    row_QK: np.ndarray,
    records: Sequence[Record],
    documents: Documents,
    names: Sequence[str] = metrics.REPORTED,
) -> PerQuery:
    """The metrics of hits that were found before."""
    return PerQuery(
        ids=[record.id for record in records],
        languages=[record.language for record in records],
        groups=[record.group for record in records],
        weights=np.array([record.weight for record in records]),
        hits=[[documents.ids[row] for row in rows if row >= 0] for rows in row_QK.tolist()],
        scores=score_QK,
        metrics=metrics.score(row_QK, judgments(records, documents), names),
        agreement={},
    )


def judged_again(
    result: PerQuery, records: Sequence[Record], documents: Documents, names: Sequence[str]
) -> dict[str, np.ndarray]:
    """The metrics ``names`` of stored hits, by the judgments that the queries have now.

    Args:
        records: the queries of ``result``, in its order.
        names: of metrics that look no deeper than the stored hits reach, or where these are all documents.
    """
    assert result.ids == [record.id for record in records], "other queries, or in another order"
    depth = result.scores.shape[1]
    assert depth >= min(max(map(metrics.cutoff, names)), len(documents)), "hits less deep than a metric looks"
    row_QK = np.full((len(result), depth), -1, dtype=np.int64)
    for query, hits in enumerate(result.hits):
        row_QK[query, : len(hits)] = [documents.row[hit] for hit in hits]
    return metrics.score(row_QK, judgments(records, documents), names)


def agreement(
    query_QD: np.ndarray, own: PerQuery, reference_QD: np.ndarray, reference: PerQuery, k: int = 10, deep: int = 100
) -> dict[str, np.ndarray]:
    """Label-free likeness to the reference: ``overlap@k``, ``rbo@deep`` and ``cosine``.

    The share of common hits in the top k, the rank-biased overlap of the first ``deep`` hits (``metrics.rbo``, p 0.9),
    and the cosine of the query vectors where they have the same dimension.

    Raises:
        InputError: both did not answer the same queries.
    """
    if own.ids != reference.ids:
        raise InputError(Problem("the system and the reference did not answer the same queries",
                                 got=f"{len(own)} and {len(reference)} queries", allowed="the same, in the same order",
                                 next="evaluate both again on the same data"))
    row: dict[str, int] = {}
    own_QK, reference_QK = (_first(result, max(k, deep), row) for result in (own, reference))
    found = {f"overlap@{k}": metrics.overlap(own_QK, reference_QK, k),
             f"rbo@{deep}": metrics.rbo(own_QK, reference_QK, deep)}  # fmt: skip
    if query_QD.shape == reference_QD.shape:
        norm_Q = np.linalg.norm(query_QD, axis=1) * np.linalg.norm(reference_QD, axis=1)
        found["cosine"] = np.einsum("qd,qd->q", query_QD, reference_QD) / np.maximum(norm_Q, 1e-12)
    return found


def _first(result: PerQuery, k: int, row: dict[str, int]) -> np.ndarray:
    """The first k hits of each query as rows, -1 where there are fewer; an id that has no row yet gets one."""
    count_Q = np.array([min(len(hits), k) for hits in result.hits], dtype=np.int64)
    found = (row.setdefault(hit, len(row)) for hits in result.hits for hit in hits[:k])
    first_QK = np.full((len(count_Q), k), -1, dtype=np.int64)
    first_QK[np.arange(k) < count_Q[:, None]] = np.fromiter(found, np.int64, int(count_Q.sum()))
    return first_QK
