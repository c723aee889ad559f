"""The three stages as short functions over ``fit``."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from harness.data.collator import Collator, PairCollator
from harness.data.mixture import Mixture
from harness.data.records import Dataset, has_scores, in_context
from harness.data.relevance import Relevance
from harness.encoders import unpadded
from harness.encoders.bulk import tokens_of_a_batch
from harness.encoders.encoder import Encoder
from harness.encoders.lora import is_adapted, is_adapter, leave_casting
from harness.recipe import AlignSettings, RefineSettings, TeacherSettings, TrainingSettings
from harness.runtime.distributed import use_bf16
from harness.runtime.errors import InputError, Problem
from harness.training.batches import AlignmentBatches, Online, RefinementBatches, TeacherBatches, TrainingQueries
from harness.training.fit import Batches, Fitted, RunFolder, fit
from harness.training.objectives import LOG_TIMES, Alignment, Contrastive, Objective, Refinement
from harness.training.pair_streams import PairStreamBatches
from harness.training.strategy import require_possible
from harness.training.stream_batches import MixedAlignmentBatches
from harness.vectors.store import VectorStore

Evaluate = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class Ground:
    """What every stage stands on: where it writes, which processes, how it is judged, how languages are sampled."""

    run: RunFolder
    accelerator: Accelerator
    evaluate: Evaluate
    language_temperature: float = 1.0


@dataclass(frozen=True)
class OnlineTeacher:
    """The teacher beside the student, encoding each batch; ``reading``: what it reads of texts in memory, and how."""

    encoder: Encoder
    reading: Online

    @classmethod
    def of(cls, encoder: Encoder, texts: Sequence[str], batch_tokens: int | None = None) -> OnlineTeacher:
        """A teacher that learns nothing; ``batch_tokens``: of its batches, as in ``Encoder.encode``."""
        encoder.eval().requires_grad_(False)
        tokens = batch_tokens or tokens_of_a_batch(encoder.device)
        return cls(encoder, Online(texts, encoder.collator("query", chunk_tokens=tokens)))


def prepare_parameters(encoder: Encoder, settings: TrainingSettings) -> None:
    """Say what is trained, in fp32, and how: dropout as set (0 makes a step repeatable), activations kept or not.

    Adapters are trained alone where there are any, else all but a frozen token table. What is frozen keeps its number
    format; an adapter its own dropout.

    Raises:
        InputError: gradient checkpointing or batches without padding, and a model that can't do it.
    """
    adapted = is_adapted(encoder)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(is_adapter(name) if adapted else True)
    if settings.token_table == "frozen":
        encoder.token_table.requires_grad_(False)
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    _set_checkpointing(encoder, settings.gradient_checkpointing)
    bf16 = use_bf16(settings.precision, encoder.device)
    if adapted:
        leave_casting(encoder, to_autocast=bf16)
    unpadded.choose(
        encoder, settings.unpadded, bf16=bf16, where="training.unpadded", dropout=settings.dropout,
        attention=settings.attention,
    )  # fmt: skip
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Dropout) and not is_adapter(name):
            module.p = settings.dropout
        if isinstance(getattr(module, "attention_dropout", None), float):  # read by decoder models' attention
            setattr(module, "attention_dropout", settings.dropout)  # noqa: B010 - a plain attribute, no parameter


def _set_checkpointing(encoder: Encoder, wanted: bool) -> None:
    """Keep a block's input and compute the rest of it again in the backward pass, or keep everything."""
    backbone = encoder.backbone
    if wanted and not backbone.supports_gradient_checkpointing:
        raise InputError(
            Problem("this architecture can't compute activations again", where="training.gradient_checkpointing",
                    got=f"true for {backbone.config.model_type!r}", next="set it to false, or raise accumulate")
        )  # fmt: skip
    on = any(getattr(module, "gradient_checkpointing", False) for module in backbone.modules())
    if wanted != on:
        switch = "enable" if wanted else "disable"
        old_name = f"gradient_checkpointing_{switch}"  # as older versions of transformers know it
        change = getattr(backbone, f"activation_checkpointing_{switch}", None) or getattr(backbone, old_name)
        change(*[{"use_reentrant": False}] * wanted)


