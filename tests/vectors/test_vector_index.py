from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.vectors import toy_encode, toy_rows, toy_space, unit_vectors

from harness.runtime.errors import InputError, StaleArtefactError
from harness.vectors import exact
from harness.vectors import index as index_module
from harness.vectors.index import VectorIndex, saved_kind
from harness.vectors.store import StoreRows
from harness.vectors.writer import write_store

KINDS = ["exact", "faiss"]


@pytest.fixture(autouse=True)
def _faiss(request: pytest.FixtureRequest) -> None:
    if "faiss" in getattr(request.node, "callspec", request).__dict__.get("params", {}).values():
        pytest.importorskip("faiss")


def shuffled_ids(count: int, seed: int = 1) -> list[str]:
    return [f"d{number}" for number in np.random.default_rng(seed).permutation(count)]


def require_right(
    query_QD: np.ndarray,
    vector_ND: np.ndarray,
    ids: list[str],
    score_QK: np.ndarray,
    row_QK: np.ndarray,
    seen_QN: np.ndarray,
) -> None:
    """Hits equal float64's, but for documents whose float64 scores differ by under 1e-6; sorted by (-score, id)."""
    true_QN = np.where(seen_QN, query_QD.astype(np.float64) @ vector_ND.astype(np.float64).T, -np.inf)
    k = row_QK.shape[1]
    best_QK = np.full(row_QK.shape, -np.inf)
    best_QK[:, : min(k, len(ids))] = -np.sort(-true_QN, axis=1)[:, :k]
    assert ((row_QK >= 0) == np.isfinite(best_QK)).all()
    found_QK = np.where(row_QK >= 0, np.take_along_axis(true_QN, np.maximum(row_QK, 0), axis=1), -np.inf)
    real = row_QK >= 0
    assert np.abs(found_QK[real] - best_QK[real]).max() < 1e-6
    assert np.abs(score_QK[real] - found_QK[real]).max() < 1e-6
    assert np.isneginf(score_QK[~real]).all()
    for scores, rows in zip(score_QK, row_QK, strict=True):
        hits = [(-score, ids[row]) for score, row in zip(scores, rows, strict=True) if row >= 0]
        assert hits == sorted(hits) and len({name for _, name in hits}) == len(hits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 7, 100, 400])
@pytest.mark.parametrize("partitioned", [False, True])
def test_search_equals_a_float64_reference(
    kind: str, k: int, partitioned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "BLOCK_DOCUMENTS", 64)
    monkeypatch.setattr(exact, "SCORE_BYTES", 64 * 4 * 11)  # blocks of 11 queries
    vector_ND, query_QD, ids = unit_vectors(300, 32), unit_vectors(50, 32, seed=1), shuffled_ids(300)
    vector_ND[100:200] = vector_ND[:100] + np.random.default_rng(2).normal(0, 3e-8, (100, 32))  # near-ties and ties
    part_N, part_Q = np.arange(300) % 7, np.arange(50) % 8  # partition 7 holds no document
    names_N = [f"p{p}" for p in part_N] if partitioned else None
    index = VectorIndex.build(vector_ND, ids, kind=kind, partition_N=names_N)  # type: ignore[arg-type]
    assert index.kind == kind
    seen_QN = part_Q[:, None] == part_N if partitioned else np.ones((50, 300), dtype=bool)
    score_QK, row_QK = index.search(query_QD, k, [f"p{p}" for p in part_Q] if partitioned else None)
    assert score_QK.dtype == np.float32 and row_QK.dtype == np.int64 and row_QK.shape == score_QK.shape == (50, k)
    require_right(query_QD, vector_ND, ids, score_QK, row_QK, seen_QN)
    score_QK, row_QK = index.search(query_QD, k)  # over all partitions
    require_right(query_QD, vector_ND, ids, score_QK, row_QK, np.ones((50, 300), dtype=bool))


