"""What the step ``bench`` does: the systems' query encoders, timed side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.engines.deployed import onnx_precisions
from harness.evaluation.bench import bench
from harness.pipeline.context import Run
from harness.pipeline.work_evaluation import open_system
from harness.runtime.process import write_json

if TYPE_CHECKING:
    from harness.encoders.encoder import Encoder
    from harness.engines.protocol import Engine
    from harness.recipe import BenchSettings



def do_bench(run: Run) -> list[Path]:
    """Latency and throughput of the systems' query encoders, interleaved, in this process."""
    import torch

    settings = run.recipe.bench
    assert settings is not None, "planned only with the section"
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads or threads)
    try:
        engines = _timed(run, settings)
        queries = sample_queries(run, settings.queries_per_language)
        answer = bench({_label(*pair): engine for pair, engine in engines.items()}, queries, warmup=settings.warmup,
                       repeats=settings.repeats, batch_sizes=settings.batch_sizes)  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    for part in ("latency", "throughput"):
        by_system: dict[str, dict[str, Any]] = {}
        for system, name in engines:
            by_system.setdefault(system, {}).update(answer[part][_label(system, name)])
        answer[part] = by_system
    write_json(run.folder.bench, answer)
    return [run.folder.bench]


def _label(system: str, engine: str) -> str:
    """Under what name one system in one engine is timed."""
    return system if engine == "torch" else f"{system} in {engine}"


def _timed(run: Run, settings: BenchSettings) -> dict[tuple[str, str], Engine]:
    """(system, engine) -> the engine: every system in torch and what compiles it, the deployed one in ONNX, too.

    What failed the parity gate is not there to be timed; the report says so.
    """
    import torch

    from harness.engines.torch_eager import TorchEngine

    found: dict[tuple[str, str], Engine] = {(s, "torch"): TorchEngine(open_system(run, s)) for s in settings.systems}
    for name in settings.engines:
        if name.startswith("onnx"):
            from harness.engines.onnx_runtime import OnnxEngine

            precision, folder = name.removeprefix("onnx").lstrip("-") or "fp32", run.folder.export / "student"
            assert run.recipe.export is not None, "refused by the recipe"
            if precision in onnx_precisions(folder):
                engine = OnnxEngine(folder, precision=precision, threads=torch.get_num_threads())  # as all others
                found[run.recipe.export.system, name] = engine
            continue
        for system in settings.systems:
            found[system, name] = _compiled(name, open_system(run, system))
    return found


def _compiled(name: str, encoder: Encoder) -> Engine:
    """An engine that records or compiles what the encoder does."""
    if name == "torch-compile":
        from harness.engines.torch_compile import TorchCompileEngine

        return TorchCompileEngine(encoder)
    from harness.engines.cuda_graphs import CudaGraphsEngine

    return CudaGraphsEngine(encoder, device=encoder.device)


def sample_queries(run: Run, per_language: int) -> dict[str, list[str]]:
    """Real query texts of the last set that the data has, some of each language."""
    splits = run.dataset.splits
    records = splits.get("test") or splits["report"]
    by_language: dict[str, list[str]] = {}
    for record in records:
        by_language.setdefault(record.language, []).append(record.text)
    random = np.random.default_rng(run.recipe.seed)
    return {
        language: [texts[i] for i in random.permutation(len(texts))[:per_language]]
        for language, texts in sorted(by_language.items())
    }


