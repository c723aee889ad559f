"""Several logs as one stream of batches: weights, a language temperature across them, no relevant texts in one batch.

Axes: B rows of a global batch, S strata (a language of a source), K keys of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from harness.data.dedupe import NOTHING, Hashes
from harness.data.order import BlockOrder, Turns
from harness.data.sampling import Ints
from harness.runtime.errors import InputError, Problem, RunError

ROUNDS = 100  # of drawing again, until no two texts of a batch are relevant to each other


class Stream(Protocol):
    """Rows in shuffled order, and what they are relevant to; a column of keys means the same in all streams mixed."""

    @property
    def order(self) -> BlockOrder:
        """Which row is shown at which position."""
        ...

    def keys(self, row_C: Ints) -> Hashes:
        """uint64_CK: rows that share a key in a column are relevant to each other; 0 is shared with nobody."""
        ...


@dataclass(frozen=True)
class MixtureSource:
    """A log: its languages' streams.

    Args:
        weight: its share of rows, relative to the other sources'; ``None``: as many as it has.
    """

    name: str
    streams: Mapping[str, Stream]
    weight: float | None = None

    @property
    def rows(self) -> int:
        """Of all languages together."""
        return sum(stream.order.count for stream in self.streams.values())


@dataclass(frozen=True)
class Stratum:
    """A language of a source, and its share of all rows drawn."""

    source: str
    language: str
    stream: Stream
    share: float


@dataclass(frozen=True)
class Draw:
    """A global batch: for each row its stratum and its number in the stratum's stream, int64_B each."""

    stratum_B: Ints
    row_B: Ints

    def share(self, number: int, processes: int) -> Draw:
        """The equal part of one of several processes."""
        size, rest = divmod(len(self.row_B), processes)
        assert rest == 0, "a batch is shared out equally"
        part = slice(number * size, (number + 1) * size)
        return Draw(self.stratum_B[part], self.row_B[part])


def strata_of(sources: Sequence[MixtureSource], temperature: float) -> list[Stratum]:
    """Every language of every source with its share.

    A language's share over all sources is its weighted share to the power of ``temperature``, scaled to the sum 1;
    within a language, sources keep the proportions that their weights and rows give them.
    """
    weights = {source.name: float(source.rows if source.weight is None else source.weight) for source in sources}
    raw = {
        (source.name, language): weights[source.name] * stream.order.count / source.rows
        for source in sources for language, stream in source.streams.items()
    }  # fmt: skip
    totals: dict[str, float] = {}
    for (_, language), value in raw.items():
        totals[language] = totals.get(language, 0.0) + value
    scale = sum(totals.values())
    if temperature == 1.0:
        of_language = {language: value / scale for language, value in totals.items()}
    else:
        powers = {language: (value / scale) ** temperature for language, value in totals.items()}
        of_language = {language: power / sum(powers.values()) for language, power in powers.items()}
    return [
        Stratum(source.name, language, stream, of_language[language] * raw[source.name, language] / totals[language])
        for source in sources for language, stream in source.streams.items()
    ]  # fmt: skip


