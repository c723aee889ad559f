"""A run that was stopped, or killed, and started again ends with the very bits of a run that was left alone."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from builders.toy_problem import LineBatches, Squares, line, scripted
from builders.training import STAGES, Toy, hash_score, run_folder, run_stage, toy_training
from safetensors.torch import load_file
from torch import nn

from harness.encoders.encoder import Encoder
from harness.recipe import TrainingSettings
from harness.runtime.errors import InputError, StaleArtefactError
from harness.training.checkpoint import load_checkpoint
from harness.training.fit import Fitted, Interrupted, fit
from harness.training.placement import Replicated

STEPS, EVALUATE_EVERY, CHECKPOINT_EVERY = 6, 2, 3
FILES = ("model-00000-of-00001.safetensors", "optimizer-00000-of-00001.safetensors", "state.json")


def settings(**changes: Any) -> TrainingSettings:
    return toy_training(
        steps=STEPS, evaluate_every=EVALUATE_EVERY, checkpoint_every=CHECKPOINT_EVERY, accumulate=2, **changes
    )


def state_of(folder: Path, encoder: Encoder, fitted: Fitted) -> dict[str, Any]:
    """Everything a training leaves behind: what it returns, weights, log and checkpoints; seconds apart."""
    files = sorted(path for path in (folder / "checkpoints").rglob("*") if path.is_file())
    return {
        "fitted": {name: value for name, value in asdict(fitted).items() if name != "seconds"},
        "weights": {name: value.clone() for name, value in encoder.state_dict().items()},
        "log": (folder / "logs" / "toy.jsonl").read_text(),
        "json": {path.relative_to(folder): path.read_text() for path in files if path.suffix == ".json"},
        "tensors": {path.relative_to(folder): load_file(path) for path in files if path.suffix == ".safetensors"},
    }


def assert_same_bits(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name in ("fitted", "log", "json"):
        assert ours[name] == theirs[name], name
    assert ours["tensors"].keys() == theirs["tensors"].keys()
    for path in [None, *ours["tensors"]]:
        one, other = (state["weights"] if path is None else state["tensors"][path] for state in (ours, theirs))
        assert one.keys() == other.keys()
        assert [name for name in one if not one[name].equal(other[name])] == [], path


def train(stage: str, toy: Toy, folder: Path, encoder: Encoder, training: TrainingSettings, **run: Any) -> Fitted:
    return run_stage(stage, toy, encoder, training, run_folder(folder, **run), hash_score(encoder))


def alone(stage: str, toy: Toy, folder: Path, kind: str, training: TrainingSettings) -> dict[str, Any]:
    encoder = toy.encoder(kind)
    return state_of(folder, encoder, train(stage, toy, folder, encoder, training))


def stop_after(steps: int) -> Callable[[], bool]:
    answers: Iterator[bool] = iter([False] * (steps - 1) + [True])
    return lambda: next(answers)


def fail_in_step(encoder: Encoder, step: int, training: TrainingSettings) -> None:
    """Raise within the given 0-based step, between the two micro-batches, when the first gradients are there."""
    seen = iter(range(step * training.accumulate + 1))

    def count(*_: Any) -> None:
        if next(seen, None) is None:
            raise KeyboardInterrupt

    encoder.register_forward_pre_hook(count)


# ------------------------------------------------------------------------------------------ to the bit, by stage


@pytest.mark.parametrize(("kind", "dropout"), [("bert", 0.0), ("bert", 0.2), ("qwen3", 0.2)])
@pytest.mark.parametrize("stage", STAGES)
def test_stopped_and_continued_is_never_having_stopped(
    toy: Toy, tmp_path: Path, stage: str, kind: str, dropout: float
) -> None:
    training = settings(dropout=dropout)
    expected = alone(stage, toy, tmp_path / "alone", kind, training)
    assert [line["step"] for line in expected["fitted"]["curve"]] == [2, 4, 6]
    for stopped in (1, 4):
        folder = tmp_path / f"stopped-{stopped}"
        with pytest.raises(Interrupted, match=f"toy: stopped after step {stopped}; the same command goes on"):
            train(stage, toy, folder, toy.encoder(kind), training, stop=stop_after(stopped))
        assert [path.name for path in (folder / "checkpoints").glob("step-*")] == [f"step-{stopped:08d}"]
        encoder = toy.encoder(kind)
        assert_same_bits(state_of(folder, encoder, train(stage, toy, folder, encoder, training)), expected)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("stage", STAGES)
def test_killed_in_a_step_and_continued_is_never_having_been_killed(
    toy: Toy, tmp_path: Path, stage: str, dropout: float
) -> None:
    training = settings(dropout=dropout)
    expected = alone(stage, toy, tmp_path / "alone", "bert", training)
    for failing in (1, 4):  # before any checkpoint, and after one, an evaluation and steps beyond it
        folder, encoder = tmp_path / f"killed-{failing}", toy.encoder()
        fail_in_step(encoder, failing, training)
        with pytest.raises(KeyboardInterrupt):
            train(stage, toy, folder, encoder, training)
        log = [json.loads(text) for text in (folder / "logs" / "toy.jsonl").read_text().splitlines()]
        assert log[-1]["step"] == failing, "the log is ahead of the checkpoint"
        encoder = toy.encoder()
        assert_same_bits(state_of(folder, encoder, train(stage, toy, folder, encoder, training)), expected)


@pytest.mark.parametrize("stage", STAGES)
def test_stopped_at_any_step_is_never_having_stopped(toy: Toy, tmp_path: Path, stage: str) -> None:
    """Every step: the epochs of 32 queries end after the fourth; evaluations and checkpoints come between."""
    training = settings(dropout=0.2)
    expected = alone(stage, toy, tmp_path / "alone", "bert", training)
    for stopped in range(1, STEPS):
        folder = tmp_path / f"stopped-{stopped}"
        with pytest.raises(Interrupted):
            train(stage, toy, folder, toy.encoder(), training, stop=stop_after(stopped))
        encoder = toy.encoder()
        assert_same_bits(state_of(folder, encoder, train(stage, toy, folder, encoder, training)), expected)


def killed_at(monkeypatch: pytest.MonkeyPatch, target: str, call: int, after: bool) -> None:
    """Raise in a call of ``target`` by its number, before or after its work is done."""
    real, seen = pkgutil.resolve_name(target), iter(range(1, 1000))

    def work(*args: Any, **options: Any) -> Any:
        now = next(seen) == call
        if now and not after:
            raise KeyboardInterrupt
        result = real(*args, **options)
        if now:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(target, work)


SEAMS = (
    ("harness.training.fit.save_best", 2, False),  # evaluated, and nothing kept of it
    ("harness.training.fit.save_best", 2, True),  # the best weights are newer than the checkpoint
    ("harness.training.fit.save_checkpoint", 2, False),
    ("harness.training.fit.save_checkpoint", 2, True),  # the last: nothing is left to do
    ("harness.training.checkpoint.remove_folder", 1, False),  # two checkpoints
    ("harness.training.checkpoint.save_file", 3, True),  # weights written, moments not
    ("harness.training.checkpoint.write_json", 4, True),  # all written, without its name
    ("harness.training.placement.Replicated.update", 5, True),  # a step that no log knows of
)


@pytest.mark.parametrize("seam", SEAMS, ids=[f"{target.split('.')[-1]}-{'after' if after else 'before'}"
                                             for target, _, after in SEAMS])  # fmt: skip
@pytest.mark.parametrize("stage", STAGES)
def test_killed_between_any_two_writes_is_never_having_been_killed(
    toy: Toy, tmp_path: Path, stage: str, seam: tuple[str, int, bool]
) -> None:
    training = settings(dropout=0.2)
    expected = alone(stage, toy, tmp_path / "alone", "bert", training)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_at(patch, *seam)
        train(stage, toy, tmp_path / "killed", toy.encoder(), training)
    encoder = toy.encoder()
    continued = state_of(tmp_path / "killed", encoder, train(stage, toy, tmp_path / "killed", encoder, training))
    assert_same_bits(continued, expected)


@pytest.mark.parametrize("stage", STAGES)
def test_dropout_is_felt_and_another_seed_is_another_training(toy: Toy, tmp_path: Path, stage: str) -> None:
    logs = []
    for name, dropout, seed in (("plain", 0.0, 5), ("dropout", 0.2, 5), ("seed", 0.2, 6)):
        train(stage, toy, tmp_path / name, toy.encoder(), settings(dropout=dropout), seed=seed)
        logs.append((tmp_path / name / "logs" / "toy.jsonl").read_text())
    assert len(set(logs)) == 3


def test_a_frozen_token_table_is_neither_trained_nor_saved(toy: Toy, tmp_path: Path) -> None:
    training = settings(token_table="frozen")
    expected = alone("align", toy, tmp_path / "alone", "bert", training)
    before = toy.encoder()
    table = next(name for name, p in before.named_parameters() if p is before.token_table.weight)
    assert expected["weights"][table].equal(before.token_table.weight)
    trained = {name for name, _ in before.named_parameters()} - {table}
    (saved,) = [load_file(path) for path in (tmp_path / "alone" / "checkpoints").glob("step-*/model-*.safetensors")]
    assert saved.keys() == trained
    with pytest.raises(Interrupted):
        train("align", toy, tmp_path / "stopped", toy.encoder(), training, stop=stop_after(3))
    encoder = toy.encoder()
    continued = state_of(tmp_path / "stopped", encoder, train("align", toy, tmp_path / "stopped", encoder, training))
    assert_same_bits(continued, expected)


# ----------------------------------------------------------------------------------------- the core by itself


def fit_line(folder: Path, model: nn.Module, *, objective: Any = None, evaluate: Any = None, **changes: Any) -> Fitted:
    training = toy_training(**{"learning_rate": 0.1, "accumulate": 2, **changes})
    run, accelerator = run_folder(folder), Accelerator(cpu=True)
    return fit(model, objective or Squares(), LineBatches(micro=2), evaluate, training, run, accelerator)


def steps_of(folder: Path) -> list[int]:
    return [json.loads(text)["step"] for text in (folder / "logs" / "toy.jsonl").read_text().splitlines()]


def test_the_same_model_object_may_go_on(tmp_path: Path) -> None:
    """Gradients that a failed step left in the model play no part."""
    expected, model = line(), line()
    fit_line(tmp_path / "alone", expected, checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        fit_line(tmp_path / "failed", model, objective=Squares(fail_at=2 * 4), checkpoint_every=2)
    assert model.weight.grad is not None
    fit_line(tmp_path / "failed", model, checkpoint_every=2)
    assert model.weight.equal(expected.weight) and model.bias.equal(expected.bias)


def test_the_log_has_every_step_once_after_a_kill_that_cut_a_line(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit_line(tmp_path, line(), objective=Squares(fail_at=2 * 5), checkpoint_every=2)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5]
    with (tmp_path / "logs" / "toy.jsonl").open("a") as stream:
        stream.write('{"step": 6, "lo')
    fit_line(tmp_path, line(), checkpoint_every=2)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_half_written_checkpoint_is_passed_over(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit_line(tmp_path, line(), objective=Squares(fail_at=2 * 3), checkpoint_every=2)
    (tmp_path / "checkpoints" / ".step-00000004.abcd.tmp").mkdir()
    model, expected = line(), line()
    fit_line(tmp_path, model)
    fit_line(tmp_path / "alone", expected)
    assert model.weight.equal(expected.weight)


def test_only_the_newest_checkpoint_stays(tmp_path: Path) -> None:
    fit_line(tmp_path, line(), evaluate=scripted([0.5] * 6), evaluate_every=1, checkpoint_every=1)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["best", "step-00000006"]
    assert json.loads((tmp_path / "checkpoints" / "best" / "state.json").read_text())["step"] == 1


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    model, again, batches = line(), line(), LineBatches()
    first = fit_line(tmp_path, model, evaluate=scripted([0.1, 0.9, 0.2]), evaluate_every=2)
    training = toy_training(learning_rate=0.1, evaluate_every=2)
    second = fit(again, Squares(), batches, scripted([]), training, run_folder(tmp_path), Accelerator(cpu=True))
    assert batches.asked == [] and again.weight.equal(model.weight)
    assert (second.step, second.score, second.curve) == (first.step, first.score, first.curve) == (4, 0.9, first.curve)


def test_the_best_score_is_not_that_of_weights_which_a_later_step_has_replaced(tmp_path: Path) -> None:
    """Where arithmetic is not repeatable: killed after a better evaluation, which comes out worse the second time."""
    with pytest.raises(KeyboardInterrupt):
        fit_line(tmp_path, line(), objective=Squares(fail_at=2 * 3), evaluate=scripted([0.5, 0.1, 0.9]),
                 evaluate_every=1, checkpoint_every=2)  # fmt: skip
    model, expected = line(), line()
    fitted = fit_line(tmp_path, model, evaluate=scripted([0.3, 0.4, 0.2, 0.1]), evaluate_every=1)
    fit_line(tmp_path / "alone", expected, evaluate=scripted([0.1, 0.1, 0.1, 0.9, 0.2, 0.2]), evaluate_every=1)
    assert (fitted.step, fitted.score) == (4, 0.4)
    assert model.weight.equal(expected.weight)


@pytest.mark.parametrize("at", [2, 4, 6])
def test_stopped_in_an_evaluation_and_continued_is_never_having_stopped(tmp_path: Path, at: int) -> None:
    """What was trained is saved; the evaluation is made when the training goes on, and only then."""
    scores, asked = {2: 0.2, 4: 0.9, 6: 0.1}, []

    def evaluate_but(stopped: int) -> Callable[[], dict[str, float]]:
        left = iter([step for step in scores if step >= (at if not stopped else 2)])

        def evaluate() -> dict[str, float]:
            step = next(left)
            asked.append(step)
            if step == stopped:
                raise KeyboardInterrupt
            return {"score": scores[step], "nDCG@10": 0.5}

        return evaluate

    with pytest.raises(KeyboardInterrupt):
        fit_line(tmp_path / "stopped", line(), evaluate=evaluate_but(at), evaluate_every=2)
    (saved,) = (tmp_path / "stopped" / "checkpoints").glob("step-*")
    assert saved.name == f"step-{at:08d}"
    model, expected = line(), line()
    fitted = fit_line(tmp_path / "stopped", model, evaluate=evaluate_but(0), evaluate_every=2)
    assert asked == [*(step for step in scores if step <= at), *(step for step in scores if step >= at)]
    alone = fit_line(tmp_path / "alone", expected, evaluate=scripted([0.2, 0.9, 0.1]), evaluate_every=2)
    assert (fitted.step, fitted.score, fitted.curve) == (alone.step, alone.score, alone.curve)
    assert model.weight.equal(expected.weight)
    states = [(tmp_path / name / "checkpoints" / "step-00000006" / "state.json") for name in ("stopped", "alone")]
    assert states[0].read_text() == states[1].read_text()


def test_a_stop_in_the_last_step_is_none(tmp_path: Path) -> None:
    run = run_folder(tmp_path, stop=stop_after(6))
    fitted = fit(line(), Squares(), LineBatches(), None, toy_training(), run, Accelerator(cpu=True))
    assert fitted.step == 6


# ---------------------------------------------------------------------------------------------------- refusals


def interrupted(folder: Path) -> Path:
    """A run that was killed after the checkpoint of step 4, with best weights; returns that checkpoint."""
    with pytest.raises(KeyboardInterrupt):
        fit_line(folder, line(), objective=Squares(fail_at=2 * 5), evaluate=scripted([0.2, 0.1]),
                 evaluate_every=2, checkpoint_every=2)  # fmt: skip
    return folder / "checkpoints" / "step-00000004"


def test_a_checkpoint_of_another_training_is_refused_by_both_names(tmp_path: Path) -> None:
    checkpoint = interrupted(tmp_path)
    run = run_folder(tmp_path, fingerprint="another training")
    with pytest.raises(StaleArtefactError) as error:
        fit(line(), Squares(), LineBatches(), None, toy_training(), run, Accelerator(cpu=True))
    (problem,) = error.value.problems
    assert problem.where == str(checkpoint)
    assert "this training".startswith(problem.got) and "another training".startswith(problem.allowed)
    assert "delete" in problem.next and "recipe" in problem.next


@pytest.mark.parametrize("keep_share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, name: str, keep_share: float) -> None:
    path = interrupted(tmp_path) / name
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content.rstrip()) * keep_share)])
    with pytest.raises(InputError) as error:
        fit_line(tmp_path, line())
    (problem,) = error.value.problems
    assert problem.where == str(path) and problem.got and "delete" in problem.next


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.2, 0.6, 0.95])
def test_a_checkpoint_with_a_flipped_bit_is_refused(tmp_path: Path, name: str, place: float) -> None:
    path = interrupted(tmp_path) / name
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(bytes(content))
    model = line()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError) as error:
        fit_line(tmp_path, model)
    (problem,) = error.value.problems
    assert problem.where == str(path) and problem.got and "delete" in problem.next
    assert all(value.equal(before[name]) for name, value in model.state_dict().items()), "some of it was used"


def test_all_missing_files_of_a_checkpoint_are_named(tmp_path: Path) -> None:
    checkpoint = interrupted(tmp_path)
    for name in FILES[:2]:
        (checkpoint / name).unlink()
    with pytest.raises(InputError) as error:
        fit_line(tmp_path, line())
    assert [problem.where for problem in error.value.problems] == [str(checkpoint / name) for name in FILES[:2]]
    assert {problem.got for problem in error.value.problems} == {"no such file"}


def test_damaged_best_weights_are_refused_before_a_step_is_made(tmp_path: Path) -> None:
    path = interrupted(tmp_path).parent / "best" / FILES[0]
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InputError, match="damaged") as error:
        fit_line(tmp_path, line(), objective=Squares(fail_at=0), evaluate=scripted([0.1]))
    assert error.value.problems[0].where == str(path)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (nn.Linear(4, 1), "weight"),
        (nn.Sequential(nn.Linear(3, 1)), "0.bias, 0.weight, bias"),
        (nn.Linear(3, 1, bias=False), "bias"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, model: nn.Module, named: str) -> None:
    checkpoint = interrupted(tmp_path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match="of another model") as error:
        fit_line(tmp_path, model)
    (problem,) = error.value.problems
    assert problem.where == str(checkpoint) and problem.got == named and problem.next
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    placement = Replicated(line(), lambda model: torch.optim.AdamW(model.parameters()))
    assert load_checkpoint(tmp_path / "nothing", placement, "x") is None
