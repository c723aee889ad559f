"""The engine that runs the encoder as it is, in torch. Axes: B texts, D dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from harness.data.collator import TokenBatch
    from harness.encoders.encoder import Encoder


class TorchEngine:
    """The query side of an encoder on one device (see ``harness.engines.protocol.Engine``).

    The encoder is taken over: put into evaluation mode, and moved where ``device`` and ``dtype`` (of the backbone; what
    follows it computes in float32) say so. By default it stays where and what it is.
    """

    name = "torch"

    def __init__(
        self, encoder: Encoder, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        self._encoder = encoder.to(device or encoder.device).eval()
        if dtype is not None:
            cast("torch.nn.Module", encoder.backbone).to(dtype)
        self._collator = encoder.collator("query")

    def tokenise(self, texts: Sequence[str]) -> TokenBatch:
        """Token ids on the host; the query prompt is added here."""
        return self._collator(texts)

    @torch.inference_mode()
    def forward(self, tokens: TokenBatch) -> NDArray[np.float32]:
        """vector_BD on the host; copying it there waits for the device, so a clock around this call sees all work."""
        device = self._encoder.device
        vectors = [
            self._encoder(
                **{name: part.to(device) if isinstance(part, torch.Tensor) else part for name, part in chunk.items()}
            ).cpu()
            for chunk in tokens.chunks
        ]
        return np.asarray(torch.cat(vectors)[tokens.restore].numpy(), dtype=np.float32)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """vector_BD on the host."""
        return self.forward(self.tokenise(texts))

    def describe(self) -> dict[str, Any]:
        """``device`` (with its name, on CUDA), ``dtype``, ``threads``, ``max_length``."""
        device = self._encoder.device
        name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
        return {
            "device": f"{device}{name}",
            "dtype": str(self._encoder.backbone.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "max_length": self._encoder.max_length,
        }
