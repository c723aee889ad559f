"""A deployed folder -> the engine that is fastest on this machine, measured at first use and remembered."""

from __future__ import annotations

import numbers
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.encoders.chain import weights_sha256
from harness.engines.choice import Choice, choose, first_threads, keep_choice, read_choice
from harness.engines.deployed import (
    PROBE,
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
from harness.runtime.process import fingerprint, logger

ENGINES = ("torch", "torch-compile", "cuda-graphs", "onnx", "onnx-fp16", "onnx-int8", "onnx-int8-static")
_PACKAGES = ("numpy", "tokenizers", "torch", "transformers", "onnxruntime")
_EXACT = ("torch", "torch-compile", "cuda-graphs", "onnx")
_SAMPLE = (
    "wireless headphones", "ein lachendes Gesicht mit Brille", "red running shoes for women size 42", "東京 ホテル",
    "meilleur restaurant italien près de la gare centrale", "hdmi cable", "how do I reset the password of my router",
    "مقهى",
)  # fmt: skip
_BATCH = 32  # texts of like length together
# What int8 may cost is decided where it is exported; here a file that this machine's kernels get wrong is found.
_LEAST_COSINE = {"torch": 0.9999, "onnx": 0.9999, "torch-compile": 0.9999, "cuda-graphs": 0.999, "onnx-fp16": 0.999}
_LEAST_INT8 = 0.85
_UNSTEADY = 2.0


class QueryEncoder:
    """Queries to vectors, by the engine that was chosen for this machine.

    Attributes:
        engine: what runs (see ``harness.engines.protocol.Engine``).
        choice: its name, its threads, and what was measured, if anything was; ``choice.why`` in a sentence.
        dimension: D.
    """

    def __init__(self, engine: Engine, choice: Choice) -> None:
        self.engine, self.choice = engine, choice
        self.dimension = int(engine.encode(["a"]).shape[1])

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """vector_ND, float32, in the order of the texts; the query prompt is added.

        Raises:
            InputError: not a list of texts (a text by itself is none), or a text that is no Unicode.
        """
        several = _texts(texts, "encode")
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
    refresh: bool = False,
) -> QueryEncoder:
    """Open a student's folder with the engine that answers a single query fastest on this machine.

    At first use what the folder and the machine allow is raced for a second or two: ONNX files; on a GPU, torch and
    CUDA graphs; torch on a CPU only where no ONNX file runs, for it was never the faster one there and takes seconds to
    import. Then the fastest with fewer or more threads (``engines.choice``). The choice is logged, and kept in the
    user's cache folder for this machine, its cores, these versions and these files: the folder itself may be
    read-only. ``refresh=True`` measures again: after a first use beside other work, say. Where torch is chosen, its
    number of threads is set for the whole process. ``torch-compile``, which compiles anew in every process, must be
    named.

    Args:
        folder: what ``harness`` exported, or any sentence-transformers folder that it can open.
        engine: one of ``ENGINES``, instead of choosing.
        threads: a whole number from 1 to the cores that this process may use, instead of trying.
        exact: leave out fp16 and int8.
        queries: time with these instead of a few that are built in; lengths decide. A list of texts.
        refresh: measure again, whatever was kept.

    Raises:
        InputError: no folder, no tokenizer, an unmerged adapter, an engine that can't run here or is not exact
            where that is asked for, no number of threads, no list of queries; all of it at once.
        StaleArtefactError: files were edited or swapped since they were exported, each named.
    """
    folder = Path(folder)
    names: list[str] = []
    gather_problems(
        lambda: _refuse_threads(threads),
        lambda: _refuse_inexact(engine, exact),
        lambda: None if queries is None else _refuse_no_queries(queries),
        lambda: names.extend(_named(folder, engine, exact)),
    )
    threads = None if threads is None else int(threads)
    if len(names) == 1 and threads is not None:
        return _open(folder, Choice(names[0], threads, {}))
    given = None if queries is None else fingerprint(list(queries))
    key = fingerprint([_machine(), _files(folder, names), names, threads, given])
    kept = None if refresh else read_choice(key, names)
    if kept is None:
        kept = _measure(folder, names, threads, list(queries or _SAMPLE))
        keep_choice(key, kept)
        logger.info("harness.load: %s. Kept for this machine and folder; refresh=True measures again", kept.why)
        if (unsteady := kept.measured["unsteady"]) > _UNSTEADY:
            logger.info("harness.load: the machine was busy (the same calls took up to %.1f times as long): when it is "
                        "idle, load once with refresh=True", unsteady)  # fmt: skip
    return _open(folder, kept)


def _refuse_threads(threads: object) -> None:
    """More threads than cores wait for each other: minutes where one takes seconds."""
    cores = available_cores()
    whole = isinstance(threads, numbers.Integral) and not isinstance(threads, bool)  # NumPy's are, too
    if threads is None or (whole and 1 <= int(threads) <= cores):  # type: ignore[call-overload]
        return
    what = "more threads than this process may use cores" if whole and int(threads) > cores else (  # type: ignore[call-overload]
        "not a number of threads")  # fmt: skip
    raise InputError(Problem(what, where="threads", got=repr(threads),
                             allowed=f"a whole number from 1 to {cores}, or None to find the fastest",
                             next="leave it out"))  # fmt: skip


def _refuse_inexact(engine: object, exact: bool) -> None:
    if exact and engine in ENGINES and engine not in _EXACT:
        raise InputError(Problem("contradicts exact=True: this engine is not exact", where="engine", got=str(engine),
                                 allowed=", ".join(_EXACT), next="name one of these, or leave exact out"))  # fmt: skip


