from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from builders.toy_problem import LineBatches, Squares, line, scripted
from builders.training import STAGES, Toy, gradients, run_folder, stage_parts, toy_training
from torch import Tensor, nn

from harness.runtime.errors import RunError
from harness.training.fit import Fitted, fit
from harness.training.schedule import learning_rate


def run_fit(
    folder: Path, model: nn.Module, *, evaluate: Any = None, objective: Any = None, batches: Any = None, **changes: Any
) -> Fitted:
    training = toy_training(**{"learning_rate": 0.1, "warmup_share": 0.0, "decay": "constant", **changes})
    return fit(
        model, objective or Squares(), batches or LineBatches(), evaluate, training, run_folder(folder),
        Accelerator(cpu=True),
    )  # fmt: skip


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "logs" / "toy.jsonl").read_text().splitlines()]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


class Snapshots:
    """An ``evaluate`` with given scores that remembers the weights it saw and in which mode the model was."""

    def __init__(self, model: nn.Module, scores: list[float]) -> None:
        self.model, self.answer = model, scripted(scores)
        self.seen: list[dict[str, Tensor]] = []

    def __call__(self) -> dict[str, float]:
        assert not self.model.training
        self.seen.append(weights(self.model))
        return self.answer()


# ------------------------------------------------------------------------------------------------------ learning


def test_the_loss_goes_down_and_the_truth_is_found(tmp_path: Path) -> None:
    model = line()
    fitted = run_fit(tmp_path, model, steps=200, weight_decay=0.0)
    losses = [entry["loss"] for entry in read_log(tmp_path)]
    assert losses[-1] < 1e-3 * losses[0]
    torch.testing.assert_close(model.weight[0], torch.tensor([1.0, -2.0, 3.0]), atol=0.05, rtol=0)
    assert (fitted.step, fitted.score, fitted.curve) == (200, None, []) and fitted.seconds > 0
    assert not model.training


def test_one_step_is_adamw_by_hand(tmp_path: Path) -> None:
    """After one step AdamW has moved every weight by the rate against its sign, and has decayed matrices only."""
    model, before = line(), line()
    run_fit(tmp_path, model, steps=1, learning_rate=0.01, weight_decay=0.5, max_grad_norm=1e9)
    Squares.loss(before, LineBatches()(0)[0]).backward()
    sign_ED, sign_E = before.weight.grad.sign(), before.bias.grad.sign()
    torch.testing.assert_close(model.weight.data, before.weight.data * (1 - 0.01 * 0.5) - 0.01 * sign_ED)
    torch.testing.assert_close(model.bias.data, before.bias.data - 0.01 * sign_E)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_every_step_is_logged_with_its_learning_rate(tmp_path: Path, decay: str) -> None:
    tracked: list[tuple[int, dict[str, float]]] = []
    settings = toy_training(steps=9, learning_rate=0.1, warmup_share=0.3, decay=decay)
    run = run_folder(tmp_path, track=lambda values, step: tracked.append((step, dict(values))))
    fit(line(), Squares(), LineBatches(), None, settings, run, Accelerator(cpu=True))
    log = read_log(tmp_path)
    assert [entry["step"] for entry in log] == list(range(1, 10))
    assert [entry["learning_rate"] for entry in log] == [learning_rate(step, settings) for step in range(9)]
    assert all(entry["double"] == 2 * entry["loss"] and entry["gradient_norm"] > 0 for entry in log)
    assert tracked == [(entry.pop("step"), entry) for entry in log]


# ----------------------------------------------------------------------------------- gradients of a whole step


class Spy(torch.optim.AdamW):
    """Remembers the gradients that a step is made with."""

    steps: list[list[Tensor]]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.steps.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
        super().step(closure)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    Spy.steps = []
    monkeypatch.setattr("torch.optim.AdamW", Spy)
    return Spy.steps


