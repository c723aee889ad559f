"""Carrying out a recipe: which steps are to run, each under its key, one run per folder."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

from harness.pipeline.checks import check_models, check_surroundings
from harness.pipeline.checks_evaluation import check_late_steps
from harness.pipeline.folder import RunFolder, clear_leftovers, refuse_edited_recipe, refuse_foreign_folder
from harness.pipeline.foresight import foresee
from harness.pipeline.labels import label_sources
from harness.pipeline.launch import (
    alone_in,
    check_launch,
    command,
    printed,
    refuse_launcher,
    refuse_other_machines,
    require_processes,
    run_command,
    runs_inside,
    started_by_controller,
    usable_gpus,
)
from harness.pipeline.manifest import Manifest
from harness.pipeline.plan import Step, depends_on, keys, plan
from harness.pipeline.resolved import recipe_written
from harness.pipeline.sources import (
    input_paths,
    known_files,
    note_files,
    refuse_changed_documents,
    sources_of,
    sources_of_streams,
)
from harness.pipeline.stop import StopRequest, signals
from harness.pipeline.work import after_step, work_of_steps
from harness.recipe import Recipe
from harness.runtime.errors import InputError, Problem, StaleArtefactError, StoppedError, gather_problems
from harness.runtime.process import is_main_process, launched_processes, logger, read_json, remove_folder

T = TypeVar("T")


def default_output(recipe: Recipe, recipe_path: Path) -> Path:
    """``outputs/NAME``; a resolved recipe works in the folder that it lies in."""
    if recipe_path.name == "recipe.resolved.yaml":
        return recipe_path.parent
    return Path("outputs") / recipe.name


def _find(recipe: Recipe, names: str) -> list[Step]:
    """The planned steps that a step's name or a verb means.

    Raises:
        InputError: the recipe has no such step.
    """
    named = [step for step in plan(recipe) if step.name == names or (step.along and step.verb == names)]
    found = named or [step for step in plan(recipe) if step.verb == names]
    if not found:
        raise InputError(
            Problem(
                f"this recipe has no step {names!r}",
                allowed=", ".join(step.name for step in plan(recipe)),
                next="add the section to the recipe, or name one of these",
            )
        )
    return found


_STAGE_FOLDERS = {"teacher.more": "teacher-more"}


def _on_main(work: Callable[[], T]) -> T:
    """Do ``work`` in the main process; every process gets its result. Without a launcher torch is not needed."""
    if launched_processes() == 1:
        return work()
    from harness.runtime.distributed import on_main

    return on_main(work)


def _nothing() -> None:
    """What another process than the main one has to do, where only that one works."""


class Controller:
    """One recipe in one folder, as the main process sees it."""

    def __init__(self, recipe: Recipe, folder: RunFolder) -> None:
        self.recipe, self.folder = recipe, folder
        sources: dict[str, Any] = {}
        gather_problems(
            lambda: check_launch(recipe),
            lambda: sources.update(sources_of(recipe)),
            lambda: check_models(recipe),
            lambda: check_surroundings(recipe),
            lambda: refuse_foreign_folder(folder, input_paths(recipe)),
            lambda: refuse_edited_recipe(folder),
        )
        self.files = known_files(folder)
        sources |= label_sources(folder)
        sources |= sources_of_streams(recipe, self.files)  # last: what is new of large logs is read
        self.sources, self.keys = sources, keys(recipe, sources)
        self.manifest = Manifest(folder)
        self.ended: list[str] = []  # steps that this command did

    def refuse_other_documents(self, forced: Collection[str] = ()) -> None:
        """Refuse documents that an update left half changed, or that changed since; ``forced`` steps run anyway.

        Raises:
            StaleArtefactError: saying what to do.
        """
        if "data" not in forced:
            self.manifest.refuse_unfinished_update()
        refuse_changed_documents(self.recipe, self.sources, self.manifest, forced)

    def done(self, name: str) -> bool:
        """Whether a step is done under its key with whole outputs.

        What was mined among documents of before an update counts, unless something is still to be trained on it.
        """
        if not self.manifest.done(name, self.keys[name]) or self._lacks_queries(name):
            return False
        if not self.manifest.steps[name].get("earlier_documents"):
            return True
        return all(self.manifest.done(step.name, self.keys[step.name]) for step in plan(self.recipe)
                   if name in step.inputs)

    def _lacks_queries(self, name: str) -> bool:
        """Whether ``embed.base`` was done without the queries that mining searches with, which its key does not tell.

        Doing it again finds the documents' vectors there, and encodes the queries alone.
        """
        if name != "embed.base" or self.recipe.mine.base is None:
            return False
        return not any(path.startswith("vectors/base-queries/") for path in self.manifest.steps[name]["outputs"])

    def todo(self, steps: Sequence[Step]) -> list[Step]:
        """The steps that are not done under their key with whole outputs."""
        return [step for step in steps if not self.done(step.name)]

    def foresee(self, steps: Sequence[Step], forced: Collection[str] = ()) -> None:
        """Refuse, before they begin, steps that disk or memory surely can't hold; those that are done need nothing."""
        names = [step.name for step in steps if step.name in forced or self.todo([step])]
        foresee(self.recipe, self.folder, names)

    def require_inputs(self, step: Step, coming: Collection[str] = ()) -> None:
        """A step run alone needs its inputs done, or ``coming`` before it.

        Raises:
            InputError: naming the steps to run first.
        """
        planned = {s.name for s in plan(self.recipe)}
        missing = [n for n in step.inputs if n in planned and n not in coming and not self.done(n)]
        if missing:
            raise InputError(
                Problem(
                    f"step {step.name!r} needs {', '.join(missing)}, not done under this recipe",
                    where=str(self.folder.root),
                    next=f"harness run RECIPE --to {step.name}, or harness {missing[0].split('.')[0]} RECIPE first",
                )
            )

    def old_checkpoints(self, step: Step) -> Path | None:
        """The folder of a stage's checkpoints if they were made under other settings and the stage had ended.

        Raises:
            InputError: they are damaged. StaleArtefactError: an unfinished training under other settings lies there.
        """
        folder = self.folder.checkpoints(_STAGE_FOLDERS.get(step.name, step.name))
        states = sorted(folder.glob("step-*/state.json"))
        if not states:
            return None
        told = read_json(states[-1], next=f"delete {folder} to start afresh")
        found = str(told.get("fingerprint") if isinstance(told, dict) else None)
        if found == self.keys[step.name]:
            return None
        entry = self.manifest.steps.get(step.name, {})
        if found not in (entry.get("key"), entry.get("made_under")):
            raise StaleArtefactError(
                Problem(
                    f"an unfinished training of step {step.name!r} under other settings lies here",
                    where=str(folder),
                    got=f"key {found[:12]}",
                    allowed=f"key {self.keys[step.name][:12]}",
                    next=f"restore the recipe to finish it, or give it up with --from {step.name}",
                )
            )
        return folder

    def settle_checkpoints(self, step: Step, afresh: bool) -> None:
        """Remove the checkpoints of earlier settings. Raises what ``old_checkpoints`` raises, unless ``afresh``."""
        stage = self.folder.checkpoints(_STAGE_FOLDERS.get(step.name, step.name))
        old = stage if afresh else self.old_checkpoints(step)
        if old is not None and old.exists():
            logger.info("%s: the checkpoints of earlier settings are removed", step.name)
            remove_folder(old)

    def forget_dropped_steps(self) -> None:
        """Steps that the recipe no longer has are forgotten; an export that it no longer makes is removed."""
        for name, paths in self.folder.exports.items():
            if name in self.manifest.steps and name not in self.keys:
                for path in filter(Path.exists, paths):
                    logger.info("  %s: no longer in the recipe; %s is removed", name, path)
                    remove_folder(path) if path.is_dir() else path.unlink()
        self.manifest.keep_only(self.keys)

    def begin(self, step: Step, afresh: bool) -> None:
        """What comes before a step's work."""
        if step.trains:
            self.settle_checkpoints(step, afresh)
        logger.info("> %s", step.name)

    def end(self, step: Step, seconds: float, outputs: Sequence[Path]) -> None:
        """Record a step that is done."""
        self.manifest.record(step.name, self.keys, step.inputs, seconds, outputs, self.sources.get(step.name))
        self.ended.append(step.name)
        logger.info("  %s done in %.1f s", step.name, seconds)


