"""Parameters spread over two and three processes against one process: gradients, whole trainings, checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from builders.sharding import CASES, RUNS, SCORES, STOP, name_of, two_steps, whole_run
from builders.training import Toy
from safetensors.torch import load_file
from torch import Tensor

from harness.encoders.folder import open_encoder

ROUGH = {"bf16", "bf16 lora"}  # rounded to so few bits that order matters
STAGE_CASES = [case for case in CASES if case not in ROUGH]


def answers(folder: Path, case: str) -> list[dict[str, Any]]:
    return [json.loads((folder / f"answers-{rank}.json").read_text())["sharded"][case] for rank in range(2)]


@pytest.fixture(scope="module")
def alone(toy: Toy) -> dict[str, tuple[dict[str, Any], dict[str, Tensor]]]:
    """Every case in one process, where nothing is sharded."""
    return {case: two_steps(toy=toy, **how) for case, how in CASES.items()}


def assert_close(ours: Tensor, theirs: Tensor, largest: float, relative: float, what: str) -> None:
    size = max(float(theirs.abs().max()), 1e-2 * largest)
    assert float((ours - theirs).abs().max()) <= relative * size, what


# ------------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("case", STAGE_CASES)
def test_gradients_of_shards_are_those_of_one_process(both: Path, alone: Any, case: str) -> None:
    _, expected = alone[case]
    first, second = (load_file(both / f"sharded-{case}-{rank}.safetensors") for rank in range(2))
    gradients = [name for name in expected if name.startswith("gradient")]
    assert gradients and {*gradients} == {name for name in first if name.startswith("gradient")}
    for step in range(2):  # the second: after an update of the shards
        names = [name for name in gradients if name.startswith(f"gradient {step}")]
        largest = max(float(expected[name].abs().max()) for name in names)
        for name in names:
            assert first[name].equal(second[name])
            assert_close(first[name], expected[name], largest, 1e-5 if step == 0 else 1e-4, name)


@pytest.mark.parametrize("case", list(CASES))
def test_parameters_are_shards_and_gradients_wait_for_the_last_backward(both: Path, alone: Any, case: str) -> None:
    whole, _ = alone[case]
    first, second = answers(both, case)
    assert whole["kinds"] == ["Parameter"] and first["kinds"] == second["kinds"] == ["DTensor"]
    assert not any(whole["rows"][name] == count for name, count in first["rows"].items() if whole["rows"][name] > 1)
    assert {n: first["rows"][n] + second["rows"].get(n, 0) for n in first["rows"]} == whole["rows"]
    assert set(first["early"]) == ({0} if first["early"] else set()), "a gradient was shared before the last"
    assert bool(first["early"]) == (CASES[case]["accumulate"] > 1 or "objective" in CASES[case])


@pytest.mark.parametrize("case", list(CASES))
def test_the_norm_that_clips_is_that_of_the_whole_gradient(both: Path, alone: Any, case: str) -> None:
    whole, _ = alone[case]
    first, second = answers(both, case)
    exact = 1e-5 if case not in ROUGH else 2e-2
    assert first["norm"] == second["norm"] == pytest.approx(whole["norm"], rel=exact)
    assert min(whole["norm"]) > 0.5, "nothing was clipped"
    mean = [(one + other) / 2 for one, other in zip(first["loss"], second["loss"], strict=True)]
    assert mean == pytest.approx(whole["loss"], rel=exact)
    assert first["vector"] == pytest.approx(whole["vector"], abs=1e-5 if case not in ROUGH else 3e-2)


@pytest.mark.parametrize("case", list(CASES))
def test_afterwards_the_main_process_holds_the_plain_model(both: Path, alone: Any, case: str) -> None:
    whole, expected = alone[case]
    first, second = answers(both, case)
    assert first["model"] == second["model"] == "Encoder"
    assert first["after"] == whole["after"] == ["Parameter on cpu"] and second["after"] == ["Parameter on meta"]
    found = load_file(both / f"sharded-{case}-0.safetensors")
    weights = [name for name in expected if name.startswith("weight")]
    assert weights and {*weights} == {name for name in found if name.startswith("weight")}
    for name in weights:
        if "key.bias" not in name:  # without gradient but for rounding, which AdamW makes large
            # In bf16 the sign of a small gradient is a matter of rounding, and AdamW's first steps are signs.
            torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=5e-3 if case in ROUGH else 1e-4)


# ----------------------------------------------------------------------------- checkpoints of other process numbers


@pytest.fixture(scope="module")
def uninterrupted(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole trainings by one process."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    for stage, kind in RUNS:
        whole_run(stage, kind, toy, folder / name_of(stage, kind), scores=SCORES)
    return folder


def log_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(text) for text in (folder / "logs" / "toy.jsonl").read_text().splitlines()]


def checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The state of the one checkpoint, and its tensors put together by hand from all files."""
    (path,) = (folder / "checkpoints").glob("step-*")
    state, tensors = json.loads((path / "state.json").read_text()), {}
    files = {name: load_file(path / name) for name in state["files"]}
    assert {entry.name for entry in path.iterdir()} == {"state.json", *files}
    for kind in ("model", "optimizer"):
        for name, entry in state[kind].items():
            parts = [files[file][name] for file, _, _ in sorted(entry["parts"], key=lambda part: part[1])]
            tensors[f"{kind} {name}"] = torch.cat(parts) if entry["shape"] else parts[0]
            assert list(tensors[f"{kind} {name}"].shape) == entry["shape"]
    return state, tensors


