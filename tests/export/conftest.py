"""Two towers of one space, as a run leaves them: a Qwen3-like teacher and a BERT-like student with a projection."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from builders.tiny_models import write_tiny_bert, write_tiny_qwen3

from harness.encoders.folder import open_encoder, save_encoder
from harness.encoders.surgery import add_projection
from harness.runtime.process import read_json
from harness.vectors.space import Space

TEXTS = [
    "grinning face with smiling eyes",
    "cat",
    "ein lachendes Gesicht",
    "",
    "😀 emoji and عربي from right to left",
    "bouquet, Strauß und Café ñandú",
    "a much longer text about a cat and a grinning face " * 20,
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return list(TEXTS)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pools the last token, pads on the left, has prompts on both sides, reads 128 tokens, dimension 32."""
    root = tmp_path_factory.mktemp("teacher")
    encoder = open_encoder(write_tiny_qwen3(root / "plain", texts=TEXTS, vocab=400))
    encoder.prompts["document"] = "passage: "
    save_encoder(encoder, root / "teacher", lambda sha256: {"space": Space.of(encoder, sha256).to_json()})
    return root / "teacher"


@pytest.fixture(scope="session")
def student(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pools the mean, pads on the right, has its own query prompt, reads 64 tokens, goes from 24 to 32 dimensions."""
    root = tmp_path_factory.mktemp("student")
    encoder = open_encoder(write_tiny_bert(root / "plain", texts=TEXTS, hidden=24, layers=2, seed=1))
    encoder.prompts["query"] = "find: "
    with torch.random.fork_rng():
        torch.manual_seed(5)
        add_projection(encoder, torch.randn(32, 24), torch.randn(32))
    save_encoder(encoder, root / "student", {"space": read_json(teacher / "harness.json")["space"]})
    return root / "student"
