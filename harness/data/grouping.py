"""Groups of queries, and splits that keep a group together: the same on every machine and in every order of lines."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping


def stable_fraction(label: str, salt: str = "") -> float:
    """A number in [0, 1) from the sha256 of a label; a salt makes two splits of the same labels independent."""
    digest = hashlib.sha256((f"{salt}/{label}" if salt else label).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def choose_groups(labels: Iterable[str], share: float, salt: str, *, least: int = 1) -> set[str]:
    """About ``share`` of the groups, chosen by hash.

    Unless ``share`` is 0 or 1, one of several groups is always left, and ``least`` are chosen if so many remain.
    """
    order = sorted(set(labels), key=lambda label: (stable_fraction(label, salt), label))
    count = sum(stable_fraction(label, salt) < share for label in order)
    if 0 < share < 1 and len(order) > 1:
        count = min(max(count, least), len(order) - 1)
    return set(order[:count])


def join_groups(members: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """The group of each query, where queries that share a name are in one group (transitively).

    Args:
        members: query -> its names, at least one: its own group, or its positives' groups or ids.

    Returns:
        query -> the smallest of the joined names.
    """
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while (above := parent.setdefault(name, name)) != name:
            parent[name] = parent[above]
            name = above
        return name

    firsts = {}
    for query, names in members.items():
        first, *others = names
        firsts[query] = first
        root = find(first)
        for other in others:
            root, below = sorted((root, find(other)))
            parent[below] = root
    return {query: find(first) for query, first in firsts.items()}
