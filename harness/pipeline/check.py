"""What a recipe will do and cost, before it does anything. Imports no torch.

Estimates are marked as such: memory from ``activations.py``, operations from ``compute.py``, time from matrix products
measured on this machine, GPU hours from the GPU's data sheet and an assumed utilisation.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from harness.data.dropped import dropped_of_set, dropped_texts, lost_warnings
from harness.data.grouping import joined_warnings
from harness.data.overlap import EVALUATION_SPLITS, overlap_warnings
from harness.data.prepare import load_dataset, prepare_data
from harness.data.records import Dataset
from harness.data.sampling import language_shares
from harness.pipeline.checks import check_data, check_devices, check_inputs, check_models, unknown_shares
from harness.pipeline.checks_evaluation import check_slices, thread_warnings
from harness.pipeline.compute import (
    UTILISATION,
    computes_in_bf16,
    fp32_advice,
    gpu_hours,
    gpu_of,
    has_bf16,
    operations,
    steps_in_fp32,
)
from harness.pipeline.folder import RunFolder, refuse_edited_recipe, refuse_foreign_folder, refuse_unwritable_folder
from harness.pipeline.foresight import judge
from harness.pipeline.launch import check_launch
from harness.pipeline.needs import Need, needs, peak, size_text
from harness.pipeline.plan import plan
from harness.pipeline.sizes import Counts, Model, counts_of, models_of
from harness.pipeline.sources import input_paths, refuse_changed_files, sources_of
from harness.pipeline.streams import preview_streams, stream_advice, stream_table
from harness.pipeline.surroundings import trainings
from harness.recipe import Recipe
from harness.runtime.errors import InputError, StaleArtefactError, gather_problems

_BF16_SPEED_UP = 2.0  # of matrix products, where the processor has bf16 instructions


def check_recipe(recipe: Recipe, *, full: bool = False, output: Path | None = None) -> list[Any]:
    """``describe_run`` for a recipe that is fine.

    Raises:
        InputError: what is wrong with data, models or ``output``, or too large for this machine: all of it.
    """
    parts, error = describe_run(recipe, full=full, output=output)
    if error:
        raise error
    return parts


def describe_run(
    recipe: Recipe, *, full: bool = False, output: Path | None = None
) -> tuple[list[Any], InputError | None]:
    """Validate the recipe's data and models and describe the run, as things that a rich console prints.

    Args:
        full: read every line of the data, not only the first million of each file.
        output: where the run would write; ``None``: ``outputs/NAME``.

    Returns:
        What can be told, and what is wrong with data, models or ``output``, or too large for this machine: all of it.
        Of a recipe that only does not fit this machine, everything is told.
    """
    folder, found = RunFolder(output or Path("outputs") / recipe.name), _Found()
    started = found.tried(lambda: check_launch(recipe))
    known = found.tried(lambda: check_models(recipe))
    there = found.tried(lambda: sources_of(recipe, models=False), lambda: check_inputs(recipe))
    found.tried(
        lambda: check_devices(recipe),
        lambda: refuse_foreign_folder(folder, input_paths(recipe)),
        lambda: refuse_unwritable_folder(folder),
        lambda: refuse_edited_recipe(folder),
    )
    models: dict[str, Model] = {}
    known = known and found.tried(lambda: models.update(models_of(recipe)))
    if not (known and there):
        return ([_model_table(models), _plan_table(recipe)] if known else []), found.error
    found.tried(lambda: refuse_changed_files(recipe, folder))
    fits = started and found.tried(lambda: judge(recipe, needs(recipe, models, counts_of(recipe, None)), folder))
    parts: list[Any] = []
    if not found.tried(lambda: parts.extend(_described(recipe, folder, models, full, found, (started, fits)))):
        parts = [_model_table(models), _plan_table(recipe)]
    return (parts, found.error) if found.error else ([*parts, "The recipe is fine."], None)


def _described(
    recipe: Recipe, folder: RunFolder, models: dict[str, Model], full: bool, found: _Found, told_of: tuple[bool, bool]
) -> list[Any]:
    """The tables of a run whose models are known; ``told_of``: whether it can be started, and may fit.

    Raises:
        InputError: data that can't be read.
    """
    started, fits = told_of
    with tempfile.TemporaryDirectory() as temporary:
        told = prepare_data(recipe.data, Path(temporary) / "data", full=full)
        dataset = load_dataset(Path(temporary) / "data")
        counts = counts_of(recipe, Path(temporary) / "data")
    streams = preview_streams(recipe, full=full)
    complete = told.get("complete", True) and all(preview.complete for preview in streams.values())
    sound = found.tried(lambda: check_data(recipe, dataset, complete=complete))
    found.tried(lambda: check_slices(recipe, dataset, full=full))
    parts: list[Any] = [_data_table(recipe, dataset, unknown_shares(recipe, dataset)), _model_table(models)]
    parts += [stream_table(streams)] if streams else []
    parts.append(_plan_table(recipe))
    if started and sound:
        wanted = needs(recipe, models, counts)
        if fits:  # else it is told already
            found.tried(lambda: judge(recipe, wanted, folder))
        parts.append(_cost_table(recipe, wanted, counts, models))
        if slow := fp32_advice(recipe, operations(recipe, counts, models)):
            parts.append(Text(f"Advice: {slow}."))
    if not complete:
        parts.append("Only the first million lines of a file were read: the figures are estimates (--full reads all).")
    if "teacher" in models and (told_more := stream_advice(recipe, models["teacher"].dimension, folder.root)):
        parts.append(Text(f"Advice: {told_more}."))
    parts += [Text(f"Warning: {warning}.") for warning in (*thread_warnings(recipe), *overlap_warnings(told["splits"]))]
    dropped = {name: dropped_of_set(told, name) for name in told["splits"] if name in EVALUATION_SPLITS}
    parts += [Text(f"Warning: {warning}.") for warning in (*joined_warnings(told["splits"]), *lost_warnings(dropped))]
    parts += [Text(f"dropped: {text}") for text in dropped_texts(told)]
    return parts


class _Found:
    """What is wrong, so far."""

    def __init__(self) -> None:
        self.error: InputError | None = None

    def tried(self, *checks: Callable[[], object]) -> bool:
        """Whether all of these checks pass; what they refuse is kept."""
        try:
            gather_problems(*checks)
        except InputError as error:
            self.error = error if self.error is None else _both(self.error, error)
            return False
        return True


def _both(first: InputError, second: InputError) -> InputError:
    stale = isinstance(first, StaleArtefactError) and isinstance(second, StaleArtefactError)
    return (StaleArtefactError if stale else InputError)(dict.fromkeys([*first.problems, *second.problems]))


# ------------------------------------------------------------------------------------------------------- tables


def _data_table(recipe: Recipe, dataset: Dataset, shares: dict[str, dict[str, float]]) -> Table:
    table = Table(title=f"{recipe.name}: data ({recipe.data.source})")
    table.add_column("language")
    splits = [name for name in ("train", "select", "report", "test") if name in dataset.splits]
    for column in ["documents", *splits, "training share", *(f"unknown tokens ({role})" for role in shares)]:
        table.add_column(column, justify="right")
    documents = Counter(dataset.documents.languages)
    queries = {name: Counter(record.language for record in dataset.splits[name]) for name in splits}
    sampled = language_shares(queries["train"], recipe.data.language_temperature) if queries.get("train") else {}
    for language in sorted({*documents, *(lang for counts in queries.values() for lang in counts)}):
        cells = [language, f"{documents[language]:,}", *(f"{queries[name][language]:,}" for name in splits)]
        cells.append(f"{sampled.get(language, 0):.1%}")
        cells += [f"{by_language[language]:.2%}" if language in by_language else "" for by_language in shares.values()]
        table.add_row(*(Text(cell) for cell in cells))  # never read as markup
    totals = [f"{sum(queries[name].values()):,}" for name in splits]
    table.add_section()
    table.add_row("all", f"{len(dataset.documents.ids):,}", *totals, "", *("" for _ in shares))
    return table


def _model_table(models: dict[str, Model]) -> Table:
    table = Table(title="models")
    table.add_column("role")
    for column in ("parameters", "without token table", "layers", "feed-forward", "dimension"):
        table.add_column(column, justify="right")
    for role, model in models.items():
        sizes = (model.parameters, model.body, model.layers, model.wide, model.dimension)
        table.add_row(role, *(f"{size:,}" for size in sizes))
    return table


def _plan_table(recipe: Recipe) -> Table:
    settings = trainings(recipe)
    table = Table(title="steps")
    for column in ("step", "what"):
        table.add_column(column)
    for step in plan(recipe):
        training = settings.get(step.name)
        what = (
            f"{training.steps:,} steps of {training.batch_size:,}, rate {training.learning_rate:g}" if training else ""
        )
        table.add_row(step.name, what)
    return table


# -------------------------------------------------------------------------------------------------------- costs


def _flops_per_second() -> float:
    """fp32 matrix products on this machine, measured for a fraction of a second."""
    a = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)
    a @ a
    started, rounds = time.perf_counter(), 8
    for _ in range(rounds):
        a @ a
    return rounds * 2 * 1024**3 / (time.perf_counter() - started)


def _disk(need: Need) -> float:
    """The bytes that a step writes, duplicates included where they will be left out."""
    return sum(need.disk.values()) + sum(need.likely.values())


def _cost_table(recipe: Recipe, wanted: Mapping[str, Need], counts: Counts, models: Mapping[str, Model]) -> Table:
    tokens, gpu = counts.tokens, gpu_of(recipe)
    rate = _flops_per_second()
    title = (
        f"estimates (this machine: {os.cpu_count()} cores, {rate / 1e9:,.0f} GFLOP/s; mean tokens with prompts: "
        f"query {tokens['query']:.1f}, document {tokens['document']:.1f})"
    )
    which = gpu.name if gpu.here else f"no GPU of known rate here; of one {gpu.name}"
    work = operations(recipe, counts, models)
    hours, slow = gpu_hours(recipe, work), [step for step in steps_in_fp32(recipe) if step in work]
    caption = (
        f"memory: of one process; what FSDP or ZeRO spreads is counted in whole. GPU hours ({which}): assumed are "
        f"{UTILISATION:.0%} of {gpu.peak / 1e12:,.0f} TFLOP/s in bf16"
        + (f", of {gpu.fp32 / 1e12:,.0f} in fp32 ({', '.join(slow)})" if slow else "")
    )
    table = Table(title=title, caption=caption)
    for column in ("", "memory", "disk", "time here", "GPU hours"):
        table.add_column(column, justify="right" if column else "left")
    fast = {name: _BF16_SPEED_UP if computes_in_bf16(recipe, training) and has_bf16() else 1
            for name, training in trainings(recipe).items()}  # fmt: skip
    for step, need in wanted.items():
        if step in work or _disk(need) > 0:
            times = ["", ""]
            if step in work:
                speed_up = fast.get(step.removesuffix(".more"), 1) if step.startswith("teacher") else fast.get(step, 1)
                times = [_time(work[step] / rate / speed_up), _hours(hours[step])]
            table.add_row(step, size_text(peak(need)), size_text(_disk(need)), *times)
    table.add_section()
    disk = sum(map(_disk, wanted.values()))
    table.add_row("all", size_text(max(map(peak, wanted.values()))), size_text(disk), "", _hours(sum(hours.values())))
    return table


def _hours(hours: float) -> str:
    """``0.04``, ``12``, ``1,234``."""
    return "< 0.01" if hours < 0.01 else f"{hours:,.0f}" if hours >= 10 else f"{hours:.2f}"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
