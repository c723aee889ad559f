"""The clock: what is inside it, in which order, and what comes out. The clock is ours and the engines move it."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from harness.engines.machine import cpu_name
from harness.evaluation.bench import CALLS_FOR_P99_9, Machine, Ramp, bench, latency, priced
from harness.evaluation.bench.latency import BLOCK, Calls, percentile_ms, time_calls
from harness.evaluation.bench.noise import drift, floor
from harness.evaluation.bench.throughput import Meter, representative
from harness.runtime.errors import InputError

MS = 1_000_000
Call = tuple[str, tuple[str, ...]]


class Clock(Machine):
    """A machine that does nothing but what the engines do. ``slowing``: of everything, by so much a second."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.cores = 0.0, 2
        self.others_share, self.slowing, self.free_mb, self.per_text = 0.0, 0.0, 1e6, 1.0

    def spend(self, ms: float) -> None:
        self.time += int(ms * MS) * (1 + self.slowing * self.time / 1e9)

    def now(self) -> int:
        return int(self.time)

    def load(self) -> float:
        return 0.5

    def others(self) -> float:
        return 100 + self.others_share * self.time / 1e9

    def peak(self, engine: Any, texts: Sequence[str]) -> tuple[float, float]:
        """A MB for each text, and the first call of all keeps three."""
        first = not any(system == engine.system for system, _ in engine.log)
        engine.encode(texts)
        return self.per_text * len(texts), 3.0 if first else 0.0

    def free(self, engine: Any) -> float:
        return self.free_mb


@dataclass
class FakeEngine:
    """Takes ``tokenise_ms`` a call and ``cost_ms`` a letter of the longest text; the first call takes a second more."""

    system: str
    clock: Clock
    log: list[Call]
    cost_ms: float
    tokenise_ms: float = 1.0
    each_ms: float = 0.0  # of every text
    name: str = "torch"
    max_length: int = 64
    most: int = 10**6
    collected: list[bool] = field(default_factory=list)

    def tokenise(self, texts: Sequence[str]) -> list[str]:
        self.clock.spend(self.tokenise_ms)
        return list(texts)

    def forward(self, tokens: Any) -> np.ndarray:
        if len(tokens) > self.most:
            raise MemoryError
        if not any(system == self.system for system, _ in self.log):
            self.clock.spend(1000)
        self.log.append((self.system, tuple(tokens)))
        self.collected.append(gc.isenabled())
        self.clock.spend(self.cost_ms * max(map(len, tokens)) + self.each_ms * len(tokens))
        return np.array([[ord(text[0]), len(text)] for text in tokens], np.float32)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self.forward(self.tokenise(texts))

    def describe(self) -> dict[str, Any]:
        return {"device": "cpu", "dtype": "float32", "threads": 2, "max_length": self.max_length}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engines(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeEngine]:
    log: list[Call] = []
    monkeypatch.setattr(gc, "collect", lambda: log.append(("garbage", ())))  # the real one takes a second beside torch
    return {
        "teacher": FakeEngine("teacher", clock, log, cost_ms=10),
        "student": FakeEngine("student", clock, log, cost_ms=4, tokenise_ms=0.5, max_length=32),
    }


def timed(engines: dict[str, FakeEngine]) -> list[Call]:
    """The engines' calls, in order."""
    return [call for call in engines["teacher"].log if call[0] != "garbage"]


QUERIES = {"de": ["a", "bb", "ccc"], "en": ["dddd", "eeeee"]}
TEXTS, LANGUAGES = ["a", "bb", "ccc", "dddd", "eeeee"], ["de", "de", "de", "en", "en"]


def run(engines: dict[str, FakeEngine], queries: dict[str, list[str]] = QUERIES, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"warmup": 1, "repeats": 1, "batch_sizes": [2], "machine": engines["teacher"].clock}
    return bench(engines, queries, **settings | changes)


# ------------------------------------------------------------------------------------------------------------ latency


def test_latency_is_the_encoder_alone_without_first_calls(engines: dict[str, FakeEngine]) -> None:
    found = run(engines, warmup=0, repeats=4)["latency"]
    german = found["teacher"]["torch"]["de"]
    assert german["batch"] == 1 and german["calls"] == 12
    assert german["p50_ms"] == pytest.approx(20) and german["tokenise_p50_ms"] == pytest.approx(1)
    assert german["total_p50_ms"] == pytest.approx(21)
    everything = found["teacher"]["torch"]["all"]
    assert everything["calls"] == 20 and everything["p50_ms"] == pytest.approx(30)
    assert everything["p99_ms"] == pytest.approx(50) and everything["p90_ms"] == pytest.approx(50)
    assert found["student"]["torch"]["all"]["p50_ms"] == pytest.approx(12)
    assert set(found["student"]["torch"]) == {"de", "en", "all"}
    assert not any("whole" in name or "search" in name for name in everything), "nothing was searched"


