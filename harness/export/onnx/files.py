"""ONNX files and the weights beside them."""

from __future__ import annotations

from pathlib import Path

LARGEST = 1_900_000_000  # bytes of weights inside an ONNX file, which can't hold 2 GiB


def data_file(path: Path, size: int) -> str | None:
    """The name of the file beside ``path`` that takes weights of ``size`` bytes; None: they fit inside."""
    return f"{path.name}_data" if size > LARGEST else None


def size_of(path: Path) -> int:
    """Bytes of an ONNX file and its data."""
    return sum(file.stat().st_size for file in files_of(path))


def files_of(path: Path) -> list[Path]:
    """An ONNX file and, where it has one, its data."""
    return [file for file in (path, path.with_name(f"{path.name}_data")) if file.is_file()]
