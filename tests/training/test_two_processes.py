"""Two real processes against one: the gather, averaged gradients, whole trainings, and decisions taken together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from builders.training import ENCODERS, LOSSES, STAGES, Toy
from builders.two_processes import (
    ADAPTED,
    LOSS_CASES,
    PAIR_CASES,
    gradients_of,
    loss_gradients,
    pair_gradients,
    whole_run,
)
from safetensors.torch import load_file
from torch import Tensor

from harness.training.objectives import LOG_TIMES


def answers(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"answers-{rank}.json").read_text()) for rank in range(2)]


def tensors(folder: Path, name: str) -> list[dict[str, Tensor]]:
    return [load_file(folder / f"{name}-{rank}.safetensors") for rank in range(2)]


def test_the_shipped_file_starts_two_processes_that_see_each_other(both: Path) -> None:
    assert [answer["processes"] for answer in answers(both)] == [[2, 0, 2, "gloo"], [2, 1, 2, "gloo"]]


def test_one_process_judges_for_all(both: Path) -> None:
    first, second = (answer["judged"] for answer in answers(both))
    assert first == second
    assert (first["step"], first["scores"]) == (2, [0.1, 0.9, 0.2])
    assert json.loads((both / "judged" / "checkpoints" / "best" / "state.json").read_text())["best_step"] == 2


def test_gather_stands_in_rank_order_and_sends_every_gradient_home(both: Path) -> None:
    first, second = tensors(both, "gather")
    rows_BD = torch.arange(6.0).view(3, 2)
    expected_GD = torch.cat([rows_BD, rows_BD + 10])
    weight_GD = torch.arange(12.0).view(6, 2)
    for rank, result in enumerate((first, second)):
        assert result["everything"].equal(expected_GD)
        # The sum over both processes' losses, for our rows.
        assert result["local_gradient"].equal((2 * weight_GD + 1)[3 * rank : 3 * rank + 3])
        assert result["other_gradient"].equal(weight_GD + rank), "another branch's gradient was overwritten"
        assert result["strided"].equal(torch.arange(6.0).view(2, 3).T.repeat(2, 1))


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_have_the_gradients_of_one(both: Path, toy: Toy, stage: str, kind: str) -> None:
    for step in range(3):
        logs, expected = gradients_of(stage, kind, toy, step)
        name = f"{stage}-{kind}-{step}"
        mean = sum(answer[name]["loss"] for answer in answers(both)) / 2
        assert mean == pytest.approx(logs["loss"], rel=1e-5)
        first, second = tensors(both, name)
        assert first.keys() == second.keys() == expected.keys()
        largest = max(float(gradient.abs().max()) for gradient in expected.values())
        for parameter, gradient in expected.items():
            assert first[parameter].equal(second[parameter])
            size = max(float(gradient.abs().max()), 1e-2 * largest)
            assert float((first[parameter] - gradient).abs().max()) <= 1e-5 * size, (step, parameter)


@pytest.mark.parametrize(("loss", "cached"), LOSS_CASES)
def test_every_loss_of_two_processes_is_that_of_one_direct_or_cached(
    both: Path, toy: Toy, loss: str, cached: bool
) -> None:
    logs, expected = loss_gradients(loss, False, toy)
    found = [answer[f"{loss}-{cached}"] for answer in answers(both)]
    assert sum(answer["loss"] for answer in found) / 2 == pytest.approx(logs["loss"], rel=1e-5)
    first, second = tensors(both, f"{loss}-{cached}")
    assert first.keys() == second.keys() == expected.keys()
    assert (LOG_TIMES in expected) == bool(LOSSES[loss].get("learned_temperature"))
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for parameter, gradient in expected.items():
        assert first[parameter].equal(second[parameter])
        # The temperature's gradient is what remains where logits of up to 20 cancel out.
        size = 0.2 if parameter == LOG_TIMES else max(float(gradient.abs().max()), 1e-2 * largest)
        assert float((first[parameter] - gradient).abs().max()) <= 3e-5 * size, parameter
        assert parameter != LOG_TIMES or float(gradient.abs()) > 1e-3


@pytest.mark.parametrize(("loss", "cached", "kind"), PAIR_CASES)
def test_pairs_from_logs_have_the_gradients_of_one_process(
    both: Path, toy: Toy, tmp_path: Path, loss: str, cached: bool, kind: str
) -> None:
    logs, expected = pair_gradients(loss, False, kind, toy, tmp_path)
    found = [answer[f"pairs-{loss}"] for answer in answers(both)]
    assert sum(answer["loss"] for answer in found) / 2 == pytest.approx(logs["loss"], rel=1e-5)
    first, second = tensors(both, f"pairs-{loss}")
    assert first.keys() == second.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for parameter, gradient in expected.items():
        assert first[parameter].equal(second[parameter])
        size = 0.2 if parameter == LOG_TIMES else max(float(gradient.abs().max()), 1e-2 * largest)
        assert float((first[parameter] - gradient).abs().max()) <= 3e-5 * size, parameter


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("kind", ADAPTED)
def test_gradients_of_adapters_are_those_of_one_process_direct_or_cached(
    both: Path, toy: Toy, kind: str, cached: bool
) -> None:
    logs, expected = gradients_of("teacher", kind, toy, 1)
    name = f"{kind}-{cached}"
    assert sum(answer[name]["loss"] for answer in answers(both)) / 2 == pytest.approx(logs["loss"], rel=1e-5)
    first, second = tensors(both, name)
    assert first.keys() == second.keys() == expected.keys() and all(".lora_" in key for key in expected)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for parameter, gradient in expected.items():
        assert first[parameter].equal(second[parameter])
        size = max(float(gradient.abs().max()), 1e-2 * largest)
        assert float((first[parameter] - gradient).abs().max()) <= 1e-5 * size, parameter


def test_a_whole_training_of_adapters_by_two_processes_is_that_of_one(both: Path, toy: Toy, tmp_path: Path) -> None:
    expected, before = whole_run("teacher", toy, tmp_path, ADAPTED[0]), toy.encoder(ADAPTED[0]).state_dict()
    first, second = tensors(both, ADAPTED[0])
    for name, value in expected.items():
        assert first[name].equal(second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4)
        assert value.equal(before[name]) != (".lora_" in name), name


@pytest.mark.parametrize("stage", STAGES)
def test_a_whole_training_by_two_processes_is_that_of_one(both: Path, toy: Toy, tmp_path: Path, stage: str) -> None:
    expected = whole_run(stage, toy, tmp_path)
    first, second = tensors(both, stage)
    for name, value in expected.items():
        assert first[name].equal(second[name]), name
        if "key.bias" not in name:  # without effect and without gradient but for rounding, which AdamW makes large
            torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4)
    ours, theirs = (
        [json.loads(text) for text in (folder / "logs" / "toy.jsonl").read_text().splitlines()]
        for folder in (both / stage, tmp_path)
    )
    assert len(ours) == len(theirs) == 6  # four steps, two evaluations; one process writes
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys() and one["step"] == other["step"]
        assert "loss" not in one or one == pytest.approx(other, rel=1e-4)


def test_a_batch_that_two_can_not_share_is_refused(both: Path) -> None:
    assert all("multiple of 2" in answer["odd"]["text"] for answer in answers(both))


def test_all_stop_after_the_same_step_when_one_is_asked_to(both: Path) -> None:
    stopped = [answer["stop"] for answer in answers(both)]
    assert [entry["kind"] for entry in stopped] == ["Interrupted"] * 2
    assert all("stopped after step 3" in entry["text"] for entry in stopped)
    assert [path.name for path in (both / "stop" / "checkpoints").iterdir()] == ["step-00000003"]


def test_a_nan_of_one_process_stops_both_and_each_names_its_own_texts(both: Path) -> None:
    first, second = (answer["nan"] for answer in answers(both))
    assert first["kind"] == second["kind"] == "RunError"
    assert "gradient norm is not finite at step 3" in first["text"]
    assert "loss is not finite at step 3" in second["text"]
    culprit = json.loads((both / "nan" / "logs" / "toy-nonfinite1.json").read_text())
    assert culprit == {"step": 3, "not_finite": ["loss", "double"], "ids": [f"point 2-{n}" for n in range(8)]}
    assert (both / "nan" / "logs" / "toy-nonfinite.json").exists()


def test_each_process_draws_its_own_random_numbers_again_and_again(both: Path) -> None:
    first, second = (answer["random"] for answer in answers(both))
    for three, four, three_again in (first, second):
        assert three == three_again != four
    assert first[0] != second[0]
