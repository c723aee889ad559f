"""Reading logs by blocks: what is read is what a position needs, wherever it lies."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from builders.logs import Rows, log, write, write_logs

from harness.data.mixture import Mixture, MixtureSource
from harness.data.shards import Shard, open_shards
from harness.data.stream import TextStream
from harness.runtime.errors import InputError

COLUMNS = ("text", "positive", "lang")


@pytest.fixture(scope="module")
def rows() -> Rows:
    return log(2000)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, rows: Rows) -> list[Path]:
    return write_logs(tmp_path_factory.mktemp("logs"), rows, 4)


def _shards(paths: list[Path]) -> list[Shard]:
    return [Shard.open(path, block_lines=100) for path in paths]


class Counting(Shard):
    """Tells which blocks were read."""

    def read(self, number, columns):  # type: ignore[no-untyped-def]
        self.seen.append((self.path.name, number))  # type: ignore[attr-defined]
        return super().read(number, columns)


def _counting(paths: list[Path]) -> tuple[list[Shard], list[tuple[str, int]]]:
    seen: list[tuple[str, int]] = []
    shards: list[Shard] = []
    for shard in _shards(paths):
        counted = Counting(shard.path, shard.sizes, shard.offsets)
        object.__setattr__(counted, "seen", seen)
        shards.append(counted)
    return shards, seen


def test_a_pass_holds_every_row_once(paths: list[Path], rows: Rows) -> None:
    stream = TextStream(_shards(paths), COLUMNS, seed=[1], window=3)
    assert stream.order.count == len(rows)
    shown = stream.rows(stream.order.rows(0, len(rows)))
    assert shown != rows
    assert sorted(map(str, shown)) == sorted(map(str, rows))
    in_order = stream.rows(np.arange(len(rows)))
    assert in_order == rows


def test_only_the_blocks_of_a_window_are_read_even_far_into_the_data(paths: list[Path], rows: Rows) -> None:
    straight = TextStream(_shards(paths), COLUMNS, seed=[1], window=3)
    shards, seen = _counting(paths)
    stream = TextStream(shards, COLUMNS, seed=[1], window=3)
    position = 10 * len(rows) + 1807
    first, size = stream.order.window(position)
    count = min(20, first + size - position)
    found = stream.rows(stream.order.rows(position, count))
    assert 0 < len(seen) <= 3 and len(set(seen)) == len(seen)
    assert found == straight.rows(straight.order.rows(position, count))
    for start in range(first, first + size, 5):
        stream.rows(stream.order.rows(start, min(5, first + size - start)))
    assert len(seen) == len(set(seen)) == len(stream.order.blocks(position))  # each block of the window once


def test_no_two_texts_of_a_batch_are_relevant_to_each_other(paths: list[Path]) -> None:
    stream = TextStream(_shards(paths), COLUMNS, keys=("text", "positive"), seed=[1], window=3)
    mixed = Mixture([MixtureSource("log", {"all": stream})], batch_size=40, seed=2)
    for step in range(20):
        drawn = stream.rows(mixed.draw(step).row_B)
        assert len({row["positive"] for row in drawn}) == len({row["text"] for row in drawn}) == 40


def test_lines_with_blanks_and_marks(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\n  \n{"text": "b"}\n\n{"text": "c", "x": 1}')
    shard = Shard.open(path, block_lines=2)
    assert shard.sizes == (2, 1)
    assert [shard.read(number, ["text"]).columns["text"] for number in range(2)] == [["a", "b"], ["c"]]
    assert shard.read(1, ["missing"]).column("missing") == [None]


def test_what_is_no_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"text": "a"}\n{"text": \n')
    stream = TextStream([Shard.open(path)], ["text"], seed=[1])
    with pytest.raises(InputError, match=r"block 0, row 2: not JSON"):
        stream.rows(np.arange(2))


def test_files_that_cannot_be_read_from_the_middle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n'))
    (tmp_path / "log.csv").write_text("text\n")
    (tmp_path / "log.parquet").write_text("no Parquet")
    (tmp_path / "empty.jsonl").write_text("")
    for name, told in (("log.jsonl.gz", "from its middle"), ("log.csv", "unknown kind"), ("log.parquet", "Parquet"),
                       ("absent.jsonl", "can't be read")):  # fmt: skip
        with pytest.raises(InputError, match=told):
            Shard.open(tmp_path / name)
    with pytest.raises(InputError, match="no rows"):
        TextStream([Shard.open(tmp_path / "empty.jsonl")], ["text"], seed=[1])


def test_the_index_is_made_once_and_again_for_what_has_changed(
    tmp_path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, index = write_logs(tmp_path / "logs", rows[:200], 4), tmp_path / "index.json"
    opened: list[str] = []
    whole = Shard.open.__func__  # type: ignore[attr-defined]

    def counting(cls: type[Shard], path: Path) -> Shard:
        opened.append(path.name)
        return whole(cls, path)

    monkeypatch.setattr(Shard, "open", classmethod(counting))
    first = open_shards(paths, index)
    assert len(opened) == 4
    assert open_shards(paths, index) == first and len(opened) == 4
    write(paths[1], rows[:7])
    again = open_shards(paths, index)
    assert opened[4:] == [paths[1].name] and again[1].rows == 7 and again[0] == first[0]
    paths[2].unlink()
    with pytest.raises(InputError, match="can't be read|not readable"):
        open_shards(paths, index)


def test_a_file_that_changes_under_way_is_noticed(tmp_path: Path, rows: Rows) -> None:
    path = write(tmp_path / "log.jsonl", rows[:50])
    stream = TextStream([Shard.open(path)], ["text"], seed=[1])
    write(path, rows[50:60])
    with pytest.raises(InputError, match="has changed"):
        stream.rows(np.arange(3))
