"""The teacher's vectors of a log's queries, shard by shard in step with its tokens: row i of one is row i of the other.

A folder:

    manifest.json      space, dtype, key, one entry a shard; written last
    shard-00000.npy    the vectors of a shard, as ``codec`` stores them
    shard-00000.json   the shard's own entry; written when the shard is whole, so that a killed writer can go on

No ids are stored: a row is named by its shard and its place there. Shards are mapped as they are read, some at a time.

Axes: B rows asked for, W rows of a window, D dimensions.
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.runtime.distributed import rank, wait_for_all, world_size
from harness.runtime.errors import InputError, Problem, StaleArtefactError
from harness.runtime.process import atomic_file, file_sha256, fingerprint, progress, read_json, write_json
from harness.vectors.codec import stored_as, unpack
from harness.vectors.space import Space, require_same_space
from harness.vectors.windows import Encode, encode_windows
from harness.vectors.writer import WINDOW, packed

SCHEMA = 1
OPEN_SHARDS = 64  # memory maps held at a time
AGAIN = "make it again: harness run RECIPE --from embed.streams, which keeps the shards that are right"
Texts = Callable[[int], Iterator[list[str]]]  # a shard's number -> its texts in order, some thousand at a time


@dataclass(frozen=True, slots=True)
class StreamShard:
    """One shard's entry: ``content`` names its texts and their order, ``made`` what else its vectors depend on."""

    number: int
    rows: int
    content: str
    made: str
    sha256: str = ""
    bytes: int = 0

    def path(self, folder: Path, suffix: str = "npy") -> Path:
        """The shard's vectors, or its entry (``json``)."""
        return folder / f"shard-{self.number:05d}.{suffix}"


@dataclass(frozen=True, slots=True)
class Recorded:
    """What all shards have in common; ``key``: whatever else the vectors depend on (which side, the longest text)."""

    space: Space
    dtype: str
    key: str

    @property
    def made(self) -> str:
        """One hash over all of it."""
        return fingerprint({"space": self.space.to_json(), "dtype": self.dtype, "key": self.key})

    def to_json(self, shards: Sequence[StreamShard]) -> dict[str, Any]:
        return {"schema": SCHEMA, "space": self.space.to_json(), "dtype": self.dtype, "key": self.key,
                "rows": sum(shard.rows for shard in shards), "shards": [asdict(shard) for shard in shards]}  # fmt: skip


