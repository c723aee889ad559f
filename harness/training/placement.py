"""How a model's parameters live over several processes; ``fit`` uses a ``Placement`` and knows no more of it.

``Replicated``: every process holds all of them (one process is the smallest case). ``Sharded``: each holds some rows
of every parameter, gradient and moment, and gathers a block's parameters while it computes with them.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from harness.runtime.distributed import average_gradients, rank, world_size
from harness.runtime.errors import InputError, Problem

if TYPE_CHECKING:
    from accelerate import Accelerator

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
Read = Callable[[str, slice], Tensor]  # rows of a saved tensor, by its name


@dataclass(frozen=True)
class Part:
    """What this process holds of a tensor: ``value`` is its rows from ``start`` on, ``shape`` that of the whole."""

    value: Tensor
    shape: tuple[int, ...]
    start: int = 0


class Placement(Protocol):
    """What ``fit`` and the checkpoints ask of a strategy. Every method is called by all processes together."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Those of the whole trained parameters, by name."""
        ...

    def clear(self) -> None:
        """Forget all gradients."""
        ...

    def backward(self, loss: Tensor, *, sync: bool) -> None:
        """Add the loss's gradients; with ``sync``, the last time of a step, average the sum over processes."""
        ...

    def update(self, rate: float, max_norm: float) -> float:
        """Clip, step, clear; returns the norm of the whole gradient. Where that is not finite no step is taken."""
        ...

    def weights(self) -> dict[str, Part]:
        """What this process is to save of the trained parameters: each row is held by one process."""
        ...

    def moments(self) -> dict[str, Part]:
        """The same of the optimiser's state, named ``exp_avg/PARAMETER``."""
        ...

    def set_weights(self, read: Read) -> None:
        """Put trained parameters back."""
        ...

    def set_moments(self, shapes: Mapping[str, tuple[int, ...]], read: Read) -> None:
        """Put the optimiser's state back; ``shapes`` are those of the whole saved tensors."""
        ...

    def finish(self) -> None:
        """Make the model plain again: its parameters whole on the main process."""
        ...


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def place(model: nn.Module, make_optimizer: MakeOptimizer, accelerator: Accelerator, *, bf16: bool) -> Placement:
    """The placement that the launcher's accelerate file asks for; the model is moved to the device.

    Args:
        make_optimizer: called when the parameters have taken their places.
        bf16: whether the forward pass runs under bfloat16 autocast.

    Raises:
        InputError: the accelerate file asks for something that this trainer does not do.
    """
    _require_supported(accelerator)
    if world_size() > 1 and _wants_sharding():
        return Sharded(model, make_optimizer, accelerator.device, reshard=_reshard(), bf16=bf16)
    model.to(accelerator.device)
    return Replicated(model, make_optimizer)


def _wants_sharding() -> bool:
    # What accelerate's launcher sets for `distributed_type: FSDP`. On a CPU accelerate itself drops that wish.
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _reshard() -> bool:
    from accelerate.utils import FullyShardedDataParallelPlugin

    return bool(FullyShardedDataParallelPlugin().reshard_after_forward)


def _require_supported(accelerator: Accelerator) -> None:
    problems = []
    if accelerator.mixed_precision != "no":
        problems.append(
            Problem(
                "the recipe sets the precision, not the accelerate file", where="mixed_precision",
                got=str(accelerator.mixed_precision), allowed="'no'", next="set training.precision in the recipe",
            )
        )  # fmt: skip
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if kind not in ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP"):
        problems.append(
            Problem(
                "this trainer has no such strategy", where="distributed_type", got=kind,
                allowed="NO, MULTI_GPU, FSDP (fsdp_version 2)", next="take recipes/accelerate/fsdp2.yaml or ddp.yaml",
            )
        )  # fmt: skip
    if _wants_sharding():
        if os.environ.get("FSDP_VERSION", "1") != "2":
            problems.append(
                Problem("only version 2 of FSDP is used here", where="fsdp_config.fsdp_version",
                        got=os.environ.get("FSDP_VERSION", "1, accelerate's default"), allowed="2")
            )  # fmt: skip
        if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
            problems.append(
                Problem("parameters can't be kept off the device", where="fsdp_config.fsdp_offload_params", got="true",
                        allowed="false", next="use more processes, or a smaller batch with training.accumulate")
            )  # fmt: skip
    if problems:
        raise InputError(problems)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


