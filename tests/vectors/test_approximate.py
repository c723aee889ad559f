"""Approximate indexes: exact at full effort, the same after reopening, seeded, and refused where they don't fit."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders.vectors import toy_encode, toy_rows, toy_space, unit_vectors

from harness.runtime.errors import InputError, StaleArtefactError
from harness.vectors.approximate import ApproximateIndex, AsAsked, default_efforts, misfits, resolved
from harness.vectors.index import VectorIndex
from harness.vectors.store import StoreRows
from harness.vectors.writer import write_store

faiss = pytest.importorskip("faiss")
DIMENSION = 16
HNSW = {"neighbours": 8, "ef_construction": 40}
PARAMETERS: dict[str, dict[str, int | None]] = {
    "hnsw": HNSW, "ivf": {"lists": 12}, "ivf-pq": {"lists": 12, "parts": None, "bits": 4, "rerank": 100},
}  # fmt: skip
KINDS = list(PARAMETERS)


def ids_of(count: int) -> list[str]:
    return [f"d{number}" for number in np.random.default_rng(1).permutation(count)]


def build(kind: str, count: int = 700, **changes: Any) -> ApproximateIndex:
    return ApproximateIndex.build(unit_vectors(count, DIMENSION), ids_of(count), kind, PARAMETERS[kind], **changes)


def exact(count: int = 700, partition_N: list[str] | None = None) -> VectorIndex:
    return VectorIndex.build(unit_vectors(count, DIMENSION), ids_of(count), kind="exact", partition_N=partition_N)


QUERIES = unit_vectors(40, DIMENSION, seed=1)


@pytest.mark.parametrize("kind", KINDS)
def test_at_full_effort_every_hit_is_the_exact_one(kind: str) -> None:
    score_QK, row_QK = build(kind).at(700).search(QUERIES, 10)
    expected_QK, expected_row_QK = exact().search(QUERIES, 10)
    np.testing.assert_array_equal(row_QK, expected_row_QK)
    np.testing.assert_allclose(score_QK, expected_QK, atol=1e-6)
    assert score_QK.dtype == np.float32 and row_QK.dtype == np.int64


@pytest.mark.parametrize("kind", KINDS)
def test_less_effort_finds_less(kind: str) -> None:
    index, (_, best_QK) = build(kind), exact().search(QUERIES, 10)
    found = [np.mean([len(set(a) & set(b)) for a, b in zip(index.at(effort).search(QUERIES, 10)[1], best_QK,
                                                           strict=True)]) for effort in (1, 700)]  # fmt: skip
    assert found[0] < found[1] == 10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("partitioned", [False, True])
def test_a_saved_index_answers_as_the_one_in_memory(kind: str, partitioned: bool, tmp_path: Path) -> None:
    names = ["de", "en"] * 700 if partitioned else None
    asked = ["en", "de", "xx", "en"] * 10 if partitioned else None
    index = build(kind, 1400, partition_N=names)
    index.save(tmp_path / "index", toy_space(dimension=DIMENSION), store_sha256="abc")
    loaded = ApproximateIndex.load(tmp_path / "index", toy_space(dimension=DIMENSION), store_sha256="abc", verify=True)
    assert (loaded.ids, loaded.kind, loaded.parameters) == (index.ids, kind, index.parameters)
    assert (loaded.seed, loaded.seconds, loaded.searched) == (index.seed, index.seconds, 700 if partitioned else 1400)
    for effort in (2, 50):
        for k in (5, 30):
            for before, after in zip(index.at(effort).search(QUERIES, k, asked),
                                     loaded.at(effort).search(QUERIES, k, asked), strict=True):  # fmt: skip
                np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("kind", KINDS)
def test_a_partition_is_searched_alone(kind: str) -> None:
    names, asked = ["de", "en"] * 700, ["en", "de", "xx", "en"] * 10
    found = build(kind, 1400, partition_N=names).at(700).search(QUERIES, 10, asked)
    expected = exact(1400, names).search(QUERIES, 10, asked)
    np.testing.assert_array_equal(found[1], expected[1])
    assert (found[1][2] == -1).all() and np.isneginf(found[0][2]).all(), "a partition without documents"
    everywhere = build(kind, 1400, partition_N=names).at(700).search(QUERIES, 10)
    np.testing.assert_array_equal(everywhere[1], exact(1400).search(QUERIES, 10)[1])


def test_the_seed_decides_and_one_thread_repeats_itself(tmp_path: Path) -> None:
    def content(seed: int) -> bytes:
        build("ivf", seed=seed).save(tmp_path / "index", toy_space(dimension=DIMENSION))
        return (tmp_path / "index" / "part-00000.faiss").read_bytes()

    assert content(1) == content(1) != content(2)
    graphs = [build("hnsw", seed=seed).at(2).search(QUERIES, 5)[1].tolist() for seed in (1, 1, 2)]
    assert graphs[0] == graphs[1] != graphs[2]


def test_threads_are_as_before_afterwards() -> None:
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(3)
        build("ivf", threads=2).at(1).search(QUERIES, 1)
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)


def test_fewer_documents_than_hits_and_ties_by_id() -> None:
    vector_ND = np.repeat(unit_vectors(2, DIMENSION), 4, axis=0)
    ids = list("hgfedcba")
    score_QK, row_QK = ApproximateIndex.build(vector_ND, ids, "hnsw", HNSW).at(8).search(vector_ND[:1], 10)
    assert [ids[row] for row in row_QK[0, :4]] == ["e", "f", "g", "h"]
    assert row_QK[0, 8:].tolist() == [-1, -1] and np.isneginf(score_QK[0, 8:]).all()


def test_the_first_hits_are_those_of_who_asks_for_as_many() -> None:
    parameters = {"lists": 12, "parts": 4, "bits": 4, "rerank": 1}
    index = ApproximateIndex.build(unit_vectors(700, DIMENSION), ids_of(700), "ivf-pq", parameters).at(6)
    few_score_QK, few_QK = index.search(QUERIES, 5)
    deep_QK = index.search(QUERIES, 50)[1]
    assert (few_QK != deep_QK[:, :5]).any(), "a deeper search finds better first ones: nothing is put to the test"
    score_QK, row_QK = AsAsked(index, 5).search(QUERIES, 50)
    np.testing.assert_array_equal(row_QK[:, :5], few_QK)
    np.testing.assert_array_equal(score_QK[:, :5], few_score_QK)
    assert row_QK.shape == (40, 50) and (np.diff(score_QK, axis=1) <= 0).all()
    assert all(len(set(rows)) == 50 for rows in row_QK.tolist()), "no document twice"
    rest = [set(few) | set(deep) for few, deep in zip(few_QK.tolist(), deep_QK.tolist(), strict=True)]
    assert all(set(rows) <= known for rows, known in zip(row_QK.tolist(), rest, strict=True))
    np.testing.assert_array_equal(AsAsked(index, 5).search(QUERIES, 3)[1], index.search(QUERIES, 3)[1])


def test_a_deep_search_takes_memory_for_its_hits_alone() -> None:
    count, depth, k = 400, 200, 100

    class Deep:
        """Any index whose hits for depth are those for k and others."""

        def search(self, query_QD: np.ndarray, k: int, partition_Q: object = None) -> tuple[np.ndarray, np.ndarray]:
            return np.zeros((len(query_QD), k), dtype=np.float32), np.tile(np.arange(k), (len(query_QD), 1))

    searcher = AsAsked(Deep(), k)  # type: ignore[arg-type]
    tracemalloc.start()
    _, row_QK = searcher.search(np.zeros((count, 2), dtype=np.float32), depth)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert row_QK.tolist() == [list(range(depth))] * count
    assert peak < 0.6 * count * depth * k, f"{peak} bytes: every hit beside every other"


def test_an_index_over_a_stores_rows_is_that_over_their_vectors(tmp_path: Path) -> None:
    ids, texts = toy_rows(300)
    store = write_store(tmp_path / "store", ids, texts, toy_encode, toy_space(), shard_rows=70)
    row_N = np.random.default_rng(0).permutation(300)
    names, vector_ND = [ids[row] for row in row_N], store.vectors(row_N)
    given = (vector_ND, StoreRows(store, row_N))
    indexes = [ApproximateIndex.build(some, names, "hnsw", HNSW).at(3) for some in given]
    for one, other in zip(*(index.search(vector_ND[:9], 4) for index in indexes), strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_space_another_store_and_damage_are_refused(tmp_path: Path) -> None:
    folder, space = tmp_path / "index", toy_space(dimension=DIMENSION)
    build("hnsw", 100).save(folder, space, store_sha256="abc")
    with pytest.raises(StaleArtefactError, match="teacher: 'teacher' in"):
        ApproximateIndex.load(folder, toy_space("another", DIMENSION))
    with pytest.raises(StaleArtefactError, match="another vector store"):
        ApproximateIndex.load(folder, space, store_sha256="def")
    with pytest.raises(InputError, match="no such file"):
        ApproximateIndex.load(tmp_path / "none", space)
    path, content = folder / "part-00000.faiss", (folder / "part-00000.faiss").read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StaleArtefactError, match=r"part-00000\.faiss"):
        ApproximateIndex.load(folder, space, verify=True)
    path.write_bytes(b"x" * len(content))
    with pytest.raises(StaleArtefactError, match="damaged"):
        ApproximateIndex.load(folder, space)
    path.write_bytes(content[:-1])
    with pytest.raises(StaleArtefactError, match="truncated"):
        ApproximateIndex.load(folder, space)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "seed": 9}))
    with pytest.raises(StaleArtefactError, match="edited"):
        ApproximateIndex.load(folder, space)


def test_what_is_not_finite_or_of_another_dimension_is_refused() -> None:
    index, query_QD = build("hnsw", 100), QUERIES.copy()
    with pytest.raises(InputError, match="another dimension"):
        index.search(unit_vectors(3, 5), 2)
    query_QD[1, 0] = np.nan
    with pytest.raises(InputError, match=r"1 query vectors are not finite[\s\S]*\[1\]"):
        index.search(query_QD, 2)
    vector_ND = unit_vectors(100, DIMENSION)
    vector_ND[70, 3] = np.inf
    with pytest.raises(InputError, match=r"not finite[\s\S]*\[70\]"):
        ApproximateIndex.build(vector_ND, ids_of(100), "hnsw", HNSW)


def test_too_few_documents_to_train_are_refused_with_numbers() -> None:
    says = r"256 centroids[\s\S]*700 documents[\s\S]*9,984 documents[\s\S]*lower bits to 4, or take"
    with pytest.raises(InputError, match=says):
        ApproximateIndex.build(unit_vectors(700, DIMENSION), ids_of(700), "ivf-pq",
                               {"lists": 12, "parts": None, "bits": 8, "rerank": 0})  # fmt: skip
    with pytest.raises(InputError, match=r"lower lists to 17, or take"):
        ApproximateIndex.build(unit_vectors(700, DIMENSION), ids_of(700), "ivf", {"lists": 18})
    (problem,) = misfits("ivf-pq", {"lists": 1, "parts": 7, "bits": 4}, 10_000, 16)
    assert (problem.got, problem.allowed) == ("7", "a divisor of 16")


def test_parameters_that_are_left_open_depend_on_the_documents() -> None:
    assert resolved("ivf", {"lists": None}, 1_000_000, 384) == {"lists": 4000}
    assert resolved("ivf", {"lists": None}, 100, 384) == {"lists": 2}
    assert resolved("ivf", {"lists": None}, 3, 384) == {"lists": 1}
    assert resolved("ivf-pq", {"lists": 5, "parts": None, "bits": 8, "rerank": 0}, 9, 30)["parts"] == 6
    assert default_efforts("hnsw", HNSW, 10)[:5] == [10, 14, 20, 28, 40]
    assert default_efforts("hnsw", HNSW, 10)[-1] == 2048
    assert default_efforts("ivf", {"lists": 12}, 10) == [1, 2, 3, 4, 6, 8, 11, 12]
    assert default_efforts("ivf", {"lists": 1}, 10) == [1]
