"""A deployed folder -> the engine that is fastest on this machine, measured at first use and remembered."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.encoders.chain import weights_sha256
from harness.engines.deployed import (
    check_folder,
    check_onnx,
    deciding_files,
    has_weights,
    onnx_precisions,
    read_onnx_manifest,
    refuse_unusable,
)
from harness.engines.machine import available_cores, cpu_name, gpus
from harness.engines.onnx_runtime import OnnxEngine
from harness.engines.protocol import Engine
from harness.runtime.errors import InputError, Problem, RunError, gather_problems
from harness.runtime.process import fingerprint, logger, read_json, write_json

ENGINES = ("torch", "torch-compile", "cuda-graphs", "onnx", "onnx-fp16", "onnx-int8", "onnx-int8-static")
_EXACT = ("torch", "torch-compile", "cuda-graphs", "onnx")
_SAMPLE = (
    "wireless headphones", "ein lachendes Gesicht mit Brille", "red running shoes for women size 42", "東京 ホテル",
    "meilleur restaurant italien près de la gare centrale", "hdmi cable", "how do I reset the password of my router",
    "مقهى",
)  # fmt: skip
_TURNS, _CALLS, _WARM_UP = 3, 8, 2  # calls of a turn, after so many that are not timed
_ENOUGH = 500_000_000  # nanoseconds
_BATCH = 32  # texts of like length together
_FIRST_THREADS = 4  # what engines are compared at; the winner alone is then tried with others
# What int8 may cost is decided where it is exported; here a file that this machine's kernels get wrong is found.
_LEAST_COSINE = {"onnx": 0.9999, "torch-compile": 0.9999, "cuda-graphs": 0.999, "onnx-fp16": 0.999}
_LEAST_INT8 = 0.85


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine, its threads, and what was measured: engine and threads -> median milliseconds of one query."""

    engine: str
    threads: int
    milliseconds: Mapping[str, float]


class QueryEncoder:
    """Queries to vectors, by the engine that was chosen for this machine.

    Attributes:
        engine: what runs (see ``harness.engines.protocol.Engine``).
        choice: its name, its threads, and what was measured, if anything was.
        dimension: D.
    """

    def __init__(self, engine: Engine, choice: Choice) -> None:
        self.engine, self.choice = engine, choice
        self.dimension = int(engine.encode(["a"]).shape[1])

    def encode(self, texts: str | Sequence[str]) -> NDArray[np.float32]:
        """vector_ND, float32, in the order of the texts; the query prompt is added. One text gives one row."""
        several = [texts] if isinstance(texts, str) else list(texts)
        vector_ND = np.empty((len(several), self.dimension), dtype=np.float32)
        order = sorted(range(len(several)), key=lambda place: len(several[place]))
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            vector_ND[rows] = self.engine.encode([several[row] for row in rows])
        return vector_ND


