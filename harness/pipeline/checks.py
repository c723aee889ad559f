"""What must hold between data and models before anything is trained. Imports no torch."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.data.outside import preview_outside
from harness.data.prepare import check_data_files
from harness.data.reading import PREVIEW_LINES
from harness.data.records import Dataset, has_scores
from harness.encoders.chain import WITHOUT_PADDING, backbone_files, read_chain, verify_sha256
from harness.encoders.layers import select_layers
from harness.encoders.sources import describe_model, resolve_model
from harness.encoders.targets import adapter_size
from harness.encoders.tokens import read_tokenizer, unknown_share
from harness.pipeline.checks_evaluation import check_ann, check_languages
from harness.pipeline.streams import check_streams
from harness.pipeline.surroundings import device_problems, package_problems, trainings
from harness.recipe import EncoderSettings, Recipe, StudentSettings, TeacherSettings, VectorFiles
from harness.runtime.errors import InputError, Problem, gather_problems


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
    problems += [] if problems else _padding_problems(recipe)
    teacher = recipe.teacher
    if not problems and teacher.lora and teacher.model:
        try:
            adapter_size(describe_model(teacher.model, teacher.revision)[0], teacher.lora)
        except InputError as error:
            problems += error.problems
    source = recipe.teacher if recipe.student.model == "teacher" else recipe.student
    if not problems and source.model:
        _, told = describe_model(source.model, source.revision)
        problems += _cut_problems(recipe.student, told)
    if problems:
        raise InputError(problems)


def _cut_problems(student: StudentSettings, told: Mapping[str, Any]) -> list[Problem]:
    """Layers and feed-forward units that the model does not have."""
    found: list[Problem] = []
    if student.layers is not None:
        try:
            select_layers(told["layers"], student.layers)
        except InputError as error:
            found += error.problems
    if student.feed_forward is not None and told["feed_forward"] < student.feed_forward.width:
        found.append(
            Problem("the model has fewer feed-forward units", where="student.feed_forward.width",
                    got=str(student.feed_forward.width), allowed=f"1 to {told['feed_forward']}",
                    next="choose a smaller width, or remove student.feed_forward")
        )  # fmt: skip
    return found


def _model_problems(role: str, settings: EncoderSettings) -> list[Problem]:
    model, revision = settings.model or "", settings.revision
    folder = resolve_model(model, revision, weights=settings.sha256 is not None)
    if not (folder / "config.json").is_file():
        return [Problem("no model here: config.json is missing", where=str(folder),
                        allowed="a folder with config.json, safetensors and tokenizer.json",
                        next="name the folder of a whole model")]  # fmt: skip
    found: list[Problem] = []
    told: dict[str, Any] = {}
    for look in (
        lambda: told.update(chain=read_chain(folder), **describe_model(model, revision)[1]),
        lambda: told.update(tokens=_highest_token(folder)),
        lambda: verify_sha256(settings.sha256, backbone_files(folder)) if settings.sha256 else None,
    ):
        try:
            look()
        except InputError as error:
            found += [problem for problem in error.problems if problem not in found]
    if "chain" in told:
        found += _misfits(role, settings, folder, told)
    return found


def _padding_problems(recipe: Recipe) -> list[Problem]:
    """Batches without padding, and a model with which they were not tried."""
    student = recipe.teacher if recipe.student.model == "teacher" else recipe.student
    models: dict[str, EncoderSettings] = {"embed": recipe.teacher}
    models |= {f"{stage}.training": recipe.teacher if stage == "teacher" else student for stage in trainings(recipe)}
    found = []
    for where, model in models.items():
        wanted = recipe.embed.unpadded if where == "embed" else trainings(recipe)[where.split(".")[0]].unpadded
        if wanted is not True or not model.model:
            continue
        kind = describe_model(model.model, model.revision)[1]["architecture"]
        if kind not in WITHOUT_PADDING:
            found.append(
                Problem("batches without padding were not tried with this architecture", got=kind,
                        where=f"{where}.unpadded", allowed=", ".join(sorted(WITHOUT_PADDING)),
                        next="set it to auto, or to false")
            )  # fmt: skip
    return found


def _highest_token(folder: Path) -> int:
    return max(read_tokenizer(folder).get_vocab().values(), default=0)


def _misfits(role: str, settings: EncoderSettings, folder: Path, told: Mapping[str, Any]) -> list[Problem]:
    """What does not fit together: the recipe, and the folder's config, weights and tokenizer."""
    found, chain, positions = [], told["chain"], told["max_positions"]
    if chain.pooling is None and settings.pooling is None:
        found.append(
            Problem("the folder does not say how tokens are pooled (it has no modules.json)", where=f"{role}.pooling",
                    allowed="mean, cls, lasttoken", next=f"set {role}.pooling")
        )  # fmt: skip
    wanted = settings.max_length or chain.max_length
    if wanted and positions and wanted > positions:
        found.append(
            Problem("longer than the model's positions", where=f"{role}.max_length", got=str(wanted),
                    allowed=f"1 to {positions}", next=f"set {role}.max_length to at most {positions}")
        )  # fmt: skip
    if settings.dimension and settings.dimension > told["dimension"]:
        found.append(
            Problem("more dimensions than the model gives", where=f"{role}.dimension", got=str(settings.dimension),
                    allowed=f"1 to {told['dimension']}")
        )  # fmt: skip
    most = settings.dimension or told["dimension"]
    cuts = settings.loss.matryoshka if isinstance(settings, TeacherSettings) else []
    if cuts and max(cuts) > most:
        found.append(
            Problem("more dimensions than the model gives", where="teacher.loss.matryoshka", got=str(cuts),
                    allowed=f"1 to {most}")
        )  # fmt: skip
    if 0 < told["stored_layers"] < told["layers"]:
        found.append(
            Problem("weights are missing: they would be random", where=str(folder),
                    got=f"config.json speaks of {told['layers']} layers, there are weights of {told['stored_layers']}",
                    next="get the whole model, or the config that belongs to it")
        )  # fmt: skip
    if told.get("tokens", 0) >= told["vocabulary"] > 0:
        found.append(
            Problem("the tokenizer does not fit the model", where=str(folder), got=f"token id {told['tokens']}",
                    allowed=f"ids below {told['vocabulary']}, the rows of the token table",
                    next="put the tokenizer that belongs to the weights into the folder")
        )  # fmt: skip
    return found


