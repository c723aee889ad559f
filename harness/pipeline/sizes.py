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
from harness.encoders.chain import read_chain
from harness.encoders.layers import select_layers
from harness.encoders.sources import describe_model, resolve_model
from harness.encoders.targets import adapter_size
from harness.encoders.tokens import read_tokenizer
from harness.recipe import DataSettings, EncoderSettings, OutsideSet, Recipe, StudentSettings
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
    rank: int = 0  # of these adapters
    key_heads: int = 0  # 0: as many as heads
    head_size: int = 0  # 0: what the hidden size leaves
    feed_forward: int = 0  # hidden units of a layer's network; 0: four times the hidden size
    gated: bool = False  # whether that network is gated, as in Qwen and Llama
    head_norms: bool = False  # whether queries and keys are normalised, as in Qwen3
    layer: int = 0  # parameters of one layer; 0: all but the token table is in layers
    bf16: bool = False  # whether the weights are stored so

    @property
    def head(self) -> int:
        """The width of one head."""
        return self.head_size or self.hidden // self.heads

    @property
    def keys(self) -> int:
        """The width of all key heads."""
        return (self.key_heads or self.heads) * self.head

    @property
    def wide(self) -> int:
        """Hidden units of a layer's feed-forward network."""
        return self.feed_forward or 4 * self.hidden


@dataclass(frozen=True)
class Counts:
    """How much data there is; 0 where nothing is known yet. ``tokens``: mean of a text, for each side."""

    documents: float = 0
    queries: float = 0  # in training
    evaluated: float = 0  # queries in all other sets
    unlabelled: float = 0
    text_bytes: float = 0
    outside: tuple[float, ...] = ()  # documents of each set from elsewhere, at least
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
        found["teacher"] = describe(teacher)
        if teacher.lora:
            size = adapter_size(resolve_model(teacher.model, teacher.revision, weights=False), teacher.lora)
            found["teacher"] = replace(found["teacher"], adapters=size, rank=teacher.lora.rank)
    if student.model != "teacher":
        found["student"] = describe(student)
    elif "teacher" in found:
        found["student"] = replace(found["teacher"], adapters=0, rank=0, bf16=False)
    if "student" in found:
        found["student"] = _cut(found["student"], student)
        found["student"] = _bridged(found["student"], found.get("teacher"))
    return found


def describe(settings: EncoderSettings) -> Model:
    """A model of the recipe by its size, before it is cut and without adapters.

    Raises:
        InputError: it can't be found or read.
    """
    _, told = describe_model(settings.model or "", settings.revision)
    dimension = settings.dimension or told["dimension"]
    cut = dimension * told["dimension"] * (dimension < told["dimension"])  # a Dense that leaves the first dimensions
    return Model(
        told["parameters"] + cut, told["parameters_without_embeddings"] + cut, told["layers"], told["hidden_size"],
        told["heads"], dimension, key_heads=told["key_value_heads"], head_size=told["head_size"],
        feed_forward=told["feed_forward"], gated=told["gated"], head_norms=told["head_norms"],
        layer=told["layer_parameters"], bf16=told["bf16"],
    )  # fmt: skip


def _cut(model: Model, student: StudentSettings) -> Model:
    """The same model with fewer layers and narrower feed-forward networks."""
    layers, layer = model.layers, model.layer or model.body // model.layers
    if student.layers is not None:
        layers = len(select_layers(model.layers, student.layers))
    gone, width = (model.layers - layers) * layer, model.wide
    if student.feed_forward is not None:
        width = min(student.feed_forward.width, model.wide)
        unit = 3 * model.hidden if model.gated else 2 * model.hidden + 1  # its weights, and its bias in a plain network
        gone, layer = gone + layers * (model.wide - width) * unit, layer - (model.wide - width) * unit
    return replace(model, parameters=model.parameters - gone, body=model.body - gone, layers=layers, layer=layer,
                   feed_forward=width)  # fmt: skip


def _bridged(model: Model, teacher: Model | None) -> Model:
    """The same model with a projection to the teacher's dimension, where it gives another one."""
    if teacher is None or teacher.dimension == model.dimension:
        return model
    more = model.dimension * teacher.dimension
    return replace(model, parameters=model.parameters + more, body=model.body + more, dimension=teacher.dimension)


# ---------------------------------------------------------------------------------------------------------- counts


def counts_of(recipe: Recipe, data: Path | None) -> Counts:
    """How much data a run has: exactly from its prepared folder ``data``, else at least so much from its source.

    Raises:
        StaleArtefactError: the prepared folder is damaged.
    """
    outside = tuple(_outside_documents(given) for given in recipe.evaluate.outside)
    if data is None or not all((data / name).is_file() for name in ("data.json", "queries.jsonl", "corpus.jsonl")):
        return replace(_counts_of_source(recipe.data), outside=outside)
    try:
        return replace(_counts_of_folder(recipe, data), outside=outside)
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
    size = sum(files[part].stat().st_size for part in ("corpus", "queries"))
    return Counts(documents=_surely_lines(files["corpus"]), text_bytes=SURE_SHARE * size)


def _outside_documents(given: OutsideSet) -> float:
    """What a set from elsewhere surely holds; nothing is known of gzipped files and of tasks of mteb."""
    corpus = Path(given.beir or "") / "corpus.jsonl"
    return _surely_lines(corpus) if given.beir and corpus.is_file() else 0


def _surely_lines(path: Path) -> float:
    """How many lines a file surely has, from the length of its first ones."""
    with open(path, "rb") as stream:
        head = [len(line) for line in islice(stream, SAMPLE)]
    return SURE_SHARE * path.stat().st_size / (sum(head) / len(head)) if head else 0


def _head(path: Path) -> list[str]:
    with open(path, encoding="utf-8") as stream:
        return [json.loads(line)["text"] for line in islice(stream, SAMPLE)]


def _mean_tokens(recipe: Recipe, texts: Mapping[str, list[str]]) -> dict[str, float]:
    """Mean tokens of a text of each side, its prompt included, under the teacher's tokenizer (or the student's)."""
    settings: EncoderSettings = recipe.teacher if recipe.teacher.model else recipe.student
    folder = resolve_model(settings.model or "", settings.revision, weights=False)
    chain = read_chain(folder)
    tokenizer, limit = read_tokenizer(folder), settings.max_length or chain.max_length or 512
    prompts = {**chain.prompts, **settings.prompts.model_dump(exclude_none=True)}
    found = {}
    for side, some in texts.items():
        encodings = tokenizer.encode_batch_fast([prompts.get(side, "") + text for text in some])
        found[side] = sum(min(len(encoding.ids), limit) for encoding in encodings) / max(len(some), 1)
    return found
