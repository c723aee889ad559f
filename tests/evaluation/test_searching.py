"""Searching with queries and judging what was found, and the input that can't be judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders.vectors import unit_vectors

from harness import metrics
from harness.data.records import Documents, Record
from harness.evaluation.per_query import PerQuery
from harness.evaluation.searching import agreement, judge, judgments, quick_quality, search
from harness.runtime.errors import InputError
from harness.vectors.index import VectorIndex

IDS = [f"d{row}" for row in range(30)]
DOCUMENTS = Documents(IDS, [""] * 30, ["de", "en", "fr"] * 10, [""] * 30)
QUERY_QD, VECTOR_ND = unit_vectors(6, 8, seed=1), unit_vectors(30, 8)
RECORDS = [
    Record(f"q{q}", "", ["de", "en"][q % 2], f"g{q}", {f"d{q}": 1.0, f"d{q + 9}": 2.0}, (f"d{q + 1}", f"d{q + 20}"))
    for q in range(6)
]


def index(*, parts: bool = False) -> VectorIndex:
    return VectorIndex.build(VECTOR_ND, IDS, kind="exact", partition_N=DOCUMENTS.languages if parts else None)


def judged(query_QD: np.ndarray = QUERY_QD, **settings: object) -> PerQuery:
    given = {"depth": 100, "within": False, **settings}
    return judge(index(parts=bool(given["within"])), query_QD, RECORDS, DOCUMENTS, **given)  # type: ignore[arg-type]


def test_what_is_stored_of_a_query() -> None:
    found = judged(names=["P@1", "Hit@3", "judged@30", "nDCG@30", "Recall@30"])
    assert list(found.metrics) == ["P@1", "Hit@3", "judged@30", "nDCG@30", "Recall@30"]
    order_QN = np.argsort(-(QUERY_QD @ VECTOR_ND.T), axis=1)
    assert [hits[:9] for hits in found.hits] == [[IDS[row] for row in rows[:9]] for rows in order_QN]
    np.testing.assert_allclose(found.metrics["judged@30"], 4 / 30, err_msg="two relevant and two negatives of thirty")
    assert (found.metrics["Recall@30"] == 1).all()
    assert list(judged().metrics) == list(metrics.REPORTED)


def test_fewer_documents_than_a_metric_looks_at() -> None:
    """Thirty documents, ten of a query's language: what is not there counts as not found."""
    found = judged(within=True, depth=400, names=["P@400", "Recall@400", "Hit@400", "judged@400", "nDCG@10"])
    assert {len(hits) for hits in found.hits} == {10} and found.scores.shape == (6, 30)
    own = [[documents for documents in record.positives if DOCUMENTS.languages[int(documents[1:])] == record.language]
           for record in RECORDS]  # fmt: skip
    assert found.metrics["Recall@400"].tolist() == [len(some) / 2 for some in own]
    assert found.metrics["P@400"].tolist() == [len(some) / 400 for some in own]
    assert (found.metrics["judged@400"] <= 4 / 10).all() and found.metrics["judged@400"].max() >= 0.1


def test_judgments_are_relevant_documents_and_zeros() -> None:
    assert judgments(RECORDS[:1], DOCUMENTS) == [{0: 1.0, 9: 2.0, 1: 0.0, 20: 0.0}]


def test_all_that_cant_be_judged_is_named_at_once() -> None:
    bare, strange = replace(RECORDS[0], positives={}), replace(RECORDS[1], negatives=("gone", "d3"))
    with pytest.raises(InputError, match=r"1 queries without a relevant document[\s\S]*'q0'") as caught:
        judgments([bare, strange], DOCUMENTS)
    assert "1 judged documents are not in the collection" in str(caught.value) and "'gone'" in str(caught.value)
    with pytest.raises(InputError, match="there are no queries to evaluate"):
        judge(index(), QUERY_QD[:0], [], DOCUMENTS, depth=100, within=False)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_query_vectors_that_are_not_finite_are_named_by_query(number: float) -> None:
    query_QD = QUERY_QD.copy()
    query_QD[[1, 4], 3] = number
    with pytest.raises(InputError, match=r"2 query vectors are not finite[\s\S]*'q1', 'q4'"):
        judged(query_QD)
    with pytest.raises(InputError, match="not finite"):
        quick_quality(index(), query_QD, RECORDS, DOCUMENTS, metric="nDCG@3", within=False)


def test_document_vectors_that_are_not_finite_make_no_index() -> None:
    vector_ND = VECTOR_ND.copy()
    vector_ND[[3, 17], 2] = np.nan
    with pytest.raises(InputError, match=r"document vectors that are not finite[\s\S]*'d3', 'd17'"):
        VectorIndex.build(vector_ND, IDS, kind="exact")


def test_a_language_without_documents_has_no_hits_and_scores_zero() -> None:
    records = [replace(RECORDS[0], language="zz"), *RECORDS[1:]]
    found = judge(index(parts=True), QUERY_QD, records, DOCUMENTS, depth=100, within=True)
    assert found.hits[0] == [] and all(column[0] == 0 for column in found.metrics.values())
    near = agreement(QUERY_QD, found, QUERY_QD, found)
    assert near["overlap@10"].tolist() == near["rbo@100"].tolist() == [0, 1, 1, 1, 1, 1]


def test_agreement_with_the_reference() -> None:
    reference, own = judged(), judged(QUERY_QD + 0.3 * unit_vectors(6, 8, seed=2))
    found = agreement(QUERY_QD, own, QUERY_QD, reference)
    assert list(found) == ["overlap@10", "rbo@100", "cosine"]
    rows = [np.array([[IDS.index(hit) for hit in hits] for hits in result.hits]) for result in (own, reference)]
    np.testing.assert_array_equal(found["overlap@10"], metrics.overlap(*rows, 10))
    np.testing.assert_allclose(found["rbo@100"], metrics.rbo(*rows, 100))
    assert 0.2 < found["rbo@100"].mean() < 1 and found["cosine"] == pytest.approx(1)
    same = agreement(QUERY_QD, reference, np.zeros((6, 3)), reference)
    assert list(same) == ["overlap@10", "rbo@100"], "vectors of other dimensions have no cosine"
    assert same["rbo@100"] == pytest.approx(1)


def test_systems_over_different_queries_are_not_compared() -> None:
    reference = judged()
    fewer = judge(index(), QUERY_QD[:5], RECORDS[:5], DOCUMENTS, depth=100, within=False)
    turned = judge(index(), QUERY_QD[::-1], RECORDS[::-1], DOCUMENTS, depth=100, within=False)
    for other in (fewer, turned):
        with pytest.raises(InputError, match=f"did not answer the same queries[\\s\\S]*{len(other)} and 6 queries"):
            agreement(QUERY_QD[: len(other)], other, QUERY_QD, reference)


def test_what_was_stored_comes_back(tmp_path: Path) -> None:
    found = judged()
    found.agreement = agreement(QUERY_QD, found, QUERY_QD, found)
    found.save(tmp_path / "set", {"key": "k"})
    loaded = PerQuery.load(tmp_path / "set")
    assert list(loaded.metrics) == list(metrics.REPORTED) and list(loaded.agreement) == list(found.agreement)
    np.testing.assert_array_equal(loaded.metrics["judged@10"], found.metrics["judged@10"])
    again = search(index(), QUERY_QD, RECORDS, 30, False)
    np.testing.assert_array_equal(loaded.scores, again[0])
