"""What holds for every test: no network, one thread, no caches of this machine. Set before any library reads it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

_CACHE = tempfile.TemporaryDirectory(prefix="harness-tests-")  # removed when Python ends

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HOME=_CACHE.name,
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",  # torch too, in this process and in those that tests start: tests run side by side instead
    WANDB_MODE="offline",
    MPLBACKEND="Agg",
)

# A busy machine is no failure; where CI runs, every run draws the same examples.
_SLOW = [HealthCheck.too_slow]
settings.register_profile("harness", deadline=None, suppress_health_check=_SLOW)
settings.register_profile("ci", deadline=None, suppress_health_check=_SLOW, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "harness")


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """A command sends the log to the standard error of its test, which is closed when the next test writes to it."""
    from harness.runtime.process import logger

    before = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before
