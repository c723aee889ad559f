"""What holds for every test: no network, one thread, no caches of this machine. Set before any library reads it."""

from __future__ import annotations

import os
import tempfile

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
