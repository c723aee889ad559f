"""The queries that are shown because teacher and student disagree on them."""

from __future__ import annotations

import json

import numpy as np
from builders.evaluations import per_query

from harness.data.records import Documents, Record
from harness.evaluation.disagreements import LONGEST, MOST, SHOWN, disagreements, most_different
from harness.evaluation.per_query import PerQuery


def _systems(languages: list[str], student: list[float], reference: list[float]) -> tuple[PerQuery, PerQuery]:
    numbers = list(range(len(languages)))
    pair = per_query(languages, numbers, student), per_query(languages, numbers, reference)
    for one in pair:
        one.agreement["overlap@10"] = np.ones(len(languages))
    return pair


def test_largest_losses_and_gains_first_then_least_overlap() -> None:
    student, reference = _systems(["aa"] * 5, [0.0, 1.0, 0.5, 0.5, 0.5], [1.0, 0.25, 0.5, 0.5, 0.5])
    student.agreement["overlap@10"] = np.array([1.0, 1.0, 0.4, 1.0, 0.2])
    assert most_different(student, reference) == [0, 1, 4, 2], "loss, gain, least overlap; one is alike"


def test_no_language_fills_the_list() -> None:
    languages = ["aa"] * 200 + ["bb"] * 30 + ["cc"] * 3
    student, reference = _systems(languages, [0.0] * 200 + [0.9] * 33, [1.0] * 233)
    chosen = [languages[at] for at in most_different(student, reference)]
    assert len(chosen) == MOST
    assert [chosen.count(language) for language in ("aa", "bb", "cc")] == [9, 8, 3]
    assert chosen[:3] == ["aa", "bb", "cc"], "of a turn, the most different first"


def test_without_disagreement_there_is_nothing_to_show() -> None:
    student, reference = _systems(["aa", "bb"], [0.5, 1.0], [0.5, 1.0])
    assert most_different(student, reference) == []


def test_hits_stand_side_by_side_with_what_is_known_of_them() -> None:
    script = "<script>alert('x')</script>"
    student, reference = _systems(["aa", "bb"], [0.25, 1.0], [1.0, 1.0])
    student.hits = [[f"d{n}" for n in range(9)], ["d0"]]
    reference.hits = [["d3", "d1"], ["d0"]]
    texts = [script, "x" * 299, "x" * 300, "x" * 301, "é" * 1000, "", "a", "b", "c"]
    documents = Documents([f"d{n}" for n in range(9)], texts)
    records = [Record("q1", "other", "bb", "1", {"d0": 1.0}),
               Record("q0", f"{script}{'long' * 100}", "aa", "0", {"d3": 2.0}, ("d0",))]  # fmt: skip
    (shown,) = disagreements(student, reference, records, documents)
    assert (shown["id"], shown["language"], shown["metric"]) == ("q0", "aa", "nDCG@10")
    assert (shown["reference_score"], shown["score"]) == (1.0, 0.25)
    assert shown["query"].startswith(script) and len(shown["query"]) == LONGEST, "data stays data, and is cut"
    assert [hit["id"] for hit in shown["hits"]] == [f"d{n}" for n in range(SHOWN)]
    assert [hit["relevant"] for hit in shown["hits"]] == [False, None, None, True, None]
    assert [len(hit["text"]) for hit in shown["hits"]] == [len(script), 299, 300, 300, 300]
    assert shown["hits"][3]["text"].endswith("x…") and shown["reference_hits"] == [
        {"id": "d3", "text": shown["hits"][3]["text"], "relevant": True},
        {"id": "d1", "text": "x" * 299, "relevant": None},
    ]  # fmt: skip
    assert json.loads(json.dumps(shown)) == shown, "plain JSON"
