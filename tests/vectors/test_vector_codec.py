from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders.vectors import CountingEncode, toy_encode, toy_rows, toy_space
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from harness.runtime.errors import StaleArtefactError
from harness.vectors.codec import STORE_DTYPES, pack, row_bytes, stored_as, unpack
from harness.vectors.index import VectorIndex
from harness.vectors.store import VectorStore
from harness.vectors.writer import update_store, write_store

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100)
ROWS = arrays.arrays(np.float32, st.tuples(st.integers(0, 5), st.integers(1, 9)), elements=FLOAT32)


def unit_vectors(rows: int, dimension: int, outliers: int = 0) -> np.ndarray:
    vector_BD = np.random.default_rng(0).standard_normal((rows, dimension)).astype(np.float32)
    vector_BD[:, :outliers] *= 10
    return vector_BD / np.linalg.norm(vector_BD, axis=1, keepdims=True)


@pytest.mark.parametrize("outliers", [0, 3])
@pytest.mark.parametrize(("dtype", "most", "cosine"), [
    ("float32", 0.0, 1.0), ("float16", 2.0**-12, 1 - 1e-7), ("bfloat16", 2.0**-9, 1 - 4e-6), ("int8", 1 / 254, 0.9996),
])  # fmt: skip
def test_accuracy_of_unit_vectors(dtype: str, most: float, cosine: float, outliers: int) -> None:
    """The bounds of the largest error hold for all unit vectors, those of the mean cosine for such dimensions."""
    vector_BD = unit_vectors(2000, 384, outliers)
    found_BD = unpack(pack(vector_BD, dtype), dtype)
    assert found_BD.dtype == np.float32
    exact_BD, found_BD = vector_BD.astype(np.float64), found_BD.astype(np.float64)
    assert np.abs(exact_BD - found_BD).max() <= most
    lengths = np.linalg.norm(exact_BD, axis=1) * np.linalg.norm(found_BD, axis=1)
    assert np.mean((exact_BD * found_BD).sum(axis=1) / lengths) >= cosine - 1e-12


@settings(deadline=None)
@given(vector_BD=ROWS, dtype=st.sampled_from(["float32", "bfloat16", "int8"]))
def test_what_was_read_is_stored_as_the_same_bytes_and_errors_are_bounded(vector_BD: np.ndarray, dtype: str) -> None:
    stored = pack(vector_BD, dtype)
    wanted, shape = stored_as(dtype, *vector_BD.shape)
    assert stored.dtype == wanted and stored.shape == shape
    assert stored.nbytes == len(vector_BD) * row_bytes(dtype, vector_BD.shape[1])
    read_BD = unpack(stored, dtype)
    assert np.isfinite(read_BD).all()
    normal = np.abs(vector_BD).max(axis=1, initial=0) > 1e-30  # below, scales have fewer bits
    np.testing.assert_array_equal(pack(read_BD, dtype)[normal], stored[normal])
    size_B1 = np.abs(vector_BD).max(axis=1, keepdims=True, initial=0)
    half_BD = np.maximum(np.abs(vector_BD) * 2.0**-8, 2.0**-134)
    bound_BD = {"float32": 0, "bfloat16": half_BD, "int8": size_B1 / 253.9}[dtype]
    error_BD = np.abs(read_BD.astype(np.float64) - vector_BD)
    assert (error_BD <= bound_BD)[normal].all()


@settings(deadline=None)
@given(vector_BD=arrays.arrays(np.float32, (3, 4), elements=st.floats(width=32)))
def test_bfloat16_is_what_torch_rounds_to(vector_BD: np.ndarray) -> None:
    expected_BD = torch.from_numpy(vector_BD).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(unpack(pack(vector_BD, "bfloat16"), "bfloat16"), expected_BD)


def test_bfloat16_by_hand_halves_go_to_the_even_one() -> None:
    step = 2.0**-7  # between neighbours above 1
    given, expected = [1 + step / 2, 1 + 3 * step / 2, 1 + 0.51 * step, -1 - step / 2], [1, 1 + 2 * step, 1 + step, -1]
    np.testing.assert_array_equal(unpack(pack(np.array([given]), "bfloat16"), "bfloat16"), [expected])


