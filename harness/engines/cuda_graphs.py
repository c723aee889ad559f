"""The engine that replays recorded CUDA graphs for single queries. Axes: B texts, L tokens of a bucket, D dimensions.

At batch 1 a small model waits for its kernels to be launched, one by one. A graph launches all of them at once, but it
is of one shape and reads and writes fixed memory: hence buckets of lengths, each padded on the right and masked.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.engines.tokeniser import Tokeniser, Tokens
from harness.engines.torch_eager import TorchEngine
from harness.runtime.errors import InputError, Problem, RunError

if TYPE_CHECKING:
    from harness.encoders.encoder import Encoder

BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_WARM_UP = 3  # calls before recording: libraries choose their kernels and take their memory in the first ones


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A graph and the memory it works on: ``host`` is page-locked, so that copying it waits for nothing."""

    graph: torch.cuda.CUDAGraph
    host_21L: Tensor  # ids and mask, in one copy
    device_21L: Tensor
    vector_1D: Tensor


class CudaGraphsEngine:
    """The query side of an encoder on a GPU (see ``harness.engines.protocol.Engine``).

    One text that fits a bucket replays that bucket's graph; longer texts and batches run as ``TorchEngine`` runs them.
    Graphs are recorded when the engine is made; each is compared with the encoder on a text that fills half of it.
    The encoder is taken over and must not move any more.

    Args:
        dtype: of the backbone.
        buckets: lengths in tokens; those beyond the encoder's longest text are left out.

    Raises:
        InputError: no CUDA device.
        RunError: a graph can't be recorded, or gives other vectors than the encoder.
    """

    name = "cuda-graphs"

    def __init__(
        self,
        encoder: Encoder,
        *,
        device: str | torch.device = "cuda",
        dtype: torch.dtype | None = None,
        buckets: Sequence[int] = BUCKETS,
    ) -> None:
        if torch.device(device).type != "cuda" or not torch.cuda.is_available():
            raise InputError(Problem("cuda-graphs needs a CUDA device", where="device", got=str(device),
                                     allowed="a visible NVIDIA GPU", next="leave this engine out"))
        encoder.set_unpadded(False)
        self._eager = TorchEngine(encoder, device=device, dtype=dtype)
        self._encoder = encoder
        self._tokeniser = Tokeniser.of_encoder(encoder)
        longest = self._tokeniser.max_length
        self.buckets = sorted({min(bucket, longest) for bucket in buckets})
        self._pool = torch.cuda.graph_pool_handle()  # of all graphs: they never run at once
        # From the longest: its memory serves the others.
        self._recorded = {bucket: self._record(bucket) for bucket in reversed(self.buckets)}
        for bucket in self.buckets:
            self._compare(bucket)

    @torch.inference_mode()
    def _record(self, bucket: int) -> _Recorded:
        device = self._encoder.device
        device_21L = torch.ones((2, 1, bucket), dtype=torch.int64, device=device)
        host_21L = torch.ones((2, 1, bucket), dtype=torch.int64).pin_memory()
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    self._encoder(device_21L[0], device_21L[1])
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=self._pool, stream=stream):
                    vector_1D = self._encoder(device_21L[0], device_21L[1])
            except RuntimeError as error:
                reason = (str(error).strip().splitlines() or [""])[0]
                raise RunError(f"this model can't be recorded as a CUDA graph of {bucket} tokens: {reason}") from error
        return _Recorded(graph, host_21L, device_21L, vector_1D)

    def _compare(self, bucket: int) -> None:
        """A mask that was left out while recording, because nothing was masked then, would show here."""
        length = max(1, bucket // 2)
        token_1L = np.ones((1, length), dtype=np.int64)
        found_1D = self.forward(Tokens(token_1L, np.ones_like(token_1L)))
        expected_1D = self._plainly(Tokens(token_1L, np.ones_like(token_1L)))
        cosine = float((found_1D * expected_1D).sum() / np.linalg.norm(found_1D) / np.linalg.norm(expected_1D))
        if not cosine > 0.999:
            raise RunError(f"the CUDA graph of {bucket} tokens gives wrong vectors: cosine {cosine:.4f} to the right")

    def tokenise(self, texts: Sequence[str]) -> Tokens:
        """Token ids and mask on the host; the query prompt is added here."""
        return self._tokeniser(texts)

    @torch.inference_mode()
    def forward(self, tokens: Tokens) -> NDArray[np.float32]:
        """vector_BD on the host, where the device is done."""
        rows, length = tokens.input_ids.shape
        place = bisect_left(self.buckets, length)
        if rows > 1 or place == len(self.buckets):
            return self._plainly(tokens)
        recorded = self._recorded[self.buckets[place]]
        # The last replay is over, for its vector was waited for: nothing reads the page-locked memory any more.
        recorded.host_21L.zero_()  # token 0, whichever that is, under a mask
        recorded.host_21L[0, 0, :length] = torch.from_numpy(tokens.input_ids[0])
        recorded.host_21L[1, 0, :length] = 1
        with torch.cuda.device(self._encoder.device):
            recorded.device_21L.copy_(recorded.host_21L, non_blocking=True)
            recorded.graph.replay()
            return np.asarray(recorded.vector_1D.cpu().numpy(), dtype=np.float32)

    @torch.inference_mode()
    def _plainly(self, tokens: Tokens) -> NDArray[np.float32]:
        device = self._encoder.device
        ids_BL, mask_BL = (torch.from_numpy(array).to(device) for array in (tokens.input_ids, tokens.attention_mask))
        return np.asarray(self._encoder(ids_BL, mask_BL).cpu().numpy(), dtype=np.float32)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """vector_BD on the host."""
        return self.forward(self.tokenise(texts))

    def describe(self) -> dict[str, Any]:
        """As ``TorchEngine``, and the ``buckets``."""
        return {**self._eager.describe(), "buckets": list(self.buckets)}