def assert_same_training(ours: Path, theirs: Path, texts: list[str]) -> None:
    """Log, last checkpoint and the encoder that was kept (the best, not the last)."""
    found, expected = log_of(ours), log_of(theirs)
    assert len(found) == len(expected) == 6
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    (state, tensors), (other_state, other_tensors) = checkpoint(ours), checkpoint(theirs)
    assert {key: state[key] for key in ("step", "best_step", "best_score", "fingerprint")} == {
        "step": 4, "best_step": 2, "best_score": 0.9, "fingerprint": "this training",
    }  # fmt: skip
    assert tensors.keys() == other_tensors.keys() and other_state["step"] == 4
    for kind in ("model", "optimizer exp_avg/", "optimizer exp_avg_sq/", "optimizer step/"):
        names = [name for name in tensors if name.startswith(kind)]
        largest = max(float(other_tensors[name].abs().max()) for name in names)
        for name in names:
            if "key.bias" not in name:
                assert_close(tensors[name], other_tensors[name], largest, 1e-4, name)
    one, other = (open_encoder(folder / "encoder", attention="eager") for folder in (ours, theirs))
    vector_ND, other_ND = one.encode(texts, side="query"), other.encode(texts, side="query")
    assert abs(vector_ND - other_ND).max() <= 1e-5  # unit vectors


@pytest.mark.parametrize(("stage", "kind"), RUNS)
def test_a_sharded_training_is_that_of_one_process(
    both: Path, uninterrupted: Path, toy: Toy, stage: str, kind: str
) -> None:
    name = name_of(stage, kind)
    assert_same_training(both / "sharded" / name, uninterrupted / name, toy.texts[1])
    state, _ = checkpoint(both / "sharded" / name)
    assert sorted(state["files"]) == [
        f"{kind}-{rank:05d}-of-00002.safetensors" for kind in ("model", "optimizer") for rank in range(2)
    ]
    sizes = [state["files"][f"model-{rank:05d}-of-00002.safetensors"]["bytes"] for rank in range(2)]
    assert max(sizes) < 1.1 * min(sizes)


@pytest.mark.parametrize(("stage", "kind"), RUNS)
def test_two_processes_shards_go_on_in_one_process(
    both: Path, uninterrupted: Path, toy: Toy, tmp_path: Path, stage: str, kind: str
) -> None:
    name = name_of(stage, kind)
    shutil.copytree(both / "stopped" / name, tmp_path / name)
    assert checkpoint(tmp_path / name)[0]["step"] == STOP
    whole_run(stage, kind, toy, tmp_path / name, scores=SCORES[1:])
    assert_same_training(tmp_path / name, uninterrupted / name, toy.texts[1])


@pytest.mark.parametrize(("stage", "kind"), RUNS)
def test_what_one_process_left_goes_on_in_shards(
    both: Path, uninterrupted: Path, toy: Toy, stage: str, kind: str
) -> None:
    name = name_of(stage, kind)
    assert_same_training(both / "from-one" / name, uninterrupted / name, toy.texts[1])
    assert len(checkpoint(both / "from-one" / name)[0]["files"]) == 4


@pytest.mark.parametrize(("stage", "kind"), RUNS)
def test_two_processes_shards_go_on_in_three(
    three: Path, uninterrupted: Path, toy: Toy, stage: str, kind: str
) -> None:
    name = name_of(stage, kind)
    assert_same_training(three / "from-two" / name, uninterrupted / name, toy.texts[1])
    assert len(checkpoint(three / "from-two" / name)[0]["files"]) == 6
    assert {path.read_text() for path in three.glob("placements-*.txt")} == {" ".join(["Sharded"] * len(RUNS))}


# ---------------------------------------------------------------------------------------------- one fails, all stop


def test_a_checkpoint_that_one_process_can_not_write_is_none(both: Path) -> None:
    first, second = answers(both, "full disk")
    assert first == ["StoppedError", "another process failed"]
    assert second[0] == "DiskError" and "step-00000003" in second[1] and "No space left" in second[1]
    left = [path.name for path in (both / "full-disk" / "checkpoints").iterdir()]
    assert sorted(left) == ["best", "step-00000002"], "the one before it stays, and nothing half-written"


def test_a_damaged_part_is_named_by_all_processes(both: Path) -> None:
    first, second = answers(both, "damaged")
    assert first == second and first[0] == "InputError"
    assert "optimizer-00001-of-00002.safetensors: the checkpoint is damaged" in first[1]
