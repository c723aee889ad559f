"""Batches on their way: the same ones, made in the right moment, large ones placed once."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from builders.training import Toy, hash_score, run_folder, stage_parts, toy_training

from harness.training import feeding
from harness.training.feeding import Ahead, ToDevice, each_tensor
from harness.training.fit import fit

META, CPU = torch.device("meta"), torch.device("cpu")


def test_only_tensors_change() -> None:
    batch = {"a": torch.ones(2), "ids": ["x"], "chunks": [{"b": torch.ones(1), "longest": 3}], "none": None, "n": 2}
    changed = each_tensor(batch, lambda tensor: tensor + 1)
    assert changed["a"].tolist() == [2, 2] and changed["chunks"][0]["b"].tolist() == [2]
    assert changed["chunks"][0]["longest"] == 3 and changed["ids"] == ["x"] and changed["n"] == 2
    assert changed["none"] is None


def test_a_large_tensor_that_comes_again_is_placed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "_LARGE", 64)
    place, same, small = ToDevice(META), torch.ones(16), torch.ones(2)
    first, second = place({"same": same, "small": small}), place({"same": same, "small": small})
    assert first["same"].device == META and second["same"] is first["same"]
    assert second["small"] is not first["small"]
    other = place({"same": torch.ones(16)})
    assert other["same"] is not first["same"]
    assert place({"same": same})["same"] is not first["same"], "what is not in a batch any more is not kept"


def test_on_a_cpu_a_batch_stays_what_it_is() -> None:
    batch = {"a": torch.ones(2), "chunks": [{"b": torch.ones(1)}]}
    placed = ToDevice(CPU)(batch)
    assert placed["a"] is batch["a"] and placed["chunks"][0]["b"] is batch["chunks"][0]["b"]


def test_the_next_batches_are_made_while_a_step_runs_and_only_then() -> None:
    made: list[tuple[int, str]] = []
    begun = threading.Event()

    def batches(step: int) -> list[Any]:
        made.append((step, threading.current_thread().name))
        begun.set()
        return [step]

    ahead = Ahead(batches, META, 3)
    try:
        for step in range(3):
            assert ahead(step) == [step]
            begun.clear()
            with ahead.while_making(step + 1):
                assert begun.wait(5) == (step < 2), "while the step runs, or never"
    finally:
        ahead.close()
    assert [step for step, _ in made] == [0, 1, 2]
    assert made[0][1] == "MainThread" and all(name.startswith("batches") for _, name in made[1:])


def test_what_goes_wrong_in_the_thread_is_raised_where_the_batches_are_wanted() -> None:
    def batches(step: int) -> list[Any]:
        if step:
            raise ValueError("step 1 can't be made")
        return [step]

    ahead = Ahead(batches, META, 5)
    try:
        ahead(0)
        with ahead.while_making(1):
            pass
        with pytest.raises(ValueError, match="step 1"):
            ahead(1)
        with pytest.raises(KeyError), ahead.while_making(1):
            raise KeyError("the step's own error comes first")
    finally:
        ahead.close()


def test_on_a_cpu_no_thread_is_started() -> None:
    before = threading.active_count()
    ahead = Ahead(lambda step: [step], CPU, 3)
    with ahead.while_making(1):
        assert threading.active_count() == before
    assert ahead(1) == [1]
    ahead.close()


def test_a_training_fed_by_the_thread_is_the_same(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bit of the weights, with evaluations between the steps that use the same tokenizer."""

    def trained(folder: Path) -> list[dict[str, float]]:
        encoder = toy.encoder("qwen3")
        training = toy_training(steps=5, evaluate_every=1)
        objective, batches = stage_parts("teacher", toy, encoder, training)

        def evaluate() -> dict[str, float]:
            encoder.encode(toy.texts[1][:8], side="query")
            return hash_score(encoder)()

        return fit(encoder, objective, batches, evaluate, training, run_folder(folder), Accelerator(cpu=True)).curve

    direct = trained(tmp_path / "direct")
    threads: list[str] = []

    class Threaded(Ahead):
        def __init__(self, batches: Any, device: torch.device, steps: int) -> None:
            def noted(step: int) -> Any:
                threads.append(threading.current_thread().name)
                return batches(step)

            super().__init__(noted, META, steps)

    monkeypatch.setattr("harness.training.fit.Ahead", Threaded)
    assert trained(tmp_path / "threaded") == direct
    assert [name.startswith("batches") for name in threads] == [False, True, True, True, True]
