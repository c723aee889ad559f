"""The recipe: one strict YAML file for a whole run. Imports no torch, so that a wrong recipe answers at once.

Every key has a type, a range and a default; an unknown key is refused with the nearest valid name; combinations
that can't work are refused with the reason. ``load_recipe`` lists all problems together.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.runtime.errors import InputError, Problem
from harness.runtime.process import atomic_file

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]
Pooling = Literal["mean", "cls", "lasttoken"]
TextKind = Literal["queries", "documents", "unlabelled"]
SetName = Literal["select", "report", "test"]
Metric = Literal["P@1", "P@10", "nDCG@10", "MRR@10", "Recall@100"]
SYSTEMS = ("teacher", "teacher-base", "teacher-more", "student-untrained", "student-aligned", "student-refined")
System = Literal["teacher", "teacher-base", "teacher-more", "student-untrained", "student-aligned", "student-refined"]


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors, a number in quotes is not a number, values don't change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


# -------------------------------------------------------------------------------------------------------- data


class Texts(Section):
    """A file of unlabelled query texts: one a line (``.txt``), or JSONL / Parquet with ``text`` and ``lang``."""

    path: Name
    language: str | None = None


class Columns(Section):
    """The names of the columns in a pairs file or a Hugging Face data set."""

    query: Name = "query"
    positive: Name = "positive"
    negatives: Name = "negatives"
    language: Name = "lang"
    score: Name = "score"
    weight: Name = "weight"
    group: Name = "group"


class QrelsNames(Section):
    """Which qrels file (without ``.tsv``) plays which part; ``test`` may be absent."""

    train: Name = "train"
    dev: Name = "dev"
    test: str | None = "test"


class DataSettings(Section):
    """Where texts come from and how they are split and grouped.

    ``source``: ``emoji`` (built from the installed package), ``beir`` (a folder), ``pairs`` (JSONL or Parquet files of
    query, positive, negatives, lang, score, weight, group) or ``huggingface`` (a data set id, read as pairs).
    """

    source: Literal["emoji", "beir", "pairs", "huggingface"]
    path: str | list[Name] | None = None
    dev_path: str | list[Name] | None = None
    dataset: str | None = None
    subset: str | None = None
    dataset_split: Name = "train"
    revision: str | None = None
    columns: Columns = Columns()
    qrels: QrelsNames = QrelsNames()
    hold_out: Share = 0.1
    select_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    languages: Annotated[list[Name], Field(min_length=1)] | None = None
    group: str | None = None
    search_within: Literal["lang"] | None = None
    equivalent: str | None = None
    unlabelled: list[Texts] = []
    language_temperature: Annotated[float, Field(ge=0, le=1)] = 1.0
    max_unknown_share: Share = 0.02
    on_error: Literal["stop", "skip"] = "stop"


# ---------------------------------------------------------------------------------------------------- training


class TrainingSettings(Section):
    """What the trainer core reads; ``batch_size`` is the global batch of one optimiser step."""

    steps: Positive
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: PositiveFloat
    warmup_share: Share = 0.1
    decay: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: NonNegativeFloat = 0.01
    max_grad_norm: PositiveFloat = 1.0
    accumulate: Positive = 1
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    token_table: Literal["trained", "frozen"] = "trained"
    chunks: Positive = 8
    evaluate_every: Count = 0
    checkpoint_every: Count = 0
    keep: Literal["best", "last"] = "best"


# ------------------------------------------------------------------------------------------- teacher, documents


class Prompts(Section):
    """What is put before a text on either side; ``null`` keeps the model's own."""

    query: str | None = None
    document: str | None = None


class VectorFiles(Section):
    """Vectors that exist already: ``npy`` with a text file of ids, ``parquet`` (id, vector), ``faiss`` with ids."""

    format: Literal["npy", "parquet", "faiss"]
    path: Name
    ids: str | None = None


class EncoderSettings(Section):
    """Which checkpoint and how it turns a text into a vector; ``null`` keeps what the checkpoint says.

    ``model``: a local folder, a hub id, or ``package:NAME`` for weights carried by an installed Python package.
    """

    model: str | None = None
    sha256: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    prompts: Prompts = Prompts()
    pooling: Pooling | None = None
    max_length: Positive | None = None
    dimension: Positive | None = None


class TeacherSettings(EncoderSettings):
    """Stage 1. ``dimension`` truncates to a Matryoshka dimension; ``temperature`` is that of its contrastive loss."""

    train: bool = True
    temperature: PositiveFloat = 0.05
    hard_negatives: Count = 0
    training: TrainingSettings | None = None
    query_vectors: VectorFiles | None = None


