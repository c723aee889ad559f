"""Reading pairs and unlabelled texts from JSONL, Parquet and a Hugging Face data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders.tiny_data import write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.grouping import GROUP, PARALLEL
from harness.data.pairs import read_pairs, read_unlabelled
from harness.data.reading import Reading
from harness.data.source import Source
from harness.recipe import Columns, DataSettings, Texts
from harness.runtime.errors import InputError

LINES: list[dict[str, Any]] = [
    {"query": "red shoe", "positive": "shoe, red", "negatives": ["shoe, blue", " "], "lang": "en", "group": "g1"},
    {"query": "roter Schuh", "positive": ["shoe, red", "Schuh, rot"], "negatives": None, "lang": "de", "group": "g1"},
    {"query": "red shoe", "positive": "red sneaker", "negatives": ["shoe, red"], "lang": "en", "group": "g2",
     "score": 2.0, "weight": 3.0},
    {"query": "hat", "positive": "a shoe", "lang": "en", "score": 0.0},
]  # fmt: skip


def _read(path: str | list[str], **options: Any) -> tuple[Source, Reading]:
    reading = Reading()
    return read_pairs(DataSettings(source="pairs", path=path, **options), reading), reading


def _by_text(source: Source) -> dict[str, dict[str, float]]:
    """Judgments with texts for ids."""
    texts = dict(zip(source.documents.ids, source.documents.texts, strict=True))
    asked = dict(zip(source.queries.ids, source.queries.texts, strict=True))
    return {
        asked[query]: {texts[id_]: score for id_, score in judged.items()}
        for query, judged in source.judgments["train"].items()
    }


def _table(lines: list[dict[str, Any]]) -> pa.Table:
    """As Parquet files have it: ``positive`` is always a list."""
    lists = [{**line, "positive": [p] if isinstance(p := line["positive"], str) else p} for line in lines]
    return pa.Table.from_pylist(lists, schema=pa.schema([
        ("query", pa.string()), ("positive", pa.list_(pa.string())), ("negatives", pa.list_(pa.string())),
        ("lang", pa.string()), ("group", pa.string()), ("score", pa.float64()), ("weight", pa.float64()),
        ("other", pa.int64()),
    ]))  # fmt: skip


def test_lines_become_queries_and_documents(tmp_path: Path) -> None:
    source, reading = _read(str(write_jsonl(tmp_path / "train.jsonl", LINES)))
    assert reading.bad_count == 0
    assert source.queries.texts == ["red shoe", "roter Schuh", "hat"]
    assert source.queries.groups == [("g1", "g2"), ("g1",), ()] and source.queries.weights == [2.0, 1.0, 1.0]
    assert _by_text(source) == {
        "red shoe": {"shoe, red": 1.0, "shoe, blue": 0.0, "red sneaker": 2.0},
        "roter Schuh": {"shoe, red": 1.0, "Schuh, rot": 1.0},
        "hat": {"a shoe": 0.0},
    }
    assert len(set(source.documents.ids)) == len(source.documents) == 5
    assert source.documents.languages[source.documents.texts.index("Schuh, rot")] == "de"


def test_a_text_is_a_document_of_each_language_that_searches_its_own(tmp_path: Path) -> None:
    source, _ = _read(str(write_jsonl(tmp_path / "train.jsonl", LINES)), search_within="lang")
    shoes = [row for row, text in enumerate(source.documents.texts) if text == "shoe, red"]
    assert sorted(source.documents.languages[row] for row in shoes) == ["de", "en"]


def test_all_forms_read_alike(tmp_path: Path) -> None:
    plain, _ = _read(str(write_jsonl(tmp_path / "a.jsonl", LINES)))
    pq.write_table(_table(LINES), tmp_path / "a.parquet")
    half = len(LINES) // 2
    write_jsonl(tmp_path / "parts" / "part-2.jsonl", LINES[half:])
    write_jsonl(tmp_path / "parts" / "part-1.jsonl.gz", LINES[:half])
    forms: list[str | list[str]] = [
        str(tmp_path / "a.parquet"),
        str(tmp_path / "parts" / "*"),
        [str(tmp_path / "parts" / "part-1.jsonl.gz"), str(tmp_path / "parts" / "part-2.*")],
    ]
    for path in forms:
        assert _read(path)[0] == plain, path


_words = st.text("abcé 名", min_size=1, max_size=5).filter(lambda text: text.strip() != "")
_line = st.fixed_dictionaries(
    {"query": _words, "positive": st.lists(_words, min_size=1, max_size=2), "negatives": st.lists(_words, max_size=2),
     "lang": st.sampled_from(["de", "en"]), "group": st.sampled_from(["", "g1"]),
     "score": st.sampled_from([0.0, 0.5, 2.0]), "weight": st.sampled_from([0.0, 1.0, 4.0])}
)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(st.lists(_line, min_size=1, max_size=6))
def test_jsonl_and_parquet_agree(tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, Any]]) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    jsonl = write_jsonl(folder / "a.jsonl.gz", lines)
    pq.write_table(_table(lines), folder / "a.parquet")
    source, _ = _read(str(jsonl))
    assert source == _read(str(folder / "a.parquet"))[0]
    assert set(source.queries.texts) == {line["query"].strip() for line in lines}
    known = {text.strip() for line in lines for text in line["positive"] + line["negatives"]}
    assert set(source.documents.texts) == known


def test_dev_path_columns_and_key(tmp_path: Path) -> None:
    train = write_jsonl(
        tmp_path / "train.jsonl", [{"q": "a", "pos": "A", "key": "k"}, {"q": "b", "pos": "A", "cluster": 5}]
    )
    dev = write_jsonl(tmp_path / "dev.jsonl", [{"q": "a", "pos": "B"}])
    columns = Columns(query="q", positive="pos", group="cluster")
    source, _ = _read(str(train), dev_path=str(dev), columns=columns, equivalent="key")
    assert source.queries.texts == ["a", "b"] and source.queries.groups == [(), ("5",)]
    assert source.documents.keys == ["k", ""]
    assert {split: len(judged) for split, judged in source.judgments.items()} == {"train": 2, "dev": 1}
    assert _read(str(train), columns=columns, group="key")[0].queries.groups == [("k",), ()]


def test_a_table_s_parallel_id_is_read(tmp_path: Path) -> None:
    lines = [{"query": "a", "positive": "b", "parallel_id": 5}, {"query": "c", "positive": "d", "parallel_id": None}]
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "pairs.parquet")
    assert _read(str(tmp_path / "pairs.parquet"))[0].queries.parallels == [("5",), ()]
    other = Columns(group="cluster")
    assert _read(str(tmp_path / "pairs.parquet"), columns=other)[0].queries.parallels == [(), ()]


def test_whole_floats_are_their_numbers_and_nan_is_missing(tmp_path: Path) -> None:
    """As pandas writes a column of whole numbers of which some are missing."""
    table = {"query": list("abc"), "positive": list("xyz"), "group": pa.array([7.0, float("nan"), None], pa.float64()),
             "parallel_id": pa.array([None, 1.0, float("nan")], pa.float64())}  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "pairs.parquet")
    source, reading = _read(str(tmp_path / "pairs.parquet"))
    assert source.queries.groups == [("7",), (), ()] and source.queries.parallels == [(), ("1",), ()]
    assert not reading.bad_count
    wrong = [1.5, float("inf"), 2.0**53, True, [1]]
    lines = [{"query": f"q{n}", "positive": "x", "parallel_id": value} for n, value in enumerate(wrong)]
    _, reading = _read(str(write_jsonl(tmp_path / "pairs.jsonl", lines)))
    assert reading.bad_count == len(wrong)


def test_a_query_has_the_groups_and_the_parallel_ids_of_all_its_lines(tmp_path: Path) -> None:
    lines = [{"query": "a", "positive": "b", "parallel_id": name, "group": group}
             for name, group in (("1", "1"), ("1", "2"), ("2", ""))]  # fmt: skip
    source, _ = _read(str(write_jsonl(tmp_path / "pairs.jsonl", lines)))
    assert source.own_names(0) == [("1", GROUP), ("2", GROUP), ("1", PARALLEL), ("2", PARALLEL)]


def test_bad_lines(tmp_path: Path) -> None:
    good = {"query": "q", "positive": "p"}
    path = write_jsonl(tmp_path / "train.jsonl", [
        good, {"positive": "p"}, {**good, "query": " "}, {**good, "positive": []}, {**good, "positive": 7},
        {**good, "score": float("nan")}, {**good, "weight": -1}, {**good, "negatives": ["n", 3]},
        {**good, "group": [1]}, {**good, "score": True},
    ])  # fmt: skip
    source, reading = _read(str(path))
    assert source.queries.texts == ["q"] and source.documents.texts == ["p"]
    assert {kind: places["first"] for kind, places in reading.bad_lines()[str(path)].items()} == {
        "no text in 'query'": [2, 3],
        "no text in 'positive'": [4],
        "the text in 'positive' is not a string": [5],
        "the score is not a finite number": [6, 10],
        "the weight is below 0": [7],
        "the text in 'negatives' is not a string": [8],
        "the group is not a string": [9],
    }


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        _read([str(tmp_path / "none-*.jsonl"), str(tmp_path / "nothing.parquet")])
    assert len(error.value.problems) == 2
    (tmp_path / "pairs.csv").write_text("query,positive\n")
    with pytest.raises(InputError, match="unknown kind of file"):
        _read(str(tmp_path / "pairs.csv"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(InputError, match="not readable as Parquet"):
        _read(str(tmp_path / "broken.parquet"))


def test_a_data_set_of_the_hub(tmp_path: Path) -> None:
    folder = write_jsonl(
        tmp_path / "set" / "train.jsonl", [{**line, "positive": [line["query"]]} for line in LINES]
    ).parent
    reading = Reading(limit=3)
    source = read_pairs(DataSettings(source="huggingface", dataset=str(folder)), reading)
    assert source.queries.texts == ["red shoe", "roter Schuh"] and source.queries.languages == ["en", "de"]
    (count,) = reading.files.values()
    assert (count.lines, count.estimated, count.complete) == (3, 4, False)
    with pytest.raises(InputError, match="no column question"):
        read_pairs(
            DataSettings(source="huggingface", dataset=str(folder), columns=Columns(query="question")), Reading()
        )
    with pytest.raises(InputError, match=r"data\.dataset: nobody/nothing: the data set can't be loaded"):
        read_pairs(DataSettings(source="huggingface", dataset="nobody/nothing"), Reading())


def test_unlabelled_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("eins \n\n zwei\n", encoding="utf-8")
    write_jsonl(tmp_path / "b.jsonl.gz", [{"_id": "1", "text": "three", "lang": "en"}, {"text": "four"}, {"text": ""}])
    pq.write_table(pa.table({"text": ["cinq"]}), tmp_path / "c.parquet")
    entries = [Texts(path=str(tmp_path / "a.txt"), language="de"), Texts(path=str(tmp_path / "b*")),
               Texts(path=str(tmp_path / "c.parquet"))]  # fmt: skip
    reading = Reading()
    found = read_unlabelled(DataSettings(source="emoji", unlabelled=entries), reading)
    assert found == [("eins", "de"), ("zwei", "de"), ("three", "en"), ("cinq", "und")]
    assert {kind: places["first"] for kind, places in reading.bad_lines()[str(tmp_path / "b.jsonl.gz")].items()} == {
        "no text": [3], "no lang, which other lines of the file have": [2]
    }  # fmt: skip
    with pytest.raises(InputError, match=r"data\.unlabelled\[0\]\.path"):
        read_unlabelled(DataSettings(source="emoji", unlabelled=[Texts(path=str(tmp_path / "none"))]), Reading())


def test_contexts_are_the_teachers_and_the_first_of_a_query_counts(tmp_path: Path) -> None:
    lines = [
        {**line, "context": context} for line, context in zip(LINES, ["sport", None, "fashion", " "], strict=True)
    ]
    path = str(write_jsonl(tmp_path / "train.jsonl", lines))
    source, reading = _read(path)
    assert reading.bad_count == 0 and source.queries.texts == ["red shoe", "roter Schuh", "hat"]
    assert source.queries.contexts == ["sport", "", ""] and source.queries.other_contexts == 1
    for columns in ({"context": None}, {"group": "context"}, {"context": "expansion"}):
        source, reading = _read(path, columns=Columns(**columns))
        assert not any(source.queries.contexts), "a column that is not named, or plays another part, is no context"
