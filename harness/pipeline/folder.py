"""A run's folder: where each artefact lies, and the manifest that says what it was made from."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.engines.machine import available_cores, cpu_name
from harness.recipe import Recipe, unedited
from harness.runtime.errors import InputError, Problem, StaleArtefactError, gather_problems
from harness.runtime.process import (
    file_sha256,
    fingerprint,
    is_main_process,
    progress,
    read_json,
    remove_leftovers,
    write_json,
)

SCHEMA = 1
PACKAGES = ("harness-retrieval", "torch", "transformers", "accelerate", "faiss-cpu", "faiss-gpu", "numpy", "emoji")


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


# ---------------------------------------------------------------------------------------- what an output looks like


def signature(
    paths: Sequence[Path], root: Path, known: Mapping[str, list[Any]] | None = None
) -> dict[str, list[Any]]:
    """Name -> [size, mtime, sha256, ctime] of every file in ``paths`` (files or folders); times in ns.

    As long as size and both times stay, the content does: whoever sets mtime back changes ctime. ``known`` is an
    earlier answer: what has not changed since is not read again.
    """
    found: dict[str, list[Any]] = {}
    for file in (file for path in paths for file in _files(path)):
        name = file.relative_to(root).as_posix()
        earlier = (known or {}).get(name)
        same = earlier is not None and _stamp(file, earlier[2]) == earlier
        found[name] = earlier if earlier is not None and same else _stamp(file, file_sha256(file))
    return found


def _stamp(file: Path, sha256: str) -> list[Any]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, sha256, stat.st_ctime_ns]


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file() and not p.name.endswith(".tmp"))
    return [path] if path.exists() else []


def outputs_present(recorded: dict[str, list[Any]], root: Path, step: str) -> bool:
    """Whether all recorded files are there; False when one is missing (the step runs again).

    Files whose size or times changed are read; the new times of unchanged ones (a copied run) go into ``recorded``.

    Raises:
        StaleArtefactError: a file's content is not what the step wrote (edited, truncated, damaged).
    """
    if not all((root / name).exists() for name in recorded):
        return False
    doubtful = [name for name, stamp in recorded.items() if _stamp(root / name, stamp[2]) != stamp]
    problems = []
    for name in progress(doubtful, what=f"check {step}", unit="file"):
        path, (size, _, sha256, *_) = root / name, recorded[name]
        recorded[name] = _stamp(path, sha256)  # before it is read: who writes meanwhile is found out the next time
        got = file_sha256(path)
        if got != sha256:
            problems.append(
                Problem(f"the file is not what step {step!r} wrote", where=str(path),
                        got=f"{path.stat().st_size} bytes, sha256 {got[:12]}",
                        allowed=f"{size} bytes, sha256 {sha256[:12]}",
                        next=f"restore it, or make it again with --from {step}")
            )  # fmt: skip
    if problems:
        raise StaleArtefactError(problems)
    return True


# --------------------------------------------------------------------------------------------------- the manifest


class Manifest:
    """``manifest.json``: of every step its key, sources, time and outputs; where the run ran; updates of documents.

    Attributes:
        steps: name -> what is known of it. ``made_under``: its key before updates of the documents, which its
            checkpoints bear. ``earlier_documents``: made from documents that were updated since.
        updates: what each update of the documents did, oldest first.
        updating: an update that is being put in place, or was interrupted there.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        told = _read(folder.manifest) if folder.manifest.exists() else {"steps": {}}
        self.steps: dict[str, dict[str, Any]] = told["steps"]
        self.updates: list[dict[str, Any]] = told.get("updates", [])
        self.updating: dict[str, Any] | None = told.get("updating")

    def done(self, step: str, key: str) -> bool:
        """Whether ``step`` was done with exactly this key and its outputs are still what it wrote.

        Raises:
            StaleArtefactError: they were edited or damaged.
        """
        entry = self.steps.get(step)
        return bool(entry and entry["key"] == key and self._present(step))

    def require_untouched(self, folders: Sequence[Path]) -> None:
        """What a run wrote into these folders is still that; missing files and the manifest are left alone.

        Raises:
            StaleArtefactError: naming every file that was edited or damaged.
        """
        root = self.folder.root
        inside = tuple(f"{folder.relative_to(root).as_posix()}/" for folder in folders)
        checks = []
        for step, entry in self.steps.items():
            recorded = {n: s for n, s in entry["outputs"].items() if n.startswith(inside) and (root / n).exists()}
            checks.append(functools.partial(outputs_present, recorded, root, step))
        gather_problems(*checks)

    def _present(self, step: str) -> bool:
        outputs = self.steps[step]["outputs"]
        before = dict(outputs)
        whole = outputs_present(outputs, self.folder.root, step)
        if outputs != before and is_main_process():
            self.write()  # so that a copied run is read once, not at every start
        return whole

    def current(self, step: str) -> bool:
        """Whether ``step`` was done, and with inputs that have not been made anew since."""
        entry = self.steps.get(step)
        return entry is not None and all(
            self.steps.get(name, {}).get("key") == key and self.current(name) for name, key in entry["inputs"].items()
        )

    def record(
        self,
        step: str,
        keys: Mapping[str, str],
        inputs: Sequence[str],
        seconds: float,
        outputs: Sequence[Path],
        sources: Any = None,
    ) -> None:
        """Note that ``step`` is done; ``keys`` are those of all planned steps, ``sources`` what it read outside."""
        self.steps[step] = {
            "key": keys[step],
            "inputs": {name: keys[name] for name in inputs if name in keys},
            "sources": sources,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(time.time() - seconds)),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": round(seconds, 1),
            "versions": versions(),
            "hardware": hardware(),
            "outputs": signature(outputs, self.folder.root),
        }
        self.write()

    def refuse_unfinished_update(self) -> None:
        """Nobody may use documents, vectors and index of which some are old and some new.

        Raises:
            StaleArtefactError: an update was interrupted while it was put in place.
        """
        if self.updating:
            raise StaleArtefactError(
                Problem("an update of the documents was interrupted", where=str(self.folder.root),
                        got=f"begun {self.updating['begun']}", next="finish it: harness embed RECIPE --update")
            )  # fmt: skip

    def keep_only(self, planned: Collection[str]) -> None:
        """Drop steps that the recipe no longer has."""
        self.forget([step for step in self.steps if step not in planned])

    def forget(self, steps: Sequence[str]) -> None:
        """Drop steps, so that they run again; without the data, an update of the documents is no more."""
        gone = [step for step in steps if self.steps.pop(step, None)]
        if "data" in gone:
            self.updates, self.updating = [], None
        if gone:
            self.write()

    def write(self) -> None:
        """Put everything on disk."""
        told = {"schema": SCHEMA, "commit": commit(), "steps": self.steps, "updates": self.updates}
        told |= {"updating": self.updating} if self.updating else {}
        write_json(self.folder.manifest, {**told, "sha256": fingerprint(told)})


