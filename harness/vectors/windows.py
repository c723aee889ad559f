"""From windows of texts to their vectors, in order: encoded one after the other, or copied from a store.

Axes: W rows of a window, D dimensions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from harness.vectors.store import VectorStore

Encode = Callable[[Sequence[str]], np.ndarray]


@runtime_checkable
class EncodesWindows(Protocol):
    """An ``Encode`` that is faster where it knows what comes next."""

    def windows(self, windows: Iterable[Sequence[str]]) -> Generator[np.ndarray]:
        """The vectors of each window, float [W, D], in order; windows are read ahead. Closing it ends what it began."""
        ...


def encode_windows(encode: Encode, windows: Iterable[Sequence[str]]) -> Generator[np.ndarray]:
    """The vectors of each window, float [W, D], in order; close it when no more are wanted."""
    of_windows: object = encode
    if isinstance(of_windows, EncodesWindows):
        return of_windows.windows(windows)
    return (encode(texts) for texts in windows)


@dataclass(frozen=True, slots=True)
class Copying:
    """``encode``, but texts in ``row`` (text -> row of the store) are copied, not encoded."""

    store: VectorStore
    row: Mapping[str, int]
    encode: Encode

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        (vector_WD,) = self.windows([texts])
        return vector_WD

    def windows(self, windows: Iterable[Sequence[str]]) -> Generator[np.ndarray]:
        """The vectors of each window, [W, D]; what must be encoded of it goes on as a smaller window, if any."""
        asked: deque[Sequence[str]] = deque()

        def missing() -> Generator[Sequence[str]]:
            for texts in windows:
                asked.append(texts)
                if part := [text for text in texts if text not in self.row]:
                    yield part

        encoded = encode_windows(self.encode, missing())
        try:
            for vector_MD in encoded:
                while all(text in self.row for text in asked[0]):
                    yield self._filled(asked.popleft(), None)
                yield self._filled(asked.popleft(), vector_MD)
            while asked:
                yield self._filled(asked.popleft(), None)
        finally:
            encoded.close()

    def _filled(self, texts: Sequence[str], vector_MD: np.ndarray | None) -> np.ndarray:
        """The vectors of texts, of which those not in ``row`` were encoded."""
        copied_W = np.array([text in self.row for text in texts])
        if vector_MD is not None and not copied_W.any():
            return vector_MD
        vector_WD = np.empty((len(texts), self.store.dimension), dtype=np.float32)
        row_B = np.array([self.row[text] for text in texts if text in self.row], dtype=np.int64)
        vector_WD[copied_W] = self.store.vectors(row_B)
        if vector_MD is not None:
            vector_WD[~copied_W] = vector_MD
        return vector_WD
