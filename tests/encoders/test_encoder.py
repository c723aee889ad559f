"""Axes: B rows, T tokens, H hidden size, D dimensions, N texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders.tiny_models import QWEN_PROMPT, write_tiny_bert, write_tiny_qwen3

from harness.encoders.encoder import pool
from harness.encoders.folder import open_encoder
from harness.encoders.surgery import add_projection
from harness.encoders.tokenising import backend_of, tokenise


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_pooling_sees_tokens_only_whichever_side_is_padded(pooling: str) -> None:
    hidden_BTH = torch.randn(3, 5, 4)
    lengths = [5, 2, 1]
    expected = []
    right_BTH, left_BTH = torch.full_like(hidden_BTH, 1e6), torch.full_like(hidden_BTH, 1e6)
    right_BT, left_BT = torch.zeros(3, 5, dtype=torch.long), torch.zeros(3, 5, dtype=torch.long)
    for row, length in enumerate(lengths):
        tokens_TH = hidden_BTH[row, :length]
        right_BTH[row, :length], right_BT[row, :length] = tokens_TH, 1
        left_BTH[row, 5 - length :], left_BT[row, 5 - length :] = tokens_TH, 1
        expected.append({"mean": tokens_TH.mean(0), "cls": tokens_TH[0], "lasttoken": tokens_TH[-1]}[pooling])
    torch.testing.assert_close(pool(right_BTH, right_BT, pooling), torch.stack(expected))
    torch.testing.assert_close(pool(left_BTH, left_BT, pooling), torch.stack(expected))


def test_mean_pooling_adds_up_in_float32() -> None:
    hidden_BTH = torch.full((1, 400, 1), 1.0 + 2**-7, dtype=torch.bfloat16)  # a bfloat16 sum would stop growing at 256
    mean_BH = pool(hidden_BTH, torch.ones(1, 400, dtype=torch.long), "mean")
    assert mean_BH.dtype == torch.float32
    assert mean_BH.item() == pytest.approx(1.0 + 2**-7, rel=1e-6)


def test_a_decoder_gives_the_same_vectors_under_left_and_right_padding(tiny_qwen3: Path, texts: list[str]) -> None:
    encoder = open_encoder(tiny_qwen3)
    assert encoder.tokenizer.padding_side == "left"
    left_ND = encoder.encode(texts, side="query")
    encoder.tokenizer.padding_side = "right"
    np.testing.assert_allclose(encoder.encode(texts, side="query"), left_ND, atol=1e-5)


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_qwen3"])
def test_encode_equals_one_text_at_a_time_in_the_given_order(
    model: str, texts: list[str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = open_encoder(request.getfixturevalue(model))
    many = [f"{text} {letter}" for letter in "ac" for text in texts]
    alone_ND = np.concatenate([encoder.encode([text], side="query") for text in many])
    assert alone_ND.dtype == np.float32 and alone_ND.shape == (len(many), encoder.dimension)
    assert len(np.unique(alone_ND.round(5), axis=0)) == len(many)  # otherwise the order would not show
    monkeypatch.setattr("harness.encoders.encoder._WINDOW", 7)
    np.testing.assert_allclose(encoder.encode(many, side="query", batch_tokens=64), alone_ND, atol=1e-5)


def test_encode_keeps_the_token_budget(tiny_bert: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = open_encoder(tiny_bert)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # else threads may swap places between batches
    sizes: list[tuple[int, int]] = []
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda **batch: sizes.append(batch["input_ids"].shape) or forward(**batch))
    encoder.encode(texts * 3, side="document", batch_tokens=40)
    assert sum(rows for rows, _ in sizes) == 18
    assert all(rows * width <= 40 or rows == 1 for rows, width in sizes)
    assert [width for _, width in sizes] == sorted((width for _, width in sizes), reverse=True)
    assert any(rows > 1 for rows, _ in sizes)


@pytest.mark.parametrize("training", [True, False])
def test_encode_restores_the_mode_and_drops_nothing_out(tiny_bert: Path, texts: list[str], training: bool) -> None:
    encoder = open_encoder(tiny_bert).train(training)
    first_ND = encoder.encode(texts, side="query", what="test")
    assert encoder.training is training and encoder.backbone.training is training
    np.testing.assert_array_equal(encoder.encode(texts, side="query"), first_ND)


def test_no_texts_give_an_empty_array(tiny_bert: Path) -> None:
    encoder = open_encoder(tiny_bert)
    assert encoder.encode([], side="query").shape == (0, 32)


def test_an_empty_text_without_special_tokens_is_finite(tiny_qwen3: Path) -> None:
    encoder = open_encoder(tiny_qwen3)
    encoder.tokenizer.backend_tokenizer.post_processor = None
    assert encoder.tokenizer("")["input_ids"] == []
    assert np.isfinite(encoder.encode(["", "cat"], side="document")).all()


def test_vectors_are_float32_under_autocast_and_in_low_precision(tiny_bert: Path, texts: list[str]) -> None:
    encoder = open_encoder(tiny_bert)
    add_projection(encoder, torch.randn(8, 32), torch.randn(8))
    full_ND = encoder.encode(texts, side="query")
    half_ND = encoder.encode(texts, side="query", bf16=True)
    assert half_ND.dtype == np.float32
    assert not np.array_equal(half_ND, full_ND)
    np.testing.assert_allclose(half_ND, full_ND, atol=0.05)
    np.testing.assert_allclose(np.linalg.norm(half_ND, axis=1), 1, atol=1e-6)
    low_ND = encoder.to(torch.bfloat16).encode(texts, side="query")
    assert low_ND.dtype == np.float32
    np.testing.assert_allclose(low_ND, full_ND, atol=0.05)


def test_each_side_has_its_prompt_also_in_the_collator(tiny_qwen3: Path) -> None:
    encoder = open_encoder(tiny_qwen3)
    assert encoder.prompts == {"query": QWEN_PROMPT, "document": ""}
    query_ND, document_ND = encoder.encode(["cat"], side="query"), encoder.encode(["cat"], side="document")
    assert not np.allclose(query_ND, document_ND, atol=1e-3)
    np.testing.assert_allclose(encoder.encode([QWEN_PROMPT + "cat"], side="document"), query_ND, atol=1e-6)
    for side in ("query", "document"):
        batch = encoder.collator(side, chunks=2)(["cat", "a grinning face", "dog"])
        with torch.no_grad():
            vector_ND = torch.cat([encoder(**chunk) for chunk in batch.chunks])[batch.restore]
        expected_ND = encoder.encode(["cat", "a grinning face", "dog"], side=side)
        np.testing.assert_allclose(vector_ND.numpy(), expected_ND, atol=1e-5)


def test_texts_are_cut_at_max_length_with_their_special_tokens(tiny_bert: Path) -> None:
    encoder = open_encoder(tiny_bert)
    encoder.max_length = 6
    cut = tokenise(backend_of(encoder.tokenizer, encoder.max_length), ["cat " * 50])
    tokens = encoder.tokenizer.convert_ids_to_tokens(cut.token_T.tolist())
    assert cut.length_N.tolist() == [6]
    assert len(tokens) == 6 and tokens[0] == "[CLS]" and tokens[-1] == "[SEP]"


def test_counts_and_table(tiny_bert: Path) -> None:
    encoder = open_encoder(tiny_bert)
    table = encoder.token_table.weight
    assert encoder.layer_count == 4 and encoder.dimension == 32
    assert encoder.parameter_count - encoder.parameters_without_embeddings == table.numel()
    assert table is encoder.backbone.embeddings.word_embeddings.weight
    assert not any("pooler" in name for name, _ in encoder.named_parameters())


def test_tiny_models_are_the_same_for_the_same_seed(tmp_path: Path, texts: list[str]) -> None:
    for write in (write_tiny_bert, write_tiny_qwen3):
        folders = [write(tmp_path / str(n), texts=texts, seed=seed, layers=1) for n, seed in enumerate([1, 1, 2])]
        for name in ("model.safetensors", "tokenizer.json", "config.json", "harness.json"):
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
        assert (folders[0] / "model.safetensors").read_bytes() != (folders[2] / "model.safetensors").read_bytes()


@pytest.mark.parametrize("family", ["bert", "qwen3", "xlm-roberta"])
def test_chunks_give_the_vectors_and_gradients_of_plain_batches(tmp_path: Path, family: str) -> None:
    """One lookup in the token table for all chunks changes nothing, on either padding side."""
    texts = ["a b c", "a", "c d e f g", "b d"]
    if family == "qwen3":
        encoder = open_encoder(write_tiny_qwen3(tmp_path, texts=texts))
    else:
        encoder = open_encoder(write_tiny_bert(tmp_path, texts=texts))
    if family == "xlm-roberta":
        from transformers import XLMRobertaConfig, XLMRobertaModel

        config = XLMRobertaConfig(
            vocab_size=200, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            pad_token_id=encoder.tokenizer.pad_token_id,
        )  # fmt: skip
        torch.manual_seed(0)
        encoder.backbone = XLMRobertaModel(config, add_pooling_layer=False)
    encoder.eval()
    batch = encoder.collator("query", chunks=3)(texts)
    assert len(batch.chunks) > 1
    one_by_one = torch.cat([encoder(**chunk) for chunk in batch.chunks])
    together = encoder(chunks=batch.chunks)
    torch.testing.assert_close(together, one_by_one, rtol=1e-5, atol=1e-6)
    target = torch.linspace(-1, 1, together.numel()).view_as(together)
    expected = torch.autograd.grad((one_by_one * target).sum(), list(encoder.parameters()), allow_unused=True)
    found = torch.autograd.grad((together * target).sum(), list(encoder.parameters()), allow_unused=True)
    for name, left, right in zip(dict(encoder.named_parameters()), found, expected, strict=True):
        if right is not None:
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6, msg=name)
