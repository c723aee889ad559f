"""Orders that need no state: every row once a pass, shares kept, any position at once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.order import BlockOrder, Turns

_sizes = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(sizes=_sizes, window=st.integers(1, 5), seed=st.integers(0, 5), cut=st.integers(1, 7))
def test_every_pass_shows_every_row_once_however_it_is_asked_for(
    sizes: list[int], window: int, seed: int, cut: int
) -> None:
    order, count = BlockOrder(sizes, window=window, seed=[seed]), sum(sizes)
    shown = order.rows(0, 3 * count)
    for number in range(3):
        assert sorted(shown[number * count : (number + 1) * count]) == list(range(count))
    other = BlockOrder(sizes, window=window, seed=[seed])
    pieces = [other.rows(start, min(cut, 3 * count - start)) for start in reversed(range(0, 3 * count, cut))]
    assert np.array_equal(np.concatenate(pieces[::-1]), shown)


@settings(max_examples=60, deadline=None)
@given(sizes=_sizes, window=st.integers(1, 5), position=st.integers(0, 200))
def test_a_position_needs_only_the_blocks_of_its_window(sizes: list[int], window: int, position: int) -> None:
    order = BlockOrder(sizes, window=window, seed=[1])
    first, size = order.window(position)
    blocks = order.blocks(position)
    assert len(blocks) <= window and first <= position < first + size
    ends = np.cumsum(sizes)
    of_blocks = {row for block in blocks for row in range(ends[block] - sizes[block], ends[block])}
    assert set(order.rows(first, size).tolist()) == of_blocks


def test_blocks_and_rows_are_shuffled_anew_each_pass_and_by_seed() -> None:
    sizes = [10] * 50
    first = BlockOrder(sizes, window=5, seed=[1])
    one, two = first.rows(0, 500), first.rows(500, 500)
    other = BlockOrder(sizes, window=5, seed=[2]).rows(0, 500)
    assert (one == two).mean() < 0.05 and (one == other).mean() < 0.05
    assert set((one[:50] // 10).tolist()) != set((two[:50] // 10).tolist())  # other blocks side by side
    assert len(set((one[:50] // 10).tolist())) == 5  # a window mixes five blocks ...
    assert (np.diff(one[:50]) == 1).mean() < 0.2  # ... row by row


@settings(max_examples=40, deadline=None)
@given(raw=st.lists(st.floats(0.001, 1), min_size=1, max_size=6), start=st.integers(0, 900), count=st.integers(1, 600))
def test_turns_count_their_own_places(raw: list[float], start: int, count: int) -> None:
    shares = [value / sum(raw) for value in raw]
    label, place = Turns(shares, seed=[4], period=256).at(0, start + count)
    seen: Counter[int] = Counter()
    for one, at in zip(label.tolist(), place.tolist(), strict=True):
        assert at == seen[one]
        seen[one] += 1
    again = Turns(shares, seed=[4], period=256).at(start, count)
    assert np.array_equal(again[0], label[start:]) and np.array_equal(again[1], place[start:])


def test_turns_keep_shares_and_forget_nobody() -> None:
    label, _ = Turns([0.7, 0.2999, 0.0001], seed=[0], period=1000).at(0, 10_000)
    assert np.bincount(label, minlength=3) / 10_000 == pytest.approx([0.7, 0.3, 0.0], abs=0.002)
    assert (label == 2).sum() >= 10
