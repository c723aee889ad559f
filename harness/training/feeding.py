"""Batches on their way to the device: made while the step before computes, copied without waiting, large ones once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import Tensor

_LARGE = 1 << 26  # bytes: not worth a second copy in pinned memory, but worth remembering


def each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``value`` (nested dicts and lists) with every tensor changed, and the rest as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: each_tensor(item, change) for key, item in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], (Mapping, Tensor)):
        return [each_tensor(item, change) for item in value]
    return value


class ToDevice:
    """Puts batches on the device. A large tensor that is the very one of the batch before is there already."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._large: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, batch: Any) -> Any:
        """The batch there; copies from pinned memory go on while the host does."""
        large: dict[int, tuple[Tensor, Tensor]] = {}

        def place(tensor: Tensor) -> Tensor:
            if tensor.device == self.device or tensor.nbytes < _LARGE:
                return tensor.to(self.device, non_blocking=True)
            known = self._large.get(id(tensor))  # it was kept alive, so no other one can have its id
            large[id(tensor)] = known or (tensor, tensor.to(self.device))
            return large[id(tensor)][1]

        placed = each_tensor(batch, place)
        self._large = large
        return placed


class Ahead:
    """Makes the next step's batches in a thread while a step runs on a GPU; on a CPU it would only take its time.

    The thread rests outside ``while_making``: what else uses the tokenizer, an evaluation say, never meets it.
    """

    def __init__(self, batches: Callable[[int], Any], device: torch.device, steps: int) -> None:
        self._batches, self._steps, self._pin = batches, steps, device.type == "cuda"
        self._pool = ThreadPoolExecutor(1, "batches") if device.type != "cpu" else None
        self._next: tuple[int, Future[Any]] | None = None

    def __call__(self, step: int) -> Any:
        """The batches of ``step``; raises what making them raised."""
        if self._next is not None and self._next[0] == step:
            return self._next[1].result()
        return self._make(step)

    def _make(self, step: int) -> Any:
        made = self._batches(step)
        return each_tensor(made, _pinned) if self._pin else made

    @contextlib.contextmanager
    def while_making(self, step: int) -> Iterator[None]:
        """Make the batches of ``step``, if there is such a step, while the block runs."""
        if self._pool is None or step >= self._steps:
            yield
            return
        self._next = step, self._pool.submit(self._make, step)
        try:
            yield
        finally:
            wait([self._next[1]])

    def close(self) -> None:
        """End the thread."""
        if self._pool is not None:
            self._pool.shutdown()


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if tensor.device.type == "cpu" and tensor.nbytes < _LARGE else tensor
