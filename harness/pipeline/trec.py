"""A run's stored evaluations as TREC run files and qrels, one file each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.data.records import Record
from harness.evaluation.per_query import MANIFEST, PerQuery
from harness.evaluation.trec import write_qrels, write_run
from harness.pipeline.labels import evaluated_names, judged_records
from harness.pipeline.pool import open_run
from harness.pipeline.work_outside import outside_folder, outside_systems, read_set
from harness.runtime.process import logger


def write_trec(root: Path, target: Path) -> list[Path]:
    """Write ``SET.qrels`` and ``SET.SYSTEM.run`` into a folder, ``outside.NAME`` for a set from elsewhere.

    Judgments are those that the evaluation knows, labels that came later among them.

    Raises:
        InputError: nothing is evaluated here; ids that whitespace alone tells apart.
    """
    run = open_run(root)
    settings = run.recipe.evaluate
    written: list[Path] = []
    for name in evaluated_names(run):
        found = {str(system): run.folder.evaluations / system / name for system in settings.systems}
        written += _write_set(target, name, judged_records(run, name), found)
    for given in settings.outside:
        folder = outside_folder(run.folder, given.name)
        if (folder / "set.json").exists():
            found = {system: folder / system for system in outside_systems(run.recipe)}
            written += _write_set(target, f"outside.{given.name}", read_set(folder)[1], found)
    return written


def _write_set(target: Path, name: str, records: Sequence[Record], found: Mapping[str, Path]) -> list[Path]:
    """The qrels and run files of one set; evaluations that are not there have none."""
    qrels = target / f"{name}.qrels"
    written = [qrels] if write_qrels(qrels, records) else []
    if not written:
        logger.warning("%s: no qrels: trec_eval reads whole grades only, and some of this set are not", name)
    for system, folder in found.items():
        if (folder / MANIFEST).exists():
            written.append(target / f"{name}.{system}.run")
            write_run(written[-1], PerQuery.load(folder), system)
    return written
