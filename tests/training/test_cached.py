"""Cached gradients against direct ones: every loss, every parameter, with and without dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from builders.training import (
    ENCODERS,
    LOSSES,
    Toy,
    graded,
    one_step,
    stage_parts,
    stage_settings,
    toy_training,
)
from torch import Tensor

from harness.encoders.encoder import Encoder
from harness.training.objectives import LOG_TIMES
from harness.training.stages import trained_temperature

CHUNKS = toy_training(batch_size=12, chunks=3)
CACHED = toy_training(batch_size=12, chunks=3, cached=True)


def gradients_of(
    toy: Toy, training: Any, stage: str, kind: str = "bert", loss: str = "info_nce", step: int = 0, bf16: bool = False
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """What the stage logs of one batch, and every gradient, the learned temperature's included."""
    encoder = toy.encoder(kind)
    objective, batches = stage_parts(stage, toy, encoder, training, loss=loss)
    encoder.train()
    torch.manual_seed(1)
    carried = trained_temperature(encoder, stage_settings("teacher", training, loss))
    with carried, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return one_step(objective, encoder, batches(step)[0])


def assert_equal(ours: Any, theirs: Any, share: float) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=share) and ours[1].keys() == theirs[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in theirs[1].values())
    assert largest > 0
    for name, gradient in theirs[1].items():
        size = max(float(gradient.abs().max()), 1e-2 * largest)
        assert float((ours[1][name] - gradient).abs().max()) <= share * size, name


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_has_the_gradients_of_the_direct_path(toy: Toy, loss: str, kind: str) -> None:
    toy = graded(toy)
    direct = gradients_of(toy, CHUNKS, "teacher", kind, loss)
    assert_equal(gradients_of(toy, CACHED, "teacher", kind, loss), direct, 5e-6)
    learned = bool(LOSSES[loss].get("learned_temperature"))
    assert (LOG_TIMES in direct[1]) == ("temperature" in direct[0]) == learned
    assert not learned or float(direct[1][LOG_TIMES].abs()) > 1e-4


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("stage", ["align", "refine"])
def test_so_have_the_other_stages(toy: Toy, stage: str, kind: str) -> None:
    direct = gradients_of(toy, CHUNKS, stage, kind)
    assert_equal(gradients_of(toy, CACHED, stage, kind), direct, 5e-6)


@pytest.mark.parametrize("kind", ENCODERS)
def test_dropout_is_the_same_both_times(toy: Toy, kind: str) -> None:
    without = gradients_of(toy, CHUNKS, "teacher", kind)
    direct, cached = (
        gradients_of(toy, settings.model_copy(update={"dropout": 0.2}), "teacher", kind)
        for settings in (CHUNKS, CACHED)
    )
    assert abs(direct[0]["loss"] - without[0]["loss"]) > 1e-3
    assert_equal(cached, direct, 5e-6)


def test_random_numbers_go_on_as_after_a_direct_step(toy: Toy) -> None:
    drawn = []
    for settings in (CHUNKS, CACHED):
        gradients_of(toy, settings.model_copy(update={"dropout": 0.2}), "teacher")
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[1]


def test_under_autocast_every_parameter_has_its_gradient(toy: Toy) -> None:
    """Weights in bf16 that autocast kept from the pass without a graph would send nothing back."""
    direct = gradients_of(toy, CHUNKS, "teacher", bf16=True)
    cached = gradients_of(toy, CACHED, "teacher", bf16=True)
    assert cached[1].keys() == dict(toy.encoder().named_parameters()).keys()
    assert_equal(cached, direct, 2e-2)


def test_chunks_hold_at_most_so_many_tokens(toy: Toy) -> None:
    direct = gradients_of(toy, CHUNKS, "teacher")
    training = CACHED.model_copy(update={"chunk_tokens": 30})
    (batch,) = stage_parts("teacher", toy, toy.encoder(), training)[1](0)
    sizes = [chunk["input_ids"].numel() for chunk in batch["chunks"]]
    assert len(sizes) > 4 and max(sizes) <= 30
    assert_equal(gradients_of(toy, training, "teacher"), direct, 1e-5)


def test_one_chunk_at_a_time_has_a_graph_and_the_last_alone_is_synchronised(toy: Toy) -> None:
    encoder = toy.encoder()
    objective, batches = stage_parts("teacher", toy, encoder, CACHED)
    seen: list[tuple[str, bool]] = []
    forward = encoder.forward

    def watched(*args: Any, **options: Any) -> Tensor:
        assert len(options["chunks"]) == 1
        seen.append(("forward", torch.is_grad_enabled()))
        return forward(*args, **options)

    def backward(loss: Tensor, sync: bool = True) -> None:
        loss.backward()
        seen.append(("backward", sync))

    encoder.forward = watched  # type: ignore[method-assign]
    objective.step(encoder, batches(0)[0], backward)
    again = [("forward", True), ("backward", False)]
    assert seen == [("forward", False)] * 3 + again * 2 + [("forward", True), ("backward", True)]


@pytest.mark.parametrize("cached", [False, True])
def test_a_backward_that_scales_scales_everything(toy: Toy, cached: bool) -> None:
    """``accumulate`` divides every loss: the temperature's gradient, too."""
    encoder = toy.encoder()
    training = CACHED if cached else CHUNKS
    objective, batches = stage_parts("teacher", toy, encoder, training, loss="towers")
    found: list[dict[str, Tensor]] = []
    with trained_temperature(encoder, stage_settings("teacher", training, "towers")):
        half: Callable[..., None] = lambda loss, sync=True: (loss / 2).backward()  # noqa: E731
        whole: Callable[..., None] = lambda loss, sync=True: loss.backward()  # noqa: E731
        for backward in (whole, half):
            encoder.zero_grad(set_to_none=True)
            objective.step(encoder, batches(0)[0], backward)
            found.append({name: p.grad.clone() for name, p in encoder.named_parameters()})
    assert LOG_TIMES in found[0] and isinstance(encoder, Encoder) and not hasattr(encoder, LOG_TIMES)
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient / 2, rtol=1e-5, atol=1e-7)
