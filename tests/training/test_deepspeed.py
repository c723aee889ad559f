"""ZeRO-2 and ZeRO-3 in two real processes against one; slow, and only where DeepSpeed is installed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from builders.launching import launch, on_cpu
from builders.sharding import RUNS, SCORES, STOP, name_of, whole_run
from builders.training import Toy, write_toy

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("stage", [2, 3])
def test_a_training_goes_from_one_process_to_two_under_zero_and_back(toy: Toy, tmp_path: Path, stage: int) -> None:
    write_toy(tmp_path / "toy")
    for run in RUNS:
        name = name_of(*run)
        whole_run(*run, toy, tmp_path / "alone" / name, scores=SCORES)
        whole_run(*run, toy, tmp_path / "from-two" / name, stop=STOP, scores=SCORES[:1])
    launch(on_cpu(f"deepspeed-zero{stage}", 2, tmp_path), "builders.sharding", tmp_path)
    assert {path.read_text() for path in tmp_path.glob("placements-*.txt")} == {"Zero Zero"}
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
