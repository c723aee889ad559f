"""How much the steps of a run compute, and how long that takes here and on GPUs. Imports no torch.

A weight of a matrix product costs two floating-point operations for each token that passes it, and four in the backward
pass: two for what came in, two for the weight itself (Kaplan et al. 2020, table 1). Weights that rest below adapters
have no gradient; cached gradients and gradient checkpointing each take one more forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from harness.pipeline.launch import usable_gpus
from harness.pipeline.machine import gpu_name
from harness.pipeline.plan import embedded_kinds, plan
from harness.pipeline.sizes import Counts, Model
from harness.pipeline.streams import estimated_rows
from harness.pipeline.surroundings import trainings
from harness.recipe import Recipe, TrainingSettings

# Dense operations a second in bf16 (fp16 for the T4) and in fp32, from the makers' data sheets, by what a GPU's name
# contains. fp32 is that without tensor cores: nothing here turns TF32 on, and torch leaves it off.
PEAKS = {"B200": (2250e12, 75e12), "GH200": (989e12, 67e12), "H200": (989e12, 67e12), "H100 PCIE": (756e12, 51e12),
         "H100": (989e12, 67e12), "A100": (312e12, 19.5e12), "L40S": (362e12, 91.6e12), "L4": (121e12, 30.3e12),
         "A10G": (70e12, 35e12), "A10": (125e12, 31.2e12), "4090": (165e12, 82.6e12), "3090": (71e12, 35.6e12),
         "T4": (65e12, 8.1e12)}  # fmt: skip
REFERENCE = "H100"  # where no GPU is at hand, or an unknown one
UTILISATION = 0.4  # of the peak: assumed, not measured


@dataclass(frozen=True)
class Gpu:
    """A GPU by its name and its peak rates in bf16 and in fp32, in operations a second; ``here``: this machine's."""

    name: str
    peak: float
    fp32: float
    here: bool

    def hours(self, operations: float, *, fp32: bool = False) -> float:
        """GPU hours at the assumed utilisation, however many GPUs share them."""
        return operations / (UTILISATION * (self.fp32 if fp32 else self.peak)) / 3600


def gpu_of(recipe: Recipe) -> Gpu:
    """The GPU that the run may use, or the reference where there is none or its rate is not known."""
    name = gpu_name(recipe.launch) or ""
    known = next((part for part in PEAKS if part in name.upper()), None)
    return Gpu(name, *PEAKS[known], here=True) if known else Gpu(REFERENCE, *PEAKS[REFERENCE], here=False)


def steps_in_fp32(recipe: Recipe) -> list[str]:
    """The steps that compute in fp32 on a GPU, too, because the recipe says so."""
    slow = {name for name, training in trainings(recipe).items() if training.precision == "fp32"}
    slow |= {"teacher.more"} if "teacher" in slow else set()
    embedding = {"embed.base", "embed", "embed.more", "embed.streams", "embed.outside"}
    slow |= embedding if recipe.embed.precision == "fp32" else set()
    return [step.name for step in plan(recipe) if step.name in slow]


def gpu_hours(recipe: Recipe, work: Mapping[str, float]) -> dict[str, float]:
    """Step -> GPU hours of its operations, each in its precision."""
    gpu, slow = gpu_of(recipe), steps_in_fp32(recipe)
    return {step: gpu.hours(count, fp32=step in slow) for step, count in work.items()}


def fp32_advice(recipe: Recipe, work: Mapping[str, float]) -> str | None:
    """What to set where steps with these operations would compute in fp32 on this machine's GPUs."""
    slow = [step for step in steps_in_fp32(recipe) if work.get(step)]
    if not slow or not usable_gpus(recipe.launch):
        return None
    names = dict.fromkeys("embed" if step.startswith("embed") else f"{step.removesuffix('.more')}.training"
                          for step in slow)  # fmt: skip
    asked = " and ".join(f"{name}.precision: bf16" for name in names)
    return f"{', '.join(slow)}: fp32 on a GPU; {asked} is many times faster"


