"""What this machine has of disk and memory, and what its GPUs have. Imports no torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from harness.pipeline.launch import usable_gpus
from harness.recipe import LaunchSettings


def free_disk(path: Path) -> int:
    """Free bytes where ``path`` is or would be made."""
    while not os.path.exists(path) and path != path.parent:  # unlike path.exists, also where nobody may look
        path = path.parent
    return shutil.disk_usage(path).free


def total_memory() -> int:
    """The machine's memory in bytes, or what the process's control group may use of it."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _limit_files():
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return min(limit for limit in limits if limit > 0)


def _limit_files() -> Iterator[Path]:
    """Where Linux writes the limits of this process's control group and of those above it (versions 2 and 1)."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root = Path("/sys/fs/cgroup") / controllers
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            own = root / path.lstrip("/")
            yield from (folder / name for folder in (own, *own.parents) if folder.is_relative_to(root))


def gpu_memory(launch: LaunchSettings) -> int | None:
    """The bytes of the largest GPU that the run may use; None if it uses none, or nobody says."""
    if not usable_gpus(launch):
        return None
    try:
        return max(int(line) for line in _asked("memory.total")) * 2**20
    except ValueError:
        return None


def gpu_name(launch: LaunchSettings) -> str | None:
    """The name of the first GPU, if the run may use one and somebody says; None otherwise."""
    return next(iter(_asked("name")), None) if usable_gpus(launch) else None


def _asked(what: str) -> list[str]:
    """A property of every GPU, as the driver tells it; empty where nobody answers."""
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]
