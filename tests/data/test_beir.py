"""Reading BEIR folders: what is in the lines comes back, and what can't be used is counted and named."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders.tiny_data import write_beir, write_jsonl, write_qrels
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.beir import read_beir
from harness.data.grouping import GROUP, PARALLEL, Name
from harness.data.reading import Reading, check_number
from harness.data.source import Source
from harness.recipe import DataSettings, QrelsNames
from harness.runtime.errors import InputError

DOCUMENTS = [
    {"_id": "d1", "title": "A title", "text": " the text ", "lang": "en"},
    {"_id": "d2", "text": "two", "lang": "en"},
]
QUERIES = [
    {"_id": "q1", "text": "eins", "lang": "de"},
    {"_id": "q2", "text": "two?", "lang": "en", "group": "g", "weight": 2},
]


def _read(folder: Path, limit: int | None = None, **options: Any) -> tuple[Source, Reading]:
    reading = Reading(limit)
    return read_beir(folder, DataSettings(source="beir", path=str(folder), **options), reading), reading


def _kinds(reading: Reading) -> dict[str, tuple[int, list[int]]]:
    """kind -> (count, first lines), over all files."""
    return {
        kind: (places["count"], places["first"])
        for kinds in reading.bad_lines().values()
        for kind, places in kinds.items()
    }


def test_columns_and_judgments(tmp_path: Path) -> None:
    write_beir(tmp_path, DOCUMENTS, QUERIES, train=[("q1", "d1", 2), ("q1", "d2", 0)], dev=[("q2", "d2", 0.5)])
    source, reading = _read(tmp_path)
    assert source.documents.ids == ["d1", "d2"]
    assert source.documents.texts == ["A title\nthe text", "two"]
    assert source.documents.languages == ["en", "en"]
    assert source.documents.keys == ["", ""] and source.document_groups == ["", ""]
    assert source.queries.texts == ["eins", "two?"] and source.queries.languages == ["de", "en"]
    assert source.queries.groups == [(), ("g",)] and source.queries.weights == [1.0, 2.0]
    assert source.judgments == {"train": {"q1": {"d1": 2.0, "d2": 0.0}}, "dev": {"q2": {"d2": 0.5}}}
    assert reading.bad_count == 0 and reading.complete


def test_a_group_and_a_parallel_id_both_count_unless_a_field_is_named(tmp_path: Path) -> None:
    documents = [{"_id": "d1", "text": "a", "parallel_id": 7}, {"_id": "d2", "text": "b", "group": "own"}]
    queries = [{"_id": "q1", "text": "a", "parallel_id": "p"}, {"_id": "q2", "text": "b", "group": "g",
               "parallel_id": "p"}, {"_id": "q3", "text": "c", "product": "x", "parallel_id": "p"}]  # fmt: skip
    write_beir(tmp_path, documents, queries, train=[("q1", "d1", 1), ("q2", "d1", 1)], dev=[("q3", "d2", 1)])
    source, _ = _read(tmp_path)
    g, p = Name("g", GROUP), Name("p", PARALLEL)
    assert [source.own_names(row) for row in range(3)] == [[p], [g, p], [p]]
    for field, groups in (("product", [[], [], [Name("x", GROUP)]]), ("group", [[], [g], []])):
        source, _ = _read(tmp_path, group=field)
        assert [source.own_names(row) for row in range(3)] == groups, "a field that is named is the only one"
    for query in queries:
        query.pop("parallel_id", None), query.pop("group", None)
    write_beir(tmp_path, documents, queries, train=[("q1", "d1", 1), ("q2", "d1", 1)], dev=[("q3", "d2", 1)])
    assert _read(tmp_path)[0].names(0, ["d1", "d2"]) == [("7", PARALLEL), ("own", GROUP)]


def test_fields_for_group_and_equivalence(tmp_path: Path) -> None:
    documents = [{"_id": "d1", "text": "a", "kind": "k", "product": 7}, {"_id": "d2", "text": "b", "product": None}]
    write_beir(tmp_path, documents, [{"_id": "q1", "text": "x", "product": " p "}], dev=[("q1", "d1", 1)])
    source, _ = _read(tmp_path, group="product", equivalent="kind")
    assert source.document_groups == ["7", ""] and source.documents.keys == ["k", ""]
    assert source.queries.groups == [("p",)]
    assert source.documents.languages == ["und", "und"], "no line has a language: it is unknown for all"


_WRITERS: dict[str, Callable[[str], bytes]] = {
    "plain": str.encode,
    "bom": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "crlf": lambda text: text.replace("\n", "\r\n").encode(),
    "blank lines": lambda text: text.replace("\n", "\n\n  \n").encode(),
    "no last newline": lambda text: text.rstrip("\n").encode(),
}


@pytest.mark.parametrize("form", _WRITERS)
@pytest.mark.parametrize("zipped", [False, True])
def test_forms_of_a_file(tmp_path: Path, form: str, zipped: bool) -> None:
    write_beir(tmp_path, DOCUMENTS, QUERIES, dev=[("q1", "d1", 1), ("q2", "d2", 1)])
    expected, _ = _read(tmp_path)
    for path in (tmp_path / "corpus.jsonl", tmp_path / "queries.jsonl", tmp_path / "qrels" / "dev.tsv"):
        content = _WRITERS[form](path.read_text())
        path.unlink()
        Path(f"{path}.gz" if zipped else path).write_bytes(gzip.compress(content) if zipped else content)
    found, reading = _read(tmp_path)
    assert found == expected and reading.bad_count == 0


_ids = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=8).filter(
    lambda text: not text.isspace()
)
_texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30).filter(
    lambda text: text.strip() != ""
)


@settings(max_examples=60, deadline=None)
@given(rows=st.dictionaries(_ids, _texts, min_size=1, max_size=6), ascii_only=st.booleans(), zipped=st.booleans())
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[str, str], ascii_only: bool, zipped: bool
) -> None:
    folder = tmp_path_factory.mktemp("beir")
    text = "".join(json.dumps({"_id": id_, "text": t}, ensure_ascii=ascii_only) + "\n" for id_, t in rows.items())
    suffix = ".gz" if zipped else ""
    for name in ("corpus", "queries"):
        (folder / f"{name}.jsonl{suffix}").write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    write_qrels(folder / "qrels" / "dev.tsv", [(id_, id_, 1) for id_ in rows])
    source, reading = _read(folder)
    assert reading.bad_count == 0, reading.bad_lines()
    assert dict(zip(source.documents.ids, source.documents.texts, strict=True)) == {
        k: v.strip() for k, v in rows.items()
    }
    assert source.queries.ids == list(rows)
    assert source.judgments["dev"] == {id_: {id_: 1.0} for id_ in rows}


def test_bad_lines_of_the_corpus(tmp_path: Path) -> None:
    write_beir(tmp_path, [], QUERIES, dev=[("q1", "good", 1)])
    lines = [
        b'{"_id": "good", "text": "fine"}',
        b"{not json",
        b'["a", "list"]',
        b'{"text": "no id"}',
        b'{"_id": 7, "text": "a number"}',
        b'{"_id": "good", "text": "again"}',
        b'{"_id": "blank", "text": " \\t "}',
        b'{"_id": "none", "title": ""}',
        b'{"_id": "list", "text": ["a"]}',
        b'{"_id": "latin", "text": "\xe4"}',
        b'{"_id": "nul\\u0000", "text": "x"}',
        b'{"_id": "two\\nlines", "text": "x"}',
        b'{"_id": "half", "text": "\\ud83d"}',
        b"[" * 100_000,
    ]
    (tmp_path / "corpus.jsonl").write_bytes(b"\n".join(lines))
    source, reading = _read(tmp_path)
    assert source.documents.ids == ["good"] and source.documents.texts == ["fine"]
    assert _kinds(reading) == {
        "not JSON": (2, [2, 14]),
        "not a JSON object": (1, [3]),
        "no id": (1, [4]),
        "the id is not a string: put it in quotes": (1, [5]),
        "the id stands twice": (1, [6]),
        "no text": (2, [7, 8]),
        "the text is not a string": (1, [9]),
        "not UTF-8": (1, [10]),
        "the id is blank or holds a control character": (2, [11, 12]),
        "the text holds half a character": (1, [13]),
    }


def test_bad_lines_of_the_qrels(tmp_path: Path) -> None:
    write_beir(tmp_path, DOCUMENTS, QUERIES)
    lines = ["q1\td1\t1", "q1\td1\t2", "q1 d1 1", "q1\tnone\t1", "none\td1\t1", "q2\td2\tnan", "q2\td2\tinf",
             "q2\td2\tmuch", "q2\td2\t", "q1\td1\t1"]  # fmt: skip
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "dev.tsv").write_text("\n".join(lines))
    source, reading = _read(tmp_path)
    assert source.judgments == {"dev": {"q1": {"d1": 1.0}}}
    assert _kinds(reading) == {
        "judged twice with different scores": (1, [2]),
        "not query-id, corpus-id and score with tabs between": (1, [3]),
        "unknown corpus-id": (1, [4]),
        "unknown query-id": (1, [5]),
        "the score is not a finite number": (4, [6, 7, 8, 9]),
    }


def test_only_the_first_places_are_named(tmp_path: Path) -> None:
    write_beir(tmp_path, DOCUMENTS, QUERIES, dev=[("q1", f"none{number}", 1) for number in range(9)])
    _, reading = _read(tmp_path)
    (problem,) = reading.problems()
    assert problem.what == "unknown corpus-id (9 lines)" and problem.where == f"{tmp_path}/qrels/dev.tsv:2"
    assert problem.got == "line 2 none0; line 3 none1; line 4 none2; line 5 none3; line 6 none4; ..."


def test_a_language_on_some_lines_only(tmp_path: Path) -> None:
    documents = [
        {"_id": "d1", "text": "a"},
        {"_id": "d2", "text": "b", "lang": "en"},
        {"_id": "d3", "text": "c", "lang": ""},
    ]
    write_beir(tmp_path, documents, QUERIES, dev=[("q1", "d2", 1)])
    source, reading = _read(tmp_path)
    assert source.documents.ids == ["d2"] and source.documents.languages == ["en"]
    assert _kinds(reading) == {"no lang, which other lines of the file have": (2, [1, 3])}


def test_missing_files_are_named_together(tmp_path: Path) -> None:
    write_qrels(tmp_path / "qrels" / "validation.tsv", [("q1", "d1", 1)])
    write_qrels(tmp_path / "qrels" / "train.tsv", [("q1", "d1", 1)])
    with pytest.raises(InputError) as error:
        _read(tmp_path)
    assert [problem.what for problem in error.value.problems] == [
        "corpus.jsonl is missing", "queries.jsonl is missing", "qrels/dev.tsv is missing"
    ]  # fmt: skip
    assert error.value.problems[-1].got == "qrels: train, validation"
    with pytest.raises(InputError, match="no such folder"):
        _read(tmp_path / "nowhere")


def test_train_and_test_may_be_absent_unless_named(tmp_path: Path) -> None:
    write_beir(tmp_path, DOCUMENTS, QUERIES, dev=[("q1", "d1", 1)])
    assert set(_read(tmp_path)[0].judgments) == {"dev"}
    with pytest.raises(InputError, match="qrels/dev_same.tsv is missing"):
        _read(tmp_path, qrels=QrelsNames(test="dev_same"))
    with pytest.raises(InputError, match="qrels/all.tsv is missing"):
        _read(tmp_path, qrels=QrelsNames(train="all"))
    assert set(_read(tmp_path, qrels=QrelsNames(train="dev", test=None))[0].judgments) == {"train", "dev"}


def test_empty_qrels_and_damaged_gzip(tmp_path: Path) -> None:
    write_beir(tmp_path, DOCUMENTS, QUERIES, dev=[])
    with pytest.raises(InputError, match=r"dev\.tsv: nothing is judged here"):
        _read(tmp_path)
    write_qrels(tmp_path / "qrels" / "dev.tsv", [("q1", "d1", 1)])
    whole = gzip.compress((tmp_path / "corpus.jsonl").read_bytes())
    (tmp_path / "corpus.jsonl").unlink()
    (tmp_path / "corpus.jsonl.gz").write_bytes(whole[:-12])
    with pytest.raises(InputError, match=r"corpus\.jsonl\.gz: the file can't be read"):
        _read(tmp_path)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_preview_reads_the_head_and_estimates_the_rest(tmp_path: Path, zipped: bool) -> None:
    documents = [{"_id": f"d{number}", "text": f"text {number} " * 50} for number in range(400)]
    write_beir(tmp_path, [], QUERIES, dev=[("q1", f"d{number}", 1) for number in range(20)] + [("q1", "d399", 1)])
    (tmp_path / "corpus.jsonl").unlink()
    path = write_jsonl(tmp_path / ("corpus.jsonl.gz" if zipped else "corpus.jsonl"), documents)
    source, reading = _read(tmp_path, limit=200)
    count = reading.files[str(path)]
    assert len(source.documents) == count.lines == 200 and not count.complete and not reading.complete
    assert 201 <= count.estimated <= 500
    assert reading.bad_count == 0, "an id that stands further down is not unknown"
    assert len(source.judgments["dev"]["q1"]) == 20


@pytest.mark.parametrize("text", ["1_0", "1e1_0", "\u0661", "0x1", "1,0", "", "e5", "."])
def test_what_only_python_takes_for_a_number_is_no_score(tmp_path: Path, text: str) -> None:
    write_beir(tmp_path, DOCUMENTS, QUERIES, dev=[("q1", "d1", 1)])
    with open(tmp_path / "qrels" / "dev.tsv", "a", encoding="utf-8") as stream:
        stream.write(f"q2\td2\t{text}\n")
    source, reading = _read(tmp_path)
    assert _kinds(reading) == {"the score is not a finite number": (1, [3])} and "q2" not in source.judgments["dev"]


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("+2.50", 2.5), ("-.5", -0.5), ("1e2", 100), (" 3. ", 3)])
def test_numbers_as_text(text: str, number: float) -> None:
    assert check_number(text, "score") == number


def test_contexts_are_kept_and_must_be_texts(tmp_path: Path) -> None:
    queries = [{**QUERIES[0], "context": " one "}, {**QUERIES[1], "context": ["two"]}]
    write_beir(tmp_path, DOCUMENTS, queries, dev=[("q1", "d1", 1), ("q2", "d2", 1)])
    source, reading = _read(tmp_path)
    assert source.queries.contexts == ["one"] and _kinds(reading) == {"the context is not a string": (1, [2])}
    source, reading = _read(tmp_path, columns={"context": None})
    assert source.queries.contexts == ["", ""] and not reading.bad_count
