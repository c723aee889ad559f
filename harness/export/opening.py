"""What is exported, opened as others will open it: with sentence-transformers, or, where there is none, by us."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Encode = Callable[[Sequence[str]], NDArray[np.float32]]


@dataclass(frozen=True)
class Opened:
    """``queries`` and ``documents`` encode texts, prompts included; ``reader`` is who does it."""

    reader: str
    queries: Encode
    documents: Encode


def has_sentence_transformers() -> bool:
    """Whether it could be imported."""
    return importlib.util.find_spec("sentence_transformers") is not None


def open_deployed(folder: Path) -> Opened:
    """A student's folder or a pair, on the CPU; no code that may lie in it is run."""
    return by_sentence_transformers(folder) if has_sentence_transformers() else by_us(folder)


def by_sentence_transformers(folder: Path) -> Opened:
    """``encode_query`` and ``encode_document`` of a ``SentenceTransformer``."""
    from sentence_transformers import SentenceTransformer

    from harness.encoders.folder import quiet

    with quiet():
        model = SentenceTransformer(str(folder), device="cpu", trust_remote_code=False)
    return Opened(
        f"sentence-transformers {metadata.version('sentence-transformers')}",
        lambda texts: model.encode_query(list(texts), show_progress_bar=False),
        lambda texts: model.encode_document(list(texts), show_progress_bar=False),
    )


def by_us(folder: Path) -> Opened:
    """The same by ``harness.encoders``."""
    from harness.encoders.folder import open_encoder
    from harness.export.pair import open_route

    if not (folder / "router_config.json").is_file():
        encoder = open_encoder(folder)
        return Opened("harness", lambda texts: encoder.encode(texts, side="query"),
                      lambda texts: encoder.encode(texts, side="document"))  # fmt: skip
    with tempfile.TemporaryDirectory() as query, tempfile.TemporaryDirectory() as document:
        student = open_encoder(open_route(folder, "query", Path(query)))
        teacher = open_encoder(open_route(folder, "document", Path(document)))
    return Opened("harness", lambda texts: student.encode(texts, side="query"),
                  lambda texts: teacher.encode(texts, side="document"))  # fmt: skip
