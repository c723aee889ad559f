"""The exact searcher against sorting all scores: the short way, the long way, and where one gives way to the other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from builders.vectors import unit_vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.vectors import exact

LONG: list[int] = []  # blocks of which every score was looked at


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 64 documents and 9 queries, chunks of 4."""
    plain: Callable[..., torch.Tensor] = exact._block_best
    monkeypatch.setattr(exact, "BLOCK_DOCUMENTS", 64)
    monkeypatch.setattr(exact, "SCORE_BYTES", 64 * 4 * 9)
    monkeypatch.setattr(exact, "CHUNK", 4)
    monkeypatch.setattr(exact, "_block_best", lambda *given: LONG.append(len(given[0])) or plain(*given))
    LONG.clear()


def searched(query_QD: np.ndarray, vector_ND: np.ndarray, rank_N: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(score, rank) of the hits, best first."""
    with torch.inference_mode():
        key_QK = exact.search(torch.from_numpy(query_QD), vector_ND, torch.from_numpy(rank_N), k)
        key_QK = key_QK.sort(dim=1, descending=True).values
        return exact.scores_of(key_QK).numpy(), exact.ranks_of(key_QK).numpy()


def require_sorted(query_QD: np.ndarray, vector_ND: np.ndarray, rank_N: np.ndarray, k: int) -> None:
    """Of whole numbers, whose scores are exact."""
    score_QK, rank_QK = searched(query_QD, vector_ND, rank_N, k)
    assert rank_QK.shape == (len(query_QD), min(k, len(vector_ND)))
    score_QN = query_QD @ vector_ND.T
    for query, scores in enumerate(score_QN):
        best = np.lexsort((rank_N, -scores))[:k]
        assert rank_QK[query].tolist() == rank_N[best].tolist()
        assert score_QK[query].tolist() == scores[best].tolist()


@settings(max_examples=60, deadline=None)
@given(documents=st.integers(1, 500), queries=st.integers(0, 25), k=st.integers(1, 80), spread=st.integers(1, 40),
       seed=st.integers(0, 2**32))  # fmt: skip
def test_hits_are_the_first_of_all_sorted(documents: int, queries: int, k: int, spread: int, seed: int) -> None:
    """Ties in every amount, from all scores the same to almost none."""
    random = np.random.default_rng(seed)
    vector_ND = random.integers(-spread, spread + 1, (documents, 2)).astype(np.float32)
    query_QD = random.integers(-2, 3, (queries, 2)).astype(np.float32)
    require_sorted(query_QD, vector_ND, random.permutation(documents), k)


@pytest.mark.parametrize("k", [1, 2])
def test_few_scores_are_looked_at_where_they_come_in_no_order(k: int) -> None:
    random = np.random.default_rng(k)
    vector_ND = random.integers(-300, 300, (1021, 3)).astype(np.float32)
    require_sorted(random.integers(-9, 9, (20, 3)).astype(np.float32), vector_ND, random.permutation(1021), k)
    assert not LONG, "no block needed the long way, not even the first and the last, which is no whole one"


@pytest.mark.parametrize("what", ["rising", "one query's only", "all the same", "more hits than chunks"])
def test_all_scores_are_looked_at_where_many_may_count(what: str) -> None:
    vector_ND = np.stack([np.arange(512.0), np.ones(512)], axis=1).astype(np.float32)
    query_QD = np.zeros((9, 2), dtype=np.float32)
    query_QD[:, 1] = 1
    k = 5
    if what == "rising":
        query_QD[:, 0] = 1
    elif what == "one query's only":
        query_QD = np.random.default_rng(0).integers(-9, 9, (9, 2)).astype(np.float32) * [-1, 1]
        query_QD[:, 0] = -np.abs(query_QD[:, 0])
        query_QD[4, 0] = 1
    elif what == "more hits than chunks":
        vector_ND, k = np.random.default_rng(0).permutation(vector_ND), 100
        query_QD[:, 0] = 1
    require_sorted(query_QD.astype(np.float32), vector_ND, np.arange(512)[::-1].copy(), k)
    assert LONG


def test_scores_that_overflow_hide_no_other() -> None:
    """The largest float is finite, its square is not: the hits beside it are still found."""
    vector_ND = np.random.default_rng(0).integers(-9, 9, (256, 2)).astype(np.float32)
    vector_ND[7], vector_ND[100] = [3e38, 0], [-3e38, 0]
    query_QD = np.array([[10.0, 1], [0, 1]], dtype=np.float32)
    score_QK, rank_QK = searched(query_QD, vector_ND, np.arange(256), 256)
    assert np.isposinf(score_QK[0, 0]) and rank_QK[0, 0] == 7 and np.isneginf(score_QK[0, -1]) and rank_QK[0, -1] == 100
    score_QK, rank_QK = searched(query_QD, vector_ND, np.arange(256), 3)
    assert rank_QK[0, 0] == 7 and np.isfinite(score_QK[0, 1:]).all()
    best = np.lexsort((np.arange(256), -vector_ND[:, 1]))[:3]
    assert rank_QK[1].tolist() == best.tolist()


def test_a_score_that_is_no_number_hides_none_but_the_last() -> None:
    """Infinity less infinity: it takes one hit's place, and not its neighbours'."""
    vector_ND = np.random.default_rng(0).permutation(np.stack([np.arange(256.0), np.zeros(256)], axis=1))
    vector_ND = vector_ND.astype(np.float32)
    near = int(vector_ND[:, 0].argmax())
    vector_ND[near ^ 1] = [3e38, 3e38]  # in the best one's chunk
    score_QK, rank_QK = searched(np.array([[10.0, -10]], dtype=np.float32), vector_ND, np.arange(256), 4)
    others = np.delete(np.arange(256), near ^ 1)
    assert rank_QK[0, :3].tolist() == others[np.argsort(-vector_ND[others, 0])][:3].tolist()


def test_the_short_way_finds_the_very_scores_of_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "BLOCK_DOCUMENTS", 1024)
    monkeypatch.setattr(exact, "CHUNK", 16)
    monkeypatch.setattr(exact, "SCORE_BYTES", 1024 * 4 * 50)
    vector_ND, query_QD, rank_N = unit_vectors(5000, 48), unit_vectors(120, 48, seed=1), np.arange(5000)
    short = searched(query_QD, vector_ND, rank_N, 20)
    assert not LONG
    monkeypatch.setattr(exact, "_above", lambda *given: None)
    for ours, theirs in zip(short, searched(query_QD, vector_ND, rank_N, 20), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(LONG) == 15
