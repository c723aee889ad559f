"""What produced a number: commit, versions and machine; and the recipe's fingerprint."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.engines.machine import available_cores, cpu_name
from harness.recipe import Recipe
from harness.runtime.process import fingerprint

PACKAGES = ("harness-retrieval", "torch", "transformers", "accelerate", "faiss-cpu", "faiss-gpu", "numpy", "emoji")


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """The versions of Python and of the packages that decide results, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores and memory, as the operating system tells them."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": cpu_name(), "cores": available_cores(), "memory_gib": round(memory, 1)}


def commit() -> str | None:
    """The git commit of the code in use; None where it is no checkout."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def recipe_sha256(recipe: Recipe) -> str:
    """The recipe without its launch and tracking settings, which change no result."""
    return fingerprint({name: part for name, part in recipe.keyed().items() if name not in ("launch", "tracking")})
