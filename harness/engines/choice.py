"""Which engine, with how many threads: a short race of what a folder and a machine allow, and the memory of it.

What runs beside it can make an engine look slow and never fast, so an engine is as fast as its best block of calls;
blocks are short and take turns, and whoever is clearly slower is asked no more.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from harness.engines.machine import available_cores
from harness.engines.protocol import Engine
from harness.runtime.errors import InputError
from harness.runtime.process import logger, read_json, write_json

SCHEMA = 2
ROUNDS, CALLS, WARM_UP = 4, 8, 2  # calls of a block, after so many that are not timed
_GLANCE = 3  # calls of each before all
_BLOCK = 0.1  # seconds of a block at most: fewer calls where one takes long
_BUDGET = 2.0  # seconds of one race; every engine is asked once, whatever that takes
_HOPELESS, _SLOWER = 3.0, 1.25  # times the fastest: dropped after a first glance, after three blocks
_ALIKE = 1.05  # times the fastest: then the order decides, in which the more exact and the fewer threads come first
FIRST_THREADS = 4  # what engines are compared at; the winner alone is then tried with others


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine, its threads, and how it was found.

    Attributes:
        milliseconds: "ENGINE THREADS" -> one query in the best block (median of its calls); empty: nothing was timed.
        measured: ``when``, ``seconds`` that it took, ``calls`` timed, ``load`` of the machine before, ``unsteady``
            (the winner's slowest block as a multiple of its best), ``left_out`` (engine -> why).
    """

    engine: str
    threads: int
    milliseconds: Mapping[str, float]
    measured: Mapping[str, Any] = field(default_factory=dict)

    @property
    def why(self) -> str:
        """In a sentence, for people."""
        own = f"{self.engine} with {self.threads} threads"
        if not self.milliseconds:
            return f"{own}, as asked for"
        best = self.milliseconds[f"{self.engine} {self.threads}"]
        others = {name: taken for name, taken in self.milliseconds.items() if name != f"{self.engine} {self.threads}"}
        told = "; ".join(f"{name} {taken:.2f}" for name, taken in sorted(others.items(), key=lambda pair: pair[1]))
        left = "; ".join(f"{name}: {why}" for name, why in self.measured.get("left_out", {}).items())
        return (f"{own}: {best:.2f} ms a query" + (f" (others, with their threads: {told})" if told else "")
                + (f"; left out: {left}" if left else ""))  # fmt: skip


