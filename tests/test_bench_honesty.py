"""What benchmarks/bench_honesty.py computes itself: the careless way, and its table."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def honesty(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    spec = importlib.util.spec_from_file_location("bench_honesty", BENCHMARKS / "bench_honesty.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Engine:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def tokenise(self, texts: list[str]) -> list[str]:
        return texts

    def forward(self, texts: list[str]) -> np.ndarray:
        self.log.append(self.name)
        return np.zeros((len(texts), 2), np.float32)

    encode = forward


def test_the_careless_way_is_one_after_the_other_and_bench_takes_turns(honesty: ModuleType) -> None:
    log: list[str] = []
    engines = {name: Engine(name, log) for name in (honesty.TEACHER, honesty.CUT, honesty.AGAIN)}
    taken = honesty.careless(engines, ["a", "b"], 2)
    assert log == [honesty.TEACHER] * 4 + [honesty.CUT] * 4 + [honesty.AGAIN] * 4
    assert {len(ms) for ms in taken.values()} == {4}
    log.clear()
    taken, _ = honesty.careful(engines, [f"text {i}" for i in range(16)], 2)
    assert {len(ms) for ms in taken.values()} == {32} and log[:18] == [honesty.TEACHER] * 9 + [honesty.CUT] * 9


def test_the_table_tells_the_round_that_was_most_off(honesty: ModuleType) -> None:
    def told(ratio: float, noise: float | None) -> dict[str, Any]:
        ms = {honesty.TEACHER: 10.0, honesty.CUT: 4.0, honesty.AGAIN: 4.0 * ratio}
        return {**honesty.summary({name: np.full(9, value) for name, value in ms.items()}), "noise_percent": noise}

    rounds = [told(1.0, 2.0), told(1.02, 3.0), told(0.5, 4.0)]
    row = honesty.table({"as it is": {"bench": rounds, "careless": [told(1.0, None)]}})[2:]
    assert row[0] == "| as it is | bench | 1.000 | 0.500 | 2.45 to 5.00 | 1.0 | 3.0 |"
    assert row[1].endswith("| 1.0 | - |")
