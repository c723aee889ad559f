"""Latency of one query and throughput of many, for systems side by side: one process, an idle machine.

**What is measured.** A system is an engine and, where one is given, a search. *Whole path*: from the text to the hits
(``whole_p50_ms`` ...), by one clock that is read between its parts: the tokeniser (``tokenise_p50_ms``), the encoder,
from token ids to the vector on the host (``p50_ms``, ``p90_ms``, ``p99_ms``; with the tokeniser, ``total_p50_ms``), and
the search for the vector that came out (``search_p50_ms``). The parts are of the same calls: no percentile of a part
exceeds that of the whole. *Throughput*: tokeniser and encoder over full batches of shuffled queries that are not sorted
by length; no search.

**So that it can be trusted.** Systems take turns in short blocks (A B, B A, A B ...): a machine that slows down does so
for all. No first call is timed: a block begins with a call that does not count, for the threads of the library that had
its turn before spin on for a while, and a batch size begins with a pass that does not. Garbage collection is off while
a clock runs. One system is timed twice, under two names (A/A): what these two differ by is noise. The best batch size
is timed again, since the best of many is too good by chance; the second timing is its rate from then on, everywhere,
and where it is the best no longer, the one that now is is timed again in its turn.

**Percentiles** are nearest ranks: the least time observed that at least p % of the calls did not exceed; nothing is
interpolated. ``p99_9_ms`` is None for fewer than 2,995 calls: with as many, the slowest of them lies beyond the true
percentile with a probability of 95 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from harness.engines.machine import cpu_name
from harness.engines.protocol import Engine
from harness.evaluation.bench.latency import CALLS_FOR_P99_9, Calls, Search, rows, time_calls
from harness.evaluation.bench.machine import MB, Machine
from harness.evaluation.bench.noise import Watch, told
from harness.evaluation.bench.throughput import Meter, Ramp, priced
from harness.runtime.errors import InputError, Problem
from harness.runtime.process import progress

__all__ = ["CALLS_FOR_P99_9", "MB", "Machine", "Ramp", "Search", "bench", "priced"]

_SEED = 0  # of the order in which queries come: any fixed order would do


def bench(
    engines: Mapping[str, Engine],
    queries: Mapping[str, Sequence[str]],
    *,
    warmup: int,
    repeats: int,
    batch_sizes: Sequence[int] | None = None,
    search: Mapping[str, Search] | None = None,
    ramp: Ramp | None = None,
    machine: Machine | None = None,
) -> dict[str, Any]:
    """Time all engines on the same queries.

    Args:
        engines: system -> engine.
        queries: language -> texts, real ones, since their lengths decide.
        warmup: calls (of each system, at each given batch size) before the clock runs; at least one is made.
        repeats: how often each query and each batch is timed.
        batch_sizes: these, each over all queries; None: 1, 2, 4 ... as ``ramp`` says.
        search: system -> what takes its vector_1D and the query's language and searches; a system that has none has no
            whole path.
        machine: the clock and what tells of memory; None: this machine.

    Returns:
        "latency": {SYSTEM: {ENGINE: {LANG | "all": {"batch", "calls", "p50_ms", ...}}}}, in ``all`` also
        "p99_9_ms"; "throughput": {SYSTEM: {ENGINE: {"batch", "queries_per_second" (both of the best size in
        "by_batch"), "by_batch", "stopped" (why there is no larger size), "peak_memory_mb" and "peak_memory_mb_by_batch"
        (10**6 bytes beyond what rested in memory before, weights not included; see ``Machine.peak``),
        "batch_1_queries_per_second" (that of "by_batch"; where 1 was not timed, from the mean of the latencies)}}};
        "noise", see ``noise.told``; "conditions".

    Raises:
        InputError: there are no queries.
    """
    assert engines and batch_sizes != [] and repeats > 0, "nothing to time"
    machine, search, warmup = machine or Machine(), search or {}, max(1, warmup)
    (texts, languages), watch = _shuffled(queries), Watch(machine)
    with progress(what="bench", total=repeats * len(texts), unit="query") as bar:
        meter = Meter(engines, texts, repeats=repeats, machine=machine, advance=lambda passes: None)
        meter.warm(warmup)
        _warm_search(engines, search, texts, languages, warmup)
        twice = min(engines, key=lambda system: _once(engines[system], texts[0], machine))
        control = f"{twice}, again"
        searched = {**search, control: search[twice]} if twice in search else search
        calls = time_calls({**engines, control: engines[twice]}, searched, texts, languages, repeats=repeats,
                           machine=machine, advance=bar.update)  # fmt: skip
        second = calls.pop(control)
        if batch_sizes is None:
            meter.rising(ramp or Ramp(), {system: _mean_seconds(found) for system, found in calls.items()})
        else:
            meter.given(batch_sizes, warmup)
    language_T, throughput = np.array(languages), _rates(meter, calls)
    return {
        "latency": {system: {engine.name: rows(calls[system], language_T)} for system, engine in engines.items()},
        "throughput": {system: {engine.name: throughput[system]} for system, engine in engines.items()},
        "noise": told(calls, second, twice, meter.again(), watch.ended()),
        "conditions": {**_conditions(engines), "warmup": warmup, "repeats": repeats, "cpu": cpu_name(),
                       "percentiles": "nearest rank",
                       "encoder": "timed within the whole path" if search else "timed alone",
                       "batches": "shuffled, not sorted by length"},
    }  # fmt: skip


def _rates(meter: Meter, calls: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each system's throughput; of batch 1 by its latencies, where that size was not timed."""
    return {
        system: {**rate, "batch_1_queries_per_second": rate["by_batch"].get("1", 1 / _mean_seconds(calls[system]))}
        for system, rate in meter.results().items()
    }


def _shuffled(queries: Mapping[str, Sequence[str]]) -> tuple[list[str], list[str]]:
    """All texts in a fixed random order, and each one's language."""
    named = [(language, text) for language, texts in queries.items() for text in texts]
    if not named:
        raise InputError(Problem("there are no queries to time", where="bench", next="check the set that bench reads"))
    order = np.random.default_rng(_SEED).permutation(len(named))
    return [named[i][1] for i in order], [named[i][0] for i in order]


def _warm_search(
    engines: Mapping[str, Engine], search: Mapping[str, Search], texts: Sequence[str], languages: Sequence[str],
    calls: int,
) -> None:  # fmt: skip
    for call in range(calls):
        for system, searched in search.items():
            place = call % len(texts)
            searched(engines[system].encode([texts[place]]), languages[place])


def _once(engine: Engine, text: str, machine: Machine) -> int:
    """Nanoseconds of the quickest of three calls, well after the first."""
    stamps = [machine.now()]
    for _ in range(3):
        engine.encode([text])
        stamps.append(machine.now())
    return min(after - before for before, after in pairwise(stamps))


def _mean_seconds(calls: Calls) -> float:
    """Of one query, tokeniser and encoder; not zero, however coarse the clock."""
    return max(float(calls.total.mean()), 1.0) / 1e9


def _conditions(engines: Mapping[str, Engine]) -> dict[str, Any]:
    """What the engines say of themselves: one value where they agree, else one per system."""
    described = {system: engine.describe() for system, engine in engines.items()}
    conditions = {}
    for key in dict.fromkeys(key for values in described.values() for key in values):
        by_system = {system: values.get(key) for system, values in described.items()}
        distinct = list(by_system.values())
        conditions[key] = distinct[0] if all(value == distinct[0] for value in distinct) else by_system
    return conditions
