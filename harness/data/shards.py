"""Many Parquet and JSONL files as blocks of rows that can be read each by itself: nothing is read from a file's start.

A block of a Parquet file is a row group; of a JSONL file, some thousand lines whose place in bytes stands in an index.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.reading import BadLine, kind_problems, open_parquet
from harness.runtime.errors import InputError, Problem
from harness.runtime.process import file_sha256, is_main_process, read_json, write_json

BLOCK_LINES = 16_384  # of a JSONL file
KINDS = (".parquet", ".jsonl")


def find_shards(names: str | Sequence[str], where: str) -> list[Path]:
    """The Parquet and JSONL files that a setting names: files, globs, and folders with all such files below them.

    Sorted within each name. ``where``: the setting, for messages.

    Raises:
        InputError: a name that is nothing, or holds no such file; a file of another kind; one that is named twice.
    """
    found: list[Path] = []
    problems: list[Problem] = []
    for name in [names] if isinstance(names, str) else names:
        path = Path(name)
        matches = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(name, recursive=True))]
        if not matches:
            problems.append(Problem("no such file or folder", where=where, got=name, next="check the path"))
        files: list[Path] = []
        for match in matches:
            below = (file for file in match.rglob("*") if file.suffix in KINDS and file.is_file()) if match.is_dir() \
                else [match]  # fmt: skip
            files += sorted(below)
        if matches and not files:
            problems.append(Problem("no .parquet or .jsonl file below this folder", where=where, got=name,
                                    next="name another folder"))  # fmt: skip
        problems += [
            Problem("not a kind of file that can be read from its middle", where=str(file), allowed=", ".join(KINDS),
                    next="decompress it, or write it as Parquet") for file in files if file.suffix not in KINDS
        ]  # fmt: skip
        found += files
    twice = sorted({str(file) for file in found if found.count(file) > 1}) if len(set(found)) < len(found) else []
    problems += [Problem("the file is named twice", where=where, got=name, next="name it once") for name in twice]
    if problems:
        raise InputError(problems)
    return found


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells whether a file is still the one that was read: size and time of change, and its content's hash."""

    bytes: int
    changed_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Identity:
        """Reads the whole file.

        Raises:
            InputError: it can't be read.
        """
        try:
            stat = path.stat()
            return cls(stat.st_size, stat.st_mtime_ns, file_sha256(path))
        except OSError as error:
            raise InputError(Problem("the file can't be read", where=str(path), got=str(error),
                                     next="check the path, or get it again")) from None  # fmt: skip

    def unchanged(self, path: Path) -> bool:
        """Whether size and time of change are the same, so that the file needs no reading."""
        try:
            stat = path.stat()
        except OSError:
            return False
        return (stat.st_size, stat.st_mtime_ns) == (self.bytes, self.changed_ns)

    def still(self, path: Path) -> bool:
        """Whether the file has this content; it is only read where its size is the same, its time of change not."""
        try:
            stat = path.stat()
        except OSError:
            return False
        if stat.st_size != self.bytes:
            return False
        return stat.st_mtime_ns == self.changed_ns or file_sha256(path) == self.sha256


@dataclass(frozen=True)
class Block:
    """Rows of a file: equal-length columns (a column that the file lacks is absent), and rows that are no rows."""

    columns: dict[str, list[Any]]
    rows: int
    bad: Mapping[int, BadLine] = field(default_factory=dict)

    def column(self, name: str) -> list[Any]:
        """A column's values; ``None`` for each row where there is no such column."""
        return self.columns.get(name) or [None] * self.rows