class Replicated:
    """Every process holds everything; one all-reduce per step averages the gradients; the main process saves."""

    def __init__(self, model: nn.Module, make_optimizer: MakeOptimizer) -> None:
        self.parameters = trainable(model)
        self.optimizer = make_optimizer(model)
        self.shapes = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}

    def clear(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor, *, sync: bool) -> None:
        loss.backward()
        if sync:
            average_gradients(self.parameters.values())

    def update(self, rate: float, max_norm: float) -> float:
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), max_norm))
        if torch.isfinite(torch.tensor(norm)):
            _set_rate(self.optimizer, rate)
            self.optimizer.step()
        self.clear()
        return norm

    def weights(self) -> dict[str, Part]:
        if rank():
            return {}
        return {name: Part(parameter.detach(), tuple(parameter.shape)) for name, parameter in self.parameters.items()}

    def moments(self) -> dict[str, Part]:
        if rank():
            return {}
        return {
            f"{key}/{name}": Part(value, tuple(value.shape))
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }

    def set_weights(self, read: Read) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(read(name, slice(None)))

    def set_moments(self, shapes: Mapping[str, tuple[int, ...]], read: Read) -> None:
        for name in shapes:
            key, _, parameter_name = name.partition("/")
            parameter = self.parameters[parameter_name]
            # AdamW keeps its step count on the CPU unless it is capturable; fused kernels want it beside the parameter.
            self.optimizer.state[parameter][key] = read(name, slice(None)).to(parameter.device)

    def finish(self) -> None:
        """Nothing to do."""


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a model: the members of its outermost lists of modules.

    Lists inside a block (the experts of a mixture, say) stay whole with it: each process must use the same ones.
    """
    if isinstance(model, nn.ModuleList):
        return list(model)
    return [block for child in model.children() for block in _blocks(child)]


def _hollow_copy(model: nn.Module) -> nn.Module:
    """The model as it is, with parameters that have shapes and no values."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, memo)


class Sharded:
    """torch's ``fully_shard``: each process holds some rows of every parameter; each block is gathered to be used.

    A block's gradients are reduced once for every forward call of it whose backward pass is the last of a step.
    After ``finish`` the parameters are whole, on the CPU of the main process; in the others they have no values.
    The same model object can't be sharded a second time in one process: open it anew.
    """

    def __init__(
        self, model: nn.Module, make_optimizer: MakeOptimizer, device: torch.device, *, reshard: bool, bf16: bool
    ) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        self.plain = _hollow_copy(model)
        mesh = init_device_mesh(device.type, (world_size(),))
        # Under autocast every block would keep a bf16 copy of its gathered fp32 weights until the backward pass:
        # gathered in bf16 they can be freed. What stands outside the blocks stays fp32; sums over processes, too.
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False) if bf16 else None
        for block in _blocks(model):
            fully_shard(block, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy or MixedPrecisionPolicy())
        self.model: Any = fully_shard(model, mesh=mesh)
        # Once outside inference mode: buffers that an evaluation before the first step made could not be trained with.
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.unshard()
                module.reshard()
        # Kept, since the module shows whole parameters wherever it is gathered just then.
        self.everything: dict[str, Any] = dict(model.named_parameters())
        self.parameters: dict[str, Any] = trainable(model)
        self.optimizer = make_optimizer(model)
        self.shapes = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}

    def clear(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor, *, sync: bool) -> None:
        self.model.set_requires_gradient_sync(sync)
        loss.backward()

    def update(self, rate: float, max_norm: float) -> float:
        norm: Any = torch.nn.utils.clip_grad_norm_(self.parameters.values(), max_norm)
        total = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if torch.isfinite(total):
            _set_rate(self.optimizer, rate)
            self.optimizer.step()
        self.clear()
        return float(total)

    def _rows(self, shape: tuple[int, ...]) -> slice:
        """Our rows of a tensor: as ``torch.chunk`` cuts the first axis."""
        most = -(-shape[0] // world_size())
        return slice(min(rank() * most, shape[0]), min((rank() + 1) * most, shape[0]))

    def _part(self, value: Any) -> Part | None:
        shape = tuple(value.shape)
        if not hasattr(value, "to_local"):  # the optimiser's count of steps, the same everywhere
            return None if rank() else Part(value, shape)
        rows, local = self._rows(shape), value.detach().to_local()
        assert len(local) == rows.stop - rows.start
        return Part(local, shape, rows.start) if len(local) else None

    def weights(self) -> dict[str, Part]:
        parts = {name: self._part(parameter) for name, parameter in self.parameters.items()}
        return {name: part for name, part in parts.items() if part is not None}

    def moments(self) -> dict[str, Part]:
        parts = {
            f"{key}/{name}": self._part(value)
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        return {name: part for name, part in parts.items() if part is not None}

    def set_weights(self, read: Read) -> None:
        self.model.reshard()
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.to_local().copy_(read(name, self._rows(self.shapes[name])))

    def set_moments(self, shapes: Mapping[str, tuple[int, ...]], read: Read) -> None:
        for name, shape in shapes.items():
            key, _, parameter_name = name.partition("/")
            parameter = self.parameters[parameter_name]
            value: Any = torch.zeros_like(parameter, requires_grad=False)
            if shape != self.shapes[parameter_name]:
                value = read(name, slice(None)).to(parameter.device)
            else:
                value.to_local().copy_(read(name, self._rows(shape)))
            self.optimizer.state[parameter][key] = value

    def finish(self) -> None:
        """One parameter after the other becomes whole; then the model takes the place of what it was before."""
        self.model.reshard()
        whole: dict[int, nn.Parameter] = {}
        hollow = dict(self.plain.named_parameters())
        for name, parameter in self.everything.items():
            value = parameter.detach().full_tensor()  # a collective: in every process
            if rank() == 0:
                whole[id(hollow[name])] = nn.Parameter(value.cpu(), requires_grad=parameter.requires_grad)
        for module in self.plain.modules():
            for name, tensor in list(module.named_parameters(recurse=False)):
                module.register_parameter(name, whole.get(id(tensor), tensor))
        self.model.__class__ = type(self.plain)
        vars(self.model).clear()
        vars(self.model).update(vars(self.plain))