# ------------------------------------------------------------------------------------ what surrounds data and models


def check_surroundings(recipe: Recipe) -> None:
    """What can be told before any data is read: missing files, the device, packages that are wanted, given vectors.

    Raises:
        InputError: everything that is wrong.
    """
    gather_problems(lambda: check_inputs(recipe), lambda: check_devices(recipe))


def check_inputs(recipe: Recipe) -> None:
    """Without what this refuses, the data can't be read: files, streams, packages, given vectors.

    Raises:
        InputError: everything that is wrong.
    """
    gather_problems(
        lambda: check_data_files(recipe.data),
        lambda: check_streams(recipe),
        *(functools.partial(preview_outside, given) for given in recipe.evaluate.outside if given.beir),
        lambda: _refuse(package_problems(recipe)),
        lambda: _check_vectors(recipe, None),
    )


def check_devices(recipe: Recipe) -> None:
    """Refuse what this machine has no device for.

    Raises:
        InputError: everything that is wrong.
    """
    _refuse(device_problems(recipe))


def _refuse(problems: list[Problem]) -> None:
    if problems:
        raise InputError(problems)


def _check_vectors(recipe: Recipe, dataset: Dataset | None) -> None:
    """Given vectors: readable, of the right dimension; with a data set also those of its ids, and their values."""
    documents, queries, teacher = recipe.documents.vectors, recipe.teacher.query_vectors, recipe.teacher
    dimension, normalized = None, True
    if teacher.model and (documents or queries):
        try:
            folder, told = describe_model(teacher.model, teacher.revision)
            dimension = teacher.dimension or told["dimension"]
            normalized = read_chain(folder).normalize
        except InputError:
            return  # told by check_models
    wanted: dict[str, list[str]] = {"documents": [], "queries": []}
    if dataset:
        wanted["documents"] = dataset.documents.ids
        wanted["queries"] = [record.id for records in dataset.splits.values() for record in records]
    dimensions = [dimension] if dimension else []

    def check(files: VectorFiles | None, kind: str) -> None:
        absent = [path for path in (files.path, files.ids) if path and not Path(path).is_file()] if files else []
        if files is None or absent or (files.format == "faiss" and dataset is None):
            return  # a missing file is told by sources_of; an index is read once the data is known to be good
        from harness.vectors.files import check_vectors  # brings torch in: only where vectors are given

        known = dimensions[0] if dimensions else None
        _, vector_ND = check_vectors(files, wanted[kind], known, normalized=normalized, rows=PREVIEW_LINES)
        dimensions.append(int(vector_ND.shape[1]))

    gather_problems(lambda: check(documents, "documents"), lambda: check(queries, "queries"))


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