def test_the_whole_path_is_one_clock_and_searches_for_the_vector_that_came_out(
    engines: dict[str, FakeEngine], clock: Clock
) -> None:
    seen: list[tuple[float, float, str]] = []

    def search(vector_1D: np.ndarray, language: str) -> None:
        seen.append((*vector_1D[0].tolist(), language))
        clock.spend(7)

    found = run(engines, repeats=2, search={"student": search})["latency"]
    row, german = (found["student"]["torch"][scope] for scope in ("all", "de"))
    assert row["search_p50_ms"] == pytest.approx(7)
    assert row["whole_p50_ms"] == pytest.approx(0.5 + 12 + 7) and row["whole_p99_ms"] == pytest.approx(0.5 + 20 + 7)
    assert german["whole_p90_ms"] == pytest.approx(0.5 + 12 + 7) and german["whole_p50_ms"] == pytest.approx(15.5)
    assert row["p50_ms"] == pytest.approx(12) and row["tokenise_p50_ms"] == pytest.approx(0.5)
    assert not any("whole" in name for name in found["teacher"]["torch"]["all"])
    assert set(seen) == {(ord(t[0]), len(t), lang) for t, lang in zip(TEXTS, LANGUAGES, strict=True)}
    assert len(seen) == 1 + 2 * 2 * (5 + 1), "warm-up; and, twice, in each block one call that does not count"


def test_no_part_of_the_path_is_slower_than_the_whole(engines: dict[str, FakeEngine], clock: Clock) -> None:
    """Parts are of the same calls: one that was slow is slow in both."""
    student, calls = engines["student"], 0
    forward = student.forward

    def now_and_then_slow(tokens: Any) -> np.ndarray:
        nonlocal calls
        calls += 1
        clock.spend(500 if calls % 40 == 7 else 0)
        return forward(tokens)

    student.forward = now_and_then_slow  # type: ignore[method-assign]
    search = {"student": lambda vector_1D, language: clock.spend(1)}
    row = run(engines, MANY, search=search)["latency"]["student"]["torch"]["all"]
    assert row["p99_ms"] > 500
    assert all(row[f"whole_p{percent}_ms"] >= row[f"p{percent}_ms"] + 1 for percent in (50, 90, 99))


def test_percentiles_are_nearest_ranks() -> None:
    calls = np.arange(1, 201) * MS
    found = [percentile_ms(calls, percent) for percent in (50, 90, 99, 99.9)]
    assert found == [100, 180, 198, 200], "observed values, none in between"
    assert percentile_ms(calls[:1], 50) == percentile_ms(calls[:1], 99) == 1


def test_a_thousandth_is_told_of_enough_calls_only(engines: dict[str, FakeEngine]) -> None:
    assert 1 - 0.999**CALLS_FOR_P99_9 >= 0.95 > 1 - 0.999 ** (CALLS_FOR_P99_9 - 1) and CALLS_FOR_P99_9 == 2995
    quick = {"teacher": engines["teacher"]}
    few = run(quick, repeats=598)["latency"]["teacher"]["torch"]
    assert few["all"]["calls"] == 2990 and few["all"]["p99_9_ms"] is None
    searched = {"teacher": lambda vector_1D, language: None}
    enough = run(quick, repeats=599, search=searched)["latency"]["teacher"]["torch"]
    assert enough["all"]["p99_9_ms"] == pytest.approx(50) and enough["all"]["whole_p99_9_ms"] == pytest.approx(51)
    assert "p99_9_ms" not in enough["de"]


def blocks(log: list[Call], size: int) -> list[tuple[str, list[str]]]:
    """The log in parts of so many calls, each of one system: its name and the texts."""
    parts = [log[start : start + size] for start in range(0, len(log), size)]
    assert all(len({system for system, _ in part}) == 1 for part in parts)
    return [(part[0][0], [texts[0] for _, texts in part]) for part in parts]


