"""Paired differences between two runs on the same set, from what both stored of every query."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from harness.evaluation.per_query import PerQuery
from harness.evaluation.statistics import paired_difference, quality
from harness.runtime.errors import InputError

RESAMPLES = 2_000


def paired_between(
    evaluation: Path, other: Path, metric: str, told: tuple[float | None, float | None], confidence: float
) -> dict[str, Any] | str:
    """How much better ``evaluation`` answered than ``other``, query by query, as the macro difference of a metric.

    Args:
        evaluation, other: folders that ``PerQuery.save`` wrote.
        told: the macro means that the runs' results tell of both.
        confidence: of the interval.

    Returns:
        ``{"difference", "low", "high", "verdict", "same"}``, where ``same`` says that the metric is the same in every
        query; in words why there is none, where a folder is missing or damaged,
        answered other queries than the other, or is not what its run's results were made from.
    """
    pair = []
    for folder, mean in zip((evaluation, other), told, strict=True):
        if not folder.exists():
            return f"{folder} is not there"
        try:
            found = PerQuery.load(folder, hits=False)
            stored = quality(found)["macro"].get(metric)
        except (InputError, OSError):
            return f"{folder} is damaged"
        if mean is None or stored is None or not math.isclose(stored, mean, abs_tol=1e-9):
            return f"{folder} is not what its run's results were made from"
        pair.append(found)
    try:
        told_of_pair = paired_difference(pair[0], pair[1], metric, resamples=RESAMPLES, confidence=confidence)
    except InputError:
        return f"{evaluation} and {other} answered different queries"
    same = pair[0].ids == pair[1].ids and np.array_equal(pair[0].metrics[metric], pair[1].metrics[metric])
    return {**told_of_pair, "same": same}