def _refuse_no_queries(queries: Sequence[str]) -> None:
    if not _texts(queries, "queries"):
        raise InputError(Problem("no queries to time with", where="queries", got="an empty list",
                                 allowed="a list of texts, or None for a few that are built in",
                                 next="give some, or leave it out"))  # fmt: skip


def _texts(texts: object, where: str) -> list[str]:
    """A list of texts as it was given.

    Raises:
        InputError: it is none.
    """
    def refuse(what: str, got: str, next: str) -> InputError:
        return InputError(Problem(what, where=where, got=got, allowed="a list of texts", next=next))

    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        one = isinstance(texts, str)
        raise refuse("not a list of texts", f"{type(texts).__name__}: {texts!r}"[:80],
                     f"give a list of texts: [{texts!r}]"[:80] if one else "give a list of texts")
    several = list(texts)
    for place, text in enumerate(several):
        if not isinstance(text, str):
            raise refuse("not a text", f"{type(text).__name__} at {place}: {text!r}"[:80], "give a list of texts")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise refuse("a text that is no Unicode: half of a surrogate pair", f"{ascii(text)} at {place}"[:80],
                         f"remove the character at {error.start}, or decode the text rightly") from None
    return several


def _named(folder: Path, engine: object, exact: bool) -> list[str]:
    """The engines to choose from: the named one, or all that folder and machine allow."""
    available = _available(folder)
    if engine is None:
        return [name for name in available if name in _EXACT or not exact]
    if engine not in ENGINES or (str(engine).startswith("onnx") and engine not in available):
        raise InputError(Problem("no such engine for this folder", where=str(folder), got=str(engine),
                                 allowed=", ".join(dict.fromkeys([*available, *ENGINES[:3]])),
                                 next="name one of these, or add the file to export.onnx"))  # fmt: skip
    return [str(engine)]


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
    """The fastest engine, and its best number of threads.

    Raises:
        InputError: none can be opened; it says why of each.
    """
    first, left_out, problems = threads or first_threads(), {}, []
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch is not None else None

    def opened(wanted: Sequence[str]) -> dict[str, Engine]:
        found: dict[str, Engine] = {}
        for name in wanted:
            try:
                found[name] = _make(folder, name, first)
            except (InputError, RunError) as error:
                logger.info("%s is left out: %s", name, error)
                left_out[name] = str(error).splitlines()[0]
                problems.extend(error.problems if isinstance(error, InputError) else [_failed(name, error)])
        return found

    probe = _probe(folder, names)
    onnx = [name for name in names if name.startswith("onnx")]
    engines: dict[str, Engine] = {}
    if onnx and probe and not gpus():
        engines = opened(onnx)
        left_out |= _drop_wrong(engines, *probe)
        if engines and "torch" in names:
            left_out["torch"] = "on a CPU slower than ONNX Runtime wherever it was measured"
    if not engines:
        engines = opened([name for name in names if name not in left_out])
        if "torch" in engines and probe is None:
            probe = list(PROBE), engines["torch"].encode(PROBE)
        left_out |= _drop_wrong(engines, *probe) if probe else {}
    if not engines:
        raise InputError(problems or [_all_wrong(folder, left_out)])
    choice = choose(engines, lambda name, count: _make(folder, name, count), texts, threads, left_out)
    if before is not None and torch is not None and choice.engine.startswith("onnx"):
        torch.set_num_threads(before)
    return choice


def _probe(folder: Path, names: Sequence[str]) -> tuple[list[str], NDArray[np.float32]] | None:
    """Texts and the student's vectors of them, as the export noted them; None where it did not."""
    told = read_onnx_manifest(folder).get("probe") if any(name.startswith("onnx") for name in names) else None
    return (list(told["texts"]), np.array(told["vectors"], dtype=np.float32)) if told else None


def _drop_wrong(
    engines: dict[str, Engine], texts: Sequence[str], expected_ND: NDArray[np.float32]
) -> dict[str, str]:
    """Leave out what does not give the student's vectors on this machine; who, and why."""
    dropped = {}
    for name, engine in list(engines.items()):
        found_ND = engine.encode(texts)
        lengths_N = np.linalg.norm(found_ND, axis=1) * np.linalg.norm(expected_ND, axis=1)
        worst = float(((found_ND * expected_ND).sum(axis=1) / lengths_N).min())
        if not worst >= _LEAST_COSINE.get(name, _LEAST_INT8):
            dropped[name] = f"its vectors differ from the student's (cosine {worst:.4f})"
            logger.warning("%s is left out: %s", name, dropped[name])
            del engines[name]
    return dropped


def _all_wrong(folder: Path, left_out: Mapping[str, str]) -> Problem:
    return Problem("no engine gives the student's vectors on this machine", where=str(folder),
                   got="; ".join(f"{name}: {why}" for name, why in left_out.items()), allowed="one that does",
                   next="export the folder again, and run harness verify here")  # fmt: skip


# ---------------------------------------------------------------------------------------------------- remembering


def _installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def _machine() -> dict[str, Any]:
    versions = {name: metadata.version(name) for name in _PACKAGES if _installed(name)}
    return {"host": platform.node(), "cpu": cpu_name(), "cores": available_cores(), "gpus": gpus(),
            "versions": versions}  # fmt: skip


def _files(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    onnx = read_onnx_manifest(folder)["files"] if any(name.startswith("onnx") for name in names) else None
    return {"weights": weights_sha256(folder) if has_weights(folder) else None, "onnx": onnx,
            "beside": deciding_files(folder)}  # fmt: skip
