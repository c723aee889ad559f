"""Vectors at rest and what is found among them: stores against a dictionary, the index against plain float64."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from builders.vectors import CountingEncode, toy_encode, toy_space
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from harness.metrics import METRICS, overlap, score
from harness.vectors.index import VectorIndex
from harness.vectors.store import VectorStore
from harness.vectors.writer import stage_update, update_store, write_store

KINDS = ["exact", "faiss"] if importlib.util.find_spec("faiss") else ["exact"]



@pytest.fixture(scope="module", autouse=True)
def _no_fsync() -> Iterator[None]:
    """Nothing here loses power: what was written needn't reach the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


# -------------------------------------------------------------------------------------------------------------- stores

_corpus = st.dictionaries(st.sampled_from([f"d{n}" for n in range(14)]), st.integers(0, 5).map("text {}".format),
                          min_size=1)  # fmt: skip


def _require(store: VectorStore, corpus: dict[str, str], dtype: str) -> None:
    assert set(store.ids) == set(corpus) and len(store) == len(corpus) and store.dtype == dtype
    if not corpus:
        return
    expected_ND = toy_encode(list(corpus.values())).astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(store.vectors(store.rows_of(list(corpus))), expected_ND)
    blocks = [block for _, block in store.blocks(3)]
    np.testing.assert_array_equal(np.concatenate(blocks), store.vectors())


@settings(max_examples=40)
@given(
    corpora=st.lists(st.tuples(_corpus, st.integers(1, 5), st.none() | st.integers(0, 5)), min_size=2, max_size=7),
    dtype=st.sampled_from(["float32", "float16"]),
)  # fmt: skip
def test_a_store_is_a_dictionary_after_any_updates_and_interruptions(
    corpora: list[tuple[dict[str, str], int, int | None]], dtype: str
) -> None:
    """Each update has its own shard size, and may be stopped at a text before it is done."""
    with tempfile.TemporaryDirectory() as name:
        folder, held = Path(name) / "store", dict[str, str]()
        for corpus, shard_rows, stop in corpora:
            ids, texts = list(corpus), list(corpus.values())
            changed = {text for id_, text in corpus.items() if held.get(id_) != text}
            for stop_at in ([] if stop is None else [f"text {stop}"]) + [None]:
                encode = CountingEncode(stop_at)
                try:
                    if held:
                        update_store(folder, ids, texts, encode, toy_space(), shard_rows=shard_rows)
                    else:
                        write_store(folder, ids, texts, encode, toy_space(), dtype=dtype, shard_rows=shard_rows)
                except KeyboardInterrupt:
                    assert stop_at in changed
                    if held:
                        _require(VectorStore.open(folder, verify=True), held, dtype)  # still the old one
                assert set(encode.seen) <= changed, "what stays is not encoded again"
            held = corpus
            store = VectorStore.open(folder, verify=True)
            _require(store, held, dtype)
            rows = sum(shard.rows for shard in store.manifest.shards)
            assert rows <= 2 * len(store), "most of it is dead"
            files = {path.name for path in folder.iterdir()}
            assert len(files) == 1 + 4 * len(store.manifest.shards), "files of nobody"


