"""One query at a time: every call of every system, and their percentiles.

Axes: R repeats, T texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.engines.protocol import Engine
from harness.evaluation.bench.machine import Machine, quiet

Search = Callable[[NDArray[np.float32], str], Any]  # (vector_1D, the query's language) -> the hits
BLOCK = 8  # calls of a system until the next one has its turn
# So many calls that the slowest is beyond the true 99.9th percentile with a probability of 95 %; fewer say nothing.
CALLS_FOR_P99_9 = math.ceil(math.log(0.05) / math.log(0.999))


@dataclass(frozen=True)
class Calls:
    """Nanoseconds of one system's calls, each int64_RT.

    Parts of the same calls, by one clock: ``total`` is tokeniser and encoder, ``whole`` these and the search. The last
    two are None where nothing is searched.
    """

    tokenise: NDArray[np.int64]
    forward: NDArray[np.int64]
    search: NDArray[np.int64] | None = None

    @property
    def parts(self) -> list[NDArray[np.int64]]:
        """What there is, in the order in which it happens."""
        return [self.tokenise, self.forward, *([] if self.search is None else [self.search])]

    @property
    def total(self) -> NDArray[np.int64]:
        """Tokeniser and encoder, int64_RT."""
        return self.tokenise + self.forward

    @property
    def whole(self) -> NDArray[np.int64] | None:
        """From the text to the hits, int64_RT."""
        return None if self.search is None else self.total + self.search

    @classmethod
    def empty(cls, repeats: int, texts: int, searched: bool) -> Calls:
        """Room for so many calls."""
        rooms = [np.zeros((repeats, texts), np.int64) for _ in range(3 if searched else 2)]
        return cls(*rooms)


def turns(systems: Sequence[str], turn: int) -> list[str]:
    """The systems in their order, another one first at each turn."""
    first = turn % len(systems)
    return [*systems[first:], *systems[:first]]


def time_calls(
    engines: Mapping[str, Engine],
    search: Mapping[str, Search],
    texts: Sequence[str],
    languages: Sequence[str],
    *,
    repeats: int,
    machine: Machine,
    advance: Callable[[int], Any],
) -> dict[str, Calls]:
    """Every text ``repeats`` times by every system, in blocks that take turns; a block's first call does not count."""
    found = {system: Calls.empty(repeats, len(texts), system in search) for system in engines}
    for repeat in range(repeats):
        with quiet():
            for start in range(0, len(texts), BLOCK):
                block = slice(start, start + BLOCK)
                queries = list(zip(texts[block], languages[block], strict=True))
                for system in turns(list(engines), repeat + start // BLOCK):
                    taken = _time_block(engines[system], search.get(system), queries, machine)
                    for part_RT, taken_T in zip(found[system].parts, taken, strict=True):
                        part_RT[repeat, block] = taken_T
                advance(len(queries))
    return found


def _time_block(
    engine: Engine, search: Search | None, queries: Sequence[tuple[str, str]], machine: Machine
) -> NDArray[np.int64]:
    """Nanoseconds of tokenising, encoding and, where there is a search, searching: a row each, a column per query."""
    text, language = queries[0]
    vector_1D = engine.encode([text])
    if search is not None:
        search(vector_1D, language)
    stamps = []
    for text, language in queries:
        started = machine.now()
        tokens = engine.tokenise([text])
        tokenised = machine.now()
        vector_1D = engine.forward(tokens)  # on the host: the device is done
        stamp = [started, tokenised, machine.now()]
        if search is not None:
            search(vector_1D, language)
            stamp.append(machine.now())
        stamps.append(stamp)
    read = np.array(stamps, np.int64).T
    return read[1:] - read[:-1]


def percentile_ms(nanoseconds: NDArray[np.int64], percent: float) -> float:
    """The nearest rank: the least observed time that at least ``percent`` % of the calls did not exceed, in ms."""
    return float(np.percentile(nanoseconds, percent, method="inverted_cdf")) / 1e6


def rows(calls: Calls, language_T: NDArray[np.str_]) -> dict[str, dict[str, Any]]:
    """One system's latency per language and, as ``all``, over all calls: see ``harness.evaluation.bench``."""
    selections = {str(language): language_T == language for language in sorted(set(language_T.tolist()))}
    found = {language: _row(calls, selected) for language, selected in selections.items()}
    everything = np.ones(len(language_T), dtype=bool)
    return {**found, "all": {**_row(calls, everything), **_beyond(calls)}}


def _row(calls: Calls, selected_T: NDArray[np.bool_]) -> dict[str, Any]:
    forward, total = calls.forward[:, selected_T], calls.total[:, selected_T]
    row: dict[str, Any] = {"batch": 1, "calls": forward.size}
    row |= {f"p{percent}_ms": percentile_ms(forward, percent) for percent in (50, 90, 99)}
    row |= {"tokenise_p50_ms": percentile_ms(calls.tokenise[:, selected_T], 50),
            "total_p50_ms": percentile_ms(total, 50)}  # fmt: skip
    if calls.search is not None and calls.whole is not None:
        row["search_p50_ms"] = percentile_ms(calls.search[:, selected_T], 50)
        row |= {f"whole_p{p}_ms": percentile_ms(calls.whole[:, selected_T], p) for p in (50, 90, 99)}
    return row


def _beyond(calls: Calls) -> dict[str, float | None]:
    """The 99.9th percentiles, None where there are too few calls to tell."""
    parts = {"p99_9_ms": calls.forward, "whole_p99_9_ms": calls.whole}
    return {name: percentile_ms(part, 99.9) if part.size >= CALLS_FOR_P99_9 else None
            for name, part in parts.items() if part is not None}  # fmt: skip
