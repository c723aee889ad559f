"""Reading runs to be put side by side, and why numbers of one are no match for those of the first."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.evaluation.report.values import MISSING, branch, clean, count, described, dig, in_order, number
from harness.evaluation.report.view import SETS, View
from harness.runtime.errors import InputError, Problem, gather_problems

RESULTS = "results.json"
SEARCH = ("k", "searcher", "search_threads", "tokeniser_threads", "search_within")  # conditions of a whole path
# Whether a run vouches for its results; a StaleArtefactError where they are not what it wrote.
Vouched = Callable[[Path], bool]


@dataclass(frozen=True)
class Compared:
    """One run: ``apart`` says why its quality, recovery, latency or throughput is no match for the first run's (none:
    it is).

    ``loose``: nothing vouches that its results are what a run wrote.
    """

    name: str
    folder: Path
    view: View
    apart: Mapping[str, Sequence[str]] = field(default_factory=dict)
    loose: bool = False

    def reasons(self, kind: str) -> Sequence[str]:
        return self.apart.get(kind, ())


# -------------------------------------------------------------------------------------------------------- reading


def read_runs(folders: Sequence[Path], vouched: Vouched = lambda path: True) -> list[Compared]:
    """The runs in these folders, on the foremost set that all of them have, each held against the first.

    Raises:
        InputError: fewer than two runs, the same run twice, a folder without results, or no set in common.
        StaleArtefactError: results are not what the run wrote.
    """
    problems: list[Problem] = []
    if len(folders) < 2:
        problems.append(Problem("nothing to compare with", where="--compare", got=f"{len(folders)} run",
                                allowed="two or more folders of runs"))  # fmt: skip
    folders = [folder.parent if folder.name == RESULTS and folder.is_file() else folder for folder in folders]
    paths = [folder.resolve() for folder in folders]
    for place, folder in enumerate(folders):
        if paths[place] in paths[:place]:
            problems.append(Problem("the same run twice", where=str(folder), next="name it once"))
    found = [_read(folder, problems) for folder in folders]
    if problems:
        raise InputError(problems)
    kept: list[bool] = []
    gather_problems(*(functools.partial(_vouch, kept, vouched, folder) for folder in folders))
    sets = [
        {name for by_set in branch(told, "quality").values() for name in branch({"": by_set}, "")} for told in found
    ]
    common = in_order(sorted(set.intersection(*sets)), SETS)
    if not common:
        raise InputError(
            Problem("no set that all of these runs were evaluated on", where="--compare",
                    got="; ".join(f"{folder}: {', '.join(sorted(names)) or 'none'}"
                                  for folder, names in zip(folders, sets, strict=True)),
                    next="evaluate them on the same set (evaluate.sets)")
        )  # fmt: skip
    views = [View(told, on=common[0]) for told in found]
    return [
        Compared(name, folder, view, {} if view is views[0] else apart(views[0], view), not known)
        for name, folder, view, known in zip(_names(views, folders), folders, views, kept, strict=True)
    ]


def results_file(folder: Path) -> Path:
    """The results of a run, or the file that was named itself."""
    return folder / RESULTS if folder.is_dir() else folder


def _vouch(kept: list[bool], vouched: Vouched, folder: Path) -> None:
    kept.append(vouched(results_file(folder)))


def _read(folder: Path, problems: list[Problem]) -> Mapping[str, Any]:
    """The results of one run; what is wrong with them joins the problems."""
    path = results_file(folder)
    advice = "harness report RECIPE writes it"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        problems.append(
            Problem("no results of a run", where=str(folder), allowed=f"a folder with {RESULTS}", next=advice)
        )
        return {}
    except ValueError:
        told = None
    if not isinstance(told, dict) or told.get("schema") != 1:
        got = f"schema {told.get('schema')}" if isinstance(told, dict) else "no JSON"
        problems.append(Problem("not the results of a run", where=str(path), got=got, allowed="schema 1", next=advice))
        return {}
    return told


def _names(views: Sequence[View], folders: Sequence[Path]) -> list[str]:
    """What tells the runs apart: their own names, else those of their folders, else both with a number."""
    for names in ([view.name for view in views], [clean(folder.resolve().name) for folder in folders]):
        if len(set(names)) == len(names):
            return names
    return [f"{view.name} {place}" for place, view in enumerate(views, 1)]


# --------------------------------------------------------------------------------------------- what can be compared


def apart(first: View, other: View) -> dict[str, list[str]]:
    """Why ``quality``, ``recovery``, ``latency`` and ``throughput`` of a run are no match for the first run's."""
    data = _other_labels(first, other) or _other_data(first, other)
    recovery = list(data)
    if first.reference != other.reference:
        recovery.append(f"another reference ({clean(other.reference)}, the first has {clean(first.reference)})")
    machine = _other_machine(first, other)
    return {"quality": data, "recovery": recovery, "latency": machine + _other_timing(first, other),
            "throughput": machine}  # fmt: skip


def _other_data(first: View, other: View) -> list[str]:
    hashes = [data_hash(view) for view in (first, other)]
    if all(hashes):
        return [] if hashes[0] == hashes[1] else [f"other data ({hashes[1]}, the first has {hashes[0]})"]
    told = []
    for key in ("queries", "documents", "languages"):
        ours, theirs = (dig(view.results, "sets", view.set, key) for view in (first, other))
        if ours != theirs:
            told.append(f"other {key} in {clean(first.set)} ({_size(theirs)}, the first has {_size(ours)})")
    return told


def _other_labels(first: View, other: View) -> list[str]:
    """Where only the labels that came after the data differ: how many of them judge each of the two."""
    sets = [branch(view.results, "sets", view.set) for view in (first, other)]
    bare = [about.get("sha256_without_labels") or about.get("sha256") for about in sets]
    if not all(bare) or bare[0] != bare[1] or data_hash(first) == data_hash(other):
        return []
    ours, theirs = (count(dig(view.results, "labels", "used", view.set) or 0) for view in (first, other))
    many = f"{theirs} judge it, {ours} the first" if ours != theirs else f"{theirs} judge each, and they differ"
    return [f"other labels on the same data ({many})"]


def data_hash(view: View) -> str:
    """The beginning of the hash of the set: its documents, queries and judgments."""
    return clean(dig(view.results, "sets", view.set, "sha256") or "")[:12]


def _size(value: object) -> str:
    return count(value) if number(value) is not None else str(len(value)) if isinstance(value, list) else MISSING


def _other_machine(first: View, other: View) -> list[str]:
    return _others(first, other, ("provenance", "hardware", "cpu"), ("provenance", "hardware", "cores"),
                   ("conditions", "cpu"), ("conditions", "device"), ("conditions", "threads"))  # fmt: skip


def _other_timing(first: View, other: View) -> list[str]:
    """Another way of timing one query and, where whole paths are compared, another search in them."""
    told = []
    if first.timed and other.timed:
        ways = [clean(dig(view.results, "conditions", "encoder") or "not told") for view in (first, other)]
        if ways[0] != ways[1]:
            told.append(f"another way of timing the encoder ({ways[1]}, the first: {ways[0]})")
    if first.path_key and other.path_key:
        told += _others(first, other, *(("conditions", key) for key in SEARCH))
    return told


def _others(first: View, other: View, *places: tuple[str, ...]) -> list[str]:
    """What both tell, and differently."""
    told = []
    for place in places:
        ours, theirs = (described(dig(view.results, *place)) for view in (first, other))
        if ours != theirs and ours and theirs:
            told.append(f"other {place[-1].replace('_', ' ')} ({theirs}, the first has {ours})")
    return list(dict.fromkeys(told))
