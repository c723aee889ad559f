"""The student as it is deployed: a folder that needs nothing else, and that says of every file what it was."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from harness.encoders.chain import backbone_files, read_chain
from harness.engines.deployed import check_folder, is_around_student, refuse_unusable, seal
from harness.runtime.errors import InputError, Problem, gather_problems
from harness.runtime.process import atomic_folder, file_sha256, read_json, write_json

UNSEALED = ("harness.json", "README.md")  # the first holds the seal, the second is a text for people


def export_student(source: Path, target: Path) -> None:
    """Copy a student's folder; it carries prompts, pooling, projection, normalisation and its space.

    ``harness.json`` gains ``files``, the sha256 of each other file, by which ``check_student`` finds what was changed
    by hand.

    Args:
        source: a sentence-transformers folder of this run.
        target: replaced as a whole.

    Raises:
        InputError: what ``refuse_unservable`` refuses.
    """
    refuse_unservable(source)
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    with atomic_folder(target, size=size) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
        files = {
            path.relative_to(temporary).as_posix(): file_sha256(path)
            for path in sorted(temporary.rglob("*")) if path.is_file() and path.name not in UNSEALED
        }  # fmt: skip
        write_json(temporary / "harness.json", seal({**read_json(temporary / "harness.json"), "files": files}))


def refuse_unservable(folder: Path) -> None:
    """Refuse a folder that a server can't start on, before anything is copied or loaded.

    Raises:
        InputError: no folder, an adapter that is not merged, no fast tokenizer, pickled weights, or a chain of modules
            that is not supported; all of it at once, but for an adapter, which lacks its base's files.
    """
    if not folder.is_dir() or (folder / "adapter_config.json").exists() or is_around_student(folder):
        refuse_unusable(folder)
    gather_problems(lambda: refuse_unusable(folder), lambda: backbone_files(folder), lambda: read_chain(folder))


def check_student(folder: Path) -> dict[str, Any]:
    """What ``harness.json`` of an exported folder says, if every file is still the one that was exported.

    Files that were added are let be, but for what makes the folder another one: an adapter, a file in the folder of a
    module, settings of the tokenizer, of the prompts or of the chain.

    Raises:
        InputError: what ``refuse_unservable`` refuses, or no exported folder.
        StaleArtefactError: files that were changed, removed, or added where they count, each named.
    """
    refuse_unservable(folder)
    told: dict[str, Any] = read_json(folder / "harness.json", next="name a folder that `harness export` wrote")
    if not isinstance(told, dict) or not isinstance(told.get("files"), dict):
        raise InputError(Problem("not an exported folder: it does not say what its files were", where=str(folder),
                                 got="harness.json without files", allowed="export/student of a run",
                                 next=_next(folder)))  # fmt: skip
    check_folder(folder)
    return told


def _next(folder: Path) -> str:
    """What to name instead of a model that a run trained."""
    for run in folder.resolve().parents[:3]:
        if (run / "recipe.resolved.yaml").is_file():
            student = run / "export" / "student"
            return f"name {student}" if student.is_dir() else "harness export RECIPE makes it"
    return "export it with this version"
