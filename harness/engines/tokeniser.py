"""Texts -> token ids by the ``tokenizers`` library itself: at batch 1 what a model library puts around it costs more.

Axes: B texts, L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.encoders.chain import describe_folder, read_chain
from harness.encoders.tokens import lower_first, read_tokenizer
from harness.runtime.errors import InputError, Problem
from harness.runtime.process import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from harness.encoders.encoder import Encoder, Side


@dataclass(frozen=True, slots=True)
class Tokens:
    """A padded batch: ``input_ids`` and ``attention_mask``, int64_BL each; the mask is 1 for tokens."""

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]


class Tokeniser:
    """Adds a side's prompt, tokenises, truncates, pads: the ids that the encoder's own collator makes.

    Args:
        tokenizer: taken over: its truncation and padding are set.
        prompt: put before every text.
        max_length: in tokens, special tokens included.
        pad: the id that fills up, and stands for a text without any token.
        left: padding stands before the tokens.
        cut_left: what is too long loses its beginning instead of its end.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, prompt: str, max_length: int, pad: int, left: bool = False,
        cut_left: bool = False,
    ) -> None:  # fmt: skip
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length, direction="left" if cut_left else "right")
        self._tokenizer = tokenizer
        self._prompt, self._pad, self._left = prompt, pad, left
        self.max_length = max_length

    @classmethod
    def of_folder(cls, folder: str | Path, side: Side = "query") -> Tokeniser:
        """The tokeniser of a sentence-transformers folder, without importing torch or transformers.

        Raises:
            InputError: no tokenizer.json, one without a padding token, or a chain that is not supported.
        """
        folder = Path(folder)
        tokenizer, chain = read_tokenizer(folder), read_chain(folder)
        if chain.lower_case:
            lower_first(tokenizer)
        path = folder / "tokenizer_config.json"
        told: dict[str, Any] = read_json(path) if path.is_file() else {}
        limit = chain.max_length
        if limit is None:
            limit = min(told.get("model_max_length", 512), describe_folder(folder)["max_positions"] or 512)
        return cls(
            tokenizer, prompt=chain.prompts.get(side, ""), max_length=int(limit), pad=_pad_id(tokenizer, told, folder),
            left=told.get("padding_side") == "left", cut_left=told.get("truncation_side") == "left",
        )  # fmt: skip

    @classmethod
    def of_encoder(cls, encoder: Encoder, side: Side = "query") -> Tokeniser:
        """The tokeniser of an encoder in memory; the encoder's own keeps its settings."""
        own: Any = encoder.tokenizer
        backend = own.backend_tokenizer
        return cls(
            type(backend).from_str(backend.to_str()), prompt=encoder.prompts[side], max_length=encoder.max_length,
            pad=int(own.pad_token_id), left=own.padding_side == "left", cut_left=own.truncation_side == "left",
        )  # fmt: skip

    def token_lists(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, prompt and special tokens included; never none."""
        encodings = self._tokenizer.encode_batch_fast([self._prompt + text for text in texts])
        return [encoding.ids or [self._pad] for encoding in encodings]

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenise and pad a batch of at least one text."""
        assert len(texts), "nothing to tokenise"
        token_lists = self.token_lists(texts)
        length_B = [len(tokens) for tokens in token_lists]
        width = max(length_B)
        if min(length_B) == width:
            token_BL = np.array(token_lists, dtype=np.int64)
            return Tokens(token_BL, np.ones_like(token_BL))
        token_BL = np.full((len(texts), width), self._pad, dtype=np.int64)
        mask_BL = np.zeros_like(token_BL)
        for row, tokens in enumerate(token_lists):
            where = slice(width - len(tokens), width) if self._left else slice(len(tokens))
            token_BL[row, where], mask_BL[row, where] = tokens, 1
        return Tokens(token_BL, mask_BL)


def _pad_id(tokenizer: Tokenizer, told: dict[str, Any], folder: Path) -> int:
    """The padding token's id, else the end's, which is masked out where it pads."""
    for key in ("pad_token", "eos_token"):
        token = told.get(key)
        name = token.get("content") if isinstance(token, dict) else token
        number = tokenizer.token_to_id(name) if name is not None else None
        if number is not None:
            return int(number)
    raise InputError(Problem("the tokenizer has no padding token", where=str(folder / "tokenizer_config.json"),
                             got="neither pad_token nor eos_token in the vocabulary",
                             allowed="a token of tokenizer.json", next="add a pad_token"))  # fmt: skip