def run_here(step: Step, run: Any, stop: StopRequest, controller: Controller | None, afresh: bool = False) -> None:
    """Do one step's work in this process, together with the other processes if the step is shared.

    Args:
        step, run: which step, of which ``context.Run``.
        controller: in the main process; None in the others.
        afresh: what an earlier training of the step left is removed.
    """
    _on_main(functools.partial(controller.begin, step, afresh) if controller else _nothing)
    started = time.monotonic()
    stop.patient = step.trains
    work: Callable[[], list[Path]] = lambda: work_of_steps()[step.name](run)  # noqa: E731
    outputs = work() if step.shared else [Path(p) for p in _on_main(lambda: [str(p) for p in work()])]
    stop.patient = False
    seconds = time.monotonic() - started
    _on_main(functools.partial(controller.end, step, seconds, outputs) if controller else _nothing)
    if stop.requested:
        raise StoppedError(f"stopped after step {step.name!r} was finished; the same command goes on from there")
    started = time.monotonic()
    if after_step(step.name, run) and controller:
        controller.manifest.evaluated(step.name, time.monotonic() - started)


def run_recipe(
    recipe: Recipe, output: Path, *, first: str | None = None, last: str | None = None
) -> tuple[RunFolder, list[str]]:
    """Run every step that is not done yet; ``first`` forces that step and what depends on it, ``last`` stops after it.

    Returns:
        The folder, and the names of the steps that ran (none: everything was done already).

    Raises:
        InputError: a wrong step, a folder in use, stale artefacts. RunError: a step failed.
    """
    refuse_launcher()
    folder = RunFolder(output)
    steps = plan(recipe)
    if last:
        steps = steps[: steps.index(_find(recipe, last)[-1]) + 1]
    named = _find(recipe, first) if first else []
    named = [step for step in named if step.name == first] or named[:1]
    forced = {name for step in named for name in depends_on(step.name, recipe)}
    if first and not any(step.name in forced for step in steps):
        raise InputError(Problem("--to stands before --from", got=f"--from {first} --to {last}", next="swap them"))
    with alone_in(output), signals(output) as stop:
        controller = Controller(recipe, folder)
        controller.refuse_other_documents(forced)
        kept = [step for step in steps if step.name not in forced]
        gather_problems(
            *(functools.partial(controller.todo, [step]) for step in kept),
            *(functools.partial(controller.old_checkpoints, step) for step in kept if step.trains),
        )
        clear_leftovers(folder)  # before room is looked for
        controller.foresee(steps, forced)
        refuse_other_machines(steps, recipe.launch)
        todo = [step.name for step in steps if step.name in forced or controller.todo([step])]
        check_late_steps(recipe, folder, todo)
        controller.forget_dropped_steps()
        controller.manifest.forget([step.name for step in steps if step.name in forced])
        with recipe_written(recipe, folder, controller.ended):
            note_files(folder, controller.files)
            for step in steps:
                if not controller.todo([step]):
                    logger.info("  %s: done already", step.name)
                    continue
                _start(step, controller, stop, afresh=step.name in forced)
                if step.name == "data":  # now it is known how much there is of it
                    controller.foresee(steps)
    return folder, controller.ended


