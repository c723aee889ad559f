"""Stored evaluations as the report reads them, each table once, and what only their hits tell: bias, disagreements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from harness.data.records import Record
from harness.evaluation.bias import bias
from harness.evaluation.disagreements import METRIC, disagreements
from harness.evaluation.per_query import PerQuery
from harness.pipeline.context import Run
from harness.pipeline.int8_system import evaluated_systems

Answers = Mapping[str, PerQuery]  # system -> what it answered to one set, hits among it


def read_evaluations(
    run: Run, judged: Mapping[str, Sequence[Record]]
) -> tuple[dict[str, dict[str, PerQuery]], dict[str, Any]]:
    """System -> set -> evaluation without its hits, and ``{"bias", "disagreements"}``, each ``{SYSTEM: {SET: ...}}``.

    A section without anything in it is absent. The hits of one set are in memory at a time.

    Args:
        judged: set -> its queries, as evaluations judge them.
    """
    evaluations: dict[str, dict[str, PerQuery]] = {system: {} for system in evaluated_systems(run)}
    sections: dict[str, dict[str, Any]] = {}
    for name, records in judged.items():
        answers = {system: PerQuery.load(run.folder.evaluations / system / name) for system in evaluations}
        told = {"bias": _bias(run, answers, records), "disagreements": _disagreements(run, answers, records)}
        for section, by_system in told.items():
            for system, part in by_system.items():
                sections.setdefault(section, {}).setdefault(system, {})[name] = part
        for system, answer in answers.items():
            scores = np.zeros((len(answer), 0), np.float32)
            evaluations[system][name] = replace(answer, hits=[[]] * len(answer), scores=scores)
    return evaluations, sections


def _bias(run: Run, answers: Answers, records: Sequence[Record]) -> dict[str, Any]:
    """Only where a search sees documents of several languages."""
    settings = run.recipe.evaluate
    if run.dataset.search_within:
        return {}
    return bias(answers, settings.reference, records, run.dataset.documents, settings.confidence) or {}


def _disagreements(run: Run, answers: Answers, records: Sequence[Record]) -> dict[str, Any]:
    """Of every student with the reference."""
    name = run.recipe.evaluate.reference
    reference = answers[name]
    metric = METRIC if METRIC in reference.metrics else next(iter(reference.metrics))
    students = [system for system in answers if system.startswith("student") and system != name]
    return {system: disagreements(answers[system], reference, records, run.dataset.documents, metric)
            for system in students}  # fmt: skip
