"""Real processes under ``accelerate launch``, from the shipped accelerate files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

TESTS = Path(__file__).resolve().parents[1]
ACCELERATE = TESTS.parent / "recipes" / "accelerate"


def on_cpu(name: str, processes: int, folder: Path) -> Path:
    """A copy of a shipped file that starts processes on the CPU."""
    told = yaml.safe_load((ACCELERATE / f"{name}.yaml").read_text())
    path = folder / f"{name}-{processes}.yaml"
    path.write_text(yaml.safe_dump(told | {"use_cpu": True, "num_processes": processes}))
    return path


def launch(file: Path, module: str, folder: Path) -> None:
    """Run a builder to its end; one that fails is an error that shows what it wrote."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), "--main_process_port", "0"]
    found = subprocess.run(
        [*start, "-m", module, str(folder)], env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
