"""What the step ``evaluate`` does: every system searches, and what it found is stored query by query."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.records import in_context
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


def index_of_system(run: Run, system: str) -> Searcher:
    """The index that a system searches: the teacher's frozen one, but for other teachers their own.

    Raises:
        StaleArtefactError: the system's space is not the index's.
    """
    if system == "teacher-base":
        return run.index_of(run.store("base-documents"))
    if system == "teacher-more":
        return run.index_of(run.store("more-documents"))
    folder = system_folder(run, system)
    assert folder is not None
    require_same_space(run.space(folder), run.store("documents").space, system, "the document vectors")
    return deployed_index(run) if system == ANN_SYSTEM else run.frozen_index()


def query_vectors(run: Run, system: str, names: list[str]) -> dict[str, np.ndarray]:
    """The system's vectors of every set's queries, fp32; only a teacher's have contexts (``teacher.context``)."""
    splits = run.dataset.splits
    if system == "teacher" and run.recipe.teacher.model is None:
        store = run.store("queries")
        return {n: store.vectors(np.array([store.row[f"query:{r.id}"] for r in splits[n]])) for n in names}
    if system == INT8_SYSTEM:
        return {n: int8_vectors(run, [record.text for record in splits[n]], f"{system} {n}") for n in names}
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
    """Search with every system's queries and store what was found, per query. What is there already is kept.

    An int8 file that failed the parity gate is left out, and so is what was stored of an earlier one.
    """
    settings, dataset, names = run.recipe.evaluate, run.dataset, evaluated_sets(run.recipe, run.dataset)
    order = [settings.reference, *(s for s in evaluated_systems(run) if s != settings.reference)]
    if (why := why_left_out(run)) and run.is_main:
        logger.warning("evaluate: %s", why)
        remove_folder(run.folder.evaluations / INT8_SYSTEM)
    reference: dict[str, tuple[np.ndarray, PerQuery]] = {}
    written, labels = [], kept_labels(run.folder).sha256
    for system in order:
        key = on_main(functools.partial(_evaluation_key, run, system))
        folders = {name: run.folder.evaluations / system / name for name in names}
        written += list(folders.values())
        if all(_has_key(folder, key, system == settings.reference) for folder in folders.values()):
            on_main(functools.partial(_judge_again, run, folders, labels))
            if system == settings.reference:
                reference = {n: (load_query_vectors(f), PerQuery.load(f)) for n, f in folders.items()}
            continue
        index = index_of_system(run, system)
        vectors = query_vectors(run, system, names)
        for name, folder in folders.items():
            result = judge(index, vectors[name], judged_records(run, name), dataset.documents,
                           depth=settings.depth, within=dataset.search_within, names=settings.metrics)  # fmt: skip
            if system == settings.reference:
                reference[name] = (vectors[name], result)
            result.agreement = agreement(vectors[name], result, *reference[name])
            if not run.is_main:
                continue
            kept = vectors[name] if system == settings.reference else None
            told = {"key": key, "system": system, "set": name, "reference": settings.reference}
            result.save(folder, {**told, **({"labels": labels} if labels else {})}, kept)
        logger.info("evaluate: %s done", system)
    return written


def _judge_again(run: Run, folders: Mapping[str, Path], labels: str | None) -> None:
    """Judge stored hits by today's labels, where they were judged by others; nothing is searched or encoded."""
    for name, folder in folders.items():
        told = described(folder)
        if told.get("labels") == labels:
            continue
        stored, vectors = PerQuery.load(folder), load_query_vectors(folder) if "vectors_sha256" in told else None
        stored.metrics = judged_again(stored, judged_records(run, name), run.dataset.documents)
        kept = {what: told[what] for what in ("key", "system", "set", "reference")}
        stored.save(folder, {**kept, **({"labels": labels} if labels else {})}, vectors)
        logger.info("evaluate: %s judged by the labels of %s", folder.relative_to(run.folder.root), run.folder.labels)


def _evaluation_key(run: Run, system: str) -> str:
    """What one system's evaluation was made from: so a changed refinement does not search with the teacher again.

    By content, not by the steps' keys: a stage that is forced to run again keeps its key and may get other weights.
    """
    settings = run.recipe.evaluate
    parts = [COLUMNS, settings.metrics, settings.reference, settings.depth, settings.searcher, run.keys["data"]]
    return fingerprint([parts, *(_made_of(run, name) for name in (system, settings.reference))])


def _made_of(run: Run, system: str) -> list[Any]:
    """Hashes of a system's encoder and of the document vectors that it searches."""
    folder = system_folder(run, system)
    encoder: Any = run.keys["embed.base"] if folder is None else ""
    if folder is not None:  # the deployed folder holds a card, too
        encoder = made_of(run) if system == INT8_SYSTEM else folder_sha256(folder)
    store = run.store({"teacher-base": "base-documents", "teacher-more": "more-documents"}.get(system, "documents"))
    given = run.keys["embed"] if run.recipe.teacher.model is None else ""  # the teacher's query vectors come from files
    read = [template] if (template := context_of(run, system)) else []
    read += approximately(run) if system == ANN_SYSTEM else []
    return [system, encoder, given, store.sha256, *(shard.sha256 for shard in store.manifest.shards), *read]


def _has_key(folder: Path, key: str, reference: bool) -> bool:
    """Whether a whole evaluation with this key lies there; a reference has its query vectors beside."""
    try:
        return described(folder, vectors=reference).get("key") == key
    except InputError:
        return False
