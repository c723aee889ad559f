"""Small data sets made in memory: the same bytes for the same arguments, and something to learn in them."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LANGUAGES = {"aa": ("", ""), "bb": ("ba", ""), "cc": ("", "ock")}  # what stands before and after every root
_SPLIT_OF_TEN = ["train"] * 6 + ["dev"] * 2 + ["test"] * 2


def write_jsonl(path: Path, values: Iterable[Mapping[str, Any]]) -> Path:
    """One JSON object a line; gzipped if the name ends in ``.gz``. Returns ``path``."""
    text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_qrels(path: Path, judgments: Iterable[tuple[str, str, float]]) -> Path:
    """A qrels file with its header. Returns ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{query}\t{document}\t{score}\n" for query, document, score in judgments]
    path.write_text("query-id\tcorpus-id\tscore\n" + "".join(lines), encoding="utf-8")
    return path


def write_beir(
    folder: Path,
    documents: Iterable[Mapping[str, Any]],
    queries: Iterable[Mapping[str, Any]],
    **qrels: Iterable[tuple[str, str, float]],
) -> Path:
    """A BEIR folder from its lines; ``train=``, ``dev=``, ... are its qrels. Returns ``folder``."""
    write_jsonl(folder / "corpus.jsonl", documents)
    write_jsonl(folder / "queries.jsonl", queries)
    for name, judgments in qrels.items():
        write_qrels(folder / "qrels" / f"{name}.tsv", judgments)
    return folder


def tiny_roots(count: int, seed: int = 0) -> list[str]:
    """Different made-up words of two syllables."""
    rng = random.Random(seed)
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    words = [first + second for first in syllables for second in syllables]
    return rng.sample(words, count)


def write_tiny_beir(folder: Path, *, documents: int = 120, seed: int = 0) -> Path:
    """A BEIR folder in three made-up languages, learnable by a tiny model in seconds. Returns ``folder``.

    A document is four roots of a small vocabulary, in the plain language ``aa``. It is asked for twice in each
    language, where every root wears the language's prefix or suffix: by all its words, and by three of them, in any
    order. Two documents that differ in their last root are a ``group``; six groups of ten train, two are dev, two test.
    Each training query has one judged negative, the other document of its group. ``unlabelled.jsonl`` holds further
    queries without judgments.
    """
    assert documents >= 20 and documents % 2 == 0, "ten groups of two documents are the least"
    rng = random.Random(seed)
    roots = tiny_roots(40, seed)
    corpus: list[dict[str, Any]] = []
    queries: list[dict[str, Any]] = []
    qrels: dict[str, list[tuple[str, str, float]]] = {"train": [], "dev": [], "test": []}
    for number in range(documents // 2):
        *shared, first, second = rng.sample(roots, 5)
        group, split = f"g{number}", _SPLIT_OF_TEN[number % 10]
        for variant, last in enumerate((first, second)):
            words, id_, other = [*shared, last], f"d{number}-{variant}", f"d{number}-{1 - variant}"
            corpus.append({"_id": id_, "title": "", "text": " ".join(words), "lang": "aa", "group": group})
            for language in LANGUAGES:
                for form, spoken in (("all", words), ("some", [*rng.sample(shared, 2), last])):
                    query = f"{language}-{id_}-{form}"
                    text = _say(rng.sample(spoken, len(spoken)), language)
                    queries.append({"_id": query, "text": text, "lang": language, "group": group})
                    qrels[split].append((query, id_, 1))
                    if split == "train":
                        qrels[split].append((query, other, 0))
    write_beir(folder, corpus, queries, **qrels)
    spare = ((_say(rng.sample(roots, 3), language), language) for _ in range(documents // 2) for language in LANGUAGES)
    write_jsonl(folder / "unlabelled.jsonl", ({"text": text, "lang": language} for text, language in spare))
    return folder


def _say(words: Iterable[str], language: str) -> str:
    before, after = LANGUAGES[language]
    return " ".join(before + word + after for word in words)
