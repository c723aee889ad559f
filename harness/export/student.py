"""The student as it is deployed: a folder that needs nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.runtime.process import atomic_folder


def export_student(source: Path, target: Path) -> None:
    """Copy a student's folder; it carries prompts, pooling, projection, normalisation and its space.

    Args:
        source: a sentence-transformers folder of this run.
        target: replaced as a whole.
    """
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    with atomic_folder(target, size=size) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
