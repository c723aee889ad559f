"""Tiny models, written once for all tests of this room; tests that change a folder take a copy."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders.tiny_models import write_tiny_bert, write_tiny_qwen3

TEXTS = [
    "grinning face with smiling eyes",
    "cat",
    "ein lachendes Gesicht",
    "",
    "bouquet, Strauß und Café ñandú",
    "a much longer text about a cat and a grinning face " * 4,
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return list(TEXTS)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("models") / "bert", texts=TEXTS)


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_qwen3(tmp_path_factory.mktemp("models") / "qwen3", texts=TEXTS, vocab=400)