@pytest.mark.parametrize(("kind", "block"), [("exact", 16), ("exact", 64), ("exact", 1000), ("faiss", 16)])
def test_ties_go_to_the_smaller_id_even_at_the_last_rank_and_across_blocks(
    kind: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "BLOCK_DOCUMENTS", block)
    monkeypatch.setattr(index_module, "TIED_HITS", 100)  # a few queries at a time, then one
    random = np.random.default_rng(0)
    vector_ND = random.integers(-1, 2, (200, 3)).astype(np.float32)  # whole numbers: scores are exact, ties everywhere
    query_QD = random.integers(-2, 3, (40, 3)).astype(np.float32)
    ids = shuffled_ids(200)
    score_QN = query_QD @ vector_ND.T
    for k in (1, 10, 150, 199, 200):
        _, row_QK = VectorIndex.build(vector_ND, ids, kind=kind).search(query_QD, k)  # type: ignore[arg-type]
        for scores, rows in zip(score_QN, row_QK, strict=True):
            expected = sorted(range(200), key=lambda row, scores=scores: (-scores[row], ids[row]))[:k]  # type: ignore[misc]
            assert rows.tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_zero_tie_whatever_their_sign(kind: str) -> None:
    vector_ND = np.array([[0.0, 1.0], [-0.0, 1.0], [-1.0, 1.0]], dtype=np.float32)
    index = VectorIndex.build(vector_ND, ["b", "a", "c"], kind=kind)  # type: ignore[arg-type]
    score_QK, row_QK = index.search(np.array([[1.0, 0.0]]), 3)
    assert row_QK.tolist() == [[1, 0, 2]] and score_QK.tolist() == [[0.0, 0.0, -1.0]]
    assert index.search(np.array([[1.0, 0.0]]), 1)[1].tolist() == [[1]]


@pytest.mark.parametrize("kind", KINDS)
def test_of_documents_that_are_all_alike_the_smallest_ids_are_found(kind: str) -> None:
    index = VectorIndex.build(np.tile(unit_vectors(1, 4), (500, 1)), shuffled_ids(500), kind=kind)  # type: ignore[arg-type]
    _, row_QK = index.search(unit_vectors(30, 4, seed=1), 3)
    assert {tuple(index.ids[row] for row in rows) for rows in row_QK} == {("d0", "d1", "d10")}