def load(
    folder: str | Path,
    *,
    engine: str | None = None,
    threads: int | None = None,
    exact: bool = False,
    queries: Sequence[str] | None = None,
) -> QueryEncoder:
    """Open a student's folder with the engine that answers a single query fastest on this machine.

    At first use every engine that the folder and the machine allow is timed for a moment (torch, ONNX files, CUDA
    graphs on a GPU; not ``torch-compile``, which compiles anew in every process), then the fastest with more and fewer
    threads. The choice is kept in the user's cache folder, for this machine and these files: the folder itself may be
    read-only. Where torch is chosen, its number of threads is set for the whole process.

    Args:
        folder: what ``harness`` exported, or any sentence-transformers folder that it can open.
        engine: one of ``ENGINES``, instead of choosing.
        threads: a whole number from 1, instead of trying.
        exact: leave out fp16 and int8.
        queries: time with these instead of a few that are built in; lengths decide.

    Raises:
        InputError: no folder, no tokenizer, an unmerged adapter, an engine that can't run here, no number of threads;
            all of it at once.
        StaleArtefactError: files were edited or swapped since they were exported, each named.
    """
    folder = Path(folder)
    available: list[str] = []
    gather_problems(lambda: _refuse_threads(threads), lambda: available.extend(_available(folder)))
    names = [name for name in available if name in _EXACT or not exact]
    if engine is not None:
        if engine not in ENGINES or (engine.startswith("onnx") and engine not in available):
            raise InputError(Problem("no such engine for this folder", where=str(folder), got=engine,
                                     allowed=", ".join(dict.fromkeys([*available, *ENGINES[:3]])),
                                     next="name one of these, or add the file to export.onnx"))  # fmt: skip
        names = [engine]
    if len(names) == 1 and threads is not None:
        return _open(folder, Choice(names[0], threads, {}))
    given = None if queries is None else fingerprint(list(queries))
    key = fingerprint([_machine(), _files(folder, names), names, threads, given])
    kept = _read_choice(key, names)
    if kept is None:
        kept = _measure(folder, names, threads, [*(queries or _SAMPLE)][: _TURNS * _CALLS])
        _keep_choice(key, kept)
    return _open(folder, kept)


def _refuse_threads(threads: object) -> None:
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise InputError(Problem("not a number of threads", where="threads", got=repr(threads),
                                 allowed="a whole number from 1, or None to find the fastest",
                                 next="leave it out"))  # fmt: skip


def _available(folder: Path) -> list[str]:
    """The engines that this folder and this machine allow, every file that they read checked."""
    refuse_unusable(folder)
    precisions = onnx_precisions(folder)
    names = ["onnx" if precision == "fp32" else f"onnx-{precision}" for precision in precisions]
    if precisions:
        check_onnx(folder, precisions)
        if not _installed("onnxruntime"):
            logger.info("onnxruntime is not installed: the folder's ONNX files are left out")
            names = []
    if has_weights(folder) or not names:
        check_folder(folder)
        names = ["torch", *(["cuda-graphs"] if gpus() else []), *names]
    return names


def _make(folder: Path, name: str, threads: int) -> Engine:
    if name.startswith("onnx"):
        precision = name.partition("-")[2] or "fp32"
        return OnnxEngine(folder, precision=precision, threads=threads, verify=False)
    import torch

    from harness.encoders.folder import open_encoder
    from harness.engines.cuda_graphs import CudaGraphsEngine
    from harness.engines.torch_compile import TorchCompileEngine
    from harness.engines.torch_eager import TorchEngine

    on_gpu = torch.cuda.is_available()
    torch.set_num_threads(threads)
    encoder = open_encoder(folder, attention="sdpa" if on_gpu else "eager")
    if name == "cuda-graphs":
        return CudaGraphsEngine(encoder)
    device = "cuda" if on_gpu else "cpu"
    return (TorchCompileEngine if name == "torch-compile" else TorchEngine)(encoder, device=device)


def _open(folder: Path, choice: Choice) -> QueryEncoder:
    return QueryEncoder(_make(folder, choice.engine, choice.threads), choice)


def _failed(name: str, error: RunError) -> Problem:
    return Problem("the engine can't run here", where=name, got=str(error), allowed="any other engine",
                   next="name another one, or export the folder again")  # fmt: skip


# ------------------------------------------------------------------------------------------------------ measuring


def _measure(folder: Path, names: Sequence[str], threads: int | None, texts: Sequence[str]) -> Choice:
    """The fastest engine, then its best number of threads.

    Raises:
        InputError: none can be opened; it says why of each.
    """
    first = threads or min(_FIRST_THREADS, available_cores())
    engines: dict[str, Engine] = {}
    problems = []
    for name in names:
        try:
            engines[name] = _make(folder, name, first)
        except (InputError, RunError) as error:
            logger.info("%s is left out: %s", name, error)
            problems += error.problems if isinstance(error, InputError) else [_failed(name, error)]
    if not engines:
        raise InputError(problems)
    _drop_wrong(engines, texts)
    found = {f"{name} {first}": taken for name, taken in time_engines(engines, texts).items()}
    best = min(engines, key=lambda name: found[f"{name} {first}"])
    del engines
    if threads is None:
        for count in thread_counts(available_cores()):
            if count != first:
                engine = _make(folder, best, count)
                found[f"{best} {count}"] = time_engines({best: engine}, texts)[best]
        first = min(thread_counts(available_cores(), first), key=lambda count: found[f"{best} {count}"])
    return Choice(best, first, found)


