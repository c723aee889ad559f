"""The student as it is deployed: a folder that needs nothing else, and that says of every file what it was."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from harness.encoders.chain import backbone_files, read_chain
from harness.runtime.errors import InputError, Problem, StaleArtefactError, gather_problems
from harness.runtime.process import atomic_folder, file_sha256, fingerprint, read_json, write_json

UNSEALED = ("harness.json", "README.md")  # the first holds the seal, the second is a text for people
_AGAIN = "export it again, or restore the file"


def export_student(source: Path, target: Path) -> None:
    """Copy a student's folder; it carries prompts, pooling, projection, normalisation and its space.

    ``harness.json`` beside them gains ``files``, the sha256 of each other file, by which ``check_student`` finds what
    was changed by hand.

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
        told = read_json(temporary / "harness.json")
        files = {
            path.relative_to(temporary).as_posix(): file_sha256(path)
            for path in sorted(temporary.rglob("*")) if path.is_file() and path.name not in UNSEALED
        }  # fmt: skip
        told |= {"files": files}
        write_json(temporary / "harness.json", {**told, "sealed": fingerprint(told)})


def refuse_unservable(folder: Path) -> None:
    """Refuse a folder that a server can't start on, before anything is copied or loaded.

    Raises:
        InputError: no folder, an adapter that is not merged, no fast tokenizer, pickled weights, or a chain of modules
            that is not supported; all of it at once.
    """
    if not folder.is_dir():
        raise InputError(Problem("no such folder", where=str(folder)))
    adapters = [name for name in ("adapter_config.json", "adapter_model.safetensors") if (folder / name).exists()]
    if adapters:  # its base's weights are missing, which would only be told as a lack
        raise InputError(Problem("an adapter that is not merged into its base", where=str(folder),
                                 got=", ".join(adapters), allowed="a whole model",
                                 next="merge it (a run does so by itself), or name the merged folder"))  # fmt: skip
    gather_problems(lambda: _refuse_no_tokenizer(folder), lambda: backbone_files(folder), lambda: read_chain(folder))


def _refuse_no_tokenizer(folder: Path) -> None:
    if not (folder / "tokenizer.json").is_file():
        raise InputError(Problem("the folder has no tokenizer", where=str(folder), got="no tokenizer.json",
                                 allowed="a fast tokenizer, which servers ask for",
                                 next="save the tokenizer again with transformers"))  # fmt: skip


def check_student(folder: Path) -> dict[str, Any]:
    """What ``harness.json`` of an exported folder says, if every file is still the one that was exported.

    Files that were added are let be, but for what makes the folder another one (an adapter).

    Raises:
        InputError: what ``refuse_unservable`` refuses, or no exported folder.
        StaleArtefactError: files that were changed or removed, each named.
    """
    refuse_unservable(folder)
    told = read_json(folder / "harness.json", next="name a folder that `harness export` wrote")
    files = told.get("files") if isinstance(told, dict) else None
    if not isinstance(files, dict):
        raise InputError(Problem("not an exported folder: it does not say what its files were", where=str(folder),
                                 got="harness.json without files", next="export it with this version"))  # fmt: skip
    problems = []
    if told.get("sealed") != fingerprint({name: value for name, value in told.items() if name != "sealed"}):
        problems.append(Problem("edited or damaged", where=str(folder / "harness.json"), next=_AGAIN))
    for name, sha256 in files.items():
        path = folder / name
        if not path.is_file():
            problems.append(Problem("a file of the exported folder is missing", where=str(path), next=_AGAIN))
        elif file_sha256(path) != sha256:
            problems.append(Problem("not the file that was exported: it was edited or swapped", where=str(path),
                                    got=f"sha256 {file_sha256(path)[:12]}", allowed=f"sha256 {str(sha256)[:12]}",
                                    next=_AGAIN))  # fmt: skip
    if problems:
        raise StaleArtefactError(problems)
    return dict(told)
