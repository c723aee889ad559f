"""Everything a training stage needs, at the size of a test: texts, stores of frozen vectors, encoders, settings."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from builders.tiny_data import tiny_roots
from builders.tiny_models import write_tiny_bert, write_tiny_qwen3
from builders.vectors import toy_encode, toy_space
from torch import Tensor, nn

from harness.data.collator import PairCollator
from harness.data.records import Dataset, Documents, Record
from harness.encoders.encoder import Encoder
from harness.encoders.folder import open_encoder
from harness.encoders.lora import add_adapter
from harness.recipe import (
    AlignSettings,
    LoraSettings,
    LossSettings,
    RefineSettings,
    TeacherSettings,
    TrainingSettings,
)
from harness.training import stages
from harness.training.batches import AlignmentBatches, RefinementBatches, TeacherBatches, TrainingQueries
from harness.training.fit import Batches, Fitted, RunFolder
from harness.training.objectives import Alignment, Contrastive, Objective, Refinement
from harness.vectors.store import VectorStore
from harness.vectors.writer import write_store

WIDTH = 16  # of the models, and so of the vectors
STAGES = ("teacher", "align", "refine")
LOSSES: dict[str, dict[str, Any]] = {  # every kind, and every setting, of the teacher's loss
    "info_nce": {},
    "qwen3": {"kind": "qwen3"},
    "margins": {"margin": 0.2, "mask_margin": 0.05},
    "towers": {"same_tower": True, "learned_temperature": True},
    "matryoshka": {"kind": "qwen3", "matryoshka": [16, 8, 3], "matryoshka_weights": [1.0, 0.5, 0.25]},
    "graded": {"kind": "qwen3", "positives": 3},
    "kl": {"kind": "kl", "positives": 2, "learned_temperature": True, "score_temperature": 0.5},
    "margin_mse": {"kind": "margin_mse", "positives": 2, "score_temperature": 4.0, "matryoshka": [8, 16]},
}
ENCODERS = ("bert", "qwen3")  # padded on the right and on the left


def toy_dataset(*, search_within: bool = False) -> Dataset:
    """20 documents in two languages, two queries to each of the first 16, and every reason not to be a negative.

    d1 is d0 in capitals; d3 and d4 have the same key; q2a has two positives; q6a and q7a are the same question.
    """
    rng = random.Random(0)
    words = tiny_roots(30)
    texts = [" ".join(rng.sample(words, 2 + number % 5)) for number in range(20)]
    texts[1] = texts[0].upper()
    languages = ["aa" if number < 12 else "bb" for number in range(20)]
    documents = Documents(
        ids=[f"d{number}" for number in range(20)], texts=texts, languages=languages,
        keys=["twin" if number in (3, 4) else "" for number in range(20)],
    )  # fmt: skip
    records = []
    for number in range(16):
        for form in "ab":
            roots = texts[number].lower().split()
            text = " ".join([*rng.sample(roots, len(roots)), *rng.sample(words, number % 3)])
            positives = {f"d{number}": 1.0} | ({"d5": 1.0} if (number, form) == (2, "a") else {})
            records.append(
                Record(f"q{number}{form}", text if (number, form) != (7, "a") else records[12].text, languages[number],
                       f"g{number}", positives, weight=1.0 + number % 3)
            )  # fmt: skip
    return Dataset(documents, {"train": records, "select": [], "report": []}, [], search_within, "toy")


def toy_negatives(dataset: Dataset) -> list[np.ndarray]:
    """Three documents for each training query that may be its negatives."""
    forbidden_QN = stages.training_queries(dataset, "toy").relevance.forbidden(np.arange(32))
    rng = np.random.default_rng(0)
    return [rng.permutation(np.flatnonzero(~forbidden_N))[:3] for forbidden_N in forbidden_QN]


@dataclass(frozen=True)
class Toy:
    """The data set, the teacher's vectors of its documents and of all texts as queries, and encoders."""

    dataset: Dataset
    documents: VectorStore
    queries: VectorStore
    models: Mapping[str, Encoder]

    @property
    def texts(self) -> tuple[list[str], list[str], list[str]]:
        """Ids in the store, texts and languages of queries and documents."""
        records, documents = self.dataset.splits["train"], self.dataset.documents
        return (
            [f"query:{record.id}" for record in records] + [f"document:{name}" for name in documents.ids],
            [record.text for record in records] + documents.texts,
            [record.language for record in records] + documents.languages,
        )

    def encoder(self, kind: str = "bert") -> Encoder:
        """A fresh copy, the same weights each time; ``bert-lora`` with adapters, ``bert-bf16-lora`` on a bf16 base."""
        name, *more = kind.split("-")
        encoder = copy.deepcopy(self.models[name])
        if "bf16" in more:
            encoder.to(torch.bfloat16)
        if "lora" in more:
            alpha = 4.0 if "bf16" in more else 16.0  # large gradients are clipped; in bf16 they would be noise
            add_adapter(encoder, LoraSettings(rank=4, alpha=alpha), seed=1)
            generator = torch.Generator().manual_seed(1)
            for parameter_name, parameter in encoder.named_parameters():
                if ".lora_B." in parameter_name:  # zero at first, which would hide the gradients of the other half
                    parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        return encoder


def write_toy(folder: Path) -> Toy:
    """Write stores and encoders below ``folder``."""
    dataset = toy_dataset()
    documents, space = dataset.documents, toy_space(dimension=WIDTH)
    # In another order than the data set's: nothing may rely on rows being the same.
    backwards = documents.ids[::-1]
    texts = [documents.texts[documents.row[name]] for name in backwards]
    write_store(folder / "documents", backwards, texts, lambda part: toy_encode(part, WIDTH), space)
    ids, words, _ = Toy(dataset, None, None, {}).texts  # type: ignore[arg-type]
    write_store(folder / "queries", ids, words, lambda part: toy_encode([f"query {t}" for t in part], WIDTH), space)
    write_tiny_bert(folder / "bert", texts=words, hidden=WIDTH, layers=2, vocab=150)
    write_tiny_qwen3(folder / "qwen3", texts=words, hidden=WIDTH, layers=2, vocab=300)
    return open_toy(folder)


