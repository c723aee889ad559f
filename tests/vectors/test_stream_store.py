"""The vectors of a log's queries: in step with its rows, shard by shard, never of other texts or another space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders.vectors import toy_space

from harness.runtime.errors import InputError, StaleArtefactError
from harness.vectors.stream_store import Recorded, StreamVectors, write_stream_vectors

SPACE = toy_space()
ROWS = (5, 0, 9000, 3)  # the third is more than one window
SHARDS = [(f"content {number}", rows) for number, rows in enumerate(ROWS)]
RECORDED = Recorded(SPACE, "float16", "query")


def texts(number: int) -> Iterator[list[str]]:
    rows = [f"{number} {row}" for row in range(ROWS[number])]
    for start in range(0, len(rows), 4000):
        yield rows[start : start + 4000]


class Encoder:
    """Vectors that say which text they are of; counts the texts, and may break off."""

    def __init__(self, most: int | None = None) -> None:
        self.count, self.most = 0, most

    def __call__(self, given: Sequence[str]) -> np.ndarray:
        if self.most is not None and self.count + len(given) > self.most:
            raise KeyboardInterrupt
        self.count += len(given)
        vector_WD = np.zeros((len(given), SPACE.dimension), dtype=np.float32)
        vector_WD[:, 0], vector_WD[:, 1] = zip(*(map(float, text.split()) for text in given), strict=True)
        return vector_WD


def test_a_row_is_named_by_its_shard_and_place(tmp_path: Path) -> None:
    store = write_stream_vectors(tmp_path / "s", RECORDED, SHARDS, texts, Encoder())
    assert len(store) == sum(ROWS)
    shard_B, row_B = np.array([2, 0, 3, 2]), np.array([2047, 4, 0, 0])
    np.testing.assert_array_equal(store.vectors(shard_B, row_B)[:, :2], np.stack([shard_B, row_B], axis=1))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_every_storage_type_is_read_as_float32(tmp_path: Path, dtype: str) -> None:
    store = write_stream_vectors(tmp_path / "s", replace(RECORDED, dtype=dtype), SHARDS, texts, Encoder())
    vector_BD = store.vectors(np.array([0, 3]), np.array([3, 2]))
    assert vector_BD.dtype == np.float32
    np.testing.assert_allclose(vector_BD[:, :2], [[0, 3], [3, 2]], atol=0.02)


def test_what_is_done_is_not_encoded_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_stream_vectors(tmp_path / "s", RECORDED, SHARDS, texts, Encoder(most=8200))
    assert not (tmp_path / "s" / "manifest.json").exists()
    rest = Encoder()
    write_stream_vectors(tmp_path / "s", RECORDED, SHARDS, texts, rest)
    assert rest.count == sum(ROWS) - 5, "the first shard was whole; of the third nothing is taken over"
    again = Encoder()
    write_stream_vectors(tmp_path / "s", RECORDED, SHARDS, texts, again)
    assert again.count == 0
    assert not list((tmp_path / "s").glob(".*"))


def test_only_shards_of_other_content_are_encoded_again(tmp_path: Path) -> None:
    write_stream_vectors(tmp_path / "s", RECORDED, SHARDS, texts, Encoder())
    encoder = Encoder()
    write_stream_vectors(tmp_path / "s", RECORDED, [*SHARDS[:3], ("another", 3)], texts, encoder)
    assert encoder.count == 3
    fewer = write_stream_vectors(tmp_path / "s", RECORDED, SHARDS[:1], texts, Encoder(most=0))
    assert len(fewer) == 5 and sorted(path.name for path in fewer.folder.iterdir()) == [
        "manifest.json", "shard-00000.json", "shard-00000.npy"
    ]  # fmt: skip


@pytest.mark.parametrize("change", [{"dtype": "float32"}, {"key": "longer"}, {"space": replace(SPACE, teacher="x")}])
def test_another_making_is_encoded_anew(tmp_path: Path, change: dict) -> None:
    write_stream_vectors(tmp_path / "s", RECORDED, SHARDS, texts, Encoder())
    encoder = Encoder()
    write_stream_vectors(tmp_path / "s", replace(RECORDED, **change), SHARDS, texts, encoder)
    assert encoder.count == sum(ROWS)


def test_another_space_is_refused_and_both_are_named(tmp_path: Path) -> None:
    write_stream_vectors(tmp_path / "s", RECORDED, SHARDS, texts, Encoder())
    with pytest.raises(StaleArtefactError) as caught:
        StreamVectors.open(tmp_path / "s", space=replace(SPACE, teacher="another"))
    assert "another" in str(caught.value) and SPACE.teacher in str(caught.value)


def test_other_texts_are_refused(tmp_path: Path) -> None:
    write_stream_vectors(tmp_path / "s", RECORDED, SHARDS, texts, Encoder())
    with pytest.raises(StaleArtefactError, match="of other texts"):
        StreamVectors.open(tmp_path / "s", contents=["content 0", "content 1", "changed", "content 3"])


@pytest.mark.parametrize("damage", ["cut", "gone", "flipped", "edited"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    write_stream_vectors(tmp_path / "s", RECORDED, SHARDS, texts, Encoder())
    path = tmp_path / "s" / ("manifest.json" if damage == "edited" else "shard-00002.npy")
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "flipped":
        data[-1] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes(bytes(data).replace(b'"float16"', b'"float32"'))
    with pytest.raises(StaleArtefactError) as caught:
        StreamVectors.open(tmp_path / "s", verify=True)
    assert str(path) in str(caught.value)
    whole = write_stream_vectors(tmp_path / "s", RECORDED, SHARDS, texts, Encoder())  # and written again
    assert len(StreamVectors.open(whole.folder, verify=True)) == sum(ROWS)


def test_vectors_that_are_not_finite_are_refused_by_their_place(tmp_path: Path) -> None:
    def broken(given: Sequence[str]) -> np.ndarray:
        vector_WD = Encoder()(given)
        vector_WD[-1, 0] = np.nan
        return vector_WD

    with pytest.raises(InputError, match="not finite") as caught:
        write_stream_vectors(tmp_path / "s", RECORDED, SHARDS, texts, broken)
    assert "s 0:4" in str(caught.value)


def test_nothing_there_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"embed\.streams"):
        StreamVectors.open(tmp_path / "nothing")
