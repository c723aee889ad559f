"""What must hold between the data and what is evaluated, sliced and timed. Imports no torch."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace

from harness.data.columns import read_columns
from harness.data.folder import load_dataset
from harness.data.records import RESERVED, Dataset
from harness.encoders.sources import describe_model
from harness.engines.machine import available_cores
from harness.pipeline.folder import RunFolder
from harness.recipe import Recipe
from harness.runtime.errors import InputError, Problem, gather_problems
from harness.vectors.approximate import misfits, resolved


def check_languages(dataset: Dataset) -> None:
    """Refuse queries of a language whose name a summary row of the results has.

    Raises:
        InputError: with the first query of each such language.
    """
    first = {
        record.language: f"{name}, query {record.id}"
        for name, records in reversed(dataset.splits.items()) if name != "train" for record in reversed(records)
        if record.language in RESERVED
    }  # fmt: skip
    if first:
        raise InputError(
            Problem("a language has the name of a summary row", where=f"data: {query}", got=language,
                    allowed=f"any name but {', '.join(RESERVED)}", next="rename the language in the data")
            for language, query in first.items()
        )  # fmt: skip


def check_ann(recipe: Recipe, dataset: Dataset) -> None:
    """Refuse approximate indexes that so few documents can't train; of partitions, the smallest one counts.

    Raises:
        InputError: with all of them.
    """
    ann, teacher, documents = recipe.bench and recipe.bench.ann, recipe.teacher, dataset.documents
    if not ann:
        return
    sizes = Counter(documents.languages if dataset.search_within else ["all"] * len(documents))
    smallest, dimension = min(sizes.values()), teacher.dimension
    if dimension is None and teacher.model:
        dimension = describe_model(teacher.model, teacher.revision)[1]["dimension"]
    found: list[Problem] = []
    for kind in ann.indexes:
        own = resolved(kind, ann.parameters(kind), smallest, dimension or 4)
        where = f"bench.ann.{kind.replace('-', '_')}"
        found += [replace(problem, where=where) for problem in misfits(kind, own, smallest, dimension)]
    if found:
        raise InputError(found)


def check_slices(recipe: Recipe, dataset: Dataset, *, full: bool) -> None:
    """Refuse slices by columns that the queries don't have, or that can't be sliced by.

    Raises:
        InputError: with all of them.
    """
    wanted = {record.id for name, split in dataset.splits.items() if name != "train" for record in split}
    if recipe.evaluate.slices:
        read_columns(recipe.data, recipe.evaluate.slices, wanted, full=full)


def check_late_steps(recipe: Recipe, folder: RunFolder, steps: Collection[str]) -> None:
    """``check_slices`` by a preview and ``check_ann`` for what is among the steps to run, if the data is there already.

    Raises:
        InputError: with all that they refuse.
    """
    wanted: list[Callable[[Dataset], None]] = []
    if "data.slices" in steps:
        wanted.append(functools.partial(check_slices, recipe, full=False))
    if "bench.ann" in steps:
        wanted.append(functools.partial(check_ann, recipe))
    if wanted and "data" not in steps:
        dataset = load_dataset(folder.data)
        gather_problems(*(functools.partial(check, dataset) for check in wanted))


def thread_warnings(recipe: Recipe) -> list[str]:
    """Threads that this machine has no cores for; the run may be meant for another one."""
    bench = recipe.bench
    asked = (("bench.threads", bench), ("bench.ann.threads", bench and bench.ann))
    return [told for key, own in asked if own and (told := too_many_threads(key, own.threads))]


def too_many_threads(key: str, count: int | None) -> str | None:
    """The warning, where a setting asks for more threads than this machine has cores."""
    cores = available_cores()
    if count is None or count <= cores:
        return None
    return f"{key} is {count}, and this machine has {cores} cores: threads would wait for one another"
