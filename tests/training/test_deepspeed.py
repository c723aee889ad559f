"""ZeRO-2 and ZeRO-3 in two real processes against one; slow, and only where DeepSpeed is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builders.sharding import RUNS, SCORES, STOP, name_of, whole_run
from builders.training import Toy, write_toy

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow
TESTS = Path(__file__).resolve().parents[1]


def in_two(folder: Path, stage: int) -> None:
    """Go on in ``folder/from-two`` with two processes, told what accelerate's launcher would tell them on GPUs."""
    told = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage), "DS_ACCELERATOR": "cpu",
    }  # fmt: skip
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*start, "-m", "builders.sharding", str(folder)], env=told, capture_output=True, text=True,
                          timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stage", [2, 3])
def test_a_training_goes_from_one_process_to_two_under_zero_and_back(toy: Toy, tmp_path: Path, stage: int) -> None:
    write_toy(tmp_path / "toy")
    for run in RUNS:
        name = name_of(*run)
        whole_run(*run, toy, tmp_path / "alone" / name, scores=SCORES)
        whole_run(*run, toy, tmp_path / "from-two" / name, stop=STOP, scores=SCORES[:1])
    in_two(tmp_path, stage)
    for run in RUNS:
        name = name_of(*run)
        shutil.copytree(tmp_path / "from-two" / name, tmp_path / "back" / name)
        found, expected = (
            [json.loads(text) for text in (tmp_path / part / name / "logs" / "toy.jsonl").read_text().splitlines()]
            for part in ("from-two", "alone")
        )
        assert len(found) == len(expected) == 6
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, rel=1e-5)
        whole_run(*run, toy, tmp_path / "back" / name, scores=[])  # done: reads its checkpoint and the best weights
        assert (tmp_path / "back" / name / "encoder").is_dir()
