"""Metrics against pytrec_eval, against arithmetic by hand, at their edges. Axes: Q queries, K ranks, N documents."""

from __future__ import annotations

import math
import time
from typing import Any

import ir_measures
import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import Qrel, ScoredDoc, parse_measure

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


def test_judgments_beyond_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    hit_QK, judgments = random_run(3, documents=80, depth=20)
    whole = metrics.score(hit_QK, judgments)
    monkeypatch.setattr(metrics, "_CELLS_AT_ONCE", 300)  # three queries
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
        ([[1, 1]], [{1: 1.0}], "P@2", "twice"),
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
    turned = theirs[3:].copy()
    turned[:, :10] = turned[:, 9::-1]
    np.testing.assert_array_equal(metrics.overlap(theirs[3:], turned, 10), 1.0, err_msg="in any order")


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


# ------------------------------------------------------------------------------------------------ all kinds at once

THEIRS = {
    "P@3": "P@3", "P@1": "P@1", "nDCG@5": "nDCG@5", "Recall@4": "R@4", "Hit@2": "Success@2", "Hit@10": "Success@10",
    "judged@1": "Judged@1", "judged@6": "Judged@6", "judged@30": "Judged@30",
}  # fmt: skip
_graded = st.dictionaries(st.integers(0, 14), st.sampled_from([-1, 0, 0, 1, 2, 3]), max_size=8)


@settings(max_examples=80, deadline=None)
@given(
    queries=st.lists(st.tuples(st.lists(st.integers(0, 3), max_size=15), _graded, st.integers(0, 14)), min_size=1,
                     max_size=4),
    block=st.sampled_from([1, 40, 4_000_000]),
)  # fmt: skip
def test_equals_ir_measures(queries: list[tuple[list[int], dict[int, int], int]], block: int) -> None:
    """Few distinct scores: ties everywhere, by id. Graded judgments, judged negatives, rankings of any length."""
    judgments = [judged | {sure: 2} for _, judged, sure in queries]
    hit_QK = np.full((len(queries), 15), -1)
    for ranking, (score_N, _, _) in zip(hit_QK, queries, strict=True):
        best = np.lexsort((np.arange(len(score_N)), -np.array(score_N)))
        ranking[: len(best)] = best
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_CELLS_AT_ONCE", block)
        ours = metrics.score(hit_QK, [dict(grades) for grades in judgments], THEIRS)  # type: ignore[arg-type]
    qrels = [Qrel(str(q), f"d{row:02}", grade) for q, grades in enumerate(judgments) for row, grade in grades.items()]
    run = [ScoredDoc(str(q), f"d{row:02}", -float(rank)) for q, ranking in enumerate(hit_QK)
           for rank, row in enumerate(ranking) if row >= 0]  # fmt: skip
    expected = {(found.query_id, str(found.measure)): found.value
                for found in ir_measures.iter_calc([parse_measure(name) for name in THEIRS.values()], qrels, run)}
    for metric, theirs in THEIRS.items():
        for query in range(len(queries)):
            # A query without a single hit is missing there.
            assert ours[metric][query] == pytest.approx(expected.get((str(query), theirs), 0.0)), (metric, query)


def test_judged_negatives_count_as_judged_and_for_nothing_else() -> None:
    hit_QK = np.array([[0, 1, 2, 3], [0, 1, -1, -1], [-1, -1, -1, -1]])
    bare: list[dict[int, float]] = [{1: 1.0}, {9: 1.0}, {1: 1.0}]
    judged = [{1: 1.0, 0: 0.0, 3: -2.0, 8: 0.0}, {9: 1.0, 1: 0.0}, {1: 1.0}]
    names = ["judged@1", "judged@2", "judged@4", "P@4", "nDCG@4", "Recall@4", "MRR@4", "Hit@4"]
    before, after = metrics.score(hit_QK, bare, names), metrics.score(hit_QK, judged, names)
    assert after["judged@1"].tolist() == [1, 0, 0] and after["judged@4"].tolist() == [0.75, 0.5, 0]
    assert after["judged@2"].tolist() == [1, 0.5, 0] and before["judged@2"].tolist() == [0.5, 0, 0]
    for name in names[3:]:
        np.testing.assert_array_equal(before[name], after[name])
    assert [name for name in metrics.REPORTED if not metrics.is_quality(name)] == ["judged@10"]


# ------------------------------------------------------------------------------------------------ rank-biased overlap


def literal_rbo(own: list[int], other: list[int], p: float) -> float:
    """Equation 32 of the paper as it stands there: L is the longer list, X_d the size of the first d's intersection."""
    longer, shorter = (own, other) if len(own) >= len(other) else (other, own)
    l_, s = len(longer), len(shorter)
    if s == 0:
        return 0.0
    x = {d: len(set(longer[:d]) & set(shorter[:d])) for d in range(1, l_ + 1)}
    seen = sum(x[d] / d * p**d for d in range(1, l_ + 1))
    missed = sum(x[s] * (d - s) / (s * d) * p**d for d in range(s + 1, l_ + 1))
    return (1 - p) / p * (seen + missed) + ((x[l_] - x[s]) / l_ + x[s] / s) * p**l_


_ranking = st.lists(st.integers(0, 30), max_size=25, unique=True)


@settings(max_examples=150, deadline=None)
@given(pairs=st.lists(st.tuples(_ranking, _ranking), max_size=4), k=st.integers(1, 25),
       p=st.sampled_from([0.5, 0.9, 0.98]), widths=st.tuples(st.integers(25, 30), st.integers(25, 30)))  # fmt: skip
def test_rank_biased_overlap_is_the_papers(
    pairs: list[tuple[list[int], list[int]]], k: int, p: float, widths: tuple[int, int]
) -> None:
    ours, theirs = (
        np.array([pair[side] + [-1] * (width - len(pair[side])) for pair in pairs], dtype=np.int64).reshape(-1, width)
        for side, width in enumerate(widths)
    )
    found_Q = metrics.rbo(ours, theirs, k, p)
    np.testing.assert_allclose(found_Q, [literal_rbo(own[:k], other[:k], p) for own, other in pairs], atol=1e-12)
    np.testing.assert_allclose(metrics.rbo(theirs, ours, k, p), found_Q, atol=1e-12)
    assert ((found_Q >= 0) & (found_Q <= 1)).all()
    np.testing.assert_allclose(metrics.rbo(ours, ours, k, p), [float(bool(own)) for own, _ in pairs], atol=1e-12)


def test_rank_biased_overlap_by_hand() -> None:
    """One ranking that begins the other agrees with it wholly; a swap costs the more the higher it stands."""
    whole = np.arange(100)[None]
    begun = np.where(whole < 7, whole, -1)
    assert metrics.rbo(begun, whole, 100)[0] == pytest.approx(1.0)
    top, low = whole.copy(), whole.copy()
    top[0, :2], low[0, 50:52] = [1, 0], [51, 50]
    assert metrics.rbo(top, whole, 100)[0] == pytest.approx(1 - (1 - 0.9))
    assert 0.999 < metrics.rbo(low, whole, 100)[0] < 1
    assert metrics.rbo(whole + 100, whole, 100)[0] == 0
    weight = (1 - 0.9) / 0.9 * sum(0.9**d / d * min(d, 10) for d in range(1, 2000))
    assert round(weight, 2) == 0.86, "what the first ten ranks carry, as the paper has it"
