"""What is trained, in which number format, and with which activations kept."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from builders.training import ENCODERS, Toy, one_step, pair_collator, run_folder, run_stage, stage_parts, toy_training
from safetensors import safe_open
from torch import Tensor

from harness.encoders.encoder import Encoder
from harness.encoders.lora import add_adapter, is_adapter
from harness.recipe import LoraSettings
from harness.runtime.errors import InputError
from harness.training.fit import Interrupted
from harness.training.placement import trainable
from harness.training.stages import prepare_parameters

LORA = LoraSettings(rank=2)


def adapted(toy: Toy, kind: str, **settings: Any) -> Encoder:
    encoder = toy.encoder(kind)
    add_adapter(encoder, LoraSettings(rank=2, **settings), seed=1)
    return encoder


@pytest.mark.parametrize("kind", ENCODERS)
def test_adapters_are_trained_alone_in_fp32_and_a_base_in_bf16_stays_so(toy: Toy, kind: str) -> None:
    encoder = toy.encoder(kind).to(torch.bfloat16)
    add_adapter(encoder, LORA, seed=1)
    prepare_parameters(encoder, toy_training())
    assert trainable(encoder).keys() == {name for name, _ in encoder.named_parameters() if is_adapter(name)}
    assert {p.dtype for p in trainable(encoder).values()} == {torch.float32}
    assert {p.dtype for name, p in encoder.named_parameters() if not is_adapter(name)} == {torch.bfloat16}


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_frozen_token_table_keeps_its_format_and_all_else_is_trained_in_fp32(toy: Toy, kind: str) -> None:
    encoder = toy.encoder(kind).to(torch.bfloat16)
    prepare_parameters(encoder, toy_training(token_table="frozen"))
    table = encoder.token_table.weight
    assert table.dtype == torch.bfloat16 and not table.requires_grad
    rest = [p for p in encoder.parameters() if p is not table]
    assert all(p.dtype == torch.float32 and p.requires_grad for p in rest)
    objective, batches = stage_parts("align", toy, encoder, toy_training(token_table="frozen"))
    _, found = one_step(objective, encoder, batches(0)[0])
    assert len(found) == len(rest)


def test_an_adapter_has_its_own_dropout(toy: Toy) -> None:
    encoder = adapted(toy, "bert", dropout=0.5)
    prepare_parameters(encoder, toy_training(dropout=0.25))
    kinds = {(is_adapter(name), m.p) for name, m in encoder.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert kinds == {(True, 0.5), (False, 0.25)}


# --------------------------------------------------------------------------------------------- gradient checkpointing


def gradients(toy: Toy, encoder: Encoder, **settings: Any) -> dict[str, Tensor]:
    encoder = copy.deepcopy(encoder).train()
    objective, batches = stage_parts("teacher", toy, encoder, toy_training(chunks=3, **settings))
    torch.manual_seed(4)
    return one_step(objective, encoder, batches(0)[0])[1]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", ENCODERS)
def test_activations_computed_again_give_the_same_gradients(toy: Toy, kind: str, lora: bool, dropout: float) -> None:
    encoder = adapted(toy, kind) if lora else toy.encoder(kind)
    kept = gradients(toy, encoder, dropout=dropout)
    again = gradients(toy, encoder, dropout=dropout, gradient_checkpointing=True)
    assert kept.keys() == again.keys() and any(float(g.abs().max()) > 1e-3 for g in kept.values())
    for name, gradient in kept.items():
        assert float((again[name] - gradient).abs().max()) <= 1e-6 * max(float(gradient.abs().max()), 1e-2), name


@pytest.mark.parametrize("kind", ENCODERS)
def test_layers_really_run_again_and_only_in_training(toy: Toy, kind: str) -> None:
    encoder, calls = toy.encoder(kind).train(), []
    last = (encoder.backbone.layers if kind == "qwen3" else encoder.backbone.encoder.layer)[-1]
    first = next(module for module in last.modules() if isinstance(module, torch.nn.Linear))
    first.register_forward_hook(lambda *_: calls.append(1))
    for wanted, count in ((False, 1), (True, 2), (False, 1)):
        objective, batches = stage_parts("align", toy, encoder, toy_training(chunks=1, gradient_checkpointing=wanted))
        calls.clear()
        one_step(objective, encoder, batches(0)[0])
        assert len(calls) == count
    prepare_parameters(encoder, toy_training(gradient_checkpointing=True))
    calls.clear()
    encoder.encode(["a text"], side="query")
    assert len(calls) == 1


def test_a_model_that_can_not_compute_them_again_is_refused(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = toy.encoder("bert")
    monkeypatch.setattr(type(encoder.backbone), "supports_gradient_checkpointing", False)
    with pytest.raises(InputError, match=r"training\.gradient_checkpointing: this architecture"):
        prepare_parameters(encoder, toy_training(gradient_checkpointing=True))


def test_adapters_under_zero_are_refused(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.training.strategy._wants", lambda strategy: strategy == "DEEPSPEED")
    monkeypatch.setattr("harness.training.strategy.world_size", lambda: 2)
    with pytest.raises(InputError, match=r"adapters in fp32.*\n    got: DEEPSPEED\n    next: take .*fsdp2"):
        run_stage("teacher", toy, adapted(toy, "bert"), toy_training(), run_folder(tmp_path), lambda: {"score": 0.0})


# -------------------------------------------------------------------------------------------------- padding, resuming


@pytest.mark.parametrize("kind", ["bert-bf16-lora", "qwen3-bf16-lora", "qwen3-lora"])
def test_adapters_read_what_autocast_gives_them_with_equal_bits(
    toy: Toy, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """peft would lift it to fp32 first; without that, the same losses and gradients, and no layer lifts anything."""

    def step(left: bool) -> Any:
        encoder = toy.encoder(kind)
        objective, batches = stage_parts("teacher", toy, encoder, toy_training(precision="bf16"))
        layers = [m for m in encoder.modules() if hasattr(m, "cast_input_dtype_enabled")]
        assert layers and not any(layer.cast_input_dtype_enabled for layer in layers)
        for layer in layers:
            layer.cast_input_dtype_enabled = not left
        with torch.autocast("cpu", torch.bfloat16):
            return one_step(objective, encoder.train(), batches(0)[0])

    left, lifted = step(True), step(False)
    assert left[0] == lifted[0]
    for name, gradient in lifted[1].items():
        assert torch.equal(left[1][name], gradient), name


def test_last_tokens_are_the_same_under_padding_on_either_side(toy: Toy) -> None:
    """Qwen3's rows of a batch, of several lengths: vectors when encoding, vectors and gradients in training."""
    texts, vectors, found, widths = toy.texts[1], [], [], []
    for side in ("left", "right"):
        encoder = toy.encoder("qwen3")
        assert encoder.pooling == "lasttoken"
        encoder.tokenizer.padding_side = side
        batch = pair_collator(encoder, 2)(texts[:9], texts[9:20])
        ends = torch.cat([chunk["attention_mask"][:, -1] for chunk in batch.chunks])
        widths.append(int(ends.sum()))
        vector_BD = encoder(chunks=batch.chunks)[batch.restore]
        (vector_BD * torch.arange(1.0, 1 + encoder.dimension)).square().sum().backward()
        vectors.append((encoder.encode(texts, side="query"), vector_BD.detach()))
        found.append({name: p.grad for name, p in encoder.named_parameters()})
    assert widths[0] == 20 > widths[1], "padding stood on the same side twice"
    for one, other in zip(*vectors, strict=True):
        assert float(abs(torch.as_tensor(one) - torch.as_tensor(other)).max()) < 1e-5
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_stopped_training_of_adapters_goes_on_to_equal_bits(toy: Toy, kind: str, tmp_path: Path) -> None:
    training, results = toy_training(steps=4, gradient_checkpointing=True, dropout=0.1), []
    for name, stops in (("whole", []), ("stopped", [False, True])):
        encoder, asked = adapted(toy, kind, dropout=0.1), iter(stops)
        run = run_folder(tmp_path / name, stop=lambda asked=asked: next(asked, False))
        if stops:
            with pytest.raises(Interrupted):
                run_stage("teacher", toy, encoder, training, run, lambda: {"score": 0.0})
            encoder = adapted(toy, kind, dropout=0.1)
        run_stage("teacher", toy, encoder, training, run, lambda: {"score": 0.0})
        results.append(encoder.state_dict())
    base = adapted(toy, kind).state_dict()
    for name, value in results[0].items():
        assert value.equal(results[1][name])
        assert value.equal(base[name]) != is_adapter(name), name
    (path,) = (tmp_path / "whole" / "checkpoints").glob("step-*/model-*.safetensors")
    with safe_open(path, "pt") as stream:
        assert set(stream.keys()) == {name for name in results[0] if is_adapter(name)}
