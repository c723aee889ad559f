"""TREC run files and qrels: pytrec_eval finds in the files what we found, ties or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import pytrec_eval

from harness.data.records import Documents, Record
from harness.evaluation.per_query import PerQuery
from harness.evaluation.searching import judged
from harness.evaluation.trec import column_names, falling, write_qrels, write_run
from harness.runtime.errors import InputError
from harness.vectors.index import VectorIndex

ORACLE = {"P@1": "P_1", "P@10": "P_10", "nDCG@10": "ndcg_cut_10", "Recall@100": "recall_100"}


def _searched(seed: int, documents: int = 150) -> tuple[PerQuery, list[Record]]:
    """A search by vectors of so few values that most scores are ties, with graded judgments; ids with blanks."""
    random = np.random.default_rng(seed)
    ids = [f"d {n}" if n % 7 == 0 else f"d{n}%20" if n % 11 == 0 else f"d{n}" for n in random.permutation(documents)]
    index = VectorIndex.build(random.integers(0, 2, (documents, 3)).astype(np.float32), ids, kind="exact")
    query_QD = random.integers(0, 2, (20, 3)).astype(np.float32)
    records = []
    for number in range(20):
        judged_ids = random.choice(ids, size=random.integers(1, 30), replace=False).tolist()
        grades = {id_: float(random.integers(0, 4)) for id_ in judged_ids[1:]} | {judged_ids[0]: 2.0}
        records.append(Record(f"q {number}", "text", "aa", f"g{number}", {i: g for i, g in grades.items() if g > 0},
                              tuple(i for i, g in grades.items() if g == 0)))  # fmt: skip
    score_QK, row_QK = index.search(query_QD, 100)
    return judged(score_QK, row_QK, records, Documents(ids)), records


def _parsed(run: Path, qrels: Path) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    with run.open(encoding="utf-8") as lines:
        found = pytrec_eval.parse_run(lines)
    with qrels.open(encoding="utf-8") as lines:
        return found, pytrec_eval.parse_qrel(lines)


@pytest.mark.parametrize("seed", range(3))
def test_pytrec_eval_finds_our_metrics_in_the_files(seed: int, tmp_path: Path) -> None:
    result, records = _searched(seed)
    assert (np.diff(result.scores) == 0).any(), "no ties: the test would show nothing"
    run, qrels = tmp_path / "a.run", tmp_path / "a.qrels"
    write_run(run, result, "system")
    assert write_qrels(qrels, records)
    found, judgments = _parsed(run, qrels)
    for record in records:
        grades = {**record.positives, **dict.fromkeys(record.negatives, 0)}
        assert judgments[record.id.replace(" ", "%20")] == {i.replace(" ", "%20"): g for i, g in grades.items()}
    measured = pytrec_eval.RelevanceEvaluator(judgments, set(ORACLE.values())).evaluate(found)
    for ours, theirs in ORACLE.items():
        told = [measured[f"q%20{number}"][theirs] for number in range(20)]
        np.testing.assert_allclose(result.metrics[ours], told, atol=1e-12, err_msg=ours)
    assert 0 < result.metrics["nDCG@10"].mean() < 1
    first = run.read_text(encoding="utf-8").splitlines()[0].split(" ")
    assert first[:2] == ["q%200", "Q0"] and first[3] == "1" and first[5] == "system" and len(first) == 6


def test_scores_fall_and_stay_what_they_were() -> None:
    score_QK = np.array([[0.5, 0.5, 0.5, 0.25], [0.0, 0.0, -0.0, -np.inf], [3.0, 2.0, 1.0, -1.0]], np.float32)
    falling_QK = falling(score_QK)
    assert (falling_QK[:, 1:] < falling_QK[:, :-1]).all()
    np.testing.assert_allclose(falling_QK, score_QK, rtol=1e-6, atol=1e-40)
    np.testing.assert_array_equal(falling_QK[2], score_QK[2])
    written = np.array([float(f"{score:.9g}") for score in falling_QK.ravel().tolist()], np.float32)
    np.testing.assert_array_equal(written.reshape(score_QK.shape), falling_QK, "a float32 has nine digits")


def test_a_query_without_hits_has_no_line(tmp_path: Path) -> None:
    score_QK, row_QK = np.full((1, 3), -np.inf, np.float32), np.full((1, 3), -1)
    nothing = judged(score_QK, row_QK, [Record("q", "text", "aa", "g", {"d": 1.0})], Documents(["d"]))
    write_run(tmp_path / "a.run", nothing, "system")
    assert (tmp_path / "a.run").read_text() == ""


def test_ids_that_escaping_makes_equal_are_refused(tmp_path: Path) -> None:
    assert column_names(["a b", "a%20b2", "plain", "x\u3000y"], "f") == {"a b": "a%20b", "x\u3000y": "x%E3%80%80y"}
    with pytest.raises(InputError, match=r"whitespace(.|\n)*'a b' as 'a%20b'"):
        column_names(["a b", "a%20b"], "f")
    records = [Record("q", "text", "aa", "g", {"a b": 1.0, "a%20b": 1.0})]
    with pytest.raises(InputError):
        write_qrels(tmp_path / "a.qrels", records)
    assert not list(tmp_path.iterdir())


def test_grades_that_trec_eval_would_cut_are_not_written(tmp_path: Path) -> None:
    assert not write_qrels(tmp_path / "a.qrels", [Record("q", "text", "aa", "g", {"d": 0.5})])
    assert not (tmp_path / "a.qrels").exists()
