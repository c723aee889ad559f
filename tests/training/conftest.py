"""One thread, so that sums have one order; what every test of the room trains on, written once; real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from builders import sharding
from builders.training import Toy, write_toy

TESTS = Path(__file__).resolve().parents[1]
ACCELERATE = TESTS.parent / "recipes" / "accelerate"


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return write_toy(tmp_path_factory.mktemp("toy"))


def launch(file: Path, module: str, folder: Path) -> None:
    """Run a builder under ``accelerate launch``."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
    found = subprocess.run(
        [*start, "--main_process_port", "0", "-m", module, str(folder)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes have filled."""
    folder = tmp_path_factory.mktemp("two")
    toy = write_toy(folder / "toy")
    for stage, kind in sharding.RUNS:
        to = folder / "from-one" / sharding.name_of(stage, kind)
        sharding.whole_run(stage, kind, toy, to, stop=sharding.STOP, scores=sharding.SCORES[:1])
    launch(ACCELERATE / "cpu2.yaml", "builders.two_processes", folder)
    return folder


@pytest.fixture(scope="session")
def three(both: Path) -> Path:
    """The same folder, in which three processes have gone on from what two have left."""
    shutil.copytree(both / "stopped", both / "from-two")
    file = both / "fsdp-cpu3.yaml"  # the shipped one, on the CPU
    file.write_text(yaml.safe_dump(yaml.safe_load((ACCELERATE / "fsdp2.yaml").read_text())
                                   | {"use_cpu": True, "num_processes": 3}))  # fmt: skip
    launch(file, "builders.sharding", both)
    return both
