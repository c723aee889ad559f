"""What the step ``evaluate`` does: every system searches, and what it found is stored query by query."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.records import Record, in_context
from harness.evaluation.per_query import PerQuery, described, load_query_vectors
from harness.evaluation.searching import agreement, judge, judged_again
from harness.pipeline.ann_index import SYSTEM as ANN_SYSTEM
from harness.pipeline.ann_index import approximately, deployed_index, deployed_system
from harness.pipeline.checks import evaluated_sets
from harness.pipeline.context import Run
from harness.pipeline.int8_system import SYSTEM as INT8_SYSTEM
from harness.pipeline.int8_system import evaluated_systems, int8_folder, int8_vectors, made_of, why_left_out
from harness.pipeline.labels import judged_records, kept_labels
from harness.runtime.distributed import on_main
from harness.runtime.errors import InputError
from harness.runtime.process import fingerprint, folder_sha256, logger, remove_folder
from harness.vectors.approximate import Searcher
from harness.vectors.space import require_same_space

if TYPE_CHECKING:
    from harness.encoders.encoder import Encoder

# The system that is there once a step has ended.
ENDED = {"embed": "teacher", "student": "student-untrained", "align": "student-aligned", "refine": "student-refined"}
COLUMNS = 2  # of a stored evaluation, beside its metrics: rises with what is measured, or with what that means

# ---------------------------------------------------------------------------------------------------- evaluation


def system_folder(run: Run, system: str) -> Path | None:
    """The encoder of a system; None for the teacher before its training, which the recipe describes."""
    states = {"student-untrained": "cut", "student-aligned": "aligned", "student-refined": "refined"}
    if system in states:
        return run.folder.student(states[system])
    if system == INT8_SYSTEM:
        return int8_folder(run)
    if system == ANN_SYSTEM:
        return system_folder(run, deployed_system(run.recipe))
    return {"teacher": run.folder.teacher, "teacher-more": run.folder.teacher_more}.get(system)


def open_system(run: Run, system: str) -> Encoder:
    """The encoder of a system, on the device."""
    folder = system_folder(run, system)
    return run.load(run.recipe.teacher) if folder is None else run.open(folder)


def documents_of(system: str) -> str:
    """The store of the document vectors that a system searches: the frozen ones, but for other teachers their own."""
    return {"teacher-base": "base-documents", "teacher-more": "more-documents"}.get(system, "documents")


def index_of_system(run: Run, system: str) -> Searcher:
    """The index that a system searches, over the vectors of ``documents_of``.

    Raises:
        StaleArtefactError: the system's space is not the index's.
    """
    refuse_other_space(run, system)
    if (name := documents_of(system)) != "documents":
        return run.index_of(run.store(name))
    return deployed_index(run) if system == ANN_SYSTEM else run.frozen_index()


def refuse_other_space(run: Run, system: str) -> None:
    """Refuse a system that searches the frozen vectors in a space of its own.

    Raises:
        StaleArtefactError: both spaces, and how they differ.
    """
    if documents_of(system) == "documents":
        folder = system_folder(run, system)
        assert folder is not None
        space = run.store_manifest("documents").space
        require_same_space(run.space(folder), space, system, "the document vectors")


def query_vectors(run: Run, system: str, names: list[str]) -> dict[str, np.ndarray]:
    """The system's vectors of every set's queries, fp32; only a teacher's have contexts (``teacher.context``)."""
    splits = run.dataset.splits
    if system == "teacher" and run.recipe.teacher.model is None:
        store = run.store("queries")
        return {n: store.vectors(np.array([store.row[f"query:{r.id}"] for r in splits[n]])) for n in names}
    if system == INT8_SYSTEM:
        return int8_vectors(run, {n: [record.text for record in splits[n]] for n in names})
    encoder, tokens, template = open_system(run, system), run.recipe.embed.batch_tokens, context_of(run, system)
    return {
        name: encoder.encode(
            [in_context(record.text, record.context, template) for record in splits[name]],
            side="query", batch_tokens=tokens, what=f"{system} {name}", shared=True,
        )
        for name in names
    }  # fmt: skip


def context_of(run: Run, system: str) -> str | None:
    """How a system's queries get their contexts: as ``teacher.context`` says for teachers, for students not at all."""
    return run.recipe.teacher.context if system.startswith("teacher") else None


def do_evaluate(run: Run) -> list[Path]:
    """Evaluate every system; what is there already is kept.

    An int8 file that failed the parity gate is left out, and so is what was stored of an earlier one.
    """
    if (why := why_left_out(run)) and run.is_main:
        logger.warning("evaluate: %s", why)
        remove_folder(run.folder.evaluations / INT8_SYSTEM)
    return evaluate(run, evaluated_systems(run))


def evaluate_ended(run: Run, step: str) -> bool:
    """Evaluate the system that a step has just ended, where the recipe evaluates it; ``do_evaluate`` finds it there.

    So a stage is judged as soon as it is over, and what the ledger subtracts was stored when each step ended. A
    reference that is made later leaves this to ``do_evaluate``.

    Returns:
        Whether there was something to evaluate.
    """
    system, reference = ENDED.get(step), run.recipe.evaluate.reference
    if system not in {reference, *run.recipe.evaluate.systems} or reference not in ("teacher", "teacher-base"):
        return False
    evaluate(run, [system])
    return True


