"""Whatever text people write: what was written is read again, character for character, and half characters are told."""

from __future__ import annotations

import json
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders.tiny_data import write_beir, write_jsonl, write_qrels
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.beir import read_beir
from harness.data.pairs import read_pairs, read_unlabelled
from harness.data.prepare import load_dataset, prepare_data
from harness.data.reading import Reading
from harness.data.records import asked_text, normal_text
from harness.recipe import DataSettings, Texts

TRICKY = ["\ufeff", "\ufeffa", "a\u2028b", "a\x85b", "a\rb", "a\r\nb", "a\nb", "\x00", "\x1c", "\x0b", "'\"\\", "\t",
          " ", ""]  # fmt: skip
ANY = st.text(st.characters(), max_size=12) | st.sampled_from([*TRICKY, "\ud83d", "a\udfffb"])
WHOLE = st.text(st.characters(exclude_categories=("Cs",)), max_size=12) | st.sampled_from(TRICKY)
SOME = WHOLE.filter(lambda text: text.strip() != "")
PLAIN = st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"))
ID = st.text(PLAIN, min_size=1, max_size=6).filter(lambda text: not text.isspace())
LABEL = st.text(PLAIN, max_size=4).map(str.strip)


@pytest.mark.parametrize(
    ("text", "other"),
    [("\u00c9T\u00c9", "e\u0301te\u0301"), ("\ufb01ne", "fine"), ("\uff46\uff55ll", "FULL"),
     ("a\u200bb \ufeffc", "ab c"), ("\u0130st", "ist"), ("Stra\u00dfe", "STRASSE"), ("\u2764\ufe0f", "\u2764"),
     ("e\u200b\u0301", "\u00e9")],
)  # fmt: skip
def test_the_same_is_asked_in_whatever_unicode_form(text: str, other: str) -> None:
    assert asked_text(text) == asked_text(other)
    assert asked_text(text) != asked_text(f"{other}x")


@given(ANY)
def test_what_is_normally_the_same_asks_the_same(text: str) -> None:
    key = asked_text(text)
    assert key == asked_text(key) == asked_text(normal_text(text))
    if _encodable(text):
        assert key == asked_text(unicodedata.normalize("NFD", text)) == asked_text(unicodedata.normalize("NFKC", text))


def _encodable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _beir(path: Path, **options: Any) -> DataSettings:
    return DataSettings(source="beir", path=str(path), **options)


@settings(max_examples=60)
@given(rows=st.dictionaries(ID, st.tuples(ANY, ANY), min_size=1, max_size=6))
def test_titles_and_texts_are_joined_and_half_characters_refused(rows: dict[str, tuple[str, str]]) -> None:
    rows |= {"always": ("", "there")}  # an empty corpus is another matter
    with tempfile.TemporaryDirectory() as name:
        lines = [{"_id": id_, "title": title, "text": text} for id_, (title, text) in rows.items()]
        path, asked = Path(name), [{"_id": "q", "text": "x"}]
        write_jsonl(path / "queries.jsonl", asked)
        (path / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))  # escapes hold anything
        expected = {
            id_: "\n".join(part for part in (title.strip(), text.strip()) if part)
            for id_, (title, text) in rows.items() if _encodable(title + text)
        }  # fmt: skip
        expected = {id_: text for id_, text in expected.items() if text}
        write_qrels(path / "qrels" / "dev.tsv", [("q", next(iter(rows)), 1)])
        reading = Reading()
        found = read_beir(path, _beir(path), reading)
        assert dict(zip(found.documents.ids, found.documents.texts, strict=True)) == expected
        told = reading.bad_lines().get(str(path / "corpus.jsonl"), {})
        assert sum(kind["count"] for kind in told.values()) == len(rows) - len(expected)
        halves = sum(not _encodable(title + text) for title, text in rows.values())
        assert sum(kind["count"] for what, kind in told.items() if "half a character" in what) == halves


_document = st.tuples(SOME, LABEL, LABEL)
_grades = st.lists(st.sampled_from([0.0, 1.0, 2.5]), max_size=3)
_query = st.tuples(SOME, LABEL, st.sampled_from([0.5, 1.0, 3.0]), _grades)