def test_two_micro_batches_give_the_mean_of_their_gradients_and_losses(tmp_path: Path, spy: list[list[Tensor]]) -> None:
    run_fit(tmp_path, line(), steps=1, accumulate=2, batches=LineBatches(micro=2), max_grad_norm=1e9)
    model, micro = line(), LineBatches(micro=2)(0)
    losses = [Squares.loss(model, batch) for batch in micro]
    torch.stack(losses).mean().backward()
    for got, expected in zip(spy[0], (model.weight.grad, model.bias.grad), strict=True):
        torch.testing.assert_close(got, expected)
    assert read_log(tmp_path)[0]["loss"] == pytest.approx(sum(float(loss.detach()) for loss in losses) / 2, rel=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_accumulation_of_a_stage_is_the_mean_over_its_micro_batches(
    toy: Toy, tmp_path: Path, spy: list[list[Tensor]], stage: str
) -> None:
    training, encoder = toy_training(steps=1, accumulate=2, max_grad_norm=1e9), toy.encoder()
    objective, batches = stage_parts(stage, toy, encoder, training)
    micro = batches(0)
    for batch in micro:  # gradients add up
        objective.step(encoder, batch, lambda loss, sync=True: (loss / 2).backward())
    expected = list(gradients(encoder).values())
    order = [p.ndim > 1 for p in encoder.parameters()]
    expected = [g for g, matrix in zip(expected, order, strict=True) if matrix] + [
        g for g, matrix in zip(expected, order, strict=True) if not matrix
    ]
    encoder.zero_grad(set_to_none=True)
    fit(encoder, objective, batches, None, training, run_folder(tmp_path), Accelerator(cpu=True))
    for got, wanted in zip(spy[0], expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-9)


def test_gradients_are_averaged_over_processes_once_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []

    def average(parameters: Iterable[nn.Parameter]) -> None:
        norms.append(float(torch.cat([p.grad.flatten() for p in parameters]).norm()))

    monkeypatch.setattr("harness.training.placement.average_gradients", average)
    run_fit(tmp_path, line(), steps=3, accumulate=2, batches=LineBatches(micro=2))
    assert norms == pytest.approx([entry["gradient_norm"] for entry in read_log(tmp_path)])


def test_each_step_draws_its_own_random_numbers_and_draws_them_again(tmp_path: Path) -> None:
    drawn: list[float] = []

    class Drawing(Squares):
        def step(self, model: nn.Module, batch: Any, backward: Any) -> dict[str, float]:
            drawn.append(float(torch.rand(())))
            return super().step(model, batch, backward)

    for folder in ("once", "again"):
        run_fit(tmp_path / folder, line(), objective=Drawing(), accumulate=2, batches=LineBatches(micro=2))
        torch.rand(3)
    assert len(drawn) == 24 and drawn[:12] == drawn[12:] and len(set(drawn)) == 12


def test_gradients_are_clipped_to_the_norm_and_the_true_norm_is_logged(tmp_path: Path, spy: list[list[Tensor]]) -> None:
    run_fit(tmp_path, line(), steps=2, max_grad_norm=0.25)
    model = line()
    Squares.loss(model, LineBatches()(0)[0]).backward()
    true_norm = float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm())
    assert true_norm > 1
    assert read_log(tmp_path)[0]["gradient_norm"] == pytest.approx(true_norm, rel=1e-5)
    clipped = torch.cat([gradient.flatten() for gradient in spy[0]])
    assert float(clipped.norm()) == pytest.approx(0.25, rel=1e-4)
    expected = torch.cat([p.grad.flatten() for p in model.parameters()]) * 0.25 / true_norm
    torch.testing.assert_close(clipped, expected, rtol=1e-4, atol=1e-6)


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    model = line()
    model.bias.requires_grad_(False)
    before = weights(model)
    run_fit(tmp_path, model, evaluate=scripted([1.0, 2.0]), evaluate_every=3)
    assert model.bias.equal(before["bias"]) and not model.weight.equal(before["weight"])
    assert not list(tmp_path.glob("**/*nonfinite*"))


# ------------------------------------------------------------------------------------------------- not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("micro", [1, 2])
def test_a_loss_that_is_not_finite_names_its_batch(tmp_path: Path, value: float, micro: int) -> None:
    model, batches = line(), LineBatches(micro=micro, poison=3, value=value)
    with pytest.raises(RunError, match="toy: loss is not finite at step 4") as error:
        run_fit(tmp_path, model, batches=batches, accumulate=micro, checkpoint_every=2)
    path = tmp_path / "logs" / "toy-nonfinite.json"
    report = json.loads(path.read_text())
    first = 8 * (micro - 1)  # the NaN is in the last micro-batch
    assert report == {"step": 4, "not_finite": ["loss", "double"], "ids": [f"point 3-{first + n}" for n in range(8)]}
    assert f"point 3-{first}, point 3-{first + 1}" in str(error.value) and str(path) in str(error.value)
    assert re.search(r"next: .*toy.training.learning_rate.*precision: fp32", str(error.value))
    assert [entry["step"] for entry in read_log(tmp_path)] == [1, 2, 3]
    assert all(value.isfinite().all() for value in weights(model).values()), "the step was taken"
    assert (tmp_path / "checkpoints" / "step-00000002").is_dir()


