"""What a timing asks of the machine: the time, what other programs take of it, and how much memory a call needs.

Nothing here is certain on every system: what can't be told is None.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from harness.engines.machine import available_cores
from harness.engines.protocol import Engine

_PROC, _GROUP = Path("/proc"), Path("/sys/fs/cgroup")
_IDLE = (3, 4)  # of a line of /proc/stat: idle and waiting for a disk
_TOLD = 8  # its numbers that exclude one another: up to "steal", what other guests of the host took
MB = 1e6


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Collect garbage now, and none until the block ends."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Machine:
    """This machine; tests put another in its place.

    Attributes:
        cores: that this process may run on.
    """

    def __init__(self) -> None:
        self.cores = available_cores()

    def now(self) -> int:
        """Nanoseconds of a clock that only goes forward."""
        return perf_counter_ns()

    def load(self) -> float | None:
        """Programs that ran or waited over the last minute, on average."""
        return os.getloadavg()[0] if hasattr(os, "getloadavg") else None

    def others(self) -> float | None:
        """Seconds that the cores of this process have spent so far on anything but this process."""
        busy = _busy_seconds()
        own = os.times()
        return None if busy is None else busy - own.user - own.system

    def peak(self, engine: Engine, texts: Sequence[str]) -> tuple[float, float] | None:
        """Encode once; MB that the call took beyond what rested in memory: at its peak, and what it kept.

        On CUDA what torch's allocator handed out; on a CPU the resident memory of the process, by the kernel's own
        high-water mark, after the heap's free pages were given back. None where neither can be read.
        """
        device = str(engine.describe().get("device", ""))
        if device.startswith("cuda"):
            return _cuda_peak(engine, texts, device)
        return _resident_peak(lambda: engine.encode(texts))

    def free(self, engine: Engine) -> float | None:
        """MB that the engine's device has left."""
        device = str(engine.describe().get("device", ""))
        if not device.startswith("cuda"):
            return _free_resident()
        if engine.name.startswith("onnx"):
            return None
        import torch

        name = device.split()[0]
        kept = torch.cuda.memory_reserved(name) - torch.cuda.memory_allocated(name)  # torch's own, and unused
        return float(torch.cuda.mem_get_info(name)[0] + kept) / MB


def _busy_seconds() -> float | None:
    """Seconds of all programs on the cores of this process, since the machine started."""
    try:
        lines = (_PROC / "stat").read_text().splitlines()
        cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    except (OSError, AttributeError):  # another system
        return None
    rows = [[int(value) for value in values[:_TOLD]] for name, *values in map(str.split, filter(None, lines))
            if name in cores]  # fmt: skip
    ticks = sum(value for row in rows for place, value in enumerate(row) if place not in _IDLE)
    return ticks / os.sysconf("SC_CLK_TCK") if rows else None


# ------------------------------------------------------------------------------------------------------------ memory


def _cuda_peak(engine: Engine, texts: Sequence[str], device: str) -> tuple[float, float] | None:
    import torch

    if engine.name.startswith("onnx"):  # has an allocator of its own, which torch knows nothing of
        engine.encode(texts)
        return None
    name = device.split()[0]
    before = torch.cuda.memory_allocated(name)
    torch.cuda.reset_peak_memory_stats(name)
    engine.encode(texts)
    peak, after = torch.cuda.max_memory_allocated(name), torch.cuda.memory_allocated(name)
    return (peak - before) / MB, max(0, after - before) / MB


def _resident_peak(call: Callable[[], Any]) -> tuple[float, float] | None:
    _give_back()
    forgotten = _forget_peak()
    before, own = _resident("VmRSS"), _resident("RssAnon")  # own: without weights that a first call pages in
    call()
    peak = _resident("VmHWM")
    _give_back()
    kept = _resident("RssAnon")
    if not forgotten or before is None or peak is None or own is None or kept is None:
        return None
    return max(0, peak - before) / MB, max(0, kept - own) / MB


def _resident(key: str) -> int | None:
    """A line of the process's status, in bytes."""
    try:
        for line in (_PROC / "self" / "status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _forget_peak() -> bool:
    """Begin the process's high-water mark anew; whether the kernel lets us."""
    try:
        (_PROC / "self" / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


@cache
def _trim() -> Callable[[int], Any] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # another C library
        return None


def _give_back() -> None:
    """Free pages of the heap go back to the system: else a call would live on what an earlier one left there."""
    if trim := _trim():
        trim(0)


def _free_resident() -> float | None:
    """What the system says is available, or what the control group leaves of it."""
    found = []
    try:
        told = dict(line.split(":", 1) for line in (_PROC / "meminfo").read_text().splitlines())
        found.append(int(told["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        return None
    try:
        limit, used = ((_GROUP / f"memory.{name}").read_text() for name in ("max", "current"))
        found.append(int(limit) - int(used))
    except (OSError, ValueError):  # no control group, or no limit: "max"
        pass
    return min(found) / MB
