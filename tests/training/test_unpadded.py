"""Training without padding: losses and gradients of every stage are those of padded batches; refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders.training import ENCODERS, STAGES, Toy, graded, one_step, stage_parts, toy_training
from torch import Tensor

from harness.encoders import unpadded
from harness.runtime.errors import InputError
from harness.training.stages import prepare_parameters

WAYS: dict[str, dict[str, Any]] = {
    "direct": {"chunks": 3},
    "cached": {"chunks": 3, "cached": True},
    "budget": {"chunk_tokens": 40, "cached": True},
    "checkpointing": {"chunks": 2, "gradient_checkpointing": True},
}


def step(toy: Toy, stage: str, kind: str, loss: str = "info_nce", **changes: Any) -> tuple[Any, dict[str, Tensor]]:
    """What the stage logs of one batch, and every gradient; and that its batches are what was asked for."""
    training = toy_training(batch_size=12, **changes)
    encoder = toy.encoder(kind)
    objective, batches = stage_parts(stage, toy, encoder, training, loss=loss)
    batch = batches(0)[0]
    assert all(("attention_mask" in chunk) != encoder.unpadded for chunk in batch["chunks"])
    assert encoder.unpadded == (training.unpadded is True)
    return one_step(objective, encoder.train(), batch)


def assert_equal(ours: Any, theirs: Any) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5) and ours[1].keys() == theirs[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in theirs[1].values())
    assert largest > 0
    for name, gradient in theirs[1].items():
        size = max(float(gradient.abs().max()), 1e-2 * largest)
        assert float((ours[1][name] - gradient).abs().max()) <= 2e-4 * size, name


@pytest.mark.parametrize("kind", [*ENCODERS, "bert-lora", "qwen3-lora"])
@pytest.mark.parametrize("way", WAYS)
def test_the_teacher_s_gradients_are_those_of_padded_batches(toy: Toy, way: str, kind: str) -> None:
    toy = graded(toy)
    padded = step(toy, "teacher", kind, "qwen3", **WAYS[way])
    assert_equal(step(toy, "teacher", kind, "qwen3", **WAYS[way], unpadded=True), padded)


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "teacher"])
def test_so_are_the_other_stages(toy: Toy, stage: str, kind: str) -> None:
    assert_equal(step(toy, stage, kind, chunks=2, unpadded=True), step(toy, stage, kind, chunks=2))


def test_without_padding_a_budget_holds_more_texts(toy: Toy) -> None:
    def chunks(wanted: bool) -> list[Any]:
        training = toy_training(batch_size=24, chunk_tokens=60, cached=True, unpadded=wanted)
        return stage_parts("teacher", toy, toy.encoder("bert"), training)[1](0)[0]["chunks"]

    ours, padded = chunks(True), chunks(False)
    assert len(ours) < len(padded)
    assert all(chunk["input_ids"].numel() <= 60 for chunk in ours)
    assert sum(chunk["input_ids"].numel() for chunk in ours) == sum(int(c["attention_mask"].sum()) for c in padded)


def test_auto_pads_on_a_cpu_and_an_attention_by_name_is_kept(toy: Toy) -> None:
    encoder = toy.encoder("qwen3")
    prepare_parameters(encoder, toy_training())
    assert toy_training().unpadded == "auto" and not encoder.unpadded
    prepare_parameters(encoder, toy_training(unpadded=True))
    assert encoder.unpadded
    prepare_parameters(encoder, toy_training(attention="sdpa"))
    assert not encoder.unpadded


def test_what_can_t_be_is_refused_and_auto_says_why(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, said = toy.encoder("bert"), []
    monkeypatch.setattr(unpadded, "why_padded", lambda *_, **__: "a reason")
    monkeypatch.setattr(unpadded.logger, "info", lambda text, *values: said.append(text % values))
    with pytest.raises(InputError, match="batches need padding: a reason"):
        prepare_parameters(encoder, toy_training(unpadded=True))
    prepare_parameters(encoder, toy_training())
    assert not said, "there is nothing to say on a CPU"
    monkeypatch.setattr(type(encoder), "device", torch.device("cuda", 0))
    prepare_parameters(encoder, toy_training())
    assert not encoder.unpadded and said == ["training.unpadded: batches are padded: a reason"]
    monkeypatch.setattr(unpadded, "why_padded", lambda *_, **__: None)
    prepare_parameters(encoder, toy_training())
    assert encoder.unpadded
