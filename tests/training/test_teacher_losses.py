"""The teacher's losses in its batches and in whole trainings: labels, the learned temperature, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from builders.sharding import CASES
from builders.training import (
    LOSSES,
    Toy,
    graded,
    hash_score,
    run_folder,
    run_stage,
    stage_parts,
    stage_settings,
    toy_training,
    training_queries,
)
from safetensors.torch import load_file

from harness.data.records import normal_text
from harness.encoders.folder import save_encoder
from harness.recipe import LossSettings
from harness.runtime.errors import InputError
from harness.training import stages
from harness.training.fit import Interrupted
from harness.training.objectives import LOG_TIMES


def batch_of(toy: Toy, loss: str, step: int = 0) -> tuple[Any, list[Any]]:
    """A teacher's batch, and its records."""
    (batch,) = stage_parts("teacher", toy, toy.encoder(), toy_training(batch_size=16), loss=loss)[1](step)
    records = {record.id: record for record in toy.dataset.splits["train"]}
    return batch, [records[name] for name in batch["ids"]]


def test_queries_with_the_same_text_or_a_common_positive_are_related(toy: Toy) -> None:
    toy = graded(toy)
    class_N, row, found = training_queries(toy.dataset).relevance.class_N, toy.dataset.documents.row, set()
    known: dict[str, set[int]] = {}  # text -> classes of documents
    for record in toy.dataset.splits["train"]:
        known.setdefault(normal_text(record.text), set()).update(int(class_N[row[i]]) for i in record.positives)
    for step in range(4):
        batch, records = batch_of(toy, "qwen3", step)
        texts = [normal_text(record.text) for record in records]
        for i, one in enumerate(texts):
            for j, other in enumerate(texts):
                assert bool(batch["related_QG"][i, j]) == (one == other or bool(known[one] & known[other]))
                found.add((bool(batch["related_QG"][i, j]), one == other))
    assert found == {(True, True), (True, False), (False, False)}


def test_own_documents_and_grades_stand_in_their_columns(toy: Toy) -> None:
    toy = graded(toy)
    batch, records = batch_of(toy, "graded")
    more = 0
    for row, record in enumerate(records):
        own_N, grade_N = batch["own_QN"][row], batch["grade_QN"][row]
        wanted = sorted(record.positives.values())
        assert sorted(grade_N[grade_N > 0].tolist()) == wanted, "there are at most three positives"
        assert own_N[batch["positive_Q"][row]] and own_N[grade_N > 0].all()
        assert len(wanted) <= int(own_N.sum()) <= len(wanted) + 1
        more += len(wanted) > 1
    assert more > 4
    assert not any(name in batch_of(toy, "info_nce")[0] for name in ("own_QN", "grade_QN", "related_QG"))
    assert "grade_QN" not in batch_of(toy, "qwen3")[0] and "related_QG" not in batch_of(toy, "kl")[0]


def in_two_processes(make: Callable[[], Any]) -> list[Any]:
    """What each of two processes would make."""
    found = []
    for rank in range(2):
        with mock.patch.multiple("harness.training.batches", rank=lambda rank=rank: rank, world_size=lambda: 2):
            found.append(make())
    return found


def test_the_tests_with_several_processes_have_different_numbers_of_chunks(toy: Toy) -> None:
    case = CASES["cached"]
    training = toy_training(batch_size=16, **{name: case[name] for name in ("accumulate", "cached", "chunk_tokens")})
    one, other = in_two_processes(
        lambda: [len(b["chunks"]) for b in stage_parts("teacher", toy, toy.encoder(case["kind"]), training)[1](0)]
    )
    assert one != other and max(one + other) > 2


@pytest.mark.parametrize("loss", ["qwen3", "graded"])
def test_two_processes_share_the_labels_of_one(toy: Toy, loss: str) -> None:
    toy = graded(toy)
    whole, _ = batch_of(toy, loss)
    parts = in_two_processes(lambda: batch_of(toy, loss)[0])
    documents = whole["forbidden_QN"].shape[1]
    for name in ("own_QN", "grade_QN", "related_QG"):
        if name in whole:
            width = whole[name].shape[1] if name == "related_QG" else documents
            assert torch.cat([part[name][:, :width] for part in parts]).equal(whole[name])
            assert not any(part[name][:, width:].any() for part in parts), "the padding belongs to nobody"


def test_related_within_a_language_covers_all_queries_of_others(toy: Toy) -> None:
    relevance = stages.training_queries(toy.dataset, "toy").relevance
    within = stages.Relevance(toy.dataset.documents, toy.dataset.splits["train"], within_language=True)
    rows = np.arange(32)
    language = np.array([record.language for record in toy.dataset.splits["train"]])
    across = language[:, None] != language
    assert within.related(rows, rows)[across].all() and not relevance.related(rows, rows)[across].all()
    assert (within.related(rows, rows) | across >= relevance.related(rows, rows)).all()


# ------------------------------------------------------------------------------------------------ whole trainings


