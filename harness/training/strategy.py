"""Which placement a training gets: what the launcher's accelerate file asks for, or a refusal that says why."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from torch import nn

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
    version, offload = os.environ.get("FSDP_VERSION", "1"), os.environ.get("FSDP_OFFLOAD_PARAMS", "false")
    problems = []
    if version != "2":
        problems.append(
            Problem("only version 2 of FSDP is used here, and accelerate's default is 1", allowed="2",
                    where="fsdp_config.fsdp_version", got=version, next="take recipes/accelerate/fsdp2.yaml")
        )  # fmt: skip
    if offload.lower() != "false":
        problems.append(
            Problem("parameters can't be kept off the device", where="fsdp_config.fsdp_offload_params", got=offload,
                    allowed="false", next="use more processes, or a smaller batch with training.accumulate")
        )  # fmt: skip
    return problems