def _read(path: Path) -> dict[str, Any]:
    """What ``manifest.json`` says.

    Raises:
        StaleArtefactError: damaged, edited, or of another version.
    """
    again = "restore it, or delete it: every step runs again and finds its vectors and checkpoints"
    try:
        told = read_json(path, next=again)
    except InputError as error:
        raise StaleArtefactError(error.problems) from None
    schema = told.get("schema") if isinstance(told, dict) else None
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        raise StaleArtefactError(
            Problem("the manifest is not of this version", where=str(path), got=f"schema {schema!r}",
                    allowed=f"schema {SCHEMA}", next="install the harness that wrote it" if newer else again)
        )  # fmt: skip
    seal = told.pop("sha256", None)
    if seal != fingerprint(told) or not _is_sound(told):
        raise StaleArtefactError(
            Problem("the manifest was edited or damaged", where=str(path), got=f"sha256 {fingerprint(told)[:12]}",
                    allowed=f"sha256 {str(seal)[:12]}" if seal else "a line with its sha256", next=again)
        )  # fmt: skip
    answer: dict[str, Any] = told
    return answer


def _is_sound(told: Mapping[str, Any]) -> bool:
    """Whether every step has what others ask of it."""
    steps = told.get("steps")
    return isinstance(steps, dict) and all(
        isinstance(entry, dict) and {"key", "inputs", "outputs"} <= set(entry) for entry in steps.values()
    )


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores and memory, as the operating system tells them."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": cpu_name(), "cores": available_cores(), "memory_gib": round(memory, 1)}


def commit() -> str | None:
    """The git commit of the code in use; None where it is no checkout."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def recipe_sha256(recipe: Recipe) -> str:
    """The recipe without its launch and tracking settings, which change no result."""
    return fingerprint({name: part for name, part in recipe.keyed().items() if name not in ("launch", "tracking")})