@pytest.mark.parametrize("cached", [False, True])
def test_a_learned_temperature_is_logged_saved_resumed_and_not_exported(
    toy: Toy, tmp_path: Path, cached: bool
) -> None:
    training = toy_training(steps=6, learning_rate=3e-2, cached=cached, checkpoint_every=1, evaluate_every=3)
    weights, logs = [], []
    for name, stop in (("whole", 0), ("stopped", 4)):
        encoder, asked = toy.encoder(), iter(range(1, 100))
        run = run_folder(tmp_path / name, stop=lambda asked=asked, stop=stop: next(asked) == stop)
        if stop:
            with pytest.raises(Interrupted):
                run_stage("teacher", toy, encoder, training, run, hash_score(encoder), loss="towers")
            saved = load_file(next((tmp_path / name / "checkpoints").glob("step-*/model-*")))
            assert saved[LOG_TIMES].shape == (1,) and float(saved[LOG_TIMES]) != pytest.approx(np.log(20))
            encoder, run = toy.encoder(), run_folder(tmp_path / name)
        run_stage("teacher", toy, encoder, training, run, hash_score(encoder), loss="towers")
        weights.append(encoder.state_dict())
        logs.append([line for line in map(json.loads, run.log.read_text().splitlines()) if "loss" in line])
        save_encoder(encoder, tmp_path / name / "encoder")
        assert not any(LOG_TIMES in key for key in load_file(tmp_path / name / "encoder" / "model.safetensors"))
    assert weights[0].keys() == toy.encoder().state_dict().keys()
    assert all(value.equal(weights[1][name]) for name, value in weights[0].items())
    temperatures = [line["temperature"] for line in logs[0]]
    assert logs[0] == logs[1] and temperatures[0] == pytest.approx(0.05) and len(set(temperatures)) == 6


def test_the_learned_temperature_is_brought_back_before_a_step_uses_it(toy: Toy) -> None:
    encoder, training = toy.encoder(), toy_training()
    objective, batches = stage_parts("teacher", toy, encoder, training, loss="towers")
    with stages.trained_temperature(encoder, stage_settings("teacher", training, "towers")):
        with torch.no_grad():
            getattr(encoder, LOG_TIMES).fill_(50.0)
        logs = objective.step(encoder, batches(0)[0], lambda loss, sync=True: loss.backward())
        assert logs["temperature"] == pytest.approx(0.01) == 1 / float(getattr(encoder, LOG_TIMES).detach().exp())


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_falls(toy: Toy, tmp_path: Path, loss: str) -> None:
    toy = graded(toy)
    encoder, run = toy.encoder(), run_folder(tmp_path)
    training = toy_training(steps=12, batch_size=32, learning_rate=3e-3, cached=True, keep="last")
    run_stage("teacher", toy, encoder, training, run, hash_score(encoder), loss=loss)
    losses = [line["loss"] for line in map(json.loads, run.log.read_text().splitlines()) if "loss" in line]
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])


# ------------------------------------------------------------------------------------------------------ refusals


def refused(toy: Toy, tmp_path: Path, **loss: Any) -> str:
    encoder = toy.encoder()
    settings = stage_settings("teacher", toy_training()).model_copy(update={"loss": LossSettings(**loss)})
    ground = stages.Ground(run_folder(tmp_path), Accelerator(cpu=True), hash_score(encoder))
    with pytest.raises(InputError) as error:
        stages.train_teacher(encoder, training_queries(toy.dataset), settings, ground)
    assert not (tmp_path / "logs").exists()
    return str(error.value)


def test_what_model_or_data_can_not_give_is_refused(toy: Toy, tmp_path: Path) -> None:
    text = refused(toy, tmp_path, kind="kl", matryoshka=[8, 17], positives=2)
    assert "teacher.loss.matryoshka" in text and "allowed: 1 to 16" in text
    assert "teacher.loss.kind" in text and "the data has none" in text


@pytest.mark.parametrize(
    ("strategy", "training", "loss", "reason"),
    [
        ("DEEPSPEED", {"cached": True}, {}, "cached gradients"),
        ("FSDP", {}, {"learned_temperature": True}, "a learned temperature"),
        ("DEEPSPEED", {}, {"learned_temperature": True}, "a learned temperature"),
        ("FSDP", {"cached": True}, {}, ""),
    ],
)
def test_what_a_strategy_can_not_do_is_refused(
    monkeypatch: pytest.MonkeyPatch, strategy: str, training: dict[str, Any], loss: dict[str, Any], reason: str
) -> None:
    from harness.training.strategy import require_possible

    monkeypatch.setenv(f"ACCELERATE_USE_{strategy}", "true")
    wanted = {"cached": bool(training), "learned_temperature": bool(loss)}
    require_possible(**wanted)  # alone, nothing is spread
    monkeypatch.setattr("harness.training.strategy.world_size", lambda: 2)
    if not reason:
        return require_possible(**wanted)
    with pytest.raises(InputError, match=reason):
        require_possible(**wanted)
