"""The sections of a recipe about what comes after the training: evaluation, timing, the report and its bars."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.recipe.ann_settings import AnnSettings
from harness.recipe.export_settings import EngineName
from harness.recipe.section import (
    Measured,
    Metric,
    Name,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
    SetName,
    Share,
    System,
    added,
)


class OutsideSet(Section):
    """A set from elsewhere: a ``beir`` folder, or a ``subset`` of a retrieval task of ``mteb`` (an extra).

    The teacher encodes its documents, the teacher and every student its queries, each with its own prompts.
    ``split``: null is ``test`` in a folder, and the task's own. ``ignore_identical_ids``: a hit with the id of its
    query is no hit; null: so in a folder, as BEIR has it, and as the task says.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    beir: Name | None = None
    mteb: Name | None = None
    subset: Name | None = None
    split: Name | None = None
    ignore_identical_ids: bool | None = None


class EvaluateSettings(Section):
    """Which systems search which sets; ``reference`` is the denominator of every recovery.

    ``slices``: columns of the queries (fields of their lines, keys of their ``metadata``) that the report slices by.
    """

    systems: Annotated[list[System], Field(min_length=1)] = [
        "teacher", "student-untrained", "student-aligned", "student-refined"
    ]  # fmt: skip
    reference: System = "teacher"
    sets: Annotated[list[SetName], Field(min_length=1)] | None = None
    select_metric: Metric = "nDCG@10"
    searcher: Literal["auto", "faiss", "exact"] = "auto"
    metrics: Annotated[list[Measured], Field(min_length=1)] = added(
        ["P@1", "P@10", "nDCG@10", "MRR@10", "Recall@100", "Hit@10", "judged@10"]
    )
    depth: Annotated[int, Field(ge=100)] = 100  # Recall@100 needs as many, and so does rbo@100
    resamples: Annotated[int, Field(ge=100)] = 10_000
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    slices: list[Name] = added([])
    outside: list[OutsideSet] = added([])


class BenchSettings(Section):
    """One process, an idle machine: batch-1 latency of encoder and whole path, systems interleaved, and throughput.

    ``engines``: timed beside ``torch``. Those of ONNX run the files of ``export.onnx``, and so the deployed student.
    ``batch_sizes``: null doubles them from 1 until that brings nothing, memory is short, ``max_batch`` is reached, or
    ``ramp_seconds`` are up for a system. ``k``: hits that the whole path searches for. ``price_per_hour``: of this
    machine, in any ``currency``; the report then says what a million queries cost.
    """

    systems: Annotated[list[System], Field(min_length=1)] = ["teacher", "student-refined"]
    queries_per_language: Positive = 50
    warmup: Positive = 10
    repeats: Positive = 3
    batch_sizes: Annotated[list[Positive], Field(min_length=1)] | None = None
    threads: Positive | None = None
    engines: list[EngineName] = added([])
    k: Positive = added(10)
    max_batch: Positive = added(1024)
    ramp_seconds: PositiveFloat = added(6.0)
    price_per_hour: PositiveFloat | None = added(None)
    currency: Name | None = added(None)
    ann: AnnSettings | None = added(None)


# Above these, a percentage was meant; of a weak reference, a student may keep a multiple.
Kept = Annotated[float, Field(ge=0, le=10)]
LatencyRatio = Annotated[float, Field(gt=0, le=1.5)]


class Bars(Section):
    """What the run must reach; the report says which bars were reached. ``null`` sets none.

    A bar is reached where the one-sided lower bound, at ``evaluate.confidence``, clears it. ``worst``: recovery in the
    worst language. ``latency_ms``: p99 of a query's whole path, of the fastest engine of the student's own precision.
    ``stage_gain``: that a stage gained; ``auto`` asks it of stages with the systems before and after it evaluated,
    ``true`` of all that are trained, and is undecided where one is missing.
    """

    teacher: dict[Metric, Share] = {}
    recovery: dict[Metric, Kept] = {}
    stage_gain: bool | Literal["auto"] = "auto"
    latency_ratio: LatencyRatio | None = None
    worst: dict[Metric, Kept] = added({})
    latency_ms: PositiveFloat | None = added(None)


class ReportSettings(Section):
    """What the report asks of the numbers.

    ``warn_teacher_gain``: a teacher that gained more than this (absolute) in its last quarter was undertrained.
    ``loses_less_than``: the share of the reference's quality that the student may lose, which is tested on average, in
    all languages and in each; ``null``: no test.
    """

    bars: Bars = Bars()
    warn_teacher_gain: NonNegativeFloat = 0.03
    loses_less_than: Annotated[float, Field(gt=0, lt=1)] | None = added(0.02)
