"""Tokens of a batch: every text once, in reach of its order, cut and padded as the tokenizer would."""

from __future__ import annotations

import pytest
import torch
from builders.tiny_models import byte_level_tokenizer, word_piece_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from harness.data.collator import Collator, PairCollator, TokenBatch

TEXTS = ["a red shoe", "", "hat", "ein sehr roter Schuh mit Schnalle", "帽子 hat", "red " * 40]
TOKENIZERS = {"right": word_piece_tokenizer(TEXTS), "left": byte_level_tokenizer(TEXTS)}


def _tokens(batch: TokenBatch) -> list[list[int]]:
    """The unpadded tokens of each text, in the order of the texts."""
    rows = [
        ids[mask.bool()].tolist()
        for chunk in batch.chunks
        for ids, mask in zip(chunk["input_ids"], chunk["attention_mask"], strict=True)
    ]
    return [rows[place] for place in batch.restore.tolist()]


def _expected(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> list[list[int]]:
    return [tokenizer(text, truncation=True, max_length=max_length)["input_ids"] for text in texts]


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.one_of(st.sampled_from(TEXTS), st.text("ab é名", max_size=12)), min_size=1, max_size=12),
    chunks=st.integers(1, 5),
    side=st.sampled_from(["left", "right"]),
    prompt=st.sampled_from(["", "query: "]),
)
def test_every_text_is_kept(texts: list[str], chunks: int, side: str, prompt: str) -> None:
    tokenizer = TOKENIZERS[side]
    batch = Collator(tokenizer, prompt=prompt, max_length=16, chunks=chunks)(texts)
    assert _tokens(batch) == _expected(tokenizer, [prompt + text for text in texts], 16)
    assert len(batch.chunks) == min(chunks, len(texts)) and sorted(batch.restore.tolist()) == list(range(len(texts)))
    assert all(set(chunk) == {"input_ids", "attention_mask"} for chunk in batch.chunks)
    for chunk in batch.chunks:
        assert chunk["input_ids"].dtype == chunk["attention_mask"].dtype == torch.int64
        assert chunk["attention_mask"].sum(dim=1).max() == chunk["input_ids"].shape[1], "no wider than its longest"


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text("ab ", max_size=30), min_size=1, max_size=12), budget=st.integers(1, 60))
def test_chunks_of_so_many_tokens(texts: list[str], budget: int) -> None:
    batch = Collator(TOKENIZERS["left"], prompt="", max_length=16, chunks=2, chunk_tokens=budget)(texts)
    assert _tokens(batch) == _expected(TOKENIZERS["left"], texts, 16)
    for chunk, following in zip(batch.chunks, [*batch.chunks[1:], None], strict=True):
        rows, width = chunk["input_ids"].shape
        assert rows == 1 or rows * width <= budget
        assert following is None or (rows + 1) * width > budget, "another text would have had room"


@pytest.mark.parametrize("side", ["left", "right"])
def test_one_chunk_equals_the_tokenizers_own_padding(side: str) -> None:
    tokenizer = TOKENIZERS[side]
    batch = Collator(tokenizer, prompt="", max_length=32)(TEXTS)
    own = tokenizer(TEXTS, truncation=True, max_length=32, padding=True, return_tensors="pt")
    (chunk,) = batch.chunks
    for name, tensor in chunk.items():
        torch.testing.assert_close(tensor[batch.restore], own[name])


def test_chunks_hold_like_lengths_and_about_equally_many_tokens() -> None:
    texts = ["a " * (1 + number * number % 60) for number in range(64)]
    batch = Collator(TOKENIZERS["right"], prompt="", max_length=128, chunks=8)(texts)
    assert len(batch.chunks) == 8
    widths = [chunk["input_ids"].shape[1] for chunk in batch.chunks]
    assert widths == sorted(widths, reverse=True)
    costs = [chunk["attention_mask"].sum().item() for chunk in batch.chunks]
    assert max(costs) <= 1.5 * sum(costs) / 8
    padded = sum(chunk["input_ids"].numel() for chunk in batch.chunks)
    assert padded < 0.7 * len(texts) * max(widths)


def test_more_chunks_than_texts() -> None:
    batch = Collator(TOKENIZERS["right"], prompt="", max_length=16, chunks=8)(["a red shoe", "hat"])
    assert [len(chunk["input_ids"]) for chunk in batch.chunks] == [1, 1]


def test_an_empty_text_without_special_tokens_has_one_token() -> None:
    bare = byte_level_tokenizer(TEXTS)
    bare.backend_tokenizer.post_processor = None
    assert bare("")["input_ids"] == []
    (chunk,) = Collator(bare, prompt="", max_length=8)(["", "hat"]).chunks
    assert chunk["attention_mask"].sum(dim=1).min() == 1


def test_truncation_keeps_special_tokens() -> None:
    tokenizer = TOKENIZERS["right"]
    (tokens,) = _tokens(Collator(tokenizer, prompt="", max_length=6)(["red " * 40]))
    assert len(tokens) == 6 and tokens[0] == tokenizer.cls_token_id and tokens[-1] == tokenizer.sep_token_id


def test_pairs_are_one_batch_with_two_prompts() -> None:
    tokenizer = TOKENIZERS["left"]
    collator = PairCollator(tokenizer, query_prompt="q: ", document_prompt="d: ", max_length=16, chunks=2)
    expected = _expected(tokenizer, ["q: hat", "q: shoe", "d: a hat"], 16)
    assert _tokens(collator(["hat", "shoe"], ["a hat"])) == expected