def evaluate(run: Run, systems: Sequence[str]) -> list[Path]:
    """Search with the queries of these systems, and of the reference, and store what was found, per query.

    Returns:
        A folder for each system and set. What lies there already, made of the same, is kept.
    """
    settings, dataset, names = run.recipe.evaluate, run.dataset, evaluated_sets(run.recipe, run.dataset)
    order = _in_order(settings.reference, systems)
    keys = on_main(functools.partial(_evaluation_keys, run, order))
    records = {name: judged_records(run, name) for name in names}
    reference: dict[str, tuple[np.ndarray, PerQuery]] = {}
    opened: dict[str, Searcher] = {}
    written = []
    for system in order:
        folders = {name: run.folder.evaluations / system / name for name in names}
        written += list(folders.values())
        if on_main(functools.partial(_kept, run, folders, keys[system], records, system == settings.reference)):
            if system == settings.reference:
                reference = {n: (load_query_vectors(f), PerQuery.load(f)) for n, f in folders.items()}
            continue
        if (searched := _searched(system)) not in opened:
            opened.clear()  # before the next one is loaded: memory may hold one index only
            opened[searched] = index_of_system(run, system)
        refuse_other_space(run, system)
        vectors = query_vectors(run, system, names)
        for name, folder in folders.items():
            result = judge(opened[searched], vectors[name], records[name], dataset.documents,
                           depth=settings.depth, within=dataset.search_within, names=settings.metrics)  # fmt: skip
            if system == settings.reference:
                reference[name] = (vectors[name], result)
            result.agreement = agreement(vectors[name], result, *reference[name])
            if run.is_main:
                told = {"key": keys[system], "system": system, "set": name, "reference": settings.reference}
                kept = vectors[name] if system == settings.reference else None
                result.save(folder, {**told, **_labels(run)}, kept)
        logger.info("evaluate: %s done", system)
    return written


def _in_order(first: str, systems: Sequence[str]) -> list[str]:
    """The systems to evaluate, the reference first; those that search the same index follow each other."""
    others = [system for system in systems if system != first]
    return [first, *sorted(others, key=lambda system: (_searched(system) != _searched(first), _searched(system)))]


def _searched(system: str) -> str:
    """The name of the index that a system searches."""
    return system if system == ANN_SYSTEM else documents_of(system)


def _labels(run: Run) -> dict[str, str]:
    """What an evaluation's manifest says of the labels that judged it; nothing where there are none."""
    sha256 = kept_labels(run.folder).sha256
    return {"labels": sha256} if sha256 else {}


def _kept(
    run: Run, folders: Mapping[str, Path], key: str, records: Mapping[str, Sequence[Record]], reference: bool
) -> bool:
    """Whether whole evaluations with this key lie there; they are then judged as today's recipe and labels have it.

    Asked of the main process alone: it replaces these files, and the others would find them half replaced.
    """
    if not all(_has_key(folder, key, reference) for folder in folders.values()):
        return False
    for name, folder in folders.items():
        _judge_again(run, folder, records[name])
    return True


def _judge_again(run: Run, folder: Path, records: Sequence[Record]) -> None:
    """Judge stored hits by other labels or metrics than they were; nothing is searched or encoded."""
    told, labels, metrics = described(folder), _labels(run), list(dict.fromkeys(run.recipe.evaluate.metrics))
    if told.get("labels") == labels.get("labels") and told["metrics"] == metrics:
        return
    stored, vectors = PerQuery.load(folder), load_query_vectors(folder) if "vectors_sha256" in told else None
    stored.metrics = judged_again(stored, records, run.dataset.documents, metrics)
    kept = {what: told[what] for what in ("key", "system", "set", "reference")}
    stored.save(folder, {**kept, **labels}, vectors)
    logger.info("evaluate: %s judged again, from the hits that are stored", folder.relative_to(run.folder.root))


def _evaluation_keys(run: Run, systems: Sequence[str]) -> dict[str, str]:
    """What each system's evaluation was made from: so a changed refinement does not search with the teacher again.

    By content, not by the steps' keys: a stage that is forced to run again keeps its key and may get other weights.
    Metrics are no part: hits are stored, and judged again.
    """
    settings = run.recipe.evaluate
    parts = [COLUMNS, settings.reference, settings.depth, settings.searcher, run.keys["data"]]
    made = {system: _made_of(run, system) for system in {settings.reference, *systems}}
    return {system: fingerprint([parts, made[system], made[settings.reference]]) for system in systems}


def _made_of(run: Run, system: str) -> list[Any]:
    """Hashes of a system's encoder and of the document vectors that it searches."""
    folder = system_folder(run, system)
    encoder: Any = run.keys["embed.base"] if folder is None else ""
    if folder is not None:  # the deployed folder holds a card, too
        encoder = made_of(run) if system == INT8_SYSTEM else folder_sha256(folder)
    store = run.store_manifest(documents_of(system))
    given = run.keys["embed"] if run.recipe.teacher.model is None else ""  # the teacher's query vectors come from files
    read = [template] if (template := context_of(run, system)) else []
    read += approximately(run) if system == ANN_SYSTEM else []
    return [system, encoder, given, store.sha256, *(shard.sha256 for shard in store.shards), *read]


def _has_key(folder: Path, key: str, reference: bool) -> bool:
    """Whether a whole evaluation with this key lies there; a reference has its query vectors beside."""
    try:
        return described(folder, vectors=reference).get("key") == key
    except InputError:
        return False
