"""What every reader returns: documents, queries and judgments before any of them is left out or split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from harness.data.grouping import GROUP, ID, PARALLEL, Name
from harness.data.records import Documents

Judgments = dict[str, dict[str, float]]  # query id -> document id -> score (above 0: relevant)


@dataclass
class Queries:
    """Columns of equal length; ``groups`` holds a query's own groups (usually one, none if the data says nothing), and
    ``parallels`` its own parallel ids.

    ``contexts``: ``""`` for none. ``other_contexts`` counts lines whose query has had another context already.
    """

    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    groups: list[tuple[str, ...]] = field(default_factory=list)
    parallels: list[tuple[str, ...]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    contexts: list[str] = field(default_factory=list)
    other_contexts: int = 0


@dataclass
class Source:
    """A data set as read.

    Args:
        document_groups: the group of each document, ``""`` where it has none; ``document_parallels``: its parallel id.
        judgments: per split ``train``, ``dev``, ``test``; a split that the data doesn't have is absent. Every id in it
            is known.
    """

    documents: Documents
    document_groups: list[str]
    document_parallels: list[str]
    queries: Queries
    judgments: dict[str, Judgments]

    def names(self, row: int, positives: Iterable[str]) -> list[Name]:
        """What a query is grouped by: ``own_names`` or, failing that, its positives' or else their ids."""
        return self.own_names(row) or [name for id_ in positives for name in self._document_names(id_)]

    def own_names(self, row: int) -> list[Name]:
        """A query's own groups and parallel ids: those that share any of either belong together."""
        return _given_names(self.queries.groups[row], self.queries.parallels[row])

    def _document_names(self, id_: str) -> list[Name]:
        row = self.documents.row[id_]
        given = _given_names((self.document_groups[row],), (self.document_parallels[row],))
        return given or [Name(id_, ID)]


def _given_names(groups: Iterable[str], parallels: Iterable[str]) -> list[Name]:
    kinds = ((GROUP, groups), (PARALLEL, parallels))
    return [Name(text, kind) for kind, texts in kinds for text in texts if text]


class Judged(NamedTuple):
    """What is known of one query in one split: its row in ``Queries``, and documents that are and are not relevant."""

    row: int
    positives: dict[str, float]
    negatives: tuple[str, ...]


Split = dict[str, Judged]  # query id -> what is known of it
