"""What every benchmark says of itself beside its numbers, and how it writes them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

# Beside those that every run of the harness notes: what benchmarks compare with, or run on.
OTHERS = (
    "sentence-transformers", "tokenizers", "onnx", "onnxruntime", "onnxscript", "pytrec-eval-terrier", "pyarrow",
    "datasets", "peft", "scipy",
)  # fmt: skip


def provenance(**more: Any) -> dict[str, Any]:
    """Commit of the code in use (``-dirty``: edited since), time and load of now, versions, machine, and ``more``.

    To be asked before anything is measured: what is edited or started meanwhile is not what was measured.
    """
    from harness.pipeline.provenance import PACKAGES, commit, hardware, versions  # late: processes' memory is measured

    return {"commit": commit(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "load": os.getloadavg()[0],
            "versions": versions((*PACKAGES, *OTHERS)), "hardware": hardware(), **more}  # fmt: skip


def write(path: Path, content: Any) -> None:
    """``content`` as JSON, in the place of what lies there once all of it is written; makes the folder."""
    from harness.runtime.process import atomic_file

    text = json.dumps(content, indent=1) + "\n"
    with atomic_file(path, "w") as stream:
        stream.write(text)
