"""What languages are to a student, in one table: script, tokens, training, and beside that what was kept."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from harness.evaluation.per_query import PerQuery

# Unicode's names begin with the script, but for these
_SCRIPTS = {"CJK": "Han", "FULLWIDTH": "Latin", "HALFWIDTH": "Katakana", "KATAKANA-HIRAGANA": "Katakana"}


def script_of(texts: Iterable[str]) -> str | None:
    """The script of most letters, by Unicode's names of characters; None where there is no letter."""
    characters: Counter[str] = Counter()
    for text in texts:
        characters.update(text)
    scripts: Counter[str] = Counter()
    for character, count in characters.items():
        if character.isalpha():
            first = unicodedata.name(character, "unknown").split(" ")[0]
            scripts[_SCRIPTS.get(first, first.capitalize())] += count
    return scripts.most_common(1)[0][0] if scripts else None


def training_shares(counts: Mapping[str, int]) -> dict[str, float]:
    """Language -> its share of the texts trained on."""
    total = sum(counts.values())
    return {language: count / total for language, count in counts.items()} if total else {}


def language_table(
    texts: Mapping[str, Sequence[str]],
    tokens: Mapping[str, tuple[float, float]],
    trained: Mapping[str, float],
    systems: Mapping[str, PerQuery],
    recovered: Mapping[str, Mapping[str, float | None]],
) -> dict[str, dict[str, Any]]:
    """One row a language of one set.

    Args:
        texts: language -> its queries.
        tokens: language -> tokens a query and the share of unknown ones; may be empty.
        trained: language -> its share of the training.
        systems: every system but the reference.
        recovered: system -> language -> recovery.

    Returns:
        ``{LANG: {"script", "tokens_per_query", "unknown_share", "train_share", "cosine": {NAME: mean},
        "recovery": {NAME: value}}}``; None where it can't be told.
    """
    rows: dict[str, dict[str, Any]] = {}
    for language, queries in sorted(texts.items()):
        per_query, unknown = tokens.get(language, (None, None))
        rows[language] = {
            "script": script_of(queries),
            "tokens_per_query": per_query,
            "unknown_share": unknown,
            "train_share": trained.get(language, 0.0) if trained else None,
            "cosine": {name: _mean_cosine(system, language) for name, system in systems.items()},
            "recovery": {name: by_language.get(language) for name, by_language in recovered.items()},
        }
    return rows


def _mean_cosine(system: PerQuery, language: str) -> float | None:
    if "cosine" not in system.agreement:
        return None
    own = np.array([name == language for name in system.languages])
    return float(system.agreement["cosine"][own].mean()) if own.any() else None
