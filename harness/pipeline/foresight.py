"""Whether a run fits the disk and the memory, told before it needs them. Imports no torch.

A run is refused only for what it surely needs; activations are only warned of.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from harness.pipeline.folder import RunFolder
from harness.pipeline.launch import processes_of, shares_out, usable_gpus
from harness.pipeline.machine import free_disk, gpu_memory, total_memory
from harness.pipeline.needs import Need, needs, peak, size_text
from harness.pipeline.plan import plan
from harness.pipeline.sizes import counts_of, models_of
from harness.pipeline.streams import stream_advice
from harness.pipeline.surroundings import trainings
from harness.recipe import Recipe
from harness.runtime.errors import InputError, Problem, gather_problems
from harness.runtime.process import logger

TIGHT = 0.8  # of what there is


def foresee(recipe: Recipe, folder: RunFolder, steps: Collection[str]) -> None:
    """Refuse a run that surely fits neither the disk nor the memory; warn of one that fits barely.

    Args:
        folder: where the run writes; what these steps have begun there and go on with needs no more room.
        steps: those that are to run; where the data is to be made, what lies there of it is not looked at.

    Raises:
        InputError: both numbers, what takes how much, and what to change.
    """
    counts, models = counts_of(recipe, None if "data" in steps else folder.data), models_of(recipe)
    wanted = needs(recipe, models, counts)
    judge(recipe, {name: need for name, need in wanted.items() if name in steps}, folder)
    if "embed.streams" in steps and (told := stream_advice(recipe, models["teacher"].dimension, folder.root)):
        logger.warning(told)


def judge(recipe: Recipe, wanted: Mapping[str, Need], folder: RunFolder) -> None:
    """``foresee`` for needs that are known."""
    gather_problems(lambda: _judge_disk(wanted, folder), lambda: _judge_memory(recipe, wanted))
    likely = sum(sum(need.likely.values()) for need in wanted.values())
    likely -= _bytes_below(folder.streams) + _bytes_below(folder.vectors / "streams")
    if likely > TIGHT * free_disk(folder.root):
        logger.warning("streams may take about %s of disk, less what are duplicates; %s are free", size_text(likely),
                       size_text(free_disk(folder.root)))  # fmt: skip


def _judge_disk(wanted: Mapping[str, Need], folder: RunFolder) -> None:
    parts = {f"{step} ({what})": size for step, need in wanted.items() for what, size in need.disk.items()}
    there = sum(_there(step, need, folder) for step, need in wanted.items())
    needed, free = sum(parts.values()) - there, free_disk(folder.root)
    if needed > free:
        raise InputError(
            Problem(f"not enough disk: the run still writes about {size_text(needed)}", where=str(folder.root),
                    got=f"{size_text(free)} free", allowed=_listed(parts),
                    next="make room, choose another disk with --output DIR, or write less: embed.dtype: float16, fewer "
                    "align.texts, training.keep: last")
        )  # fmt: skip
    if needed > TIGHT * free:
        logger.warning("disk is tight: the run writes about %s, %s are free", size_text(needed), size_text(free))


def _there(step: str, need: Need, folder: RunFolder) -> float:
    """How much of what a step needs lies there already and is gone on with; what is written anew counts in full."""
    stores = {"embed.base": ("base-documents", "base-queries"), "embed": ("documents", "queries"),
              "embed.more": ("more-documents",)}.get(step, ())  # fmt: skip
    grown = {
        "vectors": [*(folder.vectors / f"{name}{end}" for name in stores for end in ("", ".partial")),
                    *([folder.outside] if step == "embed.outside" else [])],
        "checkpoints": [folder.checkpoints(step.replace(".", "-"))],
        "hits": [folder.evaluations],
    }
    return sum(min(need.disk.get(what, 0), sum(map(_bytes_below, paths))) for what, paths in grown.items())


def _bytes_below(folder: Path) -> int:
    """The bytes that the files below a folder take on the disk; those with holes take less than their size."""
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # gone meanwhile
                stat = os.lstat(os.path.join(place, name))
                found += min(stat.st_size, 512 * stat.st_blocks)
    return found


def _judge_memory(recipe: Recipe, wanted: Mapping[str, Need]) -> None:
    """The machine's memory; what is trained or encoded with lies in a GPU's, where one is used."""
    gpus, total = usable_gpus(recipe.launch), total_memory()
    on_gpu = {"weights", "gradients and moments", "activations"} if gpus else set()
    places = {"this machine": (total, {step: _part(need, on_gpu, False) for step, need in wanted.items()})}
    if gpus and (gpu := gpu_memory(recipe.launch)):
        launch, steps = recipe.launch, [step for step in plan(recipe) if step.name in wanted]
        shares = {step.name: processes_of(step, launch, gpus) for step in steps if shares_out(step, launch)}
        places["a GPU"] = (gpu, {step: _part(need, on_gpu, True, shares.get(step, 1)) for step, need in wanted.items()})
    problems = []
    for place, (limit, by_step) in places.items():
        step = max(by_step, key=lambda name: sum(by_step[name].values()), default="")
        needed = sum(by_step[step].values()) if step else 0
        if needed > limit:
            problems.append(
                Problem(f"not enough memory: step {step!r} needs {size_text(needed)} at least", where=place,
                        got=f"{size_text(limit)} in all", allowed=_listed(by_step[step]),
                        next=_less_memory(recipe, step))
            )  # fmt: skip
    if problems:
        raise InputError(problems)
    for step, need in wanted.items():
        if not gpus and peak(need) > TIGHT * total:
            logger.warning("memory is tight: step %s may take %s of %s", step, size_text(peak(need)), size_text(total))


def _less_memory(recipe: Recipe, step: str) -> str:
    """What makes a step need less memory."""
    stage = step.removesuffix(".more")
    ways = ["take a machine with more, or a smaller model"]
    if stage in trainings(recipe):
        ways += ["lower batch_size, raise accumulate", "set token_table: frozen or gradient_checkpointing: true"]
        ways += ["train adapters (teacher.lora)"] if stage == "teacher" else []
        online = stage == "align" and recipe.align and recipe.align.targets == "online"
        ways += ["set align.targets: stored"] if online else []
    elif step.startswith("embed"):
        ways += ["weights in fp32 and vectors are what counts: no setting of a training helps"]
    if stage in ("align", "refine", "evaluate") and recipe.evaluate.searcher != "exact":
        ways += ["keep the index on disk (evaluate.searcher: exact, set before the step embed)"]
    return "; ".join(ways)


def _part(need: Need, on_gpu: Collection[str], there: bool, share: int = 1) -> dict[str, float]:
    """What of a step's memory lies on a GPU (``there``), or what does not; ``share``: processes that spread a model."""
    return {
        name: size if name == "activations" else size / share
        for name, size in need.memory.items() if (name in on_gpu) == there
    }  # fmt: skip


def _listed(parts: Mapping[str, float]) -> str:
    largest = sorted(parts.items(), key=lambda part: -part[1])
    return "room for " + ", ".join(f"{name} {size_text(size)}" for name, size in largest[:8] if size > 0)
