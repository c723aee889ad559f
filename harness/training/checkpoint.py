"""Checkpoints: everything a run needs to go on as if it had never stopped; safetensors and JSON, no pickle.

``step-00000120/`` holds the trained weights, the optimiser's moments and ``state.json``: the step, the best score so
far, the fingerprint of what is being trained, and which file holds which rows of which tensor. Each process writes
the rows that it holds and reads those that it needs, so another number of processes, or another placement of the
parameters, goes on from it. Learning rate, data position and random numbers are functions of (seed, step) and need no
state. A checkpoint appears whole, by a rename, and the one before it goes only then. All processes must see one folder.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.runtime.distributed import broadcast, join_rows, on_main, rank, share, world_size
from harness.runtime.errors import InputError, Problem, StaleArtefactError, StoppedError
from harness.runtime.process import (
    atomic_folder,
    disk_errors,
    file_sha256,
    fingerprint,
    is_main_process,
    logger,
    read_json,
    remove_folder,
    write_json,
)
from harness.training.placement import Part, Placement

_STEP, _BEST, _STATE = "step-{:08d}", "best", "state.json"


@dataclass(frozen=True)
class TrainingState:
    """Where a training stands. ``step`` optimiser steps are done; ``fingerprint`` names what is trained, and how."""

    step: int
    fingerprint: str
    best_score: float | None = None
    best_step: int | None = None


def _damaged(path: Path, got: str) -> Problem:
    return Problem(
        "the checkpoint is damaged", where=str(path), got=got, next=f"delete {path.parent.parent} to start afresh"
    )


# ------------------------------------------------------------------------------------------------------- writing


def _in_all(work: Callable[[], None]) -> None:
    """Do ``work`` in every process; where it fails in one, none goes on.

    Raises:
        StoppedError: another process failed (and says why).
    """
    failure: Exception | None = None
    try:
        work()
    except Exception as error:
        failure = error
    if join_rows(np.array([failure is not None]), world_size()).any():
        raise failure or StoppedError("another process failed")


def _write_parts(folder: Path, kind: str, parts: Mapping[str, Part]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write this process's rows of some tensors to one file; what ``state.json`` is to say of the file, and of them."""
    if not parts:
        return {}, {}
    path = folder / f"{kind}-{rank():05d}-of-{world_size():05d}.safetensors"
    save_file({name: part.value.detach().to("cpu", copy=True).contiguous() for name, part in parts.items()}, path)
    rows = {
        name: {"shape": list(part.shape), "parts": [[path.name, part.start, part.start + len(part.value)]]}
        if part.shape
        else {"shape": [], "parts": [[path.name, 0, 1]]}
        for name, part in parts.items()
    }
    return {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}}, rows


def _joined(indexes: list[dict[str, Any]]) -> dict[str, Any]:
    """What all processes wrote, as one index."""
    joined: dict[str, Any] = {}
    for index in indexes:
        for kind, entries in index.items():
            whole = joined.setdefault(kind, {})
            for name, entry in entries.items():
                known = whole.setdefault(name, entry)
                if known is not entry:
                    known["parts"] += entry["parts"]
    return joined


def _save(path: Path, kinds: Mapping[str, Mapping[str, Part]], state: TrainingState) -> None:
    """Write a folder together; it gets its name when all have written."""
    tensors = [part for parts in kinds.values() for part in parts.values()]
    size = sum(math.prod(part.shape) * part.value.element_size() for part in tensors)

    def write(temporary: Path) -> None:
        with disk_errors(path, size=size, written=temporary):
            index: dict[str, Any] = {"files": {}}
            for kind, parts in kinds.items():
                files, index[kind] = _write_parts(temporary, kind, parts)
                index["files"] |= files
            write_json(temporary / f"index-{rank():05d}.json", index)

    def work() -> None:
        with contextlib.ExitStack() as stack:
            temporary = Path(on_main(lambda: str(stack.enter_context(atomic_folder(path, size=size)))))
            _in_all(lambda: write(temporary))
            if is_main_process():
                notes = [temporary / f"index-{other:05d}.json" for other in range(world_size())]
                content = asdict(state) | _joined([read_json(note) for note in notes])
                write_json(temporary / _STATE, content | {"sha256": fingerprint(content)})
                for note in notes:
                    note.unlink()

    _in_all(work)  # no process goes on before the folder has its name


def save_checkpoint(folder: Path, placement: Placement, state: TrainingState) -> None:
    """Write ``folder/step-N`` whole, then remove older steps (``best/`` stays).

    Raises:
        DiskError: the disk refuses; the checkpoint before this one stays.
    """
    path = folder / _STEP.format(state.step)
    _save(path, {"model": placement.weights(), "optimizer": placement.moments()}, state)
    _remove_others(path)


def _remove_others(path: Path) -> None:
    if is_main_process():
        for other in path.parent.glob("step-*"):
            if other != path:
                remove_folder(other)


def save_best(folder: Path, placement: Placement, state: TrainingState) -> None:
    """Write the weights with the best score so far to ``folder/best``, and which step they are of."""
    _save(folder / _BEST, {"model": placement.weights()}, state)


# ------------------------------------------------------------------------------------------------------- reading


