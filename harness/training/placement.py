"""How a model's parameters live over several processes; ``fit`` uses a ``Placement`` and knows no more of it.

``Replicated``: every process holds all of them (one process is the smallest case). ``Sharded``: each holds some rows
of every parameter, gradient and moment, and gathers a block's parameters while it computes with them. Which of them a
training gets is decided in ``strategy``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from harness.runtime.distributed import average_gradients, rank, world_size

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
    def model(self) -> nn.Module:
        """What an objective is to call."""
        ...

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
        """Clip, step, clear; returns the norm of the whole gradient. Where that is not finite the run must stop."""
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


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class Replicated:
    """Every process holds everything; one all-reduce per step averages the gradients; the main process saves."""

    def __init__(self, model: nn.Module, make_optimizer: MakeOptimizer) -> None:
        self.model = model
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
        if math.isfinite(norm):
            set_rate(self.optimizer, rate)
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


def hollow_copy(model: nn.Module) -> nn.Module:
    """The model as it is, with parameters that have shapes and no values."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, memo)


def fill(model: nn.Module, hollow: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Turn ``model``, in place, into what ``hollow_copy`` made of it, on the CPU, with these values."""
    parameters = dict(hollow.named_parameters())
    whole = {
        id(parameters[name]): nn.Parameter(value, parameters[name].requires_grad) for name, value in values.items()
    }
    for module in hollow.modules():
        for name, tensor in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, whole.get(id(tensor), tensor))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.cpu())
    model.__class__ = type(hollow)
    vars(model).clear()
    vars(model).update(vars(hollow))


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

        self.plain = hollow_copy(model)
        mesh = init_device_mesh(device.type, (world_size(),))
        # Under autocast every block would keep a bf16 copy of its gathered fp32 weights until the backward pass:
        # gathered in bf16 they can be freed. What stands outside the blocks stays fp32; sums over processes, too. An
        # evaluation then has to run under autocast as well, as it does: it takes the training's precision.
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
        total: Any = torch.nn.utils.clip_grad_norm_(self.parameters.values(), max_norm)
        norm = float(total.full_tensor())
        if math.isfinite(norm):
            set_rate(self.optimizer, rate)
            self.optimizer.step()
        self.clear()
        return norm

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
        values: dict[str, Tensor] = {}
        for name, parameter in self.everything.items():
            value = parameter.detach().full_tensor()  # a collective, so in every process
            if rank() == 0:
                values[name] = value.cpu()
        fill(self.model, self.plain, values)
