"""Vectors at rest: memory-mapped shards with their ids, readable row by row and never only half there.

A store is a folder:

    manifest.json      space, dtype, key, live rows, one entry a shard, and the store's sha256; written last
    shard-00000.npy    the vectors of the shard, as ``codec`` stores them
    ids-00000.json     their ids
    texts-00000.npy    a 64-bit hash of each row's text, by which an update finds what changed
    shard-00000.json   the shard's own entry; it is written when the shard is whole, so that a killed writer can go on

Rows removed or replaced by an update stay in their shard, listed as ``dead`` in the manifest. A reader only meets live
rows: row ``i`` of a store is its ``i``-th live row, in the order of the shards.

Axes: N live rows, B rows asked for, D dimensions, S shards.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from harness.runtime.errors import InputError, Problem, StaleArtefactError
from harness.runtime.process import file_sha256, fingerprint, progress, read_json
from harness.vectors.codec import STORE_DTYPES, stored_as, unpack
from harness.vectors.space import Space

SCHEMA = 1
AGAIN = "delete the folder and run the step that makes it again"


def name_some(names: Iterable[str], limit: int = 5) -> str:
    """The first few names and how many more there are, for an error message."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + more


def text_hashes(texts: Sequence[str]) -> np.ndarray:
    """A 64-bit hash of each text, uint64 [N], the same on every machine."""
    digests = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), dtype="<u8")


def content_sha256(ids: Sequence[str], text_hash_N: np.ndarray) -> str:
    """The sha256 over rows in their order: ids and text hashes. Known before anything is encoded."""
    digest = hashlib.sha256(f"{len(ids)};".encode())
    remaining = iter(ids)
    while block := list(islice(remaining, 65536)):
        digest.update("".join(f"{len(name)}:{name}," for name in block).encode("utf-8", "surrogatepass"))
    digest.update(np.ascontiguousarray(text_hash_N, dtype="<u8").data)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard's entry in the manifest.

    ``content`` is the hash of ids and texts, ``sha256`` and ``bytes`` are of the file of vectors, ``made`` says with
    what they were made (the fingerprint of space, dtype and key), ``dead`` lists the rows that an update removed.
    """

    number: int
    rows: int
    content: str
    sha256: str
    bytes: int
    made: str
    dead: tuple[int, ...] = ()

    @property
    def live(self) -> int:
        """How many rows are live."""
        return self.rows - len(self.dead)

    def path(self, folder: Path, kind: str = "shard", suffix: str = "npy") -> Path:
        """One of the shard's four files."""
        return folder / f"{kind}-{self.number:05d}.{suffix}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "dead": list(self.dead)}


