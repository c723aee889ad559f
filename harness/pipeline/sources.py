"""Fingerprints of what a run reads from outside: data files, model folders, installed packages. Imports no torch."""

from __future__ import annotations

import glob
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.data.outside import outside_files
from harness.data.shards import Identity
from harness.data.streams import stream_files
from harness.encoders.sources import resolve_model
from harness.pipeline.folder import RunFolder
from harness.pipeline.manifest import Manifest
from harness.pipeline.plan import keys, plan
from harness.recipe import MineSettings, OutsideSet, Recipe, VectorFiles
from harness.runtime.errors import InputError, Problem, StaleArtefactError
from harness.runtime.process import file_sha256, progress, read_json, write_json


def _content(path: Path) -> list[Any]:
    """Name and sha256 of a file, or of every file below a folder."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [[file.relative_to(path).as_posix() if path.is_dir() else file.name, file_sha256(file)] for file in files]


def _paths(paths: str | list[str] | None, where: str) -> list[Path]:
    found: list[Path] = []
    for name in _listed(paths):
        matches = [Path(name)] if Path(name).exists() else [Path(p) for p in sorted(glob.glob(name))]
        if not matches:
            raise InputError(Problem("no such file or folder", where=where, got=name, next="check the path"))
        found += matches
    return found


def data_sources(recipe: Recipe) -> list[Any]:
    """What the data step reads.

    Raises:
        InputError: files that are not there.
    """
    data = recipe.data
    found: list[Any] = []
    for key in ("path", "dev_path"):
        for path in _paths(getattr(data, key), f"data.{key}"):
            found.append(_content(path))
    for number, texts in enumerate(data.unlabelled):
        found += [_content(path) for path in _paths(texts.path, f"data.unlabelled.{number}.path")]
    if data.source == "emoji":
        try:
            found.append(["emoji", metadata.version("emoji")])
        except metadata.PackageNotFoundError:
            found.append(["emoji", None])
    return found


def _model(name: str | None, revision: str | None) -> Any:
    if name is None:
        return None
    folder = resolve_model(name, revision)
    kept = [
        p for p in sorted(folder.rglob("*")) if p.suffix in (".json", ".safetensors", ".txt", ".model") and p.is_file()
    ]
    return [[p.relative_to(folder).as_posix(), file_sha256(p)] for p in kept]


def _vectors(files: VectorFiles | None, where: str) -> Any:
    if files is None:
        return None
    return [_content(path) for path in _paths([p for p in (files.path, files.ids) if p], where)]


def _model_scores(settings: MineSettings | None, where: str) -> Any:
    if settings is None or settings.model_scores is None:
        return None
    return [_content(path) for path in _paths(settings.model_scores.path, f"{where}.model_scores.path")]


def _outside(given: OutsideSet) -> Any:
    """A set from elsewhere: its files, or the version of ``mteb``, which fixes the revision of a task's data."""
    if given.beir is None:
        try:
            return ["mteb", metadata.version("mteb")]
        except metadata.PackageNotFoundError:  # told by check_surroundings
            return ["mteb", None]
    return [_content(path) for path in outside_files(given)]


def sources_of(recipe: Recipe, *, models: bool = True) -> dict[str, Any]:
    """Step name -> fingerprint of its outside inputs; without ``models``, what else is missing is told all the same.

    Raises:
        InputError: what is missing, all of it.
    """
    problems: list[Problem] = []
    found: dict[str, Any] = {}
    wanted = {
        "data": lambda: data_sources(recipe),
        "teacher": lambda: (
            _model(recipe.teacher.model if models else None, recipe.teacher.revision)
            or _vectors(recipe.documents.vectors, "documents.vectors.path")  # they found the space
        ),
        "embed": lambda: [
            _vectors(recipe.documents.vectors, "documents.vectors.path"),
            _vectors(recipe.teacher.query_vectors, "teacher.query_vectors.path"),
        ],
        "mine.base": lambda: _model_scores(recipe.mine.base, "mine.base"),
        "mine.refine": lambda: _model_scores(recipe.mine.refine, "mine.refine"),
        "embed.outside": lambda: [_outside(given) for given in recipe.evaluate.outside],
        "student": lambda: (
            _model(recipe.student.model, recipe.student.revision)
            if models and recipe.student.model != "teacher" else None
        ),
    }
    for step, look in wanted.items():
        try:
            found[step] = look()
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    found["embed.base"] = found["teacher"]
    return found


# ------------------------------------------------------------------------------------------------------- streams

STREAM_STEPS = ("teacher.streams", "embed.streams")  # the steps that read streams


def known_files(folder: RunFolder) -> dict[str, Identity]:
    """Path -> what a stream's file was when it was read last; what can't be read is not known."""
    path = folder.streams / "files.json"
    try:
        told = read_json(path) if path.is_file() else {}
        return {name: Identity(**entry) for name, entry in told.items()}
    except (InputError, TypeError, AttributeError):
        return {}


def stream_sources(recipe: Recipe, names: Sequence[str], known: dict[str, Identity]) -> dict[str, list[list[str]]]:
    """Stream -> path and sha256 of its files; those that are as ``known`` has them are not read. ``known`` is added to.

    Raises:
        InputError: files that are not there or can't be read.
    """
    files = {name: stream_files(name, recipe.data.streams[name]) for name in names}
    unread = [path for paths in files.values() for path in paths
              if str(path) not in known or not known[str(path)].unchanged(path)]  # fmt: skip
    for path in progress(unread, what="read streams", unit="file"):
        known[str(path)] = Identity.of(path)
    return {name: [[str(path), known[str(path)].sha256] for path in paths] for name, paths in files.items()}