class Mixture:
    """The rows of each step as a pure function of (seed, step): any step at once, on any number of processes.

    Each stratum shows all its rows before any of them again, except for those that stood out of a batch because of a
    relevant text in it: another row of the same window, drawn at random, stands in.

    Args:
        temperature: 1 leaves languages as they are, 0 makes their shares equal.
        one_source_per_batch: a batch is drawn from one source; sources take turns by their shares.
        disjoint: no two rows of a batch share a key.

    Raises:
        InputError: no rows; source names that are not distinct; weights that are not above 0.
    """

    def __init__(
        self,
        sources: Sequence[MixtureSource],
        *,
        batch_size: int,
        seed: int,
        temperature: float = 1.0,
        one_source_per_batch: bool = False,
        disjoint: bool = True,
    ) -> None:
        assert batch_size >= 1
        _check(sources)
        self.strata = strata_of(sources, temperature)
        self.batch_size = batch_size
        self._seed, self._disjoint = seed, disjoint
        names = [source.name for source in sources] if one_source_per_batch else [""]
        self._members = [
            np.array([at for at, stratum in enumerate(self.strata) if name in ("", stratum.source)], dtype=np.int64)
            for name in names
        ]
        source_share = [sum(self.strata[at].share for at in members) for members in self._members]
        self._sources = Turns(source_share, seed=[seed, 0])
        self._languages = [
            Turns([self.strata[at].share / share for at in members], seed=[seed, 1, number])
            for number, (members, share) in enumerate(zip(self._members, source_share, strict=True))
        ]

    def draw(self, step: int) -> Draw:
        """The global batch of a step, counted from 0.

        Raises:
            RunError: too few rows without a common key to fill a batch.
        """
        source, turn = (int(value[0]) for value in self._sources.at(step, 1))
        label_B, place_B = self._languages[source].at(turn * self.batch_size, self.batch_size)
        stratum_B = self._members[source][label_B]
        row_B = np.empty(self.batch_size, dtype=np.int64)
        for number in np.unique(stratum_B).tolist():
            own = np.flatnonzero(stratum_B == number)  # their places follow each other
            row_B[own] = self.strata[number].stream.order.rows(int(place_B[own[0]]), len(own))
        if self._disjoint:
            self._stand_in(step, stratum_B, place_B, row_B)
        return Draw(stratum_B, row_B)

    def _stand_in(self, step: int, stratum_B: Ints, place_B: Ints, row_B: Ints) -> None:
        """Replace, in place, rows that share a key with an earlier one of the batch."""
        key_BK = self._keys(stratum_B, row_B)
        random = np.random.default_rng([self._seed, 2, step])
        again = np.flatnonzero(_shares_earlier(key_BK))
        for _ in range(ROUNDS):
            if not len(again):
                return
            for number in np.unique(stratum_B[again]).tolist():
                own = again[stratum_B[again] == number]
                order = self.strata[number].stream.order
                row_B[own] = order.any_of_window(int(place_B[own[0]]), len(own), random)
            key_BK[again] = self._keys(stratum_B[again], row_B[again])
            settled = np.setdiff1d(np.arange(len(row_B)), again)  # they stay: a stand-in makes room, not they
            order_B = np.concatenate([settled, again])
            again = order_B[_shares_earlier(key_BK[order_B])]
        stratum = self.strata[stratum_B[again[0]]]
        raise RunError(
            f"step {step}: no batch of {self.batch_size} rows without relevant pairs was found in {ROUNDS} rounds\n"
            f"    got: {len(again)} rows too many, such as some of {stratum.source} in {stratum.language}\n"
            "    next: make the batch smaller, or the window larger, or look whether a key has few values"
        )

    def _keys(self, stratum_B: Ints, row_B: Ints) -> Hashes:
        parts = {
            number: self.strata[number].stream.keys(row_B[stratum_B == number])
            for number in np.unique(stratum_B).tolist()
        }
        key_BK = np.zeros((len(row_B), max(part.shape[1] for part in parts.values())), dtype=np.uint64)
        for number, part in parts.items():
            key_BK[stratum_B == number, : part.shape[1]] = part
        return key_BK


def _shares_earlier(key_BK: Hashes) -> NDArray[np.bool_]:
    """bool_B: whether an earlier row has the same key in some column."""
    shared_B = np.zeros(len(key_BK), dtype=np.bool_)
    for key_B in key_BK.T:
        first = np.zeros(len(key_B), dtype=np.bool_)
        first[np.unique(key_B, return_index=True)[1]] = True
        shared_B |= ~first & (key_B != NOTHING)
    return shared_B


def _check(sources: Sequence[MixtureSource]) -> None:
    problems = []
    if not sources:
        problems.append(Problem("a mixture needs a source"))
    names = [source.name for source in sources]
    problems += [Problem("two sources have one name", got=name) for name in sorted(set(names)) if names.count(name) > 1]
    for source in sources:
        if not source.streams or not source.rows:
            problems.append(Problem("a source without rows", where=source.name, next="leave it out"))
        if source.weight is not None and not 0 < source.weight < float("inf"):
            problems.append(Problem("the weight of a source is no positive number", where=source.name,
                                    got=str(source.weight), next="leave the source out, or give one"))  # fmt: skip
    if problems:
        raise InputError(problems)
