"""``harness embed RECIPE --update``: the documents changed, teacher and student stay as they are.

First everything new is made beside what is there: data, vectors of new and changed texts, index. Until then a kill
leaves the run as it was. Then it is put in place by a few renames, while the manifest says so; killed there, every
verb names the unfinished update, and the same command finishes it. Imports no torch before the input is known to be
right.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.folder import content_sha256
from harness.data.prepare import prepare_data
from harness.pipeline.checks import check_data
from harness.pipeline.controller import Controller
from harness.pipeline.folder import RunFolder, clear_leftovers
from harness.pipeline.launch import alone_in
from harness.pipeline.manifest import signature
from harness.pipeline.plan import embedded_kinds, keys, plan
from harness.pipeline.sources import READ_AGAIN, refuse_changed_streams, sources_so_far
from harness.pipeline.stop import signals
from harness.recipe import Recipe, dump_recipe, load_recipe
from harness.runtime.errors import InputError, Problem, StaleArtefactError
from harness.runtime.process import launched_processes, logger, replace_folder

if TYPE_CHECKING:
    from harness.encoders.encoder import Encoder, Side
    from harness.pipeline.context import Run
    from harness.vectors.space import Space
    from harness.vectors.store import VectorStore

EMBEDDED = ("embed.base", "embed", "embed.more")
NEEDED = ("data", "teacher", "embed")  # without these done there is nothing to update
SEARCHED = (  # made anew
    "data.slices", "export", "export.pair", "export.index", "export.onnx", "bench.ann", "evaluate", "report"
)  # fmt: skip


def update_documents(recipe: Recipe, output: Path) -> dict[str, Any] | None:
    """Bring data, document and query vectors and the index up to date with the recipe's files; train nothing.

    Vectors of texts that stay are kept, those of new and changed texts are encoded by the encoder that made the
    others, those of removed texts become tombstones. Steps that were done stay so, but ``evaluate`` and ``report``.

    Returns:
        {"documents": {"stay", "encoded", "leave"}, ...} by store; None: no file had changed.

    Raises:
        InputError: nothing is embedded yet; more than files changed; the new data can't be used; a training that was
            begun with the old documents is unfinished.
    """
    folder = RunFolder(output)
    if launched_processes() > 1:
        raise InputError(Problem("an update runs in one process", where="--update", got=f"{launched_processes()}",
                                 next="start it without a launcher"))  # fmt: skip
    with alone_in(output), signals(output) as stop:
        controller = Controller(recipe, folder)
        current = _require_done(controller)
        clear_leftovers(folder)
        manifest, sources = controller.manifest, controller.sources
        earlier = sources_so_far(sources, manifest)
        if not manifest.updating and all(earlier.get(step) == sources.get(step) for step in READ_AGAIN):
            if unnoted := [step for step in READ_AGAIN if "sources" not in manifest.steps[step]]:
                for step in unnoted:
                    manifest.steps[step]["sources"] = sources.get(step)
                manifest.write()
            return None
        _refuse_unfinished_training(controller)
        from harness.pipeline.context import Run

        run = Run(recipe, folder, controller.keys, stop)
        staging = Run(recipe, RunFolder(output / ".data.update.tmp"), controller.keys, stop)
        try:
            _stage_data(run, staging)
            staged = {step: list(_stage_vectors(step, run, staging)) for step in EMBEDDED if step in current}
            store = staged["embed"][0].store
            staging.index_of(store).save(staging.folder.index, store.space, store_sha256=store.sha256)
            dump_recipe(recipe, folder.recipe)
            manifest.updating = {"begun": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
            manifest.write()
            _put_in_place(run, staging, staged)
        finally:
            shutil.rmtree(staging.folder.root, ignore_errors=True)
        told = {made.name: dict(made.told) for parts in staged.values() for made in parts}
        _end(controller, current, {step: [made.name for made in parts] for step, parts in staged.items()}, told)
    return told


# ------------------------------------------------------------------------------------------------- what may change


def _require_done(controller: Controller) -> dict[str, str]:
    """The steps that are done but for changed files, with the keys that they are done under.

    Raises:
        InputError: nothing is embedded; settings or models changed too; what changed can't be told or can't change.
    """
    recipe, manifest, folder = controller.recipe, controller.manifest, controller.folder
    if "embed" not in manifest.steps:
        raise InputError(Problem("nothing is embedded yet, so there is nothing to update", where=str(folder.root),
                                 next="harness run RECIPE --to embed"))  # fmt: skip
    if recipe.data.source == "huggingface":
        raise InputError(Problem("what changed in a Hugging Face data set can't be told", where="data.source",
                                 next="write it into files and use data.source: pairs; or harness run RECIPE "
                                 "--from data, which trains anew"))  # fmt: skip
    refuse_changed_streams(controller.sources, manifest)
    was = keys(recipe, sources_so_far(controller.sources, manifest))
    current = {name: key for name, key in was.items() if manifest.steps.get(name, {}).get("key") == key}
    missing = [name for name in NEEDED if name not in current]
    if missing:
        raise InputError(_more_changed(controller, missing))
    read = {"data", "teacher", "teacher.more", *EMBEDDED} & set(current)
    read -= {"data", *EMBEDDED} if manifest.updating else set()  # these are being replaced
    if lost := [name for name in sorted(read) if not manifest.done(name, was[name])]:
        raise StaleArtefactError(Problem(f"files of {', '.join(lost)} are missing", where=str(folder.root),
                                         next="restore them; or the data files, and then: harness run RECIPE"))
    return current


def _refuse_unfinished_training(controller: Controller) -> None:
    """A training can't go on with other documents than it began with.

    Raises:
        InputError: naming every stage that was begun and not finished.
    """
    problems = []
    for step in plan(controller.recipe):
        try:
            if step.trains:
                controller.old_checkpoints(step)
        except StaleArtefactError as error:
            folder = error.problems[0].where
            problems.append(
                Problem(f"the training of step {step.name!r} is unfinished, and goes on with no other documents",
                        where=folder, next=f"put the data files back and finish it (harness run RECIPE --to "
                        f"{step.name}), then update; or give it up: delete {folder}, then update")
            )  # fmt: skip
    if problems:
        raise InputError(problems)


def _more_changed(controller: Controller, missing: list[str]) -> Problem:
    """Why the run can't be updated: settings, models, or a run that doesn't say what it has read."""
    recipe, manifest, folder = controller.recipe, controller.manifest, controller.folder
    where, anew = str(folder.root), "harness run RECIPE makes it anew, models too"
    if any("sources" not in manifest.steps.get(name, {}) for name in missing):
        return Problem("the run does not say from which files it was made", where=where,
                       next="restore those files and run this command, which notes them; then change the files and "
                       f"run it again; or {anew}")  # fmt: skip
    if recipe.teacher.model is None and "teacher" in missing and "data" not in missing:
        return Problem("document vectors without a teacher's weights found its space: changed ones are another space",
                       where="documents.vectors", next=f"leave the file as it was; or {anew}")  # fmt: skip
    differences = []
    if folder.recipe.exists():
        old, new = _leaves(load_recipe(folder.recipe)), _leaves(recipe)
        differences = [f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in sorted(old | new)
                       if old.get(key) != new.get(key)]  # fmt: skip
    return Problem("more than the documents changed", where=where,
                   got="; ".join(differences) or f"{', '.join(missing)} not done with these models and settings",
                   allowed="other data files under the same paths",
                   next=f"restore the recipe for the update; or {anew}")  # fmt: skip


def _leaves(recipe: Recipe) -> dict[str, Any]:
    """Path -> value of the settings that data and teacher's vectors depend on."""
    found: dict[str, Any] = {}

    def walk(node: Any, path: str) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                walk(value, f"{path}.{key}" if path else key)
        else:
            found[path] = node

    sections = {"seed", "data", "teacher", "documents", "mine", "embed", "evaluate"}
    walk(recipe.model_dump(mode="json", include=sections), "")
    found["align.texts"] = recipe.align.texts if recipe.align else None
    found["align.targets"] = recipe.align.targets if recipe.align else None
    return found