class DocumentSettings(Section):
    """Bring your own document vectors; ``sample`` of them are re-encoded by the teacher and must match."""

    vectors: VectorFiles | None = None
    sample: Positive = 64
    min_cosine: Annotated[float, Field(gt=0, le=1)] = 0.999


class EmbedSettings(Section):
    """How vectors are written: storage type, rows a shard, tokens a batch."""

    dtype: Literal["float32", "float16"] = "float32"
    shard_rows: Positive = 100_000
    batch_tokens: Positive = 16_384


class MineSettings(Section):
    """Top-k of the index without the positives; the first ``skip`` ranks may be left out as likely false negatives."""

    top_k: Positive = 50
    skip: Count = 0
    keep: Positive = 16


class MineSections(Section):
    """``base``: with the untrained teacher, for its training; ``refine``: with the teacher, for the student."""

    base: MineSettings | None = None
    refine: MineSettings | None = None


# ----------------------------------------------------------------------------------------------------- student


class LayerRule(Section):
    """Keep ``count`` layers: the ``first``, the ``last``, or the first one and the last ones (``middle-skip``)."""

    rule: Literal["first", "last", "middle-skip"]
    count: Positive


class StudentSettings(EncoderSettings):
    """``model``: any encoder, or ``teacher``. ``layers``: from 1, or a rule. ``ridge``: the bridge's penalty."""

    model: str = "teacher"
    layers: Annotated[list[Positive], Field(min_length=1)] | LayerRule | None = None
    ridge: NonNegativeFloat = 1e-3


class AlignSettings(Section):
    """Stage 2: L2 to the teacher's query vectors over the named kinds of text."""

    texts: Annotated[list[TextKind], Field(min_length=1)] = ["queries", "documents"]
    training: TrainingSettings


class RefineSettings(Section):
    """Stage 3: contrastive against frozen document vectors.

    ``candidates``: ``all`` documents, ``sampled`` (positives in the batch + mined + ``sampled`` random ones), or
    ``auto`` (all while scores of a batch over all documents stay below ``all_limit``). ``anchor`` weighs the L2 to the
    teacher's query vector.
    """

    temperature: PositiveFloat = 0.05
    anchor: NonNegativeFloat = 1.0
    candidates: Literal["auto", "all", "sampled"] = "auto"
    all_limit: Positive = 200_000
    sampled: Count = 1024
    mined: Count = 0
    training: TrainingSettings


# -------------------------------------------------------------------------------------------- after the training


class ExportSettings(Section):
    """What is deployed: the refined student as a sentence-transformers folder."""

    system: Literal["student-refined", "student-aligned"] = "student-refined"


class EvaluateSettings(Section):
    """Which systems search which sets; ``reference`` is the denominator of every recovery."""

    systems: Annotated[list[System], Field(min_length=1)] = [
        "teacher", "student-untrained", "student-aligned", "student-refined"
    ]  # fmt: skip
    reference: System = "teacher"
    sets: Annotated[list[SetName], Field(min_length=1)] | None = None
    select_metric: Metric = "nDCG@10"
    searcher: Literal["auto", "faiss", "exact"] = "auto"
    depth: Annotated[int, Field(ge=10)] = 100
    resamples: Annotated[int, Field(ge=100)] = 10_000
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95


class BenchSettings(Section):
    """One process, an idle machine: batch-1 latency, systems interleaved, and throughput."""

    systems: Annotated[list[System], Field(min_length=1)] = ["teacher", "student-refined"]
    queries_per_language: Positive = 50
    warmup: Positive = 10
    repeats: Positive = 3
    batch_sizes: Annotated[list[Positive], Field(min_length=1)] = [32, 128]
    threads: Positive | None = None


class Bars(Section):
    """What the run must reach; the report says which bars were reached. ``null`` sets none."""

    teacher: dict[Metric, Share] = {}
    recovery: dict[Metric, NonNegativeFloat] = {}
    stage_gain: bool = True
    latency_ratio: PositiveFloat | None = None


class ReportSettings(Section):
    """``warn_teacher_gain``: a teacher that gained more than this (absolute) in its last quarter was undertrained."""

    bars: Bars = Bars()
    warn_teacher_gain: NonNegativeFloat = 0.03


