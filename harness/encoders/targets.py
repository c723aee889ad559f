"""Which linear layers adapters go to. Imports no torch: a recipe is checked with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.encoders.chain import HEADS, backbone_files, backbone_shapes, describe_folder, safetensors_shapes
from harness.recipe import LoraSettings
from harness.runtime.errors import InputError, Problem

_BERT = ("query", "key", "value", "dense")
_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# All linear layers of a block, by the config's ``model_type``: ends of their names.
AUTO: dict[str, Sequence[str]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), _BERT),
    "mpnet": ("q", "k", "v", "o", "dense"),
    "distilbert": ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"),
    "modernbert": ("Wqkv", "Wo", "Wi"),
    **dict.fromkeys(("qwen2", "qwen3", "llama", "mistral"), _LLAMA),
}


def adapted_layers(architecture: str, linear: Iterable[str], settings: LoraSettings) -> list[str]:
    """The names of the linear layers that get an adapter.

    Args:
        architecture: the config's ``model_type``.
        linear: names of all linear layers of the backbone.

    Raises:
        InputError: ``auto`` does not know the architecture, or a target is the end of no name; both list the names.
    """
    names = list(linear)
    ends = AUTO.get(architecture) if settings.targets == "auto" else settings.targets
    listed = ", ".join(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "N", name) for name in names))
    if ends is None:
        raise InputError(
            Problem("auto does not know which layers of this architecture adapters go to",
                    where="teacher.lora.targets", got=f"a model of type {architecture!r}",
                    allowed=f"auto for {', '.join(AUTO)}; else ends of these names: {listed}",
                    next="list the targets, such as all linear layers of a block")
        )  # fmt: skip
    matches = {end: [name for name in names if f".{name}".endswith(f".{end}")] for end in ends}
    missing = [end for end, found in matches.items() if not found]
    if missing:
        raise InputError(
            Problem("no linear layer has such a name", where="teacher.lora.targets", got=", ".join(missing),
                    allowed=f"ends of these names: {listed}", next="correct the targets, or leave them out")
        )  # fmt: skip
    chosen = {name for found in matches.values() for name in found}
    return [name for name in names if name in chosen]


def adapter_size(folder: Path, settings: LoraSettings) -> int:
    """How many parameters the adapters of a model folder have, from the headers of its weights (or its config).

    Raises:
        InputError: as ``adapted_layers``.
    """
    shapes: dict[str, list[int]] = {}
    for name, (kind, shape) in backbone_shapes(folder, by_config=True).items():
        layer, matrix = name.removesuffix(".weight"), "F" in kind and len(shape) == 2
        if layer != name and matrix and "embed" not in name and not HEADS & set(name.split(".")[:2]):
            shapes[layer] = shape
    layers = adapted_layers(describe_folder(folder, by_config=True)["architecture"], shapes, settings)
    return sum(settings.rank * sum(shapes[layer]) for layer in layers)


def stored_in_bf16(folder: Path) -> bool:
    """Whether all weights of a model folder are stored in bfloat16."""
    kinds = {kind for file in backbone_files(folder) for kind, _ in safetensors_shapes(file).values()}
    return {kind for kind in kinds if "F" in kind} == {"BF16"}