def check_data(recipe: Recipe, dataset: Dataset, *, complete: bool = True) -> None:
    """Refuse data that a later step would refuse: too few training queries, a set that is not there, unknown tokens,
    languages of reserved names, given vectors that don't fit.

    Args:
        complete: whether ``dataset`` is all of the data, or the head of it.

    Raises:
        InputError: with all of them.
    """
    gather_problems(
        lambda: _refuse(_training_problems(recipe, dataset, complete)),
        lambda: _refuse(_context_problems(recipe, dataset, complete)),
        lambda: check_ann(recipe, dataset) if complete else None,
        lambda: check_languages(dataset),
        lambda: evaluated_sets(recipe, dataset),
        lambda: check_unknown_shares(recipe, dataset),
        lambda: _check_vectors(recipe, dataset),
    )


def _context_problems(recipe: Recipe, dataset: Dataset, complete: bool) -> list[Problem]:
    """A template for contexts, and data that has none."""
    records = (record for split in dataset.splits.values() for record in split)
    streams = recipe.data.streams
    given = any(stream.context for stream in streams.values())  # one that nothing reads is refused
    if recipe.teacher.context is None or not complete or given or any(record.context for record in records):
        return []
    column = recipe.data.columns.context
    return [Problem("no query has a context", where="teacher.context", got=recipe.teacher.context,
                    allowed=f"a text in {column!r} of some query" if column else "data.columns.context is null",
                    next="give contexts (data.columns.context names them), or remove teacher.context")]  # fmt: skip


def _training_problems(recipe: Recipe, dataset: Dataset, complete: bool) -> list[Problem]:
    queries, found, loss = len(dataset.splits["train"]), [], recipe.teacher.loss
    if recipe.teacher.train and loss.to_scores and complete and queries and not has_scores(dataset.splits["train"]):
        found.append(
            Problem("no training query has judged documents of different scores", where="teacher.loss.kind",
                    got=loss.kind, next="give scores and judged negatives, or choose info_nce or qwen3")
        )  # fmt: skip
    remedy = {"teacher": "set teacher.train: false", "refine": "set refine: null"}
    sizes = {"queries": queries, "documents": len(dataset.documents), "unlabelled": len(dataset.unlabelled)}
    align = sum(sizes[kind] for kind in recipe.align.texts) if recipe.align else 0
    for stage, training in trainings(recipe).items():
        section = {"teacher": recipe.teacher, "align": recipe.align}.get(stage)
        if section is not None and section.streams:
            continue  # their rows are counted when they become tokens
        texts = align if stage == "align" else queries
        if not texts and stage in remedy:
            found.append(Problem(f"{stage} needs training queries with positives, and the data has none", where="data",
                                 next=f"give qrels/train.tsv, or {remedy[stage]}"))
        elif not texts:
            found.append(Problem("there is no text to align on", where="align.texts", got=", ".join(recipe.align.texts),
                                 next="add documents or unlabelled") if recipe.align else Problem(""))
        elif training.batch_size > texts and complete:
            found.append(Problem("a batch is larger than all there is to train on", got=str(training.batch_size),
                                 where=f"{stage}.training.batch_size", allowed=f"2 to {texts}",
                                 next="lower batch_size, or give more data"))
    return found


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
        tokenizer = read_tokenizer(resolve_model(model, revisions[role], weights=False))
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
