"""What the steps ``embed.outside`` and ``evaluate.outside`` do: teacher and students on sets from elsewhere.

Each set has a folder of its own, ``outside/NAME``: ``set.json`` with its queries and judgments, ``documents`` with the
teacher's vectors, and ``SYSTEM`` with what each system found. The reference is the teacher on both sides.

Axes: Q queries, K hits, D dimensions.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from harness import metrics
from harness.data.outside import OutsideData, read_outside
from harness.data.records import Documents, Record
from harness.evaluation.per_query import PerQuery
from harness.evaluation.searching import agreement, judged, search
from harness.evaluation.statistics import quality, recovery
from harness.pipeline.context import Run
from harness.pipeline.folder import RunFolder
from harness.pipeline.work_evaluation import open_system, system_folder
from harness.pipeline.work_vectors import encode_with, made_with
from harness.recipe import Recipe
from harness.runtime.distributed import on_main
from harness.runtime.process import logger, read_json, write_json
from harness.vectors.index import VectorIndex
from harness.vectors.space import require_same_space
from harness.vectors.store import StoreRows, VectorStore
from harness.vectors.writer import write_store

REFERENCE = "teacher"
STUDENTS = ("student-untrained", "student-aligned", "student-refined")  # those that encode in torch


def outside_systems(recipe: Recipe) -> list[str]:
    """The systems that answer outside sets: the teacher, and the students that the recipe evaluates."""
    return [REFERENCE, *(system for system in recipe.evaluate.systems if system in STUDENTS)]


def outside_folder(folder: RunFolder, name: str) -> Path:
    """The folder of one outside set."""
    return Path(folder.outside / name)


# ---------------------------------------------------------------------------------------------------- embed.outside


def do_embed_outside(run: Run) -> list[Path]:
    """Read every set, keep its queries and judgments, and write the teacher's vectors of its documents."""
    encoder, space = run.open(run.folder.teacher), run.space(run.folder.teacher)
    encode = encode_with(encoder, "document", run, "embed outside")
    written = []
    for given in run.recipe.evaluate.outside:
        data, folder = read_outside(given), outside_folder(run.folder, given.name)
        for what, count in data.dropped.items():
            logger.warning("  %s: %s left out: %s", given.name, f"{count:,}", what)
        write_store(
            folder / "documents", data.documents.ids, data.documents.texts, encode, space,
            dtype=run.recipe.embed.dtype, shard_rows=run.recipe.embed.shard_rows, key=made_with(encode),
        )  # fmt: skip
        on_main(functools.partial(_write_set, folder, data))
        written += [folder / "documents", folder / "set.json"]
    return written


def _write_set(folder: Path, data: OutsideData) -> None:
    told = {"source": data.source, "documents": len(data.documents), "ignores_own_id": data.ignores_own_id,
            "dropped": data.dropped, "queries": [asdict(record) for record in data.records]}  # fmt: skip
    write_json(folder / "set.json", told)


def read_set(folder: Path) -> tuple[dict[str, Any], list[Record]]:
    """What ``set.json`` tells of a set, and its queries."""
    told = read_json(folder / "set.json")
    return told, [Record(**{**query, "negatives": tuple(query["negatives"])}) for query in told.pop("queries")]


# ------------------------------------------------------------------------------------------------- evaluate.outside


def do_evaluate_outside(run: Run) -> list[Path]:
    """Search every set with the teacher's and every student's queries, and store what was found, per query."""
    sets = {given.name: read_set(outside_folder(run.folder, given.name)) for given in run.recipe.evaluate.outside}
    vectors = {system: _query_vectors(run, system, sets) for system in outside_systems(run.recipe)}
    written = []
    for name, (told, records) in sets.items():
        folder = outside_folder(run.folder, name)
        store = VectorStore.open(folder / "documents")
        require_same_space(run.space(run.folder.teacher), store.space, REFERENCE, str(folder / "documents"))
        index = VectorIndex.build(StoreRows(store, np.arange(len(store))), store.ids, kind=run.recipe.evaluate.searcher)
        reference: PerQuery | None = None
        for system, by_set in vectors.items():
            found = _answers(run, index, by_set[name], records, told["ignores_own_id"])
            reference = reference or found
            found.agreement = agreement(by_set[name], found, vectors[REFERENCE][name], reference)
            if run.is_main:
                found.save(folder / system, {"system": system, "set": name, "reference": REFERENCE})
            written.append(folder / system)
        logger.info("evaluate.outside: %s done", name)
    return written