def open_toy(folder: Path) -> Toy:
    """What ``write_toy`` wrote."""
    models = {kind: open_encoder(folder / kind, attention="eager") for kind in ENCODERS}
    return Toy(toy_dataset(), VectorStore.open(folder / "documents"), VectorStore.open(folder / "queries"), models)


def graded(toy: Toy) -> Toy:
    """Most queries with two or three positives of different grades, and a judged negative."""
    records = [
        replace(
            record,
            positives={**record.positives, f"d{(number + 5) % 20}": 2.0, f"d{(number + 9) % 20}": 0.5 + number % 2},
            negatives=(f"d{(number + 7) % 20}",),
        )
        if number % 3
        else record
        for number, record in enumerate(toy.dataset.splits["train"])
    ]
    return replace(toy, dataset=replace(toy.dataset, splits={**toy.dataset.splits, "train": records}))


def toy_training(**changes: Any) -> TrainingSettings:
    """Few short steps in fp32."""
    settings = {"steps": 6, "batch_size": 8, "learning_rate": 3e-3, "precision": "fp32", "chunks": 2, **changes}
    return TrainingSettings(**settings)


def stage_settings(stage: str, training: TrainingSettings, loss: str = "info_nce") -> Any:
    """The recipe's section of a stage; ``loss`` is one of ``LOSSES``, the teacher's."""
    if stage == "teacher":
        return TeacherSettings(
            model="toy", training=training, hard_negatives=1, loss=LossSettings(**LOSSES[loss])
        )  # fmt: skip
    if stage == "align":
        return AlignSettings(training=training)
    return RefineSettings(training=training, candidates="sampled", sampled=6, mined=1, anchor=0.5)


def stage_parts(
    stage: str, toy: Toy, encoder: Encoder, training: TrainingSettings, *, seed: int = 5, loss: str = "info_nce"
) -> tuple[Objective, Batches]:
    """A stage's objective and batches, as the stage itself would make them, and the encoder made ready."""
    stages.prepare_parameters(encoder, training)
    settings = stage_settings(stage, training, loss)
    queries = stages.training_queries(toy.dataset, stage)
    common: dict[str, Any] = {"seed": seed, "language_temperature": 1.0}
    collate = encoder.collator("query", training.chunks, training.chunk_tokens)
    if stage == "teacher":
        pairs = pair_collator(encoder, training.chunks, training.chunk_tokens)
        negatives = toy_negatives(toy.dataset)
        return Contrastive(settings.temperature, settings.loss, training.cached), TeacherBatches(
            queries, pairs, training, hard_negatives=settings.hard_negatives, negatives=negatives, loss=settings.loss,
            **common,
        )  # fmt: skip
    if stage == "align":
        ids, words, languages = toy.texts
        return Alignment(training.cached), AlignmentBatches(
            words, languages, ids, toy.queries, collate, training, **common
        )
    return Refinement(settings.temperature, settings.anchor, training.cached), RefinementBatches(
        queries, toy.documents, toy.queries, collate, settings, mined=toy_negatives(toy.dataset), **common
    )


def pair_collator(encoder: Encoder, chunks: int, chunk_tokens: int | None = None) -> PairCollator:
    """Queries and documents with their prompts."""
    prompts = {f"{side}_prompt": encoder.prompts[side] for side in ("query", "document")}
    return PairCollator(
        encoder.tokenizer, **prompts, max_length=encoder.max_length, chunks=chunks, chunk_tokens=chunk_tokens,
        unpadded=encoder.unpadded,
    )  # fmt: skip


def training_queries(dataset: Dataset) -> TrainingQueries:
    return stages.training_queries(dataset, "toy")


def run_folder(folder: Path, **changes: Any) -> RunFolder:
    """Checkpoints and log below ``folder``."""
    wanted = {"fingerprint": "this training", "seed": 5, "what": "toy", **changes}
    return RunFolder(checkpoints=folder / "checkpoints", log=folder / "logs" / "toy.jsonl", **wanted)


def run_stage(
    stage: str, toy: Toy, encoder: Encoder, training: TrainingSettings, run: RunFolder, evaluate: stages.Evaluate,
    *, loss: str = "info_nce",
) -> Fitted:  # fmt: skip
    """The stage itself, from beginning to end."""
    settings = stage_settings(stage, training, loss)
    ground = stages.Ground(run, Accelerator(cpu=True), evaluate)
    if stage == "align":
        return stages.align(encoder, toy.texts, toy.queries, settings, ground)
    queries, negatives = training_queries(toy.dataset), toy_negatives(toy.dataset)
    if stage == "teacher":
        return stages.train_teacher(encoder, queries, settings, ground, negatives=negatives)
    return stages.refine(encoder, queries, toy.documents, toy.queries, settings, ground, mined=negatives)


def hash_score(model: nn.Module) -> Callable[[], dict[str, float]]:
    """A score that any changed bit of any weight changes beyond recognition."""
    return lambda: {"score": math.sin(1e6 * sum(float(p.detach().double().sum()) for p in model.parameters()))}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients of all parameters that have one, by name."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def one_step(objective: Objective, model: nn.Module, batch: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
    """What the objective logs of one batch, and every gradient."""
    model.zero_grad(set_to_none=True)
    logs = objective.step(model, batch, lambda loss, sync=True: loss.backward())
    return dict(logs), gradients(model)
