"""Sections of results.json from what is stored alone: outside sets, labels, and where students disagree most."""

from __future__ import annotations

from typing import Any

from harness.evaluation.disagreements import METRIC, disagreements
from harness.evaluation.per_query import PerQuery
from harness.pipeline.context import Run
from harness.pipeline.int8_system import evaluated_systems
from harness.pipeline.labels import judged_records, labels_told
from harness.pipeline.work_outside import outside_results


def further_sections(run: Run, names: list[str]) -> dict[str, Any]:
    """``outside``, ``labels`` and ``disagreements``; each is absent where there is nothing of it.

    Args:
        names: the evaluated sets.
    """
    return {**outside_results(run), **labels_told(run, names), **_disagreements(run, names)}


def _disagreements(run: Run, names: list[str]) -> dict[str, Any]:
    """``{"disagreements": {SYSTEM: {SET: [...]}}}`` of every student against the reference."""
    settings, found = run.recipe.evaluate, dict[str, Any]()
    students = [s for s in evaluated_systems(run) if s.startswith("student") and s != settings.reference]
    for name in names if students else []:
        records = judged_records(run, name)
        reference = PerQuery.load(run.folder.evaluations / settings.reference / name)
        metric = METRIC if METRIC in reference.metrics else next(iter(reference.metrics))
        for system in students:
            answers = PerQuery.load(run.folder.evaluations / system / name)
            found.setdefault(system, {})[name] = disagreements(
                answers, reference, records, run.dataset.documents, metric
            )
    return {"disagreements": found} if found else {}
