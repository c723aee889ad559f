from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders.vectors import CountingEncode, toy_encode, toy_rows, toy_space

from harness.recipe import VectorFiles
from harness.runtime.errors import InputError
from harness.vectors.files import (
    GivenVectors,
    check_sample,
    check_vectors,
    import_vectors,
    peek_dimension,
    read_vectors,
    rounding_of,
)
from harness.vectors.store import VectorStore
from harness.vectors.writer import write_store

IDS, TEXTS = toy_rows(12)


def files_of(folder: Path, kind: str, ids: list[str], vector_ND: np.ndarray) -> VectorFiles:
    path = folder / f"vectors.{kind}"
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"id": ids, "vector": list(vector_ND)}), path)
        return VectorFiles(format="parquet", path=str(path))
    (folder / "ids.txt").write_bytes("\r\n".join(ids).encode("utf-8-sig") + b"\r\n")
    if kind == "npy":
        np.save(path, vector_ND)
        return VectorFiles(format="npy", path=str(path), ids=str(folder / "ids.txt"))
    faiss = pytest.importorskip("faiss")
    index = faiss.IndexFlatIP(vector_ND.shape[1])
    index.add(vector_ND)
    faiss.write_index(index, str(path))
    return VectorFiles(format="faiss", path=str(path), ids=str(folder / "ids.txt"))


@pytest.mark.parametrize("kind", ["npy", "parquet", "faiss"])
def test_files_become_a_store_in_the_order_asked_for(kind: str, tmp_path: Path) -> None:
    files = files_of(tmp_path, kind, IDS, toy_encode(TEXTS))
    wanted = ["d7", "d0", "d11"]
    store = import_vectors(files, tmp_path / "store", toy_space(), wanted, shard_rows=2)
    assert store.ids == wanted and peek_dimension(files) == 6
    np.testing.assert_array_equal(store.vectors(), toy_encode([TEXTS[7], TEXTS[0], TEXTS[11]]))
    other = files_of(tmp_path, kind, IDS, toy_encode(TEXTS[::-1]))
    again = import_vectors(other, tmp_path / "store", toy_space(), wanted, shard_rows=2)
    assert again.sha256 != store.sha256  # the same ids, but the file's content changed
    np.testing.assert_array_equal(again.vectors(), toy_encode([TEXTS[4], TEXTS[11], TEXTS[0]]))


