"""Which placement a training gets: what the launcher's accelerate file asks for, or a refusal that says why."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from torch import nn

from harness.recipe import impossible_with
from harness.runtime.distributed import world_size
from harness.runtime.errors import InputError, Problem
from harness.training.placement import MakeOptimizer, Placement, Replicated, Sharded
from harness.training.zero import Zero, zero_problems, zero_stage

if TYPE_CHECKING:
    from accelerate import Accelerator


def place(
    model: nn.Module, make_optimizer: MakeOptimizer, accelerator: Accelerator, *, max_norm: float, bf16: bool
) -> Placement:
    """Spread the model's parameters over the processes, and move it to the device.

    Args:
        make_optimizer: called when the parameters have taken their places.
        max_norm: what gradients are going to be clipped to.
        bf16: whether the forward pass runs under bfloat16 autocast.

    Raises:
        InputError: the accelerate file asks for something that this trainer does not do.
    """
    _require_supported(accelerator)
    if world_size() > 1 and _wants("FSDP"):
        from accelerate.utils import FullyShardedDataParallelPlugin

        reshard = bool(FullyShardedDataParallelPlugin().reshard_after_forward)
        return Sharded(model, make_optimizer, accelerator.device, reshard=reshard, bf16=bf16)
    model.to(accelerator.device)
    if world_size() > 1 and _wants("DEEPSPEED"):
        return Zero(model, make_optimizer, stage=zero_stage(), max_norm=max_norm, bf16=bf16)
    return Replicated(model, make_optimizer)


def require_possible(*, cached: bool, learned_temperature: bool, adapters: bool = False) -> None:
    """Stop where the accelerate file's strategy can't do what the recipe wants. ``check`` has said so before.

    Raises:
        InputError: the reason, and what to do.
    """
    kind = next((strategy for strategy in ("FSDP", "DEEPSPEED") if world_size() > 1 and _wants(strategy)), "")
    found = impossible_with(kind, cached=cached, learned_temperature=learned_temperature, adapters=adapters)
    if found:
        raise InputError([Problem(what, where="distributed_type", got=kind, next=next_) for what, next_ in found])


def _wants(strategy: str) -> bool:
    # What accelerate's launcher sets for a `distributed_type`. On a CPU accelerate itself drops that wish.
    return os.environ.get(f"ACCELERATE_USE_{strategy}", "false").lower() == "true"


def _require_supported(accelerator: Accelerator) -> None:
    problems = []
    if accelerator.mixed_precision != "no":
        problems.append(
            Problem("the recipe sets the precision, not the accelerate file", where="mixed_precision",
                    got=str(accelerator.mixed_precision), allowed="'no'", next="set training.precision in the recipe")
        )  # fmt: skip
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if kind not in ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP", "DEEPSPEED"):
        problems.append(
            Problem("this trainer has no such strategy", where="distributed_type", got=kind,
                    allowed="NO, MULTI_GPU, FSDP, DEEPSPEED", next="take a file of recipes/accelerate/")
        )  # fmt: skip
    if _wants("FSDP"):
        problems += _fsdp_problems()
    if _wants("DEEPSPEED"):
        problems += zero_problems()
    if problems:
        raise InputError(problems)


def _fsdp_problems() -> list[Problem]:
    # The launcher's names, what is done here, and what accelerate or transformers take where nothing is said.
    wanted = {
        "fsdp_version": ("FSDP_VERSION", "2", "1"),
        "fsdp_offload_params": ("FSDP_OFFLOAD_PARAMS", "false", "false"),
        "fsdp_cpu_ram_efficient_loading": ("FSDP_CPU_RAM_EFFICIENT_LOADING", "false", "false"),
        "fsdp_activation_checkpointing": ("FSDP_ACTIVATION_CHECKPOINTING", "false", "false"),
    }
    found = {key: os.environ.get(name, usual).lower() for key, (name, _, usual) in wanted.items()}
    return [
        Problem("this trainer does not do that", where=f"fsdp_config.{key}", got=got, allowed=wanted[key][1],
                next="compare with recipes/accelerate/fsdp2.yaml")
        for key, got in found.items()
        if got != wanted[key][1]
    ]  # fmt: skip
