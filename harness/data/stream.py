"""Batches from logs too large for memory: rows read from Parquet or JSONL as they are needed, or tokens from a cache.

Axes: C chosen rows, B rows of this process's part of a batch, K keys.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.data.collator import Collator, TokenBatch
from harness.data.dedupe import Hashes, text_hashes
from harness.data.mixture import Draw, Mixture
from harness.data.order import BlockOrder
from harness.data.sampling import Ints
from harness.data.shards import Block, Shard
from harness.data.token_cache import TokenStream
from harness.runtime.errors import InputError, Problem


class TextStream:
    """The rows of Parquet and JSONL files, shuffled by blocks (row groups) and within a window of them.

    Whatever the position, only the blocks of its window are read; two windows' blocks are kept.

    Args:
        columns: read of each row; a column that a file lacks is ``None``.
        keys: of ``columns``, those in which rows of equal value (case and whitespace aside) are relevant to each other.
        window: blocks mixed row by row; what is kept in memory.
    """

    def __init__(
        self, shards: Sequence[Shard], columns: Sequence[str], *, keys: Sequence[str] = (), window: int = 8,
        seed: Sequence[int],
    ) -> None:  # fmt: skip
        assert set(keys) <= set(columns)
        self.columns, self.key_names, self._shards = tuple(columns), tuple(keys), list(shards)
        blocks = [(at, number) for at, shard in enumerate(shards) for number, size in enumerate(shard.sizes) if size]
        if not blocks:
            raise InputError(Problem("the files hold no rows", where=", ".join(str(s.path) for s in shards[:3])))
        self._blocks = blocks
        size_K = np.array([shards[at].sizes[number] for at, number in blocks], dtype=np.int64)
        self._before_K = np.cumsum(size_K) - size_K
        self._keep = 2 * window
        self._read: OrderedDict[int, Block] = OrderedDict()
        self.order = BlockOrder(size_K, window=window, seed=seed)

    def rows(self, row_C: Ints) -> list[dict[str, Any]]:
        """The chosen rows.

        Raises:
            InputError: a file can't be read or has changed; a chosen row is no JSON object.
        """
        found: list[dict[str, Any]] = []
        block_C = np.searchsorted(self._before_K, row_C, side="right") - 1
        within_C = row_C - self._before_K[block_C]
        for number, row in zip(block_C.tolist(), within_C.tolist(), strict=True):
            block = self._block(number)
            if (bad := block.bad.get(row)) is not None:
                at, part = self._blocks[number]
                raise InputError(Problem(bad.kind, where=f"{self._shards[at].path}, block {part}, row {row + 1}",
                                         got=bad.got, next="correct the file"))  # fmt: skip
            found.append({name: values[row] for name, values in block.columns.items()})
        return found

    def keys(self, row_C: Ints) -> Hashes:
        """uint64_CK."""
        rows = self.rows(row_C)
        key_CK = np.zeros((len(rows), len(self.key_names)), dtype=np.uint64)
        for number, name in enumerate(self.key_names):
            values = (row.get(name) for row in rows)
            key_CK[:, number] = text_hashes(None if value is None else str(value) for value in values)
        return key_CK

    def _block(self, number: int) -> Block:
        if number not in self._read:
            at, part = self._blocks[number]
            self._read[number] = self._shards[at].read(part, self.columns)
            if len(self._read) > self._keep:
                self._read.popitem(last=False)
        self._read.move_to_end(number)
        return self._read[number]


@dataclass(frozen=True)
class TokenRows:
    """What a process holds of a batch of cached tokens.

    Args:
        tokens: of each text field.
        sources: for each row, (source, number of its file, row in that file): where its vector is to be looked up.
    """

    tokens: Mapping[str, TokenBatch]
    languages: list[str]
    sources: list[tuple[str, int, int]]


class TokenBatches:
    """Padded tokens of each step from token caches: a pure function of (seed, step) and this process's part of it.

    Args:
        mixture: of the caches' streams.
        collators: text field -> what pads its tokens.
        process, processes: this one's number, and how many share the batch.
    """

    def __init__(
        self, mixture: Mixture, collators: Mapping[str, Collator], *, process: int = 0, processes: int = 1
    ) -> None:
        if mixture.batch_size % processes:
            raise InputError(Problem("the batch can't be shared out equally", where="batch_size",
                                     got=f"{mixture.batch_size} for {processes} processes",
                                     allowed=f"a multiple of {processes}"))  # fmt: skip
        self._mixture, self._collators = mixture, dict(collators)
        self._process, self._processes = process, processes

    def __call__(self, step: int) -> TokenRows:
        draw = self._mixture.draw(step).share(self._process, self._processes)
        size = len(draw.row_B)
        lists: dict[str, list[list[int]]] = {name: [[]] * size for name in self._collators}
        languages, sources = [""] * size, [("", 0, 0)] * size
        for number, own in _by_stratum(draw):
            stratum = self._mixture.strata[number]
            stream = stratum.stream
            assert isinstance(stream, TokenStream), "a mixture of token caches"
            row_c = stream.locate(draw.row_B[own])
            origin = stream.cache.sources(row_c)
            for name, found in lists.items():
                for place, tokens in zip(own.tolist(), stream.cache.tokens(row_c, name), strict=True):
                    found[place] = tokens
            for place, (file, row) in zip(own.tolist(), origin, strict=True):
                languages[place], sources[place] = stratum.language, (stratum.source, file, row)
        padded = {name: collator.pad(lists[name]) for name, collator in self._collators.items()}
        return TokenRows(padded, languages, sources)


def _by_stratum(draw: Draw) -> list[tuple[int, Ints]]:
    """Each stratum of a batch, and the places of its rows."""
    return [(number, np.flatnonzero(draw.stratum_B == number)) for number in np.unique(draw.stratum_B).tolist()]