class _Saved:
    """A checkpoint's folder: its state, and any rows of any tensor."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / _STATE
        content = read_json(path, next=f"delete {folder.parent} to start afresh")
        told = content.pop("sha256", None) if isinstance(content, dict) else None
        if told != fingerprint(content):
            raise InputError(_damaged(path, "its content is not what was written"))
        self.files: dict[str, Any] = content.pop("files")
        self.tensors: dict[str, dict[str, Any]] = {
            kind: content.pop(kind) for kind in ("model", "optimizer") if kind in content
        }
        self.state = TrainingState(**content)
        self._open: dict[str, Any] = {}

    def verify(self) -> None:
        """Compare every file with its size and checksum, each in one process.

        Raises:
            InputError: naming those that are missing or damaged.
        """
        names = sorted(self.files)
        bad = [bool(self._wrong(name)) for name in names[share(len(names))]]
        found = [names[row] for row in np.flatnonzero(join_rows(np.array(bad, dtype=bool), len(names)))]
        if found:
            raise InputError([_damaged(self.folder / name, self._wrong(name) or "other bytes") for name in found])

    def _wrong(self, name: str) -> str:
        path, told = self.folder / name, self.files[name]
        if not path.is_file():
            return "no such file"
        if path.stat().st_size != told["bytes"]:
            return f"{path.stat().st_size:,} bytes of {told['bytes']:,}"
        return "" if file_sha256(path) == told["sha256"] else "its content is not what was written"

    def shapes(self, kind: str) -> dict[str, tuple[int, ...]]:
        """The shapes of the whole tensors, by name."""
        return {name: tuple(entry["shape"]) for name, entry in self.tensors[kind].items()}

    def rows(self, kind: str, name: str, rows: slice) -> Tensor:
        """Some rows of a tensor, put together from the files that hold them."""
        entry = self.tensors[kind][name]
        if not entry["shape"]:
            return self._file(entry["parts"][0][0]).get_tensor(name)
        start, stop, _ = rows.indices(entry["shape"][0])
        found, at = [], start
        for file, first, last in sorted(entry["parts"], key=lambda part: part[1]):
            if first <= at < min(last, stop):
                found.append(self._file(file).get_slice(name)[at - first : min(last, stop) - first])
                at = min(last, stop)
        if at < stop:
            raise InputError(_damaged(self.folder / _STATE, f"no file holds row {at} of {name}"))
        return torch.cat(found) if len(found) > 1 else found[0] if found else torch.empty(0, *entry["shape"][1:])

    def _file(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = safe_open(self.folder / name, framework="pt")
        return self._open[name]

    def put_weights(self, placement: Placement) -> None:
        """Put the weights back. Raises ``InputError`` where names or shapes are not the model's."""
        saved, wanted = self.shapes("model"), dict(placement.shapes)
        if saved != wanted:
            different = sorted(set(saved) ^ set(wanted)) or [name for name in saved if saved[name] != wanted[name]]
            raise InputError(
                Problem(
                    "the checkpoint is of another model",
                    where=str(self.folder),
                    got=", ".join(different[:3]),
                    next="delete the checkpoint's folder, or go back to the model that it was made with",
                )
            )
        placement.set_weights(lambda name, rows: self.rows("model", name, rows))

    def put_moments(self, placement: Placement) -> None:
        """Put the optimiser's state back."""
        placement.set_moments(self.shapes("optimizer"), lambda name, rows: self.rows("optimizer", name, rows))


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """What a library says of a file that it can't read becomes an error for people."""
    try:
        yield
    except (OSError, SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise InputError(_damaged(folder / _STATE, f"{type(error).__name__}: {error}")) from error


def load_best(folder: Path, placement: Placement) -> None:
    """Put the weights of ``save_best`` back.

    Raises:
        InputError: they are damaged, or of another model.
    """
    with _readable(folder / _BEST):
        saved = _Saved(folder / _BEST)
        saved.verify()
        saved.put_weights(placement)


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint, if there is one; in every process the same."""
    name = broadcast(max((path.name for path in folder.glob("step-*")), default=None))
    return folder / name if name else None


def load_checkpoint(folder: Path, placement: Placement, fingerprint: str) -> TrainingState | None:
    """Put the newest checkpoint back; None when there is none.

    A run that was killed after this checkpoint may have put later weights into ``best/``. The steps since are done
    again, so nothing is lost; but the best score that the checkpoint knows has no weights any more and is forgotten.

    Raises:
        StaleArtefactError: the checkpoint belongs to another training (other data, model or settings).
        InputError: the checkpoint, or the best weights that it knows of, are damaged.
    """
    path = latest(folder)
    if path is None:
        return None
    with _readable(path):
        saved = _Saved(path)
        if saved.state.fingerprint != fingerprint:
            raise StaleArtefactError(
                Problem(
                    "the checkpoint is of another training",
                    where=str(path),
                    got=saved.state.fingerprint[:12],
                    allowed=fingerprint[:12],
                    next=f"delete {folder} to start afresh, or restore the recipe it was made with",
                )
            )
        saved.verify()
        saved.put_weights(placement)
        saved.put_moments(placement)
    _remove_others(path)  # a kill may have come before it was done
    return _without_lost_best(folder, saved.state)


def _without_lost_best(folder: Path, state: TrainingState) -> TrainingState:
    if state.best_step is None:
        return state
    if (folder / _BEST / _STATE).exists():
        with _readable(folder / _BEST):
            best = _Saved(folder / _BEST)
            if best.state.best_step == state.best_step:
                best.verify()  # now, and not when the training has ended
                return state
    logger.warning("%s: weights kept as the best are not those of step %s any more", folder, state.best_step)
    return replace(state, best_score=None, best_step=None)
