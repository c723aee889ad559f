"""What must hold between data and models before anything is trained. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from harness.data.records import Dataset
from harness.encoders.chain import backbone_files, describe_folder, read_chain, verify_sha256
from harness.encoders.layers import select_layers
from harness.encoders.sources import resolve_model
from harness.encoders.tokens import read_tokenizer, unknown_share
from harness.recipe import EncoderSettings, Recipe
from harness.runtime.errors import InputError, Problem, gather_problems

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "sentencepiece.bpe.model")


def check_models(recipe: Recipe) -> None:
    """What can be told of the models before one is loaded: files, hashes, layers, lengths, dimensions.

    Raises:
        InputError: everything that is wrong with the teacher and the student.
    """
    problems: list[Problem] = []
    roles: dict[str, EncoderSettings] = {"teacher": recipe.teacher}
    if recipe.student.model != "teacher":
        roles["student"] = recipe.student
    for role, settings in roles.items():
        if settings.model:
            try:
                problems += _model_problems(role, settings)
            except InputError as error:
                problems += error.problems
    source = recipe.teacher if recipe.student.model == "teacher" else recipe.student
    if not problems and source.model and recipe.student.layers is not None:
        told = describe_folder(resolve_model(source.model, source.revision))
        try:
            select_layers(told["layers"], recipe.student.layers)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)


def _model_problems(role: str, settings: EncoderSettings) -> list[Problem]:
    folder = resolve_model(settings.model or "", settings.revision)
    chain, told = read_chain(folder), describe_folder(folder)
    verify_sha256(settings.sha256, backbone_files(folder))
    found = []
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        found.append(
            Problem("the model folder has no tokenizer", where=str(folder), allowed=", ".join(TOKENIZER_FILES))
        )
    if chain.pooling is None and settings.pooling is None:
        found.append(
            Problem("the folder does not say how tokens are pooled (it has no modules.json)", where=f"{role}.pooling",
                    allowed="mean, cls, lasttoken", next=f"set {role}.pooling")
        )  # fmt: skip
    positions = told["max_positions"]
    if settings.max_length and positions and settings.max_length > positions:
        found.append(
            Problem("longer than the model's positions", where=f"{role}.max_length", got=str(settings.max_length),
                    allowed=f"1 to {positions}")
        )  # fmt: skip
    if settings.dimension and settings.dimension > told["dimension"]:
        found.append(
            Problem("more dimensions than the model gives", where=f"{role}.dimension", got=str(settings.dimension),
                    allowed=f"1 to {told['dimension']}")
        )  # fmt: skip
    return found


def evaluated_sets(recipe: Recipe, dataset: Dataset) -> list[str]:
    """The sets to evaluate: those named, or all that the data has.

    Raises:
        InputError: a set is named that the data does not have.
    """
    present = [name for name in ("select", "report", "test") if dataset.splits.get(name)]
    wanted = recipe.evaluate.sets or present
    missing = [name for name in wanted if name not in present]
    if missing:
        raise InputError(
            Problem(f"the data has no set {missing[0]!r}", where="evaluate.sets", allowed=", ".join(present),
                    next="take it out, or give data.qrels")
        )  # fmt: skip
    return list(wanted)


def check_data(recipe: Recipe, dataset: Dataset) -> None:
    """Refuse data that a later step would refuse: no training queries, a set that is not there, unknown tokens.

    Raises:
        InputError: with all of them.
    """
    problems: list[Problem] = []
    stages = {"teacher": recipe.teacher.train, "refine": recipe.refine is not None}
    remedy = {"teacher": "set teacher.train: false", "refine": "set refine: null"}
    if not dataset.splits["train"]:
        problems += [
            Problem(f"{name} needs training queries with positives, and the data has none", where="data",
                    next=f"give qrels/train.tsv, or {remedy[name]}")
            for name, wanted in stages.items() if wanted
        ]  # fmt: skip

    def training_queries() -> None:
        if problems:
            raise InputError(problems)

    gather_problems(
        training_queries, lambda: evaluated_sets(recipe, dataset), lambda: check_unknown_shares(recipe, dataset)
    )


def tokenizers_of(recipe: Recipe) -> dict[str, str]:
    """Which model's tokenizer reads queries: teacher and, where it has another, student."""
    named = {
        "teacher": recipe.teacher.model,
        "student": None if recipe.student.model == "teacher" else recipe.student.model,
    }
    return {role: model for role, model in named.items() if model}


def unknown_shares(recipe: Recipe, dataset: Dataset, limit: int = 5_000) -> dict[str, dict[str, float]]:
    """Role -> language -> share of [UNK] among the tokens of up to ``limit`` queries of a language."""
    texts: dict[str, list[str]] = {}
    for records in dataset.splits.values():
        for record in records:
            of_language = texts.setdefault(record.language, [])
            if len(of_language) < limit:
                of_language.append(record.text)
    revisions = {"teacher": recipe.teacher.revision, "student": recipe.student.revision}
    found = {}
    for role, model in tokenizers_of(recipe).items():
        tokenizer = read_tokenizer(resolve_model(model, revisions[role]))
        found[role] = {language: unknown_share(tokenizer, words) for language, words in sorted(texts.items())}
    return found


def refuse_unknown(recipe: Recipe, shares: Mapping[str, Mapping[str, float]]) -> None:
    """Refuse languages that a tokenizer can't read.

    Raises:
        InputError: naming each language, its share and the limit.
    """
    limit = recipe.data.max_unknown_share
    problems = [
        Problem(
            f"the {role}'s tokenizer does not know {share:.1%} of the tokens in {language!r} queries",
            where="data.languages",
            allowed=f"at most {limit:.1%} (data.max_unknown_share)",
            next=f"take {language!r} out of data.languages, choose a model that reads it, or raise the limit",
        )
        for role, by_language in shares.items()
        for language, share in by_language.items()
        if share > limit
    ]
    if problems:
        raise InputError(problems)


def check_unknown_shares(recipe: Recipe, dataset: Dataset) -> None:
    """Measure and refuse in one."""
    refuse_unknown(recipe, unknown_shares(recipe, dataset))
