"""Bulk writing of a vector store, shard by shard: killed at any moment it goes on where it stood.

A new store grows in ``FOLDER.partial`` and takes its final name by one rename. An update adds shards to the living
folder and becomes visible when the manifest is replaced. In both, a shard counts as finished once its own entry
(``shard-00000.json``) is written, and is used again if ids, texts, space, dtype and key are still the same.

Several processes call the same function with the same rows: each writes every W-th shard, the main one the manifest.

Axes: N rows, W rows of a window, D dimensions.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from harness.runtime.distributed import rank, wait_for_all, world_size
from harness.runtime.errors import InputError, Problem, StaleArtefactError
from harness.runtime.process import atomic_file, file_sha256, progress, read_json, write_json
from harness.vectors.codec import STORE_DTYPES, pack, stored_as, unpack
from harness.vectors.space import Space, require_same_space
from harness.vectors.store import Manifest, Shard, VectorStore, content_sha256, name_some, text_hashes
from harness.vectors.windows import Copying, encode_windows
from harness.vectors.windows import Encode as Encode

logger = logging.getLogger("harness")

WINDOW = 8192  # texts handed to ``encode`` at once: enough to sort by length, few enough to hold in memory
_OURS = re.compile(r"(\..*\.tmp|(shard|ids|texts)-\d{5,}\.(npy|json))")


def write_store(
    folder: Path | str,
    ids: Sequence[str],
    texts: Sequence[str],
    encode: Encode,
    space: Space,
    *,
    dtype: str = "float32",
    shard_rows: int = 100_000,
    key: str = "",
) -> VectorStore:
    """Encode ``texts`` and write them as a store in the order given.

    A store of the same content is returned at once; one of other content is replaced when the new one is whole.

    Args:
        folder: the final folder.
        ids: N distinct ids.
        texts: N texts.
        encode: texts -> float [W, D]; called in windows of some thousand texts, or given all of them if it has
            ``windows`` (see ``EncodesWindows``).
        space: the space of the vectors; D is its dimension.
        dtype: how vectors are stored: ``float32``, ``float16``, ``bfloat16`` or ``int8`` (see ``codec``).
        shard_rows: rows of a shard, the unit of resuming.
        key: whatever else the vectors depend on (which side, the longest text, precision, a student's weights); vectors
            of another key are never used again.

    Raises:
        InputError: no rows, duplicate ids, lengths that differ, vectors of another dimension or not finite (ids named),
            or a folder in the way that is no store.
    """
    folder = Path(folder)
    _check_rows(ids, texts, folder)
    assert shard_rows > 0 and dtype in STORE_DTYPES
    text_hash_N = text_hashes(texts)
    wanted = Manifest(space, dtype, key, content_sha256(ids, text_hash_N), ())
    partial = folder.with_name(folder.name + ".partial")
    if (folder / "manifest.json").is_file() and (whole := _whole(folder, wanted)) is not None:
        shutil.rmtree(partial, ignore_errors=True)  # what was begun for other content
        return whole
    partial.mkdir(parents=True, exist_ok=True)
    writer = _ShardWriter(partial, wanted, encode, f"embed {folder.name}")
    shards = writer.write(ids, texts, text_hash_N, shard_rows)
    if rank() == 0:
        _tidy(partial, shards)
        write_json(partial / "manifest.json", replace(wanted, shards=tuple(shards)).to_json())
        _take_place(partial, folder)
    wait_for_all()
    return VectorStore.open(folder)


def _whole(folder: Path, wanted: Manifest) -> VectorStore | None:
    """The store in ``folder``, if it is the wanted one to the last byte. One that is damaged is written anew."""
    try:
        if Manifest.read(folder).sha256 == wanted.sha256:
            return VectorStore.open(folder, verify=True)
    except InputError as error:
        logger.warning("%s is damaged and written anew: %s", folder, error.problems[0].what)
    return None


def update_store(
    folder: Path | str,
    ids: Sequence[str],
    texts: Sequence[str],
    encode: Encode,
    space: Space,
    *,
    shard_rows: int = 100_000,
    key: str = "",
) -> VectorStore:
    """``stage_update`` and ``commit`` in one."""
    return stage_update(folder, ids, texts, encode, space, shard_rows=shard_rows, key=key).commit()


@dataclass(frozen=True, slots=True)
class StagedUpdate:
    """An update whose vectors are on disk; who opens the folder still finds the old store, until ``commit``.

    ``stay``, ``encoded`` and ``leave`` count rows; a changed row is encoded and leaves.
    """

    folder: Path
    manifest: Manifest
    stay: int
    encoded: int
    leave: int

    def store(self) -> VectorStore:
        """The store as it will be."""
        return VectorStore.open(self.folder, manifest=self.manifest)

    def commit(self) -> VectorStore:
        """Put the new manifest in place, by one rename, and remove shards that no row lives in any more."""
        if rank() == 0:
            if self.encoded or self.leave:
                write_json(self.folder / "manifest.json", self.manifest.to_json())
            _tidy(self.folder, self.manifest.shards)
        wait_for_all()
        return VectorStore.open(self.folder)


def stage_update(
    folder: Path | str,
    ids: Sequence[str],
    texts: Sequence[str],
    encode: Encode,
    space: Space,
    *,
    shard_rows: int = 100_000,
    key: str = "",
) -> StagedUpdate:
    """Write what brings a store up to date with ``ids`` and ``texts``, encoding only what is new or changed.

    Rows that are gone or changed become tombstones. Live rows keep their order; changed and new ones follow, in the
    order given. Rows of a shard that is mostly tombstones, and of small shards at the end, are copied to where the new
    ones go: no more than half of a store is dead, and its shards don't grow in number with every update. Killed before
    the end, the store is still the old one, and the next update goes on.

    Args:
        folder, ids, texts, encode, space, shard_rows, key: as for ``write_store``; the storage type stays.

    Raises:
        InputError: as ``write_store``; or there is no store.
        StaleArtefactError: the store is of another space or key: it must be written anew.
    """
    folder = Path(folder)
    _check_rows(ids, texts, folder)
    store = VectorStore.open(folder)
    require_same_space(store.space, space, str(folder), "the encoder")
    if store.manifest.key != key:
        raise StaleArtefactError(Problem("the store was made with other settings and can't be updated",
                                         where=str(folder), got=repr(store.manifest.key), allowed=repr(key),
                                         next="embed again without --update"))
    old_hashes, old_shards = store.text_hashes(), store.manifest.shards
    kept_N = _unchanged(store.ids, old_hashes, ids, texts)
    stay = int(kept_N.sum())
    staged = StagedUpdate(folder, store.manifest, stay, len(ids) - stay, len(store) - stay)
    logger.info("%s: %d rows stay, %d are encoded, %d leave", folder, stay, staged.encoded, staged.leave)
    if not staged.encoded and not staged.leave:
        return staged
    moved_S = _worth_moving(_with_tombstones(old_shards, kept_N), staged.encoded, shard_rows)
    moved_N = kept_N & np.repeat(moved_S, [shard.live for shard in old_shards])
    kept_N &= ~moved_N
    kept_ids = [name for name, kept in zip(store.ids, kept_N, strict=True) if kept]
    known = set(kept_ids)
    new = [(name, text) for name, text in zip(ids, texts, strict=True) if name not in known]
    new_ids, new_texts = [name for name, _ in new], [text for _, text in new]
    new_hashes = text_hashes(new_texts)
    text_of = dict(new)
    moved = {text_of[store.ids[row]]: row for row in np.flatnonzero(moved_N).tolist()}
    writer = _ShardWriter(folder, store.manifest, Copying(store, moved, encode), f"update {folder.name}")
    added = writer.write(new_ids, new_texts, new_hashes, shard_rows, first=old_shards[-1].number + 1)
    content = content_sha256([*kept_ids, *new_ids], np.concatenate([old_hashes[kept_N], new_hashes]))
    shards = (*(shard for shard in _with_tombstones(old_shards, kept_N) if shard.live), *added)
    return replace(staged, manifest=replace(store.manifest, content=content, shards=shards))


def _unchanged(old_ids: Sequence[str], old_hashes: np.ndarray, ids: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """Which old rows have the text that their id is to have, bool [N]."""
    wanted = dict(zip(ids, text_hashes(texts).tolist(), strict=True))
    return np.fromiter(
        (wanted.get(name) == old for name, old in zip(old_ids, old_hashes.tolist(), strict=True)),
        dtype=bool, count=len(old_ids),
    )


def _worth_moving(shards: Sequence[Shard], appended: int, shard_rows: int) -> np.ndarray:
    """Which shards give their live rows to the new ones, bool [S]: those mostly dead, and small ones at the end.

    A small one is joined when no fewer rows follow it, so a row is copied a logarithmic number of times.
    """
    live_S = np.array([shard.live for shard in shards])
    moved_S = 2 * live_S < [shard.rows for shard in shards]
    appended += int(live_S[moved_S].sum())
    for at in np.flatnonzero(~moved_S)[::-1]:
        if live_S[at] > min(appended, shard_rows // 2):
            break
        moved_S[at] = True
        appended += int(live_S[at])
    return moved_S


def _with_tombstones(shards: Sequence[Shard], kept_N: np.ndarray) -> list[Shard]:
    """The shards with every live row that is not kept marked as dead."""
    marked, start = [], 0
    for shard in shards:
        live = np.setdiff1d(np.arange(shard.rows), np.asarray(shard.dead, dtype=np.int64))
        gone = live[~kept_N[start : start + len(live)]]
        start += len(live)
        marked.append(replace(shard, dead=tuple(sorted([*shard.dead, *gone.tolist()]))))
    return marked


@dataclass(frozen=True, slots=True)
class _ShardWriter:
    """Writes the shards that are not on disk yet into ``folder``; ``manifest`` says with what they are made."""

    folder: Path
    manifest: Manifest
    encode: Encode
    what: str

    def write(
        self, ids: Sequence[str], texts: Sequence[str], text_hash_N: np.ndarray, shard_rows: int, first: int = 0
    ) -> list[Shard]:
        """One shard for every ``shard_rows`` rows, numbered from ``first``; each process writes its share of them."""
        parts = [slice(start, start + shard_rows) for start in range(0, len(ids), shard_rows)]
        own = range(rank(), len(parts), world_size())
        with progress(what=self.what, total=sum(len(ids[parts[at]]) for at in own), unit="text") as bar:
            missing: dict[int, str] = {}
            for at in own:
                content = content_sha256(ids[parts[at]], text_hash_N[parts[at]])
                if (shard := self._finished(first + at, content)) is not None:
                    bar.update(shard.rows)
                else:
                    missing[at] = content
            windows = (texts[parts[at]][start : start + WINDOW] for at in missing
                       for start in range(0, len(texts[parts[at]]), WINDOW))  # fmt: skip
            with closing(encode_windows(self.encode, windows)) as vectors:  # one stream, from shard to shard
                for at, content in missing.items():
                    self._write_one(first + at, ids[parts[at]], vectors, text_hash_N[parts[at]], content, bar)
        wait_for_all()
        shards = [self._entry(first + at) for at in range(len(parts))]
        wait_for_all()  # the folder gets its final name only when all have read it
        return shards

    def _entry(self, number: int) -> Shard:
        """A finished shard's own entry.

        Raises:
            InputError: there is none, or it is damaged.
        """
        entry = read_json(Shard(number, 0, "", "", 0, "").path(self.folder, "shard", "json"))
        return Shard(**{**entry, "dead": ()})

    def _finished(self, number: int, content: str) -> Shard | None:
        """The shard, if an earlier, interrupted writer left it whole and of the same content."""
        try:
            shard = self._entry(number)
        except (InputError, TypeError):
            return None
        same = (shard.number, shard.content, shard.made) == (number, content, self.manifest.made)
        beside = [shard.path(self.folder, "ids", "json"), shard.path(self.folder, "texts"), shard.path(self.folder)]
        if not same or not all(path.is_file() for path in beside) or file_sha256(beside[-1]) != shard.sha256:
            return None
        return shard

    def _write_one(
        self, number: int, ids: Sequence[str], vectors: Iterator[np.ndarray], text_hash_N: np.ndarray, content: str,
        bar: Any,
    ) -> None:  # fmt: skip
        shard = Shard(number, len(ids), content, "", 0, self.manifest.made)
        own, path = shard.path(self.folder, "shard", "json"), shard.path(self.folder)
        own.unlink(missing_ok=True)  # from here until the end the shard is unfinished
        with atomic_file(shard.path(self.folder, "ids", "json"), "w") as stream:
            json.dump(list(ids), stream)
        with atomic_file(shard.path(self.folder, "texts")) as stream:
            np.save(stream, text_hash_N, allow_pickle=False)
        dtype, shape = stored_as(self.manifest.dtype, len(ids), self.manifest.space.dimension)
        # Written as a plain file, not through a memory map: on a full disk a map kills the process without a word.
        # One window is written while the next is encoded.
        with atomic_file(path, size=math.prod(shape) * dtype.itemsize) as stream, ThreadPoolExecutor(1) as thread:
            descr = np.lib.format.dtype_to_descr(dtype)
            np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
            writing: Future[int] | None = None
            for start in range(0, len(ids), WINDOW):
                vector_WD = next(vectors)
                if writing is not None:
                    bar.update(writing.result())
                writing = thread.submit(self._append, stream, vector_WD, ids[start : start + WINDOW])
            assert writing is not None, "a shard without rows"
            bar.update(writing.result())
        write_json(own, replace(shard, sha256=file_sha256(path), bytes=path.stat().st_size).to_json())

    def _append(self, stream: IO[bytes], vector_WD: np.ndarray, ids: Sequence[str]) -> int:
        """Write a window's vectors; how many."""
        stream.write(packed(vector_WD, ids, self.manifest.space.dimension, self.manifest.dtype).tobytes())
        return len(ids)


def _check_rows(ids: Sequence[str], texts: Sequence[str], folder: Path) -> None:
    problems = []
    if len(ids) != len(texts):
        problems.append(Problem("ids and texts differ in number", where=str(folder),
                                got=f"{len(ids)} ids, {len(texts)} texts", next="give one text for every id"))
    if not ids:
        problems.append(Problem("nothing to embed", where=str(folder), got="0 rows", next="look at the data step"))
    if len(set(ids)) < len(ids):
        twice = [name for name, count in Counter(ids).items() if count > 1]
        problems.append(Problem(f"{len(twice)} ids stand more than once", where=str(folder), got=name_some(twice),
                                next="give every row its own id"))
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not empty and not (folder / "manifest.json").is_file():
        problems.append(Problem("something that is no vector store is in the way", where=str(folder),
                                next="move it away, or name another folder"))
    if problems:
        raise InputError(problems)


def packed(vector_WD: np.ndarray, ids: Sequence[str], dimension: int, dtype: str) -> np.ndarray:
    """The vectors as they are stored, after a look at shape and values.

    Raises:
        InputError: another shape than ids and dimension say, or values that are not finite in ``dtype``.
    """
    vector_WD = np.asarray(vector_WD)
    if vector_WD.shape != (len(ids), dimension):
        raise InputError(Problem("the encoder's vectors have another shape than the space says",
                                 got=str(vector_WD.shape), allowed=str((len(ids), dimension)),
                                 next="name the encoder that the space is of"))
    stored_W = pack(vector_WD, dtype)
    broken = np.flatnonzero(~np.isfinite(unpack(stored_W, dtype)).all(axis=1))
    if broken.size:
        overflow = np.isfinite(vector_WD[broken]).all()
        raise InputError(Problem(
            f"{broken.size} vectors are not finite{f' in {dtype}' if overflow else ''}",
            where="ids " + name_some(ids[row] for row in broken.tolist()),
            got=f"{vector_WD[broken[0]][:4]}...",
            next="set embed.dtype: float32" if overflow else "look at these texts, or encode in higher precision",
        ))
    return stored_W


def _tidy(folder: Path, shards: Sequence[Shard]) -> None:
    """Remove what an interrupted writer of other content left: temporary files and shards that don't belong."""
    numbers = {f"{shard.number:05d}" for shard in shards}
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path.stem.partition("-")[2] not in numbers:
            path.unlink()


def _take_place(partial: Path, folder: Path) -> None:
    """Give the whole store its final name. Killed in between, the whole store is still there as ``partial``."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.old.tmp")
    if folder.exists():
        os.replace(folder, aside)
    os.replace(partial, folder)
    shutil.rmtree(aside, ignore_errors=True)