class LaunchSettings(Section):
    """Where steps run; left out of every step's key. ``accelerate``: step name -> accelerate configuration file."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: Positive | Literal["auto"] = "auto"
    threads: Positive | None = None
    accelerate: dict[str, str] = {}


class TrackingSettings(Section):
    """Where metrics go besides ``logs/*.jsonl``."""

    trackers: list[Literal["wandb", "tensorboard"]] = []
    project: Name = "harness"


class Recipe(Section):
    """A complete run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Count = 0
    data: DataSettings
    teacher: TeacherSettings
    documents: DocumentSettings = DocumentSettings()
    mine: MineSections = MineSections()
    embed: EmbedSettings = EmbedSettings()
    student: StudentSettings = StudentSettings()
    align: AlignSettings | None = None
    refine: RefineSettings | None = None
    export: ExportSettings | None = None
    evaluate: EvaluateSettings = EvaluateSettings()
    bench: BenchSettings | None = BenchSettings()
    report: ReportSettings = ReportSettings()
    launch: LaunchSettings = LaunchSettings()
    tracking: TrackingSettings = TrackingSettings()


# ----------------------------------------------------------------------------------------------- reading YAML


class _RecipeLoader(yaml.SafeLoader):
    """Safe YAML that reads ``2e-4`` as a number (YAML 1.1 wants ``2.0e-4``), a date as text, and no key twice."""

    # The class's own table; dates would arrive as objects, and an impossible one as a bare ValueError.
    yaml_implicit_resolvers = {
        first: [entry for entry in entries if entry[0] != "tag:yaml.org,2002:timestamp"]
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.composer.ComposerError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
            seen.add((key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key))
        return node


class _RecipeDumper(yaml.SafeDumper):
    """Puts into quotes what would not read back as it is: ``12e4567``, a revision, or line breaks of any alphabet."""

    def represent_text(self, text: str) -> yaml.Node:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_RecipeDumper.add_representer(str, _RecipeDumper.represent_text)

for _side in (_RecipeLoader, _RecipeDumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML safely: no tags that build Python objects.

    Raises:
        InputError: it is no YAML, or asks for more than plain values; names line and column.
    """
    try:
        loader = _RecipeLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        plain = "maps, lists, text, numbers, true and false"
        raise InputError(Problem("not a plain YAML file", where=place, got=problem, allowed=plain)) from None


def apply_overrides(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of ``tree`` with ``a.b=value`` assignments, the value read as YAML; sections on the way are created.

    Raises:
        InputError: an assignment without ``=`` or through something that is no section.
    """
    tree, problems = dict(tree), []
    for text in overrides:
        path, equals, value = text.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            problems.append(Problem("not an assignment", where=f"--set {text}", allowed="--set section.key=value"))
            continue
        node = tree
        for key in keys[:-1]:
            child = {} if node.get(key) is None else node[key]
            # A copy: two sections may be one object, by a YAML anchor.
            node[key] = node = dict(child) if isinstance(child, dict) else child
            if not isinstance(node, dict):
                hint = f"give the whole value: --set {key}=..."
                problems.append(Problem(f"{key!r} is a value, not a section", where=f"--set {text}", next=hint))
                break
        else:
            try:
                node[keys[-1]] = parse_yaml(value, f"--set {text}")
            except InputError as error:
                problems.extend(error.problems)
    if problems:
        raise InputError(problems)
    return tree


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and validate a recipe.

    Raises:
        InputError: with every problem found: unknown keys (and the nearest valid name), wrong types, values out of
            range, combinations that can't work.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        hint = f"did you mean {path.parent / near[0]}?" if near else "give a recipe, e.g. recipes/quickstart.yaml"
        raise InputError(Problem("no such recipe", where=str(path), next=hint)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Problem("the recipe can't be read as UTF-8 text", where=str(path), got=str(error))) from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise InputError(Problem("a recipe is a map of sections", where=str(path), got=type(tree).__name__))
    return validate_recipe(apply_overrides(tree, overrides), str(path))


def validate_recipe(tree: Mapping[str, Any], where: str) -> Recipe:
    """Turn a parsed tree into a ``Recipe``; raises ``InputError`` with all problems."""
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise InputError(_describe(error.errors(include_url=False), tree, where)) from None
    problems = [Problem(what, where=f"{where}: {key}", next=hint) for key, what, hint in impossible(recipe)]
    if problems:
        raise InputError(problems)
    return recipe


def dump_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write the resolved recipe; reading it again gives an equal recipe."""
    with atomic_file(path, "w") as stream:
        yaml.dump(recipe.model_dump(mode="json"), stream, _RecipeDumper, sort_keys=False, allow_unicode=True)


Key = tuple[int | str, ...]
_EXPECTED = {
    "int_type": "a whole number", "float_type": "a number", "string_type": "text", "bool_type": "true or false",
    "list_type": "a list", "dict_type": "a section", "finite_number": "a finite number",
}  # fmt: skip


def _fields_at(key: Key) -> list[str]:
    """The valid keys of the section at ``key``; none if no section stands there."""
    model: Any = Recipe
    for part in key:
        if isinstance(part, int):  # an element of a list of sections
            continue
        field = model.model_fields.get(part)
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, Section)), None)
        if model is None:
            return []
    return sorted(model.model_fields)


def _place(details: Any, tree: Any) -> tuple[Key, Key | None]:
    """Where an error stands in the file, and the key of the union that it came from, if any.

    pydantic puts names of its own between the keys, one for each alternative of a union; these are in no file.
    """
    node, key, union = tree, [], None
    for part in details["loc"]:
        if part in node if isinstance(node, Mapping) else isinstance(node, list) and isinstance(part, int):
            node = node[part]
            key.append(part)
        elif details["type"] == "missing" and len(key) + (union is not None) == len(details["loc"]) - 1:
            key.append(part)
        else:
            union = tuple(key)
    return tuple(key), union


def _describe(errors: Sequence[Any], tree: Any, where: str) -> list[Problem]:
    """pydantic's errors in our words. Where one alternative of a union nearly fits, the others are silent."""
    placed = [(*_place(details, tree), details) for details in errors]
    found: dict[tuple[Key, Key | None, Any], Problem] = {}
    for key, union, details in placed:
        if key == union and any(u == union and len(k) > len(key) for k, u, _ in placed):
            continue
        problem = _problem(key, details, f"{where}: {'.'.join(map(str, key))}")
        slot = (key, union, None if key == union else details["type"])
        first = found.get(slot)
        found[slot] = replace(first, allowed=f"{first.allowed} or {problem.allowed}") if first else problem
    return list(found.values())


def _problem(key: Key, details: Any, where: str) -> Problem:
    """One pydantic error at ``key``."""
    kind, given, name = details["type"], details["input"], str(key[-1])
    if kind == "missing":
        return Problem(f"the key {name!r} is missing", where=where, next=f"add {'.'.join(map(str, key))}")
    if kind == "extra_forbidden":
        valid = _fields_at(key[:-1])
        near = difflib.get_close_matches(name, valid, 1)
        hint = f"did you mean {near[0]!r}?" if near else "remove it"
        return Problem(f"unknown key {name!r}", where=where, allowed=", ".join(valid), next=hint)
    allowed = re.sub(r"^\w+ should (be |have |match )?| after validation, .*", "", details["msg"])
    allowed = _EXPECTED.get(kind, allowed)
    if kind == "model_type":
        allowed = f"a section with {', '.join(_fields_at(key))}"
    hint = ""
    if kind in ("int_type", "float_type") and isinstance(given, str) and re.fullmatch(r"[-+\d._eE]+", given):
        hint = "write the number without quotes"
    elif kind == "string_type" and isinstance(given, bool | int | float):
        hint = "put it in quotes"
    elif kind == "literal_error":
        near = difflib.get_close_matches(str(given), re.findall(r"'([^']*)'", details["ctx"]["expected"]), 1)
        hint = f"did you mean {near[0]!r}?" if near else ""
    return Problem("value refused", where, "nothing" if given is None else _short.repr(given), allowed, hint)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 120


# ------------------------------------------------------------------------------------- impossible combinations


def impossible(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Combinations that can't work, as (key, reason, what to do)."""
    found = [*_impossible_data(recipe.data), *_impossible_models(recipe), *_impossible_stages(recipe)]
    lists = {
        "data.languages": recipe.data.languages, "align.texts": recipe.align and recipe.align.texts,
        "student.layers": recipe.student.layers, "evaluate.systems": recipe.evaluate.systems,
        "evaluate.sets": recipe.evaluate.sets, "bench.systems": recipe.bench and recipe.bench.systems,
    }  # fmt: skip
    for key, values in lists.items():
        if isinstance(values, list) and len(set(values)) < len(values):
            found.append((key, "one of them stands twice", "name each once"))
    return found


def _impossible_data(data: DataSettings) -> list[tuple[str, str, str]]:
    found = []
    if data.source in ("beir", "pairs") and not data.path:
        found.append(("data.path", f"data.source {data.source!r} needs a path", "add data.path: --set data.path=DIR"))
    if data.source == "beir" and isinstance(data.path, list):
        found.append(("data.path", "a BEIR data set is one folder, not a list", "give one path"))
    if data.source == "huggingface" and not data.dataset:
        found.append(("data.dataset", "data.source 'huggingface' needs a data set id", "add data.dataset"))
    if data.source in ("pairs", "huggingface") and not data.dev_path and data.hold_out == 0:
        found.append(("data.hold_out", "nothing is left to evaluate on", "set data.hold_out above 0, or data.dev_path"))
    return found


def _impossible_models(recipe: Recipe) -> list[tuple[str, str, str]]:
    teacher, student, found = recipe.teacher, recipe.student, []
    if teacher.train and teacher.training is None:
        found.append(("teacher.training", "a teacher that is trained needs a training section",
                      "add teacher.training, or set teacher.train: false"))
    if teacher.train and recipe.documents.vectors:
        found.append(("documents.vectors", "existing document vectors fix the teacher: training would move its space",
                      "set teacher.train: false"))
    if teacher.model is None and not (recipe.documents.vectors and teacher.query_vectors):
        found.append(("teacher.model", "without teacher weights, both its document and its query vectors must be given",
                      "name teacher.model, or give documents.vectors and teacher.query_vectors"))
    if teacher.model is None and teacher.train:
        found.append(("teacher.train", "there is no model to train", "set teacher.train: false"))
    if teacher.query_vectors and recipe.align and recipe.align.texts != ["queries"]:
        found.append(("align.texts", "given query vectors hold queries only", "set align.texts: [queries]"))
    if teacher.query_vectors and teacher.train:
        found.append(("teacher.query_vectors", "query vectors of a teacher that is yet to be trained can't be given",
                      "set teacher.train: false"))
    if student.model == "teacher" and teacher.model is None:
        found.append(("student.model", "the student is to be cut from the teacher, which has no weights here",
                      "name student.model"))
    if isinstance(student.layers, list) and sorted(student.layers) != student.layers:
        found.append(("student.layers", "layers keep their order", "list them in rising order"))
    if student.prompts.document is not None:
        found.append(("student.prompts.document", "the student never sees a document", "remove it"))
    if teacher.hard_negatives and not recipe.mine.base and recipe.data.source == "emoji":
        found.append(("teacher.hard_negatives", "there are no negatives: emoji carries none and mine.base is absent",
                      "add mine.base, or set teacher.hard_negatives: 0"))
    if recipe.mine.base and not teacher.train:
        found.append(("mine.base", "negatives for the teacher's training, but the teacher is not trained", "remove it"))
    return found


def _impossible_stages(recipe: Recipe) -> list[tuple[str, str, str]]:
    found = []
    needs = {"student-aligned": recipe.align, "student-refined": recipe.refine}
    wanted = {"evaluate.systems": recipe.evaluate.systems, "evaluate.reference": [recipe.evaluate.reference]}
    if recipe.bench:
        wanted["bench.systems"] = recipe.bench.systems
    if recipe.export:
        wanted["export.system"] = [recipe.export.system]
    for key, systems in wanted.items():
        for system in systems:
            if system in needs and needs[system] is None:
                section = {"student-aligned": "align", "student-refined": "refine"}[system]
                found.append((key, f"{system} does not exist: the recipe has no {section} section",
                              f"add {section}, or take {system} out of {key}"))
            if system in ("teacher-base", "teacher-more") and not recipe.teacher.train:
                found.append((key, f"{system} does not exist: the teacher is not trained", f"take it out of {key}"))
    if recipe.evaluate.reference not in recipe.evaluate.systems:
        found.append(("evaluate.reference", "the reference is not among evaluate.systems", "add it there"))
    if recipe.refine and not recipe.align:
        found.append(("refine", "refinement starts from the aligned student", "add an align section"))
    if recipe.refine and recipe.refine.mined and not recipe.mine.refine:
        found.append(("refine.mined", "nothing is mined", "add mine.refine, or set refine.mined: 0"))
    if recipe.align and "unlabelled" in recipe.align.texts and not recipe.data.unlabelled:
        found.append(("align.texts", "data.unlabelled names no file", "add data.unlabelled, or take unlabelled out"))
    if recipe.bench and recipe.teacher.model is None and "teacher" in recipe.bench.systems:
        found.append(("bench.systems", "a teacher without weights can't be timed", "take teacher out of bench.systems"))
    stages = {"teacher": recipe.teacher, "align": recipe.align, "refine": recipe.refine}
    for name, stage in stages.items():
        training = stage.training if stage else None
        if training and training.batch_size % training.accumulate:
            found.append((f"{name}.training.accumulate", "the global batch must split into equal parts",
                          "choose accumulate to divide batch_size"))
    return found
