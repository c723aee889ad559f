"""What the steps ``teacher``, ``student``, ``align`` and ``refine`` do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from harness.data.records import Dataset, Documents, in_context
from harness.encoders.encoder import Encoder
from harness.encoders.folder import save_encoder
from harness.encoders.lora import add_adapter, merge_adapter
from harness.encoders.sources import resolve_model
from harness.encoders.surgery import add_projection, cut_layers, select_layers
from harness.encoders.targets import stored_in_bf16
from harness.encoders.width import cut_width
from harness.evaluation.searching import quick_quality
from harness.pipeline.context import Run
from harness.pipeline.plan import embedded_kinds
from harness.pipeline.work_pairs import mixed_pairs
from harness.pipeline.work_streams import alignment_mixture, online_teacher
from harness.pipeline.work_vectors import KINDS, given_vectors_sha256, negatives_of, query_texts
from harness.recipe import TrainingSettings
from harness.runtime.process import logger, write_json
from harness.training import stages
from harness.training.fit import Fitted
from harness.training.fit import RunFolder as StageFolder
from harness.vectors.fits import ridge
from harness.vectors.index import VectorIndex
from harness.vectors.space import Space

Evaluate = Callable[[], dict[str, float]]


def _ground(run: Run, step: str, stage: str, evaluate: Evaluate) -> stages.Ground:
    trackers, accelerator = run.recipe.tracking.trackers, run.accelerator
    if trackers:
        accelerator.init_trackers(run.recipe.tracking.project, config={"run": run.recipe.name, "stage": step})

    def track(values: Mapping[str, float], at: int) -> None:
        if trackers:
            accelerator.log({f"{step}/{name}": value for name, value in values.items()}, step=at)

    def judged() -> dict[str, float]:
        with run.stop.at_once() if run.stop else contextlib.nullcontext():  # it may take long
            return evaluate()

    folder = StageFolder(
        checkpoints=run.folder.checkpoints(stage),
        log=run.folder.log(stage),
        fingerprint=run.keys[step],
        seed=run.recipe.seed,
        what=step,
        stop=run.stop or (lambda: False),
        track=track,
    )
    return stages.Ground(folder, accelerator, judged, run.recipe.data.language_temperature)


def _finish(run: Run, stage: str, fitted: Fitted) -> None:
    """Write the stage's summary and close its trackers."""
    if run.recipe.tracking.trackers:
        run.accelerator.end_training()
    summary = {
        "kept_step": fitted.step,
        "score": fitted.score,
        "seconds": round(fitted.seconds, 1),
        "curve": fitted.curve,
    }
    if run.is_main:
        write_json(run.folder.root / "logs" / f"{stage}.json", summary)


def judge_on_index(run: Run, student: Encoder, training: TrainingSettings) -> Evaluate:
    """Search the frozen index with the student's ``select`` queries."""
    index, texts = run.frozen_index(), [record.text for record in run.dataset.splits["select"]]
    return lambda: _judge(run, student, training, index, (run.dataset.documents, texts))


def judge_both_towers(run: Run, teacher: Encoder, training: TrainingSettings) -> Evaluate:
    """Search the teacher's own vectors, encoded anew, of up to ``teacher.select_documents`` documents.

    Queries have their contexts, as far as ``teacher.context`` says so.
    """
    documents = select_documents(run.dataset, run.recipe.teacher.select_documents, run.recipe.seed)
    tokens, partition = run.recipe.embed.batch_tokens, documents.languages if run.dataset.search_within else None
    template = run.recipe.teacher.context
    texts = [in_context(record.text, record.context, template) for record in run.dataset.splits["select"]]

    def evaluate() -> dict[str, float]:
        bf16 = run.precision(training)
        document_ND = teacher.encode(
            documents.texts, side="document", bf16=bf16, batch_tokens=tokens, what="select documents", shared=True
        )
        index = VectorIndex.build(document_ND, documents.ids, partition_N=partition)
        return _judge(run, teacher, training, index, (documents, texts))

    return evaluate


def _judge(
    run: Run, encoder: Encoder, training: TrainingSettings, index: VectorIndex, texts: tuple[Documents, list[str]]
) -> dict[str, float]:
    records, recipe, (documents, queries) = run.dataset.splits["select"], run.recipe, texts
    query_QD = encoder.encode(
        queries, side="query", bf16=run.precision(training), batch_tokens=recipe.embed.batch_tokens,
        what="select queries", shared=True,
    )  # fmt: skip
    metric, within = recipe.evaluate.select_metric, run.dataset.search_within
    return quick_quality(index, query_QD, records, documents, metric=metric, within=within)