def test_systems_take_turns_and_the_first_changes(
    engines: dict[str, FakeEngine], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "BLOCK", 1)
    time_calls(engines, {}, TEXTS, LANGUAGES, repeats=2, machine=clock, advance=lambda calls: None)
    # 2 repeats x 5 texts x 2 systems, each with a call before that does not count.
    found = blocks(timed(engines), 2)
    pairs = list(zip(found[::2], found[1::2], strict=True))
    assert all(one[1] == two[1] and one[1][0] == one[1][1] and one[0] != two[0] for one, two in pairs)
    assert [one[0] for one, _ in pairs] == ["teacher", "student"] * 5
    assert [one[1][0] for one, _ in pairs] == TEXTS * 2


def test_a_turn_is_a_block_of_calls_and_one_before_that_does_not_count(
    engines: dict[str, FakeEngine], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "BLOCK", 3)
    found = time_calls(engines, {}, TEXTS, LANGUAGES, repeats=1, machine=clock, advance=lambda calls: None)
    log = timed(engines)  # blocks of 3 and of 2 texts, each with one call more
    first, last = blocks(log[:8], 4), blocks(log[8:], 3)
    assert [system for system, _ in [*first, *last]] == ["teacher", "student", "student", "teacher"]
    assert first[0][1] == first[1][1] and last[0][1] == last[1][1]
    assert all(texts[0] == texts[1] for _, texts in [*first, *last])
    assert found["teacher"].forward.shape == (1, 5)
    np.testing.assert_allclose(found["teacher"].forward[0] / MS, [10, 20, 30, 40, 50])


def test_languages_are_mixed(engines: dict[str, FakeEngine]) -> None:
    queries = {"de": [f"d{i}" for i in range(20)], "en": [f"e{i}" for i in range(20)]}
    run(engines, queries, batch_sizes=[40])
    order = "".join(texts[0][0] for system, texts in timed(engines) if system == "teacher" and len(texts) == 1)
    assert len(order) == 4 + 45 and "ed" in order and "de" in order  # four warm-up calls, five blocks of eight and one


def test_no_queries_is_an_input_error(engines: dict[str, FakeEngine]) -> None:
    with pytest.raises(InputError, match="no queries to time"):
        run(engines, {"de": []})


# -------------------------------------------------------------------------------------------------------------- noise

MANY = {"de": [f"query {i % 10}" for i in range(100)]}


@pytest.mark.parametrize("count", [2, 3, 5])
def test_drift_cancels(clock: Clock, count: int) -> None:
    """Equal engines on a machine that slows down have equal medians; timed one after the other, they have not."""
    clock.slowing = 0.02
    log: list[Call] = []
    equal = {name: FakeEngine(name, clock, log, cost_ms=1) for name in "abcde"[:count]}
    found = bench(equal, MANY, warmup=2, repeats=2, batch_sizes=[4], machine=clock)
    medians = [row["torch"]["all"]["p50_ms"] for row in found["latency"].values()]
    rates = [row["torch"]["queries_per_second"] for row in found["throughput"].values()]
    assert found["noise"]["drift_percent"] > 4 * 100 * (max(medians) / min(medians) - 1)
    assert max(medians) / min(medians) < 1.01 and max(rates) / min(rates) < 1.01
    alone = [bench({name: engine}, MANY, warmup=2, repeats=2, batch_sizes=[4], machine=clock)["latency"][name]
             for name, engine in equal.items()]  # fmt: skip
    assert alone[-1]["torch"]["all"]["p50_ms"] > 1.05 * alone[0]["torch"]["all"]["p50_ms"]


