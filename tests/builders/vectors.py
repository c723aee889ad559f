"""Spaces, texts and an encoder that needs no model: a text's vector is drawn with the text's hash as the seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from harness.vectors.space import Space

DIMENSION = 6


def toy_space(teacher: str = "teacher", dimension: int = DIMENSION, normalized: bool = True) -> Space:
    return Space(teacher, "query: ", "", "mean", dimension, normalized)


def toy_rows(count: int, prefix: str = "d") -> tuple[list[str], list[str]]:
    return [f"{prefix}{number}" for number in range(count)], [f"text {number}" for number in range(count)]


def toy_encode(texts: Sequence[str], dimension: int = DIMENSION) -> np.ndarray:
    """Unit vectors, float32 [texts, dimension]."""
    seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") for text in texts]
    vector_ND = np.stack([np.random.default_rng(seed).standard_normal(dimension) for seed in seeds])
    return (vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True)).astype(np.float32)


class CountingEncode:
    """``toy_encode`` that remembers what it encoded, and may stop the writer at a text."""

    def __init__(self, stop_at: str | None = None) -> None:
        self.seen: list[str] = []
        self.stop_at = stop_at

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        if self.stop_at in texts:
            raise KeyboardInterrupt
        self.seen += texts
        return toy_encode(texts)


def unit_vectors(count: int, dimension: int, seed: int = 0) -> np.ndarray:
    vector_ND = np.random.default_rng(seed).standard_normal((count, dimension), dtype=np.float32)
    return vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True)
