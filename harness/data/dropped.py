"""Queries that no set holds since nothing relevant to them is known, by language: a language may disappear so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from harness.data.source import Source, Split

KEY = "dropped_queries"  # in data.json; there is none in what was prepared before such queries were counted
UNJUDGED = "unjudged"
_MADE_OF = {"dev": ("select", "report"), "test": ("test",), "train": ("train", "select", "report")}


def dropped_queries(
    source: Source, judged: Mapping[str, Split], languages: Sequence[str] | None
) -> dict[str, dict[str, int]]:
    """``{SPLIT: {LANG: queries without a positive}, "unjudged": {LANG: queries that no split judges}}``.

    Args:
        judged: per split of the source, the queries with a positive.
        languages: those asked for; None for all.
    """
    language = dict(zip(source.queries.ids, source.queries.languages, strict=True))
    dropped = {name: [id_ for id_ in told if id_ not in judged[name]] for name, told in source.judgments.items()}
    asked = set().union(*source.judgments.values())
    dropped[UNJUDGED] = [id_ for id_ in source.queries.ids if id_ not in asked]
    counts = {name: Counter(language[id_] for id_ in ids) for name, ids in dropped.items()}
    return {name: {spoken: count for spoken, count in sorted(found.items()) if not languages or spoken in languages}
            for name, found in counts.items()}  # fmt: skip


def dropped_of_set(summary: Mapping[str, Any], name: str) -> dict[str, Any]:
    """``{"dropped": {LANG: count}, "lost_languages": [LANG]}`` of a set, by ``data.json``; nothing of older data.

    What select and report are made of is one split, and a dropped query might have come into either: both tell all.
    Queries that nothing judges might be of any set, so they are told of languages that are in none.
    """
    if (told := summary.get(KEY)) is None:
        return {}
    split = "test" if name == "test" else "dev" if "dev" in told else "train"  # pairs: held out of train
    found = Counter(told.get(split, {}))
    found.update({language: n for language, n in told[UNJUDGED].items() if language not in summary["languages"]})
    kept = {lang for made in _MADE_OF[split] for lang in summary["splits"].get(made, {}).get("languages", {})}
    return {"dropped": dict(sorted(found.items())), "lost_languages": sorted(set(found) - kept)}


def lost_warnings(sets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What people must know of sets (name -> ``dropped_of_set``, and more) that lost whole languages."""
    lost: dict[str, list[str]] = {}  # select and report usually lost the same
    for name, told in sets.items():
        if languages := told.get("lost_languages"):
            text = ", ".join(f"{language} ({told['dropped'][language]:,})" for language in languages)
            lost.setdefault(text, []).append(name)
    return [f"{' and '.join(names)}: no query in {text} has a document judged relevant; claims about all languages "
            "leave these languages out" for text, names in lost.items()]  # fmt: skip


def dropped_texts(summary: Mapping[str, Any]) -> list[str]:
    """``3 queries without positives (test: de 2, fr 1)``: of each kind, what was dropped of the data."""
    told: Mapping[str, Mapping[str, int]] = summary.get(KEY, {})
    where = {"queries_without_positives": [name for name in told if name != UNJUDGED],
             "queries_without_judgments": [UNJUDGED]}  # fmt: skip
    found = []
    for kind, count in sorted(summary.get("dropped", {}).items()):
        if count:
            parts = [f"{name}: {', '.join(f'{lang} {number:,}' for lang, number in told[name].items())}"
                     for name in where.get(kind, ()) if told.get(name)]  # fmt: skip
            found.append(f"{count:,} {kind.replace('_', ' ')}" + (f" ({'; '.join(parts)})" if parts else ""))
    return found