@pytest.mark.parametrize("kind", ["npy", "parquet", "faiss"])
def test_the_dimension_is_told_without_the_vectors(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_of(tmp_path, kind, IDS, toy_encode(TEXTS))
    monkeypatch.setattr("harness.vectors.files.read_vectors", lambda _: pytest.fail("everything is read"))
    monkeypatch.setattr("harness.vectors.files._read_faiss", lambda _: pytest.fail("vectors are reconstructed"))
    monkeypatch.setattr("pyarrow.parquet.read_table", lambda *_, **__: pytest.fail("the whole table is read"))
    assert peek_dimension(files) == 6
    Path(files.path).write_bytes(b"something else")
    with pytest.raises(InputError, match=f"not readable as {kind}"):
        peek_dimension(files)
    with pytest.raises(InputError, match="no such file"):
        peek_dimension(files.model_copy(update={"path": str(tmp_path / "lost")}))


def test_files_that_were_read_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_of(tmp_path, "parquet", IDS, toy_encode(TEXTS))
    read = read_vectors(files)
    monkeypatch.setattr("harness.vectors.files.read_vectors", lambda _: pytest.fail("read again"))
    given = GivenVectors.of(files, toy_space(), IDS, read)
    np.testing.assert_array_equal(given.vectors(np.array([4])), toy_encode([TEXTS[4]]))
    assert import_vectors(files, tmp_path / "store", toy_space(), IDS, read=read).ids == IDS


def test_a_changed_order_of_ids_is_noticed(tmp_path: Path) -> None:
    for ids in (IDS, IDS[::-1]):
        files = files_of(tmp_path, "npy", ids, toy_encode(TEXTS))
        store = import_vectors(files, tmp_path / "store", toy_space(), IDS)
    np.testing.assert_array_equal(store.vectors(), toy_encode(TEXTS[::-1]))


def test_half_precision_files_pass_as_normalised(tmp_path: Path) -> None:
    files = files_of(tmp_path, "npy", IDS, toy_encode(TEXTS).astype(np.float16))
    assert import_vectors(files, tmp_path / "store", toy_space(), IDS, dtype="float16").dtype == "float16"


@pytest.mark.parametrize("kind", ["npy", "parquet", "faiss"])
def test_every_problem_of_the_values_is_named_at_once(kind: str, tmp_path: Path) -> None:
    vector_ND = toy_encode(TEXTS)
    vector_ND[3, 1] = np.nan
    vector_ND[5] *= 2
    vector_ND[6] = np.inf  # not asked for
    files = files_of(tmp_path, kind, [*IDS[:-1], "d0"], vector_ND)
    wanted = [name for name in IDS if name != "d6"]
    with pytest.raises(InputError) as caught:
        import_vectors(files, tmp_path / "store", toy_space(dimension=7), [*wanted, "x"])
    message = str(caught.value)
    assert len(caught.value.problems) == 5
    for part in ("another dimension", "1 ids stand more than once", "2 of 12 ids have no vector", "'d11', 'x'",
                 "1 vectors are not finite", "'d3'", "1 vectors are not normalised", "2.0000 for 'd5'"):  # fmt: skip
        assert part in message
    assert "'d6'" not in message and not (tmp_path / "store").exists()


def test_lengths_are_free_in_a_space_without_normalisation(tmp_path: Path) -> None:
    files = files_of(tmp_path, "npy", IDS, 3 * toy_encode(TEXTS))
    store = import_vectors(files, tmp_path / "store", toy_space(normalized=False), IDS)
    np.testing.assert_array_equal(store.vectors(), 3 * toy_encode(TEXTS))


def test_files_that_are_missing_or_something_else_are_refused(tmp_path: Path) -> None:
    def refused(says: str, **files: str) -> None:
        with pytest.raises(InputError, match=says):
            import_vectors(VectorFiles(**files), tmp_path / "store", toy_space(), IDS)  # type: ignore[arg-type]

    good = files_of(tmp_path, "npy", IDS, toy_encode(TEXTS))
    assert good.ids is not None
    refused(r"no such file[\s\S]*no such file", format="npy", path="lost.npy", ids="lost.txt")
    refused("npy vectors need their ids", format="npy", path=good.path)
    for kind in ("parquet", "npy"):
        refused(f"not readable as {kind}", format=kind, path=good.ids, ids=good.ids)
    (tmp_path / "few.txt").write_text("d0\nd1\n")
    refused("2 ids, 12 vectors", format="npy", path=good.path, ids=str(tmp_path / "few.txt"))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    refused("not readable as npy", format="npy", path=str(tmp_path / "objects.npy"), ids=good.ids)
    np.save(tmp_path / "whole.npy", np.ones((12, 6), dtype=np.int64))
    refused("not a matrix of floats", format="npy", path=str(tmp_path / "whole.npy"), ids=good.ids)


def test_ragged_and_missing_vectors_in_parquet_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, space = tmp_path / "vectors.parquet", toy_space(dimension=2)
    files = VectorFiles(format="parquet", path=str(path))
    for vectors in ([[1.0, 0.0], [1.0]], [[1.0, 0.0], None], [[1.0, None], [0.0, 1.0]], [[1.0], [0.0, 1.0, 0.0]]):
        pq.write_table(pa.table({"id": ["a", "b"], "vector": vectors}), path)
        with pytest.raises(InputError, match="nulls or lists of different lengths"):
            import_vectors(files, tmp_path / "store", space, ["a"])
    fixed = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 0.0, 0.0, 1.0]), 2)
    pq.write_table(pa.table({"id": [1, 2], "vector": fixed}), path)
    store = import_vectors(files, tmp_path / "store", space, ["2", "1"])
    assert store.vectors().tolist() == [[0.0, 1.0], [1.0, 0.0]]


