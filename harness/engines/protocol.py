"""What every engine can do, whatever runs underneath."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Engine(Protocol):
    """Turns queries into vectors; tokenising and the model are apart, so that each can be timed.

    Attributes:
        name: the engine's key in results.json (``torch``, ``onnx``, ...).
    """

    name: str

    def tokenise(self, texts: Sequence[str]) -> Any:
        """Texts to whatever ``forward`` takes, on the host; the prompt is added here."""
        ...

    def forward(self, tokens: Any) -> NDArray[np.float32]:
        """vector_BD on the host, in the texts' order: the device is done when this returns."""
        ...

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """vector_BD on the host: both in one."""
        ...

    def describe(self) -> dict[str, Any]:
        """The conditions under which it runs: ``device``, ``dtype``, ``threads``, ``max_length``."""
        ...
