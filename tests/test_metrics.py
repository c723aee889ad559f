"""Metrics against pytrec_eval, against arithmetic by hand, at their edges. Axes: Q queries, K ranks, N documents."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
import pytrec_eval

from harness import metrics
from harness.metrics import METRICS

ORACLE = {"P@1": "P_1", "P@10": "P_10", "nDCG@10": "ndcg_cut_10", "MRR@10": "recip_rank", "Recall@100": "recall_100",
          "P@5": "P_5", "Recall@5": "recall_5", "nDCG@100": "ndcg_cut_100"}  # fmt: skip


def random_run(seed: int, *, documents: int, depth: int) -> tuple[np.ndarray, list[dict[int, float]]]:
    """Rankings by (-score, id) of scores with many ties, padded where a query found fewer; graded judgments."""
    random = np.random.default_rng(seed)
    hit_QK = np.full((25, depth), -1)
    judgments: list[dict[int, float]] = []
    for ranking in hit_QK:
        score_N = random.integers(0, 8, size=documents) / 7
        found = min(int(random.integers(0, depth + 1)), documents)
        ranking[:found] = np.lexsort((np.arange(documents), -score_N))[:found]
        judged = random.choice(documents, size=random.integers(1, documents + 1), replace=False)
        grades = {int(row): float(random.integers(-1, 4)) for row in judged}
        grades[int(judged[0])] = float(random.integers(1, 4))
        judgments.append(grades)
    return hit_QK, judgments


def oracle(hit_QK: np.ndarray, judgments: list[dict[int, float]], metric: str) -> np.ndarray:
    """pytrec_eval's answer; it breaks ties by descending id, so it is handed our negated ranks as scores."""
    depth = 10 if metric.startswith("MRR") else hit_QK.shape[1]  # recip_rank knows no cut
    run = {
        str(q): {f"d{row}": -float(rank) for rank, row in enumerate(hits[:depth]) if row >= 0}
        for q, hits in enumerate(hit_QK)
    }
    qrels = {str(q): {f"d{row}": int(grade) for row, grade in grades.items()} for q, grades in enumerate(judgments)}
    measured: dict[str, Any] = pytrec_eval.RelevanceEvaluator(qrels, {ORACLE[metric]}).evaluate(run)
    # A query without a single hit is missing from pytrec_eval's answer; trec_eval -c counts it as zero.
    return np.array([measured.get(str(q), {}).get(ORACLE[metric], 0.0) for q in range(len(judgments))])


@pytest.mark.parametrize("documents, depth", [(300, 100), (60, 100), (7, 12), (40, 5)])
@pytest.mark.parametrize("seed", range(4))
def test_equals_pytrec_eval(seed: int, documents: int, depth: int) -> None:
    hit_QK, judgments = random_run(seed, documents=documents, depth=depth)
    ours = metrics.score(hit_QK, judgments, ORACLE)
    assert list(ours) == list(ORACLE)
    for metric in ORACLE:
        np.testing.assert_allclose(ours[metric], oracle(hit_QK, judgments, metric), atol=1e-12, err_msg=metric)
    assert 0 < ours["nDCG@10"].mean() < 1


def test_more_relevant_documents_than_k() -> None:
    scored = metrics.score(np.arange(100)[None], [dict.fromkeys(range(400), 1.0)])
    assert {name: float(value_Q[0]) for name, value_Q in scored.items()} == {
        "P@1": 1, "P@10": 1, "nDCG@10": 1, "MRR@10": 1, "Recall@100": 0.25
    }  # fmt: skip


def test_by_hand_with_fractional_grades() -> None:
    hit_QK = np.array([[9, 4, -1], [5, 9, 4]])
    judgments = [{4: 0.5, 7: 2.0}, {4: 1.0, 8: 0.0, 9: -2.0}]
    scored = metrics.score(hit_QK, judgments, ["nDCG@3", "MRR@2", "P@3", "Recall@3", "MRR@3"])
    ideal = 2.0 + 0.5 / math.log2(3)
    np.testing.assert_allclose(scored["nDCG@3"], [0.5 / math.log2(3) / ideal, 1 / math.log2(4)])
    np.testing.assert_allclose(scored["MRR@2"], [0.5, 0.0])
    np.testing.assert_allclose(scored["MRR@3"], [0.5, 1 / 3])
    np.testing.assert_allclose(scored["P@3"], [1 / 3, 1 / 3])
    np.testing.assert_allclose(scored["Recall@3"], [0.5, 1.0])


def test_gains_are_the_grades_of_relevant_hits() -> None:
    gain_QK = metrics.gains(np.array([[3, 1, -1], [1, 3, 2]]), [{3: 2.0, 2: 1.0}, {1: -1.0, 2: 0.5}])
    np.testing.assert_array_equal(gain_QK, [[2, 0, 0], [0, 0, 0.5]])


def test_judgments_beyond_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    hit_QK, judgments = random_run(3, documents=80, depth=20)
    whole = metrics.score(hit_QK, judgments)
    monkeypatch.setattr(metrics, "_COMPARED_AT_ONCE", 60)
    parts = metrics.score(hit_QK, judgments)
    for metric in METRICS:
        np.testing.assert_array_equal(whole[metric], parts[metric])


def test_no_hits_and_no_queries() -> None:
    nothing = metrics.score(np.full((2, 10), -1), [{0: 1.0}, {5: 3.0}])
    assert all((value_Q == 0).all() and len(value_Q) == 2 for value_Q in nothing.values())
    assert all(len(value_Q) == 0 for value_Q in metrics.score(np.zeros((0, 10), np.int64), []).values())


@pytest.mark.parametrize(
    "hit_QK, judgments, metric, message",
    [
        ([[1, 2]], [{1: 0.0}], "P@1", "without relevant"),
        ([[1, 2], [1, 2]], [{1: 1.0}, {}], "Recall@100", "without relevant"),
        ([[1, 1]], [{1: 1.0}], "P@1", "twice"),
        ([[1, 2]], [{-1: 1.0}], "P@1", "no row"),
        ([[1, 2]], [{1: 1.0}], "MAP@10", "no such metric"),
        ([[1, 2]], [{1: 1.0}], "P@0", "no such metric"),
        ([[1, 2]], [{1: 1.0}], "P", "no such metric"),
    ],
)
def test_refuses(hit_QK: list[list[int]], judgments: list[dict[int, float]], metric: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        metrics.score(np.array(hit_QK), judgments, [metric])


@pytest.mark.parametrize("seed", range(3))
def test_overlap_equals_sets(seed: int) -> None:
    random = np.random.default_rng(seed)
    ours, theirs = (np.stack([random.permutation(30)[:20] for _ in range(40)]) for _ in range(2))
    ours[0, 4:], theirs[1, 6:], theirs[2] = -1, -1, -1
    found_Q = metrics.overlap(ours, theirs, 10)
    for query, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        reference = {row for row in other[:10].tolist() if row >= 0}
        shared = reference & {row for row in mine[:10].tolist() if row >= 0}
        assert found_Q[query] == pytest.approx(len(shared) / max(len(reference), 1))
    np.testing.assert_array_equal(metrics.overlap(theirs[3:], theirs[3:, ::1], 10), 1.0)


def test_is_fast() -> None:
    random = np.random.default_rng(0)
    hit_QK = np.argsort(random.random((8000, 400)), axis=1)[:, :100]
    judgments = [{int(row): 1.0 for row in rows} for rows in random.integers(0, 400, size=(8000, 3))]
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        metrics.score(hit_QK, judgments)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.5
