"""Batches of logs and texts in memory: each row with its own target, the same rows whoever asks, whole or shared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders.tiny_data import write_jsonl
from builders.training import WIDTH, Toy, one_step, toy_training
from builders.vectors import toy_space

from harness.data.collator import Collator
from harness.data.mixture import Mixture, MixtureSource
from harness.data.token_cache import CacheSettings, TokenCache, Tokenise, tokenizer_fingerprint
from harness.data.token_writer import build_token_cache
from harness.encoders.encoder import Encoder
from harness.runtime.errors import InputError
from harness.training import batches as plain_batches
from harness.training import stages, stream_batches
from harness.training.batches import Online
from harness.training.objectives import Alignment
from harness.training.stream_batches import LoggedRows, MixedAlignmentBatches, RowsInMemory
from harness.vectors.stream_store import Recorded, StreamVectors, write_stream_vectors

TRAINING = toy_training(batch_size=12)


@dataclass
class Logs:
    """Two files of one log: what stands in them, the student's tokens, the teacher's tokens and its vectors."""

    texts: list[list[str]]
    cache: TokenCache
    asked: TokenCache
    stored: StreamVectors
    student: Encoder
    teacher: Encoder


def _cache(folder: Path, paths: list[Path], encoder: Encoder) -> TokenCache:
    told = tokenizer_fingerprint(encoder.tokenizer, prompt=encoder.prompts["query"], max_length=encoder.max_length)
    tokenise = Tokenise(encoder.collator("query").tokens, told, len(encoder.tokenizer))
    return build_token_cache(folder, paths, CacheSettings({"query": tokenise}))


@pytest.fixture(scope="module")
def logs(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Logs:
    root = tmp_path_factory.mktemp("logs")
    words = toy.texts[1]
    texts = [[f"{words[at]} {words[-at - 1]}" for at in part] for part in (range(20), range(15, 40))]
    rows = [[{"query": text, "lang": "aa" if len(text) % 3 else "bb"} for text in part] for part in texts]
    paths = [write_jsonl(root / f"{number}.jsonl", part) for number, part in enumerate(rows)]
    student, teacher = toy.encoder("bert"), toy.encoder("qwen3")
    cache, asked = _cache(root / "cache", paths, student), _cache(root / "asked", paths, teacher)

    def of_shard(number: int) -> Iterator[list[str]]:
        yield [texts[number][row] for row in cache.source_rows(number).tolist()]

    stored = write_stream_vectors(
        root / "vectors", Recorded(toy_space(dimension=WIDTH), "float32", ""),
        [(shard.kept, shard.rows) for shard in cache.shards], of_shard,
        lambda part: teacher.encode(part, side="query"),
    )  # fmt: skip
    return Logs(texts, cache, asked, stored, student, teacher)


def mixed(toy: Toy, logs: Logs, *, online: bool = False, training: Any = TRAINING, **mixture: Any) -> Any:
    """Batches of the log and of the toy's texts in memory."""
    stored, asked = (None, logs.asked) if online else (logs.stored, None)
    log = {language: LoggedRows("log", stream, stored, asked)
           for language, stream in logs.cache.streams(seed=[1], block=4, window=3).items()}  # fmt: skip
    ids, texts, languages = toy.texts
    collator = logs.student.collator("query")
    reading = Online(texts, logs.teacher.collator("query", chunk_tokens=30)) if online else None
    memory = {
        language: RowsInMemory(
            texts, ids, np.array([at for at, own in enumerate(languages) if own == language]), collator, seed=[2],
            store=None if online else toy.queries, store_rows=None if online else toy.queries.rows_of(ids),
            online=reading,
        )
        for language in ("aa", "bb")
    }  # fmt: skip
    sources = [MixtureSource("log", log), MixtureSource("align.texts", memory)]
    drawn = Mixture(sources, batch_size=training.batch_size, seed=5, disjoint=False, **mixture)
    return MixedAlignmentBatches(drawn, collator, training, online=reading.collator if reading else None)


def text_of(toy: Toy, logs: Logs, name: str) -> str:
    """The text that a batch's id names, from where it came."""
    if not name.startswith("log, "):
        ids, texts, _ = toy.texts
        return texts[ids.index(name)]
    file, row = (int(word.split()[-1]) - 1 for word in name.split(", ")[1:])
    return logs.texts[file][row]


def padded(batch: Any) -> list[list[int]]:
    """A batch's token ids without padding, in the order of its ids."""
    rows = [ids[mask.bool()].tolist() for chunk in batch["chunks"]
            for ids, mask in zip(chunk["input_ids"], chunk["attention_mask"], strict=True)]  # fmt: skip
    return [rows[at] for at in batch["restore"].tolist()]


