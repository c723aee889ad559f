"""Cutting a student out of a larger encoder: fewer layers, another dimension.

Axes: D dimensions before, E dimensions after a projection.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import Tensor, nn

from harness.encoders.encoder import Encoder
from harness.encoders.layers import select_layers
from harness.runtime.errors import InputError, Problem

__all__ = ["add_projection", "cut_layers", "find_layers", "select_layers", "truncate"]

# Where a backbone keeps its layers: BERT and XLM-R; DistilBERT; Qwen, Llama, ModernBERT and their like.
_LAYER_LISTS = ("encoder.layer", "transformer.layer", "layers", "encoder.layers")


def cut_layers(encoder: Encoder, kept: list[int]) -> None:
    """Keep only the layers at these positions (from 0), in place; the saved folder reopens to the same vectors.

    Cuts per-layer lists in the config (``layer_types``) along and renumbers ``layer_idx``.

    Raises:
        InputError: the architecture's layers are not found, or the cut model has no stock form (ModernBERT's first
            layer differs from the others, so it has to stay the first) or none that this transformers can open.
    """
    backbone = encoder.backbone
    name, layers = find_layers(backbone, "student.layers")
    assert kept and sorted(set(kept)) == kept and kept[0] >= 0 and kept[-1] < len(layers), kept
    config = copy.deepcopy(backbone.config)
    _cut_config(config, kept)
    _require_readable(config)
    _require_stock_form(backbone, config, name, kept)
    remaining = nn.ModuleList(layers[position] for position in kept)
    for index, layer in enumerate(remaining):
        for module in layer.modules():
            if getattr(module, "layer_idx", None) is not None:
                setattr(module, "layer_idx", index)  # noqa: B010 - torch types attributes as modules
    parent, _, attribute = name.rpartition(".")
    setattr(backbone.get_submodule(parent), attribute, remaining)
    _cut_config(backbone.config, kept)


def add_projection(encoder: Encoder, weight_DE: Tensor, bias_D: Tensor | None = None) -> None:
    """Append a linear map to the encoder, in place; an existing projection and the new one become one.

    Args:
        encoder: gives vectors of E dimensions before normalisation.
        weight_DE: from E to D dimensions (``nn.Linear``'s layout).
        bias_D: added after.

    Raises:
        InputError: the encoder ends in a tanh, which no further linear map can follow in a stock folder.
    """
    weight_DE, bias_D = weight_DE.detach(), None if bias_D is None else bias_D.detach()
    assert weight_DE.shape[1] == encoder.dimension, (tuple(weight_DE.shape), encoder.dimension)
    if encoder.tanh:
        raise InputError(Problem("a projection can't follow the model's tanh Dense module", where="the model's chain",
                                 next="choose a model whose last Dense module has no activation"))
    if encoder.projection is not None:
        weight_DE, bias_D = compose(encoder.projection, weight_DE, bias_D)
    encoder.projection = linear(weight_DE, bias_D).to(encoder.device)


def compose(first: nn.Linear, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of ``first`` followed by another linear map, computed in float64."""
    weight64 = weight.to(first.weight).double()
    total = None if bias is None else bias.to(first.weight).double()
    if first.bias is not None:
        moved = weight64 @ first.bias.detach().double()
        total = moved if total is None else total + moved
    return (weight64 @ first.weight.detach().double()).float(), None if total is None else total.float()


def linear(weight_DE: Tensor, bias_D: Tensor | None) -> nn.Linear:
    """A float32 ``nn.Linear`` with these weights."""
    module = nn.Linear(weight_DE.shape[1], weight_DE.shape[0], bias=bias_D is not None, device="meta")
    module.weight = nn.Parameter(weight_DE.detach().float().clone())
    if bias_D is not None:
        module.bias = nn.Parameter(bias_D.detach().float().clone())
    return module


def truncate(encoder: Encoder, dimension: int) -> None:
    """Keep the first dimensions of a Matryoshka model, in place, by a stock Dense that every reader understands.

    Raises:
        InputError: the model has fewer dimensions.
    """
    if dimension > encoder.dimension:
        raise InputError(Problem("the model has fewer dimensions", where="dimension", got=str(dimension),
                                 allowed=f"1 to {encoder.dimension}"))
    if dimension == encoder.dimension:
        return
    if encoder.tanh and encoder.projection is not None:  # rows commute with an elementwise tanh
        first = encoder.projection
        encoder.projection = linear(first.weight[:dimension], None if first.bias is None else first.bias[:dimension])
    else:
        add_projection(encoder, torch.eye(dimension, encoder.dimension))


def find_layers(backbone: nn.Module, where: str) -> tuple[str, nn.ModuleList]:
    """The name and the list of a backbone's layers; ``where`` names the setting that asks for them.

    Raises:
        InputError: this architecture's are not found.
    """
    config: Any = backbone.config
    for name in _LAYER_LISTS:
        try:
            layers = backbone.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(layers, nn.ModuleList) and len(layers) == config.num_hidden_layers:
            return name, layers
    raise InputError(Problem("layers of this architecture can't be cut", where=where,
                             got=str(config.model_type), next=f"leave out {where}",
                             allowed="BERT, XLM-R, DistilBERT, ModernBERT, Qwen, Llama and their like"))


def _cut_config(config: Any, kept: list[int]) -> None:
    count = config.num_hidden_layers
    per_layer = {
        key: value
        for key, value in config.to_dict().items()
        if "layer" in key and isinstance(value, (list, tuple)) and len(value) == count
    }
    config.num_hidden_layers = len(kept)
    for key, value in per_layer.items():
        setattr(config, key, [value[position] for position in kept])


def _require_readable(config: Any) -> None:
    """Read the cut config back as a saved folder's is read. transformers before 5.17 can't if a ModernBERT keeps
    layers of one kind of attention only."""
    try:
        type(config).from_dict(config.to_dict())
    except Exception as error:  # transformers raises many kinds for a config that it can't read
        raise InputError(Problem("this version of transformers can't open the cut model", where="student.layers",
                                 got=(str(error) or type(error).__name__).splitlines()[0],
                                 next="keep layers of each kind of attention, or take a newer transformers")) from error


def _require_stock_form(backbone: nn.Module, config: Any, name: str, kept: list[int]) -> None:
    """Compare weight names and shapes after the cut with those of a fresh model of the cut config (on no memory)."""
    with torch.device("meta"):
        stock = type(backbone)(config).state_dict()
    pattern = re.compile(re.escape(name) + r"\.(\d+)\.")
    after = {}
    for key, tensor in backbone.state_dict().items():
        match = pattern.match(key)
        if match and int(match[1]) not in kept:
            continue
        new = pattern.sub(f"{name}.{kept.index(int(match[1]))}.", key, count=1) if match else key
        after[new] = tensor.shape
    wanted = {key: tensor.shape for key, tensor in stock.items() if not key.startswith("pooler.")}
    odd = sorted(key for key in after.keys() | wanted.keys() if after.get(key) != wanted.get(key))
    if odd:
        raise InputError(Problem("the cut model has no stock form: its layers are not alike", where="student.layers",
                                 got=f"{len(odd)} weights without a place, such as {odd[0]}",
                                 next="keep layer 1" if kept[0] else "choose other layers"))