@settings(max_examples=20)
@given(
    documents=st.dictionaries(ID, _document, min_size=4, max_size=6),
    queries=st.dictionaries(ID, _query, min_size=2, max_size=4), language=ID.map(str.strip),
)  # fmt: skip
def test_the_prepared_folder_holds_what_the_data_set_says(
    documents: dict[str, tuple[str, str, str]], queries: dict[str, tuple[str, str, float, list[float]]], language: str
) -> None:
    """Ids, texts, languages, keys, groups, weights and grades, through both formats: theirs and ours."""
    ids = list(documents)
    judged = {  # the n-th query's positive is the n-th document: at least two groups
        query: {ids[n]: 2.0} | dict(zip(ids[4:], grades, strict=False))
        for n, (query, (_, _, _, grades)) in enumerate(queries.items())
    }
    rows = [(query, document, grade) for query, grades in judged.items() for document, grade in grades.items()]
    with tempfile.TemporaryDirectory() as name:
        write_beir(
            Path(name) / "source",
            [{"_id": i, "text": text, "lang": language, "key": key, "group": group}
             for i, (text, key, group) in documents.items()],
            [{"_id": i, "text": text, "lang": language, "weight": weight}
             for i, (text, _, weight, _) in queries.items()],
            train=rows, test=rows, dev=rows,
        )  # fmt: skip
        wanted = _beir(Path(name) / "source", equivalent="key" if any(d[1] for d in documents.values()) else None)
        try:
            prepare_data(wanted, Path(name) / "data")
        except ValueError as error:
            assert "in one group" in str(error)  # the documents' groups have joined all queries
            return
        found = load_dataset(Path(name) / "data")
        columns = (found.documents.ids, found.documents.texts, found.documents.keys)
        assert list(zip(*columns, strict=True)) == [(i, t.strip(), key) for i, (t, key, _) in documents.items()]
        assert set(found.documents.languages) == {language}
        for split in ("train", "test"):
            assert {r.id: (r.text, r.language, r.weight) for r in found.splits[split]} == {
                query: (text.strip(), language, weight) for query, (text, _, weight, _) in queries.items()
            }
            for record in found.splits[split]:
                grades = judged[record.id]
                assert record.positives == {document: grade for document, grade in grades.items() if grade > 0}
                assert set(record.negatives) == {document for document, grade in grades.items() if grade <= 0}
        evaluated = [record.id for name in ("select", "report") for record in found.splits[name]]
        assert sorted(evaluated) == sorted(queries) and found.splits["select"] and found.splits["report"]


_pair = st.fixed_dictionaries(
    {"query": SOME, "positive": st.lists(SOME, min_size=1, max_size=2), "negatives": st.lists(WHOLE, max_size=2)}
)


@settings(max_examples=40)
@given(lines=st.lists(_pair, min_size=1, max_size=5), ascii_only=st.booleans())
def test_pairs_of_any_text_are_the_same_in_jsonl_and_parquet(lines: list[dict[str, Any]], ascii_only: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        jsonl, parquet = Path(name) / "a.jsonl", Path(name) / "a.parquet"
        text = "".join(json.dumps(line, ensure_ascii=ascii_only) + "\n" for line in lines)
        jsonl.write_bytes(text.encode())
        kinds = {"query": pa.string(), "positive": pa.list_(pa.string()), "negatives": pa.list_(pa.string())}
        pq.write_table(pa.Table.from_pylist(lines, schema=pa.schema(list(kinds.items()))), parquet)
        readings = [Reading(), Reading()]
        found = [read_pairs(DataSettings(source="pairs", path=str(path)), reading)
                 for path, reading in zip((jsonl, parquet), readings, strict=True)]  # fmt: skip
        assert not any(reading.bad_count for reading in readings) and found[0] == found[1]
        source = found[0]
        assert source.queries.texts == list(dict.fromkeys(line["query"].strip() for line in lines))
        told = [part.strip() for line in lines for part in (*line["positive"], *line["negatives"])]
        assert source.documents.texts == list(dict.fromkeys(part for part in told if part))
        document, asked = dict(zip(source.documents.ids, source.documents.texts, strict=True)), source.queries
        judged = {t: source.judgments["train"][i] for i, t in zip(asked.ids, asked.texts, strict=True)}
        for query, grades in judged.items():
            positives = {p.strip() for line in lines if line["query"].strip() == query for p in line["positive"]}
            assert {document[i] for i, grade in grades.items() if grade > 0} == positives


@settings(max_examples=60)
@given(texts=st.lists(WHOLE, max_size=6), windows=st.booleans(), bom=st.booleans())
def test_plain_lines_are_texts(texts: list[str], windows: bool, bom: bool) -> None:
    lines = [line for text in texts for line in text.split("\n")]
    with tempfile.TemporaryDirectory() as name:
        path, end = Path(name) / "a.txt", "\r\n" if windows else "\n"
        path.write_bytes((("\ufeff" if bom else "") + "".join(line + end for line in lines)).encode())
        reading = Reading()
        source = DataSettings(source="emoji", unlabelled=[Texts(path=str(path), language="xx")])
        found = read_unlabelled(source, reading)
        if lines and not bom:
            lines[0] = lines[0].removeprefix("\ufeff")
        assert found == [(line.strip(), "xx") for line in lines if line.strip()] and not reading.bad_count
