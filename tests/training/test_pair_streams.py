"""The teacher's training on pairs from logs: batches, masks, prompts, gradients, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from builders.pair_logs import LOGS, pair_cache, pair_mixture, pairs
from builders.training import (
    LOSSES,
    Toy,
    hash_score,
    one_step,
    pair_collator,
    run_folder,
    stage_settings,
    toy_training,
)
from torch import Tensor

from harness.data.collator import Collator
from harness.data.mixture import Mixture, MixtureSource
from harness.encoders.encoder import Encoder
from harness.recipe import TrainingSettings
from harness.runtime.errors import InputError
from harness.training import stages
from harness.training.fit import Interrupted
from harness.training.losses import Labels, contrastive
from harness.training.objectives import LOG_TIMES, Contrastive
from harness.training.pair_streams import PairStreamBatches, share_a_key
from harness.training.stages import trained_temperature

CONTRASTIVE = [name for name, loss in LOSSES.items() if not {"positives", "score_temperature"} & set(loss)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pairs")


def batches_of(
    folder: Path, encoder: Encoder, training: TrainingSettings, loss: str = "info_nce", **changes: Any
) -> PairStreamBatches:
    mixture = pair_mixture(folder / encoder.backbone.config.model_type, encoder, training.batch_size, **changes)
    collator = Collator(
        encoder.tokenizer, prompt="", max_length=encoder.max_length, chunks=training.chunks,
        chunk_tokens=training.chunk_tokens,
    )  # fmt: skip
    with_towers = stage_settings("teacher", training, loss).loss.with_towers
    return PairStreamBatches(mixture, collator, training, with_towers=with_towers)


def pairs_of(batch: Any) -> list[tuple[str, dict[str, Any]]]:
    """Log and line of each pair of a batch, as its ids say."""
    found = []
    for told in batch["ids"]:
        source, file, row = told.split(", ")
        assert file == "file 1"
        number = list(LOGS).index(source)
        found.append((source, pairs(60 + 40 * number, number)[int(row.removeprefix("row ")) - 1]))
    return found


def texts_of(batch: Any, encoder: Encoder) -> list[str]:
    lists = [row[mask.bool()] for chunk in batch["chunks"]
             for row, mask in zip(chunk["input_ids"], chunk["attention_mask"], strict=True)]  # fmt: skip
    return [encoder.tokenizer.decode(lists[at], skip_special_tokens=True) for at in batch["restore"].tolist()]


def gradients_of(
    toy: Toy, folder: Path, training: TrainingSettings, loss: str, kind: str = "bert"
) -> tuple[dict[str, float], dict[str, Tensor]]:
    encoder = toy.encoder(kind)
    stages.prepare_parameters(encoder, training)
    settings = stage_settings("teacher", training, loss)
    with trained_temperature(encoder, settings):
        objective = Contrastive(settings.temperature, settings.loss, training.cached)
        return one_step(objective, encoder, batches_of(folder, encoder, training, loss)(2)[0])


def test_a_batch_holds_pairs_of_the_logs_with_the_prompts_of_each_log(toy: Toy, folder: Path) -> None:
    encoder = toy.encoder()
    (batch,) = batches_of(folder, encoder, toy_training())(0)
    found, texts = pairs_of(batch), texts_of(batch, encoder)
    assert {source for source, _ in found} == set(LOGS) and batch["queries"] == 8 and batch["weight_Q"] is None
    for number, (source, row) in enumerate(found):
        prompts = LOGS[source]
        assert texts[number] == (prompts[0] + row["asked"]).strip()
        assert texts[8 + number] == (prompts[1] + row["found"]).strip()
    assert batch["positive_Q"].tolist() == list(range(8))


@pytest.mark.parametrize("loss", CONTRASTIVE)
@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_the_loss_is_that_of_the_same_pairs_from_memory(toy: Toy, folder: Path, kind: str, loss: str) -> None:
    training = toy_training(batch_size=12, chunks=3)
    logs, found = gradients_of(toy, folder, training, loss, kind)
    encoder = toy.encoder(kind)
    stages.prepare_parameters(encoder, training)
    settings = stage_settings("teacher", training, loss)
    rows = pairs_of(batches_of(folder, encoder, training, loss)(2)[0])
    asked = [LOGS[source][0] + row["asked"] for source, row in rows]
    answers = [LOGS[source][1] + row["found"] for source, row in rows]
    encoder.prompts = {"query": "", "document": ""}
    tokens = pair_collator(encoder, 1)(asked, answers)
    eye_QN = torch.eye(12, dtype=torch.bool)
    batch = {"chunks": tokens.chunks, "restore": tokens.restore, "queries": 12, "positive_Q": torch.arange(12),
             "forbidden_QN": eye_QN, "weight_Q": None, "own_QN": eye_QN, "related_QG": eye_QN}  # fmt: skip
    with trained_temperature(encoder, settings):
        expected_logs, expected = one_step(Contrastive(settings.temperature, settings.loss), encoder, batch)
    assert logs["loss"] == pytest.approx(expected_logs["loss"], rel=1e-5)
    assert found.keys() == expected.keys() and (LOG_TIMES in found) == settings.loss.learned_temperature
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "bert-lora"])
def test_cached_gradients_in_chunks_of_tokens_are_the_direct_ones(toy: Toy, folder: Path, kind: str) -> None:
    logs, expected = gradients_of(toy, folder, toy_training(batch_size=12), "qwen3", kind)
    cached = toy_training(batch_size=12, cached=True, chunk_tokens=24)
    again, found = gradients_of(toy, folder, cached, "qwen3", kind)
    assert again["loss"] == pytest.approx(logs["loss"], rel=1e-5) and found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)
    chunks = batches_of(folder, toy.encoder(kind), cached)(2)[0]["chunks"]
    assert len(chunks) > 4 and all(chunk["input_ids"].numel() <= 24 for chunk in chunks)


def test_a_batch_is_a_function_of_seed_and_step(toy: Toy, folder: Path) -> None:
    encoder, training = toy.encoder(), toy_training(accumulate=2)
    first, again = batches_of(folder, encoder, training), batches_of(folder, encoder, training)
    later = [batch["ids"] for batch in again(7)]
    ids = [[batch["ids"] for batch in first(step)] for step in range(9)]
    assert ids[7] == later and len(later) == 2 and all(len(part) == 4 for part in later)
    assert len({tuple(part) for parts in ids for part in parts}) == 18
    other = batches_of(folder, encoder, training, seed=6)
    assert [batch["ids"] for batch in other(7)] != later


def test_one_stream_at_a_time(toy: Toy, folder: Path) -> None:
    batches = batches_of(folder, toy.encoder(), toy_training(), one_source_per_batch=True)
    sources = [{source for source, _ in pairs_of(batches(step)[0])} for step in range(12)]
    assert all(len(names) == 1 for names in sources) and set().union(*sources) == set(LOGS)


def test_relevant_pairs_meet_in_no_batch_and_are_masked_where_they_do(toy: Toy, tmp_path: Path) -> None:
    """Of 24 pairs, every query stands with two positives, and every positive with two queries."""
    encoder, training = toy.encoder(), toy_training(batch_size=8)
    words = sorted({row["asked"] for row in pairs(60, 3)})[:12]
    rows = [{"asked": words[at], "found": f"{words[(at + step) % 12].upper()} x", "lang": "aa"}
            for at in range(12) for step in (0, 1)]  # fmt: skip
    cache = pair_cache(tmp_path, rows, encoder)
    met = 0
    for disjoint in (True, False):
        source = MixtureSource("log", cache.streams(seed=[1], block=8, window=3))
        mixture = Mixture([source], batch_size=8, seed=1, disjoint=disjoint)
        batches = PairStreamBatches(
            mixture, Collator(encoder.tokenizer, prompt="", max_length=32), training, with_towers=True
        )
        for step in range(6):
            (batch,) = batches(step)
            own = [rows[int(told.rsplit(" ", 1)[1]) - 1] for told in batch["ids"]]
            same = torch.tensor([[a["asked"] == b["asked"] or a["found"] == b["found"] for b in own] for a in own])
            assert batch["forbidden_QN"].equal(same) and batch["related_QG"].equal(same)
            assert batch["own_QN"].equal(torch.eye(8, dtype=torch.bool))
            met += int(same.sum()) - 8
            assert disjoint is False or met == 0
    assert met > 0, "otherwise nothing was tried"


def test_a_masked_duplicate_does_not_count() -> None:
    torch.manual_seed(0)
    query_QD, document_ND = torch.randn(3, 4), torch.randn(3, 4)
    document_ND[1] = document_ND[0]
    keys = np.array([[1, 5], [2, 5], [3, 6]], dtype=np.uint64)
    same = torch.from_numpy(share_a_key(keys))
    loss = contrastive(query_QD, document_ND, Labels(torch.arange(3), same), temperature=1.0)
    single = contrastive(query_QD[[0]], document_ND[[0, 2]], Labels(torch.tensor([0])), temperature=1.0)
    others = [contrastive(query_QD[[1]], document_ND[[1, 2]], Labels(torch.tensor([0])), temperature=1.0),
              contrastive(query_QD[[2]], document_ND, Labels(torch.tensor([2])), temperature=1.0)]  # fmt: skip
    torch.testing.assert_close(loss, (single + others[0] + others[1]) / 3)
    assert share_a_key(np.zeros((2, 2), dtype=np.uint64)).tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("loss", ["qwen3", "towers"])
def test_a_stopped_training_ends_with_the_very_bits_of_one_left_alone(toy: Toy, tmp_path: Path, loss: str) -> None:
    training = toy_training(steps=6, accumulate=2, checkpoint_every=2, evaluate_every=3)
    states = []
    for stop_at in (None, 4):
        encoder, to = toy.encoder(), tmp_path / str(stop_at)

        def train(stop: Any = lambda: False, encoder: Encoder = encoder, to: Path = to) -> None:
            mixture = pair_mixture(tmp_path / "logs", encoder, training.batch_size)
            ground = stages.Ground(run_folder(to, stop=stop), Accelerator(cpu=True), hash_score(encoder))
            stages.train_teacher_on_streams(encoder, mixture, stage_settings("teacher", training, loss), ground)

        if stop_at:
            calls = iter(range(stop_at - 1))
            with pytest.raises(Interrupted):
                train(lambda calls=calls: next(calls, None) is None)  # type: ignore[misc]
            encoder.load_state_dict(toy.encoder().state_dict())
        train()
        states.append({name: value.clone() for name, value in encoder.state_dict().items()})
    assert all(states[0][name].equal(states[1][name]) for name in states[0])
    before = toy.encoder().state_dict()
    assert sum(not states[0][name].equal(before[name]) for name in before) > 10, "it was trained"


def test_what_the_model_or_the_loss_can_not_give_is_refused(toy: Toy, tmp_path: Path) -> None:
    encoder, training = toy.encoder(), toy_training(batch_size=7, accumulate=2)
    with pytest.raises(InputError, match="can't be shared out equally"):
        batches_of(tmp_path, encoder, training)
    settings = stage_settings("teacher", toy_training(), "qwen3")
    settings = settings.model_copy(update={"loss": settings.loss.model_copy(update={"matryoshka": [99]})})
    ground = stages.Ground(run_folder(tmp_path), Accelerator(cpu=True), dict)
    with pytest.raises(InputError, match="more dimensions than the model gives"):
        stages.train_teacher_on_streams(encoder, pair_mixture(tmp_path, encoder, 8), settings, ground)
