"""One query, asked twice: the student and the teacher on the teacher's index, side by side, with both latencies."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.pipeline.folder import RunFolder, refuse_edited_recipe
from harness.pipeline.manifest import Manifest
from harness.recipe import load_recipe
from harness.runtime.errors import InputError, Problem

if TYPE_CHECKING:
    from harness.pipeline.context import Run


@dataclass(frozen=True)
class Answer:
    """What one system found. ``hits``: (document id, text, score), best first."""

    system: str
    hits: list[tuple[str, str, float]]
    encode_ms: float
    search_ms: float


def search_run(root: Path, text: str, k: int, language: str | None = None) -> list[Answer]:
    """Answers of the newest student and of the teacher to one query.

    Raises:
        InputError: the folder is no finished run; the query is blank; a language is needed or unknown.
    """
    folder = RunFolder(root)
    Manifest(folder).refuse_unfinished_update()
    if not folder.recipe.exists() or not (folder.index / "manifest.json").exists():
        raise InputError(
            Problem(
                "not the folder of a run with an index",
                where=str(root),
                next="give the folder that `harness run` wrote, e.g. outputs/quickstart",
            )
        )
    if not text.strip():
        raise InputError(Problem("the query is blank", where="TEXT"))
    from harness.pipeline.context import Run

    refuse_edited_recipe(folder)
    run = Run(load_recipe(folder.recipe), folder, {})
    encoders = _encoders(run)
    Manifest(folder).require_untouched([folder.data, folder.index, *encoders.values()])
    languages = sorted(set(run.dataset.documents.languages))
    if run.dataset.search_within and language not in languages:
        raise InputError(
            Problem(
                "this run searches within one language: name it",
                where="--language",
                got=str(language),
                allowed=", ".join(languages),
            )
        )
    return [_ask(run, name, path, text, k, language) for name, path in encoders.items()]


def _encoders(run: Run) -> dict[str, Path]:
    """The newest student whose step is done with today's inputs, and the teacher if its weights are here."""
    folder, manifest = run.folder, Manifest(run.folder)
    states = {"refine": "refined", "align": "aligned", "student": "cut"}
    names = {"refined": "student-refined", "aligned": "student-aligned", "cut": "student-untrained"}
    found = {names[state]: folder.student(state) for step, state in states.items() if manifest.current(step)}
    newest = dict(list(found.items())[:1])
    if manifest.current("teacher") and (folder.teacher / "modules.json").exists():
        newest["teacher"] = folder.teacher
    if not newest:
        raise InputError(
            Problem("there is no encoder yet", where=str(folder.root), next="run the recipe to the step `student`")
        )
    return newest


def _ask(run: Run, name: str, path: Path, text: str, k: int, language: str | None) -> Answer:
    from harness.engines.torch_eager import TorchEngine
    from harness.vectors.space import require_same_space

    documents, index = run.dataset.documents, run.frozen_index()
    require_same_space(run.space(path), run.space(run.folder.teacher), name, "the index")
    engine = TorchEngine(run.open(path))
    partition = [language] if run.dataset.search_within and language else None
    for _ in range(3):  # a first call pays for caches that a service pays once
        engine.encode([text])
    started = time.perf_counter()
    query_QD = engine.encode([text])
    encoded = time.perf_counter()
    score_QK, row_QK = index.search(query_QD, k, partition)
    ended = time.perf_counter()
    hits = [
        (documents.ids[row], documents.texts[row], float(score))
        for row, score in zip(row_QK[0], score_QK[0], strict=True)
        if row >= 0
    ]
    return Answer(name, hits, (encoded - started) * 1e3, (ended - encoded) * 1e3)
