"""The clock: what is inside it, in which order, and what comes out. The clock is ours and the engines move it."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from harness.evaluation import bench as bench_module
from harness.evaluation.bench import bench, cpu_name
from harness.runtime.errors import InputError

MS = 1_000_000
Call = tuple[str, tuple[str, ...]]


@dataclass
class Clock:
    now: int = 0

    def __call__(self) -> int:
        return self.now


@dataclass
class FakeEngine:
    """Takes ``tokenise_ms`` a call and ``cost_ms`` a letter of the longest text; the first call takes a second more."""

    system: str
    clock: Clock
    log: list[Call]
    cost_ms: float
    tokenise_ms: float = 1.0
    name: str = "torch"
    max_length: int = 64
    collected: list[bool] = field(default_factory=list)

    def tokenise(self, texts: Sequence[str]) -> list[str]:
        self.clock.now += int(self.tokenise_ms * MS)
        return list(texts)

    def forward(self, tokens: Any) -> np.ndarray:
        if not any(system == self.system for system, _ in self.log):
            self.clock.now += 1000 * MS
        self.log.append((self.system, tuple(tokens)))
        self.collected.append(gc.isenabled())
        self.clock.now += int(self.cost_ms * max(map(len, tokens)) * MS)
        return np.zeros((len(tokens), 2), np.float32)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self.forward(self.tokenise(texts))

    def describe(self) -> dict[str, Any]:
        return {"device": "cpu", "dtype": "float32", "threads": 2, "max_length": self.max_length}


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeEngine]:
    clock, log = Clock(), []
    monkeypatch.setattr(bench_module, "perf_counter_ns", clock)
    monkeypatch.setattr(gc, "collect", lambda: log.append(("garbage", ())))  # the real one takes a second beside torch
    return {
        "teacher": FakeEngine("teacher", clock, log, cost_ms=10),
        "student": FakeEngine("student", clock, log, cost_ms=4, tokenise_ms=0.5, max_length=32),
    }


def timed(engines: dict[str, FakeEngine]) -> list[Call]:
    """The engines' calls, in order."""
    return [call for call in engines["teacher"].log if call[0] != "garbage"]


QUERIES = {"de": ["a", "bb", "ccc"], "en": ["dddd", "eeeee"]}


def test_latency_is_the_encoder_alone_without_first_calls(engines: dict[str, FakeEngine]) -> None:
    found = bench(engines, QUERIES, warmup=0, repeats=4, batch_sizes=[1])["latency"]
    german = found["teacher"]["torch"]["de"]
    assert german["batch"] == 1 and german["calls"] == 12
    assert german["p50_ms"] == pytest.approx(20) and german["tokenise_p50_ms"] == pytest.approx(1)
    assert german["total_p50_ms"] == pytest.approx(21)
    everything = found["teacher"]["torch"]["all"]
    assert everything["calls"] == 20 and everything["p50_ms"] == pytest.approx(30)
    assert everything["p99_ms"] == pytest.approx(50) and everything["p90_ms"] == pytest.approx(50)
    assert found["student"]["torch"]["all"]["p50_ms"] == pytest.approx(12)
    assert set(found["student"]["torch"]) == {"de", "en", "all"}


def blocks(log: list[Call], size: int) -> list[tuple[str, list[str]]]:
    """The log in parts of so many calls, each of one system: its name and the texts."""
    parts = [log[start : start + size] for start in range(0, len(log), size)]
    assert all(len({system for system, _ in part}) == 1 for part in parts)
    return [(part[0][0], [texts[0] for _, texts in part]) for part in parts]