def test_every_row_has_the_tokens_and_the_target_of_its_own_text(toy: Toy, logs: Logs) -> None:
    batches, seen = mixed(toy, logs), set()
    for step in range(20):
        (batch,) = batches(step)
        texts = [text_of(toy, logs, name) for name in batch["ids"]]
        assert padded(batch) == logs.student.collator("query").tokens(texts)
        for name, target_D in zip(batch["ids"], batch["teacher_QD"].numpy(), strict=True):
            text = text_of(toy, logs, name)
            if name.startswith("log, "):
                expected_D = logs.teacher.encode([text], side="query")[0]
            else:
                expected_D = toy.queries.vectors(toy.queries.rows_of([name]))[0]
            np.testing.assert_allclose(target_D, expected_D, atol=1e-5)
        seen |= set(batch["ids"])
    assert len(seen) == len(toy.texts[0]) + len(logs.cache) == 52 + 40, "each row in turn, from both"


def test_a_step_is_the_same_whatever_was_asked_before(toy: Toy, logs: Logs) -> None:
    in_order = mixed(toy, logs)
    names = [in_order(step)[0]["ids"] for step in range(6)]
    assert len({tuple(part) for part in names}) == 6
    later = mixed(toy, logs)
    assert [later(step)[0]["ids"] for step in (5, 2)] == [names[5], names[2]]


def test_processes_and_parts_share_a_batch_without_overlap_or_gap(
    toy: Toy, logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = mixed(toy, logs)(3)[0]
    for processes, parts in ((3, 1), (1, 2), (2, 3)):
        monkeypatch.setattr(stream_batches, "world_size", lambda processes=processes: processes)
        monkeypatch.setattr(plain_batches, "world_size", lambda processes=processes: processes)
        shared = mixed(toy, logs, training=toy_training(batch_size=12, accumulate=parts))
        found: list[list[Any]] = [[] for _ in range(parts)]
        for process in range(processes):
            monkeypatch.setattr(stream_batches, "rank", lambda process=process: process)
            for part, batch in zip(found, shared(3), strict=True):
                part += zip(batch["ids"], batch["teacher_QD"].tolist(), strict=True)
        assert [row for part in found for row in part] == list(
            zip(whole["ids"], whole["teacher_QD"].tolist(), strict=True)
        )


def test_a_batch_that_cannot_be_shared_equally_is_refused(
    toy: Toy, logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_batches, "world_size", lambda: 5)
    with pytest.raises(InputError, match="can't be shared out equally"):
        mixed(toy, logs)


def test_one_source_a_batch(toy: Toy, logs: Logs) -> None:
    batches = mixed(toy, logs, one_source_per_batch=True)
    kinds = [{name.startswith("log, ") for name in batches(step)[0]["ids"]} for step in range(10)]
    assert all(len(kind) == 1 for kind in kinds) and {False} in kinds and {True} in kinds


@pytest.mark.parametrize("cached", [False, True])
def test_a_teacher_beside_the_student_gives_the_loss_of_stored_vectors(toy: Toy, logs: Logs, cached: bool) -> None:
    """The student's gradients too; the teacher gets none, and its prompts, tokens and pooling are its own."""
    losses, gradients = [], []
    teacher = logs.teacher.eval().requires_grad_(False)
    for online in (False, True):
        student = toy.encoder("bert")
        stages.prepare_parameters(student, TRAINING)
        (batch,) = mixed(toy, logs, online=online)(1)
        rows = [at for at, name in enumerate(batch["ids"]) if name.startswith("log, ")]
        batch["weight_Q"] = torch.zeros(12).scatter_(0, torch.tensor(rows), 1.0)  # the toy's store is of no model
        logs_of_step, _ = one_step(Alignment(cached, teacher if online else None), student, batch)
        losses.append(logs_of_step["loss"])
        gradients.append(torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]))
    assert rows and losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_collator_of_the_teacher_pads_its_own_tokens(toy: Toy, logs: Logs) -> None:
    (batch,) = mixed(toy, logs, online=True)(2)
    texts = [text_of(toy, logs, name) for name in batch["ids"]]
    assert padded(batch["teacher"]) == Collator(
        logs.teacher.tokenizer, prompt=logs.teacher.prompts["query"], max_length=logs.teacher.max_length
    ).tokens(texts)
    assert "teacher_QD" not in batch
