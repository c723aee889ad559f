"""Emoji search as a data set: the Unicode CLDR names that the package ``emoji`` carries, in 14 languages."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.data.grouping import stable_fraction
from harness.runtime.errors import InputError, Problem
from harness.runtime.process import atomic_folder

SPLITS = {"train": 0.60, "dev": 0.75, "test": 1.0}  # upper ends: 60, 15 and 25 of 100 groups
_to_json = json.JSONEncoder(ensure_ascii=False).encode
_WORD = re.compile(r"\w+")
_GROUP_IGNORES = re.compile("[\U0001f3fb-\U0001f3ff\ufe0f]")  # skin tones; the mark that asks for the colourful form


def make_emoji(folder: Path, languages: Sequence[str] | None = None) -> None:
    """Write a BEIR folder with ``lang`` and ``group``: English names are the documents, names in other languages ask.

    Queries in English are those aliases whose words differ from the words of the name. ``group`` is the emoji without
    its skin tone, and the splits keep groups together.

    Args:
        languages: of the queries; ``None`` takes all.

    Raises:
        InputError: the package ``emoji`` is missing, or doesn't know a language.
    """
    names = _load_names(languages)
    languages = languages or names.LANGUAGES
    documents, queries = [], []
    qrels = {split: ["query-id\tcorpus-id\tscore\n"] for split in SPLITS}
    for char, data in names.EMOJI_DATA.items():
        if data["status"] != names.STATUS["fully_qualified"]:
            continue
        id_, group = document_id(char), emoji_group(char)
        document = {"_id": id_, "text": clean_name(data["en"]), "lang": "en", "group": group, "emoji": char}
        documents.append(_to_json(document) + "\n")
        for language in languages:
            for number, text in enumerate(_queries(data, language), 1):
                query = f"{language}-{id_}" + (f"-{number}" if number > 1 else "")
                queries.append(_to_json({"_id": query, "text": text, "lang": language, "group": group}) + "\n")
                qrels[split_of(group)].append(f"{query}\t{id_}\t1\n")
    files = {f"qrels/{split}.tsv": lines for split, lines in qrels.items()}
    with atomic_folder(folder) as temporary:
        (temporary / "qrels").mkdir()
        for name, lines in {"corpus.jsonl": documents, "queries.jsonl": queries, **files}.items():
            (temporary / name).write_text("".join(lines), encoding="utf-8", newline="\n")


def document_id(char: str) -> str:
    """The code points of an emoji: ``1F44B-1F3FB``."""
    return "-".join(f"{ord(point):X}" for point in char)


def emoji_group(char: str) -> str:
    """The emoji without skin tones and without the variation mark."""
    return _GROUP_IGNORES.sub("", char)


def clean_name(name: str) -> str:
    """``:waving_hand:`` -> ``waving hand``."""
    return name.strip(":").replace("_", " ").strip()


def split_of(group: str) -> str:
    """The split of a group: 60 % train, 15 % dev, 25 % test.

    The salt makes a split that is independent of the first one, on whose test set the quickstart was tuned.
    """
    fraction = stable_fraction(group, "second")
    return next(split for split, end in SPLITS.items() if fraction < end)


def _load_names(languages: Sequence[str] | None) -> Any:
    try:
        import emoji
    except ImportError:
        raise InputError(
            Problem("the package 'emoji' is not installed", where="data.source: emoji",
                    next="pip install harness-retrieval[quickstart]")
        ) from None  # fmt: skip
    unknown = [language for language in languages or () if language not in emoji.LANGUAGES]
    if unknown:
        raise InputError(
            Problem("there are no emoji names in this language", where="data.languages", got=", ".join(unknown),
                    allowed=", ".join(sorted(emoji.LANGUAGES)))
        )  # fmt: skip
    emoji.config.load_language(list(languages or emoji.LANGUAGES))
    return emoji


def _queries(data: dict[str, Any], language: str) -> list[str]:
    """What an emoji is called in a language; in English, besides its name."""
    if language != "en":
        return [clean_name(data[language])] if language in data else []
    name = _words(clean_name(data["en"]))
    return [text for text in map(clean_name, data.get("alias", ())) if _words(text) != name]


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))
