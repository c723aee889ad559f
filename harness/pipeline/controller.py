"""Carrying out a recipe: which steps are to run, each under its key, one run per folder."""

from __future__ import annotations

import contextlib
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from harness.pipeline.checks import check_models
from harness.pipeline.folder import Manifest, RunFolder, refuse_foreign_folder
from harness.pipeline.launch import (
    check_accelerate_files,
    command,
    run_command,
    runs_inside,
    started_by_controller,
    visible_gpus,
)
from harness.pipeline.plan import Step, depends_on, keys, plan
from harness.pipeline.sources import input_paths, sources_of
from harness.recipe import Recipe, dump_recipe
from harness.runtime.errors import InputError, Problem, RunError, StaleArtefactError, gather_problems
from harness.runtime.process import folder_lock, logger, read_json, remove_leftovers


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
    found = [step for step in plan(recipe) if step.name == names] or [s for s in plan(recipe) if s.verb == names]
    if not found:
        raise InputError(
            Problem(
                f"this recipe has no step {names!r}",
                allowed=", ".join(step.name for step in plan(recipe)),
                next="add the section to the recipe, or name one of these",
            )
        )
    return found


class StopRequest:
    """SIGTERM and Ctrl-C: a training polls ``requested`` and saves; anything else is interrupted at once."""

    def __init__(self) -> None:
        self.requested = False
        self.patient = False

    def __call__(self) -> bool:
        """Polled by a training between steps."""
        return self.requested

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Ask a training to stop; the second signal, or one outside a training, stops at once."""
        if self.patient and not self.requested:
            self.requested = True
            logger.info("stopping after this step; a checkpoint is being saved")
            return
        raise RunError(
            f"stopped by {signal.Signals(number).name}; the same command goes on from the last finished part"
        )


@contextlib.contextmanager
def _signals() -> Iterator[StopRequest]:
    request = StopRequest()
    previous = {number: signal.signal(number, request.handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _work() -> dict[str, Callable[[Any], list[Path]]]:
    """What each step does; imported late, for this is where torch comes in."""
    from harness.pipeline import work_evaluation as evaluation
    from harness.pipeline import work_training as training
    from harness.pipeline import work_vectors as vectors

    return {
        "data": vectors.do_data,
        "embed.base": vectors.do_embed_base,
        "mine.base": vectors.do_mine_base,
        "teacher": training.do_teacher,
        "embed": vectors.do_embed,
        "student": training.do_student,
        "align": training.do_align,
        "mine.refine": vectors.do_mine_refine,
        "refine": training.do_refine,
        "teacher.more": training.do_teacher_more,
        "embed.more": vectors.do_embed_more,
        "export": evaluation.do_export,
        "evaluate": evaluation.do_evaluate,
        "bench": evaluation.do_bench,
        "report": evaluation.do_report,
    }


_STAGE_FOLDERS = {"teacher.more": "teacher-more"}


class Controller:
    """One recipe in one folder."""

    def __init__(self, recipe: Recipe, folder: RunFolder) -> None:
        self.recipe, self.folder = recipe, folder
        sources: dict[str, Any] = {}
        gather_problems(
            lambda: check_accelerate_files(recipe.launch),
            lambda: sources.update(sources_of(recipe)),
            lambda: check_models(recipe),
            lambda: refuse_foreign_folder(folder, input_paths(recipe)),
        )
        self.keys = keys(recipe, sources)
        self.manifest = Manifest(folder)

    def todo(self, steps: Sequence[Step]) -> list[Step]:
        """The steps that are not done under their key with whole outputs."""
        return [step for step in steps if not self.manifest.done(step.name, self.keys[step.name])]

    def require_inputs(self, step: Step) -> None:
        """A step run alone needs its inputs done.

        Raises:
            InputError: naming the steps to run first.
        """
        planned = {s.name for s in plan(self.recipe)}
        missing = [n for n in step.inputs if n in planned and not self.manifest.done(n, self.keys[n])]
        if missing:
            raise InputError(
                Problem(
                    f"step {step.name!r} needs {', '.join(missing)}, not done under this recipe",
                    where=str(self.folder.root),
                    next=f"harness run RECIPE --to {step.name}, or harness {missing[0].split('.')[0]} RECIPE first",
                )
            )

    def _settle_checkpoints(self, step: Step, afresh: bool) -> None:
        """Checkpoints of other settings: removed once their stage had ended; refused while it had not.

        Raises:
            StaleArtefactError: an unfinished training under other settings lies in the folder.
        """
        import shutil

        folder = self.folder.checkpoints(_STAGE_FOLDERS.get(step.name, step.name))
        states = sorted(folder.glob("step-*/state.json"))
        if not states:
            return
        found = read_json(states[-1])["fingerprint"]
        if found == self.keys[step.name] and not afresh:
            return
        ended = self.manifest.steps.get(step.name, {}).get("key") == found
        if not ended and not afresh:
            raise StaleArtefactError(
                Problem(
                    f"an unfinished training of step {step.name!r} under other settings lies here",
                    where=str(folder),
                    got=f"key {found[:12]}",
                    allowed=f"key {self.keys[step.name][:12]}",
                    next=f"restore the recipe to finish it, or give it up with --from {step.name}",
                )
            )
        logger.info("%s: the checkpoints of earlier settings are removed", step.name)
        shutil.rmtree(folder)

    def forget_dropped_steps(self) -> None:
        """Steps that the recipe no longer has are forgotten; an export that it no longer makes is removed."""
        import shutil

        if "export" in self.manifest.steps and "export" not in self.keys:
            logger.info("  export: no longer in the recipe; %s is removed", self.folder.export)
            shutil.rmtree(self.folder.export, ignore_errors=True)
        self.manifest.keep_only(self.keys)

    def run_here(self, step: Step, stop: StopRequest, afresh: bool = False) -> None:
        """Run one step in this process and record it."""
        from harness.pipeline.context import Run

        if step.trains:
            self._settle_checkpoints(step, afresh)
        from harness.runtime.distributed import require_processes

        require_processes(1)
        started = time.monotonic()
        logger.info("> %s", step.name)
        stop.patient = step.trains
        outputs = _work()[step.name](Run(self.recipe, self.folder, self.keys, stop))
        stop.patient = False
        self.manifest.record(step.name, self.keys, step.inputs, time.monotonic() - started, outputs)
        if stop.requested:
            raise RunError(f"stopped after step {step.name!r} was finished; the same command goes on from there")
        logger.info("  %s done in %.1f s", step.name, time.monotonic() - started)


def run_recipe(
    recipe: Recipe, output: Path, *, first: str | None = None, last: str | None = None
) -> tuple[RunFolder, list[str]]:
    """Run every step that is not done yet; ``first`` forces that step and what depends on it, ``last`` stops after it.

    Returns:
        The folder, and the names of the steps that ran (none: everything was done already).

    Raises:
        InputError: a wrong step, a folder in use, stale artefacts. RunError: a step failed.
    """
    folder = RunFolder(output)
    steps = plan(recipe)
    if last:
        steps = steps[: steps.index(_find(recipe, last)[-1]) + 1]
    forced = set(depends_on(_find(recipe, first)[0].name, recipe)) if first else set()
    if first and not any(step.name in forced for step in steps):
        raise InputError(Problem("--to stands before --from", got=f"--from {first} --to {last}", next="swap them"))
    gpus = visible_gpus() if recipe.launch.device != "cpu" else 0
    with folder_lock(output):
        remove_leftovers(output)
        controller = Controller(recipe, folder)
        controller.forget_dropped_steps()
        controller.manifest.forget([step.name for step in steps if step.name in forced])
        dump_recipe(recipe, folder.recipe)
        ran = []
        with _signals() as stop:
            for step in steps:
                if not controller.todo([step]):
                    logger.info("  %s: done already", step.name)
                    continue
                if runs_inside(step, recipe.launch, gpus):
                    controller.run_here(step, stop, afresh=step.name in forced)
                else:
                    run_command(command(step, folder.recipe, recipe.launch, gpus), step.name, output)
                    controller.manifest = Manifest(folder)
                ran.append(step.name)
    return folder, ran


def run_verb(recipe: Recipe, output: Path, verb: str, *, only: str | None = None) -> RunFolder:
    """Run the steps of one verb, whose inputs must be done; this is also what ``accelerate launch`` starts.

    Raises:
        InputError: inputs are missing, the folder is in use (unless the controller that holds it started us).
    """
    folder = RunFolder(output)
    steps = _find(recipe, only or verb)
    with contextlib.nullcontext() if started_by_controller(output) else folder_lock(output), _signals() as stop:
        controller = Controller(recipe, folder)
        if not started_by_controller(output):
            dump_recipe(recipe, folder.recipe)
        for step in steps:
            controller.require_inputs(step)
            if controller.todo([step]):
                controller.run_here(step, stop)
            else:
                logger.info("  %s: done already", step.name)
    return folder


def commands(recipe: Recipe, recipe_path: Path) -> list[str]:
    """Each step's command line, for ``--print``."""
    gpus = visible_gpus() if recipe.launch.device != "cpu" else 0
    return [shlex.join(command(step, recipe_path, recipe.launch, gpus)) for step in plan(recipe)]