def thread_counts(cores: int, *more: int) -> list[int]:
    """The numbers of threads worth trying: powers of two up to all cores."""
    return sorted({*(2**power for power in range(cores.bit_length()) if 2**power <= cores), cores, *more})


def _drop_wrong(engines: dict[str, Engine], texts: Sequence[str]) -> None:
    """Leave out what does not give torch's vectors; without torch's weights there is nothing to compare with."""
    if "torch" not in engines:
        return
    expected_ND = engines["torch"].encode(texts)
    for name in [name for name in engines if name != "torch"]:
        found_ND = engines[name].encode(texts)
        lengths_N = np.linalg.norm(found_ND, axis=1) * np.linalg.norm(expected_ND, axis=1)
        worst = float(((found_ND * expected_ND).sum(axis=1) / lengths_N).min())
        if not worst >= _LEAST_COSINE.get(name, _LEAST_INT8):
            logger.warning("%s is left out: its vectors differ from torch's (cosine %.4f)", name, worst)
            del engines[name]


def time_engines(engines: Mapping[str, Engine], texts: Sequence[str]) -> dict[str, float]:
    """Median milliseconds of one text, tokenised too.

    In turns, so that a busy moment strikes all, but in blocks: threads of the one before go on spinning for a while.
    An engine that is hopelessly slow gets no second block.
    """
    taken: dict[str, list[int]] = {name: [] for name in engines}
    for turn in range(_TURNS):
        for name, engine in engines.items():
            if sum(taken[name]) > _ENOUGH:
                continue
            for call in range(-_WARM_UP, _CALLS):
                started = perf_counter_ns()
                engine.encode([texts[(turn * _CALLS + call) % len(texts)]])
                if call >= 0:
                    taken[name].append(perf_counter_ns() - started)
    return {name: float(np.median(several)) / 1e6 for name, several in taken.items()}


# ---------------------------------------------------------------------------------------------------- remembering


def _installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def _machine() -> dict[str, Any]:
    versions = {name: metadata.version(name) for name in ("numpy", "torch", "onnxruntime") if _installed(name)}
    return {"host": platform.node(), "cpu": cpu_name(), "cores": available_cores(), "gpus": gpus(),
            "versions": versions}  # fmt: skip


def _files(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    onnx = read_onnx_manifest(folder)["files"] if any(name.startswith("onnx") for name in names) else None
    return {"weights": weights_sha256(folder) if has_weights(folder) else None, "onnx": onnx,
            "beside": deciding_files(folder)}  # fmt: skip


def _cache_file(key: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "harness" / "engines" / f"{key}.json"


def _read_choice(key: str, names: Sequence[str]) -> Choice | None:
    """What was chosen before; None where it was not, or can't be read."""
    make: Callable[..., Choice] = Choice
    try:
        choice = make(**read_json(_cache_file(key)))
        usable = choice.engine in names and isinstance(choice.threads, int) and choice.threads > 0
        return choice if usable else None
    except (InputError, TypeError, OSError, RuntimeError):  # no such file, or not ours; no home
        return None


def _keep_choice(key: str, choice: Choice) -> None:
    value = {"engine": choice.engine, "threads": choice.threads, "milliseconds": dict(choice.milliseconds)}
    try:
        write_json(_cache_file(key), value)
    except (OSError, RuntimeError) as error:  # a read-only home, or none: measured again next time
        logger.info("the choice of an engine can't be kept: %s", error)