def select_documents(dataset: Dataset, limit: int, seed: int) -> Documents:
    """All documents, or what is judged for the ``select`` queries and others at random up to ``limit``."""
    documents, records = dataset.documents, dataset.splits["select"]
    if len(documents.ids) <= limit:
        return documents
    judged = {documents.row[name] for record in records for name in (*record.positives, *record.negatives)}
    others = np.random.default_rng(seed).permutation(len(documents.ids)).tolist()
    rows = sorted([*judged, *[row for row in others if row not in judged][: max(0, limit - len(judged))]])
    columns = (documents.ids, documents.texts, documents.languages, documents.keys)
    return Documents(*([column[row] for row in rows] for column in columns))


def _save(run: Run, encoder: Encoder, folder: Path, space: Space | None) -> None:
    """Save on the main process; a teacher (``space`` None) founds a space named by its own weights."""
    if not run.is_main:
        return
    save_encoder(encoder, folder, lambda sha256: {"space": (space or Space.of(encoder, sha256)).to_json()})


# --------------------------------------------------------------------------------------------------------- teacher


def do_teacher(run: Run) -> list[Path]:
    """Stage 1, or the teacher as it is; without weights, only the space that its vectors span."""
    settings = run.recipe.teacher
    if settings.model is None:
        return [_space_without_weights(run)]
    training = settings.training if settings.train else None
    attention = run.attention(training) if training else "sdpa"
    encoder = run.load(settings, attention=attention, bf16=_frozen_in_bf16(run, training))
    if training is not None:
        _fit_teacher(run, encoder, "teacher", run.folder.teacher.name)
    _save(run, encoder, run.folder.teacher, None)
    return [run.folder.teacher]


def do_teacher_more(run: Run) -> list[Path]:
    """The baseline ``teacher-more``: the teacher trained on for as many steps as the refinement.

    Where the teacher was trained by adapters, new ones go on from the merged teacher.
    """
    recipe = run.recipe
    assert recipe.teacher.training and recipe.refine, "validated by the recipe"
    training = recipe.teacher.training.model_copy(update={"steps": recipe.refine.training.steps})
    attention, bf16 = run.attention(training), _frozen_in_bf16(run, training)
    encoder = run.open(run.folder.teacher, attention=attention, bf16=bf16)
    teacher = recipe.teacher.model_copy(update={"training": training})
    more = Run(recipe.model_copy(update={"teacher": teacher}), run.folder, run.keys, run.stop)
    _fit_teacher(more, encoder, "teacher.more", "teacher-more")
    _save(run, encoder, run.folder.teacher_more, None)
    return [run.folder.teacher_more]


def _frozen_in_bf16(run: Run, training: TrainingSettings | None) -> bool:
    """Whether the weights below adapters are kept in bfloat16: stored so, and the training computes so."""
    teacher = run.recipe.teacher
    if training is None or teacher.lora is None or not run.precision(training):
        return False
    return stored_in_bf16(resolve_model(teacher.model or "", teacher.revision))


def _fit_teacher(run: Run, encoder: Encoder, step: str, stage: str) -> None:
    settings, recipe = run.recipe.teacher, run.recipe
    assert settings.training is not None, "validated by the recipe"
    ground = _ground(run, step, stage, judge_both_towers(run, encoder, settings.training))
    if settings.lora:
        add_adapter(encoder, settings.lora, seed=recipe.seed)
    if settings.streams:
        fitted = stages.train_teacher_on_streams(encoder, mixed_pairs(run), settings, ground)
    else:
        queries = stages.training_queries(run.dataset, "teacher", context=settings.context)
        negatives = negatives_of(run, "base" if recipe.mine.base else None) if settings.hard_negatives else None
        fitted = stages.train_teacher(encoder, queries, settings, ground, negatives=negatives)
    if settings.lora and run.is_main:  # in other processes the parameters may have no values any more
        merge_adapter(encoder, [record.text for split in run.dataset.splits.values() for record in split[:16]][:16])
    _finish(run, stage, fitted)


def _space_without_weights(run: Run) -> Path:

    from harness.vectors.files import peek_dimension

    files, prompts = run.recipe.documents.vectors, run.recipe.teacher.prompts
    assert files is not None, "validated by the recipe"
    space = Space(
        teacher=given_vectors_sha256(run.recipe), query_prompt=prompts.query or "",
        document_prompt=prompts.document or "",
        pooling=run.recipe.teacher.pooling or "unknown", dimension=peek_dimension(files), normalized=True,
    )  # fmt: skip
    if run.is_main:
        write_json(run.folder.teacher / "harness.json", {"space": space.to_json()})
    return run.folder.teacher


