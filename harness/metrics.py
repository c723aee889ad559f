"""Rankings and judgments in, numbers out: pure arrays, no model, no file.

Axes: Q queries, K ranks (0 is the best), J judged pairs of all queries together.

Every quality equals trec_eval's (``P``, ``ndcg_cut``, ``recip_rank`` of the first k ranks, ``recall``, ``success``): a
rank that holds no document counts as not relevant, P@k divides by k whatever was found, nDCG takes the grade itself as
gain and log2(rank + 1) as discount, and its ideal ranking holds every judged document, retrieved or not. ``judged@k``
is ir_measures' ``Judged@k``: the share of the first k hits, of fewer where fewer were found, that carry any judgment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

METRICS = ("P@1", "P@10", "nDCG@10", "MRR@10", "Recall@100")
REPORTED = (*METRICS, "Hit@10", "judged@10")  # what a recipe evaluates that names no metrics (``evaluate.metrics``)
KINDS = ("P", "nDCG", "MRR", "Recall", "Hit", "judged")
PERSISTENCE = 0.9  # of ``rbo``: the first 10 ranks then carry 86 % of its weight

Judgments = Sequence[Mapping[int, float]]
Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
_CELLS_AT_ONCE = 4_000_000  # (query, document) pairs of a block; 16 MB


def cutoff(metric: str) -> int:
    """The k of a metric's name: 10 for ``"nDCG@10"``. A ranking should be at least that deep."""
    kind, at, k = metric.partition("@")
    assert kind in KINDS and at and k.isdecimal() and int(k) > 0, f"no such metric: {metric}"
    return int(k)


def is_quality(metric: str) -> bool:
    """Whether more of it is better: of ``judged@k``, which tells how far the others can be trusted, nothing is kept."""
    return not metric.startswith("judged@")


def score(hit_row_QK: Rows, judgments: Judgments, metrics: Iterable[str] = METRICS) -> dict[str, Floats]:
    """Score rankings, one number per query and metric.

    Args:
        hit_row_QK: document rows, best first, each document at most once a query; -1 pads.
        judgments: per query, document row -> grade; grades above 0 are relevant, and each query has at least one.
            Those of 0 and below count for ``judged@k`` alone.
        metrics: names ``P@k``, ``nDCG@k``, ``MRR@k``, ``Recall@k``, ``Hit@k``, ``judged@k`` with any k.

    Returns:
        metric -> float64_Q, each in [0, 1].
    """
    metrics = list(metrics)
    queries, deepest = len(judgments), max(map(cutoff, metrics), default=1)
    hit_row_QK = hit_row_QK[:, :deepest]
    query_J, row_J, grade_J = _flatten(judgments)
    rank_J = _ranks(hit_row_QK, query_J, row_J)
    seen_J = rank_J < hit_row_QK.shape[1]
    order = np.flatnonzero(seen_J)[np.lexsort((rank_J[seen_J], query_J[seen_J]))]  # as the rankings have them
    query_S, rank_S, grade_S = query_J[order], rank_J[order], grade_J[order]
    relevant_Q = np.bincount(query_J[grade_J > 0], minlength=queries)
    assert np.all(relevant_Q > 0), "a query without relevant documents can't be scored"
    scored: dict[str, Floats] = {}
    for metric in metrics:
        k = cutoff(metric)
        near_S = (rank_S < k) & ((grade_S > 0) | (not is_quality(metric)))
        query_F, rank_F = query_S[near_S], rank_S[near_S]  # F: those among the first k
        count_Q = np.bincount(query_F, minlength=queries)
        if metric.startswith("P@"):
            scored[metric] = count_Q / k
        elif metric.startswith("Recall@"):
            scored[metric] = count_Q / relevant_Q
        elif metric.startswith("Hit@"):
            scored[metric] = (count_Q > 0).astype(np.float64)
        elif metric.startswith("judged@"):
            scored[metric] = count_Q / np.maximum((hit_row_QK[:, :k] >= 0).sum(axis=1), 1)
        elif metric.startswith("MRR@"):
            scored[metric] = np.zeros(queries)
            np.maximum.at(scored[metric], query_F, 1.0 / (rank_F + 1))
        else:
            gain_Q = np.bincount(query_F, grade_S[near_S] / np.log2(rank_F + 2.0), minlength=queries)
            # At most 1: sums of other lengths round otherwise, and an ideal ranking came to 1 + 2e-16.
            scored[metric] = np.minimum(gain_Q / _ideal(query_J, grade_J, queries, k), 1.0)
    return scored


def overlap(hit_QK: Rows, reference_QK: Rows, k: int) -> Floats:
    """The share of the reference's first k hits that are among ours; of fewer than k where it has fewer.

    Args:
        hit_QK, reference_QK: document rows, best first, each document at most once a query; -1 pads.

    Returns:
        float64_Q in [0, 1]; 0 where the reference has no hit.
    """
    assert k > 0 and len(hit_QK) == len(reference_QK), "both rankings must be of the same queries"
    both = np.sort(np.concatenate([hit_QK[:, :k], reference_QK[:, :k]], axis=1), axis=1)
    shared_Q = ((both[:, 1:] == both[:, :-1]) & (both[:, 1:] >= 0)).sum(axis=1)
    return np.asarray(shared_Q / np.maximum((reference_QK[:, :k] >= 0).sum(axis=1), 1))