@dataclass(frozen=True)
class Shard:
    """One file and where its blocks are.

    Args:
        sizes: rows of each block.
        offsets: of a JSONL file, in bytes: one more than there are blocks; empty for Parquet.
    """

    path: Path
    sizes: tuple[int, ...]
    offsets: tuple[int, ...] = ()

    @classmethod
    def open(cls, path: Path, block_lines: int = BLOCK_LINES) -> Shard:
        """Find the blocks: from a Parquet file's footer; by reading a JSONL file once.

        Raises:
            InputError: the file can't be read, or is compressed as a whole, or is neither kind.
        """
        if problems := kind_problems(path, "data"):
            raise InputError(problems)
        if path.suffix == ".gz":
            raise InputError(Problem("a gzipped file can't be read from its middle", where=str(path),
                                     allowed=".parquet, .jsonl",
                                     next="decompress it, or write it as Parquet"))  # fmt: skip
        if path.suffix == ".parquet":
            with open_parquet(path) as file:
                meta = file.metadata
                return cls(path, tuple(meta.row_group(group).num_rows for group in range(meta.num_row_groups)))
        return cls(path, *_find_lines(path, block_lines))

    @property
    def rows(self) -> int:
        """Of all blocks together."""
        return sum(self.sizes)

    def read(self, number: int, columns: Sequence[str]) -> Block:
        """One block's columns; of a JSONL file, blank lines are no rows.

        Raises:
            InputError: the file can't be read, or has changed.
        """
        block = self._read_lines(number, columns) if self.offsets else self._read_group(number, columns)
        if block.rows != self.sizes[number]:
            raise InputError(Problem("the file has changed since its blocks were found", where=str(self.path),
                                     got=f"{block.rows} rows in block {number}", allowed=f"{self.sizes[number]}",
                                     next="leave it unchanged while it is read, and start again"))  # fmt: skip
        return block

    def chosen(self, row_N: NDArray[Any], columns: Sequence[str]) -> Iterator[tuple[Block, list[int]]]:
        """The blocks that hold some of the rows (of the whole file, rising), and which rows of each these are."""
        start = 0
        for at, size in enumerate(self.sizes):
            first, last = np.searchsorted(row_N, [start, start + size])
            if last > first:
                yield self.read(at, columns), (row_N[first:last].astype(np.int64) - start).tolist()
            start += size

    def _read_group(self, number: int, columns: Sequence[str]) -> Block:
        import pyarrow

        with open_parquet(self.path) as file:
            present = [name for name in dict.fromkeys(columns) if name in file.schema_arrow.names]
            try:
                table = file.read_row_group(number, columns=present, use_threads=False)
            except (OSError, pyarrow.ArrowException) as error:
                raise InputError(Problem("not readable as Parquet", where=f"{self.path}, row group {number}",
                                         got=str(error).splitlines()[0], next="get the file again")) from None
        return Block({name: table.column(name).to_pylist() for name in present}, table.num_rows)

    def _read_lines(self, number: int, columns: Sequence[str]) -> Block:
        start, stop = self.offsets[number : number + 2]
        with open(self.path, "rb") as stream:
            stream.seek(start)
            lines = [line for line in stream.read(stop - start).split(b"\n") if line and not line.isspace()]
        values: dict[str, list[Any]] = {name: [None] * len(lines) for name in dict.fromkeys(columns)}
        bad: dict[int, BadLine] = {}
        for row, line in enumerate(lines):
            try:
                value = json.loads(line.removeprefix(b"\xef\xbb\xbf") if start == 0 and row == 0 else line)
            except (ValueError, RecursionError):
                bad[row] = BadLine("not JSON", line[:60].decode("utf-8", "replace"))
                continue
            if not isinstance(value, dict):
                bad[row] = BadLine("not a JSON object", line[:60].decode("utf-8", "replace"))
                continue
            for name, column in values.items():
                column[row] = value.get(name)
        return Block(values, len(lines), bad)


def _find_lines(path: Path, block_lines: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows of each block of lines, and where the blocks begin and end in bytes."""
    sizes, offsets, rows, position = [], [0], 0, 0
    try:
        with open(path, "rb") as stream:
            for line in stream:
                position += len(line)
                rows += not line.isspace()
                if rows == block_lines:
                    sizes.append(rows)
                    offsets.append(position)
                    rows = 0
    except OSError as error:
        raise InputError(Problem("the file can't be read", where=str(path), got=str(error),
                                 next="check the path, or get it again")) from None  # fmt: skip
    if rows:
        sizes.append(rows)
        offsets.append(position)
    return tuple(sizes), tuple(offsets)


def open_shards(paths: Sequence[Path], index: Path) -> list[Shard]:
    """The shards, with their blocks as ``index`` (a JSON file) has them; what is new or changed is looked through.

    A file counts as unchanged while its size and time of change are the same.

    Raises:
        InputError: a file can't be read, or is no shard.
    """
    known = read_json(index) if index.is_file() else {}
    shards, told = [], {}
    for path in paths:
        stat = path.stat() if path.is_file() else None
        entry = known.get(str(path))
        if stat is None or entry is None or entry["bytes"] != stat.st_size or entry["changed_ns"] != stat.st_mtime_ns:
            shards.append(Shard.open(path))
            stat = path.stat()
        else:
            shards.append(Shard(path, tuple(entry["sizes"]), tuple(entry["offsets"])))
        told[str(path)] = {"bytes": stat.st_size, "changed_ns": stat.st_mtime_ns,
                           "sizes": shards[-1].sizes, "offsets": shards[-1].offsets}  # fmt: skip
    if is_main_process() and json.loads(json.dumps(told)) != known:
        write_json(index, told)
    return shards
