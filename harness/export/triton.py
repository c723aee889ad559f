"""A Triton model repository of a folder's ONNX files: the server batches queries that come at the same time.

    TARGET/student/config.pbtxt          names, types and shapes; dynamic batching
    TARGET/student/1/model.onnx          and its data where it is large
    TARGET/student-int8/...              one model for each precision

Token ids come in, vectors go out: texts are tokenised by the caller, with the folder's tokenizer.json and its prompt.
Triton joins requests of equal shape alone, so callers pad to a few lengths.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from harness.engines.deployed import MODEL_FILES, ONNX, OUTPUT, check_onnx, onnx_precisions
from harness.runtime.errors import InputError, Problem
from harness.runtime.process import atomic_folder

_CONFIG = """\
name: "{name}"
backend: "onnxruntime"
max_batch_size: {batch}
input [
  {{ name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] }},
  {{ name: "attention_mask" data_type: TYPE_INT64 dims: [ -1 ] }}
]
output [
  {{ name: "{output}" data_type: TYPE_FP32 dims: [ {dimension} ] }}
]
dynamic_batching {{ max_queue_delay_microseconds: {delay} }}
"""


def write_triton(
    folder: str | Path, target: str | Path, *, name: str = "student", max_batch: int = 64, delay_microseconds: int = 500
) -> list[str]:
    """Write the repository; existing ``target`` is replaced as a whole.

    Args:
        folder: a sentence-transformers folder with ``onnx/``.
        name: of the fp32 model; others add their precision.
        max_batch: requests that the server joins at most.
        delay_microseconds: how long it waits for more.

    Returns:
        The models' names.

    Raises:
        InputError: no ONNX files, or a name that is no folder's.
        StaleArtefactError: an ONNX file was edited or swapped.
    """
    folder = Path(folder)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise InputError(Problem("not a name for a model", where="name", got=name, next="give another one",
                                 allowed="letters, digits, '.', '_' and '-', a letter or digit first"))
    precisions = onnx_precisions(folder)
    if not precisions:
        raise InputError(Problem("no ONNX files to serve", where=str(folder), got=f"no {ONNX}/",
                                 allowed=f"{ONNX}/ as the export writes it", next="name precisions in export.onnx"))
    told = check_onnx(folder, precisions)
    named = {precision: name if precision == "fp32" else f"{name}-{precision}" for precision in precisions}
    size = sum((folder / ONNX / file).stat().st_size for files in told["files"].values() for file in files)
    with atomic_folder(target, size=size) as new:
        for precision, model in named.items():
            place = new / model / "1"
            place.mkdir(parents=True)
            for file in told["files"][precision]:
                # The data keeps its name, by which the graph finds it.
                plain = file if file != MODEL_FILES[precision] else "model.onnx"
                shutil.copy(folder / ONNX / file, place / plain)
            (new / model / "config.pbtxt").write_text(
                _CONFIG.format(
                    name=model, batch=max_batch, output=OUTPUT, dimension=told["dimension"], delay=delay_microseconds
                ),
                encoding="utf-8",
            )
    return list(named.values())
