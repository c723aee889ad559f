"""The losses of eight steps of each stage, kept in a file: a change that is meant to change nothing moves none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from builders.training import ENCODERS, STAGES, Toy, hash_score, run_folder, run_stage, toy_training

GOLDEN = Path(__file__).with_name("golden_losses.txt")
REMAKE = "HARNESS_WRITE_GOLDEN_LOSSES"
HEAD = f"""\
# The loss of each of eight steps (columns) by stage and encoder (rows): toy data, seed 5, fp32, one thread.
# A number moves only when what is learnt changes: then say so in the commit and make this file again with
#   {REMAKE}=1 python -m pytest tests/training/test_golden_losses.py
"""
NAMES = [f"{stage}-{kind}" for stage in STAGES for kind in ENCODERS]


def read_golden() -> dict[str, list[float]]:
    rows = [text.split() for text in GOLDEN.read_text().splitlines() if not text.startswith("#")]
    return {name: [float(number) for number in numbers] for name, *numbers in rows}


def losses(toy: Toy, name: str, folder: Path) -> list[float]:
    stage, kind = name.split("-")
    encoder, run = toy.encoder(kind), run_folder(folder)
    run_stage(stage, toy, encoder, toy_training(steps=8, learning_rate=1e-3), run, hash_score(encoder))
    log = [json.loads(text) for text in run.log.read_text().splitlines()]
    return [line["loss"] for line in log if "loss" in line]


@pytest.fixture(scope="module", autouse=True)
def _remade(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> None:
    if os.environ.get(REMAKE):
        rows = {name: losses(toy, name, tmp_path_factory.mktemp("golden")) for name in NAMES}
        GOLDEN.write_text(
            HEAD + "".join(f"{name:14}" + "".join(f"{n:10.6f}" for n in row) + "\n" for name, row in rows.items())
        )


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_those_on_file(toy: Toy, tmp_path: Path, name: str) -> None:
    assert losses(toy, name, tmp_path) == pytest.approx(read_golden()[name], rel=1e-4)


def test_the_file_holds_what_is_compared_and_the_losses_differ() -> None:
    golden = read_golden()
    assert list(golden) == NAMES
    assert all(len(row) == 8 and len(set(row)) == 8 for row in golden.values())
