"""A run's folder: where each artefact lies, and where a run may write."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.recipe import unedited
from harness.runtime.errors import InputError, Problem, StaleArtefactError
from harness.runtime.process import remove_leftovers


@dataclass(frozen=True)
class RunFolder:
    """The names of a run's artefacts (DESIGN.md, "A run")."""

    root: Path

    data = property(lambda self: self.root / "data")
    teacher = property(lambda self: self.root / "teacher")
    teacher_more = property(lambda self: self.root / "teacher-more")
    vectors = property(lambda self: self.root / "vectors")
    index = property(lambda self: self.root / "index")
    mined = property(lambda self: self.root / "mined")
    streams = property(lambda self: self.root / "streams")
    export = property(lambda self: self.root / "export")
    triton = property(lambda self: self.export / "triton-models")  # "triton" would be taken for the package
    evaluations = property(lambda self: self.root / "evaluations")
    slices = property(lambda self: self.root / "slices.json")
    outside = property(lambda self: self.root / "outside")
    labels = property(lambda self: self.root / "labels.json")
    approximate = property(lambda self: self.root / "approximate")
    ann = property(lambda self: self.root / "ann.json")
    bench = property(lambda self: self.root / "bench.json")
    results = property(lambda self: self.root / "results.json")
    manifest = property(lambda self: self.root / "manifest.json")
    recipe = property(lambda self: self.root / "recipe.resolved.yaml")

    @property
    def exports(self) -> dict[str, list[Path]]:
        """Step -> the folders and files that it exports."""
        export = self.export
        return {
            "export": [export], "export.pair": [export / "pair", self.proof("pair")],
            "export.index": [export / "index"],
            "export.onnx": [export / "student" / "onnx", self.triton, self.proof("onnx")],
        }  # fmt: skip

    def proof(self, artefact: str) -> Path:
        """How ``student`` (its folder), ``pair`` or ``onnx`` were held against the student in memory."""
        return self.export / "parity" / f"{artefact}.json"

    def student(self, state: str) -> Path:
        """``cut``, ``aligned`` or ``refined``."""
        return self.root / "student" / state

    def stream_vectors(self, name: str) -> Path:
        """The teacher's vectors of a stream's queries."""
        return self.vectors / "streams" / name

    def checkpoints(self, stage: str) -> Path:
        """Resumable state of a stage."""
        return self.root / "checkpoints" / stage

    def log(self, stage: str) -> Path:
        """One JSON line a step."""
        return self.root / "logs" / f"{stage}.jsonl"


# What a run writes at the top of its folder.
ARTEFACTS = (
    "data", "slices.json", "teacher", "teacher-more", "student", "vectors", "index", "mined", "streams", "checkpoints",
    "logs",
    "export", "evaluations", "outside", "labels.json", "approximate", "ann.json", "bench.json", "results.json",
    "report.md", "report.html", "recipe.resolved.yaml", "manifest.json",
)  # fmt: skip


def refuse_foreign_folder(folder: RunFolder, inputs: Sequence[Path]) -> None:
    """Refuse to run where something that is not ours would be overwritten.

    Args:
        folder: where the run would write.
        inputs: what the recipe reads: data files and folders, models, vectors.

    Raises:
        InputError: the folder is no run's and holds a name that we would write; or an input lies where we would write.
    """
    problems = []
    ours = [(folder.root / name).resolve() for name in ARTEFACTS]
    for path in inputs:
        found = path.resolve()
        if any(found == own or own in found.parents for own in ours):
            problems.append(Problem("an input lies where the run would write", where=str(path),
                                    got=f"--output {folder.root}",
                                    next="choose another folder with --output DIR"))  # fmt: skip
    if not folder.manifest.exists() and not folder.recipe.exists():
        names = [name for name in ARTEFACTS if (folder.root / name).exists()]
        if names:
            problems.append(Problem("not the folder of a run, but it holds names that a run would overwrite",
                                    where=str(folder.root), got=", ".join(names),
                                    next="choose another folder with --output DIR"))  # fmt: skip
    if problems:
        raise InputError(problems)


def refuse_unwritable_folder(folder: RunFolder) -> None:
    """Refuse, without making anything, a folder that a run could not make or write in.

    Raises:
        InputError: as the run would.
    """
    place = folder.root.absolute()
    while not os.path.exists(place):
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):  # rights alone don't tell: root has them all, and /proc takes no file
            pass
    except OSError as error:
        raise InputError(
            Problem("the output folder can't be written", where=str(folder.root), got=f"{place}: {error.strerror}",
                    next="choose another with --output DIR")
        ) from None  # fmt: skip


def clear_leftovers(folder: RunFolder) -> None:
    """Clear away what a killed run left; nothing else in the folder is touched, whatever its name."""
    for name in ("step", *ARTEFACTS):  # the step that a controller had started
        remove_leftovers(folder.root, f".{name}.*.tmp")
        remove_leftovers(folder.root / name)


def refuse_edited_recipe(folder: RunFolder) -> None:
    """Refuse a resolved recipe that is not as the run wrote it: what lies beside it was made from another.

    Raises:
        StaleArtefactError: it was edited or damaged.
    """
    if not folder.recipe.exists():
        return
    if not unedited(folder.recipe):
        raise StaleArtefactError(
            Problem("the resolved recipe is not as the run wrote it", where=str(folder.recipe),
                    got="edited or damaged: its first line tells another sha256",
                    next="change your own recipe or use --set, and delete this file: the next run writes it again")
        )  # fmt: skip
