"""Sets from elsewhere, read whole: a BEIR folder, or a retrieval task of the package ``mteb``.

Such sets are as they are: what of a BEIR folder can't be used (documents without any text, judgments of ids that are
not there) is left out and counted, where the same in one's own data is an error. Queries without a relevant document
are left out, too: no metric is defined for them, and trec_eval counts them as zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.data.beir import is_number, read_beir
from harness.data.grouping import ID, Name, join_groups
from harness.data.reading import Reading
from harness.data.records import RESERVED, UNKNOWN_LANGUAGE, Documents, Record
from harness.data.source import Source
from harness.recipe import DataSettings, OutsideSet, QrelsNames
from harness.runtime.errors import InputError, Problem

FORGIVEN = ("no text", "unknown corpus-id", "unknown query-id")  # kinds of bad lines
PREVIEW = 10_000  # lines of a file
WITHOUT_RELEVANT = "queries without a relevant document"


@dataclass(frozen=True)
class OutsideData:
    """Documents, queries and judgments of a set from elsewhere.

    ``source`` names it for people; ``ignores_own_id``: a hit with the id of its query is no hit; ``dropped``: what was
    left out, and how much.
    """

    documents: Documents
    records: list[Record]
    source: str
    ignores_own_id: bool
    dropped: dict[str, int] = field(default_factory=dict)


def read_outside(given: OutsideSet) -> OutsideData:
    """Read a set that a recipe names.

    Raises:
        InputError: it is not there, has no such split or subset, can't be read, or has nothing to search for.
    """
    data = _of_folder(given, Path(given.beir)) if given.beir else _of_task(given)
    if not data.records or not data.documents:
        raise InputError(_nothing(given, len(data.documents), len(data.records)))
    if given.ignore_identical_ids is not None:
        data = replace(data, ignores_own_id=given.ignore_identical_ids)
    return data


def _nothing(given: OutsideSet, documents: int, answerable: int) -> Problem:
    return Problem("there is nothing to search, or nothing to search for", where=_where(given),
                   got=f"{documents:,} documents, {answerable:,} answerable queries",
                   next="choose another split, or another set")  # fmt: skip


def _where(given: OutsideSet) -> str:
    return f"evaluate.outside: {given.name}"


# ------------------------------------------------------------------------------------------------- BEIR folders


def outside_files(given: OutsideSet) -> list[Path]:
    """The files of a folder's corpus, queries and judgments, plain or gzipped.

    Raises:
        InputError: everything that is missing.
    """
    assert given.beir is not None
    folder, split = Path(given.beir), given.split or "test"
    if not folder.is_dir():
        raise InputError(Problem("no such folder", where=_where(given), got=str(folder),
                                 allowed="a folder with corpus.jsonl, queries.jsonl and qrels"))  # fmt: skip
    paths = [folder / "corpus.jsonl", folder / "queries.jsonl", folder / "qrels" / f"{split}.tsv"]
    found = [_existing(path) for path in paths]
    problems = [
        Problem(f"{path.name} is missing", where=_where(given), got=str(folder), allowed="plain or .gz")
        for path, there in zip(paths[:2], found, strict=False) if there is None
    ]  # fmt: skip
    if found[2] is None:
        # Names may have dots of their own (test.v2.tsv): only the ending goes.
        splits = sorted({path.name.removesuffix(".gz").removesuffix(".tsv") for path in folder.glob("qrels/*.tsv*")})
        problems.append(Problem(f"qrels/{split}.tsv is missing", where=_where(given), got=str(folder),
                                allowed=f"split: {' or '.join(splits)}" if splits else "a folder qrels with .tsv files",
                                next="set split"))  # fmt: skip
    if problems:
        raise InputError(problems)
    return [path for path in found if path is not None]


def _existing(path: Path) -> Path | None:
    return next((name for name in (path, path.with_name(f"{path.name}.gz")) if name.is_file()), None)


def preview_outside(given: OutsideSet) -> None:
    """Read the heads of a folder's files, so that what is wrong with them does not show after days.

    Raises:
        InputError: as ``read_outside``, as far as the heads tell; and where no query is answerable, which is looked for
            further down as far as it takes.
    """
    reading = Reading(PREVIEW)
    source = _read_folder(given, reading)
    answerable = sum(any(grade > 0 for grade in grades.values()) for grades in source.judgments["dev"].values())
    if not answerable and (reading.complete or not _answerable_further_down(given)):
        raise InputError(_nothing(given, len(source.documents), 0))


def _answerable_further_down(given: OutsideSet) -> bool:
    """Whether any query and any document that has a text, however far down, are judged to belong together."""
    corpus, queries, qrels = outside_files(given)
    reading = Reading()
    judged = [line.split("\t") for _, line in reading.lines(qrels)]
    positive = [fields[:2] for fields in judged if len(fields) == 3 and is_number(fields[2]) and float(fields[2]) > 0]
    wanted = {query for query, _ in positive}
    asked = {str(line.get("_id")) for _, line in reading.objects(queries) if _told(line, "text")} & wanted
    found = {document for query, document in positive if query in asked}
    return any(str(line.get("_id")) in found and _told(line, "text", "title") for _, line in reading.objects(corpus))


def _told(line: Mapping[str, Any], *names: str) -> bool:
    return any(isinstance(text := line.get(name), str) and text.strip() for name in names)


def _read_folder(given: OutsideSet, reading: Reading) -> Source:
    outside_files(given)
    names = QrelsNames(dev=given.split or "test", test=None).model_copy(update={"train": None})  # no other split
    settings = DataSettings(source="beir", path=given.beir).model_copy(update={"qrels": names})
    source = read_beir(Path(given.beir or ""), settings, reading)
    if problems := reading.problems(forgiven=FORGIVEN):
        raise InputError([replace(problem, next="correct the file") for problem in problems])
    if taken := sorted({*source.queries.languages} & {*RESERVED}):
        raise InputError(Problem("a language has the name of a summary row", where=_where(given), got=", ".join(taken),
                                 allowed=f"any name but {', '.join(RESERVED)}",
                                 next="rename it in the set's queries"))  # fmt: skip
    return source


def _of_folder(given: OutsideSet, folder: Path) -> OutsideData:
    split, reading = given.split or "test", Reading()
    source = _read_folder(given, reading)
    dropped: dict[str, int] = {}
    for kinds in reading.bad_lines().values():
        for kind, told in kinds.items():
            dropped[kind] = dropped.get(kind, 0) + told["count"]
    asked, judgments = source.queries, source.judgments["dev"]
    rows = {id_: row for row, id_ in enumerate(asked.ids)}
    groups = join_groups({id_: source.own_names(rows[id_]) or [Name(id_, ID)] for id_ in judgments})
    records = [
        _record(id_, asked.texts[rows[id_]], grades, language=asked.languages[rows[id_]],
                group=groups[id_], weight=asked.weights[rows[id_]])
        for id_, grades in judgments.items()
    ]  # fmt: skip
    return OutsideData(
        source.documents, _answerable(records, dropped), f"BEIR folder {folder.name}, {split}", True, dropped
    )


def _record(
    id_: str, text: str, grades: Mapping[str, float], *, language: str = UNKNOWN_LANGUAGE, group: str = "",
    weight: float = 1.0,
) -> Record:  # fmt: skip
    positives = {document: float(grade) for document, grade in grades.items() if grade > 0}
    negatives = tuple(document for document, grade in grades.items() if grade <= 0)
    return Record(id_, text, language, group or id_, positives, negatives, weight)


def _answerable(records: Iterable[Record], dropped: dict[str, int]) -> list[Record]:
    """The queries with a relevant document; the others are counted."""
    kept = []
    for record in records:
        if record.positives:
            kept.append(record)
        else:
            dropped[WITHOUT_RELEVANT] = dropped.get(WITHOUT_RELEVANT, 0) + 1
    return kept


# ------------------------------------------------------------------------------------------------ tasks of mteb


def _of_task(given: OutsideSet) -> OutsideData:
    import mteb
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    assert given.mteb is not None
    asked: str = given.mteb  # held for the lambda below
    try:
        task = mteb.get_task(asked)
    except KeyError as error:
        raise InputError(Problem("mteb knows no such task", where=_where(given), got=given.mteb,
                                 allowed=str(error.args[0]))) from None  # fmt: skip
    if not isinstance(task, AbsTaskRetrieval) or list(task.metadata.modalities) != ["text"]:
        raise InputError(Problem("not a task of text retrieval", where=_where(given),
                                 got=f"{given.mteb}: {task.metadata.type}", allowed="retrieval of texts"))  # fmt: skip
    subset = _one(given, "subset", given.subset, list(task.hf_subsets))
    split = _one(given, "split", given.split, list(task.eval_splits))
    parts = _loaded(given, lambda: mteb.get_task(asked, eval_splits=[split], hf_subsets=[subset]), subset, split)
    if parts.get("top_ranked"):
        raise InputError(Problem("the task reranks given documents and searches none", where=_where(given),
                                 got=given.mteb, next="choose a task of retrieval"))  # fmt: skip
    documents, dropped = Documents(), dict[str, int]()
    for row in parts["corpus"]:
        documents.ids.append(row["id"])
        documents.texts.append(f"{row.get('title') or ''} {row['text']}".strip())  # as mteb joins them
        documents.languages.append(UNKNOWN_LANGUAGE)
        documents.keys.append("")
    known = documents.row
    texts = {row["id"]: _query(given, row) for row in parts["queries"]}
    records = []
    for id_, grades in parts["relevant_docs"].items():
        there = {document: grade for document, grade in grades.items() if document in known}
        if len(there) < len(grades):
            dropped["unknown corpus-id"] = dropped.get("unknown corpus-id", 0) + len(grades) - len(there)
        if id_ in texts:
            records.append(_record(id_, texts[id_], there))
        else:
            dropped["unknown query-id"] = dropped.get("unknown query-id", 0) + 1
    name = f"mteb {given.mteb}" + (f" ({subset})" if subset != "default" else "")
    own = bool(task.ignore_identical_ids)
    return OutsideData(documents, _answerable(records, dropped), f"{name}, {split}", own, dropped)


def _one(given: OutsideSet, key: str, wanted: str | None, there: list[str]) -> str:
    """The wanted one of the task's subsets or splits; where none is named, its only one."""
    if wanted in there or (wanted is None and len(there) == 1):
        return wanted or there[0]
    what = f"the task has no such {key}" if wanted else f"the task has several {key}s"
    raise InputError(Problem(what, where=_where(given), got=wanted or given.mteb or "", allowed=", ".join(there),
                             next=f"set {key} to one of them; each may be an outside set of its own"))  # fmt: skip


def _loaded(given: OutsideSet, make: Callable[[], Any], subset: str, split: str) -> Mapping[str, Any]:
    """The task's corpus, queries and judgments, from the cache or from where mteb gets them."""
    task = make()
    try:
        task.load_data()
    except (OSError, ValueError) as error:  # the hub's refusals, no network, a data set that is gone
        raise InputError(Problem("mteb can't load the task's data", where=_where(given),
                                 got=str(error).splitlines()[0] if str(error) else type(error).__name__,
                                 next="load it once where there is a network: mteb keeps it")) from None  # fmt: skip
    task.convert_v1_dataset_format_to_v2(num_proc=None)
    parts: Mapping[str, Any] = task.dataset[subset][split]
    return parts


def _query(given: OutsideSet, row: Mapping[str, Any]) -> str:
    """A query's text, and its instruction behind it where it has one, as mteb joins them."""
    text = row["text"]
    if not isinstance(text, str):
        raise InputError(Problem("the task's queries are conversations", where=_where(given), got=given.mteb or "",
                                 allowed="one text a query"))  # fmt: skip
    instruction = row.get("instruction")
    return f"{text} {instruction}" if instruction else text
