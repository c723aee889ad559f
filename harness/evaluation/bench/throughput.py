"""Many queries: how many a second at each batch size until larger ones bring no more, memory, and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from harness.engines.protocol import Engine
from harness.evaluation.bench.latency import turns
from harness.evaluation.bench.machine import Machine, quiet

GIVEN = "the sizes of the recipe were timed"
_SIZES = 8  # that a ramp's time is meant to last for: 1 to 128
_CONFIRM = 0.25  # of that time, for each second look at the best sizes
_SEED = 1  # of the order of texts within a pass
_LEAST = 16  # the size up to which no lack of gain ends a ramp: so small batches are noisy
_TURNS = 4  # of a system in a pass, where it has as many batches
_WAKE = 8  # texts of the call before a turn
Batches = list[list[str]]


@dataclass(frozen=True)
class Ramp:
    """How sizes rise where none are given: 1, 2, 4 ... until one of these ends it.

    Attributes:
        max_batch: the largest size.
        seconds: for each system, all sizes together; about.
        gain: two doublings in a row that each bring less than this share end it, after batches of 16.
    """

    max_batch: int = 1024
    seconds: float = 6.0
    gain: float = 0.05


@dataclass
class _Told:
    """What is known of one system so far; by batch size, smallest first."""

    rates: dict[int, float] = field(default_factory=dict)  # queries a second, as last timed
    first: dict[int, float] = field(default_factory=dict)  # the rate that a second timing replaced
    peaks: dict[int, float | None] = field(default_factory=dict)  # MB
    query_seconds: float = 0.0  # of one query, as far as is known
    kept: float = 0.0  # MB that earlier calls have not given back
    spent: float = 0.0  # seconds
    stopped: str = GIVEN

    @property
    def best(self) -> int:
        return max(self.rates, key=lambda size: self.rates[size])


class Meter:
    """Times batches of several systems, which take turns.

    Args:
        engines, texts: what is timed on what; batches are full, and begin again with the first text.
        repeats: passes that count, over the same batches.
        advance: told of passes that are done.
    """

    def __init__(
        self, engines: Mapping[str, Engine], texts: Sequence[str], *, repeats: int, machine: Machine,
        advance: Callable[[int], Any],
    ) -> None:  # fmt: skip
        self._engines, self._texts, self._repeats = engines, texts, repeats
        self._machine, self._advance = machine, advance
        self._told = {system: _Told() for system in engines}
        self._spread = representative(texts)

    # ------------------------------------------------------------------------------------------------ what is timed

    def warm(self, calls: int) -> None:
        """The first calls of all, a query each; what the first one keeps of memory is the system's own."""
        for system, told in self._told.items():
            found = self._machine.peak(self._engines[system], self._texts[:1])
            told.kept += found[1] if found else 0.0
        for call in range(1, calls):
            for engine in self._engines.values():
                engine.encode([self._texts[call % len(self._texts)]])

    def given(self, sizes: Sequence[int], warmup: int) -> None:
        """All texts at each of these sizes, after ``warmup`` calls."""
        for size in sorted(set(sizes)):
            several = _full(self._texts, size, len(self._texts))
            for system in self._engines:
                self._measure(system, several[0])
            for call in range(1, warmup):
                for engine in self._engines.values():
                    engine.encode(several[call % len(several)])
            self._time(size, dict.fromkeys(self._engines, several))
        if len(set(sizes)) > 1:
            self._confirm(len(self._texts))

    def rising(self, ramp: Ramp, query_seconds: Mapping[str, float]) -> None:
        """Double the size until that brings nothing, memory or time are short, or ``max_batch`` is reached.

        Args:
            query_seconds: system -> what one query takes, alone.
        """
        for system, told in self._told.items():
            told.query_seconds, told.stopped = query_seconds[system], ""
        active, size = list(self._engines), 1
        while active := [system for system in active if self._goes_on(system, size, ramp)]:
            several = self._sample(size, self._affordable(active, ramp.seconds / _SIZES))
            active = [system for system in active if self._fits(system, several[0])]
            batches = dict.fromkeys(active, several)
            self._warm_pass(batches)
            self._time(size, batches)
            size *= 2
        self._confirm(self._affordable(list(self._engines), _CONFIRM * ramp.seconds))

    def results(self) -> dict[str, dict[str, Any]]:
        """system -> its row of "throughput": see ``harness.evaluation.bench``."""
        return {
            system: {
                "batch": told.best,
                "queries_per_second": told.rates[told.best],
                "by_batch": {str(size): rate for size, rate in told.rates.items()},
                "stopped": told.stopped,
                "peak_memory_mb": told.peaks[told.best],
                "peak_memory_mb_by_batch": {str(size): peak for size, peak in told.peaks.items()},
            }
            for system, told in self._told.items()
        }

    def again(self) -> float | None:
        """By how many % a rate changed at most when it was timed again; None where none was."""
        pairs = [(told.rates[size], first) for told in self._told.values() for size, first in told.first.items()]
        return max((100 * abs(second / first - 1) for second, first in pairs), default=None)

    # --------------------------------------------------------------------------------------------------- the passes

    def _sample(self, size: int, count: int) -> Batches:
        """At least ``count`` texts, short and long as all are, in shuffled order."""
        chosen = self._spread[:count] if count >= size else self._spread[:size]
        order = np.random.default_rng(_SEED).permutation(len(chosen))
        return _full([chosen[i] for i in order], size, count)

    def _encode(self, system: str, batch: Sequence[str]) -> float:
        """Seconds that a batch took."""
        started = self._machine.now()
        self._engines[system].encode(batch)
        seconds = (self._machine.now() - started) / 1e9
        self._told[system].spent += seconds
        return seconds

    def _warm_pass(self, batches: Mapping[str, Batches]) -> None:
        """Every shape once: libraries prepare what they need for it."""
        for system, several in batches.items():
            for batch in several:
                self._encode(system, batch)

    def _pass(self, batches: Mapping[str, Batches], number: int) -> dict[str, float]:
        """Seconds of each system for its batches, in a few turns; before each turn a short call that does not count.

        Not batch by batch: threads of the library that had its turn before spin on, and slow the next one's first call.
        """
        taken = dict.fromkeys(batches, 0.0)
        count = max(1, min(_TURNS, *map(len, batches.values())))
        for turn in range(count):
            for system in turns(list(batches), number * count + turn):
                several = batches[system]
                part = several[len(several) * turn // count : len(several) * (turn + 1) // count]
                self._encode(system, part[0][:_WAKE])
                taken[system] += sum(self._encode(system, batch) for batch in part)
        return taken

    def _rates(self, batches: Mapping[str, Batches]) -> dict[str, float]:
        """Queries a second: the median over the repeats."""
        with quiet():
            passes = [self._pass(batches, repeat) for repeat in range(self._repeats)]
        self._advance(self._repeats)
        return {system: float(sum(map(len, several)) / np.median([taken[system] for taken in passes]))
                for system, several in batches.items()}  # fmt: skip

    def _time(self, size: int, batches: Mapping[str, Batches]) -> None:
        for system, rate in self._rates(batches).items():
            told = self._told[system]
            told.rates[size], told.query_seconds = rate, 1 / rate

    def _measure(self, system: str, batch: Sequence[str]) -> None:
        """The first call at a size: what it needs of memory, beside what earlier ones have kept for themselves."""
        told = self._told[system]
        found = self._machine.peak(self._engines[system], batch)
        told.peaks[len(batch)] = None if found is None else told.kept + found[0]
        told.kept += found[1] if found else 0.0

    def _confirm(self, count: int) -> None:
        """Time the best sizes again, side by side, until each system's best is one that was timed again."""
        while again := {system: told.best for system, told in self._told.items() if told.best not in told.first}:
            batches = {system: self._sample(size, count) for system, size in again.items()}
            self._warm_pass(batches)
            for system, rate in self._rates(batches).items():
                told, size = self._told[system], again[system]
                told.first[size], told.rates[size] = told.rates[size], rate

    # -------------------------------------------------------------------------------------------- until it is enough

    def _affordable(self, systems: Sequence[str], seconds: float) -> int:
        """How many texts the slowest of these systems encodes in so many seconds, all passes together."""
        slowest = max(self._told[system].query_seconds for system in systems)
        return max(1, int(seconds / slowest / (self._repeats + 1)))

    def _goes_on(self, system: str, size: int, ramp: Ramp) -> bool:
        told = self._told[system]
        told.stopped = (self._reason(system, size, ramp) or "") if size > 1 else ""
        return not told.stopped

    def _reason(self, system: str, size: int, ramp: Ramp) -> str | None:
        """Why a system is not timed at this size; None: it is."""
        told = self._told[system]
        last = list(told.rates.values())[-3:]
        if size > _LEAST and all(after < (1 + ramp.gain) * before for before, after in pairwise(last)):
            return f"two doublings in a row brought less than {ramp.gain:.0%} each"
        if size > ramp.max_batch:
            return f"{ramp.max_batch} is the largest batch of the recipe"
        peak, free = told.peaks[size // 2], self._machine.free(self._engines[system])
        if peak is not None and free is not None and 2 * peak > free:
            return f"memory: {size} queries would need about {2 * peak:,.0f} MB, and {free:,.0f} MB are free"
        if told.spent + (self._repeats + 1) * size * told.query_seconds > ramp.seconds:
            return f"the {ramp.seconds:g} seconds of each system were up: larger batches may bring more"
        return None

    def _fits(self, system: str, batch: Sequence[str]) -> bool:
        """Measure the memory of a batch; False where there is too little of it."""
        try:
            self._measure(system, batch)
        except Exception as error:  # torch's own kind is named without importing torch
            if type(error).__name__ not in ("OutOfMemoryError", "MemoryError") or len(batch) == 1:
                raise
            self._told[system].stopped = f"memory: {len(batch)} queries were too many"
            return False
        return True


def representative(texts: Sequence[str]) -> list[str]:
    """The texts in an order whose every beginning holds short and long ones in the proportion of all.

    A few texts then stand for all, and more of them are not suddenly longer ones.
    """
    ranked = sorted(texts, key=len)
    bits = max(1, (len(ranked) - 1).bit_length())
    reversed_bits = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(2**bits))
    return [ranked[rank] for rank in reversed_bits if rank < len(ranked)]


def _full(texts: Sequence[str], size: int, count: int) -> Batches:
    """At least ``count`` texts in full batches: they begin again where they don't fill the last one."""
    several = [texts[i % len(texts)] for i in range(-(-count // size) * size)]
    return [several[start : start + size] for start in range(0, len(several), size)]


def priced(row: Mapping[str, Any], price_per_hour: float, currency: str | None) -> dict[str, Any]:
    """A row of "throughput" with what a million queries cost on a machine at this price that is never idle.

    ``cost_per_million`` is at the best batch size; ``cost_per_million_batch_1`` where queries come one by one.
    """
    found = {**row, "price_per_hour": price_per_hour, "currency": currency}
    rates = {"": row.get("queries_per_second"), "_batch_1": row.get("batch_1_queries_per_second")}
    for suffix, rate in rates.items():
        found[f"cost_per_million{suffix}"] = price_per_hour / 3600 / rate * 1e6 if rate else None
    return found