# ------------------------------------------------------------------------------------- everything new, beside the old


@dataclass(frozen=True)
class _Staged:
    """A store as it will be, and how it takes its place."""

    name: str
    store: VectorStore
    place: Callable[[], object]
    told: Mapping[str, int]


def _stage_data(run: Run, staging: Run) -> None:
    """Prepare the data from the files as they are now.

    Raises:
        InputError: what can't be used of it, as in the data step.
    """
    from harness.pipeline.work_vectors import tell_data

    summary = prepare_data(run.recipe.data, staging.folder.data, earlier=run.folder.data)
    tell_data(summary)
    if summary["kept_in_split"]:
        logger.info("  data: %s queries stay in train or select, for models were trained or chosen on them",
                    f"{summary['kept_in_split']:,}")  # fmt: skip
    check_data(run.recipe, staging.dataset, complete=False)  # nothing is trained on it


def _stage_vectors(step: str, run: Run, staging: Run) -> Iterator[_Staged]:
    """The stores of one embedding step; of ``embed`` the documents first."""
    from harness.pipeline import work_vectors as vectors

    recipe, documents = run.recipe, staging.dataset.documents
    rows = (documents.ids, documents.texts)
    if step == "embed.base":
        encoder, space = vectors.base_teacher(run)
        yield _stage_encoded(run, "base-documents", "document", rows, encoder, space)
        if recipe.mine.base:
            yield _stage_queries(run, staging, "base-queries", ["queries"], encoder, space)
        return
    if step == "embed.more":
        encoder, space = run.open(run.folder.teacher_more), run.space(run.folder.teacher_more)
        yield _stage_encoded(run, "more-documents", "document", rows, encoder, space)
        return
    space = run.space(run.folder.teacher)
    teacher = run.open(run.folder.teacher) if recipe.teacher.model else None
    if recipe.documents.vectors:
        given = vectors.given_documents(staging, recipe.documents.vectors, teacher, space)
        yield _stage_given(run, "documents", given)
    else:
        assert teacher is not None, "validated by the recipe"
        yield _stage_encoded(run, "documents", "document", rows, teacher, space)
    if recipe.teacher.query_vectors:
        yield _stage_given(run, "queries", vectors.given_queries(staging, recipe.teacher.query_vectors, space))
    elif kinds := embedded_kinds(recipe):
        assert teacher is not None, "validated by the recipe"
        yield _stage_queries(run, staging, "queries", kinds, teacher, space)


