"""Evaluations made up of numbers: what ``evaluate`` would have stored, without encoding anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from harness.evaluation.per_query import PerQuery
from harness.metrics import METRICS


def per_query(
    languages: Sequence[str], groups: Sequence[object], values: Sequence[float] | Mapping[str, Sequence[float]]
) -> PerQuery:
    """One query per language and group given; ``values`` of one metric are those of all."""
    count = len(languages)
    columns = values if isinstance(values, Mapping) else dict.fromkeys(METRICS, values)
    return PerQuery(
        ids=[f"q{i}" for i in range(count)],
        languages=list(languages),
        groups=[str(group) for group in groups],
        weights=np.ones(count),
        hits=[[f"d{i}", "d-1"] for i in range(count)],
        scores=np.tile(np.array([[0.9, 0.1]], np.float32), (count, 1)),
        metrics={name: np.asarray(column, dtype=float) for name, column in columns.items()},
        agreement={"overlap@10": np.full(count, 0.75), "cosine": np.full(count, 0.5)},
    )


def random_pair(
    seed: int, *, groups: int, languages: Sequence[str], kept: float = 0.8, hard: float = 0.5
) -> tuple[PerQuery, PerQuery]:
    """(student, reference) over a parallel set: a group is asked for in every language and is easy or hard in all."""
    random = np.random.default_rng(seed)
    easy_G = random.random(groups) > hard
    names = [language for language in languages for _ in range(groups)]
    numbers = [group for _ in languages for group in range(groups)]
    found_Q = np.tile(easy_G, len(languages)) & (random.random(len(names)) < 0.9)
    kept_Q = np.tile(random.random(groups) < kept, len(languages)) & found_Q
    return per_query(names, numbers, kept_Q.tolist()), per_query(names, numbers, found_Q.tolist())
