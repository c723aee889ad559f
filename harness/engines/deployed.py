"""A deployed folder and the ONNX files in it: what is there, what it was made from, and whether that still holds.

    FOLDER/                  a sentence-transformers folder; ``harness.json`` may say the sha256 of each of its files
    FOLDER/onnx/model.onnx   model_fp16.onnx, model_int8.onnx, model_int8_static.onnx; with their data files where large
    FOLDER/onnx/harness.json the sha256 of each of these, of the files beside that decide what a text becomes, the space
    FOLDER/onnx/parity.json  how each was held against the student, and the bounds; ``harness.json`` says its sha256
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.encoders.chain import backbone_files, read_chain, weights_sha256
from harness.runtime.errors import InputError, Problem, StaleArtefactError, gather_problems
from harness.runtime.process import file_sha256, fingerprint, read_json, write_json

ONNX = "onnx"
PARITY = "parity.json"
OUTPUT = "sentence_embedding"
MODEL_FILES = {
    "fp32": "model.onnx", "fp16": "model_fp16.onnx", "int8": "model_int8.onnx", "int8-static": "model_int8_static.onnx"
}  # fmt: skip
# What decides, beside the weights, which tokens a text becomes and what is done with them.
_DECIDING = (
    "tokenizer.json", "tokenizer_config.json", "modules.json", "sentence_bert_config.json", "config.json",
    "config_sentence_transformers.json",
)  # fmt: skip
_MODULE = re.compile(r"(query_|document_)?\d+_\w+")  # the folder of a module, of a student or of a pair's route
_EXPORT = "export the folder again"
# The manifest of the ONNX files holds the student's vectors of these: a machine that gets them wrong is found without
# torch.
PROBE = ("wireless headphones", "ein lachendes Gesicht mit Brille", "東京 ホテル", "how do I reset a password")


def deciding_files(folder: Path) -> dict[str, str]:
    """The sha256 of the small files that an ONNX file in this folder relies on: tokenizer, prompts, chain."""
    names = [*_DECIDING, *(path.relative_to(folder).as_posix() for path in sorted(folder.glob("*_*/config.json")))]
    return {name: file_sha256(folder / name) for name in names if (folder / name).is_file()}


def seal(told: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest with the hash of itself."""
    return {**told, "sealed": fingerprint(dict(told))}


def is_sealed(told: Mapping[str, Any]) -> bool:
    """Whether a manifest is what was sealed."""
    return told.get("sealed") == fingerprint({name: value for name, value in told.items() if name != "sealed"})


def onnx_precisions(folder: str | Path) -> list[str]:
    """The precisions that a folder has ONNX files of; none where it has no ``onnx/``."""
    if not (Path(folder) / ONNX).is_dir():
        return []
    files = read_onnx_manifest(folder)["files"]
    return [precision for precision in MODEL_FILES if precision in files]


def read_onnx_manifest(folder: str | Path) -> dict[str, Any]:
    """What ``onnx/harness.json`` says.

    Raises:
        InputError: there is none. StaleArtefactError: it was edited.
    """
    path = Path(folder) / ONNX / "harness.json"
    told = read_json(path, next=_EXPORT)
    if not isinstance(told, dict) or not isinstance(told.get("files"), dict):
        raise InputError(Problem("not the manifest of ONNX files", where=str(path), got=_kind(told),
                                 allowed="an object with files", next=_EXPORT))
    if not is_sealed(told):
        raise StaleArtefactError(_edited(path))
    return told