def _start(step: Step, controller: Controller, stop: StopRequest, afresh: bool) -> None:
    """Run a step in this process or as a command of its own."""
    from harness.pipeline.context import Run

    recipe, folder = controller.recipe, controller.folder
    gpus = usable_gpus(recipe.launch)
    if runs_inside(step, recipe.launch, gpus):
        run_here(step, Run(recipe, folder, controller.keys, stop), stop, controller, afresh)
        return
    if afresh and step.trains:
        controller.settle_checkpoints(step, afresh=True)
    stop.patient = True  # the command is told to stop, and saves
    run_command(command(step, folder.recipe, recipe.launch, gpus), step, folder.root, stop)
    stop.patient = False
    controller.manifest = Manifest(folder)
    controller.ended.append(step.name)
    if stop.requested:
        raise StoppedError(f"stopped after step {step.name!r} was finished; the same command goes on from there")


def run_verb(recipe: Recipe, output: Path, verb: str, *, only: str | None = None) -> RunFolder:
    """Run the steps of one verb, whose inputs must be done; this is also what a launcher starts, in every process.

    Raises:
        InputError: inputs are missing, the folder is in use (unless the controller that holds it started us), or the
            processes are not those asked for.
    """
    folder, steps = RunFolder(output), _find(recipe, only or verb)
    gather_problems(*(functools.partial(require_processes, step, recipe.launch) for step in steps))
    if launched_processes() > 1:
        from harness.runtime.distributed import join_processes, pick_device

        join_processes(pick_device(recipe.launch.device))
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(signals(output))
        if is_main_process():
            stack.enter_context(alone_in(output))
        main: list[Controller] = []
        keys = _on_main(lambda: _open(recipe, folder, main, steps))
        if main and not started_by_controller(folder.root):
            stack.enter_context(recipe_written(recipe, folder, main[0].ended))
        for step in steps:
            if not _on_main(functools.partial(_wanted, main, step)):
                continue
            from harness.pipeline.context import Run

            run_here(step, Run(recipe, folder, keys, stop), stop, main[0] if main else None)
    if launched_processes() > 1:
        from harness.runtime.distributed import leave_processes

        leave_processes()
    return folder


def _open(recipe: Recipe, folder: RunFolder, main: list[Controller], steps: Sequence[Step]) -> dict[str, str]:
    """Put the main process's controller into ``main``; the steps' keys, for all processes."""
    controller = Controller(recipe, folder)
    controller.refuse_other_documents()
    if not started_by_controller(folder.root):
        for step in steps:
            controller.require_inputs(step, coming=[other.name for other in steps])
        check_late_steps(recipe, folder, [step.name for step in controller.todo(steps)])
        clear_leftovers(folder)
        note_files(folder, controller.files)
    main.append(controller)
    return controller.keys


def _wanted(main: list[Controller], step: Step) -> bool:
    """Whether a step whose inputs are done is to run."""
    main[0].require_inputs(step)
    if main[0].todo([step]):
        main[0].foresee([step])
        return True
    logger.info("  %s: done already", step.name)
    return False


def commands(recipe: Recipe, recipe_path: Path) -> list[str]:
    """Each step's command line, for ``--print``."""
    check_launch(recipe)
    gpus = usable_gpus(recipe.launch)
    return [printed(command(step, recipe_path, recipe.launch, gpus)) for step in plan(recipe)]
