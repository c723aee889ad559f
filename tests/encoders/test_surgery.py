"""Axes: N texts, D dimensions, E dimensions before a projection."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from builders.tiny_models import byte_level_tokenizer
from packaging.version import Version

from harness.encoders.encoder import Encoder
from harness.encoders.folder import open_encoder, save_encoder
from harness.encoders.surgery import add_projection, cut_layers, linear, select_layers, truncate
from harness.recipe import LayerRule
from harness.runtime.errors import InputError

LAYERS = 6
BERT_LIKE = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 64,
             "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}  # fmt: skip
DECODER = {**BERT_LIKE, "num_key_value_heads": 1}


def _bert(vocab: int) -> torch.nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(vocab_size=vocab, **BERT_LIKE))


def _xlm_r(vocab: int) -> torch.nn.Module:
    from transformers import XLMRobertaConfig, XLMRobertaModel

    return XLMRobertaModel(XLMRobertaConfig(vocab_size=vocab, **BERT_LIKE))


def _distilbert(vocab: int) -> torch.nn.Module:
    from transformers import DistilBertConfig, DistilBertModel

    return DistilBertModel(DistilBertConfig(vocab_size=vocab, dim=32, hidden_dim=64, n_layers=LAYERS, n_heads=2))


def _modernbert(vocab: int) -> torch.nn.Module:
    from transformers import ModernBertConfig, ModernBertModel

    special = {"cls_token_id": None, "sep_token_id": None}
    return ModernBertModel(ModernBertConfig(vocab_size=vocab, local_attention=8, **BERT_LIKE, **special))


def _qwen3(vocab: int) -> torch.nn.Module:
    from transformers import Qwen3Config, Qwen3Model

    return Qwen3Model(Qwen3Config(vocab_size=vocab, head_dim=8, **DECODER))


def _qwen2(vocab: int) -> torch.nn.Module:
    from transformers import Qwen2Config, Qwen2Model

    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3}
    return Qwen2Model(Qwen2Config(vocab_size=vocab, **window, **DECODER))


def _llama(vocab: int) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaModel

    return LlamaModel(LlamaConfig(vocab_size=vocab, **DECODER))


def _encoder(build: Callable[[int], torch.nn.Module], texts: list[str]) -> Encoder:
    tokenizer = byte_level_tokenizer(texts, 300)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build(len(tokenizer))
    with torch.no_grad():  # layers as random models have them hardly move a text: make every one count
        for name, parameter in backbone.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(8)
    return Encoder(backbone, tokenizer, pooling="mean", max_length=48).eval()


FAMILIES = [_bert, _xlm_r, _distilbert, _modernbert, _qwen3, _qwen2, _llama]


@pytest.mark.parametrize("kept", [[0, 3], [0, 4, 5]], ids=str)
@pytest.mark.parametrize("build", FAMILIES)
def test_a_cut_model_reopens_to_the_same_vectors(
    build: Callable[[int], torch.nn.Module], kept: list[int], texts: list[str], tmp_path: Path
) -> None:
    encoder = _encoder(build, texts)
    whole_ND = encoder.encode(texts, side="query")
    types = getattr(encoder.backbone.config, "layer_types", None)
    if build is _modernbert and kept == [0, 3] and Version(transformers.__version__) < Version("5.17"):
        with pytest.raises(InputError, match="this version of transformers can't open the cut model"):
            cut_layers(encoder, kept)  # both layers attend to everything
        return
    cut_layers(encoder, kept)
    cut_ND = encoder.encode(texts, side="query")
    assert np.abs(cut_ND - whole_ND).max() > 1e-2
    save_encoder(encoder, tmp_path / "cut")
    opened = open_encoder(tmp_path / "cut")
    np.testing.assert_allclose(opened.encode(texts, side="query"), cut_ND, atol=1e-6)
    assert opened.layer_count == encoder.layer_count == len(kept)
    if types is not None:
        assert opened.backbone.config.layer_types == [types[layer] for layer in kept]
    indices = [module.layer_idx for module in encoder.modules() if getattr(module, "layer_idx", None) is not None]
    assert sorted(set(indices)) in ([], list(range(len(kept))))


def test_the_cut_keeps_the_layers_named_and_nothing_else(texts: list[str]) -> None:
    """Against the untouched model, its other layers replaced by the identity."""
    encoder, reference = _encoder(_bert, texts), _encoder(_bert, texts)
    cut_layers(encoder, [1, 4])
    for position in (0, 2, 3, 5):
        layer = reference.backbone.encoder.layer[position]
        layer.forward = lambda hidden, *_, **__: hidden
    expected_ND = reference.encode(texts, side="query")
    np.testing.assert_allclose(encoder.encode(texts, side="query"), expected_ND, atol=1e-6)


def test_a_cut_decoder_runs_with_its_cache_too(texts: list[str]) -> None:
    encoder = _encoder(_qwen3, texts)
    cut_layers(encoder, [2, 5])
    assert encoder.backbone.config.use_cache is False
    batch = encoder.collator("query")(["a cat"]).chunks[0]
    with torch.no_grad():
        plain = encoder.backbone(**batch, use_cache=False)
        cached = encoder.backbone(**batch, use_cache=True)
    assert plain.past_key_values is None and len(cached.past_key_values) == 2
    torch.testing.assert_close(plain.last_hidden_state, cached.last_hidden_state)


def test_a_cut_without_a_stock_form_is_refused_and_changes_nothing(texts: list[str]) -> None:
    encoder = _encoder(_modernbert, texts)
    before_ND = encoder.encode(texts, side="query")
    with pytest.raises(InputError, match=r"no stock form(.|\n)*keep layer 1"):
        cut_layers(encoder, [1, 3])
    assert encoder.layer_count == LAYERS
    np.testing.assert_array_equal(encoder.encode(texts, side="query"), before_ND)


def test_layers_that_are_shared_can_not_be_cut(texts: list[str]) -> None:
    from transformers import AlbertConfig, AlbertModel

    encoder = _encoder(lambda vocab: AlbertModel(AlbertConfig(vocab_size=vocab, embedding_size=32, **BERT_LIKE)), texts)
    with pytest.raises(InputError, match=r"can't be cut(.|\n)*albert"):
        cut_layers(encoder, [0])


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([1, 6], [0, 5]),
        ([3], [2]),
        (LayerRule(rule="first", count=2), [0, 1]),
        (LayerRule(rule="last", count=2), [4, 5]),
        (LayerRule(rule="middle-skip", count=3), [0, 4, 5]),
        (LayerRule(rule="middle-skip", count=1), [0]),
        (LayerRule(rule="middle-skip", count=6), [0, 1, 2, 3, 4, 5]),
        (LayerRule(rule="last", count=6), [0, 1, 2, 3, 4, 5]),
    ],
)
def test_layers_are_counted_from_one(layers: list[int] | LayerRule, expected: list[int]) -> None:
    assert select_layers(6, layers) == expected


@pytest.mark.parametrize("layers", [[0], [7], [1, 1], [2, 1], [], LayerRule(rule="first", count=7)])
def test_impossible_layers_are_refused(layers: list[int] | LayerRule) -> None:
    with pytest.raises(InputError, match="student.layers"):
        select_layers(6, layers)


def test_a_projection_comes_before_the_normalisation(tiny_bert: Path, texts: list[str]) -> None:
    encoder = open_encoder(tiny_bert)
    encoder.normalize = False
    plain_NE = encoder.encode(texts, side="query")
    weight_DE, bias_D = torch.randn(8, 32), torch.randn(8)
    add_projection(encoder, weight_DE, bias_D)
    expected_ND = plain_NE @ weight_DE.numpy().T + bias_D.numpy()
    np.testing.assert_allclose(encoder.encode(texts, side="query"), expected_ND, atol=1e-4)
    encoder.normalize = True
    expected_ND /= np.linalg.norm(expected_ND, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode(texts, side="query"), expected_ND, atol=1e-5)
    weight_DE.zero_()  # the encoder holds its own copy
    np.testing.assert_allclose(encoder.encode(texts, side="query"), expected_ND, atol=1e-5)
    assert encoder.dimension == 8 and encoder.projection.weight.requires_grad


def test_two_projections_become_one(tiny_bert: Path, texts: list[str]) -> None:
    encoder = open_encoder(tiny_bert)
    encoder.normalize = False
    first, second = (torch.randn(16, 32), torch.randn(16)), (torch.randn(8, 16), torch.randn(8))
    plain_NE = torch.from_numpy(encoder.encode(texts, side="query"))
    add_projection(encoder, *first)
    add_projection(encoder, *second)
    expected_ND = (plain_NE @ first[0].T + first[1]) @ second[0].T + second[1]
    np.testing.assert_allclose(encoder.encode(texts, side="query"), expected_ND.numpy(), atol=1e-4)


@pytest.mark.parametrize("projected", ["no", "linear", "tanh"])
def test_truncation_keeps_the_first_dimensions(projected: str, tiny_bert: Path, texts: list[str]) -> None:
    encoder = open_encoder(tiny_bert)
    if projected != "no":
        add_projection(encoder, torch.randn(16, 32), torch.randn(16))
        encoder.tanh = projected == "tanh"
    first_ND = encoder.encode(texts, side="query")[:, :5]
    truncate(encoder, 5)
    expected_ND = first_ND / np.linalg.norm(first_ND, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode(texts, side="query"), expected_ND, atol=1e-5)
    with pytest.raises(InputError, match="fewer dimensions"):
        truncate(encoder, 6)


def test_truncating_to_all_dimensions_adds_nothing(tiny_bert: Path) -> None:
    encoder = open_encoder(tiny_bert)
    truncate(encoder, 32)
    assert encoder.projection is None


def test_nothing_linear_follows_a_tanh(tiny_bert: Path) -> None:
    encoder = open_encoder(tiny_bert)
    encoder.projection, encoder.tanh = linear(torch.randn(16, 32), None), True
    with pytest.raises(InputError, match="tanh"):
        add_projection(encoder, torch.randn(8, 16))