def rbo(hit_QK: Rows, reference_QK: Rows, k: int, p: float = PERSISTENCE) -> Floats:
    """Rank-biased overlap of the first k hits, extrapolated beyond what was seen.

    RBO_EXT for lists of any two lengths: equation 32 of Webber, Moffat and Zobel, "A similarity measure for indefinite
    rankings", ACM TOIS 28(4), 2010. With X_d the documents that the first d hits of both have in common, and s <= l
    the lengths of the lists::

        (1-p)/p (sum_{d=1..l} X_d/d p^d  +  sum_{d=s+1..l} X_s (d-s)/(s d) p^d)  +  ((X_l - X_s)/l + X_s/s) p^l

    Args:
        hit_QK, reference_QK: document rows, best first, each document at most once a query; -1 pads.
        k: how deep either is read.
        p: how likely a reader is to go on to the next rank.

    Returns:
        float64_Q in [0, 1]: 1 where one ranking begins the other, 0 where nothing is shared or one is empty.
    """
    assert k > 0 and 0 < p < 1 and len(hit_QK) == len(reference_QK), "both rankings must be of the same queries"
    hit_QK, reference_QK = hit_QK[:, :k], reference_QK[:, :k]
    queries, depth = len(hit_QK), max(hit_QK.shape[1], reference_QK.shape[1])
    query_J, other_J = np.nonzero(reference_QK >= 0)
    own_J = _ranks(hit_QK, query_J, reference_QK[query_J, other_J])
    here_J = own_J < hit_QK.shape[1]
    met_J = np.maximum(own_J, other_J)[here_J]  # the first rank at which both have the document
    met_QK = np.bincount(query_J[here_J] * depth + met_J, minlength=queries * depth).reshape(queries, depth)
    shared_QK = met_QK.cumsum(axis=1)  # X_d
    length_2Q = np.sort([(hit_QK >= 0).sum(axis=1), (reference_QK >= 0).sum(axis=1)], axis=0)
    short_Q, long_Q = np.maximum(length_2Q, 1)
    at_short_Q, at_long_Q = (shared_QK[np.arange(queries), length_Q - 1] for length_Q in (short_Q, long_Q))
    d_K = np.arange(1, depth + 1)
    missed_QK = at_short_Q[:, None] * np.maximum(d_K - short_Q[:, None], 0) / short_Q[:, None]
    agreed_QK = np.where(d_K <= long_Q[:, None], (shared_QK + missed_QK) / d_K, 0.0)
    tail_Q = ((at_long_Q - at_short_Q) / long_Q + at_short_Q / short_Q) * p**long_Q
    return np.asarray(np.clip((1 - p) / p * (agreed_QK @ p**d_K) + tail_Q, 0.0, 1.0))


def _flatten(judgments: Judgments) -> tuple[Rows, Rows, Floats]:
    """The judgments of all queries as columns: query_J (rising), row_J, grade_J."""
    sizes = [len(grades) for grades in judgments]
    row_J = np.fromiter(chain.from_iterable(judgments), np.int64, sum(sizes))
    grade_J = np.fromiter(chain.from_iterable(grades.values() for grades in judgments), np.float64, sum(sizes))
    assert np.all(row_J >= 0), "a judged document has no row"
    return np.repeat(np.arange(len(sizes)), sizes), row_J, grade_J


def _ranks(hit_row_QK: Rows, query_J: Rows, row_J: Rows) -> Rows:
    """The rank that each judged document has in its query's ranking, K where it is not there.

    For some queries at a time, a table of all their (query, document) pairs says which judgment a pair is; each hit
    then looks itself up. So time grows with the hits and the judgments, not with their product.
    """
    queries, depth = hit_row_QK.shape
    rank_J = np.full(len(query_J), depth)
    if not rank_J.size or not depth:
        return rank_J
    rows = int(max(hit_row_QK.max(), row_J.max())) + 2  # the last is nobody's: where there is no hit, -1 reads it
    block = min(queries, max(1, _CELLS_AT_ONCE // max(rows, depth)))
    judged = np.full(block * rows, -1, dtype=np.int32)
    ends = np.searchsorted(query_J, np.arange(0, queries + block, block))
    for number, (first, last) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        hit_BK = hit_row_QK[number * block : (number + 1) * block]
        cell_J = (query_J[first:last] - number * block) * rows + row_J[first:last]
        judged[cell_J] = np.arange(first, last)
        found_BK = judged[hit_BK + np.arange(len(hit_BK))[:, None] * rows]
        query_F, rank_F = np.nonzero(found_BK >= 0)
        found_F = found_BK[query_F, rank_F]
        rank_J[found_F] = rank_F
        assert np.all(rank_J[found_F] == rank_F), "a ranking holds a document twice"
        judged[cell_J] = -1
    return rank_J


def _ideal(query_J: Rows, grade_J: Floats, queries: int, k: int) -> Floats:
    """The discounted gain of each query's k best judged documents, best first."""
    relevant_J = grade_J > 0
    query_R, grade_R = query_J[relevant_J], grade_J[relevant_J]
    count_Q = np.bincount(query_R, minlength=queries)
    order = np.lexsort((-grade_R, query_R))
    rank_R = np.arange(len(query_R)) - np.repeat(np.cumsum(count_Q) - count_Q, count_Q)
    kept_R = rank_R < k
    gain_R = grade_R[order][kept_R] / np.log2(rank_R[kept_R] + 2.0)
    return np.asarray(np.bincount(query_R[kept_R], gain_R, minlength=queries), dtype=np.float64)
