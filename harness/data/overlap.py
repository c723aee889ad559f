"""What was trained or chosen on, over all updates, and what of it an evaluation asks again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.data.folder import SPLITS, read_lines
from harness.data.grouping import Name
from harness.data.records import asked_text
from harness.data.source import Queries, Split

EVALUATION_SPLITS = ("select", "report", "test")
USED_SPLITS = ("train", "select")  # those that change a model
FORMER = "former.jsonl"  # in a prepared folder: queries of USED_SPLITS of earlier data that stand there no more


class Used(NamedTuple):
    """A query that a model was trained or chosen on."""

    id: str
    split: str
    text: str


def used_queries(folder: Path) -> set[Used]:
    """The queries that models were trained or chosen on: those of a prepared folder and of the data before it."""
    texts = {line["_id"]: line["text"] for line in read_lines(folder / "queries.jsonl")}
    found = {Used(query, name, texts[query]) for name in USED_SPLITS for query in _asked(folder, name)}
    return found | {Used(line["_id"], line["split"], line["text"]) for line in read_lines(folder / FORMER)}


def places_to_keep(folder: Path, used: Iterable[Used]) -> dict[str, str]:
    """Query id -> ``train`` or ``select``, for those that were used in it and never stood in another split."""
    splits: dict[str, set[str]] = {}
    for query in used:
        splits.setdefault(query.id, set()).add(query.split)
    for name in SPLITS:
        for query_id in _asked(folder, name):
            splits.setdefault(query_id, set()).add(name)
    alone = {query_id: next(iter(names)) for query_id, names in splits.items() if len(names) == 1}
    return {query_id: name for query_id, name in alone.items() if name in USED_SPLITS}


def former_queries(used: Iterable[Used], splits: Mapping[str, Split], queries: Queries) -> list[Used]:
    """Those of ``used`` that stand no more where they stood, or ask something else now."""
    now = {Used(id_, name, queries.texts[known.row])
           for name in USED_SPLITS for id_, known in splits.get(name, {}).items()}  # fmt: skip
    return sorted(set(used) - now)


def write_former(folder: Path, former: Sequence[Used]) -> None:
    """Write ``former.jsonl``; without such queries there is no file."""
    if former:
        with open(folder / FORMER, "w", encoding="utf-8", newline="\n") as stream:
            for query in former:
                line = {"_id": query.id, "split": query.split, "text": query.text}
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")


# -------------------------------------------------------------------------------------- what evaluations ask again


def shared_with_train(
    splits: Mapping[str, Split], names: Mapping[str, Mapping[str, list[Name]]], queries: Queries, former: Iterable[Used]
) -> dict[str, dict[str, set[str]]]:
    """Of each evaluation, the queries that training asks too.

    Args:
        names: per split and query, what it is grouped by.
        former: what was trained on before the data changed.

    Returns:
        Split -> {"texts": ids of queries that are asked in training word for word (``asked_text``), "groups": ids of
        those that have a group (or, without groups, a document) in common with a training query}.
    """
    trained = {asked_text(queries.texts[known.row]) for known in splits["train"].values()}
    trained |= {asked_text(query.text) for query in former if query.split == "train"}
    in_training = {name for found in names["train"].values() for name in found}
    return {
        name: {
            "texts": {id_ for id_, known in split.items() if asked_text(queries.texts[known.row]) in trained},
            "groups": {id_ for id_ in split if not in_training.isdisjoint(names[name][id_])},
        }
        for name, split in splits.items() if name in EVALUATION_SPLITS
    }  # fmt: skip


def overlap_warnings(sets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What people must know of sets that are not foreign to the training.

    Args:
        sets: name -> {"queries": how many, "shared_with_train": {"texts", "groups"}: how many of them}, as in
            ``data.json``, and "streams" where the teacher trained on some; a set may lack the latter.
    """
    what = {"texts": "are asked, word for word, in training too",
            "groups": "share a group or document with training queries",
            "streams": "are asked, word for word, in the teacher's streams too"}  # fmt: skip
    return [
        f"{count:,} of {told['queries']:,} queries of {name} ({count / told['queries']:.1%}) {what[kind]}"
        for name, told in sets.items()
        for kind, count in told.get("shared_with_train", {}).items() if count
    ]  # fmt: skip


def _asked(folder: Path, split: str) -> Iterable[str]:
    path = folder / "qrels" / f"{split}.tsv"
    if path.exists():
        with open(path, encoding="utf-8", newline="\n") as stream:
            next(stream)
            for line in stream:
                yield line.split("\t", 1)[0]
