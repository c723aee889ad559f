"""The engine that runs an exported ONNX file, without torch or transformers. Axes: B texts, L tokens, D dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.engines.deployed import MODEL_FILES, ONNX, OUTPUT, check_onnx
from harness.engines.machine import available_cores
from harness.engines.tokeniser import Tokeniser, Tokens
from harness.runtime.errors import InputError, Problem

PRECISIONS = tuple(MODEL_FILES)


class OnnxEngine:
    """The query side of an exported folder in ONNX Runtime (see ``harness.engines.protocol.Engine``).

    Args:
        folder: a sentence-transformers folder with ``onnx/`` in it.
        precision: ``fp32``, ``fp16``, ``int8`` or ``int8-static``.
        threads: of one operator; None: as many as there are cores.
        providers: of ONNX Runtime, such as ``CUDAExecutionProvider``; None: the CPU.
        verify: whether files are compared with their hashes; False for who has just done so.

    Raises:
        InputError: onnxruntime is not installed, no such file or provider, no tokenizer, an adapter.
        StaleArtefactError: a file is not the one that was exported (``deployed.check_onnx``).
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        precision: str = "fp32",
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        verify: bool = True,
    ) -> None:
        folder = Path(folder)
        if precision not in MODEL_FILES:
            raise InputError(Problem("no such precision", where="precision", got=precision,
                                     allowed=", ".join(MODEL_FILES), next="name one of these"))
        if verify:
            check_onnx(folder, [precision])
        self.name = "onnx" if precision == "fp32" else f"onnx-{precision}"
        self._tokeniser = Tokeniser.of_folder(folder)
        self._threads = threads or available_cores()
        self._precision = precision
        self._session = open_session(folder / ONNX / MODEL_FILES[precision], self._threads, providers)

    def tokenise(self, texts: Sequence[str]) -> Tokens:
        """Token ids and mask; the query prompt is added here."""
        return self._tokeniser(texts)

    def forward(self, tokens: Tokens) -> NDArray[np.float32]:
        """vector_BD."""
        feed = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
        vector_BD: NDArray[np.float32] = self._session.run([OUTPUT], feed)[0]
        return vector_BD

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """vector_BD."""
        return self.forward(self.tokenise(texts))

    def describe(self) -> dict[str, Any]:
        """``device``, ``dtype``, ``threads``, ``max_length``."""
        provider = self._session.get_providers()[0]
        return {
            "device": provider.removesuffix("ExecutionProvider").lower(),
            "dtype": {"fp32": "float32", "fp16": "float16"}.get(self._precision, self._precision),
            "threads": self._threads,
            "max_length": self._tokeniser.max_length,
        }


def open_session(path: Path, threads: int, providers: Sequence[str] | None = None) -> Any:
    """A session over an ONNX file, all of ONNX Runtime's own optimisations on, its inputs and output checked.

    Raises:
        InputError: onnxruntime is not installed or lacks a provider, or this is not such a file.
    """
    try:
        import onnxruntime
    except ImportError:
        advice = "pip install 'harness-retrieval[onnx]'"
        raise InputError(Problem("onnxruntime is not installed", where=str(path), got="no package onnxruntime",
                                 allowed="onnxruntime, or onnxruntime-gpu", next=advice)) from None
    providers = list(providers or ["CPUExecutionProvider"])
    missing = [name for name in providers if name not in onnxruntime.get_available_providers()]
    if missing:
        raise InputError(Problem("ONNX Runtime has no such provider", where="providers", got=", ".join(missing),
                                 allowed=", ".join(onnxruntime.get_available_providers()),
                                 next="name one of these, or install the onnxruntime that has it"))  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # it warns of nodes that it leaves on the CPU, and of initialisers that it drops
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its own kinds, which derive from nothing narrower
        got = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        raise InputError(Problem("ONNX Runtime can't open this file", where=str(path), got=got,
                                 allowed="a graph that harness exported",
                                 next="export it again")) from error  # fmt: skip
    inputs = sorted(node.name for node in session.get_inputs())
    outputs = [node.name for node in session.get_outputs()]
    if inputs != ["attention_mask", "input_ids"] or OUTPUT not in outputs:
        raise InputError(Problem("not a graph from token ids to vectors", where=str(path),
                                 got=f"{', '.join(inputs)} -> {', '.join(outputs)}",
                                 allowed=f"attention_mask, input_ids -> {OUTPUT}", next="export it again"))  # fmt: skip
    return session
