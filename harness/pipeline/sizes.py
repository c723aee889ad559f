"""How large a run's models and data are, as far as its cost depends on it. Imports no torch.

Parameters come from safetensors headers, counts from the prepared data or, before there is any, from the size of the
source's files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from harness.data.beir import find_beir
from harness.encoders.chain import describe_folder, read_chain
from harness.encoders.layers import select_layers
from harness.encoders.sources import resolve_model
from harness.encoders.targets import adapter_size
from harness.encoders.tokens import read_tokenizer
from harness.recipe import DataSettings, EncoderSettings, Recipe
from harness.runtime.errors import Problem, StaleArtefactError
from harness.runtime.process import read_json

SAMPLE = 2_000  # texts whose tokens are counted
SURE_SHARE = 0.5  # of what a source's first lines promise


@dataclass(frozen=True)
class Model:
    """A model by its size, as far as a cost depends on it."""

    parameters: int
    body: int  # parameters without the token table: what a token passes through
    layers: int
    hidden: int
    heads: int
    dimension: int
    adapters: int = 0  # parameters of the adapters that are trained in place of all others


@dataclass(frozen=True)
class Counts:
    """How much data there is; 0 where nothing is known yet. ``tokens``: mean of a text, for each side."""

    documents: float = 0
    queries: float = 0  # in training
    evaluated: float = 0  # queries in all other sets
    unlabelled: float = 0
    text_bytes: float = 0
    tokens: Mapping[str, float] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------------------- models


def models_of(recipe: Recipe) -> dict[str, Model]:
    """``teacher`` and ``student`` by their size; a teacher without weights is absent.

    Raises:
        InputError: a model that can't be found or read.
    """
    found: dict[str, Model] = {}
    teacher, student = recipe.teacher, recipe.student
    if teacher.model:
        found["teacher"] = _describe(teacher)
        if teacher.lora:
            size = adapter_size(resolve_model(teacher.model, teacher.revision), teacher.lora)
            found["teacher"] = replace(found["teacher"], adapters=size)
    if student.model != "teacher":
        found["student"] = _describe(student)
    elif "teacher" in found:
        found["student"] = replace(found["teacher"], adapters=0)
    if "student" in found and student.layers is not None:
        found["student"] = _cut(found["student"], len(select_layers(found["student"].layers, student.layers)))
    return found


def _describe(settings: EncoderSettings) -> Model:
    told = describe_folder(resolve_model(settings.model or "", settings.revision))
    return Model(told["parameters"], told["parameters_without_embeddings"], told["layers"], told["hidden_size"],
                 told["heads"], settings.dimension or told["dimension"])  # fmt: skip


def _cut(model: Model, layers: int) -> Model:
    """The same model with fewer layers; what lies outside the layers is small and counted as one of them."""
    gone = int(model.body * (1 - layers / model.layers))
    return Model(model.parameters - gone, model.body - gone, layers, model.hidden, model.heads, model.dimension)


# ---------------------------------------------------------------------------------------------------------- counts


def counts_of(recipe: Recipe, data: Path | None) -> Counts:
    """How much data a run has: exactly from its prepared folder ``data``, else at least so much from its source.

    Raises:
        StaleArtefactError: the prepared folder is damaged.
    """
    if data is None or not all((data / name).is_file() for name in ("data.json", "queries.jsonl", "corpus.jsonl")):
        return _counts_of_source(recipe.data)
    try:
        return _counts_of_folder(recipe, data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StaleArtefactError(Problem("the prepared data is damaged", where=str(data), got=str(error),
                                         next="restore it, or make it again with --from data")) from None  # fmt: skip


def _counts_of_folder(recipe: Recipe, data: Path) -> Counts:
    texts = {"query": data / "queries.jsonl", "document": data / "corpus.jsonl"}
    told = read_json(data / "data.json")
    splits = {name: split["queries"] for name, split in told["splits"].items()}
    return Counts(
        documents=told["documents"]["count"], queries=splits.get("train", 0),
        evaluated=sum(count for name, count in splits.items() if name != "train"),
        unlabelled=told["unlabelled"]["count"], text_bytes=sum(path.stat().st_size for path in texts.values()),
        tokens=_mean_tokens(recipe, {side: _head(path) for side, path in texts.items()}),
    )  # fmt: skip


def _counts_of_source(data: DataSettings) -> Counts:
    """What a BEIR folder surely holds, from the length of its first lines; nothing is known of other sources."""
    if data.source != "beir" or not isinstance(data.path, str) or data.languages:
        return Counts()
    files, problems = find_beir(Path(data.path), data.qrels)
    if problems or any(files[part].suffix == ".gz" for part in ("corpus", "queries")):
        return Counts()
    sizes = {part: files[part].stat().st_size for part in ("corpus", "queries")}
    with open(files["corpus"], "rb") as stream:
        head = [len(line) for line in islice(stream, SAMPLE)]
    documents = sizes["corpus"] / (sum(head) / len(head)) if head else 0
    return Counts(documents=SURE_SHARE * documents, text_bytes=SURE_SHARE * sum(sizes.values()))


def _head(path: Path) -> list[str]:
    with open(path, encoding="utf-8") as stream:
        return [json.loads(line)["text"] for line in islice(stream, SAMPLE)]


def _mean_tokens(recipe: Recipe, texts: Mapping[str, list[str]]) -> dict[str, float]:
    """Mean tokens of a text of each side under the teacher's tokenizer (or the student's)."""
    settings: EncoderSettings = recipe.teacher if recipe.teacher.model else recipe.student
    folder = resolve_model(settings.model or "", settings.revision)
    tokenizer, limit = read_tokenizer(folder), settings.max_length or read_chain(folder).max_length or 512
    return {
        side: sum(min(len(encoding.ids), limit) for encoding in tokenizer.encode_batch_fast(some)) / max(len(some), 1)
        for side, some in texts.items()
    }
