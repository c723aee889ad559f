"""The data step: read, check, normalise, group, split and write."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.data.beir import find_beir, read_beir
from harness.data.dropped import KEY as DROPPED_QUERIES
from harness.data.dropped import dropped_queries
from harness.data.emoji import make_emoji
from harness.data.folder import content_sha256, load_dataset, write_folder
from harness.data.grouping import GROUP, PARALLEL, Name, choose_groups, join_groups, joined_by
from harness.data.overlap import (
    EVALUATION_SPLITS,
    former_queries,
    places_to_keep,
    shared_with_train,
    used_queries,
    write_former,
)
from harness.data.pairs import read_pairs, read_unlabelled
from harness.data.reading import PREVIEW_LINES, Reading, group_fields, kind_problems
from harness.data.records import UNKNOWN_LANGUAGE, Documents, asked_text
from harness.data.source import Judged, Queries, Source, Split
from harness.recipe import DataSettings, QrelsNames
from harness.runtime.errors import InputError, Problem, gather_problems
from harness.runtime.process import atomic_folder, write_json

__all__ = ["load_dataset", "prepare_data"]


def prepare_data(
    settings: DataSettings,
    folder: Path,
    *,
    full: bool = True,
    earlier: Path | None = None,
    accept: Callable[[Path], object] | None = None,
) -> dict[str, Any]:
    """Read a recipe's data and write it as a BEIR folder with the splits train, select, report and perhaps test.

    Writes ``corpus.jsonl``, ``queries.jsonl``, ``qrels/SPLIT.tsv``, ``unlabelled.jsonl`` (if any) and ``data.json``,
    all at once or not at all. Queries of one group stay together when a split is made: dev into select and report, and
    pairs without ``dev_path`` into train and dev. What training and an evaluation both ask is not dropped but counted:
    ``texts_shared_with_train``, ``groups_shared_with_train``, and of each evaluation ``shared_with_train``.

    Args:
        full: ``False`` reads the first million lines of each file, for a preview.
        accept: called with the finished folder before it takes its place; what it raises leaves no folder behind.
        earlier: the folder as it was before the documents changed. What models were trained or chosen on does not
            become their test: queries of its ``train`` and ``select`` stay there, and come back there if they were away
            (``former.jsonl`` remembers them). Judgments of documents that are gone are left out, whatever
            ``data.on_error`` says.

    Returns:
        What ``data.json`` holds: counts, languages, what was dropped (queries by language, too), bad lines, files
        read, ``sha256`` of the rest.

    Raises:
        InputError: files that can't be read; lines that can't be used (unless ``data.on_error: skip``); nothing left to
            search or to evaluate; a language, field or split that the data doesn't have.
    """
    reading = Reading(None if full else PREVIEW_LINES)
    source, unlabelled = _read_all(settings, reading, forgiven=("unknown corpus-id",) if earlier else ())
    _check_fields(settings, source)
    dropped = _unread(reading, source)
    answerable = _select_queries(settings, source, dropped)
    judged = _select_languages(settings, source.queries, answerable, dropped)
    documents = _select_documents(settings, source.documents)
    splits, groups = _split(settings, source, judged)
    used = used_queries(earlier) if earlier else set()
    kept = _keep_in_split(splits, places_to_keep(earlier, used)) if earlier else 0
    former = former_queries(used, splits, source.queries)
    names = {name: _names(split, source) for name, split in splits.items()}
    shared = shared_with_train(splits, names, source.queries, former)
    joined = _joined(settings, names)
    _check_splits(settings, splits, groups, documents, dropped, joined)
    unlabelled = _select_unlabelled(settings, unlabelled, splits, source.queries, dropped)
    with atomic_folder(folder) as temporary:
        write_folder(temporary, documents, source.queries, splits, groups, unlabelled)
        write_former(temporary, former)
        summary = {
            "schema": 1, "source": settings.source, "search_within": settings.search_within,
            **_summary(source.queries, documents, splits, groups, unlabelled, shared, joined),
            "kept_in_split": kept, "dropped": dict(sorted(dropped.items())),
            DROPPED_QUERIES: dropped_queries(source, answerable, settings.languages), **_told(reading),
            "sha256": content_sha256(temporary),
        }  # fmt: skip
        write_json(temporary / "data.json", summary)
        if accept:
            accept(temporary)
    return summary


def _unread(reading: Reading, source: Source) -> Counter[str]:
    """What was dropped while files were read."""
    dropped = Counter(bad_lines=reading.bad_count)
    if source.queries.other_contexts:
        dropped["contexts_of_queries_that_have_another"] = source.queries.other_contexts
    return dropped


def check_data_files(settings: DataSettings) -> None:
    """Refuse, before anything is read, files that are not there or of an unknown kind.

    Raises:
        InputError: naming all of them.
    """
    if settings.source == "beir" and isinstance(settings.path, str) and Path(settings.path).exists():
        problems = find_beir(Path(settings.path), settings.qrels)[1]
    else:
        named = {"data.path": settings.path, "data.dev_path": settings.dev_path}
        problems = [
            problem for key, paths in named.items() if paths
            for path in ([paths] if isinstance(paths, str) else paths) if Path(path).is_file()
            for problem in kind_problems(Path(path), key)
        ]  # fmt: skip
    if problems:
        raise InputError(problems)


def _read_all(
    settings: DataSettings, reading: Reading, forgiven: Sequence[str]
) -> tuple[Source, list[tuple[str, str]]]:
    """What the recipe names, read; bad lines of the kinds ``forgiven`` are left out.

    Raises:
        InputError: everything that is wrong with any of the files.
    """
    read: dict[str, Any] = {}

    def bad_lines() -> None:
        if settings.on_error == "stop" and (problems := reading.problems(forgiven)):
            raise InputError(problems)

    gather_problems(
        lambda: read.update(source=_read(settings, reading)),
        lambda: read.update(unlabelled=read_unlabelled(settings, reading)),
        bad_lines,
    )
    return read["source"], read["unlabelled"]


def _read(settings: DataSettings, reading: Reading) -> Source:
    if settings.source == "emoji":
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "emoji"
            make_emoji(folder, settings.languages)
            source = read_beir(folder, settings.model_copy(update={"qrels": QrelsNames()}), reading)
            reading.files = {Path(name).name: count for name, count in reading.files.items()}
            return source
    if settings.source == "beir":
        assert isinstance(settings.path, str), "the recipe's validation asks for one path"
        return read_beir(Path(settings.path), settings, reading)
    return read_pairs(settings, reading)


# ---------------------------------------------------------------------------------------------- what is kept


def _check_fields(settings: DataSettings, source: Source) -> None:
    problems = []
    if settings.group and not any(source.document_groups) and not any(source.queries.groups):
        problems.append(Problem("no query and no document has this field", where="data.group", got=settings.group,
                                next="correct the name, or remove data.group"))
    if settings.equivalent and not any(source.documents.keys):
        problems.append(Problem("no document has this field", where="data.equivalent", got=settings.equivalent,
                                next="correct the name, or remove data.equivalent"))
    if problems:
        raise InputError(problems)


def _select_queries(settings: DataSettings, source: Source, dropped: Counter[str]) -> dict[str, Split]:
    """Per split of the source, the queries with a positive that they can find."""
    query_row = {id_: row for row, id_ in enumerate(source.queries.ids)}
    document_row, document_languages = source.documents.row, source.documents.languages
    judged: dict[str, Split] = {}
    for name, judgments in source.judgments.items():
        split = judged[name] = {}
        for query, scores in judgments.items():
            row = query_row[query]
            if settings.search_within == "lang":
                language = source.queries.languages[row]
                near = {id_: s for id_, s in scores.items() if document_languages[document_row[id_]] == language}
                dropped["positives_in_another_language"] += sum(s > 0 and id_ not in near for id_, s in scores.items())
                scores = near
            positives = {id_: score for id_, score in scores.items() if score > 0}
            if positives:
                split[query] = Judged(row, positives, tuple(id_ for id_, score in scores.items() if score <= 0))
            else:
                dropped["queries_without_positives"] += 1
    dropped["queries_without_judgments"] = len(source.queries.ids) - len(set().union(*source.judgments.values()))
    return judged


def _select_languages(
    settings: DataSettings, queries: Queries, judged: dict[str, Split], dropped: Counter[str]
) -> dict[str, Split]:
    """The queries in the languages asked for."""
    if settings.languages is None:
        return judged
    found = {queries.languages[query.row] for split in judged.values() for query in split.values()}
    if missing := [language for language in settings.languages if language not in found]:
        raise InputError(
            Problem("no query with a positive in this language", where="data.languages", got=", ".join(missing),
                    allowed=", ".join(sorted(found)) or "none: no query has a positive")
        )  # fmt: skip
    kept = {
        name: {id_: query for id_, query in split.items() if queries.languages[query.row] in settings.languages}
        for name, split in judged.items()
    }
    dropped["queries_in_other_languages"] = sum(len(judged[name]) - len(kept[name]) for name in judged)
    return kept


def _select_documents(settings: DataSettings, documents: Documents) -> Documents:
    """All documents, or those in the languages asked for where a query searches only its own."""
    if settings.search_within is None or settings.languages is None:
        return documents
    wanted = set(settings.languages)
    rows = [row for row, language in enumerate(documents.languages) if language in wanted]
    columns = (documents.ids, documents.texts, documents.languages, documents.keys)
    return Documents(*([column[row] for row in rows] for column in columns))


def _select_unlabelled(
    settings: DataSettings,
    texts: Iterable[tuple[str, str]],
    splits: Mapping[str, Split],
    queries: Queries,
    dropped: Counter[str],
) -> list[tuple[str, str]]:
    """Each text once, in the languages asked for (``und`` stays), and none that an evaluation asks."""
    evaluated = {asked_text(text) for name in EVALUATION_SPLITS for text in _texts(splits.get(name, {}), queries)}
    wanted = {*settings.languages, UNKNOWN_LANGUAGE} if settings.languages else None
    kept: dict[tuple[str, str], None] = {}
    for text, language in texts:
        if wanted is not None and language not in wanted:
            dropped["unlabelled_in_other_languages"] += 1
        elif asked_text(text) in evaluated:
            dropped["unlabelled_in_evaluation"] += 1
        elif (text, language) in kept:
            dropped["unlabelled_twice"] += 1
        else:
            kept[text, language] = None
    return list(kept)


def _texts(split: Split, queries: Queries) -> Iterable[str]:
    return (queries.texts[query.row] for query in split.values())


# -------------------------------------------------------------------------------------------- groups and splits


def _split(
    settings: DataSettings, source: Source, judged: Mapping[str, Split]
) -> tuple[dict[str, Split], dict[str, str]]:
    """The final splits, and the group of each query.

    Training and evaluation are joined into groups apart: many training queries with several positives each may all
    hang together, which says nothing about the queries of an evaluation.
    """
    train, dev, test = (judged.get(name, {}) for name in ("train", "dev", "test"))
    train_names = _names(train, source)
    train_groups = join_groups(train_names)
    if "dev" not in judged and settings.source in ("pairs", "huggingface"):
        held_out = choose_groups(train_groups.values(), settings.hold_out, "hold_out", least=2)  # select and report
        dev = {query: value for query, value in train.items() if train_groups[query] in held_out}
        train = {query: value for query, value in train.items() if query not in dev}
        train_names = {query: train_names[query] for query in train}
    evaluation_names = _names(dev, source)
    for query, names in _names(test, source).items():
        evaluation_names[query] = evaluation_names.get(query, []) + names
    groups = join_groups(evaluation_names)
    selected = choose_groups((groups[query] for query in dev), settings.select_share, "select")
    splits = {
        "train": train,
        "select": {query: value for query, value in dev.items() if groups[query] in selected},
        "report": {query: value for query, value in dev.items() if groups[query] not in selected},
    }
    if "test" in judged:
        splits["test"] = test
    return splits, train_groups | groups


def _keep_in_split(splits: dict[str, Split], used: Mapping[str, str]) -> int:
    """Move queries back into the split that they were used in (query -> split); how many."""
    kept = 0
    for name, split in splits.items():
        for query in [query for query in split if used.get(query, name) != name]:
            splits[used[query]].setdefault(query, split.pop(query))
            kept += 1
    return kept


def _names(split: Split, source: Source) -> dict[str, list[Name]]:
    """What each query is grouped by."""
    return {query: source.names(known.row, known.positives) for query, known in split.items()}


def _check_splits(
    settings: DataSettings, splits: Mapping[str, Split], groups: Mapping[str, str], documents: Documents,
    dropped: Mapping[str, int], joined: Mapping[str, Mapping[str, Any]],
) -> None:  # fmt: skip
    def in_groups(name: str) -> str:
        """``9 queries in one group, 'a' (parallel_id '-' joins 9)``, as far as it goes."""
        names = {groups[query] for query in splits[name]}
        number = f"one group, {min(names)!r}" if len(names) == 1 else f"{len(names)} groups"
        by = "{field} {value!r} joins {queries}".format(**joined[name]) if name in joined else ""
        return f"{len(splits[name])} queries in {number}" + (f" ({by})" if by else "")

    problems = []
    left_out = ", ".join(f"{name}: {count}" for name, count in sorted(dropped.items()) if count)
    if not documents:
        problems.append(Problem("there is no document to search", where="data", next="check the corpus"))
    dev = {**splits["select"], **splits["report"]}
    if not dev:
        held_out = settings.source in ("pairs", "huggingface") and settings.dev_path is None and splits["train"]
        got = "; ".join(filter(None, (in_groups("train") if held_out else "", left_out)))
        problems.append(
            Problem("no query is left in dev", where="data", got=got, allowed="queries with a positive document",
                    next="judge queries in dev (data.qrels.dev, data.dev_path), or give pairs of several groups to "
                    "hold some out of (data.hold_out)")
        )
    elif not (splits["select"] and splits["report"]):
        problems.append(
            Problem("dev can't be split into select and report", where="data.group",
                    got=in_groups("select" if splits["select"] else "report"),
                    next="name a field with at least two values in dev, leave out a value that stands for none, or add "
                    "queries")
        )  # fmt: skip
    if "test" in splits and not splits["test"]:
        problems.append(Problem("no query is left in test", where="data.qrels.test", got=left_out, next="set it null"))
    if problems:
        raise InputError(problems)


def _joined(settings: DataSettings, names: Mapping[str, Mapping[str, list[Name]]]) -> dict[str, dict[str, Any]]:
    """Of each split of which one group or parallel id joins more than half, which and how many."""
    usual = "group" if settings.source in ("beir", "emoji") else settings.columns.group
    fields = {GROUP: group_fields(settings, usual)[0], PARALLEL: PARALLEL}
    return {name: found for name, split in names.items() if (found := joined_by(split.values(), fields))}


def _counted(shared: Mapping[str, set[str]] | None) -> dict[str, Any]:
    return {"shared_with_train": {kind: len(ids) for kind, ids in shared.items()}} if shared else {}


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _summary(
    queries: Queries,
    documents: Documents,
    splits: Mapping[str, Split],
    groups: Mapping[str, str],
    unlabelled: Sequence[tuple[str, str]],
    shared: Mapping[str, Mapping[str, set[str]]],
    joined: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """How much there is of everything, by language, and what evaluations share with the training."""
    return {
        "documents": {"count": len(documents), "languages": _counts(documents.languages)},
        "splits": {
            name: _describe(split, queries, groups) | _counted(shared.get(name))
            | ({"joined_by": joined[name]} if name in joined else {}) for name, split in splits.items()
        },
        "languages": sorted({queries.languages[q.row] for split in splits.values() for q in split.values()}),
        "unlabelled": {"count": len(unlabelled), "languages": _counts(language for _, language in unlabelled)},
        "groups_shared_with_train": len({groups[id_] for found in shared.values() for id_ in found["groups"]}),
        "texts_shared_with_train": sum(len(found["texts"]) for found in shared.values()),
    }


def _told(reading: Reading) -> dict[str, Any]:
    """Which files were read, how far, and which of their lines could not be used."""
    files = {name: vars(count) for name, count in reading.files.items()}
    return {"bad_lines": reading.bad_lines(), "files": files, "complete": reading.complete}


def _describe(split: Split, queries: Queries, groups: Mapping[str, str]) -> dict[str, Any]:
    contexts = sum(bool(queries.contexts[known.row]) for known in split.values())
    return {
        "queries": len(split),
        "groups": len({groups[query] for query in split}),
        "positives": sum(len(known.positives) for known in split.values()),
        "negatives": sum(len(known.negatives) for known in split.values()),
        "languages": _counts(queries.languages[known.row] for known in split.values()),
        **({"contexts": contexts} if contexts else {}),
    }
