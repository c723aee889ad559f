"""Which evaluation queries occur in what was trained or aligned on: case, whitespace, Unicode form, format characters
aside (``asked_text``).

Texts in memory are compared as texts. Logs at rest hold a 64-bit hash of each text's normal form and nothing else of
it: there, two different texts count as one with probability 2 ** -64 a pair, and a query is looked for in every Unicode
form, and with the Turkish capital İ for every i, or for those that begin a word. Missed is what a log holds with wide
letters, superscripts, format characters and the like that the query has not, or with İ at other places.

Axes: Q queries, N texts of a log.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.dedupe import Hashes, text_hashes
from harness.data.records import DOTTED_I, asked_text

Flags = NDArray[np.bool_]

_INITIAL_I = re.compile(r"\bi")


def seen_among(queries: Sequence[str], texts: Iterable[str]) -> Flags:
    """bool_Q: which queries occur among the texts, each of which is looked at once and not kept."""
    rows: dict[str, list[int]] = {}
    for row, query in enumerate(queries):
        rows.setdefault(asked_text(query), []).append(row)
    seen_Q = np.zeros(len(queries), dtype=np.bool_)
    for text in texts:
        if (found := rows.get(asked_text(text))) is not None:
            seen_Q[found] = True
    return seen_Q


def seen_in_logs(queries: Sequence[str], blocks: Iterable[Hashes]) -> Flags:
    """bool_Q: which queries occur in logs, of which ``blocks`` are the texts' hashes (``dedupe.text_hashes``)."""
    forms = [(row, form) for row, query in enumerate(queries) for form in _forms(query)]
    hash_F = text_hashes(form for _, form in forms)
    wanted = np.unique(hash_F)
    found = np.zeros(len(wanted), dtype=np.bool_)
    seen_Q = np.zeros(len(queries), dtype=np.bool_)
    if len(wanted):
        for hash_N in blocks:
            at_N = np.minimum(np.searchsorted(wanted, hash_N), len(wanted) - 1)
            found[at_N[wanted[at_N] == hash_N]] = True
        row_F = np.fromiter((row for row, _ in forms), dtype=np.int64, count=len(forms))
        seen_Q[row_F[found[np.searchsorted(wanted, hash_F)]]] = True
    return seen_Q


def _forms(query: str) -> set[str]:
    """What a log may hold of a query: itself, its Unicode forms, how it is compared in memory, and that with İ."""
    asked = asked_text(query)
    forms = {asked, _INITIAL_I.sub(DOTTED_I, asked), asked.replace("i", DOTTED_I)} if "i" in asked else {asked}
    if query.isascii():
        return forms
    return {query, *forms, *(unicodedata.normalize(form, query) for form in ("NFC", "NFD", "NFKC", "NFKD"))}


def places(sets: Mapping[str, Sized]) -> dict[str, slice]:
    """Where each set's queries lie, all sets one after the other: so that all are looked for at once."""
    found, start = {}, 0
    for name, queries in sets.items():
        found[name] = slice(start, start + len(queries))
        start += len(queries)
    return found


def leakage(seen: Mapping[str, Flags], queries: int) -> dict[str, Any]:
    """``{"queries", "seen": {SOURCE: count, "any": count}, "share"}`` of one set.

    Args:
        seen: source of text -> bool_Q; a source that a run has not is absent.
    """
    any_Q = seen_anywhere(seen, queries)
    counts = {source: int(seen_Q.sum()) for source, seen_Q in seen.items()}
    return {"queries": queries, "seen": {**counts, "any": int(any_Q.sum())},
            "share": float(any_Q.mean()) if queries else None}  # fmt: skip


def seen_anywhere(seen: Mapping[str, Flags], queries: int) -> Flags:
    """bool_Q: which queries occur in any source."""
    return np.logical_or.reduce([np.zeros(queries, dtype=np.bool_), *seen.values()])
