"""The estimates of `check` against what small models really take, and parameter counts of large ones.

Measured: bytes that autograd keeps (``saved_tensors_hooks``), bytes of gradients and moments after a step, and files
that a run writes. Axes: B texts, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders.measured import LiveBytes
from builders.tiny_models import write_tiny_bert, write_tiny_qwen3
from torch import Tensor

from harness.encoders.encoder import Encoder
from harness.encoders.folder import open_encoder, save_encoder
from harness.encoders.lora import add_adapter
from harness.encoders.targets import adapter_size
from harness.pipeline.activations import activation_bytes
from harness.pipeline.sizes import Model
from harness.recipe import LoraSettings
from harness.training import stages
from harness.training.objectives import Alignment

TEXTS = ["a cat and a dog in the house by the sea", "the sun and the moon over a green hill"]
WRITE: dict[str, Callable[..., Path]] = {"bert": write_tiny_bert, "qwen3": write_tiny_qwen3}
LORA = LoraSettings(rank=8)
WITHIN = 0.1  # of what is measured


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    """Models whose sizes stand to each other as in real ones, stored in fp32 and in bf16."""
    root, found = tmp_path_factory.mktemp("estimates"), {}
    for name, write in WRITE.items():
        found[name, False] = write(root / name, texts=TEXTS, hidden=128, layers=4, heads=4, vocab=300)
        encoder = open_encoder(found[name, False])
        encoder.backbone.to(torch.bfloat16)
        save_encoder(encoder, root / f"{name}-bf16")
        found[name, True] = root / f"{name}-bf16"
    return found


def _described(folder: Path, lora: bool) -> Model:
    from harness.pipeline.sizes import describe
    from harness.recipe import EncoderSettings

    model = describe(EncoderSettings(model=str(folder)))
    return replace(model, adapters=adapter_size(folder, LORA), rank=LORA.rank) if lora else model


def _open(folder: Path, *, eager: bool, lora: bool, bf16: bool) -> Encoder:
    resting = torch.bfloat16 if lora and bf16 and folder.name.endswith("bf16") else torch.float32
    encoder = open_encoder(folder, dtype=resting, attention="eager" if eager else "sdpa")
    if lora:
        encoder.requires_grad_(False)
        add_adapter(encoder, LORA, seed=0)
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return encoder.train()


def _chunks(lengths: dict[int, int]) -> list[dict[str, Tensor]]:
    """A padded chunk for every length: tokens -> texts."""
    generator, chunks = torch.Generator().manual_seed(0), []
    for tokens, texts in lengths.items():
        token_BL = torch.randint(5, 20, (texts, tokens), generator=generator)
        mask_BL = torch.ones_like(token_BL)
        mask_BL[0, : tokens // 2] = 0
        chunks.append({"input_ids": token_BL, "attention_mask": mask_BL})
    return chunks


def _kept(encoder: Encoder, lengths: dict[int, int], *, bf16: bool) -> int:
    """Bytes of the storages that autograd keeps of one forward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held: an address is not given out twice
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), hooks:
        vector_BD = encoder(chunks=_chunks(lengths))
    assert vector_BD.requires_grad
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("eager", [False, True], ids=["sdpa", "eager"])
@pytest.mark.parametrize(("bf16", "stored"), [(False, False), (True, False), (True, True)],
                         ids=["fp32", "bf16", "bf16-stored"])  # fmt: skip
@pytest.mark.parametrize("name", WRITE)
def test_activations_are_those_that_autograd_keeps(
    name: str, bf16: bool, stored: bool, eager: bool, lora: bool, folders: dict[tuple[str, bool], Path]
) -> None:
    folder, lengths = folders[name, stored], {48: 16, 24: 32}
    measured = _kept(_open(folder, eager=eager, lora=lora, bf16=bf16), lengths, bf16=bf16)
    model, parts = _described(folder, lora), [(texts, tokens) for tokens, texts in lengths.items()]
    estimated = activation_bytes(model, parts, bf16=bf16, eager=eager)
    assert estimated == pytest.approx(measured, rel=WITHIN), estimated / measured


def _step(encoder: Encoder, chunks: list[dict[str, Tensor]], *, bf16: bool, cached: bool) -> int:
    """The most bytes that live at once in one step of the alignment, beside weights, moments and what goes in."""
    texts = sum(len(chunk["input_ids"]) for chunk in chunks)
    batch = {"chunks": chunks, "restore": torch.arange(texts), "weight_Q": torch.ones(texts),
             "teacher_QD": torch.nn.functional.normalize(torch.ones(texts, encoder.dimension), dim=-1)}  # fmt: skip
    with LiveBytes() as bytes_, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        Alignment(cached=cached).step(encoder, batch, lambda loss, sync=True: loss.backward())
    return bytes_.peak


@pytest.mark.parametrize(("bf16", "lora"), [(False, False), (True, False), (True, True)],
                         ids=["fp32", "bf16", "bf16-lora"])  # fmt: skip
@pytest.mark.parametrize("way", ["direct", "cached", "again", "cached-again"])
@pytest.mark.parametrize("name", WRITE)
def test_a_steps_peak_is_activations_and_gradients(
    name: str, way: str, bf16: bool, lora: bool, folders: dict[tuple[str, bool], Path]
) -> None:
    folder, lengths = folders[name, True], {48: 16, 47: 16, 46: 16, 45: 16}
    encoder = _open(folder, eager=False, lora=lora, bf16=bf16)
    cached, again = way.startswith("cached"), way.endswith("again")
    stages._set_checkpointing(encoder, again)
    measured = _step(encoder, _chunks(lengths), bf16=bf16, cached=cached)
    model = _described(folder, lora)
    parts = [(texts, tokens) for tokens, texts in lengths.items()][: 1 if cached else 4]
    trained = model.adapters or model.parameters
    estimated = activation_bytes(model, parts, bf16=bf16, again=again * len(parts)) + 4 * trained
    assert estimated == pytest.approx(measured, rel=0.25), estimated / measured