def check_onnx(folder: str | Path, precisions: Sequence[str]) -> dict[str, Any]:
    """The manifest of a folder's ONNX files, if those of these precisions are still what was exported from it.

    The weights may have been left out of the deployed folder; where they are, they must be those it was made from.
    Where they are not, the folder's own ``harness.json`` says which they were.

    Raises:
        InputError: an adapter, no tokenizer, no such file.
        StaleArtefactError: an ONNX file, its data or a file that it relies on was swapped, edited or removed.
    """
    folder = Path(folder)
    refuse_unusable(folder)
    told = read_onnx_manifest(folder)
    missing = [precision for precision in precisions if precision not in told["files"]]
    if missing:
        raise InputError(Problem("no ONNX file of this precision", where=str(folder / ONNX), got=", ".join(missing),
                                 allowed=", ".join(told["files"]), next="name it in export.onnx"))  # fmt: skip
    problems = [problem for precision in precisions for problem in _changed(folder / ONNX, told["files"][precision])]
    problems += _changed(folder, told["beside"])
    problems += _other_weights(folder, told["weights_sha256"])
    if problems:
        raise StaleArtefactError(problems)
    return told


def _other_weights(folder: Path, wanted: str) -> list[Problem]:
    """What is wrong where the folder's weights, or those that it says it had, are not these."""
    where = folder if has_weights(folder) else folder / "harness.json"
    if where == folder:
        found = weights_sha256(folder)
    elif where.is_file():
        told = read_json(where, next=_EXPORT)
        if not isinstance(told, dict) or ("files" in told and not is_sealed(told)):
            return [_edited(where)]
        found = told.get("weights_sha256", wanted)  # somebody else's need not say
    else:
        return []
    if found == wanted:
        return []
    return [Problem("not the weights that the ONNX files were made from", where=str(where),
                    got=f"sha256 {str(found)[:12]}", allowed=f"sha256 {wanted[:12]}", next=_EXPORT)]  # fmt: skip


def write_parity(folder: Path, parity: Mapping[str, Any]) -> None:
    """Put how the ONNX files were held against the student beside them, sealed by their manifest."""
    path = folder / ONNX / PARITY
    write_json(path, parity)
    told = {name: value for name, value in read_onnx_manifest(folder).items() if name != "sealed"}
    write_json(folder / ONNX / "harness.json", seal({**told, "parity": file_sha256(path)}))


def read_parity(folder: Path) -> dict[str, Any] | None:
    """What ``write_parity`` wrote; None where it is missing, or is of a version that did not seal it.

    Raises:
        StaleArtefactError: it was edited.
    """
    path, wanted = folder / ONNX / PARITY, read_onnx_manifest(folder).get("parity")
    if wanted is None or not path.is_file():
        return None
    problems = _changed(folder / ONNX, {PARITY: wanted})
    if problems:
        raise StaleArtefactError(problems)
    told: dict[str, Any] = read_json(path, next=_EXPORT)
    return told


def has_weights(folder: Path) -> bool:
    """Whether torch's weights are there; ONNX files do without."""
    return any(folder.glob("*.safetensors"))


def check_folder(folder: str | Path) -> None:
    """Refuse a folder that can't be deployed, or that was changed since it was exported.

    A folder without ``harness.json`` is somebody else's: there is nothing that it could be compared with.

    Raises:
        InputError: no folder, an adapter, no tokenizer, no weights.
        StaleArtefactError: files that are not those that were exported, each named.
    """
    folder = Path(folder)
    refuse_unusable(folder)
    gather_problems(lambda: backbone_files(folder), lambda: read_chain(folder))
    path = folder / "harness.json"
    if not path.is_file():
        return
    told = read_json(path, next=_EXPORT)
    if not isinstance(told, dict):
        raise InputError(Problem("not a JSON object", where=str(path), got=_kind(told), allowed="an object",
                                 next=_EXPORT))  # fmt: skip
    if "files" in told:
        refuse_changed(folder, told)
    elif told.get("weights_sha256") not in (None, found := weights_sha256(folder)):
        raise StaleArtefactError(
            Problem("not the weights that were saved here: they were edited or swapped", where=str(folder),
                    got=f"sha256 {found[:12]}", allowed=f"sha256 {told['weights_sha256'][:12]}", next=_EXPORT)
        )  # fmt: skip


def refuse_changed(folder: Path, told: Mapping[str, Any]) -> None:
    """Refuse an exported folder that is not what its ``harness.json`` says.

    Raises:
        StaleArtefactError: naming the manifest and every file that was edited, swapped or removed, or that was added
            and makes another model of it.
    """
    problems = [] if is_sealed(told) else [_edited(folder / "harness.json")]
    if isinstance(told["files"], dict):
        problems += _changed(folder, told["files"]) + _added(folder, told["files"])
    if problems:
        raise StaleArtefactError(problems)


