"""What a run needs of disk and memory, told before it needs it. Imports no torch.

Parameters come from safetensors headers, counts from the prepared data or, before there is any, from the size of the
source's files. A run is refused only for what it surely needs; activations are estimated after Korthikanti et al. 2022
(eq. 2, without recomputation) and only warned of.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from harness.data.beir import find_beir
from harness.encoders.chain import describe_folder, read_chain
from harness.encoders.layers import select_layers
from harness.encoders.sources import resolve_model
from harness.encoders.targets import adapter_size
from harness.encoders.tokens import read_tokenizer
from harness.pipeline.checks import installed, trainings
from harness.pipeline.folder import RunFolder
from harness.pipeline.launch import usable_gpus
from harness.pipeline.plan import embedded_kinds, plan
from harness.recipe import DataSettings, EncoderSettings, LaunchSettings, MineSettings, Recipe, TrainingSettings
from harness.runtime.errors import InputError, Problem, StaleArtefactError, gather_problems
from harness.runtime.process import logger, read_json

SAMPLE = 2_000  # texts whose tokens are counted
SURE_SHARE = 0.5  # of what a source's first lines promise
SURE_INPUTS = 2  # of a block, where all else of it is computed again
SURE_ACTIVATIONS = 16  # bytes a layer, token and hidden unit: less than any back end keeps
TIGHT = 0.8  # of what there is


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


@dataclass(frozen=True)
class Need:
    """What one step needs, in bytes: ``disk`` stays, ``memory`` is surely held at once, activations are estimated."""

    disk: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, float] = field(default_factory=dict)
    activations: float = 0.0


# ------------------------------------------------------------------------------------------------------ the machine


def free_disk(path: Path) -> int:
    """Free bytes where ``path`` is or would be made."""
    while not os.path.exists(path) and path != path.parent:  # unlike path.exists, also where nobody may look
        path = path.parent
    return shutil.disk_usage(path).free


def total_memory() -> int:
    """The machine's memory in bytes, or what the process's control group may use of it."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _limit_files():
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return min(limit for limit in limits if limit > 0)


