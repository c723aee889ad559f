"""The gap ledger: what each step between the reference and what is served cost or won, from stored evaluations.

``teacher`` -> cut -> align -> refine is the chain. Two branches start at the exported student, for both were made of
it and neither of the other: ``quantise`` (its int8 file) and ``approximate index`` (its fp32 vectors, searched
approximately); their rows say ``"branch": True`` and are no part of the chain's sum. Steps whose system was not
evaluated are skipped, and their neighbours are joined: ``systems`` names the two that were compared, and ``step`` all
steps between them ("cut + align"). Before and after are means (over languages in ``macro``, else over queries), so
that the differences of the chain add up to its last system less its first.
Intervals are of paired differences over the same draws of groups (``harness.evaluation.statistics``).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from harness.evaluation.statistics import Samples, differences_of

# system -> the step that made it; the first is where the chain begins
CHAIN = {
    "teacher": None,
    "student-untrained": "cut",
    "student-aligned": "align",
    "student-refined": "refine",
}
BRANCHES = {"student-int8": "quantise", "student-ann": "approximate index"}  # each made of the exported student


def ledger(
    samples: Samples,
    sliced: Samples | None,
    *,
    set_name: str,
    metrics: Sequence[str],
    exported: str,
    confidence: float,
) -> list[dict[str, Any]]:
    """The ledger of one set.

    Args:
        samples: of all systems; those that are no part of the chain are passed over.
        sliced: of the same, as ``slices.cut_up`` by slices; None without slices.
        metrics: of which there is a ledger; all samples have them.
        exported: the system that is quantised, and searched with approximately.

    Returns:
        ``[{"step", "systems": [after, before], "set", "metric", "scope", "before", "after", "difference", "low",
        "high", "verdict", "queries"}]``, the steps in their order, for each metric: ``macro``, each language, each
        ``SLICE=VALUE``; those of branches, the last, also have "branch". Empty where there are no two to compare.
    """
    parts = [(samples, ["macro", *samples.languages])]
    if sliced is not None:
        parts.append((sliced, sliced.languages))
    return [
        {"step": step, "systems": [after, before], "set": set_name, "metric": metric, **row,
         **({"branch": True} if after in BRANCHES else {})}
        for step, before, after in _steps(list(samples.sum_SLM), exported)
        for metric in metrics
        for drawn, scopes in parts
        for row in _rows(drawn, after, before, metric, scopes, confidence)
    ]  # fmt: skip


def _steps(evaluated: Sequence[str], exported: str) -> list[tuple[str, str, str]]:
    """(step, system before, system after): the chain's, then the branches from the exported student.

    Where that one was not evaluated, a branch starts at the last one before it in the chain.
    """
    chain = [name for name in CHAIN if name in evaluated]
    order = list(CHAIN)
    until = order.index(exported) if exported in order else len(order) - 1
    made_of = [name for name in chain if order.index(name) <= until]
    steps = [(_between(before, after), before, after) for before, after in pairwise(chain)]
    if not made_of:
        return steps
    unseen = _between(made_of[-1], order[until])  # of the chain, where the exported student was not evaluated
    return steps + [(f"{unseen} + {step}" if unseen else step, made_of[-1], name)
                    for name, step in BRANCHES.items() if name in evaluated]  # fmt: skip


def _between(before: str, after: str) -> str:
    """All steps of the chain from one system to another."""
    order = list(CHAIN)
    return " + ".join(str(CHAIN[name]) for name in order[order.index(before) + 1 : order.index(after) + 1])


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
