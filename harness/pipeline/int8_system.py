"""``student-int8``: the deployed int8 file, evaluated as it will serve, one query at a time.

Ranges of activations are taken from what is encoded together, so a batch would give other vectors than a query alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def evaluated_systems(run: Run) -> list[str]:
    """``evaluate.systems``, but for an int8 file that failed the parity gate: what is not deployed is not evaluated."""
    return [system for system in run.recipe.evaluate.systems if system != SYSTEM or not why_left_out(run)]


def why_left_out(run: Run) -> str:
    """Why the recipe's ``student-int8`` is not evaluated; empty where it is, or is not asked for."""
    if SYSTEM not in run.recipe.evaluate.systems or "int8" in onnx_precisions(int8_folder(run)):
        return ""
    reasons = read_json(run.folder.proof("onnx")).get("int8", {}).get("reasons", [])
    failed = f"{SYSTEM} is not evaluated: its ONNX file failed the parity gate, and is not deployed"
    return "; ".join([f"{failed}: {reasons[0]}", *reasons[1:]]) if reasons else failed


def made_of(run: Run) -> list[Any]:
    """What its vectors depend on: the int8 file, and what of the folder decides which tokens a text becomes.

    Raises:
        RunError: the file failed the parity gate, and is the reference, which nothing can do without.
    """
    if why := why_left_out(run):
        raise RunError(f"{why}\n    next: name another evaluate.reference, or change export.parity")
    told = read_onnx_manifest(int8_folder(run))
    return [told["files"]["int8"], told["beside"]]


def int8_vectors(run: Run, texts: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Each set's vector_QD, fp32; several processes, given the same texts, encode a part of them each, and all get all.

    Raises:
        StaleArtefactError: the file is not the one that was exported.
    """
    from harness.engines.onnx_runtime import OnnxEngine

    engine = OnnxEngine(int8_folder(run), precision="int8", threads=run.recipe.launch.threads)
    none_QD = engine.encode(["a"])[:0]  # of a set with fewer queries than processes
    found = {}
    for name, every in texts.items():
        own = progress(every[share(len(every))], what=f"{SYSTEM} {name}", unit="query")
        found[name] = join_rows(np.concatenate([none_QD, *(engine.encode([text]) for text in own)]), len(every))
    return found
