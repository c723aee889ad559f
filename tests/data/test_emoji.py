"""Emoji search from the installed names."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import emoji
import pytest

from harness.data.emoji import clean_name, document_id, emoji_group, make_emoji, split_of
from harness.runtime.errors import InputError

QUICKSTART = ["de", "en", "es", "fr", "id", "it", "pt", "tr"]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("emoji") / "set"
    make_emoji(path, QUICKSTART)
    return path


def test_counts(folder: Path) -> None:
    counts = Counter(query["lang"] for query in _lines(folder / "queries.jsonl"))
    documents = _lines(folder / "corpus.jsonl")
    assert set(counts) == set(QUICKSTART)
    assert all(counts[language] == len(documents) for language in QUICKSTART if language != "en")
    if emoji.__version__ == "2.16.0":  # the pinned one: the numbers in the README
        assert (len(documents), counts["en"], counts.total()) == (3963, 947, 28_688)


def test_documents_are_english_names(folder: Path) -> None:
    documents = {document["emoji"]: document for document in _lines(folder / "corpus.jsonl")}
    assert documents["👋🏻"] == {
        "_id": "1F44B-1F3FB", "text": "waving hand light skin tone", "lang": "en", "group": "👋", "emoji": "👋🏻"
    }  # fmt: skip
    assert len({document["_id"] for document in documents.values()}) == len(documents)
    assert not any(
        set(":_") & set(document["text"]) for document in documents.values() if "keycap" not in document["text"]
    )


def test_queries(folder: Path) -> None:
    queries = {query["_id"]: query for query in _lines(folder / "queries.jsonl")}
    assert queries["de-1F600"] == {"_id": "de-1F600", "text": "grinsendes gesicht", "lang": "de", "group": "😀"}
    names = {document["_id"]: document["text"] for document in _lines(folder / "corpus.jsonl")}
    english = [query for query in queries.values() if query["lang"] == "en"]
    firsts = [query for query in english if query["_id"].removeprefix("en-") in names]
    assert len(firsts) > 500
    for query in firsts:
        assert _words(query["text"]) != _words(names[query["_id"].removeprefix("en-")])
    assert any(query["_id"].endswith("-2") and query["_id"].removesuffix("-2") in queries for query in english)


def test_splits_keep_groups_together(folder: Path) -> None:
    groups = {query["_id"]: query["group"] for query in _lines(folder / "queries.jsonl")}
    found: dict[str, set[str]] = {}
    for split in ("train", "dev", "test"):
        lines = (folder / "qrels" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[1:]
        for query, document, score in (line.split("\t") for line in lines):
            assert query.startswith(f"{query[:2]}-{document}") and score == "1"
            found.setdefault(split, set()).add(groups.pop(query))
    assert groups == {}, "every query is judged"
    assert found["train"].isdisjoint(found["dev"] | found["test"]) and found["dev"].isdisjoint(found["test"])
    total = sum(map(len, found.values()))
    shares = [len(found[split]) / total for split in ("train", "dev", "test")]
    assert shares == pytest.approx([0.6, 0.15, 0.25], abs=0.03)
    assert all(split_of(group) == split for split, names in found.items() for group in names)


def test_names_ids_groups() -> None:
    assert clean_name(":AB_button_(blood_type):") == "AB button (blood type)"
    assert document_id("❤️‍🔥") == "2764-FE0F-200D-1F525"
    assert emoji_group("🧑🏻‍🤝‍🧑🏿") == "🧑‍🤝‍🧑" and emoji_group("❤️") == "❤" == emoji_group("❤")


def test_all_languages_can_be_built(tmp_path: Path) -> None:
    make_emoji(tmp_path / "all")
    assert {query["lang"] for query in _lines(tmp_path / "all" / "queries.jsonl")} == set(emoji.LANGUAGES)
    assert len(emoji.LANGUAGES) == 14
    for split in ("train", "dev", "test"):
        make_emoji(tmp_path / "again", ["ja"])
        make_emoji(tmp_path / "once more", ["ja"])
        name = f"qrels/{split}.tsv"
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "once more" / name).read_bytes()


def test_unknown_language_and_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="got: xx, yy"):
        make_emoji(tmp_path / "set", ["de", "xx", "yy"])
    monkeypatch.setitem(sys.modules, "emoji", None)
    with pytest.raises(InputError, match=r"pip install harness-retrieval\[quickstart\]"):
        make_emoji(tmp_path / "set")
    assert not (tmp_path / "set").exists()