# --------------------------------------------------------------------------------------------------------- student


def do_student(run: Run) -> list[Path]:
    """Choose or cut the student (layers, then feed-forward units) and bridge it to the teacher's dimension."""
    settings, space = run.recipe.student, run.space(run.folder.teacher)
    if settings.model == "teacher":
        student = run.load(settings.model_copy(update={"model": str(run.folder.teacher), "revision": None}))
    else:
        student = run.load(settings)
    if settings.layers is not None:
        cut_layers(student, select_layers(student.layer_count, settings.layers))
    if settings.feed_forward is not None:
        _, texts = _sampled_texts(run, settings.feed_forward.texts)
        cut_width(student, settings.feed_forward.width, texts)
    if student.dimension != space.dimension:
        _bridge(run, student, space)
    student.normalize = space.normalized
    _save(run, student, run.folder.student("cut"), space)
    logger.info(
        "student: %.1f M parameters, %d layers", sum(p.numel() for p in student.parameters()) / 1e6, student.layer_count
    )
    return [run.folder.student("cut")]


def _sampled_texts(run: Run, count: int) -> tuple[list[str], list[str]]:
    """Ids and texts of up to ``count`` training queries, drawn with the run's seed; of other texts if it has none."""
    ids, texts, _ = query_texts(run.dataset, ["queries"])
    if not ids:
        ids, texts, _ = query_texts(run.dataset, ["documents", "unlabelled"])
    chosen = np.random.default_rng(run.recipe.seed).permutation(len(ids))[:count].tolist()
    return [ids[i] for i in chosen], [texts[i] for i in chosen]


def _bridge(run: Run, student: Encoder, space: Space) -> None:
    """A projection to the teacher's dimension, fitted in closed form on vectors of training queries."""
    ids, texts = _sampled_texts(run, 20_000)
    normalize, student.normalize = student.normalize, False
    source_NE = student.encode(texts, side="query", what="bridge")
    student.normalize = normalize
    weight_DE = ridge(source_NE, _targets(run, ids), run.recipe.student.ridge)
    add_projection(student, torch.from_numpy(weight_DE))


def _targets(run: Run, ids: Sequence[str]) -> np.ndarray:
    """float32_ND: the teacher's vectors of texts, looked up where the embed step wrote them, otherwise encoded here."""
    kinds = {name: kind for kind, name in KINDS.items()}
    needed = {kinds[name.split(":", 1)[0] + ":"] for name in ids}
    if run.recipe.teacher.query_vectors or needed <= set(embedded_kinds(run.recipe)):
        store = run.store("queries")
        return store.vectors(store.rows_of(ids))
    names, texts, _ = query_texts(run.dataset, sorted(needed), context=run.recipe.teacher.context)
    text_of = dict(zip(names, texts, strict=True))
    teacher, tokens = run.open(run.folder.teacher), run.recipe.embed.batch_tokens
    return teacher.encode([text_of[name] for name in ids], side="query", batch_tokens=tokens, what="bridge")


# ------------------------------------------------------------------------------------------------ align and refine


def do_align(run: Run) -> list[Path]:
    """Stage 2."""
    settings = run.recipe.align
    assert settings is not None, "planned only with the section"
    student = run.open(run.folder.student("cut"), attention=run.attention(settings.training))
    ground = _ground(run, "align", "align", judge_on_index(run, student, settings.training))
    online = online_teacher(run)
    if settings.streams:
        mixture = alignment_mixture(run, student, online)
        fitted = stages.align_on_streams(student, mixture, settings, ground, online=online)
    else:
        texts = query_texts(run.dataset, settings.texts)
        fitted = stages.align(student, texts, online or run.store("queries"), settings, ground)
    _finish(run, "align", fitted)
    _save(run, student, run.folder.student("aligned"), run.space(run.folder.student("cut")))
    return [run.folder.student("aligned")]


def do_refine(run: Run) -> list[Path]:
    """Stage 3."""
    recipe, settings = run.recipe, run.recipe.refine
    assert settings is not None, "planned only with the section"
    student = run.open(run.folder.student("aligned"), attention=run.attention(settings.training))
    mined = negatives_of(run, "refine" if recipe.mine.refine else None) if settings.mined else None
    ground = _ground(run, "refine", "refine", judge_on_index(run, student, settings.training))
    queries = stages.training_queries(run.dataset, "refine")
    fitted = stages.refine(
        student, queries, run.store("documents"), run.store("queries"), settings, ground, mined=mined
    )  # fmt: skip
    _finish(run, "refine", fitted)
    _save(run, student, run.folder.student("refined"), run.space(run.folder.student("aligned")))
    return [run.folder.student("refined")]
