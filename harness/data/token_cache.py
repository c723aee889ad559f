"""Tokens at rest: logs tokenised once, memory-mapped afterwards, so that training reads tokens and no text.

A cache is a folder: ``manifest.json`` and one file for each source file.
Axes: N rows of a shard, F text fields of a row, K keys of a row, T tokens of a shard, C chosen rows.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.data.dedupe import Hashes
from harness.data.order import BlockOrder
from harness.data.records import in_context
from harness.data.sampling import Ints
from harness.data.shards import Identity
from harness.runtime.errors import InputError, Problem, StaleArtefactError
from harness.runtime.process import file_sha256, fingerprint, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 2
OPEN_SHARDS = 64  # memory maps held at a time
KEYS_AT_ONCE = 2**20  # rows whose keys are read at a time
MAKE_AGAIN = "build the cache again: shards that are still right are kept"


@dataclass(frozen=True, slots=True)
class Context:
    """Where a query's context stands, and how both become one text (``in_context``)."""

    column: str
    template: str

    def fill(self, queries: Sequence[str], contexts: Sequence[Any]) -> list[str]:
        """What the teacher's query side reads of each row."""
        return [
            in_context(query.strip(), "" if context is None else str(context).strip(), self.template)
            for query, context in zip(queries, contexts, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Tokenise:
    """How the texts of a field become tokens; two of equal fingerprint make equal tokens of every text.

    Args:
        call: texts -> token ids of each, prompt and special tokens included, cut to the maximal length.
        vocabulary: every id is below it.
        context: what is read together with the text.
    """

    call: Callable[[Sequence[str]], Sequence[Sequence[int]]]
    fingerprint: str
    vocabulary: int
    context: Context | None = None

    def told(self) -> Any:
        """What a hash over settings holds of it."""
        return [self.fingerprint, asdict(self.context)] if self.context else self.fingerprint


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase, *, prompt: str, max_length: int) -> str:
    """A hash of all that decides what a tokenizer makes of a text.

    Raises:
        InputError: the tokenizer is not backed by a ``tokenizer.json``, so what decides is not known.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(Problem("this tokenizer has no tokenizer.json to take a fingerprint of",
                                 got=type(tokenizer).__name__, next="convert it to a fast tokenizer"))  # fmt: skip
    rules = json.loads(backend.to_str())
    for state in ("truncation", "padding"):  # left there by the last call, and set anew by each
        rules.pop(state, None)
    return fingerprint([rules, tokenizer.truncation_side, tokenizer.pad_token_id, tokenizer.eos_token_id,
                        prompt, max_length])  # fmt: skip


@dataclass(frozen=True)
class CacheSettings:
    """What a cache holds of each row.

    Args:
        texts: column -> how its texts become tokens; a row that lacks one of these texts is left out and told.
        keys: further columns; rows that share a value in one of them, or a text, are relevant to each other.
        language: the column of languages, in every row or in none; ``default_language`` stands in for what is missing.
        deduplicate: of rows equal in all texts (case and whitespace aside) and the language, only the first is kept.
        apart: columns besides texts and language that tell rows apart, where duplicates are left out.
        skip_bad: leave unreadable rows out; otherwise they are an error.
    """

    texts: Mapping[str, Tokenise]
    keys: tuple[str, ...] = ()
    language: str = "lang"
    default_language: str | None = None
    deduplicate: bool = True
    skip_bad: bool = False
    apart: tuple[str, ...] = ()

    @property
    def made(self) -> str:
        """A hash of all of it but ``skip_bad``."""
        return fingerprint([VERSION, {name: text.told() for name, text in self.texts.items()}, list(self.texts),
                            self.keys, self.language, self.default_language, self.deduplicate, self.apart])  # fmt: skip

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint16 where every token id fits."""
        highest = max(text.vocabulary for text in self.texts.values())
        return np.dtype(np.uint16 if highest <= 2**16 else np.uint32)


@dataclass(frozen=True)
class CacheShard:
    """One file of tokens.

    Args:
        made: of the settings and of the content of this source file and (where duplicates are left out) all before it.
        rows, tokens: how many it holds.
        languages: language -> its rows; rows are in this order, within a language as in the source.
        kept: of the source's content and of which of its rows are held: the same whatever the tokenizer.
    """

    made: str
    source: str
    identity: Identity
    rows: int
    tokens: int
    languages: dict[str, int]
    sha256: str = ""
    left_out: dict[str, int] = field(default_factory=dict)
    kept: str = ""

    @property
    def name(self) -> str:
        """The file's name, without suffix."""
        return f"shard-{self.made[:16]}"

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CacheShard:
        return cls(**{**value, "identity": Identity(**value["identity"])})


@dataclass(frozen=True)
class Layout:
    """Where the arrays of a shard's file begin: tokens first, then, from a multiple of 8 bytes on, the others."""

    rows: int
    tokens: int
    fields: int
    keys: int
    dtype: np.dtype[Any]

    @property
    def padding(self) -> int:
        """Bytes between the tokens and the offsets."""
        return -self.tokens * self.dtype.itemsize % 8

    def sections(self) -> list[tuple[int, np.dtype[Any], tuple[int, ...]]]:
        """Start, type and shape of each array of ``_Mapped``; there is an offset for each text, and one for the end."""
        shapes: list[tuple[np.dtype[Any], tuple[int, ...]]] = [
            (self.dtype, (self.tokens,)), (np.dtype(np.int64), (self.rows * self.fields + 1,)),
            (np.dtype(np.uint64), (self.rows, self.keys)), (np.dtype(np.uint32), (self.rows,)),
            (np.dtype(np.uint32), (self.rows,)),
        ]  # fmt: skip
        found, start = [], 0
        for dtype, shape in shapes:
            found.append((start, dtype, shape))
            start += dtype.itemsize * int(np.prod(shape)) + (self.padding if len(found) == 1 else 0)
        return found

    @property
    def bytes(self) -> int:
        """Of the whole file."""
        start, dtype, shape = self.sections()[-1]
        return start + dtype.itemsize * int(np.prod(shape))


@dataclass(frozen=True)
class _Mapped:
    """A shard's arrays, as they lie on disk. ``place_N`` has the rows of each language together."""

    token_T: NDArray[Any]
    offset: Ints
    key_NK: Hashes
    source_N: NDArray[np.uint32]
    place_N: NDArray[np.uint32]


class TokenCache:
    """A finished cache. Row numbers run over all shards; those of one language lie together within a shard.

    Use ``open``.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        self.fields = tuple(manifest["texts"])
        self.key_names = (*self.fields, *manifest["keys"])
        self.made = str(manifest["made"])
        self.shards = [CacheShard.from_json(value) for value in manifest["shards"]]
        self._dtype = np.dtype(manifest["dtype"])
        self._end_S = np.cumsum([shard.rows for shard in self.shards])
        self._maps: OrderedDict[int, _Mapped] = OrderedDict()

    @classmethod
    def open(cls, folder: Path, settings: CacheSettings, paths: Sequence[Path]) -> TokenCache:
        """Open the cache that these settings make of these files.

        A source file counts as unchanged while size and time of change are the same; else its content is compared.

        Raises:
            InputError: there is no finished cache.
            StaleArtefactError: it was made with another tokenizer, prompt, length or columns, or from other content; or
                a file of it is not whole.
        """
        manifest = read_json(folder / "manifest.json", next=MAKE_AGAIN)
        problems = []
        if manifest["made"] != settings.made:
            problems.append(Problem("the token cache was made with another tokenizer, prompt, length or columns",
                                    where=str(folder), got=manifest["made"][:12], allowed=settings.made[:12],
                                    next=MAKE_AGAIN))  # fmt: skip
        cache = cls(folder, manifest)
        listed, wanted = [shard.source for shard in cache.shards], [str(path) for path in paths]
        if listed != wanted:
            other = sorted(set(listed) ^ set(wanted))
            problems.append(Problem("the token cache was made from other files", where=str(folder),
                                    got=", ".join(other[:5]) or "another order", next=MAKE_AGAIN))  # fmt: skip
        else:
            problems += [Problem("the file has changed since it was tokenised", where=shard.source,
                                 got=f"another content than {shard.identity.sha256[:12]}", next=MAKE_AGAIN)
                         for shard in cache.shards if not shard.identity.still(Path(shard.source))]  # fmt: skip
        for shard in cache.shards:
            path = folder / f"{shard.name}.bin"
            size, found = cache._layout(shard).bytes, path.stat().st_size if path.is_file() else 0
            if size != found:
                problems.append(Problem("a file of the token cache is not whole", where=str(path),
                                        got=f"{found:,} bytes", allowed=f"{size:,}", next=MAKE_AGAIN))  # fmt: skip
        if problems:
            raise StaleArtefactError(problems)
        return cache

    def verify(self) -> None:
        """Read every file and compare its hash.

        Raises:
            StaleArtefactError: files whose bytes are not those that were written.
        """
        broken = [shard for shard in self.shards if file_sha256(self.folder / f"{shard.name}.bin") != shard.sha256]
        if broken:
            raise StaleArtefactError([
                Problem("a file of the token cache is damaged", where=str(self.folder / f"{shard.name}.bin"),
                        next="remove it, and " + MAKE_AGAIN) for shard in broken
            ])  # fmt: skip

    def __len__(self) -> int:
        return int(self._end_S[-1]) if len(self._end_S) else 0

    @property
    def languages(self) -> dict[str, int]:
        """Language -> its rows."""
        counts: dict[str, int] = {}
        for shard in self.shards:
            for language, rows in shard.languages.items():
                counts[language] = counts.get(language, 0) + rows
        return dict(sorted(counts.items()))

    def streams(self, *, seed: Sequence[int], block: int = 1024, window: int = 64) -> dict[str, TokenStream]:
        """Each language's rows in shuffled order: blocks of up to ``block`` rows, ``window`` blocks mixed at a time."""
        return {
            name: TokenStream(self, name, seed=[*seed, number], block=block, window=window)
            for number, name in enumerate(self.languages)
        }

    def tokens(self, row_C: Ints, field: str) -> list[list[int]]:
        """The token ids of a field's texts."""
        at, fields = self.fields.index(field), len(self.fields)
        found: list[list[int]] = [[]] * len(row_C)
        for place_c, mapped, row_c in self._by_shard(row_C):
            start_c, stop_c = mapped.offset[row_c * fields + at], mapped.offset[row_c * fields + at + 1]
            for place, start, stop in zip(place_c.tolist(), start_c.tolist(), stop_c.tolist(), strict=True):
                found[place] = mapped.token_T[start:stop].tolist()
        return found

    def keys(self, row_C: Ints) -> Hashes:
        """uint64_CK: the hash of each text and key, 0 for none."""
        key_CK = np.empty((len(row_C), len(self.key_names)), dtype=np.uint64)
        for place_c, mapped, row_c in self._by_shard(row_C):
            key_CK[place_c] = mapped.key_NK[row_c]
        return key_CK

    def first_texts(self) -> Iterator[Hashes]:
        """uint64_C: the hash of each row's first text, of all rows, a part of them at a time."""
        for start in range(0, len(self), KEYS_AT_ONCE):
            yield self.keys(np.arange(start, min(start + KEYS_AT_ONCE, len(self))))[:, 0]

    def sources(self, row_C: Ints) -> list[tuple[int, int]]:
        """Where each row comes from: the number of the source file, and its row there, counted from 0."""
        found = [(0, 0)] * len(row_C)
        shard_C = np.searchsorted(self._end_S, row_C, side="right")
        for place_c, mapped, row_c in self._by_shard(row_C):
            for place, source in zip(place_c.tolist(), mapped.source_N[row_c].tolist(), strict=True):
                found[place] = int(shard_C[place]), source
        return found

    def places(self, row_C: Ints) -> tuple[Ints, Ints]:
        """int64_C, int64_C: the shard that each row lies in, and its row there, counted as in the source file."""
        place_C = np.empty(len(row_C), dtype=np.int64)
        for at_c, _, row_c in self._by_shard(row_C):
            place_C[at_c] = row_c
        return np.searchsorted(self._end_S, row_C, side="right").astype(np.int64), place_C

    def source_rows(self, number: int) -> NDArray[np.uint32]:
        """The rows of a source file that its shard holds, rising."""
        return self._map(number).source_N

    def _by_shard(self, row_C: Ints) -> list[tuple[Ints, _Mapped, Ints]]:
        """For each shard: the places in ``row_C``, the shard's arrays, the rows in them."""
        shard_C = np.searchsorted(self._end_S, row_C, side="right")
        parts = []
        for number in np.unique(shard_C).tolist():
            place_c = np.flatnonzero(shard_C == number)
            mapped = self._map(number)
            parts.append((place_c, mapped, mapped.place_N[row_C[place_c] - self._start(number)].astype(np.int64)))
        return parts

    def _start(self, number: int) -> int:
        return int(self._end_S[number]) - self.shards[number].rows

    def _layout(self, shard: CacheShard) -> Layout:
        return Layout(shard.rows, shard.tokens, len(self.fields), len(self.key_names), self._dtype)

    def _map(self, number: int) -> _Mapped:
        if number not in self._maps:
            shard = self.shards[number]
            whole = np.memmap(self.folder / f"{shard.name}.bin", mode="r")
            arrays = [
                np.ndarray(shape, dtype, buffer=whole, offset=start)  # views: the map lives as long as they do
                for start, dtype, shape in self._layout(shard).sections()
            ]
            self._maps[number] = _Mapped(*arrays)
            if len(self._maps) > OPEN_SHARDS:
                self._maps.popitem(last=False)
        self._maps.move_to_end(number)
        return self._maps[number]


class TokenStream:
    """One language's rows of a cache, in the order of a ``BlockOrder``. Axes: C chosen rows, K keys."""

    def __init__(self, cache: TokenCache, language: str, *, seed: Sequence[int], block: int, window: int) -> None:
        self.cache, self.language = cache, language
        starts, sizes, first = [], [], 0
        for shard in cache.shards:
            begin = first
            for name, rows in shard.languages.items():
                if name == language:
                    cuts = np.arange(0, rows, block)
                    starts.append(begin + cuts)
                    sizes.append(np.minimum(rows - cuts, block))
                begin += rows
            first += shard.rows
        self._start_K, size_K = np.concatenate(starts), np.concatenate(sizes)
        self._before_K = np.cumsum(size_K) - size_K
        self.order = BlockOrder(size_K, window=window, seed=seed)

    def keys(self, row_C: Ints) -> Hashes:
        """uint64_CK."""
        return self.cache.keys(self.locate(row_C))

    def locate(self, row_C: Ints) -> Ints:
        """The cache's row numbers of this stream's."""
        block_C = np.searchsorted(self._before_K, row_C, side="right") - 1
        return self._start_K[block_C] + row_C - self._before_K[block_C]


def manifest_of(settings: CacheSettings, shards: Sequence[CacheShard]) -> dict[str, Any]:
    """What ``manifest.json`` holds."""
    return {"version": VERSION, "made": settings.made, "texts": list(settings.texts), "keys": list(settings.keys),
            "dtype": settings.dtype.name, "shards": [asdict(shard) for shard in shards]}  # fmt: skip
