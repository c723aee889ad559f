"""What the step ``bench.ann`` does: approximate indexes over the frozen vectors, and the effort that queries cost."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import numpy as np

from harness import metrics
from harness.data.records import in_context
from harness.engines.machine import available_cores, cpu_name
from harness.evaluation.ann import (
    Asked,
    effort_curves,
    exact_scores,
    time_batches,
    time_encoding,
    time_one,
    told_of_index,
)
from harness.evaluation.caveats import ann_caveats
from harness.evaluation.searching import judgments
from harness.pipeline.ann_index import SYSTEM as ANN_SYSTEM
from harness.pipeline.ann_index import ann_settings, deployed_effort, deployed_system, open_approximate
from harness.pipeline.checks_evaluation import too_many_threads
from harness.pipeline.labels import judged_records
from harness.pipeline.work_bench import on_threads
from harness.pipeline.work_evaluation import context_of, open_system, system_folder
from harness.runtime.errors import InputError
from harness.runtime.process import logger, read_json, write_json
from harness.vectors.approximate import LEAST_DOCUMENTS, TOO_SMALL, ApproximateIndex, default_efforts, saved_bytes
from harness.vectors.space import require_same_space
from harness.vectors.store import StoreRows

if TYPE_CHECKING:
    from harness.data.records import Record
    from harness.pipeline.context import Run
    from harness.recipe import AnnSettings
    from harness.vectors.index import VectorIndex

TEACHER = "teacher"
ENCODED = 100  # queries that encoders are timed on
EXACT_TIMED = 32  # exact search of one query takes long


def do_ann(run: Run) -> list[Path]:
    """Build the indexes, search them with the teacher's and the deployed student's queries, write ``ann.json``."""
    settings = ann_settings(run)
    if warning := too_many_threads("bench.ann.threads", settings.threads):
        logger.warning("%s", warning)
    student = deployed_system(run.recipe)
    store = run.store("documents")
    folder = system_folder(run, student)
    assert folder is not None, "a student's encoder is a folder"
    require_same_space(run.space(folder), store.space, student, "the document vectors")
    documents = StoreRows(store, store.rows_of(run.dataset.documents.ids))
    indexes = {kind: _built(run, kind, documents) for kind in settings.indexes}  # before any clock runs
    with on_threads(settings.threads, faiss=True):  # exact search and encoders, too
        set_name, records = _sampled(run, settings.queries)
        exact = run.frozen_index()
        asked, encode_ms = _ask(run, (TEACHER, student), records, exact, documents.__getitem__)
        searched = next(iter(indexes.values())).searched
        told: dict[str, Any] = {
            "verdict": "measured" if searched >= LEAST_DOCUMENTS else TOO_SMALL,
            "documents": len(documents), "searched": searched, "dimensions": store.dimension, "set": set_name,
            "queries": len(records), "k": settings.k, "threads": settings.threads, "cpu": cpu_name(),
            "cores": available_cores(), "exact": _exact(exact, settings.k, asked, encode_ms), "indexes": {},
        }  # fmt: skip
        for kind, index in indexes.items():
            told["indexes"][kind] = _measured(run, index, asked, encode_ms, documents.__getitem__)
    write_json(run.folder.ann, told)
    return [run.folder.ann, run.folder.approximate]


def with_ann(run: Run, results: dict[str, Any]) -> dict[str, Any]:
    """results.json with the efforts that were measured, where they were."""
    if run.recipe.bench and run.recipe.bench.ann:
        results["ann"] = read_json(run.folder.ann, next="run the step bench.ann again")
        if ANN_SYSTEM in run.recipe.evaluate.systems:
            results["ann"]["deployed"] = {"system": ANN_SYSTEM, **deployed_effort(run)}
        results["warnings"] += ann_caveats(results["ann"])
    return results


def _built(run: Run, kind: str, documents: StoreRows) -> ApproximateIndex:
    """The index of this kind: the one that lies there, if it is of these vectors and settings, else a new one."""
    with contextlib.suppress(InputError):
        return open_approximate(run, kind)
    dataset, settings, store = run.dataset, ann_settings(run), documents.store
    index = ApproximateIndex.build(
        documents, dataset.documents.ids, kind, settings.parameters(kind), seed=run.recipe.seed,
        threads=settings.threads, partition_N=dataset.documents.languages if dataset.search_within else None,
    )  # fmt: skip
    index.save(run.folder.approximate / kind, store.space, store_sha256=store.sha256)
    logger.info("bench.ann: %s over %d documents built in %.1f s", kind, len(index.ids), index.seconds)
    return index


def _sampled(run: Run, count: int) -> tuple[str, list[Record]]:
    """Queries of the last set that the data has, as evaluations judge them, drawn with the run's seed."""
    splits = run.dataset.splits
    name = next(name for name in ("test", "report", "select") if splits.get(name))
    records = judged_records(run, name)
    drawn = np.random.default_rng(run.recipe.seed).permutation(len(records))[:count]
    return name, [records[number] for number in drawn]