# ------------------------------------------------------------------------------------------------------------ a sample


@pytest.fixture
def store(tmp_path: Path) -> VectorStore:
    return write_store(tmp_path / "store", IDS, TEXTS, toy_encode, toy_space(), dtype="float16")


def test_a_sample_of_the_same_encoder_passes(store: VectorStore) -> None:
    encode = CountingEncode()
    found = check_sample(store, dict(zip(IDS, TEXTS, strict=True)), encode, sample=5, min_cosine=0.999)
    assert len(encode.seen) == found["sample"] == 5 and found["min_cosine"] > 0.9999
    assert check_sample(store, {"d4": "text 4"}, toy_encode, sample=5, min_cosine=0.999)["sample"] == 1
    with pytest.raises(InputError, match="none of the store's ids has a text"):
        check_sample(store, {}, toy_encode, sample=5, min_cosine=0.999)


def test_a_sample_of_another_set_up_is_refused_with_what_would_match(store: VectorStore) -> None:
    texts = dict(zip(IDS, TEXTS, strict=True))

    def prompted(given: list[str]) -> np.ndarray:
        return toy_encode(["passage: " + text for text in given])

    with pytest.raises(InputError) as caught:
        others = {"without a prompt": toy_encode, "cut": lambda given: prompted(given)[:, :3]}
        check_sample(store, texts, prompted, sample=8, min_cosine=0.999, alternatives=others)
    message = str(caught.value)
    for part in ("not made by this encoder", "query prompt 'query: '", "pooling mean", "dimension 6", "at least 0.999",
                 "without a prompt: mean cosine 1.0000", "cut: another dimension"):  # fmt: skip
        assert part in message
    with pytest.raises(InputError, match=r"another dimension than the encoder's[\s\S]*6[\s\S]*3 \("):
        check_sample(store, texts, lambda given: toy_encode(given)[:, :3], sample=8, min_cosine=0.999)
    with pytest.raises(InputError, match="not made by this encoder"):
        check_sample(store, texts, lambda given: np.full((len(given), 6), np.nan), sample=8, min_cosine=0.999)


def test_a_stretched_vector_is_refused_where_length_matters(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", IDS, TEXTS, toy_encode, toy_space(normalized=False))
    texts = dict(zip(IDS, TEXTS, strict=True))
    with pytest.raises(InputError, match=r"0\.500 to 0\.500 times"):
        check_sample(store, texts, lambda given: 2 * toy_encode(given), sample=4, min_cosine=0.999)


@pytest.mark.parametrize(
    ("factory", "said"),
    [("Flat", ""), ("SQfp16", ""), ("HNSW8", ""), ("IDMap,Flat", ""), ("SQ8", "IndexScalarQuantizer (8bit)"),
     ("PQ3x2", "IndexPQ"), ("IDMap,SQ8", "IndexScalarQuantizer (8bit)"), ("HNSW8_SQ8", "IndexScalarQuantizer (8bit)")],
)  # fmt: skip
def test_an_index_that_keeps_rounded_vectors_is_told_before_work(
    factory: str, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """``check_vectors`` is what ``harness check`` and the data step call, before anything is trained."""
    faiss = pytest.importorskip("faiss")
    vector_ND = toy_encode(TEXTS)
    index = faiss.index_factory(vector_ND.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vector_ND)
    index.add_with_ids(vector_ND, np.arange(len(IDS))) if "IDMap" in factory else index.add(vector_ND)
    assert rounding_of(index, faiss) == said
    files = files_of(tmp_path, "faiss", IDS, vector_ND)
    faiss.write_index(index, files.path)
    if "IDMap" in factory:
        return  # such a map gives its vectors back only where it was made for that
    with caplog.at_level("WARNING", logger="harness"):
        check_vectors(files, IDS, vector_ND.shape[1], normalized=False)
    assert bool(caplog.text) == bool(said) and said in caplog.text
    assert not said or ("recovery does not tell" in caplog.text and files.path in caplog.text)