def test_the_quickest_system_is_timed_twice_and_is_not_two_systems(engines: dict[str, FakeEngine]) -> None:
    found = run(engines, MANY, repeats=3)
    assert list(found["latency"]) == list(found["throughput"]) == ["teacher", "student"]
    assert found["noise"]["control"] == {"system": "student", "p50_ratio": 1.0, "p99_ratio": 1.0, "calls": 300}
    assert found["noise"]["percent"] == 0 and found["noise"]["warning"] is None
    assert (found["noise"]["others_cores"], found["noise"]["cores"], found["noise"]["load_before"]) == (0, 2, 0.5)
    calls = sum(system == "student" and len(texts) == 1 for system, texts in timed(engines))
    blocks_of_each = 3 * -(-100 // BLOCK)
    assert calls == 1 + 3 + 2 * (300 + blocks_of_each), "warm-up, which is quickest, and two of each block"


def test_the_floor_rises_with_the_noise() -> None:
    def noisy(share: float, seed: int) -> np.ndarray:
        return (1e6 * np.random.default_rng(seed).lognormal(0, share, (3, 400))).astype(np.int64)

    low, high = (floor(noisy(share, 1), noisy(share, 2)) for share in (0.02, 0.3))
    assert low is not None and high is not None and 0 < low < 1 < high < 10
    assert floor(noisy(0.02, 1)[:, :20], noisy(0.02, 2)[:, :20]) is None, "nine blocks"
    assert floor(noisy(0.02, 1), 2 * noisy(0.02, 2)) == pytest.approx(100, abs=2), "two that differ are no control"


def test_drift_is_that_of_the_second_half() -> None:
    forward = np.array([[1000, 3000, 2000, 8000]] * 4) * MS
    slower = (forward * np.array([1.0, 1.0, 1.3, 1.3])[:, None]).astype(np.int64)
    assert drift(dict.fromkeys("ab", Calls(np.zeros_like(forward), slower))) == pytest.approx(30)
    assert drift({"a": Calls(forward[:1], forward[:1])}) is None, "other texts in each half"


def test_a_machine_that_is_not_idle_is_told_of(engines: dict[str, FakeEngine], clock: Clock) -> None:
    clock.others_share = 0.15
    few = run(engines)["noise"]
    assert few["warning"] is None, "less than a tenth of the cores"
    assert few["percent"] is None and few["drift_percent"] is None, "too few calls to tell"
    clock.others_share = 0.75
    found = run(engines)["noise"]
    assert found["others_cores"] == pytest.approx(0.75)
    assert "other programs kept 0.8 of its 2 cores busy" in found["warning"] and "slower" not in found["warning"]
    clock.others_share, clock.slowing = 0, 0.5
    told = run(engines, MANY, repeats=2)["noise"]
    assert told["drift_percent"] > 10 and f"it became {told['drift_percent']:.0f} % slower" in told["warning"]


def test_what_others_take_is_told_of_this_machine() -> None:
    machine = Machine()
    before = machine.others()
    assert before is None or machine.others() >= before - 0.1
    assert machine.now() < machine.now() and machine.cores >= 1


# --------------------------------------------------------------------------------------------------------- throughput


def test_throughput_reports_the_best_batch(engines: dict[str, FakeEngine]) -> None:
    found = run(engines, repeats=3, batch_sizes=[5, 2])["throughput"]["teacher"]["torch"]
    assert found["batch"] == 5 and list(found["by_batch"]) == ["2", "5"]
    assert found["queries_per_second"] == found["by_batch"]["5"] == pytest.approx(5 / 0.051)  # 1 ms + 5 letters
    assert found["by_batch"]["2"] < found["by_batch"]["5"]
    assert found["stopped"] == "the sizes of the recipe were timed"
    assert found["batch_1_queries_per_second"] == pytest.approx(1 / 0.031), "the mean of 11 to 51 ms"
    also = run(engines, repeats=3, batch_sizes=[1, 2])["throughput"]["teacher"]["torch"]
    assert also["batch_1_queries_per_second"] == also["by_batch"]["1"], "one number for one batch size"


def test_batches_are_full_also_where_texts_are_few(engines: dict[str, FakeEngine]) -> None:
    found = run(engines, {"de": ["aa", "bb"]}, batch_sizes=[8])["throughput"]
    assert {len(texts) for _, texts in timed(engines)} == {1, 8}
    assert found["student"]["torch"]["queries_per_second"] == pytest.approx(8 / 0.0085)


def ramp(engines: dict[str, FakeEngine], **limits: Any) -> dict[str, Any]:
    found = run(engines, MANY, repeats=3, batch_sizes=None, ramp=Ramp(**{"seconds": 150, **limits}))["throughput"]
    return {system: row["torch"] for system, row in found.items()}


def test_sizes_double_until_two_doublings_bring_nothing(engines: dict[str, FakeEngine]) -> None:
    teacher = engines["teacher"]
    teacher.cost_ms, teacher.tokenise_ms, teacher.each_ms = 0, 20, 10
    told = ramp(engines)["teacher"]
    rates = {size: size / (0.02 + 0.01 * size) for size in (1, 2, 4, 8, 16, 32, 64, 128, 256)}
    gains = [rates[2 * size] / rates[size] for size in (16, 32, 64)]
    assert gains[0] > 1.05 > gains[1] > gains[2], "the example's own"
    assert told["by_batch"] == {str(size): pytest.approx(rates[size]) for size in (1, 2, 4, 8, 16, 32, 64, 128)}
    assert told["stopped"] == "two doublings in a row brought less than 5% each"
    assert (told["batch"], told["queries_per_second"]) == (128, pytest.approx(rates[128]))


def test_small_batches_that_bring_nothing_do_not_end_it(engines: dict[str, FakeEngine]) -> None:
    student = engines["student"]
    student.forward = lambda tokens: student.clock.spend(10 * len(tokens) if len(tokens) < 8 else 40)  # type: ignore
    told = ramp(engines, max_batch=16)["student"]
    rates = list(told["by_batch"].values())
    assert rates[2] < 1.05 * rates[1] < 1.1025 * rates[0] and told["batch"] == 16 and rates[4] > 2 * rates[0]


def test_what_ends_the_doubling_is_told(engines: dict[str, FakeEngine], clock: Clock) -> None:
    student = ramp(engines, max_batch=16)["student"]
    assert list(student["by_batch"]) == ["1", "2", "4", "8", "16"] and "16 is the largest" in student["stopped"]
    clock.free_mb = 30.0
    student = ramp(engines)["student"]
    assert list(student["by_batch"]) == ["1", "2", "4", "8", "16"], "a MB each"
    assert student["stopped"] == "memory: 32 queries would need about 32 MB, and 30 MB are free"
    clock.free_mb = 1e6
    engines["student"].most = 4
    found = ramp(engines, max_batch=8)
    student, teacher = found["student"], found["teacher"]
    assert list(student["by_batch"]) == ["1", "2", "4"] and "8 queries were too many" in student["stopped"]
    assert list(teacher["by_batch"]) == ["1", "2", "4", "8"], "the others go on"


def test_the_doubling_keeps_to_its_time(engines: dict[str, FakeEngine], clock: Clock) -> None:
    engines["teacher"].cost_ms, engines["teacher"].each_ms = 0, 100  # batches bring next to nothing
    started = clock.time
    run(engines, MANY, repeats=3, batch_sizes=[1])
    others = clock.time - started
    started = clock.time
    found = run(engines, MANY, repeats=3, batch_sizes=None, ramp=Ramp(seconds=4, gain=-1))["throughput"]
    assert "4 seconds of each system were up" in found["teacher"]["torch"]["stopped"]
    assert set(found["teacher"]["torch"]["by_batch"]) == {"1", "2", "4"}
    assert (clock.time - started - others) / 1e9 < 2 * 4 + 0.25 * 4


def test_the_best_size_is_timed_again(engines: dict[str, FakeEngine], clock: Clock) -> None:
    """One lucky pass makes a size the best of the ramp, and not the number that is reported, nor that in the table."""
    meter = Meter({"student": engines["student"]}, ["aa"], repeats=1, machine=clock, advance=lambda passes: None)
    student = engines["student"]
    taken = iter([10, 10, 10, 10, 10, 0.1, 10, 10, 50, 10, 10, 20])  # one of three calls counts, each time

    def encode(texts: Sequence[str]) -> np.ndarray:
        clock.spend(next(taken))
        return np.zeros((len(texts), 2), np.float32)

    student.encode = encode  # type: ignore[method-assign]
    meter.given([1, 2], warmup=1)
    row = meter.results()["student"]
    assert next(taken, None) is None, "2, then 1, which was the best after that"
    assert row["by_batch"] == {"1": pytest.approx(50), "2": pytest.approx(40)}
    assert (row["batch"], row["queries_per_second"]) == (1, row["by_batch"]["1"])
    assert meter.again() == pytest.approx(99.8)


def test_memory_is_told_by_batch_with_what_earlier_calls_kept(engines: dict[str, FakeEngine]) -> None:
    row = run(engines, batch_sizes=[2, 4])["throughput"]["student"]["torch"]
    assert row["peak_memory_mb_by_batch"] == {"2": 5.0, "4": 7.0} and row["peak_memory_mb"] == 7.0


def test_memory_of_a_call_is_that_of_this_machine(engines: dict[str, FakeEngine]) -> None:
    engine, kept = engines["student"], []

    def encode(texts: Sequence[str]) -> np.ndarray:
        block = np.ones(50_000_000, np.uint8)
        if texts[0] == "keep":
            kept.append(block)
        return block[:1]

    engine.encode = encode  # type: ignore[method-assign]
    found = Machine().peak(engine, ["drop"])
    if found is None:
        pytest.skip("the kernel does not tell, or does not begin its mark anew")
    assert 45 < found[0] < 65 and found[1] < 15
    again = Machine().peak(engine, ["keep"])
    assert again is not None and 45 < again[0] < 65 and 40 < again[1] < 65
    assert (free := Machine().free(engine)) is None or free > 0


def test_no_batch_of_a_ramp_is_timed_the_first_time(engines: dict[str, FakeEngine], clock: Clock) -> None:
    seen: set[tuple[str, ...]] = set()
    student = engines["student"]
    forward = student.forward

    def slow_at_first(tokens: Any) -> np.ndarray:
        clock.spend(0 if tuple(tokens) in seen else 5000)
        seen.add(tuple(tokens))
        return forward(tokens)

    student.forward = slow_at_first  # type: ignore[method-assign]
    limits = Ramp(max_batch=8, seconds=150)  # of several repeats, the median would hide the first
    rates = run(engines, MANY, repeats=1, batch_sizes=None, ramp=limits)["throughput"]["student"]["torch"]["by_batch"]
    assert min(rates.values()) > 20, "no call of five seconds is in it"


def test_passes_have_turns_and_a_call_before_each_that_does_not_count(clock: Clock) -> None:
    log: list[Call] = []
    engines = {name: FakeEngine(name, clock, log, cost_ms=1, each_ms=1, tokenise_ms=0) for name in "ab"}
    meter = Meter(engines, ["x"], repeats=1, machine=clock, advance=lambda passes: None)
    meter.warm(1)
    log.clear()
    taken = meter._pass({"a": [["x"]] * 4, "b": [["xx"]] * 8}, 0)
    assert "".join(system for system, _ in log) == "aabbb" + "bbbaa" + "aabbb" + "bbbaa"
    assert taken == {"a": pytest.approx(4 * 2e-3), "b": pytest.approx(8 * 3e-3)}
    log.clear()
    meter._pass({"a": [["x"] * 20], "b": [["x"] * 20]}, 1)
    assert [(system, len(texts)) for system, texts in log] == [("b", 8), ("b", 20), ("a", 8), ("a", 20)]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100, 400])
