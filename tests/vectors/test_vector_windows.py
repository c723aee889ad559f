from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from builders.vectors import CountingEncode, toy_encode, toy_rows, toy_space

from harness.runtime.errors import InputError
from harness.vectors.windows import Copying, encode_windows
from harness.vectors.writer import update_store, write_store

IDS, TEXTS = toy_rows(23)


class Ahead(CountingEncode):
    """Encodes windows with one read ahead, as a device that is kept busy."""

    def __init__(self, fail_at: str | None = None) -> None:
        super().__init__(fail_at)
        self.log: list[str] = []
        self.closed = 0

    def windows(self, windows: Iterable[Sequence[str]]) -> Generator[np.ndarray]:
        before: Sequence[str] | None = None
        try:
            for texts in windows:
                self.log.append(f"read {len(texts)}")
                if before is not None:
                    yield self(before)
                before = texts
            if before is not None:
                yield self(before)
        finally:
            self.closed += 1


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.vectors.writer.WINDOW", 3)


def test_one_stream_of_windows_goes_through_all_missing_shards(tmp_path: Path) -> None:
    plain = write_store(tmp_path / "plain", IDS, TEXTS, toy_encode, toy_space(), shard_rows=8)
    encode = Ahead()
    store = write_store(tmp_path / "ahead", IDS, TEXTS, encode, toy_space(), shard_rows=8)
    assert encode.log == ["read 3", "read 3", "read 2"] * 2 + ["read 3", "read 3", "read 1"] and encode.closed == 1
    assert encode.seen == TEXTS and store.sha256 == plain.sha256
    for path in sorted(plain.folder.glob("shard-*")):
        assert path.read_bytes() == (store.folder / path.name).read_bytes()


def test_an_interrupted_stream_is_closed_and_goes_on_at_the_shards_that_are_missing(tmp_path: Path) -> None:
    stopped = Ahead(fail_at=TEXTS[18])
    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "store", IDS, TEXTS, stopped, toy_space(), shard_rows=8)
    assert stopped.closed == 1 and stopped.seen == TEXTS[:16]
    (tmp_path / "store.partial" / "shard-00000.npy").write_bytes(b"damaged")
    again = Ahead()
    store = write_store(tmp_path / "store", IDS, TEXTS, again, toy_space(), shard_rows=8)
    assert again.seen == TEXTS[:8] + TEXTS[16:]
    np.testing.assert_array_equal(store.vectors(), toy_encode(TEXTS))


def test_what_can_t_be_stored_ends_the_stream(tmp_path: Path) -> None:
    class Broken(Ahead):
        def __call__(self, texts: Sequence[str]) -> np.ndarray:
            return super().__call__(texts) * (np.nan if TEXTS[4] in texts else 1)

    encode = Broken()
    with pytest.raises(InputError, match="'d3', 'd4', 'd5'"):
        write_store(tmp_path / "store", IDS, TEXTS, encode, toy_space(), shard_rows=8)
    assert encode.closed == 1 and not (tmp_path / "store").exists()


@pytest.mark.parametrize("known", [[], [0], [1, 2], [3, 4, 5], [0, 1, 2, 6, 7, 8], list(range(9))])
@pytest.mark.parametrize("kind", [Ahead, CountingEncode])
def test_copied_and_encoded_rows_come_in_order(tmp_path: Path, known: list[int], kind: type[CountingEncode]) -> None:
    store = write_store(tmp_path / "store", IDS, TEXTS, lambda texts: -toy_encode(texts), toy_space())
    row = {TEXTS[number]: number for number in known}
    encode = kind()
    windows = [TEXTS[0:3], TEXTS[3:6], TEXTS[6:9]]
    found_ND = np.concatenate(list(encode_windows(Copying(store, row, encode), windows)))
    sign_N1 = np.where(np.isin(np.arange(9), known), -1, 1)[:, None]
    np.testing.assert_array_equal(found_ND, sign_N1 * toy_encode(TEXTS[:9]))
    assert encode.seen == [text for text in TEXTS[:9] if text not in row]


def test_an_update_streams_too(tmp_path: Path) -> None:
    write_store(tmp_path / "store", IDS, TEXTS, toy_encode, toy_space(), shard_rows=8)
    encode, (ids, texts) = Ahead(), toy_rows(30)
    store = update_store(tmp_path / "store", ids[5:], texts[5:], encode, toy_space(), shard_rows=8)
    assert sorted(encode.seen) == sorted(texts[23:]) and encode.closed == 1
    np.testing.assert_array_equal(store.vectors(store.rows_of(ids[5:])), toy_encode(texts[5:]))