@pytest.mark.parametrize("kind", KINDS)
def test_stored_types_and_a_callers_autocast_do_not_change_scores(kind: str, tmp_path: Path) -> None:
    vector_ND, query_QD, ids = unit_vectors(80, 16), unit_vectors(5, 16, seed=1), shuffled_ids(80)
    half_ND = vector_ND.astype(np.float16)
    np.save(tmp_path / "half.npy", half_ND)
    seen = np.ones((5, 80), dtype=bool)
    for given in (half_ND, np.load(tmp_path / "half.npy", mmap_mode="r"), np.asfortranarray(half_ND)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = VectorIndex.build(given, ids, kind=kind).search(query_QD, 10)  # type: ignore[arg-type]
        require_right(query_QD, half_ND, ids, *found, seen)


def test_auto_is_faiss_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = index_module._faiss_installed()
    assert VectorIndex.build(unit_vectors(3, 4), ["a", "b", "c"]).kind == ("faiss" if installed else "exact")
    monkeypatch.setattr(index_module, "_faiss_installed", lambda: False)
    assert VectorIndex.build(unit_vectors(3, 4), ["a", "b", "c"]).kind == "exact"
    with pytest.raises(InputError, match=r"FAISS is not installed[\s\S]*pip install"):
        VectorIndex.build(unit_vectors(3, 4), ["a", "b", "c"], kind="faiss")


def test_what_is_not_finite_or_of_another_dimension_is_refused() -> None:
    vector_ND = unit_vectors(4, 3)
    index = VectorIndex.build(vector_ND, list("abcd"), kind="exact")
    query_QD = unit_vectors(3, 3)
    query_QD[1, 0] = np.nan
    with pytest.raises(InputError, match=r"1 query vectors are not finite[\s\S]*\[1\]"):
        index.search(query_QD, 2)
    with pytest.raises(InputError, match="another dimension"):
        index.search(unit_vectors(3, 5), 2)
    vector_ND[2, 1] = np.inf
    with pytest.raises(InputError, match="'c'"):
        VectorIndex.build(vector_ND, list("abcd"), kind="exact")


def test_no_query_has_no_hit() -> None:
    score_QK, row_QK = VectorIndex.build(unit_vectors(4, 3), list("abcd"), kind="exact").search(np.empty((0, 3)), 2)
    assert score_QK.shape == row_QK.shape == (0, 2)


@pytest.mark.parametrize("partitioned", [False, True])
def test_shards_hold_all_documents_once(partitioned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "BLOCK_DOCUMENTS", 16)
    vector_ND, ids = unit_vectors(300, 8), shuffled_ids(300)
    names_N = ["de"] * 50 + ["en"] * 240 + ["fr"] * 10 if partitioned else None
    index = VectorIndex.build(vector_ND, ids, kind="exact", partition_N=names_N)
    shards = [index.shard(number, 3) for number in range(3)]
    found = [row_QK[0][row_QK[0] >= 0].tolist() for _, row_QK in (s.search(vector_ND[:1], 300) for s in shards)]
    assert sorted(row for rows in found for row in rows) == list(range(300))
    assert max(len(rows) for rows in found) <= 128
    none = index.shard(0, 300)  # more processes than blocks: some have nothing
    assert (none.search(vector_ND[:2], 5)[1] == -1).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("partitioned", [False, True])
def test_a_saved_index_answers_the_same(kind: str, partitioned: bool, tmp_path: Path) -> None:
    vector_ND, query_QD, ids = unit_vectors(30, 6), unit_vectors(6, 6, seed=1), shuffled_ids(30)
    part_N = ["de", "en", "fr"] * 10 if partitioned else None
    part_Q = ["de", "en"] * 3 if partitioned else None
    index = VectorIndex.build(vector_ND, ids, kind=kind, partition_N=part_N)  # type: ignore[arg-type]
    index.save(tmp_path / "index", toy_space(), store_sha256="abc")
    loaded = VectorIndex.load(tmp_path / "index", toy_space(), ids, store_sha256="abc")
    assert (loaded.ids, loaded.kind) == (ids, kind) and saved_kind(tmp_path / "index") == kind
    for before, after in zip(index.search(query_QD, 12, part_Q), loaded.search(query_QD, 12, part_Q), strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_saved_index_of_anything_else_is_refused(tmp_path: Path) -> None:
    folder, ids = tmp_path / "index", list("abcdef")
    VectorIndex.build(unit_vectors(6, 6), ids, kind="exact").save(folder, toy_space(), store_sha256="abc")
    with pytest.raises(StaleArtefactError, match="teacher: 'teacher' in"):
        VectorIndex.load(folder, toy_space("another"))
    with pytest.raises(StaleArtefactError, match="another vector store"):
        VectorIndex.load(folder, toy_space(), store_sha256="def")
    with pytest.raises(StaleArtefactError, match="other documents"):
        VectorIndex.load(folder, toy_space(), ids[::-1])
    with pytest.raises(InputError, match="no such file"):
        VectorIndex.load(tmp_path / "none", toy_space())
    (folder / "part-00000.npy").write_bytes((folder / "part-00000.npy").read_bytes()[:-1])
    with pytest.raises(StaleArtefactError, match="truncated"):
        VectorIndex.load(folder, toy_space())
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "store": "def"}))
    for opened in (lambda: VectorIndex.load(folder, toy_space()), lambda: saved_kind(folder)):
        with pytest.raises(StaleArtefactError, match="edited"):
            opened()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "ids.json").write_text(json.dumps(ids[::-1]))
    with pytest.raises(StaleArtefactError, match="edited"):
        VectorIndex.load(folder, toy_space())


@pytest.mark.parametrize("partitions", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_index_over_a_stores_rows_is_that_over_their_vectors(
    kind: str, partitions: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "BLOCK_DOCUMENTS", 4)
    ids, texts = toy_rows(30)
    store = write_store(tmp_path / "store", ids, texts, toy_encode, toy_space(), shard_rows=7)
    row_N = np.random.default_rng(0).permutation(30)
    names, vector_ND = [ids[row] for row in row_N], store.vectors(row_N)
    language_N = [name[-1] for name in names] if partitions else None
    asked = (vector_ND[:5], 6, language_N[:5] if language_N else None)
    expected = VectorIndex.build(vector_ND, names, kind=kind, partition_N=language_N).search(*asked)
    index = VectorIndex.build(StoreRows(store, row_N), names, kind=kind, partition_N=language_N)
    index.save(tmp_path / "index", toy_space())
    for some in (index, VectorIndex.load(tmp_path / "index", toy_space(), names)):
        for got, wanted in zip(some.search(*asked), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
