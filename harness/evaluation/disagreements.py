"""The queries on which a student and the reference disagree most, side by side: for people to look at.

From stored evaluations and the documents' texts. Texts are data: whoever shows them must escape them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from harness.data.records import Documents, Record
from harness.evaluation.per_query import PerQuery

MOST = 20  # queries of a system on a set
SHOWN = 5  # hits of each side
LONGEST = 300  # characters of a text
METRIC = "nDCG@10"
OVERLAP = "overlap@10"


def disagreements(
    system: PerQuery, reference: PerQuery, records: Sequence[Record], documents: Documents, metric: str = METRIC
) -> list[dict[str, Any]]:
    """At most ``MOST`` queries: those with the largest loss or gain of ``metric``, and of equal ones least overlap.

    Languages take turns, so that one does not fill the list. Queries answered alike are left out.

    Args:
        system, reference: both with hits, of the same queries in the same order.
        records: these queries, in any order.

    Returns:
        ``[{"query", "id", "language", "metric", "reference_score", "score", "reference_hits", "hits"}]``, a hit being
        ``{"id", "text", "relevant"}`` with True, False (judged so) or None (not judged).
    """
    asked = {record.id: record for record in records}
    return [
        {
            "query": cut(asked[system.ids[at]].text), "id": system.ids[at], "language": system.languages[at],
            "metric": metric, "reference_score": float(reference.metrics[metric][at]),
            "score": float(system.metrics[metric][at]),
            "reference_hits": _shown(reference.hits[at], asked[system.ids[at]], documents),
            "hits": _shown(system.hits[at], asked[system.ids[at]], documents),
        }
        for at in most_different(system, reference, metric)
    ]  # fmt: skip


def most_different(system: PerQuery, reference: PerQuery, metric: str = METRIC) -> list[int]:
    """The places of the queries that are answered most differently, as ``disagreements`` orders them."""
    change_Q = system.metrics[metric] - reference.metrics[metric]
    overlap = system.agreement.get(OVERLAP)
    by_language: dict[str, list[tuple[float, float, int]]] = {}
    for at, change in enumerate(change_Q.tolist()):
        shared = float(overlap[at]) if overlap is not None else 1.0
        if change or shared < 1:
            by_language.setdefault(system.languages[at], []).append((-abs(change), shared, at))
    turns = zip_longest(*(sorted(found)[:MOST] for found in by_language.values()))
    ordered = [entry for turn in turns for entry in sorted(entry for entry in turn if entry is not None)]
    return [at for _, _, at in ordered[:MOST]]


def cut(text: str) -> str:
    """The text, or its beginning and an ellipsis: ``LONGEST`` characters at most."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _shown(hits: Sequence[str], record: Record, documents: Documents) -> list[Mapping[str, Any]]:
    judged = {**dict.fromkeys(record.negatives, False), **dict.fromkeys(record.positives, True)}
    return [
        {"id": hit, "text": cut(documents.texts[documents.row[hit]]), "relevant": judged.get(hit)}
        for hit in hits[:SHOWN]
    ]