@dataclass(frozen=True, slots=True)
class Manifest:
    """What ``manifest.json`` says. ``content`` is over the live rows of the whole store, however they are sharded."""

    space: Space
    dtype: str
    key: str
    content: str
    shards: tuple[Shard, ...]

    @property
    def rows(self) -> int:
        """How many rows are live."""
        return sum(shard.live for shard in self.shards)

    @property
    def made(self) -> str:
        """The fingerprint of what vectors depend on besides their texts."""
        return fingerprint({"space": self.space.to_json(), "dtype": self.dtype, "key": self.key})

    @property
    def sha256(self) -> str:
        """Names the whole store: what was encoded, and with what."""
        return fingerprint([self.made, self.content])

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "space": self.space.to_json(),
            "dimension": self.space.dimension,
            "dtype": self.dtype,
            "key": self.key,
            "rows": self.rows,
            "content": self.content,
            "sha256": self.sha256,
            "shards": [shard.to_json() for shard in self.shards],
        }

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read ``manifest.json``.

        Raises:
            InputError: there is none, it is damaged, or it was edited.
        """
        path = folder / "manifest.json"
        if not path.is_file():
            raise InputError(Problem("no vector store", where=str(folder), got="no manifest.json",
                                     next="run the embed step, or name the folder of a store"))
        value = read_json(path)
        schema = value.get("schema") if isinstance(value, dict) else None
        if schema != SCHEMA:
            raise InputError(Problem("not the manifest of a vector store of this version", where=str(path),
                                     got=f"schema {schema!r}", allowed=f"schema {SCHEMA}", next=AGAIN))
        try:
            shards = tuple(Shard(**{**entry, "dead": tuple(entry["dead"])}) for entry in value["shards"])
            space = Space.from_json(value["space"], where=str(path))
            manifest = cls(space, value["dtype"], value["key"], value["content"], shards)
            whole = manifest.to_json() == value and manifest.dtype in STORE_DTYPES
        except (TypeError, KeyError, AttributeError):
            raise InputError(Problem("not the manifest of a vector store", where=str(path), next=AGAIN)) from None
        if not whole:
            raise StaleArtefactError(Problem("the manifest contradicts itself: it was edited or damaged",
                                             where=str(path), next=AGAIN))
        return manifest


class VectorStore:
    """Ids and their vectors, memory-mapped; open one with ``VectorStore.open``.

    Attributes:
        folder, manifest, ids (of live rows, in order), space, dimension, dtype (see ``codec``), sha256.
    """

    def __init__(self, folder: Path, manifest: Manifest, stored_SN: list[np.ndarray], ids: list[list[str]]) -> None:
        self.folder, self.manifest = folder, manifest
        self.space, self.dtype, self.sha256 = manifest.space, manifest.dtype, manifest.sha256
        self.dimension = manifest.space.dimension
        self._stored_SN = stored_SN  # each shard's rows as they lie on the disk
        self._start_S = np.cumsum([0, *(shard.rows for shard in manifest.shards)])[:-1]
        everything = [name for part in ids for name in part]
        self._position_N: np.ndarray | None = None  # where each live row lies; None while all rows are live
        if any(shard.dead for shard in manifest.shards):
            live = np.ones(len(everything), dtype=bool)
            for start, shard in zip(self._start_S, manifest.shards, strict=True):
                live[start + np.asarray(shard.dead, dtype=np.int64)] = False
            self._position_N = np.flatnonzero(live)
            everything = [everything[position] for position in self._position_N]
        self.ids: list[str] = everything

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool = False, manifest: Manifest | None = None) -> VectorStore:
        """Open a finished store. Sizes and shapes are always checked; ``verify`` also reads every byte.

        ``manifest`` stands in for the one on disk: that of an update which is not visible yet.

        Raises:
            InputError: no store, or a damaged one; every damaged file is named.
            StaleArtefactError: the manifest belongs to another store than the shards.
        """
        folder = Path(folder)
        manifest = manifest or Manifest.read(folder)
        problems: list[Problem] = []
        stored_SN, ids = [], []
        for shard in manifest.shards:
            try:
                stored_N, names = _open_shard(folder, manifest, shard)
            except InputError as error:
                problems += error.problems
            else:
                stored_SN.append(stored_N)
                ids.append(names)
        if problems:
            raise StaleArtefactError(problems)
        store = cls(folder, manifest, stored_SN, ids)
        if verify:
            store._verify(ids)
        return store

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def row(self) -> dict[str, int]:
        """id -> row."""
        return {name: row for row, name in enumerate(self.ids)}

    def rows_of(self, ids: Sequence[str]) -> np.ndarray:
        """The rows of ``ids``, int64 [B].

        Raises:
            InputError: the store holds no vector for some of them; they are named.
        """
        missing = [name for name in ids if name not in self.row]
        if missing:
            raise InputError(Problem(f"{len(missing)} ids have no vector", where=str(self.folder),
                                     got=name_some(missing), next="run the embed step again, or embed --update"))
        return np.fromiter((self.row[name] for name in ids), dtype=np.int64, count=len(ids))

    def vectors(self, row_B: np.ndarray | None = None) -> np.ndarray:
        """Vectors of the given rows (``None``: of all), float32 [B, D], in memory."""
        row_B = np.arange(len(self)) if row_B is None else np.asarray(row_B, dtype=np.int64)
        assert row_B.ndim == 1 and (not row_B.size or (row_B.min() >= 0 and row_B.max() < len(self))), "no such row"
        position_B = row_B if self._position_N is None else self._position_N[row_B]
        vector_BD = np.empty((len(row_B), self.dimension), dtype=np.float32)
        shard_B = np.searchsorted(self._start_S, position_B, side="right") - 1
        for shard in np.unique(shard_B):
            here = np.flatnonzero(shard_B == shard)
            stored_B = self._stored_SN[shard][position_B[here] - self._start_S[shard]]
            vector_BD[here] = unpack(stored_B, self.dtype)
            _release(self._stored_SN[shard])
        return vector_BD

    def blocks(self, rows: int) -> Iterator[tuple[int, np.ndarray]]:
        """All vectors in order, at most ``rows`` at a time: (first row, float32 [<= rows, D])."""
        for start in range(0, len(self), rows):
            yield start, self.vectors(np.arange(start, min(start + rows, len(self))))

    def text_hashes(self) -> np.ndarray:
        """The hash of each live row's text, uint64 [N]."""
        shards = self.manifest.shards
        hash_N = np.concatenate([_read_texts(self.folder, shard) for shard in shards])
        return hash_N if self._position_N is None else hash_N[self._position_N]

    def _verify(self, ids: list[list[str]]) -> None:
        problems = []
        bar = progress(zip(self.manifest.shards, ids, strict=True), what=f"verify {self.folder.name}",
                       total=len(ids), unit="shard")
        for shard, names in bar:
            if file_sha256(path := shard.path(self.folder)) != shard.sha256:
                problems.append(Problem("damaged: its sha256 is not the one in the manifest", where=str(path),
                                        next=AGAIN))
            hash_N = _read_texts(self.folder, shard)
            if content_sha256(names, hash_N) != shard.content:
                path = shard.path(self.folder, "ids", "json")
                problems.append(Problem("damaged: ids or text hashes are not those in the manifest",
                                        where=f"{path} and {shard.path(self.folder, 'texts').name}", next=AGAIN))
        if not problems and content_sha256(self.ids, self.text_hashes()) != self.manifest.content:
            problems.append(Problem("the manifest's live rows are not those of its content hash",
                                    where=str(self.folder / "manifest.json"), next=AGAIN))
        if problems:
            raise StaleArtefactError(problems)


