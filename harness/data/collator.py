"""Texts -> token tensors. Axes: B texts of a chunk, L tokens of its longest text, T tokens of all, C = B + 1 ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class TokenBatch:
    """Chunks of like length; ``torch.cat(outputs)[restore]`` has the order of the texts.

    Args:
        chunks: each ``{"input_ids", "attention_mask"}``, int64_BL; or, without padding, ``{"input_ids", "cu_seq_lens",
            "longest"}``: int64_1T, int32_C (where each text begins, and the end of the last), and L.
        restore: int64, one for each text.
    """

    chunks: list[dict[str, Any]]
    restore: Tensor


class Collator:
    """Adds the prompt (here and nowhere else), tokenises, sorts by length, cuts into chunks and pads each by itself.

    Args:
        prompt: put before every text.
        max_length: in tokens, special tokens included; longer texts are cut by the tokenizer.
        chunks: of a batch, or as many as it has texts; they hold about equally many tokens.
        chunk_tokens: instead of ``chunks``, the most tokens that a chunk may hold, padding included; a text that is
            longer is a chunk of its own.
        unpadded: a chunk's texts stand one after the other in one row.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prompt: str,
        max_length: int,
        chunks: int = 1,
        chunk_tokens: int | None = None,
        unpadded: bool = False,
    ) -> None:
        assert chunks >= 1 and max_length >= 1
        self._unpadded = unpadded
        self._chunk_tokens = chunk_tokens
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._max_length = max_length
        self._chunks = chunks
        candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self._pad = next(int(token) for token in candidates if token is not None)
        self._left = tokenizer.padding_side == "left"

    def __call__(self, texts: Sequence[str]) -> TokenBatch:
        """Tokenise a batch of at least one text."""
        return self.pad(self.tokens(texts))

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, prompt and special tokens included."""
        return self._tokenizer(
            [self._prompt + text for text in texts],
            truncation=True,
            max_length=self._max_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]

    def pad(self, token_lists: Sequence[Sequence[int]]) -> TokenBatch:
        """A batch of at least one text, from the token ids that ``tokens`` made of each, now or earlier."""
        assert len(token_lists), "nothing to collate"
        # A tokenizer without special tokens makes nothing of an empty text; a mask without a token would pool to NaN.
        token_lists = [tokens or [self._pad] for tokens in token_lists]
        lengths = np.fromiter(map(len, token_lists), dtype=np.int64, count=len(token_lists))
        order = np.argsort(-lengths, kind="stable")  # longest first: a lack of memory shows at once
        budget = self._chunk_tokens
        within = cuts_unpadded if self._unpadded else _cuts_within
        cuts = _cuts(lengths[order], self._chunks) if budget is None else within(lengths[order], budget)
        parts = np.split(order, cuts)
        restore = np.empty_like(order)
        restore[order] = np.arange(len(order))
        join = join_part if self._unpadded else self._pad_part
        return TokenBatch([join([token_lists[i] for i in part]) for part in parts], torch.from_numpy(restore))

    def _pad_part(self, token_lists: Sequence[Sequence[int]]) -> dict[str, Any]:
        length_B = np.fromiter(map(len, token_lists), dtype=np.int64, count=len(token_lists))
        width = int(length_B.max())
        place_L = np.arange(width)
        mask_BL = place_L >= width - length_B[:, None] if self._left else place_L < length_B[:, None]
        token_BL = np.full(mask_BL.shape, self._pad, dtype=np.int64)
        token_BL[mask_BL] = np.fromiter(chain.from_iterable(token_lists), dtype=np.int64, count=int(length_B.sum()))
        return {"input_ids": torch.from_numpy(token_BL), "attention_mask": torch.from_numpy(mask_BL.astype(np.int64))}


def join_part(token_lists: Sequence[Sequence[int] | NDArray[np.int32]]) -> dict[str, Any]:
    """A chunk without padding: its texts, none of them empty, one after the other in one row."""
    lengths = [len(tokens) for tokens in token_lists]
    end_C = np.cumsum([0, *lengths], dtype=np.int32)
    token_T = np.fromiter(chain.from_iterable(token_lists), dtype=np.int64, count=int(end_C[-1]))
    return {"input_ids": torch.from_numpy(token_T)[None], "cu_seq_lens": torch.from_numpy(end_C),
            "longest": max(lengths)}  # fmt: skip


class PairCollator:
    """Queries and documents as one batch, queries first, each with its own side's prompt: one merged forward."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        query_prompt: str,
        document_prompt: str,
        max_length: int,
        chunks: int = 1,
        chunk_tokens: int | None = None,
        unpadded: bool = False,
    ) -> None:
        self._prompts = query_prompt, document_prompt
        self._collate = Collator(
            tokenizer, prompt="", max_length=max_length, chunks=chunks, chunk_tokens=chunk_tokens, unpadded=unpadded
        )

    def __call__(self, queries: Sequence[str], documents: Sequence[str]) -> TokenBatch:
        """Tokenise a batch of at least one text in all."""
        query_prompt, document_prompt = self._prompts
        return self._collate([query_prompt + text for text in queries] + [document_prompt + text for text in documents])


def _cuts(lengths: NDArray[np.int64], chunks: int) -> NDArray[np.int64]:
    """Where to cut falling lengths so that the parts, none of them empty, hold about equally many tokens.

    There are always ``chunks`` parts, or as many as texts: processes whose batches hold equally many texts make
    equally many forward passes, whatever the texts' lengths.
    """
    parts = min(chunks, len(lengths))
    ends = np.cumsum(lengths)
    number_K = np.arange(1, parts)
    cut_K = np.searchsorted(ends, ends[-1] * number_K / parts) + 1
    cut_K = np.maximum.accumulate(cut_K - number_K) + number_K  # one text at least in every part ...
    return np.minimum(cut_K, len(lengths) - parts + number_K)  # ... and in those that follow


def _cuts_within(lengths: NDArray[np.int64], budget: int) -> list[int]:
    """Where to cut falling lengths so that no part, padded to its longest, holds more than ``budget`` tokens."""
    cuts, start = [], 0
    while (start := start + max(1, budget // int(lengths[start]))) < len(lengths):
        cuts.append(start)
    return cuts


def cuts_unpadded(lengths: NDArray[np.int64], budget: int) -> list[int]:
    """Where to cut lengths into parts of as many texts as ``budget`` tokens hold without padding, and one at least."""
    ends, cuts, start = np.cumsum(lengths), [], 0
    while start < len(lengths):
        before = int(ends[start] - lengths[start])
        start = max(start + 1, int(np.searchsorted(ends, before + budget, side="right")))
        cuts.append(start)
    return cuts[:-1]
