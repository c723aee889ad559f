"""What a run needs beside data and models: devices and packages, told before anything is read. Imports no torch."""

from __future__ import annotations

import importlib.util

from harness.pipeline.launch import usable_gpus
from harness.recipe import Recipe, TrainingSettings
from harness.runtime.errors import Problem


def installed(module: str) -> bool:
    """Whether a Python module could be imported."""
    return importlib.util.find_spec(module) is not None


def trainings(recipe: Recipe) -> dict[str, TrainingSettings]:
    """The settings of every training that the recipe wants, by step."""
    stages = {"teacher": recipe.teacher if recipe.teacher.train else None, "align": recipe.align,
              "refine": recipe.refine}  # fmt: skip
    return {name: stage.training for name, stage in stages.items() if stage and stage.training}


def device_problems(recipe: Recipe) -> list[Problem]:
    """What this machine has no device for."""
    gpus, found = usable_gpus(recipe.launch), []
    on_gpu = bool(gpus) and recipe.launch.device != "cpu"
    if recipe.launch.device == "cuda" and not gpus:
        found.append(
            Problem("no GPU is visible", where="launch.device", got="cuda", allowed="auto, cpu",
                    next="check CUDA_VISIBLE_DEVICES and the driver, or set launch.device: cpu")
        )  # fmt: skip
    if recipe.bench and "cuda-graphs" in recipe.bench.engines and not on_gpu:
        found.append(Problem("cuda-graphs needs a GPU, and the run uses none", where="bench.engines", got="cuda-graphs",
                             next="take it out"))  # fmt: skip
    for stage, training in trainings(recipe).items():
        where = f"{stage}.training.attention"
        if training.attention == "flash_attention_2" and recipe.launch.device != "cuda" and not gpus:
            found.append(Problem("flash_attention_2 needs a GPU, and the run uses none", where=where,
                                 got="flash_attention_2", allowed="auto, eager, sdpa", next="set attention: auto"))
        elif training.attention == "flash_attention_2" and not installed("flash_attn"):
            found.append(Problem("the package 'flash_attn' is not installed", where=where, got="flash_attention_2",
                                 next="pip install flash-attn, or set attention: sdpa"))
        own = training.attention != "flash_attention_2"
        if training.unpadded is True and on_gpu and own and (training.dropout or training.precision == "fp32"):
            got = f"dropout: {training.dropout}" if training.dropout else "precision: fp32"
            found.append(Problem("the kernel for batches without padding computes in 16 bits and without dropout",
                                 where=f"{stage}.training.unpadded", got=got, next="set unpadded: auto, or change it"))
    if recipe.embed.unpadded is True and recipe.embed.precision == "fp32" and on_gpu:
        found.append(Problem("the kernel for batches without padding computes in 16 bits", where="embed.unpadded",
                             got="precision: fp32", next="set embed.precision: bf16, or unpadded: auto"))
    return found


def package_problems(recipe: Recipe) -> list[Problem]:
    """Packages that the recipe asks for and that are not there."""
    files = {"documents.vectors": recipe.documents.vectors, "teacher.query_vectors": recipe.teacher.query_vectors}
    wanted: list[tuple[str, str, str, str]] = [("tracking.trackers", name, "tracking", f"take {name} out")
                                               for name in recipe.tracking.trackers]  # fmt: skip
    if recipe.evaluate.searcher == "faiss":
        wanted.append(("evaluate.searcher", "faiss", "cpu", "set evaluate.searcher: exact"))
    if any(given.mteb for given in recipe.evaluate.outside):
        wanted.append(("evaluate.outside", "mteb", "mteb", "take its tasks out"))
    if recipe.data.source == "emoji":
        wanted.append(("data.source", "emoji", "quickstart", "choose another source"))
    if recipe.export and recipe.export.onnx:
        packages = ("onnx", "onnxruntime", "onnxscript")
        wanted += [("export.onnx", name, "onnx", "take export.onnx out") for name in packages]
    if recipe.export and any("faiss" in name for name in recipe.export.index):
        wanted.append(("export.index", "faiss", "cpu", "set export.index: [npy]"))
    if recipe.bench and recipe.bench.ann:
        wanted.append(("bench.ann", "faiss", "cpu", "remove bench.ann"))
    wanted += [(f"{key}.format", "faiss", "cpu", "give the vectors as npy or parquet")
               for key, given in files.items() if given and given.format == "faiss"]  # fmt: skip
    return [
        Problem(f"the package {module!r} is not installed", where=where, got=module,
                next=f"pip install 'harness-retrieval[{extra}]', or {instead}")
        for where, module, extra, instead in wanted if not installed(module)
    ]  # fmt: skip
