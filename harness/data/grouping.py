"""Groups of queries, and splits that keep a group together: the same on every machine and in every order of lines."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

GROUP, ID = "group", "id"  # kinds of names
PARALLEL = "parallel_id"  # names what stands in several languages, and is read beside a group whose field is not named

FEW = 20  # queries of which one name may well join most


class Name(NamedTuple):
    """What a query is grouped by. Names of two kinds are two, whatever their texts: an id is no other query's group."""

    text: str
    kind: str


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


def join_groups(members: Mapping[str, Iterable[Name]]) -> dict[str, str]:
    """The group of each query, where queries that share a name are in one group (transitively).

    Args:
        members: query -> its names, at least one: its own group and parallel id, or its positives' or their ids.

    Returns:
        query -> the smallest text of the joined names. What other groups there are changes it only where the same
        text, of another kind, is theirs: then the kind stands before it.
    """
    parent: dict[Name, Name] = {}

    def find(name: Name) -> Name:
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
    roots = {query: find(first) for query, first in firsts.items()}
    labels = _labels(set(roots.values()))
    return {query: labels[root] for query, root in roots.items()}


def _labels(roots: Iterable[Name]) -> dict[Name, str]:
    """A text for each name, no two the same: of equal texts a group's stays as it is."""
    labels: dict[Name, str] = {}
    taken, seen = {root.text for root in roots}, set[str]()
    for root in sorted(roots):
        label = root.text
        if label in seen:
            while label in taken:
                label = f"{root.kind} {label}"
            taken.add(label)
        seen.add(root.text)
        labels[root] = label
    return labels


def joined_by(names: Iterable[Iterable[Name]], fields: Mapping[str, str]) -> dict[str, Any] | None:
    """The group or parallel id that joins more than half of the queries.

    Args:
        names: of each query.
        fields: kind of name -> the field that it stood in.

    Returns:
        ``{"field", "value", "queries"}``, the latter how many it joins; None where none does.
    """
    each = [set(found) for found in names]
    counts = Counter(name for found in each for name in found if name.kind in fields)
    name, count = min(counts.items(), key=lambda item: (-item[1], item[0]), default=(Name("", ID), 0))
    return {"field": fields[name.kind], "value": name.text, "queries": count} if 2 * count > len(each) else None


def joined_warnings(splits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What people must know of splits (as in ``data.json``) of which one group or parallel id joins more than half:
    it may stand for none."""
    return [
        f"{found['field']} {found['value']!r} joins {found['queries']:,} of {told['queries']:,} queries of {split} "
        f"({found['queries'] / told['queries']:.1%}) into one group: leave it out where it stands for none"
        for split, told in splits.items() if (found := told.get("joined_by")) and told["queries"] > FEW
    ]  # fmt: skip
