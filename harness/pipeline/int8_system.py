"""``student-int8``: the deployed int8 file, evaluated as it will serve, one query at a time.

Ranges of activations are taken from what is encoded together, so a batch would give other vectors than a query alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.engines.deployed import onnx_precisions, read_onnx_manifest
from harness.runtime.distributed import join_rows, share
from harness.runtime.errors import RunError
from harness.runtime.process import progress, read_json

if TYPE_CHECKING:
    from pathlib import Path

    from harness.pipeline.context import Run

SYSTEM = "student-int8"


def int8_folder(run: Run) -> Path:
    """The deployed student's folder."""
    folder: Path = run.folder.export / "student"
    return folder


def made_of(run: Run) -> list[Any]:
    """What its vectors depend on: the int8 file, and what of the folder decides which tokens a text becomes.

    Raises:
        RunError: the file failed the parity gate, and so is not there.
    """
    folder = int8_folder(run)
    if "int8" not in onnx_precisions(folder):
        told = read_json(run.folder.proof("onnx")).get("int8", {})
        raise RunError("\n    ".join([
            f"{SYSTEM} can't be evaluated: its ONNX file failed the parity gate, and is not deployed",
            *told.get("reasons", []),
            "next: take it out of evaluate.systems (what was evaluated is kept), or change export.parity",
        ]))  # fmt: skip
    told = read_onnx_manifest(folder)
    return [told["files"]["int8"], told["beside"]]


def int8_vectors(run: Run, texts: Sequence[str], what: str) -> np.ndarray:
    """vector_QD, fp32; several processes, given the same texts, encode a part of them each, and all get all.

    Raises:
        StaleArtefactError: the file is not the one that was exported.
    """
    from harness.engines.onnx_runtime import OnnxEngine

    engine = OnnxEngine(int8_folder(run), precision="int8", threads=run.recipe.launch.threads)
    part = share(len(texts))
    vectors = [engine.encode([text]) for text in progress(texts[part], what=what, unit="query")]
    dimension = engine.encode(["a"]).shape[1]
    own_QD = np.concatenate(vectors) if vectors else np.zeros((0, dimension), dtype=np.float32)
    return join_rows(own_QD, len(texts))
