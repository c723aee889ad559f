"""What every reader returns: documents, queries and judgments before any of them is left out or split."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from harness.data.records import Documents

Judgments = dict[str, dict[str, float]]  # query id -> document id -> score (above 0: relevant)


@dataclass
class Queries:
    """Columns of equal length; ``groups`` holds a query's own groups (usually one, none if the data says nothing).

    ``contexts``: ``""`` for none. ``other_contexts`` counts lines whose query has had another context already.
    """

    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    groups: list[tuple[str, ...]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    contexts: list[str] = field(default_factory=list)
    other_contexts: int = 0


@dataclass
class Source:
    """A data set as read.

    Args:
        document_groups: the group of each document, ``""`` where it has none.
        judgments: per split ``train``, ``dev``, ``test``; a split that the data doesn't have is absent. Every id in it
            is known.
    """

    documents: Documents
    document_groups: list[str]
    queries: Queries
    judgments: dict[str, Judgments]


class Judged(NamedTuple):
    """What is known of one query in one split: its row in ``Queries``, and documents that are and are not relevant."""

    row: int
    positives: dict[str, float]
    negatives: tuple[str, ...]


Split = dict[str, Judged]  # query id -> what is known of it
