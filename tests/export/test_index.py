"""Axes: Q queries, N documents, D dimensions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders.vectors import toy_space, unit_vectors

from harness.export import index as module
from harness.export.index import (
    FILES,
    exact_hits,
    export_index,
    is_handed_over,
    open_handed_over,
    vector_files,
)
from harness.runtime.errors import InputError, StaleArtefactError
from harness.runtime.process import read_json
from harness.vectors.files import import_vectors
from harness.vectors.store import VectorStore
from harness.vectors.writer import write_store

N, D = 700, 32
IDS = [f"d {number} é" for number in range(N)]
DOCUMENT_ND = unit_vectors(N, D)
QUERY_QD = unit_vectors(40, D, seed=9)


def made(folder: Path, ids: list[str] = IDS, dtype: str = "float32") -> VectorStore:
    row = {name: at for at, name in enumerate(ids)}
    return write_store(folder, ids, ids, lambda texts: DOCUMENT_ND[[row[text] for text in texts]],
                       toy_space(dimension=D), dtype=dtype, shard_rows=300)  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> VectorStore:
    return made(tmp_path_factory.mktemp("stores") / "documents")


@pytest.fixture(scope="module")
def handed(store: VectorStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("faiss")
    target = tmp_path_factory.mktemp("export") / "index"
    export_index(store, target, list(FILES), QUERY_QD)
    return target


@pytest.mark.parametrize("name", ["npy", "parquet", "faiss"])
def test_what_is_handed_over_can_be_brought_back(name: str, handed: Path, store: VectorStore, tmp_path: Path) -> None:
    again = import_vectors(vector_files(handed, name), tmp_path / "store", store.space, IDS)
    assert again.ids == IDS
    np.testing.assert_array_equal(again.vectors(), DOCUMENT_ND)


@pytest.mark.parametrize("name", ["npy", "parquet", "faiss"])
def test_each_exact_form_opens_with_its_space(name: str, store: VectorStore, tmp_path: Path) -> None:
    if name == "faiss":
        pytest.importorskip("faiss")
    export_index(store, tmp_path / "index", [name], QUERY_QD)
    opened = open_handed_over(tmp_path / "index")
    assert opened.space == store.space and opened.ids == IDS and is_handed_over(tmp_path / "index")
    np.testing.assert_array_equal(opened.vector_ND, DOCUMENT_ND)


def test_faiss_finds_what_an_exact_search_finds(handed: Path) -> None:
    faiss: Any = pytest.importorskip("faiss")
    _, row_QK = faiss.read_index(str(handed / "index.faiss")).search(QUERY_QD, 10)
    best_QK = np.argsort(-(QUERY_QD @ DOCUMENT_ND.T), axis=1)[:, :10]
    assert [set(row) for row in row_QK.tolist()] == [set(row) for row in best_QK.tolist()]


def test_the_cost_is_that_of_a_search_by_hand(handed: Path) -> None:
    faiss: Any = pytest.importorskip("faiss")
    told = read_json(handed / "manifest.json")["cost"]
    best_QK = np.argsort(-(QUERY_QD @ DOCUMENT_ND.T), axis=1)[:, :10]
    for name, file in (("faiss-int8", "index-int8.faiss"), ("faiss-pq", "index-pq.faiss")):
        _, row_QK = faiss.read_index(str(handed / file)).search(QUERY_QD, 10)
        by_hand = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(best_QK.tolist(), row_QK.tolist(), strict=True)])
        assert told[name]["recall@10"] == pytest.approx(by_hand)
        assert told[name]["recall@10_of_100"] >= told[name]["recall@10"] and told[name]["queries"] == 40
    assert told["faiss-int8"]["recall@10"] > 0.9 > told["faiss-pq"]["recall@10"] > 0.05
    assert told["faiss-int8"]["bytes_per_vector"] == D and told["faiss-pq"]["bytes_per_vector"] == D // 4


def test_the_manifest_names_the_space_and_every_file(handed: Path, store: VectorStore) -> None:
    told = read_json(handed / "manifest.json")
    assert told["space"] == store.space.to_json() and told["rows"] == N and told["store"] == store.sha256
    assert {entry["file"] for entry in told["files"].values()} | {"ids.txt", "manifest.json"} == {
        path.name for path in handed.iterdir()
    }


@pytest.mark.parametrize("block", [1, 7, 300, 10_000])
def test_exact_hits_do_not_depend_on_the_blocks(store: VectorStore, block: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    best_QK = np.argsort(-(QUERY_QD @ DOCUMENT_ND.T), axis=1)[:, :10]
    assert [set(row) for row in exact_hits(store, QUERY_QD, 10).tolist()] == [set(row) for row in best_QK.tolist()]


def test_only_a_block_of_vectors_is_in_memory(store: VectorStore, tmp_path: Path, monkeypatch: Any) -> None:
    """Whoever asks for all rows at once would hold an index of any size."""
    asked: list[int] = []
    vectors = VectorStore.vectors

    def counted(self: VectorStore, row_B: Any = None) -> Any:
        asked.append(len(self) if row_B is None else len(row_B))
        return vectors(self, row_B)

    monkeypatch.setattr(module, "BLOCK", 100)
    monkeypatch.setattr(VectorStore, "vectors", counted)
    export_index(store, tmp_path / "index", ["npy", "parquet"], QUERY_QD)
    assert asked and max(asked) <= 100 and sum(asked) == 2 * N


def test_half_precision_stays_half(tmp_path: Path) -> None:
    export_index(made(tmp_path / "store", dtype="float16"), tmp_path / "index", ["npy"], QUERY_QD)
    assert np.load(tmp_path / "index" / "vectors.npy").dtype == np.float16


def test_fewer_documents_than_centroids(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    told = export_index(made(tmp_path / "store", IDS[:5]), tmp_path / "index", ["faiss-pq", "npy"], QUERY_QD)
    assert 0 < told["cost"]["faiss-pq"]["recall@10"] <= 1


def test_files_without_faiss(store: VectorStore, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("harness.vectors.index._faiss_installed", lambda: False)
    monkeypatch.setitem(sys.modules, "faiss", None)
    export_index(store, tmp_path / "index", ["npy", "parquet"], QUERY_QD)
    with pytest.raises(InputError, match="FAISS is not installed"):
        export_index(store, tmp_path / "other", ["npy", "faiss"], QUERY_QD)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["two\nlines", "a return\r", "\ufeffmarked"])
def test_an_id_that_breaks_a_line_is_refused_by_name(name: str, tmp_path: Path) -> None:
    store = made(tmp_path / "store", [name, *IDS[:3]])
    with pytest.raises(InputError) as caught:
        export_index(store, tmp_path / "index", ["npy"], QUERY_QD)
    assert repr(name) in str(caught.value)
    export_index(store, tmp_path / "index", ["parquet"], QUERY_QD)
    assert open_handed_over(tmp_path / "index").ids[0] == name


@pytest.mark.parametrize("file", ["vectors.npy", "ids.txt", "manifest.json"])
def test_a_swapped_file_is_named(file: str, store: VectorStore, tmp_path: Path) -> None:
    export_index(store, tmp_path / "index", ["npy"], QUERY_QD)
    path = tmp_path / "index" / file
    if file == "manifest.json":
        path.write_text(json.dumps({**read_json(path), "rows": 3}))
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StaleArtefactError) as caught:
        open_handed_over(tmp_path / "index")
    assert [problem.where for problem in caught.value.problems] == [str(path)]


def test_every_file_of_the_manifest_is_held_against_it(store: VectorStore, tmp_path: Path) -> None:
    export_index(store, tmp_path / "index", ["npy", "parquet"], QUERY_QD)
    (tmp_path / "index" / "vectors.npy").unlink()
    path = tmp_path / "index" / "vectors.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (tmp_path / "index" / "ids.txt").write_text("another\n")
    with pytest.raises(StaleArtefactError) as caught:
        open_handed_over(tmp_path / "index")
    assert [Path(problem.where).name for problem in caught.value.problems] == [
        "vectors.npy", "vectors.parquet", "ids.txt"
    ]  # fmt: skip


def test_approximate_vectors_alone_can_not_be_verified_against(store: VectorStore, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    export_index(store, tmp_path / "index", ["faiss-int8"], QUERY_QD)
    with pytest.raises(InputError, match="only approximate"):
        open_handed_over(tmp_path / "index")
