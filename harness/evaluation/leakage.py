"""Which evaluation queries occur in what was trained or aligned on, by their normal text (case and whitespace aside).

Texts in memory are compared as texts. Logs at rest hold a 64-bit hash of each text and nothing else of it: there, two
different texts count as one with probability 2 ** -64 a pair.

Axes: Q queries, N texts of a log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.dedupe import Hashes, text_hashes
from harness.data.records import normal_text

Flags = NDArray[np.bool_]


def seen_among(queries: Sequence[str], texts: Iterable[str]) -> Flags:
    """bool_Q: which queries occur among the texts, each of which is looked at once and not kept."""
    rows: dict[str, list[int]] = {}
    for row, query in enumerate(queries):
        rows.setdefault(normal_text(query), []).append(row)
    seen_Q = np.zeros(len(queries), dtype=np.bool_)
    for text in texts:
        if (found := rows.get(normal_text(text))) is not None:
            seen_Q[found] = True
    return seen_Q


def seen_in_logs(queries: Sequence[str], blocks: Iterable[Hashes]) -> Flags:
    """bool_Q: which queries occur in logs, of which ``blocks`` are the texts' hashes (``dedupe.text_hashes``)."""
    hash_Q = text_hashes(queries)
    wanted = np.unique(hash_Q)
    found = np.zeros(len(wanted), dtype=np.bool_)
    if len(wanted):
        for hash_N in blocks:
            at_N = np.minimum(np.searchsorted(wanted, hash_N), len(wanted) - 1)
            found[at_N[wanted[at_N] == hash_N]] = True
    return np.asarray(found[np.searchsorted(wanted, hash_Q)]) if len(wanted) else np.zeros(0, dtype=np.bool_)


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
