"""Labels of pooled pairs, kept in the run's folder: they judge evaluations, and nothing is ever trained on them.

``labels.json`` holds what was read and from which files. The step ``evaluate`` depends on it: hits that were judged
without a label are judged anew, from what is stored, and nothing is encoded for it. Where the recipe has ``bench.ann``,
that step runs again: it keeps its indexes but no hits, so its queries are encoded, searched and timed anew. Imports no
torch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.records import Record
from harness.evaluation.pooling import Known, Labels, read_labels, with_labels
from harness.pipeline.checks import evaluated_sets
from harness.pipeline.folder import RunFolder
from harness.runtime.errors import InputError, Problem, StaleArtefactError
from harness.runtime.process import file_sha256, fingerprint, read_json, write_json

if TYPE_CHECKING:
    from harness.pipeline.context import Run

SCHEMA = 1
AGAIN = "restore it, or delete it and read the files of labels again"


@dataclass(frozen=True)
class Kept:
    """What ``labels.json`` says: the labels, and of each file its name, sha256, time and number of new labels."""

    labels: Labels = field(default_factory=dict)
    files: list[dict[str, Any]] = field(default_factory=list)

    @property
    def sha256(self) -> str | None:
        """Names the labels, however they came; None where there are none."""
        return fingerprint(self.labels) if self.labels else None


def kept_labels(folder: RunFolder) -> Kept:
    """The labels of a run; none where none were read.

    Raises:
        StaleArtefactError: the file is damaged, edited or of another version.
    """
    if not folder.labels.exists():
        return Kept()
    try:
        told = read_json(folder.labels, next=AGAIN)
        seal = told.pop("sha256")
        whole = seal == fingerprint(told) and told["schema"] == SCHEMA
    except (InputError, AttributeError, KeyError, TypeError):
        whole, told = False, {}
    if not whole:
        raise StaleArtefactError(Problem("the labels were edited or damaged", where=str(folder.labels), next=AGAIN))
    return Kept(told["labels"], told["files"])


def add_labels(run: Run, path: Path, *, replacing: bool = False) -> tuple[int, int]:
    """Read a filled-in pool into the run; how many labels were new, and how many pairs have no grade yet.

    ``replacing``: earlier labels of other grades are corrected, and count as new.

    Raises:
        InputError: everything that is wrong with the file; the run is left as it was.
    """
    kept, sha256 = kept_labels(run.folder), _sha256(path)
    evaluated = {record.id: record for name in evaluated_names(run) for record in run.dataset.splits[name]}
    documents = run.dataset.documents
    languages = dict(zip(documents.ids, documents.languages, strict=True)) if run.dataset.search_within else {}
    new, empty = read_labels(path, Known(evaluated, documents.row, kept.labels, languages), replacing=replacing)
    count = sum(map(len, new.values()))
    if count:
        labels = {query: {**kept.labels.get(query, {}), **new.get(query, {})} for query in [*kept.labels, *new]}
        told = {"name": path.name, "sha256": sha256, "labels": count, "when": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        content = {"schema": SCHEMA, "files": [*kept.files, told], "labels": labels}
        write_json(run.folder.labels, {**content, "sha256": fingerprint(content)})
    return count, empty


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise InputError(Problem("the file can't be read", where=f"--labels {path}", got=error.strerror or "",
                                 next="check the path")) from None  # fmt: skip


def evaluated_names(run: Run) -> list[str]:
    """The sets that the run evaluates."""
    return evaluated_sets(run.recipe, run.dataset)


def judged_records(run: Run, name: str) -> list[Record]:
    """The queries of a set as an evaluation judges them: with the data's judgments and the labels that came later."""
    return with_labels(run.dataset.splits[name], run.labels.labels, run.dataset.documents.row)


def label_sources(folder: RunFolder) -> dict[str, Any]:
    """What the labels are to the steps that judge with them; nothing where there are none."""
    sha256 = kept_labels(folder).sha256
    return dict.fromkeys(("evaluate", "bench.ann"), sha256) if sha256 else {}


def labels_told(run: Run, judged: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """For results.json: the files that labels came from, and how many judge each set; empty where there are none.

    Args:
        judged: set -> ``judged_records``.
    """
    kept, splits = run.labels, run.dataset.splits
    if not kept.labels:
        return {}
    used = {name: _judgments(records) - _judgments(splits[name]) for name, records in judged.items()}
    return {"labels": {"files": kept.files, "labels": sum(map(len, kept.labels.values())), "used": used}}


def _judgments(records: Sequence[Record]) -> int:
    return sum(len(record.positives) + len(record.negatives) for record in records)