def training_queries(dataset: Dataset, stage: str, *, context: str | None = None) -> TrainingQueries:
    """The training split with its masks, which are those of the plain queries.

    Args:
        context: how a query's context is put to its text (``in_context``): for the teacher, and for nobody else.

    Raises:
        InputError: the data has no training queries.
    """
    records = dataset.splits["train"]
    if not records:
        raise InputError(
            Problem(
                f"{stage} needs training queries with positives, and the data has none",
                where="data",
                next="give qrels/train.tsv" + (", or set teacher.train: false" if stage == "teacher" else ""),
            )
        )
    relevance = Relevance(dataset.documents, records, within_language=dataset.search_within)
    records = [replace(record, text=in_context(record.text, record.context, context)) for record in records]
    return TrainingQueries(records, dataset.documents, relevance)


def _fit(
    model: nn.Module, objective: Objective, batches: Batches, settings: TrainingSettings, ground: Ground
) -> Fitted:
    require_possible(
        cached=settings.cached, learned_temperature=hasattr(model, LOG_TIMES), adapters=is_adapted(model)
    )  # fmt: skip
    return fit(model, objective, batches, ground.evaluate, settings, ground.run, ground.accelerator)


@contextlib.contextmanager
def trained_temperature(encoder: Encoder, settings: TeacherSettings) -> Iterator[None]:
    """Let ``encoder`` carry the parameter that a learned temperature is made of, for as long as the block lasts."""
    if not settings.loss.learned_temperature:
        yield
        return
    start_1 = torch.tensor([-math.log(settings.temperature)], device=encoder.device)
    encoder.register_parameter(LOG_TIMES, nn.Parameter(start_1))
    try:
        yield
    finally:
        delattr(encoder, LOG_TIMES)


def require_loss(encoder: Encoder, queries: TrainingQueries | None, settings: TeacherSettings) -> None:
    """Stop where the model or the data can't give what the loss needs.

    Args:
        queries: None where the pairs come from streams.

    Raises:
        InputError: everything that is missing.
    """
    loss, problems = settings.loss, []
    if loss.matryoshka and max(loss.matryoshka) > encoder.dimension:
        problems.append(
            Problem("more dimensions than the model gives", where="teacher.loss.matryoshka", got=str(loss.matryoshka),
                    allowed=f"1 to {encoder.dimension}")
        )  # fmt: skip
    if loss.matryoshka and not encoder.normalize:
        problems.append(
            Problem("cut vectors get length 1, and those of this model have other lengths",
                    where="teacher.loss.matryoshka", next="remove it")
        )  # fmt: skip
    if loss.to_scores and not (queries and has_scores(queries.records)):
        problems.append(
            Problem(f"{loss.kind} learns given scores, and the data has none: no training query has judged documents "
                    "of different scores", where="teacher.loss.kind", got=loss.kind, allowed="info_nce, qwen3",
                    next="give scores and judged negatives, or choose another loss")
        )  # fmt: skip
    if problems:
        raise InputError(problems)


def train_teacher(
    encoder: Encoder,
    queries: TrainingQueries,
    settings: TeacherSettings,
    ground: Ground,
    *,
    negatives: Sequence[np.ndarray] | None = None,
) -> Fitted:
    """Stage 1: contrastive fine-tuning of the large encoder, both towers. Trains ``encoder`` in place."""
    training = settings.training
    assert training is not None, "validated by the recipe"
    require_loss(encoder, queries, settings)
    prepare_parameters(encoder, training)
    collate = PairCollator(
        encoder.tokenizer,
        query_prompt=encoder.prompts["query"],
        document_prompt=encoder.prompts["document"],
        max_length=encoder.max_length,
        chunks=training.chunks,
        chunk_tokens=training.chunk_tokens,
        unpadded=encoder.unpadded,
    )
    batches = TeacherBatches(
        queries, collate, training, seed=ground.run.seed, language_temperature=ground.language_temperature,
        hard_negatives=settings.hard_negatives, negatives=negatives, loss=settings.loss,
    )  # fmt: skip
    return _fit_teacher(encoder, batches, settings, ground)