def sources_of_streams(recipe: Recipe, known: dict[str, Identity]) -> dict[str, Any]:
    """Step -> fingerprint of the streams that it reads; ``known`` as in ``stream_sources``."""
    found = {}
    if recipe.teacher.streams:
        found["teacher.streams"] = stream_sources(recipe, recipe.teacher.streams, known)
    if recipe.align and recipe.align.streams:
        found["embed.streams"] = stream_sources(recipe, recipe.align.streams, known)
    return found


def note_files(folder: RunFolder, known: Mapping[str, Identity]) -> None:
    """Keep what is known of streams' files, so that unchanged ones are not read at the next start."""
    if known and known != known_files(folder):
        write_json(folder.streams / "files.json", {name: asdict(identity) for name, identity in known.items()})


# --------------------------------------------------------------------------------------------- what changed meanwhile

READ_AGAIN = ("data", "embed")  # the steps whose sources an update of the documents reads again


def sources_so_far(sources: Mapping[str, Any], manifest: Manifest) -> dict[str, Any]:
    """``sources``, but data and brought vectors as they were when the run read them last."""
    return {**sources, **_noted(manifest, READ_AGAIN)}


def _noted(manifest: Manifest, steps: Sequence[str]) -> dict[str, Any]:
    return {step: manifest.steps[step]["sources"] for step in steps if "sources" in manifest.steps.get(step, {})}


def refuse_changed_streams(sources: Mapping[str, Any], manifest: Manifest) -> None:
    """An update of the documents brings no streams up to date.

    Raises:
        StaleArtefactError: files of streams changed, too.
    """
    earlier = _noted(manifest, STREAM_STEPS)
    if any(earlier[step] != sources.get(step) for step in earlier):
        raise StaleArtefactError(
            Problem("files of streams changed, and not only documents", where=str(manifest.folder.root),
                    next="put them back for the update; or harness run RECIPE --from data, which makes everything anew")
        )  # fmt: skip


def refuse_changed_documents(
    recipe: Recipe, sources: Mapping[str, Any], manifest: Manifest, forced: Collection[str] = ()
) -> None:
    """Days of training and embedding are not thrown away because a data file was touched.

    Args:
        forced: the steps that were asked to run again.

    Raises:
        StaleArtefactError: files changed that trained models or document vectors were made from, and nothing else did.
    """
    earlier = {**sources, **_noted(manifest, (*READ_AGAIN, *STREAM_STEPS))}
    changed = [step for step in (*READ_AGAIN, *STREAM_STEPS)
               if step in sources and earlier.get(step) != sources.get(step) and step not in forced]  # fmt: skip
    if not changed:
        return
    was, now = keys(recipe, earlier), keys(recipe, sources)
    lost = [
        step.name for step in plan(recipe)
        if (step.trains or step.verb == "embed") and step.name not in forced and was[step.name] != now[step.name]
        and manifest.steps.get(step.name, {}).get("key") == was[step.name]
    ]  # fmt: skip
    anew = f"`harness run RECIPE --from {changed[0]}` makes everything anew, models too"
    if set(changed) <= set(STREAM_STEPS):
        remedy = f"`harness run RECIPE --from {changed[0]}` encodes what is new, and trains anew what read them"
    else:
        remedy = f"`harness embed RECIPE --update` brings documents and index up to date and keeps the models; {anew}"
    if lost:
        raise StaleArtefactError(
            Problem("data files changed since this run read them", where=str(manifest.folder.root),
                    got=f"other {' and '.join(_FILES[step] for step in changed)} than {', '.join(lost)} had",
                    allowed="the files as they were", next=remedy)
        )  # fmt: skip


def refuse_changed_files(recipe: Recipe, folder: RunFolder) -> None:
    """What the controller refuses of a run whose files changed, without writing anything into its folder.

    Models are read only where other files changed.

    Raises:
        StaleArtefactError: as ``refuse_changed_documents``; an interrupted update, an edited manifest.
    """
    if not folder.manifest.exists():
        return
    manifest = Manifest(folder)
    manifest.refuse_unfinished_update()
    streams = sources_of_streams(recipe, known_files(folder)) if _noted(manifest, STREAM_STEPS) else {}
    found, earlier = {**sources_of(recipe, models=False), **streams}, _noted(manifest, (*READ_AGAIN, *STREAM_STEPS))
    if any(step in found and found[step] != earlier[step] for step in earlier):
        refuse_changed_documents(recipe, {**sources_of(recipe), **streams}, manifest)


_FILES = {"data": "data", "embed": "given vectors", "teacher.streams": "streams", "embed.streams": "streams"}


def input_paths(recipe: Recipe) -> list[Path]:
    """Every local file and folder that a recipe names, where it exists."""
    data, files = recipe.data, (recipe.documents.vectors, recipe.teacher.query_vectors)
    names = [*_listed(data.path), *_listed(data.dev_path), *(texts.path for texts in data.unlabelled)]
    names += [name for given in files if given for name in (given.path, given.ids) if name]
    names += [mine.model_scores.path for mine in (recipe.mine.base, recipe.mine.refine) if mine and mine.model_scores]
    names += [given.beir for given in recipe.evaluate.outside if given.beir]
    names += [name for stream in data.streams.values() for name in _listed(stream.path)]
    names += [name for name in (recipe.teacher.model, recipe.student.model) if name and name != "teacher"]
    return [Path(name) for name in names if Path(name).exists()]


def _listed(paths: str | list[str] | None) -> list[str]:
    return [paths] if isinstance(paths, str) else paths or []
