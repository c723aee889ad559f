"""Columns of queries to slice by: from every kind of source, what is missing, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders.tiny_data import write_beir, write_jsonl

from harness.data.columns import read_columns
from harness.data.prepare import load_dataset, prepare_data
from harness.recipe import DataSettings
from harness.runtime.errors import InputError

DOCUMENTS = [{"_id": "d1", "text": "one"}, {"_id": "d2", "text": "two"}]
QUERIES: list[dict[str, Any]] = [
    {"_id": "q1", "text": "first", "device": " phone ", "metadata": {"year": 2020, "device": "ignored"}},
    {"_id": "q2", "text": "second", "device": "desk\ntop", "metadata": {"year": None, "loyal": True}},
    {"_id": "q3", "text": "third", "device": "", "metadata": "none", "year": float("nan")},
]
PAIRS: list[dict[str, Any]] = [
    {"query": "red shoe", "positive": "shoe, red", "lang": "en", "device": "phone", "price": 3},
    {"query": "red shoe", "positive": "red sneaker", "lang": "en", "device": "desktop", "price": 4},
    {"query": "red shoe ", "positive": "Schuh", "lang": "de", "device": None, "price": 5.5},
    {"query": "hat", "positive": "a hat", "lang": "en", "device": "phone"},
]


def beir(folder: Path, queries: list[dict[str, Any]]) -> DataSettings:
    write_beir(folder, DOCUMENTS, queries, dev=[(query["_id"], "d1", 1) for query in queries])
    return DataSettings(source="beir", path=str(folder))


def test_fields_and_metadata_of_a_folder(tmp_path: Path) -> None:
    settings = beir(tmp_path, QUERIES)
    assert read_columns(settings, ["device", "year", "loyal"], {"q1", "q2", "q3"}) == {
        "device": {"q1": "phone", "q2": "desk top"}, "year": {"q1": 2020}, "loyal": {"q2": "true"}
    }  # fmt: skip
    assert read_columns(settings, ["device"], {"q2"}) == {"device": {"q2": "desk top"}}


def pairs(tmp_path: Path, kind: str) -> DataSettings:
    """The same lines as JSONL, as Parquet, and as a data set of the hub that lies on the disk."""
    if kind == "hub":
        folder = write_jsonl(tmp_path / "set" / "train.jsonl", PAIRS).parent
        return DataSettings(source="huggingface", dataset=str(folder), hold_out=0.9)
    path = tmp_path / f"pairs.{kind}"
    if kind == "jsonl":
        write_jsonl(path, PAIRS)
    else:
        pq.write_table(pa.Table.from_pylist(PAIRS), path)
    return DataSettings(source="pairs", path=str(path), hold_out=0.9)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "hub"])
def test_pairs_have_the_ids_that_preparation_gives(tmp_path: Path, kind: str) -> None:
    settings = pairs(tmp_path, kind)
    prepare_data(settings, tmp_path / "data")
    splits = load_dataset(tmp_path / "data").splits
    named = {record.id: (record.language, record.text) for split in splits.values() for record in split}
    found = read_columns(settings, ["device", "price"], set(named))
    assert {named[id_]: value for id_, value in found["device"].items()} == {
        ("en", "red shoe"): "phone", ("en", "hat"): "phone"
    }, "the first line's value, and none of a line without"  # fmt: skip
    assert {named[id_]: value for id_, value in found["price"].items()} == {
        ("en", "red shoe"): 3, ("de", "red shoe"): 5.5
    }  # fmt: skip


def test_pairs_without_a_language(tmp_path: Path) -> None:
    lines = [{"query": f"q{i}", "positive": f"d{i}", "size": i} for i in range(9)]
    settings = DataSettings(source="pairs", path=str(write_jsonl(tmp_path / "p.jsonl", lines)), hold_out=0.5)
    prepare_data(settings, tmp_path / "data")
    splits = load_dataset(tmp_path / "data").splits
    ids = {record.id for split in splits.values() for record in split}
    assert set(read_columns(settings, ["size"], ids)["size"]) == ids


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "hub"])
def test_an_unknown_column_names_those_that_there_are(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError) as error:
        read_columns(pairs(tmp_path, kind), ["device", "divice"], set())
    (problem,) = error.value.problems
    assert problem.got == "divice" and problem.where == "evaluate.slices"
    assert "device" in problem.allowed and "price" in problem.allowed


def test_an_unfinished_look_misses_no_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Further down there may be one."""
    settings = beir(tmp_path, [*QUERIES, {"_id": "q4", "text": "fourth", "late": "x"}])
    monkeypatch.setattr("harness.data.columns.PREVIEW_LINES", 2)
    assert read_columns(settings, ["late"], {"q1", "q4"}, full=False) == {"late": {}}
    assert read_columns(settings, ["late"], {"q1", "q4"}) == {"late": {"q4": "x"}}


def test_too_many_texts_are_refused_and_numbers_are_not(tmp_path: Path) -> None:
    queries = [{"_id": f"q{i}", "text": f"t{i}", "name": f"n{i}", "price": i / 2} for i in range(60)]
    settings, wanted = beir(tmp_path, queries), {f"q{i}" for i in range(60)}
    assert len(read_columns(settings, ["price"], wanted)["price"]) == 60
    assert len(read_columns(settings, ["name"], {f"q{i}" for i in range(50)})["name"]) == 50
    with pytest.raises(InputError, match="too many different texts") as error:
        read_columns(settings, ["name"], wanted)
    assert "60" in error.value.problems[0].got


def test_lists_and_maps_are_no_values(tmp_path: Path) -> None:
    settings = beir(tmp_path, [{"_id": "q1", "text": "t", "tags": ["a"]}, {"_id": "q2", "text": "u", "tags": "b"}])
    with pytest.raises(InputError, match="no text, no number"):
        read_columns(settings, ["tags"], {"q1", "q2"})
    assert read_columns(settings, ["tags"], {"q2"}) == {"tags": {"q2": "b"}}
