"""Teacher and student as one sentence-transformers model: queries go to the student, documents to the teacher.

The folder is a stock ``Router``, which sentence-transformers has had since 5.0; nothing in it is code:

    modules.json                        one module, the Router
    router_config.json                  the modules of either route, each in a folder of its own
    config_sentence_transformers.json   the student's query prompt, the teacher's document prompt
    query_0_Transformer/  query_1_Pooling/ ...      the student
    document_0_Transformer/  document_1_Pooling/ ...   the teacher
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from harness.encoders.chain import backbone_files, read_chain
from harness.engines.deployed import refuse_changed, seal
from harness.export.student import refuse_unservable
from harness.runtime.errors import InputError, Problem, gather_problems
from harness.runtime.process import atomic_folder, file_sha256, fingerprint, read_json, write_json
from harness.vectors.space import Space, require_same_space

_AGAIN = "export it again"
_TYPES = "sentence_transformers.models."
_NOT_OF_THE_TRANSFORMER = ("modules.json", "config_sentence_transformers.json", "harness.json", "README.md")


def export_pair(teacher: Path, student: Path, target: Path) -> None:
    """Write the pair: ``encode_query`` is the student, ``encode_document`` (and plain ``encode``) the teacher.

    Args:
        teacher, student: sentence-transformers folders of one space. Tokenizers, lengths, sizes and poolings may
            differ.
        target: replaced as a whole.

    Raises:
        InputError: a folder that can't be deployed. StaleArtefactError: the two are of different spaces.
    """
    gather_problems(lambda: refuse_unservable(teacher), lambda: refuse_unservable(student))
    space = _space(teacher)
    require_same_space(space, _space(student), str(teacher), str(student))
    size = sum(path.stat().st_size for folder in (teacher, student) for path in backbone_files(folder))
    with atomic_folder(target, size=size) as new:
        routes = {"query": _copy_route(student, new, "query"), "document": _copy_route(teacher, new, "document")}
        write_json(new / "router_config.json", {
            "types": {name: _TYPES + kind for modules in routes.values() for name, kind in modules.items()},
            "structure": {route: list(modules) for route, modules in routes.items()},
            "parameters": {"default_route": "document", "allow_empty_key": True},
        })  # fmt: skip
        write_json(new / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": f"{_TYPES}Router"}])
        write_json(new / "config_sentence_transformers.json", {
            "model_type": "SentenceTransformer",
            "prompts": {"query": read_chain(student).prompts["query"],
                        "document": read_chain(teacher).prompts["document"]},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine" if space.normalized else "dot",
        })  # fmt: skip
        towers = {name: fingerprint(read_json(folder / "harness.json"))
                  for name, folder in (("teacher", teacher), ("student", student))}  # fmt: skip
        files = {path.relative_to(new).as_posix(): file_sha256(path)
                 for path in sorted(new.rglob("*")) if path.is_file()}  # fmt: skip
        write_json(new / "harness.json", seal({"space": space.to_json(), "towers": towers, "files": files}))


def check_pair(folder: Path) -> dict[str, Any]:
    """What ``harness.json`` of a pair says, if every file is still the one that was exported.

    Raises:
        InputError: no pair, or one of an earlier version. StaleArtefactError: files were changed, each named.
    """
    path = folder / "harness.json"
    told: dict[str, Any] = read_json(path, next=_AGAIN)
    if not isinstance(told, dict) or "towers" not in told or not isinstance(told.get("files"), dict):
        raise InputError(Problem("not an exported pair: it does not say what its files were", where=str(path),
                                 got="harness.json without towers or files", allowed="export/pair of a run",
                                 next=_AGAIN))  # fmt: skip
    refuse_changed(folder, told)
    return told


def open_route(folder: Path, route: str, scratch: Path) -> Path:
    """One tower of a pair as a plain sentence-transformers folder again, made of links; ``scratch`` is empty.

    Args:
        route: ``query`` or ``document``.
    """
    config = read_json(folder / "router_config.json", next=_AGAIN)
    modules = []
    for number, name in enumerate(config["structure"][route]):
        kind = config["types"][name]
        place = "" if kind.endswith(".Transformer") else f"{number}_{kind.rpartition('.')[2]}"
        (scratch / place).mkdir(exist_ok=True)
        for path in (folder / name).iterdir():
            (scratch / place / path.name).symlink_to(path.resolve())
        modules.append({"idx": number, "name": str(number), "path": place, "type": kind})
    write_json(scratch / "modules.json", modules)
    shutil.copy(folder / "config_sentence_transformers.json", scratch)
    return scratch


def _space(folder: Path) -> Space:
    told = read_json(folder / "harness.json", next="name a folder that a run wrote")
    if not isinstance(told, dict) or "space" not in told:
        raise InputError(Problem("the folder does not say which space its vectors are of", where=str(folder),
                                 got="harness.json without a space", allowed="a folder that a run wrote",
                                 next="name a folder that a run wrote"))  # fmt: skip
    return Space.from_json(told["space"], where=str(folder / "harness.json"))


def _copy_route(source: Path, target: Path, route: str) -> dict[str, str]:
    """Copy a tower's modules into folders named after the route; the name of each and what kind it is."""
    modules: list[dict[str, Any]] = read_json(source / "modules.json")
    apart = {module["path"] for module in modules if module["path"]}
    names = {}
    for number, module in enumerate(modules):
        kind = module["type"].rpartition(".")[2]
        name = f"{route}_{number}_{kind}"
        names[name] = kind
        if module["path"]:
            here = source / module["path"]
            shutil.copytree(here, target / name) if here.is_dir() else (target / name).mkdir()
        else:
            shutil.copytree(source, target / name, ignore=lambda place, entries: [
                entry for entry in entries
                if Path(place) == source and (entry in apart or entry in _NOT_OF_THE_TRANSFORMER or entry == "onnx")
            ])  # fmt: skip
    return names
