"""Who may not be whose negative. Axes: B queries of a batch, M documents asked about, N all documents, C classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harness.data.records import Documents, Record, normal_text

Ints = NDArray[np.int64]


class Relevance:
    """Knows, for each query, the documents that may not be its negatives.

    Documents equal in text (case folded, whitespace joined) or in a non-empty key are one class, transitively. A class
    that holds a known positive of a query, or of another query with the same text, is never negative for it. Within a
    language, only queries of the same language count as the same, and documents of other languages are no candidates.

    Args:
        queries: the known records; ``forbidden`` names them by their row here.
        within_language: a query searches only the documents of its language.
    """

    def __init__(self, documents: Documents, queries: Sequence[Record], *, within_language: bool) -> None:
        self.class_N = _equivalence_classes(documents)
        self._members = _Lists.invert(self.class_N)
        asked: dict[tuple[str, str], int] = {}
        self._asked = np.array(
            [
                asked.setdefault((normal_text(query.text), query.language if within_language else ""), len(asked))
                for query in queries
            ],
            dtype=np.int64,
        )
        counts = np.array([len(query.positives) for query in queries], dtype=np.int64)
        row = documents.row
        positive = np.array([row[id_] for query in queries for id_ in query.positives], dtype=np.int64)
        self._known = _Lists.collect(np.repeat(self._asked, counts), self.class_N[positive], len(asked))
        self._language_N: Ints | None = None
        if within_language:
            codes: dict[str, int] = {}
            self._language_N = np.array([codes.setdefault(name, len(codes)) for name in documents.languages], np.int32)
            self._language_of_query = np.array([codes.get(query.language, -1) for query in queries], np.int32)

    def forbidden(self, query_B: Ints, document_M: Ints | None = None) -> NDArray[np.bool_]:
        """Which documents may not be negatives of which queries.

        Args:
            query_B: rows of the queries given to the constructor.
            document_M: rows of documents, the same for all queries; or int64_BM, each query's own; ``None`` is all
                documents. A row below 0 (the padding of a list of hits) is forbidden.

        Returns:
            bool_BM: a query's own positives are ``True`` too; a loss keeps the positive that it has chosen.
        """
        query_B = np.asarray(query_B, dtype=np.int64)
        slot, known_class = self._known.take(self._asked[query_B])
        if document_M is None:
            at, document = self._members.take(known_class)
            result = np.zeros((len(query_B), len(self.class_N)), dtype=np.bool_)
            if self._language_N is not None:
                np.not_equal(self._language_N, self._language_of_query[query_B, None], out=result)
            result[slot[at], document] = True
            return result
        document_M = np.asarray(document_M, dtype=np.int64)
        result = self._among(slot, known_class, len(query_B), document_M)
        if self._language_N is not None:
            result |= self._language_N[document_M] != self._language_of_query[query_B, None]
        return result | (document_M < 0)

    def related(self, query_B: Ints, query_M: Ints) -> NDArray[np.bool_]:
        """Which queries may not be negatives of which: those with the same text, or with a positive in common.

        Within a language, queries of other languages are no candidates either.

        Returns:
            bool_BM: a query is related to itself.
        """
        query_B, query_M = np.asarray(query_B, dtype=np.int64), np.asarray(query_M, dtype=np.int64)
        result = self._asked[query_B][:, None] == self._asked[query_M]
        at, known = self._known.take(self._asked[query_B])
        other_at, other_known = self._known.take(self._asked[query_M])
        order = np.argsort(other_known, kind="stable")
        first, last = (np.searchsorted(other_known[order], known, side) for side in ("left", "right"))
        counts = last - first  # of the other queries that know the class, for each class that is known
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        result[np.repeat(at, counts), other_at[order[np.repeat(first, counts) + within]]] = True
        if self._language_N is not None:
            result |= self._language_of_query[query_B, None] != self._language_of_query[query_M]
        return result

    def _among(self, slot: Ints, known_class: Ints, queries: int, document_M: Ints) -> NDArray[np.bool_]:
        """Whether the classes of the documents are known to the queries, by a table of queries x distinct classes."""
        if not document_M.size:
            return np.zeros((queries, document_M.shape[-1]), dtype=np.bool_)
        distinct, inverse = np.unique(self.class_N[document_M], return_inverse=True)
        inverse = inverse.reshape(document_M.shape)
        place = np.minimum(np.searchsorted(distinct, known_class), len(distinct) - 1)
        present = distinct[place] == known_class
        table = np.zeros((queries, len(distinct)), dtype=np.bool_)
        table[slot[present], place[present]] = True
        return table[:, inverse] if inverse.ndim == 1 else np.take_along_axis(table, inverse, axis=1)


class _Lists:
    """Many lists of integers in one array: list i is ``values[starts[i]:starts[i + 1]]``."""

    def __init__(self, owner: Ints, values: Ints, count: int) -> None:
        self._values = values
        self._starts = np.zeros(count + 1, dtype=np.int64)
        np.cumsum(np.bincount(owner, minlength=count), out=self._starts[1:])

    @classmethod
    def invert(cls, class_N: Ints) -> _Lists:
        """Class -> the rows that have it."""
        order = np.argsort(class_N, kind="stable")
        return cls(class_N, order, int(class_N.max()) + 1 if len(class_N) else 0)

    @classmethod
    def collect(cls, owner: Ints, values: Ints, count: int) -> _Lists:
        """Owner -> its distinct values, rising."""
        base = int(values.max(initial=0)) + 1
        return cls(*np.divmod(np.unique(owner * base + values), base), count)

    def take(self, lists: Ints) -> tuple[Ints, Ints]:
        """The values of several lists one after the other, and for each the position in ``lists`` that it came from."""
        starts = self._starts[lists]
        lengths = self._starts[lists + 1] - starts
        at = np.repeat(np.arange(len(lists)), lengths)
        within = np.arange(len(at)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return at, self._values[starts[at] + within]


def _equivalence_classes(documents: Documents) -> Ints:
    """int64_N: the class of each document, numbered by first occurrence."""
    texts: dict[str, int] = {}
    text_N = np.array([texts.setdefault(normal_text(text), len(texts)) for text in documents.texts], dtype=np.int64)
    keys: dict[str, int] = {}
    key_N = np.array([keys.setdefault(key, len(keys)) if key else -1 for key in documents.keys], dtype=np.int64)
    keyed = key_N >= 0
    if not keyed.any():
        return text_N
    label_N = text_N
    while True:  # the smallest label travels through equal keys and equal texts until nothing moves
        smallest = np.full(len(keys), len(texts))
        np.minimum.at(smallest, key_N[keyed], label_N[keyed])
        moved_N = label_N.copy()
        moved_N[keyed] = np.minimum(label_N[keyed], smallest[key_N[keyed]])
        of_text = np.full(len(texts), len(texts))
        np.minimum.at(of_text, text_N, moved_N)
        moved_N = of_text[text_N]
        if np.array_equal(moved_N, label_N):
            return np.unique(label_N, return_inverse=True)[1].astype(np.int64)
        label_N = moved_N
