"""What the step ``bench`` does: the systems' query encoders and whole paths, timed side by side."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.engines.deployed import ONNX, onnx_precisions, read_onnx_manifest
from harness.engines.machine import available_cores
from harness.evaluation.bench import MB, Ramp, Search, bench, priced
from harness.pipeline.checks_evaluation import too_many_threads
from harness.pipeline.context import Run
from harness.pipeline.provenance import versions
from harness.pipeline.work_evaluation import index_of_system, open_system, system_folder
from harness.runtime.process import logger, read_json, write_json
from harness.vectors.index import require_faiss
from harness.vectors.space import require_same_space

if TYPE_CHECKING:
    from harness.encoders.encoder import Encoder
    from harness.engines.protocol import Engine
    from harness.recipe import BenchSettings

_OWN_INDEX = ("teacher-base", "teacher-more")  # systems that search document vectors of their own
_PARALLEL = "TOKENIZERS_PARALLELISM"  # read by the library at each call


def do_bench(run: Run) -> list[Path]:
    """Latency and throughput of the systems' query encoders, interleaved, in this process."""
    settings = run.recipe.bench
    assert settings is not None, "planned only with the section"
    if warning := too_many_threads("bench.threads", settings.threads):
        logger.warning("%s", warning)
    _ = run.device  # now, for it sets the threads of the launch settings
    indexes = _indexes(run, settings.systems)
    with on_threads(settings.threads, faiss="faiss" in {index.kind for index in indexes.values()}) as told:
        engines, weights = _timed(run, settings)
        answer = bench({_label(*pair): engine for pair, engine in engines.items()},
                       sample_queries(run, settings.queries_per_language), warmup=settings.warmup,
                       repeats=settings.repeats, batch_sizes=settings.batch_sizes,
                       search={_label(*pair): _search(run, indexes[pair[0]], settings.k) for pair in engines},
                       ramp=Ramp(settings.max_batch, settings.ramp_seconds))  # fmt: skip
    for (system, name), megabytes in weights.items():
        answer["throughput"][_label(system, name)][name]["weights_mb"] = megabytes
    for part in ("latency", "throughput"):
        by_system: dict[str, dict[str, Any]] = {}
        for system, name in engines:
            by_system.setdefault(system, {}).update(answer[part][_label(system, name)])
        answer[part] = by_system
    answer["conditions"] |= told | _searched(run, indexes, settings.k) | {"versions": versions()}
    write_json(run.folder.bench, answer)
    return [run.folder.bench]


def read_bench(run: Run) -> dict[str, Any] | None:
    """What ``do_bench`` stored, with prices where the recipe has one; None where the recipe times nothing."""
    settings = run.recipe.bench
    if settings is None:
        return None
    told: dict[str, Any] = read_json(run.folder.bench)
    if settings.price_per_hour is not None:
        for rows in told["throughput"].values():
            rows |= {name: priced(row, settings.price_per_hour, settings.currency) for name, row in rows.items()}
    return told


def _label(system: str, engine: str) -> str:
    """Under what name one system in one engine is timed."""
    return system if engine == "torch" else f"{system} in {engine}"


@contextlib.contextmanager
def on_threads(count: int | None, *, faiss: bool) -> Iterator[dict[str, int]]:
    """As many threads for torch (and what follows it), and no parallel tokeniser beside a single one.

    Gives what there is of them, as conditions; afterwards all is as it was.
    """
    import torch

    library = require_faiss("bench") if faiss else None
    before, parallel = torch.get_num_threads(), os.environ.get(_PARALLEL)
    searching, count = library.omp_get_max_threads() if library else before, count or before
    torch.set_num_threads(count)
    if library:
        library.omp_set_num_threads(count)
    if count == 1:
        os.environ[_PARALLEL] = "false"
    alone = os.environ.get(_PARALLEL, "").lower() in ("false", "off", "no", "n", "f", "0")
    tokenising = 1 if alone else int(os.environ.get("RAYON_NUM_THREADS") or 0) or available_cores()
    try:
        yield {"search_threads": 1 if library else count, "tokeniser_threads": tokenising}
    finally:
        torch.set_num_threads(before)
        if library:
            library.omp_set_num_threads(searching)
        os.environ.pop(_PARALLEL, None)
        if parallel is not None:
            os.environ[_PARALLEL] = parallel