def test_a_row_of_int8_by_hand() -> None:
    stored = pack(np.array([[127.0, -127.0, 1.4, 0.5], [0, 0, 0, 0]]), "int8")
    np.testing.assert_array_equal(stored["code"], [[127, -127, 1, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(stored["scale"], np.array([1, 0], dtype=np.float32))


# ------------------------------------------------------------------------------------ stores, whatever the storage type

IDS, TEXTS = toy_rows(11)


@pytest.fixture(params=STORE_DTYPES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> VectorStore:
    return write_store(tmp_path / "store", IDS, TEXTS, toy_encode, toy_space(), dtype=request.param, shard_rows=4)


def held(texts: list[str], dtype: str) -> np.ndarray:
    return unpack(pack(toy_encode(texts), dtype), dtype)


def test_a_store_says_its_type_and_reads_float32(store: VectorStore) -> None:
    again = VectorStore.open(store.folder, verify=True)
    assert again.dtype == again.manifest.dtype == store.dtype and again.sha256 == store.sha256
    assert again.vectors().dtype == np.float32
    np.testing.assert_array_equal(again.vectors(), held(TEXTS, store.dtype))
    np.testing.assert_array_equal(again.vectors(np.array([9, 0, 5])), held(TEXTS, store.dtype)[[9, 0, 5]])
    rows = np.load(store.folder / "shard-00001.npy", allow_pickle=False)  # plain numpy reads it
    assert rows.nbytes == 4 * row_bytes(store.dtype, store.dimension)


def test_another_type_is_written_anew(store: VectorStore) -> None:
    other = next(name for name in STORE_DTYPES if name != store.dtype)
    encode = CountingEncode()
    write_store(store.folder, IDS, TEXTS, encode, toy_space(), dtype=store.dtype, shard_rows=4)
    assert not encode.seen
    new = write_store(store.folder, IDS, TEXTS, encode, toy_space(), dtype=other, shard_rows=4)
    assert encode.seen == TEXTS and new.dtype == other and new.sha256 != store.sha256


def test_an_update_keeps_the_type_and_copied_rows_stay_the_same(store: VectorStore) -> None:
    kept = [0, 1, 5, 9, 10]  # of each shard fewer than all, so rows are copied from shard to shard
    new_ids, new_texts = toy_rows(14)
    ids, texts = [IDS[row] for row in kept] + new_ids[11:], [TEXTS[row] for row in kept] + new_texts[11:]
    before = store.vectors(np.array(kept))
    encode = CountingEncode()
    new = update_store(store.folder, ids, texts, encode, toy_space(), shard_rows=4)
    assert sorted(encode.seen) == sorted(new_texts[11:]) and new.dtype == store.dtype
    np.testing.assert_array_equal(new.vectors(new.rows_of(ids[: len(kept)])), before)
    np.testing.assert_array_equal(new.vectors(new.rows_of(ids)), held(texts, store.dtype))
    VectorStore.open(store.folder, verify=True)


@pytest.mark.parametrize("kind", ["faiss", "exact"])
def test_an_index_is_built_from_it(store: VectorStore, kind: str) -> None:
    pytest.importorskip("faiss")
    index = VectorIndex.build(store.vectors(), store.ids, kind=kind)  # type: ignore[arg-type]
    assert (index.search(toy_encode(TEXTS), 1)[1][:, 0] == np.arange(len(TEXTS))).all()


def test_damage_is_found(store: VectorStore) -> None:
    path = store.folder / "shard-00002.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StaleArtefactError, match="shard-00002.npy"):
        VectorStore.open(store.folder, verify=True)
    stored = np.load(store.folder / "shard-00001.npy", allow_pickle=False)
    np.save(store.folder / "shard-00001.npy", np.zeros(stored.nbytes, dtype=np.int8))  # as long, but something else
    with pytest.raises(StaleArtefactError, match="shard-00001.npy"):
        VectorStore.open(store.folder)
