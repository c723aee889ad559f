"""The gap ledger: what each step between the reference and what is served cost or won, from stored evaluations.

``teacher`` -> cut -> align -> refine -> quantise -> approximate index. Steps whose system was not evaluated are
skipped, and their neighbours are joined: ``systems`` names the two that were compared. Before and after are means (over
languages in ``macro``, else over queries), so that the differences of a chain add up to its last system less its first.
Intervals are of paired differences over the same draws of groups (``harness.evaluation.statistics``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from harness.evaluation.per_query import PerQuery
from harness.evaluation.statistics import Samples, differences_of, resample

# system -> the step that made it; the first is where the chain begins
CHAIN = {
    "teacher": None,
    "student-untrained": "cut",
    "student-aligned": "align",
    "student-refined": "refine",
    "student-int8": "quantise",
    "student-ann": "approximate index",
}


def ledger(
    systems: Mapping[str, PerQuery],
    samples: Samples,
    *,
    set_name: str,
    metrics: Sequence[str],
    slices: Mapping[str, Sequence[str]],
    confidence: float,
    seed: int,
) -> list[dict[str, Any]]:
    """The ledger of one set.

    Args:
        systems: name -> evaluation; those that are no part of the chain are passed over.
        samples: of the same systems.
        metrics: of which there is a ledger, where the samples have them.
        slices: slice -> value of each query.
        seed: of the draws for slices; as many as ``samples`` has.

    Returns:
        ``[{"step", "systems": [after, before], "set", "metric", "scope", "before", "after", "difference", "low",
        "high", "verdict", "queries"}]``, the steps in their order, for each metric: ``macro``, each language, each
        ``SLICE=VALUE``. Empty where fewer than two systems of the chain are there.
    """
    chain = [name for name in CHAIN if name in systems]
    metrics = [metric for metric in metrics if metric in samples.metrics]
    if len(chain) < 2 or not metrics:
        return []
    parts = [(samples, ["macro", *samples.languages])]
    if slices:
        cut_up = {name: _cut_up(systems[name], metrics, slices) for name in chain}
        drawn = resample(cut_up, metrics=metrics, resamples=len(samples.count_SL) - 1, seed=seed)
        parts.append((drawn, drawn.languages))
    return [
        {"step": CHAIN[after], "systems": [after, before], "set": set_name, "metric": metric, **row}
        for before, after in pairwise(chain)
        for metric in metrics
        for drawn, scopes in parts
        for row in _rows(drawn, after, before, metric, scopes, confidence)
    ]


def _cut_up(system: PerQuery, metrics: Sequence[str], slices: Mapping[str, Sequence[str]]) -> PerQuery:
    """The evaluation once for each slice, with parts for languages: so that all slices share one draw of groups."""
    times = len(slices)
    return PerQuery(
        ids=system.ids * times,
        languages=[f"{name}={value}" for name, values in slices.items() for value in values],
        groups=system.groups * times,
        weights=np.ones(len(system) * times),
        hits=[[]] * (len(system) * times),
        scores=np.zeros((len(system) * times, 0), np.float32),
        metrics={name: np.tile(system.metrics[name], times) for name in metrics},
    )


def _rows(
    samples: Samples, after: str, before: str, metric: str, scopes: Sequence[str], confidence: float
) -> list[dict[str, Any]]:
    """One step and metric, in each scope."""
    told = differences_of(samples, after, before, metric, confidence=confidence)
    mean_P = {name: samples.all_means(name, metric)[0] for name in (before, after)}
    place = {scope: number for number, scope in enumerate(samples.scopes)}
    count_L = samples.count_SL[0]
    rows = []
    for scope in scopes:
        at = place[scope]
        queries = count_L[at] if at < len(count_L) else count_L.sum()
        rows.append({"scope": scope, "before": float(mean_P[before][at]), "after": float(mean_P[after][at]),
                     **told[scope], "queries": int(queries)})  # fmt: skip
    return rows
