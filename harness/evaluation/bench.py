"""Latency of one query and throughput of many, for engines side by side: one process, an idle machine.

Systems are interleaved (A B, B A, A B ...) in short blocks of calls, so that a machine that slows down or speeds up
meanwhile does so for all. A block begins with a call that is not timed: the threads of the library that had its turn
before spin on for a while, and would stand in the way of another library's first call.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.engines.machine import cpu_name
from harness.engines.protocol import Engine
from harness.runtime.errors import InputError, Problem
from harness.runtime.process import progress

_SEED = 0  # of the order in which queries come: any fixed order would do
_BLOCK = 8  # calls of a system until the next one has its turn
_FORWARD, _TOKENISE = 0, 1


def bench(
    engines: Mapping[str, Engine],
    queries: Mapping[str, Sequence[str]],
    *,
    warmup: int,
    repeats: int,
    batch_sizes: Sequence[int],
    what: str = "bench",
) -> dict[str, Any]:
    """Time all engines on the same queries.

    Latency is of one query at a time, its first calls left out: ``p50_ms``, ``p90_ms`` and ``p99_ms`` are the encoder
    alone (from token ids to the vector on the host), ``tokenise_p50_ms`` the tokeniser alone, ``total_p50_ms`` both.
    Throughput is of tokeniser and encoder over shuffled queries in full batches: the median over ``repeats``, at the
    best batch size.

    Args:
        engines: system -> engine.
        queries: language -> texts, real ones, since their lengths decide.
        warmup: calls (of each system, at each batch size) before the clock runs; at least one is made.
        repeats: how often each query and each batch is timed.

    Returns:
        "latency": {SYSTEM: {ENGINE: {LANG | "all": {...}}}}, "throughput": {SYSTEM: {ENGINE: {...}}}, "conditions",
        as in results.json.

    Raises:
        InputError: there are no queries.
    """
    assert engines and batch_sizes and repeats > 0, "nothing to time"
    named = [(language, text) for language, texts in queries.items() for text in texts]
    if not named:
        raise InputError(Problem("there are no queries to time", where=what, next="check the set that bench reads"))
    order = np.random.default_rng(_SEED).permutation(len(named))
    languages = np.array([named[i][0] for i in order])
    texts = [named[i][1] for i in order]
    with progress(what=what, total=repeats * len(texts) + repeats * len(batch_sizes), unit="step") as bar:
        latency = _latency(engines, texts, warmup, repeats, bar.update)
        throughput = _throughput(engines, texts, warmup, repeats, batch_sizes, bar.update)
    return {
        "latency": {
            system: {engine.name: _per_language(latency[system], languages)} for system, engine in engines.items()
        },
        "throughput": {system: {engine.name: throughput[system]} for system, engine in engines.items()},
        "conditions": {**_conditions(engines), "warmup": warmup, "repeats": repeats, "cpu": cpu_name()},
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Collect garbage now, and none until the block ends."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _turns(systems: Sequence[str], turn: int) -> list[str]:
    """The systems in their order, another one first at each turn."""
    first = turn % len(systems)
    return [*systems[first:], *systems[:first]]


def _latency(
    engines: Mapping[str, Engine],
    texts: Sequence[str],
    warmup: int,
    repeats: int,
    advance: Callable[[int], Any],
) -> dict[str, NDArray[np.int64]]:
    """system -> nanoseconds of each call: [repeats, texts, forward and tokenise]."""
    taken = {system: np.zeros((repeats, len(texts), 2), np.int64) for system in engines}
    for call in range(max(1, warmup)):
        for engine in engines.values():
            engine.encode([texts[call % len(texts)]])
    for repeat in range(repeats):
        with _quiet():
            for start in range(0, len(texts), _BLOCK):
                block = slice(start, start + _BLOCK)
                for system in _turns(list(engines), repeat + start // _BLOCK):
                    taken[system][repeat, block] = _timed(engines[system], texts[block])
                advance(len(texts[block]))
    return taken


def _timed(engine: Engine, texts: Sequence[str]) -> NDArray[np.int64]:
    """Nanoseconds of each call after one that does not count: [texts, forward and tokenise]."""
    taken = np.zeros((len(texts), 2), np.int64)
    engine.encode([texts[0]])
    for number, text in enumerate(texts):
        started = perf_counter_ns()
        tokens = engine.tokenise([text])
        tokenised = perf_counter_ns()
        engine.forward(tokens)  # gives the vector on the host: the device is done
        ended = perf_counter_ns()
        taken[number] = ended - tokenised, tokenised - started
    return taken


def _per_language(taken: NDArray[np.int64], languages: NDArray[np.str_]) -> dict[str, dict[str, float]]:
    """Percentiles in milliseconds per language and over all calls."""
    selections = {str(language): languages == language for language in sorted(set(languages.tolist()))}
    selections["all"] = np.ones(len(languages), dtype=bool)
    rows = {}
    for language, selected in selections.items():
        calls = taken[:, selected].reshape(-1, 2) / 1e6
        p50, p90, p99 = np.percentile(calls[:, _FORWARD], [50, 90, 99])
        rows[language] = {
            "batch": 1,
            "calls": len(calls),
            "p50_ms": float(p50),
            "p90_ms": float(p90),
            "p99_ms": float(p99),
            "tokenise_p50_ms": float(np.median(calls[:, _TOKENISE])),
            "total_p50_ms": float(np.median(calls.sum(axis=1))),
        }
    return rows


def _throughput(
    engines: Mapping[str, Engine],
    texts: Sequence[str],
    warmup: int,
    repeats: int,
    batch_sizes: Sequence[int],
    advance: Callable[[int], Any],
) -> dict[str, dict[str, Any]]:
    """system -> the best batch size, its queries per second, and those of every batch size."""
    rates: dict[str, dict[int, float]] = {system: {} for system in engines}
    for size in sorted(set(batch_sizes)):
        # Full batches only: the texts begin again where they don't fill the last one.
        several = [texts[i % len(texts)] for i in range(-(-len(texts) // size) * size)]
        batches = [several[start : start + size] for start in range(0, len(several), size)]
        for call in range(max(1, warmup)):
            for engine in engines.values():
                engine.encode(batches[call % len(batches)])
        seconds = {system: np.zeros(repeats) for system in engines}
        with _quiet():
            for repeat in range(repeats):
                for number, batch in enumerate(batches):
                    for system in _turns(list(engines), repeat + number):
                        started = perf_counter_ns()
                        engines[system].encode(batch)
                        seconds[system][repeat] += (perf_counter_ns() - started) / 1e9
                advance(1)
        for system in engines:
            rates[system][size] = float(len(several) / np.median(seconds[system]))
    return {system: _best(by_size) for system, by_size in rates.items()}


def _best(by_size: Mapping[int, float]) -> dict[str, Any]:
    best = max(by_size, key=lambda size: by_size[size])
    by_batch = {str(size): rate for size, rate in by_size.items()}
    return {"batch": best, "queries_per_second": by_size[best], "by_batch": by_batch}


def _conditions(engines: Mapping[str, Engine]) -> dict[str, Any]:
    """What the engines say of themselves: one value where they agree, else one per system."""
    described = {system: engine.describe() for system, engine in engines.items()}
    conditions = {}
    for key in dict.fromkeys(key for values in described.values() for key in values):
        by_system = {system: values.get(key) for system, values in described.items()}
        distinct = list(by_system.values())
        conditions[key] = distinct[0] if all(value == distinct[0] for value in distinct) else by_system
    return conditions
