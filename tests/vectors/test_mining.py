from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from builders.vectors import unit_vectors

from harness.data.records import Documents, Record
from harness.data.relevance import Relevance
from harness.runtime.errors import InputError, StaleArtefactError
from harness.vectors import mining
from harness.vectors.index import VectorIndex
from harness.vectors.mining import load_mined, mine, save_mined

LANGUAGES = ("de", "en")
DOCUMENTS, QUERIES = 60, 41


def built(within: bool) -> tuple[Documents, list[Record], VectorIndex, np.ndarray]:
    random = np.random.default_rng(3)
    texts = [f"text {number % 50}" for number in range(DOCUMENTS)]  # ten documents have an equal text
    documents = Documents(
        ids=[f"d{number:02d}" for number in range(DOCUMENTS)],
        texts=texts,
        languages=[LANGUAGES[number % 2] for number in range(DOCUMENTS)],
        keys=["shared" if number in (20, 31) else "" for number in range(DOCUMENTS)],
    )
    records = [
        Record(f"q{number}", f"query {number}", LANGUAGES[number % 2], f"g{number}",
               {f"d{2 * int(row) + number % 2:02d}": 1.0 for row in random.choice(30, size=2, replace=False)})
        for number in range(QUERIES)
    ]  # fmt: skip
    partition = documents.languages if within else None
    index = VectorIndex.build(unit_vectors(DOCUMENTS, 8), documents.ids, kind="exact", partition_N=partition)
    return documents, records, index, unit_vectors(QUERIES, 8, seed=1)


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize(("top_k", "skip", "keep"), [(10, 0, 4), (12, 3, 5), (5, 2, 8), (100, 0, 70), (2, 5, 3)])
def test_mining_equals_the_plain_definition(
    within: bool, top_k: int, skip: int, keep: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mining, "SEARCHED", 16)
    monkeypatch.setattr(mining, "FILTERED", 5)
    documents, records, index, query_QD = built(within)
    relevance = Relevance(documents, records, within_language=within)
    partition = [record.language for record in records] if within else None
    row_QM, score_QM = mine(
        index, query_QD, top_k=top_k, skip=skip, keep=keep, forbidden=relevance.forbidden, partition_Q=partition
    )
    assert row_QM.shape == score_QM.shape == (QUERIES, keep)
    for number in range(QUERIES):
        scores, rows = index.search(query_QD[number : number + 1], top_k, partition and partition[number : number + 1])
        forbidden = relevance.forbidden(np.array([number]))[0]
        good = [(row, score) for row, score in zip(rows[0], scores[0], strict=True) if row >= 0 and not forbidden[row]]
        expected = good[skip : skip + keep]
        count = len(expected)
        assert row_QM[number, :count].tolist() == [row for row, _ in expected]
        np.testing.assert_allclose(score_QM[number, :count], [score for _, score in expected], atol=1e-6)
        assert (row_QM[number, count:] == -1).all() and np.isneginf(score_QM[number, count:]).all()
        assert not {documents.ids[row] for row in row_QM[number] if row >= 0} & set(records[number].positives)


def test_what_was_mined_is_read_again_with_an_audit(tmp_path: Path) -> None:
    ids = ["a", "b", "c", "d"]
    row_QM = np.array([[2, 0, -1], [-1, -1, -1], [3, 1, 0]])
    score_QM = np.array([[0.9, 0.5, -np.inf], [-np.inf] * 3, [0.4, 0.3, 0.2]], dtype=np.float32)
    positive_Q = np.array([0.8, 0.9, np.nan])
    audit = save_mined(tmp_path / "mined", ["q1", "q2", "q3"], ids, row_QM, score_QM, positive_score_Q=positive_Q)
    row = {"d": 10, "c": 11, "b": 12, "a": 13}  # the rows of today
    read_QM, read_score_QM = load_mined(tmp_path / "mined", ["q3", "q2", "q1"], row)
    assert read_QM.tolist() == [[10, 12, 13], [-1, -1, -1], [11, 13, -1]]
    np.testing.assert_array_equal(read_score_QM, score_QM[::-1])
    with pytest.raises(StaleArtefactError, match=r"1 queries are not in it[\s\S]*'q9'[\s\S]*1 documents[\s\S]*'a'"):
        load_mined(tmp_path / "mined", ["q1", "q9"], {"b": 0, "c": 1, "d": 2})
    assert json.loads((tmp_path / "mined" / "audit.json").read_text()) == audit
    assert (audit["queries"], audit["queries_without_negatives"], audit["negatives"]) == (3, 1, 5)
    assert audit["scores"]["negatives"]["max"] == pytest.approx(0.9)
    assert audit["scores"]["positives"]["mean"] == pytest.approx(0.85)
    assert audit["negatives_above_their_positive"] == pytest.approx(1 / 2)
    nothing = np.full((1, 2), -1)
    audit = save_mined(tmp_path / "mined", ["q"], ids, nothing, np.full((1, 2), -np.inf, dtype=np.float32))
    assert audit["scores"] == {"negatives": None}
    assert load_mined(tmp_path / "mined", ["q"], row)[0].shape == (1, 0)


def test_nothing_mined_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no mined negatives"):
        load_mined(tmp_path, [], {})
    (tmp_path / "mined.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="damaged"):
        load_mined(tmp_path, [], {})
