"""Seeds, devices, number formats, ranks, and the one differentiable gather."""

from __future__ import annotations

import functools
import json
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from harness.runtime.errors import InputError, Problem, StoppedError
from harness.runtime.process import launched_processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # one process may work for hours while the others wait


def rank() -> int:
    """This process's number, 0 when alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes work together, 1 when alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def join_processes(device: torch.device) -> None:
    """Meet the other processes that the launcher started; nothing to do when alone, or when met already."""
    if launched_processes() > 1 and not dist.is_initialized():
        from accelerate import PartialState

        # gloo waits as long as the main process works; NCCL keeps its own limit, so that a hanging GPU is noticed.
        waits = {"timeout": PATIENCE} if device.type == "cpu" else {}
        PartialState(cpu=device.type == "cpu", **waits)


def leave_processes() -> None:
    """Part from the others in good order, once all have come here."""
    if dist.is_initialized():
        wait_for_all()
        dist.destroy_process_group()
        _control_group.cache_clear()


@functools.cache
def _control_group() -> dist.ProcessGroup:
    """A gloo group beside the training's: on the CPU, and patient."""
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert group is not None
    return group


def wait_for_all() -> None:
    """Go on only when every process has come here."""
    if world_size() > 1:
        dist.barrier(group=_control_group())


def broadcast(value: T) -> T:
    """The main process's ``value`` (plain JSON data) in every process."""
    if world_size() == 1:
        return value
    told = json.dumps(value).encode() if rank() == 0 else b""
    size_1 = torch.tensor([len(told)])
    dist.broadcast(size_1, 0, group=_control_group())
    byte_L = torch.empty(int(size_1), dtype=torch.uint8)
    if told:
        byte_L.copy_(torch.frombuffer(bytearray(told), dtype=torch.uint8))
    dist.broadcast(byte_L, 0, group=_control_group())
    return json.loads(byte_L.numpy().tobytes())


def on_main(work: Callable[[], T]) -> T:
    """Do ``work`` in the main process while the others wait; its result (plain JSON data) reaches all.

    Raises:
        StoppedError: in the others, when the main process raised (and has said why).
    """
    if world_size() == 1:
        return work()
    if rank():
        answer: dict[str, T] = broadcast({})
        if "result" not in answer:
            raise StoppedError("the main process failed")
        return answer["result"]
    told: dict[str, T] = {}
    try:
        told = {"result": work()}
    finally:
        broadcast(told)
    return told["result"]


def share(count: int) -> slice:
    """This process's part of ``count`` rows: consecutive, in rank order, at most one row more than another's."""
    return slice(count * rank() // world_size(), count * (rank() + 1) // world_size())


def join_rows(part: np.ndarray, count: int) -> np.ndarray:
    """All processes' parts, as ``share`` cut them, put together in every process: [part, ...] -> [count, ...]."""
    if world_size() == 1:
        return part
    sizes = [count * (r + 1) // world_size() - count * r // world_size() for r in range(world_size())]
    assert len(part) == sizes[rank()]
    # The same shape everywhere; as bytes, for gloo does not know every type.
    padded = np.zeros((max(sizes), *part.shape[1:]), dtype=part.dtype)
    padded[: len(part)] = part
    byte_L = torch.from_numpy(padded.reshape(-1).view(np.uint8))
    found = [torch.empty_like(byte_L) for _ in sizes]
    dist.all_gather(found, byte_L, group=_control_group())
    blocks = [other.numpy().view(part.dtype).reshape(padded.shape) for other in found]
    return np.concatenate([block[:size] for block, size in zip(blocks, sizes, strict=True)])


def seed_step(seed: int, step: int) -> None:
    """Seed torch for one step: randomness is a function of (seed, step, rank), so a resume needs no RNG state.

    The rank plays a part so that two processes don't draw the same dropout masks for different texts.
    """
    torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + rank()) % 2**63)


def pick_device(wanted: str = "auto") -> torch.device:
    """``auto``: this process's GPU where there is one, else the CPU.

    Raises:
        InputError: a GPU is asked for and none is visible.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise InputError(
            Problem(
                "no GPU is visible",
                where="launch.device",
                got="cuda",
                allowed="auto, cpu",
                next="check CUDA_VISIBLE_DEVICES and the driver, or set launch.device: cpu",
            )
        )
    if wanted == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def has_fast_bf16(device: torch.device) -> bool:
    """Whether matrix products in bf16 are faster than in fp32 there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def use_bf16(precision: str, device: torch.device) -> bool:
    """Resolve the recipe's ``auto | bf16 | fp32``."""
    return precision == "bf16" or (precision == "auto" and has_fast_bf16(device))


class _Gather(torch.autograd.Function):
    """Concatenate equal blocks of all ranks along axis 0; backward sums each rank's gradient for our block."""

    @staticmethod
    def forward(ctx: Any, local_BD: Tensor) -> Tensor:
        local_BD = local_BD.contiguous()
        parts = [torch.empty_like(local_BD) for _ in range(world_size())]
        dist.all_gather(parts, local_BD)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # A copy: autograd may hand the same tensor to other branches of the graph.
        gradient_GD = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient_GD)
        rows = gradient_GD.shape[0] // world_size()
        return gradient_GD[rank() * rows : (rank() + 1) * rows]


def gather(local_BD: Tensor) -> Tensor:
    """All ranks' rows in rank order, differentiable: [B, D] on each of W ranks -> [W B, D] on every rank.

    Each rank's loss is a mean over its local queries. The backward pass sums over ranks what each loss owes to our
    rows; ``average_gradients`` then divides by W: together this is the gradient of the mean over all queries, that is,
    the one-process gradient. Equal numbers of rows on every rank are required.
    """
    return local_BD if world_size() == 1 else _Gather.apply(local_BD)


def mean_over_processes(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """The mean of each number over all ranks, so that every rank logs, and decides, the same."""
    if world_size() == 1:
        return dict(values)
    mean_V = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(mean_V)
    return dict(zip(values, (mean_V / world_size()).tolist(), strict=True))


def sum_over_processes(value_ND: np.ndarray) -> np.ndarray:
    """The sum over all processes; exact where each row is zero in all but one."""
    if world_size() > 1:
        dist.all_reduce(torch.from_numpy(value_ND), group=_control_group())  # the array is the tensor's memory
    return value_ND


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Average the gradients of replicated parameters over all ranks with one all-reduce per dtype."""
    if world_size() == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:  # every rank must contribute the same shapes
                parameter.grad = torch.zeros_like(parameter)
            by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_dtype.values():
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= world_size()
        offset = 0
        for gradient in gradients:
            gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
            offset += gradient.numel()
