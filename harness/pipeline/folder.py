"""A run's folder: where each artefact lies, and the manifest that says what it was made from."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.recipe import Recipe
from harness.runtime.errors import InputError, Problem, StaleArtefactError
from harness.runtime.process import file_sha256, fingerprint, read_json, write_json

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
    export = property(lambda self: self.root / "export")
    evaluations = property(lambda self: self.root / "evaluations")
    bench = property(lambda self: self.root / "bench.json")
    results = property(lambda self: self.root / "results.json")
    manifest = property(lambda self: self.root / "manifest.json")
    recipe = property(lambda self: self.root / "recipe.resolved.yaml")

    def student(self, state: str) -> Path:
        """``cut``, ``aligned`` or ``refined``."""
        return self.root / "student" / state

    def checkpoints(self, stage: str) -> Path:
        """Resumable state of a stage."""
        return self.root / "checkpoints" / stage

    def log(self, stage: str) -> Path:
        """One JSON line a step."""
        return self.root / "logs" / f"{stage}.jsonl"


# What a run writes at the top of its folder.
ARTEFACTS = (
    "data", "teacher", "teacher-more", "student", "vectors", "index", "mined", "checkpoints", "logs", "export",
    "evaluations", "bench.json", "results.json", "report.md", "report.html", "recipe.resolved.yaml", "manifest.json",
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


# ---------------------------------------------------------------------------------------- what an output looks like


def signature(paths: Sequence[Path], root: Path) -> dict[str, list[Any]]:
    """Name -> [size, modification time in ns, sha256] of every file in ``paths`` (files or folders)."""
    found: dict[str, list[Any]] = {}
    for path in paths:
        for file in _files(path):
            stat = file.stat()
            found[file.relative_to(root).as_posix()] = [stat.st_size, stat.st_mtime_ns, file_sha256(file)]
    return found


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file() and not p.name.endswith(".tmp"))
    return [path] if path.exists() else []


def outputs_present(recorded: dict[str, list[Any]], root: Path, step: str) -> bool:
    """Whether all recorded files are there; False when one is missing (the step runs again).

    Raises:
        StaleArtefactError: a file's content is not what the step wrote (edited, truncated, damaged).
    """
    problems = []
    for name, (size, modified, sha256) in recorded.items():
        path = root / name
        if not path.exists():
            return False
        stat = path.stat()
        if (stat.st_size, stat.st_mtime_ns) == (size, modified):
            continue
        got = file_sha256(path)
        if got != sha256:
            problems.append(
                Problem(f"the file is not what step {step!r} wrote", where=str(path),
                        got=f"{stat.st_size} bytes, sha256 {got[:12]}",
                        allowed=f"{size} bytes, sha256 {sha256[:12]}",
                        next=f"restore it, or make it again with --from {step}")
            )  # fmt: skip
    if problems:
        raise StaleArtefactError(problems)
    return True


# --------------------------------------------------------------------------------------------------- the manifest


class Manifest:
    """``manifest.json``: of every step its key, time and outputs; and where the run ran."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.steps: dict[str, dict[str, Any]] = {}
        if folder.manifest.exists():
            self.steps = read_json(folder.manifest)["steps"]

    def done(self, step: str, key: str) -> bool:
        """Whether ``step`` was done with exactly this key and its outputs are still what it wrote."""
        entry = self.steps.get(step)
        return bool(entry and entry["key"] == key and outputs_present(entry["outputs"], self.folder.root, step))

    def current(self, step: str) -> bool:
        """Whether ``step`` was done, and with inputs that have not been made anew since."""
        entry = self.steps.get(step)
        return entry is not None and all(
            self.steps.get(name, {}).get("key") == key and self.current(name) for name, key in entry["inputs"].items()
        )

    def record(
        self, step: str, keys: Mapping[str, str], inputs: Sequence[str], seconds: float, outputs: Sequence[Path]
    ) -> None:
        """Note that ``step`` is done; ``keys`` are those of all planned steps."""
        self.steps[step] = {
            "key": keys[step],
            "inputs": {name: keys[name] for name in inputs if name in keys},
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(time.time() - seconds)),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": round(seconds, 1),
            "versions": versions(),
            "hardware": hardware(),
            "outputs": signature(outputs, self.folder.root),
        }
        self._write()

    def keep_only(self, planned: Collection[str]) -> None:
        """Drop steps that the recipe no longer has."""
        self.forget([step for step in self.steps if step not in planned])

    def forget(self, steps: Sequence[str]) -> None:
        """Drop steps, so that they run again."""
        gone = [step for step in steps if self.steps.pop(step, None)]
        if gone:
            self._write()

    def _write(self) -> None:
        write_json(self.folder.manifest, {"schema": 1, "commit": commit(), "steps": self.steps})


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
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "memory_gib": round(memory, 1)}


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
    return fingerprint(recipe.model_dump(mode="json", exclude={"launch", "tracking"}))
