"""The manifest of a run: what each step was made from, and whether what it wrote is still that."""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.pipeline.folder import RunFolder
from harness.pipeline.provenance import commit, hardware, versions
from harness.runtime.errors import InputError, Problem, StaleArtefactError, gather_problems
from harness.runtime.process import file_sha256, fingerprint, is_main_process, progress, read_json, write_json

SCHEMA = 1

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
        stamp = _stamp(path, sha256)  # before it is read: who writes meanwhile is found out the next time
        got = file_sha256(path)
        if got == sha256:
            recorded[name] = stamp
        else:
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

    def evaluated(self, step: str, seconds: float) -> None:
        """Note how long the evaluation of what ``step`` made took, which follows it."""
        self.steps[step]["evaluation_seconds"] = round(seconds, 1)
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


def vouched(path: Path) -> bool:
    """Whether the manifest beside a file tells that it is what a run wrote; False where there is none, or it is silent.

    Raises:
        StaleArtefactError: the file or the manifest was edited or damaged.
    """
    folder = RunFolder(path.parent)
    steps = Manifest(folder).steps if folder.manifest.exists() else {}
    made = [(step, entry["outputs"][path.name]) for step, entry in steps.items() if path.name in entry["outputs"]]
    return bool(made) and all(outputs_present({path.name: stamp}, path.parent, step) for step, stamp in made)


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