def _limit_files() -> Iterator[Path]:
    """Where Linux writes the limits of this process's control group and of those above it (versions 2 and 1)."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root = Path("/sys/fs/cgroup") / controllers
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            own = root / path.lstrip("/")
            yield from (folder / name for folder in (own, *own.parents) if folder.is_relative_to(root))


def gpu_memory(launch: LaunchSettings) -> int | None:
    """The bytes of the largest GPU that the run may use; None if it uses none, or nobody says."""
    if not usable_gpus(launch):
        return None
    try:
        answer = subprocess.run(["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
                                capture_output=True, text=True, timeout=20, check=True)  # fmt: skip
        return max(int(line) for line in answer.stdout.split()) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


# ------------------------------------------------------------------------------------------------- models and counts


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


# ------------------------------------------------------------------------------------------------------ what is needed


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
    row = dimension * (4 if recipe.embed.dtype == "float32" else 2)
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


# --------------------------------------------------------------------------------------------------------- the verdict


def foresee(recipe: Recipe, folder: RunFolder, steps: Collection[str]) -> None:
    """Refuse a run that surely fits neither the disk nor the memory; warn of one that fits barely.

    Args:
        folder: where the run writes; what these steps have begun there and go on with needs no more room.
        steps: those that are to run; where the data is to be made, what lies there of it is not looked at.

    Raises:
        InputError: both numbers, what takes how much, and what to change.
    """
    counts = counts_of(recipe, None if "data" in steps else folder.data)
    wanted = needs(recipe, models_of(recipe), counts)
    judge(recipe, {name: need for name, need in wanted.items() if name in steps}, folder)


def judge(recipe: Recipe, wanted: Mapping[str, Need], folder: RunFolder) -> None:
    """``foresee`` for needs that are known."""
    gather_problems(lambda: _judge_disk(wanted, folder), lambda: _judge_memory(recipe, wanted))


def _judge_disk(wanted: Mapping[str, Need], folder: RunFolder) -> None:
    parts = {f"{step} ({what})": size for step, need in wanted.items() for what, size in need.disk.items()}
    there = sum(_there(step, need, folder) for step, need in wanted.items())
    needed, free = sum(parts.values()) - there, free_disk(folder.root)
    if needed > free:
        raise InputError(
            Problem(f"not enough disk: the run still writes about {size_text(needed)}", where=str(folder.root),
                    got=f"{size_text(free)} free", allowed=_listed(parts),
                    next="make room, choose another disk with --output DIR, or write less: embed.dtype: float16, fewer "
                    "align.texts, training.keep: last")
        )  # fmt: skip
    if needed > TIGHT * free:
        logger.warning("disk is tight: the run writes about %s, %s are free", size_text(needed), size_text(free))


def _there(step: str, need: Need, folder: RunFolder) -> float:
    """How much of what a step needs lies there already and is gone on with; what is written anew counts in full."""
    stores = {"embed.base": ("base-documents", "base-queries"), "embed": ("documents", "queries"),
              "embed.more": ("more-documents",)}.get(step, ())  # fmt: skip
    grown = {
        "vectors": [folder.vectors / f"{name}{end}" for name in stores for end in ("", ".partial")],
        "checkpoints": [folder.checkpoints(step.replace(".", "-"))],
        "hits": [folder.evaluations],
    }
    return sum(min(need.disk.get(what, 0), sum(map(_bytes_below, paths))) for what, paths in grown.items())


def _bytes_below(folder: Path) -> int:
    """The bytes that the files below a folder take on the disk; those with holes take less than their size."""
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # gone meanwhile
                stat = os.lstat(os.path.join(place, name))
                found += min(stat.st_size, 512 * stat.st_blocks)
    return found


def _judge_memory(recipe: Recipe, wanted: Mapping[str, Need]) -> None:
    """The machine's memory; what is trained or encoded with lies in a GPU's, where one is used."""
    gpus, total = usable_gpus(recipe.launch), total_memory()
    on_gpu = {"weights", "gradients and moments", "activations"} if gpus else set()
    places = {"this machine": (total, {step: _part(need, on_gpu, False) for step, need in wanted.items()})}
    if gpus and (gpu := gpu_memory(recipe.launch)):
        files = recipe.launch.accelerate  # a step with one may share its model out to all GPUs
        shares = {step: gpus if {step, step.split(".")[0]} & set(files) else 1 for step in wanted}
        places["a GPU"] = (gpu, {step: _part(need, on_gpu, True, shares[step]) for step, need in wanted.items()})
    problems = []
    for place, (limit, by_step) in places.items():
        step = max(by_step, key=lambda name: sum(by_step[name].values()), default="")
        needed = sum(by_step[step].values()) if step else 0
        if needed > limit:
            problems.append(
                Problem(f"not enough memory: step {step!r} needs {size_text(needed)} at least", where=place,
                        got=f"{size_text(limit)} in all", allowed=_listed(by_step[step]),
                        next="take a machine with more or a smaller model, lower batch_size, raise accumulate, set "
                        "token_table: frozen or gradient_checkpointing: true, train adapters (teacher.lora), or keep "
                        "the index on disk (evaluate.searcher: exact)")
            )  # fmt: skip
    if problems:
        raise InputError(problems)
    for step, need in wanted.items():
        if not gpus and peak(need) > TIGHT * total:
            logger.warning("memory is tight: step %s may take %s of %s", step, size_text(peak(need)), size_text(total))


def _part(need: Need, on_gpu: Collection[str], there: bool, share: int = 1) -> dict[str, float]:
    """What of a step's memory lies on a GPU (``there``), or what does not."""
    return {name: size / share for name, size in need.memory.items() if (name in on_gpu) == there}


def _listed(parts: Mapping[str, float]) -> str:
    largest = sorted(parts.items(), key=lambda part: -part[1])
    return "room for " + ", ".join(f"{name} {size_text(size)}" for name, size in largest[:8] if size > 0)


def size_text(count: float) -> str:
    """``1.5 GB``."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