def _indexes(run: Run, systems: Sequence[str]) -> dict[str, Any]:
    """system -> the index that it searches; one in memory for all that search the frozen one.

    Raises:
        StaleArtefactError: a system's space is not its index's.
    """
    found: dict[str, Any] = {}
    frozen: str | None = None  # the first system that searches it
    for system in systems:
        if system in _OWN_INDEX or frozen is None:
            found[system] = index_of_system(run, system)
            frozen = frozen or (None if system in _OWN_INDEX else system)
            continue
        folder = system_folder(run, system)
        assert folder is not None
        require_same_space(run.space(folder), run.store("documents").space, system, "the document vectors")
        found[system] = found[frozen]
    return found


def _search(run: Run, index: Any, k: int) -> Search:
    """What a service does with a query's vector: the k best documents, among those of its language where asked for.

    FAISS in one thread: it divides queries among threads, and one query can't be divided. With more, each search waits
    for threads that find the encoder's still spinning on their cores: 3 ms instead of 0.4 after ONNX Runtime on two
    cores. Set at each call, for torch and FAISS may share one OpenMP.
    """
    within = run.dataset.search_within

    def search(vector_1D: Any, language: str) -> Any:
        return index.search(vector_1D, k, [language] if within else None)

    if index.kind != "faiss":
        return search
    library = require_faiss("bench")

    def in_one_thread(vector_1D: Any, language: str) -> Any:
        threads = library.omp_get_max_threads()
        library.omp_set_num_threads(1)
        try:
            return search(vector_1D, language)
        finally:
            library.omp_set_num_threads(threads)

    return in_one_thread


def _searched(run: Run, indexes: Mapping[str, Any], k: int) -> dict[str, Any]:
    """The conditions of the search."""
    kinds = {system: index.kind for system, index in indexes.items()}
    first, documents = next(iter(indexes.values())), run.dataset.documents
    largest = max(Counter(documents.languages).values()) if run.dataset.search_within else len(documents.ids)
    return {
        "searcher": first.kind if len(set(kinds.values())) == 1 else kinds,
        "documents": len(documents.ids),
        "dimension": first.dimension,
        "k": min(k, largest),  # there are no more hits
        "search_within": "one language" if run.dataset.search_within else "all documents",
    }


def _timed(run: Run, settings: BenchSettings) -> tuple[dict[tuple[str, str], Engine], dict[tuple[str, str], float]]:
    """(system, engine) -> the engine, and MB of its weights: every system in torch and what compiles it, the deployed
    one in ONNX, too.

    What failed the parity gate is not there to be timed; the report says so.
    """
    import torch

    from harness.engines.torch_eager import TorchEngine

    found: dict[tuple[str, str], Engine] = {}
    weights: dict[tuple[str, str], float] = {}
    for system in settings.systems:
        encoder = open_system(run, system)
        found[system, "torch"], weights[system, "torch"] = TorchEngine(encoder), _weights(encoder)
    for name in settings.engines:
        if name.startswith("onnx"):
            from harness.engines.onnx_runtime import OnnxEngine

            precision, folder = name.removeprefix("onnx").lstrip("-") or "fp32", run.folder.export / "student"
            assert run.recipe.export is not None, "refused by the recipe"
            if precision in onnx_precisions(folder):
                engine = OnnxEngine(folder, precision=precision, threads=torch.get_num_threads())  # as all others
                found[run.recipe.export.system, name] = engine
                files = read_onnx_manifest(folder)["files"][precision]
                weights[run.recipe.export.system, name] = sum((folder / ONNX / f).stat().st_size for f in files) / MB
            continue
        for system in settings.systems:
            encoder = open_system(run, system)
            found[system, name], weights[system, name] = _compiled(name, encoder), _weights(encoder)
    return found, weights


def _weights(encoder: Encoder) -> float:
    """MB of an encoder's parameters, as they are in memory."""
    return float(sum(parameter.numel() * parameter.element_size() for parameter in encoder.parameters())) / MB


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
