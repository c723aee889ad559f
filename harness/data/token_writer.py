"""Builds a token cache file by file: several processes share the files, and a kill costs the files that were under way.

Three passes, each resumable: look through every file (what is readable, hashes, languages), leave out duplicates across
files, tokenise what is left. Memory: one block of texts and some 40 bytes for each row of the largest file.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data import dedupe
from harness.data.dedupe import Hashes
from harness.data.reading import BadLine, Reading, check_language, check_text, require_text
from harness.data.records import UNKNOWN_LANGUAGE
from harness.data.shards import Block, Identity, Shard
from harness.data.token_cache import CacheSettings, CacheShard, Context, Layout, TokenCache, manifest_of
from harness.runtime.distributed import on_main, rank, wait_for_all, world_size
from harness.runtime.errors import InputError, Problem
from harness.runtime.process import (
    atomic_file,
    file_sha256,
    fingerprint,
    progress,
    read_json,
    remove_leftovers,
    write_json,
)

PART_BYTES = 128 * 2**20  # of memory, for the hashes compared at a time
SLICE = 4096  # texts tokenised at a time
MOST_ROWS, MOST_LANGUAGES = 2**32 - 1, 2**16 - 1  # of one file: what uint32 and uint16 can number
_BYTES_PER_HASH = 40  # of memory, while hashes are compared


def build_token_cache(
    folder: Path,
    paths: Sequence[Path],
    settings: CacheSettings,
    *,
    remedy: str = "correct the file, or leave unreadable rows out",
) -> TokenCache:
    """Tokenise the files into ``folder``, as far as that is not done yet, and open the cache.

    Every process of the launch calls this with the same arguments. Finished files of an earlier, interrupted build are
    taken over, and so are those of an earlier cache whose content (and, without duplicates, that of all files before)
    is the same. ``manifest.json`` is written last.

    Args:
        remedy: what is to be done about rows that can't be used.

    Raises:
        InputError: files can't be read; rows can't be used (all are told, unless ``skip_bad``); nothing is left.
    """
    if not paths or len(set(paths)) < len(paths):
        raise InputError(Problem("a token cache needs files, each once", where=str(folder), got=f"{len(paths)} files"))
    if on_main(lambda: _is_finished(folder, paths, settings)):
        return TokenCache.open(folder, settings, paths)
    builder = _Builder(folder, list(paths), settings)
    scans = builder.look_through(remedy)
    builder.leave_out_duplicates(scans)
    builder.tokenise(scans)
    wait_for_all()
    cache = TokenCache.open(folder, settings, paths)
    if not len(cache):
        raise InputError(Problem("no row is left to tokenise", where=str(folder), next="look at the files and columns"))
    return cache


def _is_finished(folder: Path, paths: Sequence[Path], settings: CacheSettings) -> bool:
    """Whether nothing is to do (bad rows left out earlier may be an error now); else clear up what a kill left."""
    try:
        cache = TokenCache.open(folder, settings, paths)
    except InputError:
        remove_leftovers(folder)
        return False
    return bool(len(cache)) and (settings.skip_bad or not any(shard.left_out["bad"] for shard in cache.shards))


@dataclass(frozen=True)
class _Scan:
    """What looking through a file found."""

    made: str
    identity: Identity
    sizes: tuple[int, ...]
    offsets: tuple[int, ...]
    languages: tuple[str, ...]
    distinct: int
    bad: dict[str, dict[str, Any]]

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> _Scan:
        lists = {name: tuple(value[name]) for name in ("sizes", "offsets", "languages")}
        return cls(**{**value, **lists, "identity": Identity(**value["identity"])})


class _Builder:
    """The passes over one set of files."""

    def __init__(self, folder: Path, paths: list[Path], settings: CacheSettings) -> None:
        self.folder, self.paths, self.settings = folder, paths, settings
        self.work = folder / "work"
        self.own = range(rank(), len(paths), world_size())
        self.columns = [*settings.texts, *settings.keys, *settings.apart, settings.language]
        self.work.mkdir(parents=True, exist_ok=True)

    # ------------------------------------------------------------------------------------------------- first pass

    def look_through(self, remedy: str) -> list[_Scan]:
        """Scan this process's files; every file's scan, once all are done."""
        for number in progress(self.own, what="look through", total=len(self.own), unit="file"):
            if self._finished_scan(number) is None:
                self._scan(number)
        wait_for_all()
        scans = [_Scan.from_json(read_json(self._file("scan", number, "json"))) for number in range(len(self.paths))]
        problems = [
            Problem(f"{kind} ({entry['count']} rows)", where=f"{path}:{entry['first'][0]}", got=entry["got"],
                    next=remedy)
            for path, scan in zip(self.paths, scans, strict=True) for kind, entry in scan.bad.items()
        ]  # fmt: skip
        if problems and not self.settings.skip_bad:
            raise InputError(problems)
        return scans

    def _file(self, kind: str, number: int, suffix: str = "npy") -> Path:
        return self.work / f"{kind}-{number:06d}.{suffix}"

    def _finished_scan(self, number: int) -> _Scan | None:
        try:
            scan = _Scan.from_json(read_json(self._file("scan", number, "json")))
        except (InputError, TypeError, KeyError):
            return None
        right = scan.made == self.settings.made and scan.identity.still(self.paths[number])
        return scan if right else None

    def _scan(self, number: int) -> None:
        """Find a file's readable rows, their keys and languages, and the first row of each text."""
        path = self.paths[number]
        self._file("scan", number, "json").unlink(missing_ok=True)  # from here until the end it is unfinished
        identity, shard, reading = Identity.of(path), Shard.open(path), Reading()
        if shard.rows > MOST_ROWS:
            raise InputError(Problem("too many rows in one file", where=str(path), got=f"{shard.rows:,}",
                                     allowed=f"{MOST_ROWS:,}", next="write them as several files"))  # fmt: skip
        key_NK = np.zeros((shard.rows, len(self.columns) - 1), dtype=np.uint64)
        language_N = np.zeros(shard.rows, dtype=np.uint16)
        usable_N = np.zeros(shard.rows, dtype=np.bool_)
        languages: dict[str, int] = {}
        start = 0
        for at, size in enumerate(shard.sizes):
            block, rows = shard.read(at, self.columns), slice(start, start + size)
            usable_N[rows] = self._usable(block, path, start, reading)
            self._block_keys(block, key_NK[rows])
            language_N[rows] = self._language_codes(block, languages)
            start += size
        usable_N &= self._settle_languages(language_N, usable_N, languages, path, reading)
        hash_U, first_U = self._first_rows(key_NK, language_N, usable_N, tuple(languages))
        for kind, array in (("key", key_NK), ("language", language_N), ("hash", hash_U), ("first", first_U)):
            with atomic_file(self._file(kind, number)) as stream:
                np.save(stream, array, allow_pickle=False)
        bad = _described(reading)
        scan = _Scan(self.settings.made, identity, shard.sizes, shard.offsets, tuple(languages), len(first_U), bad)
        write_json(self._file("scan", number, "json"), asdict(scan))

    def _usable(self, block: Block, path: Path, start: int, reading: Reading) -> NDArray[np.bool_]:
        usable_N = np.ones(block.rows, dtype=np.bool_)
        for row, problem in block.bad.items():
            reading.bad(path, start + row + 1, problem)
            usable_N[row] = False
        required = [(name, require_text) for name in self.settings.texts]
        for name, check in [*required, *((name, check_text) for name in self.settings.apart)]:
            for row, text in enumerate(block.column(name)):
                if type(text) is str and text and not text.isspace() and text.isascii():
                    continue
                try:
                    check(text, name)
                except BadLine as problem:
                    if usable_N[row]:  # a row is told, and counted, once
                        reading.bad(path, start + row + 1, problem)
                    usable_N[row] = False
        return usable_N

    def _block_keys(self, block: Block, key_NK: Hashes) -> None:
        for number, name in enumerate(self.columns[:-1]):
            values = block.column(name)
            key_NK[:, number] = dedupe.text_hashes(None if value is None else str(value) for value in values)

    def _language_codes(self, block: Block, languages: dict[str, int]) -> list[int]:
        """The number of each row's language, ``""`` for none; new ones are appended to ``languages``."""
        codes = []
        for value in block.column(self.settings.language):
            try:
                name = check_language(value, self.settings.language) or self.settings.default_language or ""
            except BadLine:
                name = ""
            codes.append(languages.setdefault(name, len(languages)))
        if len(languages) > MOST_LANGUAGES:
            raise InputError(Problem(f"more than {MOST_LANGUAGES:,} languages in a file",
                                     where=f"column {self.settings.language}", got=", ".join(list(languages)[-3:]),
                                     next="name the column of languages"))  # fmt: skip
        return codes

    def _settle_languages(
        self, language_N: NDArray[Any], usable_N: NDArray[np.bool_], languages: dict[str, int], path: Path,
        reading: Reading,
    ) -> NDArray[np.bool_]:  # fmt: skip
        """Rows without a language are unusable where other rows have one; where none has, all are ``und``."""
        missing = languages.get("")
        if missing is None:
            return np.ones(len(language_N), dtype=np.bool_)
        if len(languages) == 1:
            del languages[""]
            languages.setdefault(self.settings.default_language or UNKNOWN_LANGUAGE, missing)
            return np.ones(len(language_N), dtype=np.bool_)
        for row in np.flatnonzero(usable_N & (language_N == missing)).tolist():
            reading.bad(path, row + 1, BadLine(f"no {self.settings.language}, which other lines of the file have"))
        return language_N != missing

    def _first_rows(
        self, key_NK: Hashes, language_N: NDArray[Any], usable_N: NDArray[np.bool_], languages: tuple[str, ...]
    ) -> tuple[Hashes, NDArray[np.uint32]]:
        """The distinct hashes of texts and language, rising, and the first row of each; or every usable row."""
        if not self.settings.deduplicate:
            return np.empty(0, dtype=np.uint64), np.flatnonzero(usable_N).astype(np.uint32)
        of_language = dedupe.text_hashes(languages)
        compared = (*self.settings.texts, *self.settings.apart)
        columns = [key_NK[:, number] for number, name in enumerate(self.columns[:-1]) if name in compared]
        return dedupe.sorted_first(dedupe.joined_hashes([*columns, of_language[language_N]]), usable_N)

    # ------------------------------------------------------------------------------------------------ second pass

    def leave_out_duplicates(self, scans: Sequence[_Scan]) -> None:
        """Find the rows whose texts an earlier file has, part by part of the range of hashes."""
        if not self.settings.deduplicate:
            return
        parts = self._parts(scans)
        made = fingerprint([self.settings.made, parts, [scan.identity.sha256 for scan in scans]])
        for number in range(rank(), parts, world_size()):
            told = self._file("later", number, "json")
            if told.is_file() and read_json(told)["made"] == made:
                continue
            rows = self._later_rows(number, parts)
            with atomic_file(self._file("later", number)) as stream:
                np.save(stream, np.concatenate(rows), allow_pickle=False)
            write_json(told, {"made": made, "ends": np.cumsum([len(part) for part in rows]).tolist()})
        wait_for_all()

    def _parts(self, scans: Sequence[_Scan]) -> int:
        return 1 + sum(scan.distinct for scan in scans) * _BYTES_PER_HASH // PART_BYTES

    def _later_rows(self, number: int, parts: int) -> list[NDArray[np.uint32]]:
        """For each file, its rows whose hashes lie in this part and stand in an earlier file."""
        low, high = list(dedupe.part_bounds(parts))[number]
        hashes, firsts = [], []
        for file in range(len(self.paths)):
            hash_U = np.load(self._file("hash", file), mmap_mode="r", allow_pickle=False)
            own = dedupe.part_of(hash_U, low, high)
            hashes.append(np.array(hash_U[own]))
            firsts.append(np.array(np.load(self._file("first", file), mmap_mode="r", allow_pickle=False)[own]))
        return [first[at] for first, at in zip(firsts, dedupe.later_equals(hashes), strict=True)]

    def _kept(self, number: int, parts: int) -> NDArray[np.uint32]:
        """The rows of a file that are tokenised, rising."""
        first_U = np.load(self._file("first", number), allow_pickle=False)
        if not self.settings.deduplicate:
            return first_U
        later = []
        for part in range(parts):
            ends = read_json(self._file("later", part, "json"))["ends"]
            rows = np.load(self._file("later", part), mmap_mode="r", allow_pickle=False)
            later.append(np.array(rows[ends[number - 1] if number else 0 : ends[number]]))
        return np.sort(np.setdiff1d(first_U, np.concatenate(later), assume_unique=True))

    # ------------------------------------------------------------------------------------------------- third pass

    def tokenise(self, scans: Sequence[_Scan]) -> None:
        """Write this process's files of tokens; the main process then writes the manifest and clears up."""
        parts = self._parts(scans)
        done = [self._shard_of(number, scans) for number in range(len(scans))]
        with progress(what="tokenise", total=sum(sum(scans[at].sizes) for at in self.own), unit="text") as bar:
            for number in self.own:
                if self._finished_shard(done[number]) is None:
                    self._write(done[number], scans[number], number, self._kept(number, parts))
                bar.update(sum(scans[number].sizes))
        wait_for_all()
        if rank() == 0:
            shards = [self._finished_shard(shard) for shard in done]
            assert None not in shards, "written above, by one process or another"
            finished = [shard for shard in shards if shard is not None]
            write_json(self.folder / "manifest.json", manifest_of(self.settings, finished))
            names = {shard.name for shard in finished}
            for path in self.folder.glob("shard-*"):
                if path.name.split(".")[0] not in names:
                    path.unlink()
            shutil.rmtree(self.work)

    def _shard_of(self, number: int, scans: Sequence[_Scan]) -> CacheShard:
        """A file's entry as far as it is known before the writing."""
        first = 0 if self.settings.deduplicate else number
        contents = [scan.identity.sha256 for scan in scans[first : number + 1]]
        made = fingerprint([self.settings.made, number - first, contents, str(self.paths[number])])
        return CacheShard(made, str(self.paths[number]), scans[number].identity, 0, 0, {})

    def _finished_shard(self, shard: CacheShard) -> CacheShard | None:
        """The whole entry, if the shard is on disk and whole."""
        path = self.folder / f"{shard.name}.bin"
        try:
            found = CacheShard.from_json(read_json(path.with_suffix(".json")))
        except (InputError, TypeError, KeyError):
            return None
        fields, keys = len(self.settings.texts), len(self.settings.texts) + len(self.settings.keys)
        size = Layout(found.rows, found.tokens, fields, keys, self.settings.dtype).bytes
        whole = found.made == shard.made and path.is_file() and path.stat().st_size == size
        return replace(found, identity=shard.identity) if whole else None

    def _write(self, shard: CacheShard, scan: _Scan, number: int, kept_N: NDArray[np.uint32]) -> None:
        settings, path = self.settings, self.folder / f"{shard.name}.bin"
        path.with_suffix(".json").unlink(missing_ok=True)
        language_N = np.load(self._file("language", number), allow_pickle=False)[kept_N]
        keys = len(settings.texts) + len(settings.keys)
        key_NK = np.load(self._file("key", number), mmap_mode="r", allow_pickle=False)[kept_N, :keys]
        place_N = np.argsort(language_N, kind="stable").astype(np.uint32)
        offset = np.zeros(len(kept_N) * len(settings.texts) + 1, dtype=np.int64)
        source = Shard(self.paths[number], scan.sizes, scan.offsets)
        written = 1
        with atomic_file(path) as stream:
            for lists in self._token_lists(source, kept_N):
                length = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
                offset[written : written + len(lists)] = length
                written += len(lists)
                stream.write(_flat(lists, int(length.sum()), settings).tobytes())
            assert written == len(offset)
            np.cumsum(offset, out=offset)
            tokens = int(offset[-1])
            layout = Layout(len(kept_N), tokens, len(settings.texts), key_NK.shape[1], settings.dtype)
            stream.write(b"\0" * layout.padding)
            for array in (offset, key_NK, kept_N, place_N):
                stream.write(np.ascontiguousarray(array).tobytes())
        counts = Counter(language_N.tolist())
        languages = {scan.languages[code]: counts[code] for code in sorted(counts)}
        left_out = {"bad": sum(entry["count"] for entry in scan.bad.values())}
        left_out["duplicates"] = sum(scan.sizes) - left_out["bad"] - len(kept_N)
        kept = fingerprint([scan.identity.sha256, hashlib.sha256(kept_N.tobytes()).hexdigest()])
        whole = replace(shard, rows=len(kept_N), tokens=tokens, languages=languages, sha256=file_sha256(path),
                        left_out=left_out, kept=kept)  # fmt: skip
        write_json(path.with_suffix(".json"), asdict(whole))

    def _token_lists(self, source: Shard, kept_N: NDArray[np.uint32]) -> Iterator[list[Sequence[int]]]:
        """Token ids of the kept rows' texts, some thousand rows at a time: row after row, field after field."""
        texts = self.settings.texts
        columns = [*texts, *(text.context.column for text in texts.values() if text.context)]
        for block, chosen in source.chosen(kept_N, columns):
            for begin in range(0, len(chosen), SLICE):
                rows = chosen[begin : begin + SLICE]
                found = [tokenise.call(read_texts(block, rows, name, tokenise.context))
                         for name, tokenise in texts.items()]  # fmt: skip
                yield [tokens[row] for row in range(len(rows)) for tokens in found]


def read_texts(block: Block, rows: Sequence[int], column: str, context: Context | None) -> list[str]:
    """A column's texts in these rows of a block, with their contexts where there are any."""
    values = block.column(column)
    texts = [values[row].strip() for row in rows]
    if context is None:
        return texts
    told = block.column(context.column)
    return context.fill(texts, [told[row] for row in rows])


def _flat(lists: Sequence[Sequence[int]], count: int, settings: CacheSettings) -> NDArray[Any]:
    token_T = np.fromiter((token for tokens in lists for token in tokens), dtype=np.int64, count=count)
    highest = np.iinfo(settings.dtype).max
    assert not count or (token_T.min() >= 0 and token_T.max() <= highest), "a token id above the vocabulary told"
    return token_T.astype(settings.dtype)


def _described(reading: Reading) -> dict[str, dict[str, Any]]:
    """Bad rows of one file by kind: count, first places, and what stood at the first."""
    found: dict[str, dict[str, Any]] = {}
    for kinds in reading.bad_lines().values():
        found |= kinds
    told = {problem.what.rsplit(" (", 1)[0]: problem.got for problem in reading.problems()}
    return {kind: {**entry, "got": told.get(kind, "")} for kind, entry in found.items()}
