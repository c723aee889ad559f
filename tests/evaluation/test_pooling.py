"""Pools of unjudged pairs, and their labels: out and back again, and everything that can be wrong on the way."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
from builders.evaluations import per_query
from hypothesis import given
from hypothesis import strategies as st

from harness.data.records import Documents, Record
from harness.evaluation.per_query import PerQuery
from harness.evaluation.pooling import Known, cell, plain, pooled, read_labels, with_labels, write_pool
from harness.runtime.errors import InputError

FORMULA = '=HYPERLINK("http://x","y")'
NAMES = ["d0", "-d1", "=d2", "'d3", 'd"4', "d 5", "d6"]
TEXTS = ["plain", FORMULA, "tab\there", "line\nbreak\x07\u2028", '"quoted"', "  +1", "x" * 40_000]
DOCUMENTS = Documents(NAMES, TEXTS)
RECORDS = [
    Record("@q0", "<script>alert(1)</script>", "aa", "g0", {"d0": 1.0}, ("d6",)),
    Record("q1", FORMULA, "bb", "g1", {"d6": 2.0}),
    Record("q2", "nothing found", "bb", "g2", {"d6": 1.0}),
]
KNOWN = Known({record.id: record for record in RECORDS}, DOCUMENTS.row, {})


def _answers(hits: list[list[str]]) -> PerQuery:
    found = per_query(["aa", "bb", "bb"], [0, 1, 2], [0.0, 0.0, 0.0])
    found.ids, found.hits = ["@q0", "q1", "q2"], hits
    return found


ANSWERS = {
    "teacher": _answers([["d0", "-d1", "=d2"], ["'d3", "d6"], ["d6"]]),
    "student": _answers([["=d2", "d6", 'd"4', "d 5"], ["d6", "-d1"], []]),
}


def test_the_pool_is_what_any_system_found_and_nobody_judged() -> None:
    told = [(pair.record.id, pair.document, pair.found) for pair in pooled(RECORDS, ANSWERS, depth=3)]
    assert told == [
        ("@q0", "=d2", {"teacher": 3, "student": 1}), ("@q0", "-d1", {"teacher": 2}), ("@q0", 'd"4', {"student": 3}),
        ("q1", "'d3", {"teacher": 1}), ("q1", "-d1", {"student": 2}),
    ]  # fmt: skip
    deeper = pooled(RECORDS, ANSWERS, depth=4)
    assert len(deeper) == len(told) + 1, "one system's fourth hit"
    order = [dict(reversed(ANSWERS.items())), ANSWERS]
    assert [[pair.document for pair in pooled(RECORDS, systems, 4)] for systems in order] == [
        [pair.document for pair in deeper]
    ] * 2, "whoever comes first"


@pytest.mark.parametrize("suffix", ["jsonl", "tsv"])
@pytest.mark.parametrize("blind", [False, True])
def test_labels_come_back_as_they_were_given(tmp_path: Path, suffix: str, blind: bool) -> None:
    pairs = pooled(RECORDS, ANSWERS, depth=4)
    path = tmp_path / f"pool.{suffix}"
    write_pool(path, pairs, DOCUMENTS, blind=blind, seed=1)
    grades = {(pair.record.id, pair.document): number % 3 for number, pair in enumerate(pairs)}
    _fill_in(path, grades)
    labels, empty = read_labels(path, KNOWN)
    wanted = {pair: grade for pair, grade in grades.items() if grade is not None}
    assert {(query, document): grade for query, own in labels.items() for document, grade in own.items()} == wanted
    assert empty == 0 and all(isinstance(grade, float) for own in labels.values() for grade in own.values())


def _fill_in(path: Path, grades: dict[tuple[str, str], int], only: int | None = None) -> None:
    """What a rater's tool does: reads the file, writes it with grades."""
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for line in lines[:only]:
            line["grade"] = grades[line["query_id"], line["document_id"]]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return
    with path.open(newline="", encoding="utf-8") as stream:
        header, *rows = csv.reader(stream, dialect="excel-tab")
    place = header.index("grade")
    for row in rows[:only]:
        row[place] = str(grades[plain(row[0]), plain(row[1])])
    with path.open("w", newline="", encoding="utf-8-sig") as stream:  # a spreadsheet's BOM, and its line ends
        csv.writer(stream, dialect="excel-tab").writerows([header, *rows])


def test_pairs_without_a_grade_are_not_yet_rated(tmp_path: Path) -> None:
    pairs = pooled(RECORDS, ANSWERS, depth=4)
    for suffix in ("jsonl", "tsv"):
        path = tmp_path / f"pool.{suffix}"
        write_pool(path, pairs, DOCUMENTS, blind=False, seed=0)
        with pytest.raises(InputError, match="no pair has a grade"):
            read_labels(path, KNOWN)
        _fill_in(path, {(pair.record.id, pair.document): 1 for pair in pairs}, only=2)
        labels, empty = read_labels(path, KNOWN)
        assert sum(map(len, labels.values())) == 2 and empty == len(pairs) - 2