@dataclass
class Candidate:
    """An engine with a number of threads; ``blocks``: the median milliseconds of each block."""

    name: str
    threads: int
    engine: Engine
    blocks: list[float] = field(default_factory=list)
    calls: int = 0

    @property
    def label(self) -> str:
        """As in ``Choice.milliseconds``."""
        return f"{self.name} {self.threads}"

    @property
    def best(self) -> float:
        """Milliseconds."""
        return min(self.blocks)

    def time(self, texts: Sequence[str], calls: int, warm_up: int = WARM_UP) -> None:
        """One block of calls, each of one text, tokenised too."""
        if not self.name.startswith("onnx") and (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(self.threads)  # of the whole process
        taken = []
        for call in range(-warm_up, calls):
            text = texts[(self.calls + call) % len(texts)]
            started = perf_counter_ns()
            self.engine.encode([text])
            if call >= 0:
                taken.append((perf_counter_ns() - started) / 1e6)
        self.calls += calls
        self.blocks.append(float(np.median(taken)))


def race(candidates: Sequence[Candidate], texts: Sequence[str]) -> Candidate:
    """The fastest; of those that are alike, the first. Every candidate keeps what was measured of it."""
    for candidate in candidates:
        candidate.time(texts, _GLANCE, warm_up=1)
    left = _within(candidates, _HOPELESS)
    glances = {candidate.label: candidate.blocks.pop() for candidate in left}
    started = time.monotonic()
    for turn in range(ROUNDS):
        shift = turn % len(left)
        for candidate in [*left[shift:], *left[:shift]]:
            candidate.time(texts, max(1, min(CALLS, int(_BLOCK * 1e3 / glances[candidate.label]))))
        left = _within(left, _SLOWER if turn > 1 else _HOPELESS)
        if time.monotonic() - started > _BUDGET or (len(left) == 1 and turn):
            break
    return _within(left, _ALIKE)[0]


def _within(candidates: Sequence[Candidate], share: float) -> list[Candidate]:
    """Those that take at most so many times what the fastest takes, in their order."""
    fastest = min(candidate.best for candidate in candidates)
    return [candidate for candidate in candidates if candidate.best <= share * fastest]


def choose(
    engines: dict[str, Engine],
    make: Callable[[str, int], Engine],
    texts: Sequence[str],
    threads: int | None,
    left_out: Mapping[str, str],
) -> Choice:
    """Race the engines, then the winner with other numbers of threads.

    Args:
        engines: by name, the more exact first, with ``threads`` or ``first_threads()`` threads. Is emptied: the slower
            ones need not stay in memory.
        make: opens an engine of this name with so many threads.
        texts: asked one by one.
        threads: None: those that are fastest.
        left_out: engine -> why it is not here.
    """
    started, load = time.monotonic(), os.getloadavg()[0]
    first, found, calls = threads or first_threads(), {}, 0
    entered = [Candidate(name, first, engine) for name, engine in engines.items()]
    engines.clear()
    winner = race(entered, texts)
    while True:
        found.update({one.label: one.best for one in entered})
        calls += sum(one.calls for one in entered)
        count = None if threads else _next_count(winner.name, winner.threads, first, found)
        if count is None:
            break
        winner = Candidate(winner.name, winner.threads, winner.engine)  # asked anew beside the other
        entered = sorted([winner, Candidate(winner.name, count, make(winner.name, count))], key=lambda one: one.threads)
        winner = race(entered, texts)
    told = {
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "seconds": round(time.monotonic() - started, 2), "calls": calls,
        "load": round(load, 2), "unsteady": round(max(winner.blocks) / winner.best, 2), "left_out": dict(left_out),
    }  # fmt: skip
    return Choice(winner.name, winner.threads, found, told)


def _next_count(name: str, winner: int, first: int, tried: Mapping[str, float]) -> int | None:
    """Another number of threads to try: the next fewer ones as long as they win, else the next more."""
    counts = thread_counts(available_cores(), first)
    at = counts.index(winner)
    fewer, more = counts[:at][-1:], counts[at + 1 :][:1]
    near = [*(fewer if winner <= first else []), *(more if winner >= first else [])]
    return next((count for count in near if f"{name} {count}" not in tried), None)


def first_threads() -> int:
    """The threads that engines are compared at."""
    return min(FIRST_THREADS, available_cores())


def thread_counts(cores: int, *more: int) -> list[int]:
    """The numbers of threads worth trying: powers of two up to all cores."""
    return sorted({*(2**power for power in range(cores.bit_length()) if 2**power <= cores), cores, *more})


# ---------------------------------------------------------------------------------------------------- remembering


def cache_file(key: str) -> Path:
    """Where a choice is kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "harness" / "engines" / f"{key}.json"


def read_choice(key: str, names: Sequence[str]) -> Choice | None:
    """What was chosen before; None where it was not, or can't be read."""
    try:
        told = read_json(cache_file(key))
        if told.pop("schema") != SCHEMA:
            return None
        choice = Choice(**told)
        usable = choice.engine in names and isinstance(choice.threads, int) and choice.threads > 0
        return choice if usable and f"{choice.engine} {choice.threads}" in choice.milliseconds else None
    except (InputError, TypeError, KeyError, AttributeError, OSError, RuntimeError):  # no file, not ours, or no home
        return None


def keep_choice(key: str, choice: Choice) -> None:
    """Write it down, where that can be done."""
    try:
        write_json(cache_file(key), {"schema": SCHEMA, **asdict(choice)})
    except (OSError, RuntimeError) as error:  # a read-only home, or none: measured again next time
        logger.info("the choice of an engine can't be kept: %s", error)
