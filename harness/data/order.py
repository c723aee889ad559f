"""The order in which rows too many for memory are shown: a function of (seed, position), so a resume needs no state.

Axes: C consecutive positions, K blocks of rows that lie beside each other on disk.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harness.data.sampling import Ints, largest_remainder


class BlockOrder:
    """Rows shuffled by blocks and, within a window of blocks, by rows; pass after pass, each in a new order.

    A pass shows every row once. What position p shows is computed, not remembered: the blocks' order of its pass, the
    window that p falls into, the rows' order within the window. So the first row after a resume costs one window, and
    reading needs no more than one window (two, where a batch crosses from one into the next) at a time.

    Args:
        size_K: rows of each block, in the order in which the blocks are stored; none is 0.
        window: blocks that are mixed row by row.
    """

    def __init__(self, size_K: Sequence[int] | Ints, *, window: int, seed: Sequence[int]) -> None:
        self._size_K = np.asarray(size_K, dtype=np.int64)
        assert window >= 1 and len(self._size_K) and self._size_K.min() >= 1
        self._start_K = np.cumsum(self._size_K) - self._size_K
        self._seed, self._window = list(seed), window
        self.count = int(self._size_K.sum())
        self._pass: tuple[int, Ints, Ints] | None = None
        self._rows: dict[tuple[int, int], NDArray[np.int32] | Ints] = {}

    def rows(self, start: int, count: int) -> Ints:
        """int64_C: the rows (numbered as they are stored) shown at positions ``start``, ``start + 1``, ..."""
        parts: list[Ints] = []
        while count:
            number, window, offset = self._place(start)
            part = self._window_rows(number, window)[offset : offset + count]
            parts.append(part.astype(np.int64))
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def window(self, position: int) -> tuple[int, int]:
        """The first position of the window that a position falls into, and how many rows the window has."""
        number, window, offset = self._place(position)
        end_W = self._order(number)[1]
        first = int(end_W[window - 1]) if window else 0
        return position - offset, int(end_W[window]) - first

    def any_of_window(self, position: int, count: int, random: np.random.Generator) -> Ints:
        """int64_C: rows at random, with repetition, from the window that a position falls into."""
        number, window, _ = self._place(position)
        row_W = self._window_rows(number, window)
        return row_W[random.integers(len(row_W), size=count)].astype(np.int64)

    def blocks(self, position: int) -> Ints:
        """The blocks that are read for the window that a position falls into, as they are stored."""
        number, window, _ = self._place(position)
        order_K = self._order(number)[0]
        return np.sort(order_K[window * self._window : (window + 1) * self._window])

    def _place(self, position: int) -> tuple[int, int, int]:
        """Pass, window of the pass, and offset in the window."""
        number, within = divmod(position, self.count)
        end_W = self._order(number)[1]
        window = int(np.searchsorted(end_W, within, side="right"))
        return number, window, within - (int(end_W[window - 1]) if window else 0)

    def _order(self, number: int) -> tuple[Ints, Ints]:
        """The order of the blocks in a pass, and where each of its windows ends."""
        if self._pass is None or self._pass[0] != number:
            order_K = np.random.default_rng([*self._seed, 0, number]).permutation(len(self._size_K))
            last_W = np.minimum(np.arange(self._window, len(order_K) + self._window, self._window), len(order_K)) - 1
            self._pass = number, order_K, np.cumsum(self._size_K[order_K])[last_W]
        return self._pass[1], self._pass[2]

    def _window_rows(self, number: int, window: int) -> NDArray[np.int32] | Ints:
        """The rows of a window in the order in which they are shown; the two latest windows are kept."""
        if (number, window) not in self._rows:
            block_K = self._order(number)[0][window * self._window : (window + 1) * self._window]
            size_K = self._size_K[block_K]
            row_W = np.repeat(self._start_K[block_K] - (np.cumsum(size_K) - size_K), size_K) + np.arange(size_K.sum())
            row_W = np.random.default_rng([*self._seed, 1, number, window]).permutation(row_W)
            small = self.count < 2**31  # half the memory, where there are many orders side by side
            self._rows = dict(list(self._rows.items())[-1:])
            self._rows[number, window] = row_W.astype(np.int32) if small else row_W
        return self._rows[number, window]


class Turns:
    """Whose turn it is at each position, each of several sequences having its share: a function of (seed, position).

    In every ``period`` of positions each has its share to the nearest whole number, and one at least; within it the
    order is shuffled. How often each had its turn before a position is computed: that is its own position.

    Args:
        shares: of each, above 0, with the sum 1.
    """

    def __init__(self, shares: Sequence[float], *, seed: Sequence[int], period: int = 2**16) -> None:
        share_S = np.asarray(shares, dtype=np.float64)
        assert len(share_S) and share_S.min() > 0 and abs(share_S.sum() - 1) < 1e-6
        period = max(period, 16 * len(share_S))
        extra_S = np.maximum(share_S * period, 1.0) if len(share_S) > 1 else share_S * period
        self._quota_S = largest_remainder(extra_S * (period / extra_S.sum()))
        self._quota_S = np.maximum(self._quota_S, 1)
        self._period, self._seed = int(self._quota_S.sum()), list(seed)
        self._label: dict[int, NDArray[np.int32]] = {}

    def at(self, start: int, count: int) -> tuple[Ints, Ints]:
        """int64_C, int64_C: whose turn it is at positions ``start``, ...; and how many turns it had before."""
        labels, places = [], []
        while count:
            number, offset = divmod(start, self._period)
            label_P = self._labels(number)
            label_C = label_P[offset : offset + count].astype(np.int64)
            before_S = number * self._quota_S + np.bincount(label_P[:offset], minlength=len(self._quota_S))
            labels.append(label_C)
            places.append(before_S[label_C] + _earlier_equals(label_C))
            start, count = start + len(label_C), count - len(label_C)
        return np.concatenate(labels), np.concatenate(places)

    def _labels(self, number: int) -> NDArray[np.int32]:
        if number not in self._label:
            label_P = np.repeat(np.arange(len(self._quota_S), dtype=np.int32), self._quota_S)
            np.random.default_rng([*self._seed, number]).shuffle(label_P)
            self._label = dict(list(self._label.items())[-1:])
            self._label[number] = label_P
        return self._label[number]


def _earlier_equals(label_C: Ints) -> Ints:
    """For each label, how many equal ones stand before it: [b, a, b, b] -> [0, 0, 1, 2]."""
    order_C = np.argsort(label_C, kind="stable")
    sorted_C = label_C[order_C]
    first_C = np.searchsorted(sorted_C, sorted_C, side="left")
    result_C = np.empty_like(label_C)
    result_C[order_C] = np.arange(len(label_C)) - first_C
    return result_C
