"""What each step of a run needs of disk and memory. Imports no torch.

What is surely needed and what is estimated are told apart. Memory is that of one process; what several processes spread
among them (FSDP, ZeRO) is counted in whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from harness.pipeline.activations import activation_bytes
from harness.pipeline.compute import computes_in_bf16, runs_eager
from harness.pipeline.launch import processes_of, usable_gpus
from harness.pipeline.plan import STEPS, embedded_kinds, plan
from harness.pipeline.sizes import Counts, Model
from harness.pipeline.streams import stream_disk
from harness.pipeline.surroundings import installed, trainings
from harness.recipe import MineSettings, Recipe, TrainingSettings
from harness.vectors.codec import row_bytes

SURE_INPUTS = 2  # of a block, where all else of it is computed again
SURE_ACTIVATIONS = 16  # bytes a layer, token and hidden unit: less than any back end keeps


@dataclass(frozen=True)
class Need:
    """What one step needs, in bytes: ``disk`` stays, ``memory`` is surely held at once, activations are estimated.

    ``likely``: of the disk, what may turn out less, as duplicates are left out.
    """

    disk: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, float] = field(default_factory=dict)
    activations: float = 0.0
    likely: Mapping[str, float] = field(default_factory=dict)


def needs(recipe: Recipe, models: Mapping[str, Model], counts: Counts) -> dict[str, Need]:
    """Step -> what it needs, for every step that the recipe wants."""
    teacher, student = models.get("teacher"), models.get("student")
    dimension = teacher.dimension if teacher else 0
    row = row_bytes(recipe.embed.dtype, dimension)
    documents, matrix = counts.documents * row, counts.documents * dimension * 4
    kinds = {"queries": counts.queries, "documents": counts.documents, "unlabelled": counts.unlabelled}
    mine = recipe.mine
    searched = {"index in memory": matrix} if recipe.evaluate.searcher != "exact" and installed("faiss") else {}
    encoding = {"weights": 4 * teacher.parameters if teacher else 0}
    outside = 4 * dimension * max(counts.outside, default=0)
    depth = len(recipe.evaluate.systems) * min(recipe.evaluate.depth, counts.documents)
    found = {
        "data": Need({"texts": counts.text_bytes}),
        "embed.base": Need({"vectors": documents + (row * counts.queries if mine.base else 0)}, encoding),
        "mine.base": Need({"mined": _mined(mine.base, counts)}, {"vectors": matrix}),
        "teacher": _stage(teacher, "teacher", recipe, counts),
        "embed": Need(
            {"vectors": documents + row * sum(kinds[kind] for kind in embedded_kinds(recipe)), "index": matrix},
            {**encoding, "vectors": matrix},
        ),
        "student": Need({"model": 4 * student.parameters}, {"weights": 4 * student.parameters}) if student else Need(),
        "mine.refine": Need({"mined": _mined(mine.refine, counts)}, {"vectors": matrix}),
        "embed.more": Need({"vectors": documents}, encoding),
        "export": Need({"model": 4 * student.parameters}, {"weights": 8 * student.parameters}) if student else Need(),
        **_exports(recipe, teacher, student, matrix),
        "evaluate": Need({"hits": 4 * depth * counts.evaluated}, {**encoding, **searched}),
        "embed.outside": Need({"vectors": row * sum(counts.outside)}, encoding),
        "evaluate.outside": Need(memory={**encoding, **dict.fromkeys(searched, outside)}),
    }
    for name in ("align", "refine"):
        stage = _stage(student, name, recipe, counts)
        found[name] = Need(stage.disk, {**stage.memory, **searched}, stage.activations)
    for name, memory in (("teacher.streams", {}), ("embed.streams", encoding)):
        found[name] = Need(memory=memory, likely=stream_disk(recipe, name, dimension, counts.tokens))
    if recipe.align and recipe.align.targets == "online":
        online = {f"teacher's {what}": size for what, size in encoding.items()}
        found["align"] = replace(found["align"], memory={**found["align"].memory, **online})
    found["teacher.more"] = found["teacher"]
    found["bench.ann"] = _approximate(recipe, counts, dimension, encoding)
    return {step.name: _with_texts(found.get(step.name, Need()), counts) for step in plan(recipe)}


def _exports(
    recipe: Recipe, teacher: Model | None, student: Model | None, matrix: float
) -> dict[str, Need]:
    """What is deployed beside the student: ``matrix`` is the size of the document vectors in float32."""
    if recipe.export is None:
        return {}
    own = 4 * student.parameters if student else 0
    towers = own + (4 * teacher.parameters if teacher else 0)
    files = sum({"fp32": 1, "fp16": 0.5}.get(name, 0.25) for name in recipe.export.onnx)
    vectors = {name: matrix * {"faiss-int8": 0.25, "faiss-pq": 0.0625}.get(name, 1) for name in recipe.export.index}
    in_memory = max((size for name, size in vectors.items() if "faiss" in name), default=0)
    return {
        "export.pair": Need({"model": towers}, {"weights": towers + own}),
        "export.index": Need({"index": sum(vectors.values())}, {"weights": own, "index in memory": in_memory}),
        "export.onnx": Need({"model": own * files * (2 if recipe.export.triton else 1)}, {"weights": 2 * own}),
    }


def _approximate(recipe: Recipe, counts: Counts, dimension: int, encoding: Mapping[str, float]) -> Need:
    """Approximate indexes, all in memory beside the exact one; a graph has 2 M neighbours of 4 bytes a vector."""
    ann = recipe.bench and recipe.bench.ann
    if not ann:
        return Need()
    matrix = counts.documents * dimension * 4
    sizes = {"hnsw": matrix + counts.documents * 8 * ann.hnsw.neighbours, "ivf": matrix,
             "ivf-pq": counts.documents * (ann.ivf_pq.parts or dimension / 4) + matrix * (ann.ivf_pq.rerank > 0)}
    kept = {f"{kind} index": sizes[kind] for kind in ann.indexes}
    return Need(kept, {**encoding, **kept, "exact index": matrix})


def _with_texts(need: Need, counts: Counts) -> Need:
    return replace(need, memory={**need.memory, "texts": counts.text_bytes})


def _mined(settings: MineSettings | None, counts: Counts) -> float:
    return 8 * settings.keep * counts.queries if settings else 0


def _stage(model: Model | None, name: str, recipe: Recipe, counts: Counts) -> Need:
    """A model that is trained, or saved as it is: fp32 weights, gradients and two moments; the best weights besides."""
    training = trainings(recipe).get(name)
    if model is None:
        return Need()
    if training is None:
        return Need({"model": 4 * model.parameters}, {"weights": 4 * model.parameters})
    trained = model.adapters or (model.body if training.token_table == "frozen" else model.parameters)
    bf16, eager = computes_in_bf16(recipe, training), runs_eager(recipe, training)
    resting = 2 if model.adapters and model.bf16 and bf16 else 4
    parts = _texts_in_memory(name, training, recipe, counts)
    block = SURE_INPUTS if training.gradient_checkpointing else SURE_ACTIVATIONS
    sure = sum(block * model.layers * model.hidden * rows * tokens for rows, tokens in parts)
    again = training.gradient_checkpointing * (1 if training.cached else training.chunks)
    return Need(
        {"model": 4 * model.parameters, "checkpoints": (12 + 4 * (training.keep == "best")) * trained},
        {"weights": resting * model.parameters + 4 * model.adapters, "gradients and moments": 12 * trained,
         "activations": sure},
        activation_bytes(model, parts, bf16=bf16, eager=eager, again=again),
    )  # fmt: skip


def _texts_in_memory(
    name: str, training: TrainingSettings, recipe: Recipe, counts: Counts
) -> list[tuple[float, float]]:
    """(texts, tokens of one) of each side whose activations a process holds together: with cached gradients, those of
    one chunk; on GPUs each process has its share of the batch."""
    gpus, step = usable_gpus(recipe.launch), next(step for step in STEPS if step.name == name)
    rows = training.batch_size / training.accumulate / (processes_of(step, recipe.launch, gpus) if gpus else 1)
    documents = 1 + recipe.teacher.hard_negatives if name == "teacher" else 0
    parts = [(rows, counts.tokens.get("query", 0)), (rows * documents, counts.tokens.get("document", 0))]
    together = _together(training, sum(rows * tokens for rows, tokens in parts))
    return [(rows * together, tokens) for rows, tokens in parts if rows]


def _together(training: TrainingSettings, tokens: float) -> float:
    """The share of a batch's texts whose activations are in memory together: with cached gradients, one chunk's."""
    if not training.cached:
        return 1.0
    return min(1.0, training.chunk_tokens / max(tokens, 1)) if training.chunk_tokens else 1 / training.chunks


def peak(need: Need) -> float:
    """The memory that a step takes at most, activations as estimated."""
    sure = sum(size for name, size in need.memory.items() if name != "activations")
    return sure + max(need.activations, need.memory.get("activations", 0))


def size_text(count: float) -> str:
    """``1.5 GB``."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