def test_a_gradient_that_is_not_finite_names_all_micro_batches(tmp_path: Path) -> None:
    class Steep(Squares):
        @staticmethod
        def loss(model: nn.Module, batch: Any) -> Tensor:  # finite, with an infinite slope
            return (model(batch["points_BD"])[:, 0] * 0).abs().sqrt().mean()

    with pytest.raises(RunError, match="gradient norm is not finite at step 1"):
        run_fit(tmp_path, line(), objective=Steep(), batches=LineBatches(micro=2), accumulate=2)
    report = json.loads((tmp_path / "logs" / "toy-nonfinite.json").read_text())
    assert report["not_finite"] == ["gradient norm"] and len(report["ids"]) == 16


# -------------------------------------------------------------------------------------------------- evaluation


def test_evaluation_comes_at_intervals_and_at_the_end(tmp_path: Path) -> None:
    model = line()
    evaluate = Snapshots(model, [0.1, 0.2, 0.3, 0.4])
    fitted = run_fit(tmp_path, model, evaluate=evaluate, steps=7, evaluate_every=2)
    curve = [{"step": step, "score": score, "nDCG@10": 0.5} for step, score in ((2, 0.1), (4, 0.2), (6, 0.3), (7, 0.4))]
    assert fitted.curve == curve
    assert [entry for entry in read_log(tmp_path) if "score" in entry] == curve
    assert (fitted.step, fitted.score) == (7, 0.4)


def test_without_an_interval_it_comes_at_the_end_only(tmp_path: Path) -> None:
    fitted = run_fit(tmp_path, line(), evaluate=scripted([0.1]))
    assert [entry["step"] for entry in fitted.curve] == [6]


def test_an_evaluation_is_not_repeated_where_the_end_is_an_interval(tmp_path: Path) -> None:
    fitted = run_fit(tmp_path, line(), evaluate=scripted([0.1, 0.2, 0.3]), evaluate_every=2)
    assert [entry["step"] for entry in fitted.curve] == [2, 4, 6]


@pytest.mark.parametrize(
    ("keep", "scores", "step"),
    [
        ("best", [0.1, 0.9, 0.3, 0.2], 4),
        ("best", [0.9, 0.9, 0.3, 0.2], 2),  # the first of equals
        ("best", [0.1, 0.2, 0.3, 0.4], 7),
        ("last", [0.1, 0.9, 0.3, 0.2], 7),
    ],
)
def test_the_best_or_the_last_weights_are_kept(tmp_path: Path, keep: str, scores: list[float], step: int) -> None:
    model = line()
    evaluate = Snapshots(model, scores)
    fitted = run_fit(tmp_path, model, evaluate=evaluate, steps=7, evaluate_every=2, keep=keep)
    at = [2, 4, 6, 7].index(step)
    assert (fitted.step, fitted.score) == (step, scores[at])
    assert equal(weights(model), evaluate.seen[at])
    assert not equal(evaluate.seen[0], evaluate.seen[1])
    assert (tmp_path / "checkpoints" / "best").exists() == (keep == "best"), "what is not kept is not written"


def test_the_model_goes_on_training_after_an_evaluation(tmp_path: Path) -> None:
    modes: list[bool] = []

    class Watching(Squares):
        def step(self, model: nn.Module, batch: Any, backward: Any) -> dict[str, float]:
            modes.append(model.training)
            return super().step(model, batch, backward)

    run_fit(tmp_path, line(), evaluate=scripted([0.1] * 6), evaluate_every=1, objective=Watching())
    assert modes == [True] * 6


def test_bf16_is_autocast_over_fp32_weights(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Watching(Squares):
        def step(self, model: nn.Module, batch: Any, backward: Any) -> dict[str, float]:
            seen.append((torch.is_autocast_enabled("cpu"), model(batch["points_BD"]).dtype, model.weight.dtype))
            return super().step(model, batch, backward)

    for precision in ("bf16", "fp32"):
        run_fit(tmp_path / precision, line(), objective=Watching(), precision=precision, steps=1)
    assert seen == [(True, torch.bfloat16, torch.float32), (False, torch.float32, torch.float32)]
