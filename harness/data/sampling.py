"""Which rows a step trains on: shares of languages with a temperature, the same for any number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def language_shares(counts: Mapping[str, int], temperature: float) -> dict[str, float]:
    """The share of language i, proportional to ``counts[i] ** temperature``: 1 as they are, 0 all alike."""
    powers = {language: float(count) ** temperature for language, count in counts.items() if count > 0}
    total = sum(powers.values())
    return {language: power / total for language, power in powers.items()}


class EpochSampler:
    """Rows of a step as a pure function of (seed, step, batch size): resuming needs no state.

    An epoch is as many rows as there are. It holds each language in its share (to the nearest row); a language shows
    each of its rows once before any of them again, in a new order each time. With temperature 1 an epoch holds every
    row once. No row stands twice in a batch that is no larger than the data: where a batch drew more of a small
    language than there is of it, other rows stand in.

    Args:
        languages: of each row.
    """

    def __init__(self, languages: Sequence[str], *, temperature: float, seed: int) -> None:
        assert len(languages), "nothing to sample from"
        self._seed = seed
        self._count = len(languages)
        names, language_N = np.unique(np.asarray(languages, dtype=object).astype(str), return_inverse=True)
        if temperature == 1.0 or len(names) == 1:  # every row once: one list, whatever the languages
            self._lists = [np.arange(self._count, dtype=np.int64)]
            self._quotas = np.array([self._count])
        else:
            self._lists = [np.flatnonzero(language_N == number) for number in range(len(names))]
            counts = {str(name): len(rows) for name, rows in zip(names, self._lists, strict=True)}
            shares = language_shares(counts, temperature)
            self._quotas = largest_remainder(np.array([shares[name] for name in counts]) * self._count)
        self._restart(0)

    def rows(self, step: int, batch_size: int) -> Ints:
        """int64_B: the rows of a step, counted from 0."""
        assert step >= 0 and batch_size >= 1
        if batch_size != self._window:
            self._restart(batch_size)
        parts, start, missing = [], step * batch_size, batch_size
        while missing:
            epoch, offset = divmod(start, self._count)
            part = self._plan(epoch)[offset : offset + missing]
            parts.append(part)
            start, missing = start + len(part), missing - len(part)
        return self._stand_in(np.concatenate(parts), step)

    def _stand_in(self, row_B: Ints, step: int) -> Ints:
        """Put rows that the batch doesn't hold in the place of those that it holds a second time."""
        first = np.unique(row_B, return_index=True)[1]
        if len(first) == len(row_B) or len(row_B) > self._count:
            return row_B
        again = np.setdiff1d(np.arange(len(row_B)), first)
        absent = np.ones(self._count, dtype=np.bool_)
        absent[row_B] = False
        random = np.random.default_rng([self._seed, 2, step])
        row_B[again] = random.choice(np.flatnonzero(absent), size=len(again), replace=False)
        return row_B

    # ------------------------------------------------------------------------------------------------ epochs

    def _restart(self, window: int) -> None:
        self._window = window
        self._plans = self._epochs(window)
        self._next = 0
        self._recent: dict[int, Ints] = {}

    def _plan(self, epoch: int) -> Ints:
        """The rows of an epoch in order; the two latest are kept, since a batch may cross from one into the next."""
        if epoch < self._next and epoch not in self._recent:
            self._restart(self._window)
        while self._next <= epoch:
            self._recent = {number: plan for number, plan in self._recent.items() if number == self._next - 1}
            self._recent[self._next] = next(self._plans)
            self._next += 1
        return self._recent[epoch]

    def _epochs(self, window: int) -> Iterator[Ints]:
        """Plan after plan: a shuffled sequence of languages, filled from each language's own endless list."""
        streams = [_Stream(rows, window, [self._seed, 0, number]) for number, rows in enumerate(self._lists)]
        epoch = 0
        while True:
            if len(streams) == 1:
                yield streams[0].take(self._count)
            else:
                label_N = np.repeat(np.arange(len(streams)), self._quotas)
                np.random.default_rng([self._seed, 1, epoch]).shuffle(label_N)
                plan_N = np.empty(self._count, dtype=np.int64)
                for number, stream in enumerate(streams):
                    plan_N[label_N == number] = stream.take(int(self._quotas[number]))
                yield plan_N
            epoch += 1


class _Stream:
    """Some rows over and over, newly ordered each pass; any ``window`` in succession differ (if there are as many)."""

    def __init__(self, rows: Ints, window: int, seed: list[int]) -> None:
        self._window = min(window, len(rows))
        self._seed = seed
        self._passes = 0
        self._order = self._random().permutation(rows)
        self._used = 0

    def _random(self) -> np.random.Generator:
        return np.random.default_rng([*self._seed, self._passes])

    def take(self, count: int) -> Ints:
        """The next rows."""
        parts: list[Ints] = []
        while count:
            if self._used == len(self._order):
                self._shuffle()
            part = self._order[self._used : self._used + count]
            parts.append(part)
            self._used += len(part)
            count -= len(part)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _shuffle(self) -> None:
        """The next pass: its head takes only rows last seen at least ``window`` places back, then the rest follows."""
        self._passes += 1
        self._used = 0
        random = self._random()
        free = len(self._order) - self._window + 1
        pool, late = self._order[:free].copy(), self._order[free:]
        head = np.empty(len(late), dtype=np.int64)
        for place, choice in enumerate(random.integers(0, free, size=len(late))):
            head[place] = pool[choice]
            pool[choice] = late[place]
        self._order = np.concatenate([head, random.permutation(pool)])


def largest_remainder(exact: NDArray[np.float64]) -> Ints:
    """Whole numbers with the same sum, each the floor or the ceiling of what is exact."""
    whole = np.floor(exact + 1e-9).astype(np.int64)
    missing = round(float(exact.sum())) - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:missing]] += 1
    return whole
