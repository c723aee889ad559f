"""``harness pool RUN``: what systems found and nobody has judged, written for raters, and their labels read back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.evaluation.per_query import MANIFEST, PerQuery
from harness.evaluation.pooling import SUFFIXES, pooled, write_pool
from harness.pipeline.folder import RunFolder, refuse_edited_recipe
from harness.pipeline.labels import add_labels, evaluated_names, judged_records
from harness.pipeline.launch import alone_in
from harness.pipeline.manifest import Manifest
from harness.recipe import load_recipe
from harness.runtime.errors import InputError, Problem
from harness.runtime.process import refuse_file_in_the_way

if TYPE_CHECKING:
    from harness.pipeline.context import Run


@dataclass(frozen=True)
class Written:
    """A pool: how many pairs of how many queries, found by which systems on which set."""

    path: Path
    set_name: str
    systems: list[str]
    pairs: int
    queries: int


def open_run(root: Path) -> Run:
    """A run that has evaluated.

    Raises:
        InputError: the folder is no run's, or nothing is evaluated there. StaleArtefactError: something was edited.
    """
    from harness.pipeline.context import Run

    folder = RunFolder(root)
    if not folder.recipe.exists() or not folder.evaluations.is_dir():
        raise InputError(Problem("not the folder of a run that has evaluated", where=str(root),
                                 next="give the folder that `harness run` wrote, e.g. outputs/quickstart"))  # fmt: skip
    manifest = Manifest(folder)
    manifest.refuse_unfinished_update()
    refuse_edited_recipe(folder)
    manifest.require_untouched([folder.data, folder.evaluations])
    return Run(load_recipe(folder.recipe), folder, {})


def pool_run(
    root: Path, path: Path, *, depth: int = 10, set_name: str | None = None, blind: bool = False, seed: int = 0
) -> Written:
    """Write the unjudged pairs among every system's first ``depth`` hits.

    Args:
        path: a new ``.jsonl`` or ``.tsv`` file.
        set_name: the set; None: the one that the report's tables use.
        blind, seed: as for ``write_pool``.

    Raises:
        InputError: the file exists or has another ending, the run or the set is not there, fewer hits are kept than
            are asked for, or evaluations are not of one data set.
    """
    from harness.evaluation.results import headline_set

    _refuse_place(path)
    run = open_run(root)
    if depth > run.recipe.evaluate.depth:
        raise InputError(Problem("more hits than the evaluations keep", where="--depth", got=str(depth),
                                 allowed=f"at most {run.recipe.evaluate.depth}",
                                 next="ask for fewer, or raise evaluate.depth and run again"))  # fmt: skip
    names = evaluated_names(run)
    name = set_name or headline_set(names) or ""
    if name not in names:
        raise InputError(Problem("no such set among those evaluated", where="--on", got=name, allowed=", ".join(names)))
    records = judged_records(run, name)
    folders = {str(system): run.folder.evaluations / system / name for system in run.recipe.evaluate.systems}
    answers = {system: PerQuery.load(folder) for system, folder in folders.items() if (folder / MANIFEST).exists()}
    _refuse_others(run, answers)
    pairs = pooled(records, answers, depth)
    write_pool(path, pairs, run.dataset.documents, blind=blind, seed=seed)
    return Written(path, name, list(answers), len(pairs), len({pair.record.id for pair in pairs}))


def _refuse_place(path: Path) -> None:
    """A pool is a new file; no grades are ever overwritten."""
    where, problems = f"--output {path}", []
    if path.is_dir():
        problems.append(Problem("a folder, where a file is to be written", where=where, got=str(path),
                                allowed=f"a new file with the ending {' or '.join(SUFFIXES)}",
                                next=f"give a name within it, e.g. {path / 'pool.jsonl'}"))  # fmt: skip
    elif path.suffix not in SUFFIXES:
        problems.append(Problem("not a name for a pool", where=where, allowed=" or ".join(SUFFIXES)))
    if path.is_file():
        problems.append(Problem("the file exists, perhaps with grades in it", where=where,
                                next="choose another name, or remove it"))  # fmt: skip
    if problems:
        raise InputError(problems)
    refuse_file_in_the_way(path.parent, where)


def _refuse_others(run: Run, answers: dict[str, PerQuery]) -> None:
    """Hits of documents that are no more, or none at all: the evaluation is not of today's data."""
    known = run.dataset.documents.row
    old = [name for name, answer in answers.items() if any(hit not in known for hits in answer.hits for hit in hits)]
    if old or not answers:
        raise InputError(Problem("not evaluations of the data that lies here", where=str(run.folder.evaluations),
                                 got=", ".join(old) or "none", next="harness evaluate RECIPE, then pool"))  # fmt: skip


def label_run(root: Path, path: Path, *, replacing: bool = False) -> tuple[int, int]:
    """Read a filled-in pool into a run; how many labels were new, and how many pairs of it have no grade yet.

    ``replacing``: earlier labels of other grades are corrected, and count as new.

    Raises:
        InputError: everything that is wrong with the file; another run works in the folder.
    """
    run = open_run(root)
    with alone_in(root):
        return add_labels(run, path, replacing=replacing)