def _query_vectors(run: Run, system: str, sets: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Each set's queries as a system encodes them; a student of another space is refused."""
    folder = system_folder(run, system)
    assert folder is not None, "a student, or the trained teacher"
    require_same_space(run.space(folder), run.space(run.folder.teacher), system, REFERENCE)
    encoder = open_system(run, system)
    return {
        name: encoder.encode(
            [record.text for record in records], side="query", batch_tokens=run.recipe.embed.batch_tokens,
            what=f"{system} {name}", shared=True,
        )
        for name, (_, records) in sets.items()
    }  # fmt: skip


def _answers(
    run: Run, index: VectorIndex, query_QD: np.ndarray, records: list[Record], ignores_own_id: bool
) -> PerQuery:
    """The hits of every query, judged; where the set ignores them, without documents of the query's own id."""
    names = run.recipe.evaluate.metrics
    depth = min(run.recipe.evaluate.depth, max(len(index.ids), *map(metrics.cutoff, names)))
    score_QK, row_QK = search(index, query_QD, records, depth + ignores_own_id, within=False)
    documents = Documents(index.ids)
    if ignores_own_id:
        score_QK, row_QK = without_own(score_QK, row_QK, [documents.row.get(record.id, -1) for record in records])
    return judged(score_QK, row_QK, records, documents, names)


def without_own(
    score_QK: np.ndarray, row_QK: np.ndarray, own_row: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """One rank less: without the hit that is the query itself, or where there is none, without the last."""
    own_QK = (row_QK == np.array(own_row)[:, None]) & (row_QK >= 0)
    last_QK = np.zeros_like(own_QK)
    last_QK[:, -1] = ~own_QK.any(axis=1)
    kept_QK = ~(own_QK | last_QK)
    shape = (len(row_QK), row_QK.shape[1] - 1)
    return score_QK[kept_QK].reshape(shape), row_QK[kept_QK].reshape(shape)


# ----------------------------------------------------------------------------------------------------- results.json


def outside_results(run: Run) -> dict[str, Any]:
    """``{"outside": {SET: {SYSTEM: {METRIC: mean}, "recovery": {SYSTEM: {METRIC: ...}}, "queries", "documents",
    "source"}}}``, means over queries; empty where the recipe names no outside set."""
    found: dict[str, Any] = {}
    settings = run.recipe.evaluate
    qualities = [metric for metric in settings.metrics if metrics.is_quality(metric)]
    for given in settings.outside:
        folder = outside_folder(run.folder, given.name)
        told, records = read_set(folder)
        left_out = ", ".join(f"{what} ({count:,})" for what, count in told["dropped"].items())
        answers = {system: PerQuery.load(folder / system, hits=False) for system in outside_systems(run.recipe)}
        means = {system: quality(answer)["all"] for system, answer in answers.items()}
        recovered = {
            system: recovery(answer, answers[REFERENCE], metrics=qualities, resamples=settings.resamples,
                             confidence=settings.confidence, seed=run.recipe.seed)["micro"]
            for system, answer in answers.items() if system != REFERENCE
        }  # fmt: skip
        found[given.name] = {
            **{system: {key: value for key, value in row.items() if key != "queries"} for system, row in means.items()},
            "recovery": recovered, "queries": len(records), "documents": told["documents"],
            "source": "; left out: ".join([told["source"], *([left_out] if left_out else [])]),
        }  # fmt: skip
    return {"outside": found} if found else {}