def test_systems_take_turns_and_the_first_changes(
    engines: dict[str, FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_module, "_BLOCK", 1)
    bench(engines, QUERIES, warmup=3, repeats=2, batch_sizes=[1])
    # After three warm-up calls each: 2 repeats x 5 texts x 2 systems, each with a call before that does not count.
    found = blocks(timed(engines)[6:46], 2)
    pairs = list(zip(found[::2], found[1::2], strict=True))
    assert all(one[1] == two[1] and one[1][0] == one[1][1] and one[0] != two[0] for one, two in pairs)
    turns = ["teacher", "student"] * 2 + ["teacher"] + ["student", "teacher"] * 2 + ["student"]
    assert [one[0] for one, _ in pairs] == turns
    assert sorted(one[1][0] for one, _ in pairs) == sorted(["a", "bb", "ccc", "dddd", "eeeee"] * 2)


def test_a_turn_is_a_block_of_calls_and_one_before_that_does_not_count(
    engines: dict[str, FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_module, "_BLOCK", 3)
    found = bench(engines, QUERIES, warmup=3, repeats=1, batch_sizes=[1])
    log = timed(engines)[6:20]  # blocks of 3 and of 2 texts, each with one call more
    first, last = blocks(log[:8], 4), blocks(log[8:], 3)
    assert [system for system, _ in [*first, *last]] == ["teacher", "student", "student", "teacher"]
    assert first[0][1] == first[1][1] and last[0][1] == last[1][1]
    assert all(texts[0] == texts[1] for _, texts in [*first, *last])
    assert found["latency"]["teacher"]["torch"]["all"]["calls"] == 5


def test_languages_are_mixed(engines: dict[str, FakeEngine]) -> None:
    queries = {"de": [f"d{i}" for i in range(20)], "en": [f"e{i}" for i in range(20)]}
    bench(engines, queries, warmup=1, repeats=1, batch_sizes=[40])
    latency = timed(engines)[2:92]  # five blocks of eight for each system, and the calls before them
    order = "".join(texts[0][0] for system, texts in latency if system == "teacher")
    assert len(order) == 45 and "ed" in order and "de" in order


def test_throughput_reports_the_best_batch(engines: dict[str, FakeEngine]) -> None:
    found = bench(engines, QUERIES, warmup=1, repeats=3, batch_sizes=[5, 2])["throughput"]["teacher"]["torch"]
    assert found["batch"] == 5 and list(found["by_batch"]) == ["2", "5"]
    assert found["queries_per_second"] == found["by_batch"]["5"] == pytest.approx(5 / 0.051)  # 1 ms + 5 letters
    assert found["by_batch"]["2"] < found["by_batch"]["5"]


def test_batches_are_full_also_where_texts_are_few(engines: dict[str, FakeEngine]) -> None:
    found = bench(engines, {"de": ["aa", "bb"]}, warmup=1, repeats=1, batch_sizes=[8])["throughput"]
    sizes = {len(texts) for _, texts in timed(engines)}
    assert sizes == {1, 8}
    assert found["student"]["torch"]["queries_per_second"] == pytest.approx(8 / 0.0085)


def test_no_garbage_is_collected_inside_the_clock(engines: dict[str, FakeEngine]) -> None:
    bench(engines, QUERIES, warmup=1, repeats=2, batch_sizes=[2])
    collected = engines["student"].collected
    assert not any(collected[1:13]), "latency"
    assert collected.count(False) == 2 * (1 + 5) + 2 * 3, "latency and throughput, but for the warm-up"
    assert gc.isenabled()
    log = [system for system, _ in engines["student"].log]
    assert [place for place, system in enumerate(log) if system == "garbage"] == [2, 15, 30], "before each clock"


def test_garbage_collection_returns_after_an_error(engines: dict[str, FakeEngine]) -> None:
    engines["student"].cost_ms = float("nan")
    with pytest.raises(ValueError):
        bench(engines, QUERIES, warmup=1, repeats=1, batch_sizes=[2])
    assert gc.isenabled()


def test_conditions_say_where_systems_differ(engines: dict[str, FakeEngine]) -> None:
    assert bench(engines, QUERIES, warmup=2, repeats=1, batch_sizes=[2])["conditions"] == {
        "device": "cpu", "dtype": "float32", "threads": 2, "max_length": {"teacher": 64, "student": 32}, "warmup": 2,
        "repeats": 1, "cpu": cpu_name(),
    }  # fmt: skip
    assert cpu_name()


def test_other_engines_have_their_own_key(engines: dict[str, FakeEngine]) -> None:
    engines["student"].name = "onnx"
    found = bench(engines, QUERIES, warmup=1, repeats=1, batch_sizes=[2])
    assert list(found["latency"]["student"]) == list(found["throughput"]["student"]) == ["onnx"]


def test_no_queries_is_an_input_error(engines: dict[str, FakeEngine]) -> None:
    with pytest.raises(InputError, match="no queries to time"):
        bench(engines, {"de": []}, warmup=1, repeats=1, batch_sizes=[2])
