"""What each step of a run needs of disk and memory. Imports no torch.

What is surely needed and what is estimated are told apart; activations are estimated after Korthikanti et al. 2022
(eq. 2, without recomputation).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.pipeline.checks import installed, trainings
from harness.pipeline.plan import embedded_kinds, plan
from harness.pipeline.sizes import Counts, Model
from harness.recipe import MineSettings, Recipe, TrainingSettings
from harness.vectors.codec import row_bytes

SURE_INPUTS = 2  # of a block, where all else of it is computed again
SURE_ACTIVATIONS = 16  # bytes a layer, token and hidden unit: less than any back end keeps


@dataclass(frozen=True)
class Need:
    """What one step needs, in bytes: ``disk`` stays, ``memory`` is surely held at once, activations are estimated."""

    disk: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, float] = field(default_factory=dict)
    activations: float = 0.0


def activation_bytes(model: Model, rows: float, tokens: float, *, again: bool = False) -> float:
    """Bytes kept for the backward pass of ``rows`` texts of ``tokens`` tokens (Korthikanti et al. 2022, eq. 2).

    ``again``: each block's input is kept, in 2 bytes a number as there, and one block is computed again at a time.
    """
    unit = tokens * rows * model.hidden
    block = unit * (34 + 5 * model.heads * tokens / model.hidden)
    return model.layers * 2 * unit + block if again else model.layers * block


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
    depth = len(recipe.evaluate.systems) * min(recipe.evaluate.depth, counts.documents)
    training = trainings(recipe)
    found = {
        "data": Need({"texts": counts.text_bytes}),
        "embed.base": Need({"vectors": documents + (row * counts.queries if mine.base else 0)}, encoding),
        "mine.base": Need({"mined": _mined(mine.base, counts)}, {"vectors": matrix}),
        "teacher": _stage(teacher, training.get("teacher"), counts, documents=1 + recipe.teacher.hard_negatives),
        "embed": Need(
            {"vectors": documents + row * sum(kinds[kind] for kind in embedded_kinds(recipe)), "index": matrix},
            {**encoding, "vectors": matrix},
        ),
        "student": Need({"model": 4 * student.parameters}, {"weights": 4 * student.parameters}) if student else Need(),
        "mine.refine": Need({"mined": _mined(mine.refine, counts)}, {"vectors": matrix}),
        "embed.more": Need({"vectors": documents}, encoding),
        "export": Need({"model": 4 * student.parameters}) if student else Need(),
        "evaluate": Need({"hits": 4 * depth * counts.evaluated}, {**encoding, **searched}),
    }
    for name in ("align", "refine"):
        stage = _stage(student, training.get(name), counts)
        found[name] = Need(stage.disk, {**stage.memory, **searched}, stage.activations)
    found["teacher.more"] = found["teacher"]
    return {step.name: _with_texts(found.get(step.name, Need()), counts) for step in plan(recipe)}


def _with_texts(need: Need, counts: Counts) -> Need:
    return Need(need.disk, {**need.memory, "texts": counts.text_bytes}, need.activations)


def _mined(settings: MineSettings | None, counts: Counts) -> float:
    return 8 * settings.keep * counts.queries if settings else 0


def _stage(model: Model | None, training: TrainingSettings | None, counts: Counts, documents: int = 0) -> Need:
    """A model that is trained, or saved as it is: fp32 weights, gradients and two moments; the best weights besides."""
    if model is None:
        return Need()
    if training is None:
        return Need({"model": 4 * model.parameters}, {"weights": 4 * model.parameters})
    trained = model.adapters or (model.body if training.token_table == "frozen" else model.parameters)
    texts = {"query": training.batch_size, "document": training.batch_size * documents}
    parts = [(rows / training.accumulate, counts.tokens.get(side, 0)) for side, rows in texts.items()]
    together = _together(training, sum(rows * tokens for rows, tokens in parts))
    parts = [(rows * together, tokens) for rows, tokens in parts]
    block = SURE_INPUTS if training.gradient_checkpointing else SURE_ACTIVATIONS
    sure = sum(block * model.layers * model.hidden * rows * tokens for rows, tokens in parts)
    return Need(
        {"model": 4 * model.parameters, "checkpoints": (12 + 4 * (training.keep == "best")) * trained},
        {"weights": 4 * model.parameters, "gradients and moments": 12 * trained, "activations": sure},
        sum(activation_bytes(model, rows, tokens, again=training.gradient_checkpointing) for rows, tokens in parts),
    )


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