def _stage_queries(run: Run, staging: Run, name: str, kinds: list[str], encoder: Encoder, space: Space) -> _Staged:
    from harness.pipeline.work_vectors import query_texts

    ids, texts, _ = query_texts(staging.dataset, kinds, context=run.recipe.teacher.context)
    return _stage_encoded(run, name, "query", (ids, texts), encoder, space)


def _stage_encoded(
    run: Run, name: str, side: Side, rows: tuple[list[str], list[str]], encoder: Encoder, space: Space
) -> _Staged:
    from harness.pipeline.work_vectors import encode_with, made_with
    from harness.vectors.writer import stage_update

    encode = encode_with(encoder, side, run, f"embed {name}")
    staged = stage_update(
        run.folder.vectors / name, *rows, encode, space, shard_rows=run.recipe.embed.shard_rows, key=made_with(encode)
    )
    told = {"stay": staged.stay, "encoded": staged.encoded, "leave": staged.leave}
    return _Staged(name, staged.store(), staged.commit, told)


def _stage_given(run: Run, name: str, store: VectorStore) -> _Staged:
    """Given vectors are read anew as a whole; whether one is the same is not looked at."""
    old = set(run.store(name).ids)
    stay = sum(id_ in old for id_ in store.ids)
    told = {"stay": stay, "new": len(store) - stay, "leave": len(old) - stay}
    logger.info("%s: read anew: %d ids stay, %d are new, %d leave", name, *told.values())
    return _Staged(name, store, lambda: replace_folder(store.folder, run.folder.vectors / name), told)


# --------------------------------------------------------------------------------------------- the new takes its place


def _put_in_place(run: Run, staging: Run, staged: Mapping[str, list[_Staged]]) -> None:
    replace_folder(staging.folder.data, run.folder.data)
    for parts in staged.values():
        for made in parts:
            made.place()
    replace_folder(staging.folder.index, run.folder.index)


def _end(
    controller: Controller, current: Mapping[str, str], stores: Mapping[str, list[str]], told: Mapping[str, Any]
) -> None:
    """Give the steps that stay current the keys that they have with the new files, in one write."""
    manifest, folder, now = controller.manifest, controller.folder, controller.keys
    renewed = {step: [folder.vectors / name for name in names] for step, names in stores.items()}
    renewed["embed"].append(folder.index)
    renewed["data"] = [folder.data]
    for step in current:
        if step in SEARCHED:
            continue
        entry = manifest.steps[step]
        entry.setdefault("made_under", entry["key"])
        entry["key"], entry["inputs"] = now[step], {name: now[name] for name in entry["inputs"]}
        if step in renewed:
            entry["outputs"] = signature(renewed[step], folder.root, entry["outputs"])
            entry["sources"] = controller.sources.get(step)
        elif step.startswith("mine."):
            entry["earlier_documents"] = True
    when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    manifest.updates.append({"when": when, "data_sha256": content_sha256(folder.data), "stores": told})
    manifest.updating = None
    manifest.write()