@dataclass(frozen=True, slots=True)
class StoreRows:
    """Rows of a store as an array [N, D] that is read where it is sliced: an index is built from it block by block."""

    store: VectorStore
    row_N: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return len(self.row_N), self.store.dimension

    def __len__(self) -> int:
        return len(self.row_N)

    def __getitem__(self, some: slice | np.ndarray) -> np.ndarray:
        return self.store.vectors(self.row_N[some])


def _open_shard(folder: Path, manifest: Manifest, shard: Shard) -> tuple[np.ndarray, list[str]]:
    """Map one shard and read its ids, after cheap checks that need no read of the vectors."""
    path, own = shard.path(folder), shard.path(folder, "shard", "json")
    if not path.is_file() or not own.is_file():
        lost = own if path.is_file() else path
        raise InputError(Problem("a file of the store is missing", where=str(lost), next=AGAIN))
    size = path.stat().st_size
    if size != shard.bytes:
        raise InputError(Problem("truncated or overwritten", where=str(path), got=f"{size} bytes",
                                 allowed=f"{shard.bytes} bytes", next=AGAIN))
    if read_json(own) != {**shard.to_json(), "dead": []} or shard.made != manifest.made:
        raise InputError(Problem("the manifest is of another store: this shard was not made with it", where=str(own),
                                 got=f"manifest {folder / 'manifest.json'}", next=AGAIN))
    stored_N = _read_array(path, *stored_as(manifest.dtype, shard.rows, manifest.space.dimension))
    ids_path = shard.path(folder, "ids", "json")
    names = read_json(ids_path)
    if not isinstance(names, list) or len(names) != shard.rows:
        raise InputError(Problem("not the ids of this shard", where=str(ids_path), allowed=f"{shard.rows} ids",
                                 next=AGAIN))
    return stored_N, names


def _release(mapped: np.ndarray) -> None:
    """Let go of what was read of a mapped file: the system may keep it, but it is no memory of this process any more.

    Without this, a process that has read all rows once, a few at a time, holds as much as the whole file.
    """
    base: Any = mapped
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):  # not on Windows
        base.madvise(mmap.MADV_DONTNEED)


def _read_texts(folder: Path, shard: Shard) -> np.ndarray:
    """The hashes of a shard's texts, dead ones included, uint64 [rows]."""
    return _read_array(shard.path(folder, "texts"), np.dtype("<u8"), (shard.rows,))


def _read_array(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Map an array of known type and shape."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        found = f"{array.dtype} {array.shape}"
    except (OSError, ValueError) as error:
        array, found = None, str(error)
    if array is None or array.shape != shape or array.dtype != dtype:
        raise InputError(Problem("missing or damaged", where=str(path), got=found, allowed=f"{dtype} {shape}",
                                 next=AGAIN))
    return np.asarray(array)
