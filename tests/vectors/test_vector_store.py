from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from builders.vectors import DIMENSION, toy_encode, toy_rows, toy_space
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.runtime.errors import InputError, StaleArtefactError
from harness.vectors.codec import STORE_DTYPES, pack, unpack
from harness.vectors.store import VectorStore, content_sha256, text_hashes
from harness.vectors.writer import write_store


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_store_returns_what_was_put_in_under_any_shard_size_order_and_dtype(data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.text(max_size=8), min_size=1, max_size=12, unique=True), label="ids")
    dtype = data.draw(st.sampled_from(STORE_DTYPES), label="dtype")
    value = st.floats(-1e4, 1e4, width=16)
    put_in = {name: data.draw(st.lists(value, min_size=2, max_size=2), label="vector") for name in ids}
    held = {name: unpack(pack(np.array([vector]), dtype), dtype)[0] for name, vector in put_in.items()}
    shard_rows = data.draw(st.integers(1, 14), label="shard_rows")
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(
            Path(folder) / "store", ids, ids, lambda texts: np.array([put_in[text] for text in texts], np.float32),
            toy_space(dimension=2), dtype=dtype, shard_rows=shard_rows,
        )  # fmt: skip
        assert store.ids == ids and len(store) == len(ids) and store.dtype == dtype
        wanted = data.draw(st.lists(st.sampled_from(ids), max_size=20), label="wanted")
        expected_BD = np.array([held[name] for name in wanted], dtype=np.float32).reshape(len(wanted), 2)
        got_BD = store.vectors(store.rows_of(wanted))
        assert got_BD.dtype == np.float32
        np.testing.assert_array_equal(got_BD, expected_BD)
        everything_ND = np.array([held[name] for name in ids], dtype=np.float32)
        np.testing.assert_array_equal(VectorStore.open(store.folder, verify=True).vectors(), everything_ND)
        block_rows = data.draw(st.integers(1, 14), label="block_rows")
        blocks = list(store.blocks(block_rows))
        assert [start for start, _ in blocks] == list(range(0, len(ids), block_rows))
        np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), everything_ND)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ids, texts = toy_rows(10)
    write_store(tmp_path / "store", ids, texts, toy_encode, toy_space(), shard_rows=4)
    return tmp_path / "store"


def mapped_kib(path: Path) -> int:
    """How much of a mapped file this process holds."""
    lines, held, ours = Path("/proc/self/smaps").read_text().splitlines(), 0, False
    for line in lines:
        if not line.split()[0].endswith(":"):
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            held += int(line.split()[1])
    return held


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux says what a process holds")
def test_what_was_read_of_a_shard_is_held_no_longer(tmp_path: Path) -> None:
    ids, texts = toy_rows(20_000)
    store = write_store(tmp_path / "store", ids, texts, toy_encode, toy_space(), shard_rows=20_000)
    stored_N = np.load(path := tmp_path / "store" / "shard-00000.npy", mmap_mode="r")
    assert stored_N.sum() != 0 and mapped_kib(path) > 200, "a mapping that is read is held"
    stored_N = None
    for start in range(0, 20_000, 100):
        store.vectors(np.arange(start, start + 100))
    assert mapped_kib(path) < 100
    np.testing.assert_array_equal(store.vectors(np.array([5])), toy_encode([texts[5]]))


def test_what_lies_in_the_folder(folder: Path) -> None:
    files = {f"{kind}-{n:05d}.{suffix}" for n in range(3) for kind, suffix in
             [("shard", "npy"), ("ids", "json"), ("texts", "npy"), ("shard", "json")]}  # fmt: skip
    assert {path.name for path in folder.iterdir()} == files | {"manifest.json"}
    assert [path.name for path in folder.parent.iterdir()] == ["store"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["space"] == toy_space().to_json()
    assert (manifest["rows"], manifest["dimension"], manifest["dtype"]) == (10, DIMENSION, "float32")
    assert [shard["rows"] for shard in manifest["shards"]] == [4, 4, 2]
    assert json.loads((folder / "ids-00002.json").read_text()) == ["d8", "d9"]
    assert np.load(folder / "texts-00000.npy").dtype == np.uint64
    assert VectorStore.open(folder).sha256 == manifest["sha256"]


def test_missing_ids_are_named(folder: Path) -> None:
    store = VectorStore.open(folder)
    assert store.row["d7"] == 7
    with pytest.raises(InputError, match=r"2 ids have no vector[\s\S]*'x', 'y'"):
        store.rows_of(["x", "d1", "y"])
    with pytest.raises(AssertionError):
        store.vectors(np.array([-1]))


def test_no_store_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no vector store"):
        VectorStore.open(tmp_path)


def test_truncated_and_missing_files_are_found_on_opening_all_at_once(folder: Path) -> None:
    with open(folder / "shard-00000.npy", "r+b") as stream:
        stream.truncate(150)
    (folder / "shard-00001.npy").unlink()
    (folder / "ids-00002.json").write_text('["d8"]')
    with pytest.raises(StaleArtefactError) as caught:
        VectorStore.open(folder)
    assert len(caught.value.problems) == 3
    for name in ("shard-00000.npy", "shard-00001.npy", "ids-00002.json"):
        assert name in str(caught.value)


@pytest.mark.parametrize("name", ["shard-00001.npy", "ids-00001.json", "texts-00001.npy"])
def test_one_flipped_bit_is_found_by_verifying(folder: Path, name: str) -> None:
    VectorStore.open(folder, verify=True)
    content = bytearray((folder / name).read_bytes())
    content[-4] ^= 1
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(InputError, match="00001"):
        VectorStore.open(folder, verify=True)


@pytest.mark.parametrize("teacher", ["teacher", "another"])
def test_a_manifest_of_another_store_is_refused(folder: Path, tmp_path: Path, teacher: str) -> None:
    ids, texts = toy_rows(10)
    other, texts = tmp_path / "other", [text + "!" * (teacher == "teacher") for text in texts]
    write_store(other, ids, texts, toy_encode, toy_space(teacher), shard_rows=4)
    shutil.copy(other / "manifest.json", folder / "manifest.json")
    with pytest.raises(StaleArtefactError, match="manifest is of another store"):
        VectorStore.open(folder)


def test_an_edited_manifest_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    written = json.loads(path.read_text())
    written["space"]["teacher"] = "forged"
    path.write_text(json.dumps(written))
    with pytest.raises(StaleArtefactError, match="contradicts itself"):
        VectorStore.open(folder)
    path.write_text("{}")
    with pytest.raises(InputError, match="not the manifest"):
        VectorStore.open(folder)


def test_content_hash_tells_ids_texts_and_order_apart() -> None:
    def content(ids: list[str], texts: list[str]) -> str:
        return content_sha256(ids, text_hashes(texts))

    variants = [(["a", "b"], ["x", "y"]), (["b", "a"], ["x", "y"]), (["ab", ""], ["x", "y"]), (["a", "b"], ["x", "z"]),
                (["a", "b"], ["y", "x"]), (["a"], ["x"]), (["1:a,", "b"], ["x", "y"])]  # fmt: skip
    assert len({content(*variant) for variant in variants}) == len(variants)
    assert content(["a", "b"], ["x", "y"]) == content(["a", "b"], ["x", "y"])
    assert content(["\ud800"], ["\ud800"])  # a lone surrogate, as JSON may hold
