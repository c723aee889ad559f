"""Who may not be whose negative, against a definition written out by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.records import Documents, Record
from harness.data.relevance import Relevance


def _documents(rows: list[tuple[str, str, str]]) -> Documents:
    texts, languages, keys = ([row[column] for row in rows] for column in range(3))
    return Documents([f"d{number}" for number in range(len(rows))], texts, languages, keys)


def _same_classes(documents: Documents) -> list[list[bool]]:
    """Whether two documents are equivalent: the closure of equal text and equal key."""
    size = len(documents)
    texts = [" ".join(text.casefold().split()) for text in documents.texts]
    keys = [key or number for number, key in enumerate(documents.keys)]
    same = np.array([[texts[a] == texts[b] or keys[a] == keys[b] for b in range(size)] for a in range(size)])
    for _ in range(size):
        same = (same.astype(int) @ same.astype(int)) > 0
    return same.tolist()


_document = st.tuples(
    st.sampled_from(["red shoe", "Red  Shoe", "blue shoe", "hat", "coat", "sock"]),
    st.sampled_from(["de", "en"]),
    st.sampled_from(["", "", "k1", "k2", "k3"]),
)

_question = st.tuples(
    st.sampled_from(["a", "A ", "b"]), st.sampled_from(["de", "en", "fr"]), st.sets(st.integers(0, 9), min_size=1)
)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(_document, min_size=1, max_size=10),
    asked=st.lists(_question, min_size=1, max_size=6),
    within=st.booleans(),
)  # fmt: skip
def test_equals_the_definition(
    rows: list[tuple[str, str, str]], asked: list[tuple[str, str, set[int]]], within: bool
) -> None:
    documents = _documents(rows)
    queries = [
        Record(f"q{number}", text, language, "g", {f"d{row % len(rows)}": 1.0 for row in sorted(positives)})
        for number, (text, language, positives) in enumerate(asked)
    ]
    same = _same_classes(documents)
    relevance = Relevance(documents, queries, within_language=within)
    assert [[a == b for b in relevance.class_N] for a in relevance.class_N] == same
    expected = np.zeros((len(queries), len(documents)), dtype=bool)
    for i, query in enumerate(queries):
        for other in queries:
            if query.text.strip().casefold() == other.text.strip().casefold() and (
                not within or query.language == other.language
            ):
                for positive in other.positives:
                    expected[i] |= same[documents.row[positive]]
        if within:
            expected[i] |= np.array([language != query.language for language in documents.languages])
    every = np.arange(len(queries))
    np.testing.assert_array_equal(relevance.forbidden(every), expected)
    some = np.array([len(queries) - 1, 0, 0])
    document_M = np.arange(len(documents))[::-1].repeat(2)
    np.testing.assert_array_equal(relevance.forbidden(some, document_M), expected[some][:, document_M])
    own = np.stack([np.roll(document_M, shift) for shift in range(3)])
    np.testing.assert_array_equal(relevance.forbidden(some, own), np.take_along_axis(expected[some], own, axis=1))
    for i, query in enumerate(queries):  # whatever else: a known positive is never allowed as a negative
        assert relevance.forbidden(np.array([i]), np.array([documents.row[id_] for id_ in query.positives])).all()


def test_padding_is_forbidden_and_nothing_asked_is_fine() -> None:
    documents = _documents([("a", "en", ""), ("b", "en", "")])
    queries = [Record("q", "x", "en", "g", {"d0": 1.0})]
    for within in (False, True):
        relevance = Relevance(documents, queries, within_language=within)
        assert relevance.forbidden(np.array([0]), np.array([1, -1, 0])).tolist() == [[False, True, True]]
        assert relevance.forbidden(np.array([0]), np.array([], dtype=np.int64)).shape == (1, 0)
        assert relevance.forbidden(np.array([], dtype=np.int64)).shape == (0, 2)


def test_classes_travel_through_texts_and_keys() -> None:
    rows = [
        ("a", "en", "k1"),
        ("b", "en", "k1"),
        ("B", "de", "k2"),
        ("c", "de", "k2"),
        ("d", "en", ""),
        ("D ", "fr", ""),
    ]
    relevance = Relevance(_documents(rows), [], within_language=False)
    assert relevance.class_N.tolist() == [0, 0, 0, 0, 1, 1]
    assert relevance.class_N.dtype == np.int64


@pytest.mark.parametrize("within", [False, True])
def test_many_documents(within: bool) -> None:
    random = np.random.default_rng(0)
    size = 20_000
    documents = _documents([(f"text {n // 2}", ("de", "en")[n % 2], "") for n in range(size)])
    queries = [Record(f"q{n}", f"query {n}", "en", "g", {f"d{random.integers(size)}": 1.0}) for n in range(500)]
    relevance = Relevance(documents, queries, within_language=within)
    mask = relevance.forbidden(np.arange(500))
    assert mask.shape == (500, size) and mask.sum() == (500 * (size // 2 + 1) if within else 1000)
