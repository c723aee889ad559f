"""What a recipe will do and cost, before it does anything. Imports no torch.

Estimates are marked as such: memory after Korthikanti et al. 2022 (eq. 2, activations without recomputation),
time from matrix products measured on this machine, six floating-point operations a parameter and token in training
and two in encoding (Kaplan et al. 2020, table 1).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from harness.data.prepare import load_dataset, prepare_data
from harness.data.records import Dataset
from harness.data.sampling import language_shares
from harness.encoders.chain import describe_folder
from harness.encoders.layers import select_layers
from harness.encoders.sources import resolve_model
from harness.encoders.tokens import read_tokenizer
from harness.pipeline.checks import check_data, check_models, unknown_shares
from harness.pipeline.launch import check_launch
from harness.pipeline.plan import plan
from harness.pipeline.sources import sources_of
from harness.recipe import Recipe, TrainingSettings
from harness.runtime.errors import gather_problems

_BF16_SPEED_UP = 2.0  # of matrix products, where the processor has bf16 instructions


@dataclass(frozen=True)
class Model:
    """A model by its size, as far as a cost depends on it."""

    parameters: int
    body: int  # parameters without the token table: what a token passes through
    layers: int
    hidden: int
    heads: int
    dimension: int


def check_recipe(recipe: Recipe, *, full: bool = False) -> list[Any]:
    """Validate the recipe's data and models and describe the run, as things that a rich console prints.

    Raises:
        InputError: what is wrong with data or models, all of it.
    """
    gather_problems(
        lambda: sources_of(recipe), lambda: check_models(recipe), lambda: check_launch(recipe)
    )
    with tempfile.TemporaryDirectory() as temporary:
        told = prepare_data(recipe.data, Path(temporary) / "data", full=full)
        dataset = load_dataset(Path(temporary) / "data")
    check_data(recipe, dataset)
    shares = unknown_shares(recipe, dataset)
    models = _models(recipe)
    parts: list[Any] = [_data_table(recipe, dataset, shares), _model_table(models), _plan_table(recipe)]
    parts.append(_cost_table(recipe, dataset, models))
    if not told.get("complete", True):
        parts.append("Only the first million lines of a file were read: the figures are estimates (--full reads all).")
    for name, count in sorted(told.get("dropped", {}).items()):
        if count:
            parts.append(f"dropped: {count:,} {name.replace('_', ' ')}")
    parts.append("The recipe is fine.")
    return parts


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


def _models(recipe: Recipe) -> dict[str, Model]:
    found: dict[str, Model] = {}
    teacher = recipe.teacher
    if teacher.model:
        found["teacher"] = _describe(resolve_model(teacher.model, teacher.revision), teacher.dimension)
    student = recipe.student
    if student.model != "teacher":
        found["student"] = _describe(resolve_model(student.model, student.revision), None)
    elif "teacher" in found:
        found["student"] = found["teacher"]
    if "student" in found and student.layers is not None:
        found["student"] = _cut(found["student"], len(select_layers(found["student"].layers, student.layers)))
    return found


def _describe(folder: Path, dimension: int | None) -> Model:
    from harness.runtime.process import read_json

    told, config = describe_folder(folder), read_json(folder / "config.json")
    heads = config.get("num_attention_heads") or config.get("n_heads") or 1
    return Model(
        told["parameters"], told["parameters_without_embeddings"], told["layers"], told["hidden_size"], heads,
        dimension or told["dimension"],
    )  # fmt: skip


def _cut(model: Model, layers: int) -> Model:
    """The same model with fewer layers; what lies outside the layers is small and counted as one of them."""
    gone = int(model.body * (1 - layers / model.layers))
    return Model(model.parameters - gone, model.body - gone, layers, model.hidden, model.heads, model.dimension)


def _model_table(models: dict[str, Model]) -> Table:
    table = Table(title="models")
    table.add_column("role")
    for column in ("parameters", "without token table", "layers", "dimension"):
        table.add_column(column, justify="right")
    for role, model in models.items():
        table.add_row(role, f"{model.parameters:,}", f"{model.body:,}", str(model.layers), str(model.dimension))
    return table


def _trainings(recipe: Recipe) -> dict[str, TrainingSettings]:
    stages = {
        "teacher": recipe.teacher if recipe.teacher.train else None,
        "align": recipe.align,
        "refine": recipe.refine,
    }
    return {name: stage.training for name, stage in stages.items() if stage and stage.training}


def _plan_table(recipe: Recipe) -> Table:
    trainings = _trainings(recipe)
    table = Table(title="steps")
    for column in ("step", "what"):
        table.add_column(column)
    for step in plan(recipe):
        training = trainings.get(step.name)
        what = (
            f"{training.steps:,} steps of {training.batch_size:,}, rate {training.learning_rate:g}" if training else ""
        )
        table.add_row(step.name, what)
    return table


# -------------------------------------------------------------------------------------------------------- costs


def _mean_tokens(recipe: Recipe, dataset: Dataset, sample: int = 2_000) -> dict[str, float]:
    """Mean tokens of a query and of a document under the teacher's tokenizer (or the student's)."""
    name, settings = (
        (recipe.teacher.model, recipe.teacher) if recipe.teacher.model else (recipe.student.model, recipe.student)
    )
    tokenizer = read_tokenizer(resolve_model(name or "", settings.revision))
    queries = [r.text for records in dataset.splits.values() for r in records]
    random = np.random.default_rng(0)
    found = {}
    for side, texts in {"query": queries, "document": dataset.documents.texts}.items():
        chosen = [texts[i] for i in random.permutation(len(texts))[:sample]]
        lengths = [len(e.ids) for e in tokenizer.encode_batch_fast(chosen)]
        found[side] = float(np.minimum(lengths, settings.max_length or 512).mean())
    return found


def _flops_per_second() -> float:
    """fp32 matrix products on this machine, measured for a fraction of a second."""
    a = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)
    a @ a
    started, rounds = time.perf_counter(), 8
    for _ in range(rounds):
        a @ a
    return rounds * 2 * 1024**3 / (time.perf_counter() - started)


def _has_bf16() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "avx512_bf16" in cpuinfo.read_text()


def activation_bytes(model: Model, rows: int, tokens: float) -> float:
    """Bytes kept for the backward pass of ``rows`` texts of ``tokens`` tokens (Korthikanti et al. 2022, eq. 2)."""
    return model.layers * tokens * rows * model.hidden * (34 + 5 * model.heads * tokens / model.hidden)


def _cost_table(recipe: Recipe, dataset: Dataset, models: dict[str, Model]) -> Table:
    tokens = _mean_tokens(recipe, dataset)
    rate = _flops_per_second() * (_BF16_SPEED_UP if _has_bf16() else 1)
    table = Table(title=f"estimates (this machine: {os.cpu_count()} cores, {rate / 1e9:,.0f} GFLOP/s; mean tokens: "
                        f"query {tokens['query']:.1f}, document {tokens['document']:.1f})")  # fmt: skip
    for column in ("", "memory", "disk", "time here"):
        table.add_column(column, justify="right" if column else "left")
    for name, training in _trainings(recipe).items():
        model = models["teacher" if name == "teacher" else "student"]
        texts = {"query": training.batch_size}
        if name == "teacher":
            texts["document"] = training.batch_size * (1 + recipe.teacher.hard_negatives)
        used = sum(count * tokens[side] for side, count in texts.items())
        memory = (
            16 * model.parameters
            + sum(activation_bytes(model, n, tokens[side]) for side, n in texts.items()) / training.accumulate
        )
        table.add_row(
            name, _size(memory), _size(16 * model.parameters), _time(6 * model.body * used * training.steps / rate)
        )
    if "teacher" in models:
        documents, queries = len(dataset.documents.ids), len(dataset.splits["train"])
        work = documents * tokens["document"] + (queries + documents) * tokens["query"]
        width = 4 if recipe.embed.dtype == "float32" else 2
        disk = (2 * documents + queries + documents) * models["teacher"].dimension * width
        seconds = 2 * models["teacher"].body * work / rate * (_BF16_SPEED_UP if _has_bf16() else 1)
        table.add_row("embed", _size(4 * models["teacher"].parameters), _size(disk), _time(seconds))
    return table


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