def computes_in_bf16(recipe: Recipe, training: TrainingSettings) -> bool:
    """Whether a training computes in bf16, as far as can be told before it runs."""
    fast = bool(usable_gpus(recipe.launch)) or has_bf16()
    return training.precision == "bf16" or (training.precision == "auto" and fast)


def runs_eager(recipe: Recipe, training: TrainingSettings) -> bool:
    """Whether attention keeps its scores."""
    return training.attention == "eager" or (training.attention == "auto" and not usable_gpus(recipe.launch))


def has_bf16() -> bool:
    """Whether the processor has instructions for bf16."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and any(word in cpuinfo.read_text() for word in ("avx512_bf16", "amx_tile"))


# ---------------------------------------------------------------------------------------------------- operations


def forward_operations(model: Model, rows: float, tokens: float) -> float:
    """Of ``rows`` texts of ``tokens`` tokens: the weights, and every token's attention to the others of its text."""
    return rows * tokens * (2 * (model.body + model.adapters) + _attention(model, tokens))


def training_operations(model: Model, training: TrainingSettings, rows: float, tokens: float) -> float:
    """Of the forward and backward passes of one step over ``rows`` texts of ``tokens`` tokens."""
    passes = 1 + training.cached + training.gradient_checkpointing
    changed = model.adapters or model.body
    backward = 2 * (model.body + model.adapters) + 2 * changed + 2 * _attention(model, tokens)
    return passes * forward_operations(model, rows, tokens) + rows * tokens * backward


def _attention(model: Model, tokens: float) -> float:
    return 4 * model.layers * tokens * model.heads * model.head


def operations(recipe: Recipe, counts: Counts, models: Mapping[str, Model]) -> dict[str, float]:
    """Step -> floating-point operations, of the steps of which they are known beforehand."""
    found: dict[str, float] = {}
    settings, teacher, student = trainings(recipe), models.get("teacher"), models.get("student")
    for name, model in (("teacher", teacher), ("align", student), ("refine", student)):
        if name in settings and model is not None:
            found[name] = settings[name].steps * _step(name, model, settings[name], recipe, counts)
    if teacher is not None:
        found |= _encoding(recipe, counts, teacher)
        if recipe.align and recipe.align.targets == "online":
            training, query = recipe.align.training, counts.tokens.get("query", 0)
            merged = replace(teacher, adapters=0)
            found["align"] += training.steps * forward_operations(merged, training.batch_size, query)
        if "teacher" in settings and recipe.refine:
            found["teacher.more"] = found["teacher"] / settings["teacher"].steps * recipe.refine.training.steps
    wanted = {step.name for step in plan(recipe)}
    return {name: count for name, count in found.items() if name in wanted}


def _step(name: str, model: Model, training: TrainingSettings, recipe: Recipe, counts: Counts) -> float:
    rows, tokens = training.batch_size, counts.tokens
    found = training_operations(model, training, rows, tokens.get("query", 0))
    if name == "teacher":
        documents = rows * (1 + recipe.teacher.hard_negatives)
        found += training_operations(model, training, documents, tokens.get("document", 0))
    return found


def _encoding(recipe: Recipe, counts: Counts, teacher: Model) -> dict[str, float]:
    """What the teacher encodes, adapters merged; other texts than documents are taken to be as long as queries."""
    teacher, tokens = replace(teacher, adapters=0), counts.tokens
    query, document = tokens.get("query", 0), tokens.get("document", 0)
    documents = forward_operations(teacher, counts.documents, document)
    kinds = {
        "queries": (counts.queries, query), "documents": (counts.documents, document),
        "unlabelled": (counts.unlabelled, query),
    }  # fmt: skip
    as_queries = sum(forward_operations(teacher, *kinds[kind]) for kind in embedded_kinds(recipe))
    base = forward_operations(teacher, counts.queries, query) if recipe.mine.base else 0
    rows = sum(estimated_rows(recipe, recipe.align.streams).values()) if recipe.align else 0
    stored = 0 if recipe.align and recipe.align.targets == "online" else forward_operations(teacher, rows, query)
    return {"embed.base": documents + base, "embed": documents + as_queries, "embed.more": documents,
            "embed.streams": stored,
            "embed.outside": forward_operations(teacher, sum(counts.outside), document)}  # fmt: skip
