"""One thread, so that sums have one order; what every test of the room trains on, written once; real processes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from builders import sharding
from builders.launching import ACCELERATE, launch, on_cpu
from builders.training import Toy, write_toy


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return write_toy(tmp_path_factory.mktemp("toy"))


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
    launch(on_cpu("fsdp2", 3, both), "builders.sharding", both)
    return both
