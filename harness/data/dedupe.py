"""Equal texts among more rows than fit into memory: 64-bit hashes, sorted file by file, compared part by part.

Two different texts share a hash with probability 2 ** -64: among 10 ** 9 texts a pair is expected once in 40 logs.
Axes: N rows of a file, U its distinct hashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from harness.data.records import normal_text

Hashes = NDArray[np.uint64]
NOTHING = 0  # the hash of no text, equal to nothing


def text_hash(text: str) -> int:
    """64 bits of a text in its normal form (case folded, whitespace joined); never ``NOTHING``."""
    digest = hashlib.blake2b(normal_text(text).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def text_hashes(texts: Iterable[str | None]) -> Hashes:
    """uint64_N: of each text; ``NOTHING`` for none."""
    return np.fromiter((text_hash(text) if text else NOTHING for text in texts), dtype=np.uint64)


def joined_hashes(columns: Sequence[Hashes]) -> Hashes:
    """uint64_N: one hash for several columns, mixed so that their order counts; never ``NOTHING``."""
    result_N = columns[0].copy()
    for column_N in columns[1:]:
        result_N = result_N * np.uint64(0x9E3779B97F4A7C15) + column_N  # overflow is meant: arithmetic modulo 2 ** 64
        result_N ^= result_N >> np.uint64(29)
    result_N[result_N == NOTHING] = 1
    return result_N


def sorted_first(hash_N: Hashes, usable_N: NDArray[np.bool_]) -> tuple[Hashes, NDArray[np.uint32]]:
    """uint64_U rising, uint32_U: the distinct hashes of the usable rows, and the first row that has each."""
    row_N = np.flatnonzero(usable_N).astype(np.uint32)
    hash_U, first_U = np.unique(hash_N[row_N], return_index=True)
    return hash_U, row_N[first_U]


def part_bounds(parts: int) -> Iterator[tuple[np.uint64, np.uint64]]:
    """The lowest and the highest hash of each of ``parts`` equal parts."""
    edges = [(2**64 * number) // parts for number in range(parts + 1)]
    for low, high in zip(edges, edges[1:], strict=False):
        yield np.uint64(low), np.uint64(high - 1)


def part_of(hash_U: Hashes, low: np.uint64, high: np.uint64) -> slice:
    """Where the hashes between ``low`` and ``high`` (both included) lie in a rising array."""
    return slice(int(np.searchsorted(hash_U, low, side="left")), int(np.searchsorted(hash_U, high, side="right")))


def later_equals(parts: Sequence[Hashes]) -> list[NDArray[np.int64]]:
    """For each file's distinct hashes of one part: the places of those that an earlier file has, too."""
    joined = np.concatenate(parts)
    again = np.ones(len(joined), dtype=np.bool_)
    again[np.unique(joined, return_index=True)[1]] = False  # the first place of each hash: the earliest file's
    ends = np.cumsum([len(part) for part in parts])[:-1]
    return [np.flatnonzero(part) for part in np.split(again, ends)]
