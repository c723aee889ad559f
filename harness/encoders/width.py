"""Cutting a student's feed-forward networks to fewer hidden units, those that matter least on calibration queries.

A unit is scored as HARNESS-LM does: by the mean of what it hands on, over the tokens of calibration texts, in absolute
value. In a gated network (Qwen, Llama) that is |act(gate) x up|, in a plain one (BERT) |act(intermediate)|: in both
what enters the linear map out of the network, and so the score is measured there.

Axes: B texts, L tokens, F hidden units of a network, K those that are kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.data.collator import Collator
from harness.encoders.encoder import Encoder
from harness.encoders.surgery import find_layers
from harness.runtime.errors import InputError, Problem
from harness.runtime.process import progress

_BATCH_TOKENS = 4_096
# Maps into a layer's network (a fused one gives a multiple of F), the map out of it, and the config's key for F.
_NETWORKS = (
    (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj", "intermediate_size"),  # Qwen, Llama, Mistral
    (("intermediate.dense",), "output.dense", "intermediate_size"),  # BERT, XLM-R, MPNet
    (("ffn.lin1",), "ffn.lin2", "hidden_dim"),  # DistilBERT
    (("mlp.Wi",), "mlp.Wo", "intermediate_size"),  # ModernBERT
)


@dataclass(frozen=True)
class _Networks:
    """Where the feed-forward networks of all layers are: ``layers``, and within each the names of its maps."""

    layers: Sequence[nn.Module]
    into: Sequence[str]
    out: str
    key: str
    width: int


def cut_width(encoder: Encoder, width: int, texts: Sequence[str]) -> None:
    """Keep in every layer the ``width`` units with the highest mean activation, in place and in their order.

    The saved folder reopens to the same vectors with stock libraries. To be called after layers are cut: then a unit is
    judged on what reaches it in the student.

    Args:
        texts: calibration queries without prompts; the query prompt is put before them.

    Raises:
        InputError: the architecture is not known, it has fewer units, or there are no texts.
    """
    networks = _find_networks(encoder.backbone)
    if width > networks.width:
        raise InputError(Problem("the model has fewer feed-forward units", where="student.feed_forward.width",
                                 got=str(width), allowed=f"1 to {networks.width}"))
    if not texts:
        raise InputError(Problem("there is no text to measure feed-forward units on", where="student.feed_forward",
                                 next="give training queries, documents or data.unlabelled, or remove it"))
    if width == networks.width:
        return
    keep_units(encoder, [highest(score_F, width) for score_F in _scores(encoder, networks, texts)])


def keep_units(encoder: Encoder, kept: Sequence[Tensor]) -> None:
    """Keep these units, equally many in every layer, in place: kept_K of each, positions in rising order.

    Raises:
        InputError: the architecture is not known.
    """
    networks = _find_networks(encoder.backbone)
    assert len({len(kept_K) for kept_K in kept}) == 1, "a stock config has one width for all layers"
    for layer, kept_K in zip(networks.layers, kept, strict=True):
        _keep_units(layer, networks, kept_K)
    setattr(encoder.backbone.config, networks.key, len(kept[0]))


def unit_scores(encoder: Encoder, texts: Sequence[str]) -> list[Tensor]:
    """score_F of every layer, float64: mean absolute activation over all tokens of the texts, padding left out.

    Raises:
        InputError: the architecture is not known.
    """
    return _scores(encoder, _find_networks(encoder.backbone), texts)


def highest(score_F: Tensor, width: int) -> Tensor:
    """kept_K: positions of the highest scores in rising order; of equal scores the first ones."""
    return torch.sort(torch.argsort(score_F, descending=True, stable=True)[:width]).values


@torch.inference_mode()
def _scores(encoder: Encoder, networks: _Networks, texts: Sequence[str]) -> list[Tensor]:
    totals = [torch.zeros(networks.width, dtype=torch.float64) for _ in networks.layers]
    count = 0
    prompt, longest = encoder.prompts["query"], encoder.max_length
    collate = Collator(encoder.tokenizer, prompt=prompt, max_length=longest, chunk_tokens=_BATCH_TOKENS)
    with _evaluating(encoder):
        for batch in progress(collate(texts).chunks, what="calibration", unit="batch"):
            batch = {name: tensor.to(encoder.device) for name, tensor in batch.items()}
            with _adding(totals, networks, batch["attention_mask"].bool()):
                encoder.backbone(**batch)
            count += int(batch["attention_mask"].sum())
    return [total_F / count for total_F in totals]


@contextlib.contextmanager
def _evaluating(encoder: Encoder) -> Iterator[None]:
    training = encoder.training
    encoder.eval()
    try:
        yield
    finally:
        encoder.train(training)


@contextlib.contextmanager
def _adding(totals: list[Tensor], networks: _Networks, mask_BL: Tensor) -> Iterator[None]:
    """Within, every layer's forward pass adds what its units hand on at the tokens of ``mask_BL`` to its total."""

    def hook(total_F: Tensor) -> Any:
        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            unit_BLF = inputs[0]
            assert unit_BLF.shape[:2] == mask_BL.shape, (tuple(unit_BLF.shape), tuple(mask_BL.shape))
            total_F.add_(unit_BLF[mask_BL].abs().sum(dim=0, dtype=torch.float64).cpu())

        return add

    maps = [layer.get_submodule(networks.out) for layer in networks.layers]
    handles = [module.register_forward_pre_hook(hook(total)) for module, total in zip(maps, totals, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keep_units(layer: nn.Module, networks: _Networks, kept_K: Tensor) -> None:
    for name in networks.into:
        module = layer.get_submodule(name)
        assert isinstance(module, nn.Linear)
        parts = module.out_features // networks.width
        rows = torch.cat([kept_K + part * networks.width for part in range(parts)]).to(module.weight.device)
        bias = None if module.bias is None else module.bias[rows]
        _replace(layer, name, module.weight[rows], bias)
    module = layer.get_submodule(networks.out)
    assert isinstance(module, nn.Linear)
    _replace(layer, networks.out, module.weight[:, kept_K.to(module.weight.device)], module.bias)
    parent: Any = layer.get_submodule(networks.out.rpartition(".")[0])
    if isinstance(getattr(parent, "intermediate_size", None), int):
        parent.intermediate_size = len(kept_K)


def _replace(layer: nn.Module, name: str, weight: Tensor, bias: Tensor | None) -> None:
    """Put a linear map of these weights, in their type, where another one is."""
    new = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    new.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        new.bias = nn.Parameter(bias.detach().clone())
    parent, _, attribute = name.rpartition(".")
    setattr(layer.get_submodule(parent), attribute, new)


def _find_networks(backbone: Any) -> _Networks:
    """The networks of all layers, which must be alike and as wide as the config says.

    Raises:
        InputError: they are not.
    """
    where = "student.feed_forward"
    _, layers = find_layers(backbone, where)
    for into, out, key in _NETWORKS:
        width = getattr(backbone.config, key, None)
        if width and all(_fits(layer, into, out, width) for layer in layers):
            return _Networks(list(layers), into, out, key, width)
    raise InputError(Problem("feed-forward networks of this architecture can't be cut", where=where,
                             got=str(backbone.config.model_type), next=f"leave out {where}",
                             allowed="BERT, XLM-R, DistilBERT, ModernBERT, Qwen, Llama and their like"))


def _fits(layer: nn.Module, into: Sequence[str], out: str, width: int) -> bool:
    modules = dict(layer.named_modules())
    first, last = [modules.get(name) for name in into], modules.get(out)
    if not isinstance(last, nn.Linear) or last.in_features != width:
        return False
    return all(isinstance(module, nn.Linear) and module.out_features % width == 0 for module in first)