class StreamVectors:
    """A finished folder of vectors; use ``open``."""

    def __init__(self, folder: Path, recorded: Recorded, shards: Sequence[StreamShard]) -> None:
        self.folder, self.space, self.dtype, self.shards = folder, recorded.space, recorded.dtype, list(shards)
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()

    @classmethod
    def open(
        cls, folder: Path, *, space: Space | None = None, contents: Sequence[str] | None = None, verify: bool = False
    ) -> StreamVectors:
        """Open the vectors of texts that ``contents`` names, one for each shard. ``verify`` reads every byte.

        Raises:
            InputError: there are none.
            StaleArtefactError: another space (both are named); other texts; files that are not whole.
        """
        recorded, shards = _read_manifest(folder)
        if space is not None:
            require_same_space(recorded.space, space, str(folder), "the teacher")
        problems = []
        if contents is not None and [shard.content for shard in shards] != list(contents):
            other = sum(a.content != b for a, b in zip(shards, contents, strict=False))
            problems.append(Problem("the vectors are of other texts", where=str(folder), next=AGAIN,
                                    got=f"{len(shards)} shards, {other} of other texts",
                                    allowed=f"the {len(contents)} shards of the token cache"))  # fmt: skip
        for shard in shards:
            path = shard.path(folder)
            size = path.stat().st_size if path.is_file() else 0
            if size != shard.bytes or (verify and file_sha256(path) != shard.sha256):
                problems.append(Problem("missing, cut off or damaged", where=str(path), got=f"{size:,} bytes",
                                        allowed=f"{shard.bytes:,} bytes, sha256 {shard.sha256[:12]}", next=AGAIN))
        if problems:
            raise StaleArtefactError(problems)
        return cls(folder, recorded, shards)

    def __len__(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def vectors(self, shard_B: np.ndarray, row_B: np.ndarray) -> np.ndarray:
        """float32_BD: the vectors of rows, each by its shard and its place there."""
        vector_BD = np.empty((len(row_B), self.space.dimension), dtype=np.float32)
        for number in np.unique(shard_B).tolist():
            here = np.flatnonzero(shard_B == number)
            vector_BD[here] = unpack(self._map(number)[row_B[here]], self.dtype)
        return vector_BD

    def _map(self, number: int) -> np.ndarray:
        if number not in self._maps:
            self._maps[number] = np.load(self.shards[number].path(self.folder), mmap_mode="r", allow_pickle=False)
            if len(self._maps) > OPEN_SHARDS:
                self._maps.popitem(last=False)
        self._maps.move_to_end(number)
        return self._maps[number]


def _read_manifest(folder: Path) -> tuple[Recorded, list[StreamShard]]:
    """What ``manifest.json`` says.

    Raises:
        InputError: there is none. StaleArtefactError: it is none, or was edited.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise InputError(Problem("no vectors of a stream", where=str(folder), got="no manifest.json", next=AGAIN))
    told = read_json(path, next=AGAIN)
    with contextlib.suppress(KeyError, TypeError):
        recorded = Recorded(Space.from_json(told["space"], str(folder)), told["dtype"], told["key"])
        shards = [StreamShard(**entry) for entry in told["shards"]]
        if told == recorded.to_json(shards) and all(shard.made == recorded.made for shard in shards):
            return recorded, shards
    raise StaleArtefactError(Problem("not the manifest of a stream's vectors, or it was edited",
                                     where=str(path), next=AGAIN))


def write_stream_vectors(
    folder: Path, recorded: Recorded, shards: Sequence[tuple[str, int]], texts: Texts, encode: Encode
) -> StreamVectors:
    """Encode a log's texts, as far as that is not done yet, and open what is whole.

    Every process of the launch calls this with the same arguments; each writes every W-th shard, the main one the
    manifest. Memory holds one window of texts and vectors. Shards of the same content and making are taken over.

    Args:
        shards: content and rows of each.
        texts: read for the shards that are to be written.
        encode: texts -> float [W, D]; called in windows of some thousand texts.

    Raises:
        InputError: vectors of another dimension, or not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [StreamShard(at, rows, content, recorded.made) for at, (content, rows) in enumerate(shards)]
    if rank() == 0 and not _is_of(folder, wanted):
        (folder / "manifest.json").unlink(missing_ok=True)  # before a shard that it names is replaced
    wait_for_all()
    own = wanted[rank() :: world_size()]
    with progress(what=f"embed {folder.name}", total=sum(shard.rows for shard in own), unit="text") as bar:
        for shard in own:
            if _finished(folder, shard) is None:
                _write(folder, shard, recorded, texts, encode, bar)
            else:
                bar.update(shard.rows)
    wait_for_all()
    if rank() == 0:
        done = [_finished(folder, shard, read=False) for shard in wanted]
        assert None not in done, "written above, by one process or another"
        told = recorded.to_json([shard for shard in done if shard is not None])
        if not (folder / "manifest.json").is_file() or read_json(folder / "manifest.json") != told:
            write_json(folder / "manifest.json", told)
        _tidy(folder, len(wanted))
    wait_for_all()
    return StreamVectors.open(folder, space=recorded.space, contents=[content for content, _ in shards])


def _is_of(folder: Path, wanted: Sequence[StreamShard]) -> bool:
    """Whether the manifest, if there is one, names just these shards."""
    try:
        return [replace(StreamShard(**entry), sha256="", bytes=0)
                for entry in read_json(folder / "manifest.json")["shards"]] == list(wanted)  # fmt: skip
    except (InputError, TypeError, KeyError):
        return False


def _finished(folder: Path, wanted: StreamShard, read: bool = True) -> StreamShard | None:
    """The whole entry, if an earlier writer left the shard whole, of the same content and making."""
    try:
        found = StreamShard(**read_json(wanted.path(folder, "json")))
    except (InputError, TypeError):
        return None
    path = wanted.path(folder)
    if replace(found, sha256="", bytes=0) != wanted or not path.is_file() or path.stat().st_size != found.bytes:
        return None
    return found if not read or file_sha256(path) == found.sha256 else None


def _write(folder: Path, shard: StreamShard, recorded: Recorded, texts: Texts, encode: Encode, bar: Any) -> None:
    own, path = shard.path(folder, "json"), shard.path(folder)
    own.unlink(missing_ok=True)  # from here until the end the shard is unfinished
    dimension, written = recorded.space.dimension, 0
    dtype, shape = stored_as(recorded.dtype, shard.rows, dimension)
    with atomic_file(path, size=math.prod(shape) * dtype.itemsize) as stream:
        descr = np.lib.format.dtype_to_descr(dtype)
        np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
        for vector_WD in encode_windows(encode, _windows(texts(shard.number))):
            names = [f"{folder.name} {shard.number}:{written + at}" for at in range(len(vector_WD))]
            stream.write(packed(vector_WD, names, dimension, recorded.dtype).tobytes())
            written += len(vector_WD)
            bar.update(len(vector_WD))
        assert written == shard.rows, f"{written} texts in a shard of {shard.rows} rows"
    write_json(own, asdict(replace(shard, sha256=file_sha256(path), bytes=path.stat().st_size)))


def _windows(parts: Iterator[list[str]]) -> Iterator[list[str]]:
    """Lists of ``WINDOW`` texts, the last one shorter."""
    held: list[str] = []
    for part in parts:
        held += part
        while len(held) >= WINDOW:
            yield held[:WINDOW]
            held = held[WINDOW:]
    if held:
        yield held


def _tidy(folder: Path, shards: int) -> None:
    """Remove shards beyond those there are."""
    for path in folder.glob("shard-*"):
        if int(path.stem.partition("-")[2]) >= shards:
            path.unlink()
