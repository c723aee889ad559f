"""The engine that has torch compile the encoder: one program for all lengths. Axes: B texts, L tokens, D dimensions."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from harness.engines.tokeniser import Tokeniser, Tokens
from harness.engines.torch_eager import TorchEngine
from harness.runtime.errors import InputError, Problem, RunError

if TYPE_CHECKING:
    from harness.encoders.encoder import Encoder

_WARM_UP = ((1, 9), (1, 17), (3, 12))  # rows, tokens: one row is compiled apart; the second length frees lengths


class TorchCompileEngine:
    """The query side of an encoder, compiled by torch (see ``harness.engines.protocol.Engine``).

    It compiles when it is made, which takes from seconds to minutes. The encoder is taken over: put into evaluation
    mode, moved and cast as ``TorchEngine`` does; its own forward stays as it was.

    Args:
        options: of the compiler (``torch.compile``'s ``options``).

    Raises:
        InputError: there is no C++ compiler, which torch needs on a CPU.
        RunError: the compiler fails; its first line is told.
    """

    name = "torch-compile"

    def __init__(
        self,
        encoder: Encoder,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self._eager = TorchEngine(encoder, device=device, dtype=dtype)
        self._encoder = encoder
        encoder.set_unpadded(False)
        if encoder.device.type == "cpu":
            require_compiler()
        self._tokeniser = Tokeniser.of_encoder(encoder)
        # Unlike calling the module itself, this leaves what the encoder does elsewhere uncompiled.
        self._forward = torch.compile(encoder.forward, dynamic=True, options=options)
        self._warm_up()

    def _warm_up(self) -> None:
        try:
            with _quiet():
                for rows, length in _WARM_UP:
                    token_BL = np.ones((rows, min(length, self._tokeniser.max_length)), dtype=np.int64)
                    self.forward(Tokens(token_BL, np.ones_like(token_BL)))
        except Exception as error:  # of the compiler, of the C++ compiler under it, of triton: kinds of their own
            reason = (str(error).strip().splitlines() or [""])[0]
            raise RunError(f"torch can't compile this model: {type(error).__name__}: {reason}") from error

    def tokenise(self, texts: Sequence[str]) -> Tokens:
        """Token ids and mask on the host; the query prompt is added here."""
        return self._tokeniser(texts)

    @torch.inference_mode()
    def forward(self, tokens: Tokens) -> NDArray[np.float32]:
        """vector_BD on the host, where the device is done."""
        device = self._encoder.device
        vector_BD = self._forward(
            torch.from_numpy(tokens.input_ids).to(device), torch.from_numpy(tokens.attention_mask).to(device)
        )
        return cast("NDArray[np.float32]", vector_BD.cpu().numpy())

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """vector_BD on the host."""
        return self.forward(self.tokenise(texts))

    def describe(self) -> dict[str, Any]:
        """As ``TorchEngine``."""
        return self._eager.describe()


def require_compiler() -> None:
    """Refuse where torch would find no C++ compiler, which it tells in many lines.

    Raises:
        InputError: there is none.
    """
    named = os.environ.get("CXX")
    names = [named] if named else ["g++", "clang++", "c++", (sysconfig.get_config_var("CXX") or "g++").split()[0]]
    if not any(shutil.which(name) for name in names):
        raise InputError(Problem("torch-compile needs a C++ compiler on a CPU", where="CXX" if named else "PATH",
                                 got=f"no {' or '.join(dict.fromkeys(names))}",
                                 allowed="a compiler that can be called",
                                 next="install g++, or leave this engine out"))  # fmt: skip


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
