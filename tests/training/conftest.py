"""One thread, so that sums have one order; what every test of the room trains on, written once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
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