@settings(max_examples=40)
@given(old=_corpus, new=_corpus, shard_rows=st.integers(1, 5))
def test_a_staged_update_is_the_store_to_come_and_changes_nothing(
    old: dict[str, str], new: dict[str, str], shard_rows: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "store"
        write_store(folder, list(old), list(old.values()), toy_encode, toy_space(), shard_rows=shard_rows)
        staged = stage_update(folder, list(new), list(new.values()), toy_encode, toy_space(), shard_rows=shard_rows)
        _require(VectorStore.open(folder, verify=True), old, "float32")
        _require(staged.store(), new, "float32")
        stay = sum(old.get(id_) == text for id_, text in new.items())
        assert (staged.stay, staged.encoded, staged.leave) == (stay, len(new) - stay, len(old) - stay)
        assert staged.commit().sha256 == staged.store().sha256


# --------------------------------------------------------------------------------------------------------------- index


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=80)
@given(
    vector_ND=arrays.arrays(np.int8, st.tuples(st.integers(1, 24), st.just(3)), elements=st.integers(-2, 2)),
    query_QD=arrays.arrays(np.int8, st.tuples(st.integers(1, 4), st.just(3)), elements=st.integers(-2, 2)),
    k=st.integers(1, 30), parts=st.none() | st.integers(1, 4), data=st.data(),
)  # fmt: skip
def test_the_index_finds_the_best_and_orders_ties_by_id(
    kind: str, vector_ND: np.ndarray, query_QD: np.ndarray, k: int, parts: int | None, data: st.DataObject
) -> None:
    """Small whole numbers: scores are exact in any type, and ties are everywhere."""
    count = len(vector_ND)
    ids = data.draw(st.permutations([f"d{n}" for n in range(count)]))
    names = st.integers(0, (parts or 1) - 1).map("p{}".format)
    part_N = data.draw(st.lists(names, min_size=count, max_size=count))
    part_Q = data.draw(st.lists(names, min_size=len(query_QD), max_size=len(query_QD)))
    index = VectorIndex.build(vector_ND.astype(np.float32), ids, kind=kind,  # type: ignore[arg-type]
                              partition_N=part_N if parts else None)  # fmt: skip
    score_QK, row_QK = index.search(query_QD.astype(np.float32), k, part_Q if parts else None)
    true_QN = query_QD.astype(np.float64) @ vector_ND.astype(np.float64).T
    for query, (scores, rows) in enumerate(zip(score_QK, row_QK, strict=True)):
        seen = [row for row in range(count) if not parts or part_N[row] == part_Q[query]]
        best = sorted(seen, key=lambda row, query=query: (-true_QN[query, row], ids[row]))[:k]  # type: ignore[misc]
        found = [row for row in rows.tolist() if row >= 0]
        assert rows.tolist() == found + [-1] * (k - len(found)) and len(set(found)) == len(found)
        assert scores[: len(found)].tolist() == [true_QN[query, row] for row in best]
        assert np.isneginf(scores[len(found) :]).all() and set(found) <= set(seen)
        if kind == "exact":
            assert found == best
        else:  # which of those that tie at the last rank it keeps, FAISS decides
            assert found == sorted(found, key=lambda row, query=query: (-true_QN[query, row], ids[row]))  # type: ignore[misc]
            assert [true_QN[query, row] for row in found] == [true_QN[query, row] for row in best]


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), documents=st.integers(1, 200), scale=st.floats(1e-3, 1e3), k=st.integers(1, 20))
def test_scores_are_those_of_float64_to_rounding(seed: int, documents: int, scale: float, k: int) -> None:
    random = np.random.default_rng(seed)
    vector_ND = (random.standard_normal((documents, 16)) * scale).astype(np.float32)
    query_QD = random.standard_normal((3, 16)).astype(np.float32)
    vector_ND[documents // 2 :] = vector_ND[: documents - documents // 2] * (1 + 1e-7)  # near-ties
    true_QN = query_QD.astype(np.float64) @ vector_ND.astype(np.float64).T
    tolerance = 1e-5 * scale
    for kind in KINDS:
        index = VectorIndex.build(vector_ND, [f"d{n}" for n in range(documents)], kind=kind)  # type: ignore[arg-type]
        score_QK, row_QK = index.search(query_QD, k)
        real = row_QK >= 0
        best_QK = -np.sort(-true_QN, axis=1)[:, :k]
        assert real.sum(axis=1).tolist() == [min(k, documents)] * 3
        found_QK = np.take_along_axis(true_QN, row_QK[:, : best_QK.shape[1]], axis=1)
        assert np.abs(found_QK - best_QK).max() <= tolerance
        assert np.abs(score_QK[:, : best_QK.shape[1]] - found_QK).max() <= tolerance


# ------------------------------------------------------------------------------------------------------------- metrics

_judged = st.dictionaries(st.integers(0, 15), st.sampled_from([0.0, 0.3, 1.0, 3.0]), max_size=6)


@settings(max_examples=120)
@given(
    rankings=st.lists(st.tuples(st.permutations(range(16)), st.integers(0, 16), _judged), min_size=1, max_size=5),
    metrics=st.lists(st.sampled_from([*METRICS, "nDCG@1", "MRR@100", "P@3", "Recall@2"]), min_size=1, unique=True),
)  # fmt: skip
def test_metrics_lie_between_0_and_1_and_the_ideal_ranking_is_best(
    rankings: list[tuple[list[int], int, dict[int, float]]], metrics: list[str]
) -> None:
    judgments = [judged | {7: 1.0} for _, _, judged in rankings]  # a query has at least one relevant document
    hit_QK = np.array([order[:depth] + [-1] * (16 - depth) for order, depth, _ in rankings], dtype=np.int64)
    ideal_QK = np.array([sorted(range(16), key=lambda row, g=grades: -g.get(row, 0)) for grades in judgments])  # type: ignore[misc]
    found, ideal = score(hit_QK, judgments, metrics), score(ideal_QK, judgments, metrics)
    for metric in metrics:
        assert ((found[metric] >= 0) & (found[metric] <= 1)).all() and (ideal[metric] <= 1).all(), metric
        assert (found[metric] <= ideal[metric] + 1e-12).all(), metric
        if metric.startswith(("nDCG", "MRR")):
            np.testing.assert_allclose(ideal[metric], 1.0)
    assert ((overlap(hit_QK, ideal_QK, 10) >= 0) & (overlap(hit_QK, ideal_QK, 10) <= 1)).all()
    np.testing.assert_array_equal(overlap(ideal_QK, ideal_QK, 10), 1.0)
