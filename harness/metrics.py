"""Rankings and judgments in, numbers out: pure arrays, no model, no file.

Axes: Q queries, K ranks (0 is the best), J judged pairs of all queries together.

Every metric equals trec_eval's (``P``, ``ndcg_cut``, ``recip_rank`` of the first k ranks, ``recall``): a rank that
holds no document counts as not relevant, P@k divides by k whatever was found, nDCG takes the grade itself as gain and
log2(rank + 1) as discount, and its ideal ranking holds every judged document, retrieved or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

METRICS = ("P@1", "P@10", "nDCG@10", "MRR@10", "Recall@100")

Judgments = Sequence[Mapping[int, float]]
Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
_COMPARED_AT_ONCE = 1_000_000


def cutoff(metric: str) -> int:
    """The k of a metric's name: 10 for ``"nDCG@10"``. A ranking should be at least that deep."""
    kind, at, k = metric.partition("@")
    assert kind in ("P", "nDCG", "MRR", "Recall") and at and k.isdecimal() and int(k) > 0, f"no such metric: {metric}"
    return int(k)


def gains(hit_row_QK: Rows, judgments: Judgments) -> Floats:
    """The grade of each hit: 0 where it is not judged relevant, and where the row is -1 (no document).

    Args:
        hit_row_QK: document rows, best first, each document at most once a query; -1 pads.
        judgments: per query, document row -> grade; grades above 0 are relevant.

    Returns:
        gain_QK, float64.
    """
    query_J, row_J, grade_J = _flatten(judgments)
    return _gains(hit_row_QK, query_J, row_J, grade_J)


def score(hit_row_QK: Rows, judgments: Judgments, metrics: Iterable[str] = METRICS) -> dict[str, Floats]:
    """Score rankings, one number per query and metric.

    Args:
        hit_row_QK: document rows, best first, each document at most once a query; -1 pads.
        judgments: per query, document row -> grade; grades above 0 are relevant, and each query has at least one.
        metrics: names ``P@k``, ``nDCG@k``, ``MRR@k``, ``Recall@k`` with any k.

    Returns:
        metric -> float64_Q, each in [0, 1].
    """
    query_J, row_J, grade_J = _flatten(judgments)
    relevant_Q = np.bincount(query_J, minlength=len(judgments))
    assert np.all(relevant_Q > 0), "a query without relevant documents can't be scored"
    gain_QK = _gains(hit_row_QK, query_J, row_J, grade_J)
    hit_QK = gain_QK > 0
    scored: dict[str, Floats] = {}
    for metric in metrics:
        k = cutoff(metric)
        if metric.startswith("P@"):
            scored[metric] = hit_QK[:, :k].sum(axis=1) / k
        elif metric.startswith("Recall@"):
            scored[metric] = hit_QK[:, :k].sum(axis=1) / relevant_Q
        elif metric.startswith("MRR@"):
            first_Q = hit_QK[:, :k].argmax(axis=1)
            scored[metric] = np.where(hit_QK[:, :k].any(axis=1), 1.0 / (first_Q + 1), 0.0)
        else:
            ideal_Qk = _ideal(query_J, grade_J, relevant_Q, min(k, int(relevant_Q.max(initial=0))))
            # At most 1: sums of other lengths round otherwise, and an ideal ranking came to 1 + 2e-16.
            scored[metric] = np.minimum(_discounted(gain_QK[:, :k]) / _discounted(ideal_Qk), 1.0)
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


def _flatten(judgments: Judgments) -> tuple[Rows, Rows, Floats]:
    """The relevant judgments of all queries as columns: query_J (rising), row_J, grade_J."""
    sizes = [len(grades) for grades in judgments]
    row_J = np.fromiter(chain.from_iterable(judgments), np.int64, sum(sizes))
    grade_J = np.fromiter(chain.from_iterable(grades.values() for grades in judgments), np.float64, sum(sizes))
    assert np.all(row_J >= 0), "a judged document has no row"
    relevant_J = grade_J > 0
    return np.repeat(np.arange(len(sizes)), sizes)[relevant_J], row_J[relevant_J], grade_J[relevant_J]


def _gains(hit_row_QK: Rows, query_J: Rows, row_J: Rows, grade_J: Floats) -> Floats:
    gain_QK = np.zeros(hit_row_QK.shape)
    # Each judged document is sought in its query's ranking: judgments are few where hits are many.
    block = max(1, _COMPARED_AT_ONCE // max(1, hit_row_QK.shape[1]))
    for start in range(0, len(query_J), block):
        part = slice(start, start + block)
        found, rank = np.nonzero(hit_row_QK[query_J[part]] == row_J[part, None])
        assert np.all(np.diff(found) > 0), "a ranking holds a document twice"
        gain_QK[query_J[part][found], rank] = grade_J[part][found]
    return gain_QK


def _ideal(query_J: Rows, grade_J: Floats, relevant_Q: Rows, k: int) -> Floats:
    """The k best grades of each query, best first, 0 after the last."""
    order_J = np.lexsort((-grade_J, query_J))
    rank_J = np.arange(len(query_J)) - np.repeat(np.cumsum(relevant_Q) - relevant_Q, relevant_Q)
    kept_J = rank_J < k
    ideal_Qk = np.zeros((len(relevant_Q), k))
    ideal_Qk[query_J[kept_J], rank_J[kept_J]] = grade_J[order_J][kept_J]
    return ideal_Qk


def _discounted(gain_Qk: Floats) -> Floats:
    return np.asarray(gain_Qk @ (1.0 / np.log2(np.arange(gain_Qk.shape[1]) + 2.0)))