def _ask(
    run: Run, systems: Sequence[str], records: Sequence[Record], exact: VectorIndex,
    vectors: Callable[[np.ndarray], np.ndarray],
) -> tuple[dict[str, Asked], dict[str, float | None]]:  # fmt: skip
    """Every system's vectors of the queries with what exact search finds, and the milliseconds that encoding takes."""
    dataset, metric, k = run.dataset, run.recipe.evaluate.select_metric, ann_settings(run).k
    judged = judgments(records, dataset.documents)
    partition = [record.language for record in records] if dataset.search_within else None
    groups = [record.group for record in records]
    score = (lambda row_QK: metrics.score(row_QK, judged, (metric,))[metric]) if _looks_as_deep(metric, k) else None
    encoders: dict[str, Callable[[str], object]] = {}
    texts: dict[str, list[str]] = {}
    asked: dict[str, Asked] = {}
    for system in systems:
        if system == TEACHER and run.recipe.teacher.model is None:
            store = run.store("queries")
            query_QD = store.vectors(store.rows_of([f"query:{record.id}" for record in records]))
        else:
            encoder, template = open_system(run, system), context_of(run, system)
            texts[system] = [in_context(record.text, record.context, template) for record in records]
            query_QD = encoder.encode(texts[system], side="query", batch_tokens=run.recipe.embed.batch_tokens,
                                      what=f"{system} queries")  # fmt: skip
            encoders[system] = functools.partial(_encode_one, encoder)
        _, row_QK = exact.search(query_QD, k, partition)
        exact_QK = exact_scores(query_QD, row_QK, vectors)
        asked[system] = Asked(query_QD, exact_QK, row_QK, partition, groups, score)
    timed = time_encoding(encoders, {system: own[:ENCODED] for system, own in texts.items()})
    return asked, {system: timed.get(system) for system in systems}


def _looks_as_deep(metric: str, k: int) -> bool:
    """Whether k hits are all that a metric looks at."""
    return metrics.cutoff(metric) <= k


def _encode_one(encoder: Any, text: str) -> object:
    return encoder.encode([text], side="query")


def _exact(
    index: VectorIndex, k: int, asked: dict[str, Asked], encode_ms: dict[str, float | None]
) -> dict[str, Any]:
    """What the exact searcher takes with the same queries on the same threads."""
    one = time_one(index, asked, k, EXACT_TIMED)
    batch = time_batches(index, asked, k, 1)
    queries = len(next(iter(asked.values())).query_QD)
    return {
        "searcher": index.kind,
        "systems": {
            system: {"p50_ms": float(np.median(one[system])) / 1e6, "encode_p50_ms": encode_ms[system],
                     "batched_queries_per_second": queries / (batch[system][0] / 1e9)}
            for system in asked
        },
    }  # fmt: skip


def efforts_of(settings: AnnSettings, kind: str, parameters: Mapping[str, int]) -> list[int]:
    """The efforts to measure: the recipe's, or the usual ones.

    More lists than there are can't be searched, and the recipe may not know how many were made: efforts beyond become
    that of all lists, with a warning.
    """
    asked = settings.efforts.get(kind)  # type: ignore[call-overload]
    if not asked:
        return default_efforts(kind, parameters, settings.k)
    lists = parameters.get("lists", max(asked))
    if max(asked) > lists:
        beyond = ", ".join(str(effort) for effort in sorted(set(asked)) if effort > lists)
        logger.warning("bench.ann.efforts.%s: there are %d lists, so %d is measured instead of %s", kind, lists, lists,
                       beyond)  # fmt: skip
    return sorted({min(effort, lists) for effort in asked})


def _measured(
    run: Run, index: ApproximateIndex, asked: dict[str, Asked], encode_ms: dict[str, float | None],
    vectors: Callable[[np.ndarray], np.ndarray],
) -> dict[str, Any]:  # fmt: skip
    """Curves and conclusions of one index."""
    settings, kind = ann_settings(run), index.kind
    efforts = efforts_of(settings, kind, index.parameters)
    started = perf_counter_ns()
    curves = effort_curves(index.at, asked, efforts, settings.k, vectors, timed=settings.timed, what=f"ann {kind}")
    logger.info("bench.ann: %s searched at %d efforts in %.1f s", kind, len(efforts),
                (perf_counter_ns() - started) / 1e9)  # fmt: skip
    teacher, student = asked
    built = {"seconds": index.seconds, "bytes": saved_bytes(run.folder.approximate / kind),
             "parameters": dict(index.parameters), "threads": index.threads}  # fmt: skip
    return {"built": built, **told_of_index(
        curves, asked, student, teacher, encode_ms, k=settings.k, metric=run.recipe.evaluate.select_metric,
        enough=index.searched >= LEAST_DOCUMENTS, confidence=run.recipe.evaluate.confidence, seed=run.recipe.seed,
        encode_calls=min(ENCODED, len(asked[student].query_QD)),
    )}  # fmt: skip