def refuse_unusable(folder: Path) -> None:
    """Refuse, before anything is loaded, what is no folder, an adapter without its base, or has no tokenizer.

    Raises:
        InputError: all of that.
    """
    if not folder.is_dir():
        raise InputError(Problem("no such model folder", where=str(folder),
                                 got="a file" if folder.exists() else "nothing", allowed="the folder of a model",
                                 next="name export/student of a run"))  # fmt: skip
    if near := _near(folder):
        raise InputError(near)
    problems = []
    adapters = [name for name in ("adapter_config.json", "adapter_model.safetensors") if (folder / name).exists()]
    if adapters:
        problems.append(Problem("an adapter that is not merged into its base", where=str(folder),
                                got=", ".join(adapters), allowed="a whole model",
                                next="merge it, or name the merged folder"))  # fmt: skip
    if not (folder / "tokenizer.json").is_file():
        problems.append(Problem("the folder has no tokenizer", where=str(folder), got="no tokenizer.json",
                                allowed="tokenizer.json",
                                next="save the tokenizer again with transformers"))  # fmt: skip
    if problems:
        raise InputError(problems)


def is_around_student(folder: Path) -> bool:
    """Whether it is a folder around the student, or beside it, rather than the student's."""
    return _near(folder) is not None


def _near(folder: Path) -> Problem | None:
    """What is wrong with a folder of a run that holds the student, or a pair of it."""
    if (folder / "tokenizer.json").is_file():
        return None
    around = {"the folder of a run": folder / "export" / "student", "the export folder": folder / "student",
              "a pair": folder.parent / "student"}  # fmt: skip
    names = {"the folder of a run": "recipe.resolved.yaml", "the export folder": "student/modules.json",
             "a pair": "router_config.json"}  # fmt: skip
    for what, student in around.items():
        if (folder / names[what]).is_file():
            there = (student / "modules.json").is_file()
            return Problem(f"this is {what}, not the student", where=str(folder), got=names[what],
                           allowed="the folder of the student: export/student of a run",
                           next=f"name {student}" if there else "harness export RECIPE makes it")  # fmt: skip
    return None


def _edited(path: Path) -> Problem:
    return Problem("edited or damaged", where=str(path), got="another content than the one that it was sealed with",
                   allowed="the file as it was written", next=_EXPORT)  # fmt: skip


def _kind(value: object) -> str:
    return f"an object with {', '.join(map(str, value)) or 'nothing'}" if isinstance(value, dict) else repr(value)[:60]


def _added(folder: Path, files: Mapping[str, str]) -> list[Problem]:
    """What libraries would read, though it was not exported: a config in the folder of a module changes the module."""
    places = [place for place in sorted(folder.iterdir()) if place.is_dir() and _MODULE.fullmatch(place.name)]
    found = [folder / name for name in _DECIDING]
    found += [path for place in places for path in sorted(place.rglob("*")) if path.name != "README.md"]
    return [
        Problem("a file that was not exported, and makes another model of the folder", where=str(path), got="added",
                allowed="the files that were exported", next=f"delete it, or {_EXPORT}")
        for path in found if path.is_file() and path.relative_to(folder).as_posix() not in files
    ]  # fmt: skip


def _changed(folder: Path, files: Mapping[str, str]) -> list[Problem]:
    problems = []
    for name, sha256 in files.items():
        path = folder / name
        if not path.is_file():
            problems.append(Problem("a file of the exported folder is missing", where=str(path), got="nothing",
                                    allowed=f"sha256 {sha256[:12]}", next=_EXPORT))
        elif (found := file_sha256(path)) != sha256:
            problems.append(Problem("not the file that was exported: it was edited or swapped", where=str(path),
                                    got=f"sha256 {found[:12]}", allowed=f"sha256 {sha256[:12]}", next=_EXPORT))
    return problems