def test_a_few_representative_texts_are_like_all(count: int) -> None:
    lengths = np.random.default_rng(count).integers(1, 100, count)
    texts = ["x" * length for length in lengths]
    found = representative(texts)
    assert sorted(found) == sorted(texts)
    if count >= 100:
        for few in (16, 32, 64):
            assert np.mean([len(text) for text in found[:few]]) == pytest.approx(lengths.mean(), abs=100 / few)


def test_the_price_of_a_million_queries() -> None:
    row = {"batch": 32, "queries_per_second": 500.0, "batch_1_queries_per_second": 100.0}
    told = priced(row, 1.8, "USD")
    assert told["cost_per_million"] == pytest.approx(1.0) and told["cost_per_million_batch_1"] == pytest.approx(5.0)
    assert (told["price_per_hour"], told["currency"], told["batch"]) == (1.8, "USD", 32)
    assert priced({"queries_per_second": 1.0}, 3.6, None)["cost_per_million_batch_1"] is None, "of an older run"


# --------------------------------------------------------------------------------------------------- round about them


def test_no_garbage_is_collected_inside_the_clock(engines: dict[str, FakeEngine]) -> None:
    run(engines, repeats=2)
    collected = engines["teacher"].collected
    assert collected.count(False) == 2 * (1 + 5) + 2 * (3 + 3), "latency and throughput, but for the warm-up"
    assert not any(collected[4:16]) and gc.isenabled()
    log = [system for system, _ in engines["teacher"].log if system in ("garbage", "teacher")]
    assert log.count("garbage") == 3, "before each clock"


def test_garbage_collection_returns_after_an_error(engines: dict[str, FakeEngine]) -> None:
    engines["student"].cost_ms = float("nan")
    with pytest.raises(ValueError):
        run(engines)
    assert gc.isenabled()


def test_conditions_say_where_systems_differ(engines: dict[str, FakeEngine]) -> None:
    assert run(engines, warmup=2)["conditions"] == {
        "device": "cpu", "dtype": "float32", "threads": 2, "max_length": {"teacher": 64, "student": 32}, "warmup": 2,
        "repeats": 1, "cpu": cpu_name(), "percentiles": "nearest rank", "encoder": "timed alone",
        "batches": "shuffled, not sorted by length",
    }  # fmt: skip
    assert cpu_name()


def test_other_engines_have_their_own_key(engines: dict[str, FakeEngine]) -> None:
    engines["student"].name = "onnx"
    found = run(engines)
    assert list(found["latency"]["student"]) == list(found["throughput"]["student"]) == ["onnx"]