def train_teacher_on_streams(encoder: Encoder, mixture: Mixture, settings: TeacherSettings, ground: Ground) -> Fitted:
    """Stage 1 on pairs from logs: ``mixture`` is of token caches that this encoder's prompts and length went into."""
    training = settings.training
    assert training is not None, "validated by the recipe"
    require_loss(encoder, None, settings)
    prepare_parameters(encoder, training)
    collator = Collator(
        encoder.tokenizer, prompt="", max_length=encoder.max_length, chunks=training.chunks,
        chunk_tokens=training.chunk_tokens, unpadded=encoder.unpadded,
    )  # fmt: skip
    batches = PairStreamBatches(mixture, collator, training, with_towers=settings.loss.with_towers)
    return _fit_teacher(encoder, batches, settings, ground)


def _fit_teacher(encoder: Encoder, batches: Batches, settings: TeacherSettings, ground: Ground) -> Fitted:
    training = settings.training
    assert training is not None, "validated by the recipe"
    objective = Contrastive(settings.temperature, settings.loss, training.cached)
    with trained_temperature(encoder, settings):
        return _fit(encoder, objective, batches, training, ground)


def align(
    student: Encoder,
    texts: tuple[Sequence[str], Sequence[str], Sequence[str]],
    targets: VectorStore | OnlineTeacher,
    settings: AlignSettings,
    ground: Ground,
) -> Fitted:
    """Stage 2: L2 to the teacher's query vectors over ``texts`` (ids in the store, texts, languages)."""
    training = settings.training
    prepare_parameters(student, training)
    ids, words, languages = texts
    batches = AlignmentBatches(
        words, languages, ids, targets.reading if isinstance(targets, OnlineTeacher) else targets,
        student.collator("query", training.chunks, training.chunk_tokens),
        training, seed=ground.run.seed, language_temperature=ground.language_temperature,
    )  # fmt: skip
    teacher = targets.encoder if isinstance(targets, OnlineTeacher) else None
    return _fit(student, Alignment(training.cached, teacher), batches, training, ground)


def align_on_streams(
    student: Encoder, mixture: Mixture, settings: AlignSettings, ground: Ground, *, online: OnlineTeacher | None = None
) -> Fitted:
    """Stage 2 over logs and texts in memory: ``mixture`` is of ``AlignmentRows``, made for this student and teacher."""
    training = settings.training
    prepare_parameters(student, training)
    batches = MixedAlignmentBatches(
        mixture, student.collator("query", training.chunks, training.chunk_tokens), training,
        online=online.reading.collator if online else None,
    )  # fmt: skip
    return _fit(student, Alignment(training.cached, online.encoder if online else None), batches, training, ground)


def refine(
    student: Encoder,
    queries: TrainingQueries,
    document_vectors: VectorStore,
    teacher_vectors: VectorStore | None,
    settings: RefineSettings,
    ground: Ground,
    *,
    mined: Sequence[np.ndarray] | None = None,
) -> Fitted:
    """Stage 3: contrastive against the frozen documents, anchored to the teacher's query vectors."""
    prepare_parameters(student, settings.training)
    batches = RefinementBatches(
        queries, document_vectors, teacher_vectors if settings.anchor else None,
        student.collator("query", settings.training.chunks, settings.training.chunk_tokens), settings,
        seed=ground.run.seed, language_temperature=ground.language_temperature, mined=mined,
    )  # fmt: skip
    objective = Refinement(settings.temperature, settings.anchor, settings.training.cached)
    return _fit(student, objective, batches, settings.training, ground)
