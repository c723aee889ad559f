"""Low-rank adapters (LoRA, Hu et al. 2022) in an encoder's linear layers, and their merge into the weights.

The adapters are peft's layers, put into the backbone in place: the encoder stays what it is for all who use it. Only
``lora_A`` and ``lora_B`` of a layer are trained, its ``base_layer`` is the weight that was there before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from harness.encoders.encoder import Encoder
from harness.encoders.targets import adapted_layers
from harness.recipe import LoraSettings
from harness.runtime.errors import RunError

_NAME = "default"
# Of a vector's length. The sum of base and adapter, in fp32, is the same however it is formed, but for rounding.
_TOLERANCE = 1e-4


def add_adapter(encoder: Encoder, settings: LoraSettings, *, seed: int) -> None:
    """Put adapters that change nothing yet into the backbone, in place; their first weights depend on the seed alone.

    Raises:
        InputError: a target that the model does not have, or ``auto`` and an unknown architecture.
    """
    from peft import LoraConfig, inject_adapter_in_model

    assert not is_adapted(encoder), "merge the adapters before others come"
    linear = [name for name, module in encoder.backbone.named_modules() if isinstance(module, nn.Linear)]
    targets = adapted_layers(encoder.backbone.config.model_type, linear, settings)
    alpha: Any = settings.alpha  # peft calls it an int, and divides it
    config = LoraConfig(
        r=settings.rank, lora_alpha=alpha, lora_dropout=settings.dropout, target_modules=targets, bias="none"
    )
    # On the CPU and in fp32 whatever the base is: the same numbers on every device and in every process.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(config, encoder.backbone)
    for name, parameter in encoder.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.float()


def is_adapter(name: str) -> bool:
    """Whether a parameter or module of an encoder belongs to an adapter, by its name."""
    return ".lora_" in name


def is_adapted(encoder: nn.Module) -> bool:
    """Whether the encoder has adapters."""
    return any(is_adapter(name) for name, _ in encoder.named_parameters())


def _layers(encoder: Encoder) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return ((name, module) for name, module in encoder.backbone.named_modules() if isinstance(module, LoraLayer))


def leave_casting(encoder: Encoder, to_autocast: bool) -> None:
    """Whether what adapters read is left as it is, for autocast to cast.

    Otherwise peft lifts it to their fp32, and autocast lowers it again: the same numbers, and two more copies.
    """
    for _, layer in _layers(encoder):
        layer.cast_input_dtype_enabled = not to_autocast


@torch.no_grad()
def merge_adapter(encoder: Encoder, texts: Sequence[str]) -> None:
    """Add the adapters to the weights, in place: afterwards the encoder is a plain one in fp32, with equal vectors.

    In fp32, since a base in bf16 would round away what is small in an adapter.

    Args:
        texts: at least one; their vectors before and after are compared.

    Raises:
        RunError: no weight changed, or vectors are not those that the adapters gave. The encoder is of no use then.
    """
    encoder.float()
    leave_casting(encoder, to_autocast=False)
    given_ND = encoder.encode(texts, side="query")
    changed = 0
    for name, layer in list(_layers(encoder)):
        base = layer.get_base_layer()
        weight_OI = base.weight + layer.get_delta_weight(_NAME)
        changed += not torch.equal(weight_OI, base.weight)
        base.weight = nn.Parameter(weight_OI)
        parent, _, attribute = name.rpartition(".")
        setattr(encoder.backbone.get_submodule(parent), attribute, base)
    if hasattr(encoder.backbone, "peft_config"):
        del encoder.backbone.peft_config
    if not changed:
        raise RunError(
            "merged adapters left every weight as it was: nothing was learnt, or adapters were lost.\n"
            "    next: raise learning_rate or steps; if the loss fell in the log, report this as a bug"
        )
    merged_ND = encoder.encode(texts, side="query")
    length_N = np.linalg.norm(given_ND, axis=1)
    off = float((np.linalg.norm(merged_ND - given_ND, axis=1) / np.maximum(length_N, 1e-12)).max())
    if not off <= _TOLERANCE:
        raise RunError(
            f"the merged model's vectors are not those of its adapters: off by {off:.1e} of a vector's length, allowed "
            f"{_TOLERANCE:.0e}.\n    next: report this as a bug; the checkpoint holds the adapters"
        )