def test_a_spreadsheet_computes_nothing_and_finds_no_other_cells(tmp_path: Path) -> None:
    pairs = pooled(RECORDS, ANSWERS, depth=4)
    write_pool(tmp_path / "pool.tsv", pairs, DOCUMENTS, blind=False, seed=0)
    text = (tmp_path / "pool.tsv").read_text(encoding="utf-8")
    assert len(text.split("\n")) == len(pairs) + 2, "a line a pair"
    with (tmp_path / "pool.tsv").open(newline="", encoding="utf-8") as stream:
        header, *rows = csv.reader(stream, dialect="excel-tab")
    assert rows and all(len(row) == len(header) for row in rows)
    assert not any(cell.lstrip().startswith(("=", "+", "-", "@")) for row in rows for cell in row)
    assert max(len(cell) for row in rows for cell in row) <= 32_767


def test_texts_of_jsonl_are_whole(tmp_path: Path) -> None:
    pairs = pooled([RECORDS[1]], {"one": _answers([[], NAMES, []])}, depth=7)
    write_pool(tmp_path / "pool.jsonl", pairs, DOCUMENTS, blind=False, seed=0)
    lines = [json.loads(line) for line in (tmp_path / "pool.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [line["document"] for line in lines] == TEXTS[:6] and lines[0]["query"] == FORMULA
    assert lines[0]["found"] == {"one": 1} and lines[0]["lang"] == "bb" and lines[0]["grade"] is None


def test_a_blind_pool_tells_nothing_of_systems_and_ranks(tmp_path: Path) -> None:
    records = [Record(f"q{n}", f"text {n}", "aa", f"g{n}", {"none": 1.0}) for n in range(30)]
    found = per_query(["aa"] * 30, list(range(30)), [0.0] * 30)
    found.hits = [[f"d{n}", f"e{n}"] for n in range(30)]
    documents = Documents([f"{kind}{n}" for kind in "de" for n in range(30)], ["text"] * 60)
    pairs = pooled(records, {"student-refined": found}, 2)
    for suffix in ("jsonl", "tsv"):
        texts = []
        for seed in (1, 1, 2):
            write_pool(tmp_path / f"pool.{suffix}", pairs, documents, blind=True, seed=seed)
            texts.append((tmp_path / f"pool.{suffix}").read_text())
        assert texts[0] == texts[1] != texts[2] and sorted(texts[0]) == sorted(texts[2])
        assert "student" not in texts[0] and "found" not in texts[0]
    ranks = [line.split('"document_id": "')[1][0] for line in (tmp_path / "pool.jsonl").read_text().splitlines()]
    assert "d" in ranks[:10] and "e" in ranks[:10], "first and second hits are mixed"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_any_text_is_one_cell_and_no_formula(text: str) -> None:
    shown = cell(text)
    assert not shown.lstrip().startswith(("=", "+", "-", "@")) and not set(shown) & set("\t\n\r\x00\x85\u2028")
    if not any(ord(c) < 32 or 126 < ord(c) < 160 or c in "\u2028\u2029" for c in text):
        assert plain(shown) == text, "an id comes back"


# ------------------------------------------------------------------------------------------------------ wrong labels


def _problems(path: Path, known: Known = KNOWN) -> str:
    with pytest.raises(InputError) as caught:
        read_labels(path, known)
    assert not any("on_error" in problem.next for problem in caught.value.problems)
    return str(caught.value)


WRONG = [
    ("@q0", "-d1", 1), ("@q0", "-d1", 1), ("@q0", "=d2", 0), ("@q0", "=d2", 2), ("q9", "d0", 1), ("q1", "d9", 1),
    ("q1", "-d1", 2.5), ("q1", "'d3", "high"), ("q1", "=d2", -1), ("q1", 'd"4', True), ("q1", "d 5", "nan"),
    ("q1", "d6", 1), ("q2", "d0", 3.0),
]  # fmt: skip


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    lines = [json.dumps({"query_id": q, "document_id": d, "grade": grade}) for q, d, grade in WRONG]
    path.write_text("\n".join([*lines, "not JSON", '{"grade": 1}']), encoding="utf-8")
    told = _problems(path)
    for text in (
        "the pair is labelled twice (1 line)", "labelled twice, differently (1 line)", "no such query among those",
        "no such document", "the grade is no whole number from 0 (5 lines)",
        "another grade already, in the data (1 line)",
        "not JSON", "line 4", "q1', 'd6'): 1, and before 2",
    ):  # fmt: skip
        assert text in told, text


def test_a_tsv_is_held_to_the_same(tmp_path: Path) -> None:
    path = tmp_path / "labels.tsv"
    path.write_text("document_id\tgrade\tquery_id\td\n'-d1\t1\t'@q0\tx\nd9\t1\tq1\tx\nd0\t1\tq1\nd0\t1.5\tq1\tx\n")
    told = _problems(path)
    for text in ("no such document", "not the 4 columns", "no whole number", "tsv:3", "tsv:4", "tsv:5"):
        assert text in told, text
    path.write_text("query_id\tdocument_id\nq1\td0\n")
    assert "grade" in _problems(path) and "column is missing" in _problems(path)
    path.write_bytes("query_id\tdocument_id\tgrade\nq1\td0\t1\n".encode("utf-16"))
    assert "UTF-16" in _problems(path)
    path.write_bytes(b"query_id\tdocument_id\tgrade\nq1\td\xff0\t1\n")
    assert "not UTF-8" in _problems(path)
    path.write_text("")
    assert "no pair has a grade" in _problems(path)
    assert "not a file of labels" in _problems(tmp_path / "labels.xlsx")
    assert "no such file" in _problems(tmp_path / "nowhere.tsv")


def test_labels_are_held_against_those_of_before(tmp_path: Path) -> None:
    path = tmp_path / "labels.tsv"
    path.write_text("query_id\tdocument_id\tgrade\nq1\td0\t1\nq1\t-d1\t0\nq1\td6\t2\n'@q0\td6\t0\n")
    earlier = Known(KNOWN.queries, KNOWN.documents, {"q1": {"d0": 1.0}})
    assert read_labels(path, earlier) == ({"q1": {"-d1": 0.0}}, 0), "what agrees with what is known is no news"
    assert "another grade already" in _problems(path, Known(KNOWN.queries, KNOWN.documents, {"q1": {"d0": 0.0}}))


def test_a_later_file_corrects_labels_but_not_the_data(tmp_path: Path) -> None:
    path = tmp_path / "labels.tsv"
    path.write_text("query_id\tdocument_id\tgrade\nq1\td0\t1\nq1\t-d1\t0\n")
    earlier = Known(KNOWN.queries, KNOWN.documents, {"q1": {"d0": 0.0, "-d1": 0.0}})
    assert "--replace" in _problems(path, earlier)
    assert read_labels(path, earlier, replacing=True) == ({"q1": {"d0": 1.0}}, 0)
    path.write_text("query_id\tdocument_id\tgrade\nq1\td6\t1\n")
    told = _problems(path, earlier)
    assert "in the data" in told and "--replace" not in told
    with pytest.raises(InputError, match="in the data"):
        read_labels(path, earlier, replacing=True)


def test_a_grade_above_all_that_there_are_is_a_slip(tmp_path: Path) -> None:
    path = tmp_path / "labels.tsv"
    path.write_text("query_id\tdocument_id\tgrade\nq1\td0\t999999\nq2\td0\t10\n")
    told = _problems(path)
    for part in (":2: the grade is above 10", "(1 line)", "got: line 2 999999", "allowed: whole numbers from 0 to 10",
                 "next: correct the file"):  # fmt: skip
        assert part in told
    far = Record("q3", "text", "bb", "g3", {"d6": 999_999.0})
    assert read_labels(path, Known({**KNOWN.queries, "q3": far}, KNOWN.documents, {}))[0]["q1"] == {"d0": 999_999.0}


def test_a_document_that_the_query_never_meets_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.tsv"
    path.write_text("query_id\tdocument_id\tgrade\nq1\td0\t1\nq1\t-d1\t1\n")
    within = Known(KNOWN.queries, KNOWN.documents, {}, {"d0": "aa", "-d1": "bb"})
    assert "not searched in the document's language (1 line)" in _problems(path, within)
    assert read_labels(path, KNOWN)[0] == {"q1": {"d0": 1.0, "-d1": 1.0}}


def test_labels_join_the_judgments_of_queries_that_are_there() -> None:
    labels = {"q1": {"d0": 2.0, "-d1": 0.0, "gone": 1.0, "d6": 0.0}, "gone": {"d0": 1.0}}
    first, second, third = with_labels(RECORDS, labels, DOCUMENTS.row)
    assert (first, third) == (RECORDS[0], RECORDS[2])
    assert second.positives == {"d6": 2.0, "d0": 2.0} and second.negatives == ("-d1",), "the data's own word stays"
    assert RECORDS[1].positives == {"d6": 2.0}, "the data is as it was"


def test_a_random_order_of_lines_gives_the_same_labels(tmp_path: Path) -> None:
    rows = [f"q1\t{name}\t{n % 2}\n" for n, name in enumerate(NAMES) if name not in ("'d3", 'd"4', "d6")]
    found = []
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        path = tmp_path / f"{seed}.tsv"
        path.write_text("query_id\tdocument_id\tgrade\n" + "".join(rows))
        found.append(read_labels(path, KNOWN)[0])
    assert found[0] == found[1] == found[2] and np.sum([len(own) for own in found[0].values()]) == 4
