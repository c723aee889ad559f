"""Cutting feed-forward networks. Axes: N texts, D dimensions, F hidden units, L tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from encoders.test_surgery import BERT_LIKE, FAMILIES, _bert, _encoder, _qwen3

from harness.encoders.encoder import Encoder
from harness.encoders.folder import open_encoder, save_encoder
from harness.encoders.surgery import cut_layers
from harness.encoders.width import cut_width, highest, keep_units, unit_scores
from harness.runtime.errors import InputError

WIDTH = 40  # of 64
Build = Callable[[int], torch.nn.Module]


def _model(build: Build, texts: list[str]) -> Encoder:
    """Padded on the right: on the left, the positions that a BERT counts would depend on the batch."""
    encoder = _encoder(build, texts)
    encoder.tokenizer.padding_side = "right"
    return encoder


def _down(encoder: Encoder, layer: int) -> torch.nn.Linear:
    """The map out of a layer's network, of the two families that tests look into."""
    layers = encoder.backbone.layers if hasattr(encoder.backbone, "layers") else encoder.backbone.encoder.layer
    return layers[layer].mlp.down_proj if hasattr(layers[layer], "mlp") else layers[layer].output.dense


@pytest.mark.parametrize("build", FAMILIES)
def test_a_cut_model_reopens_to_the_same_vectors(build: Build, texts: list[str], tmp_path: Path) -> None:
    encoder = _model(build, texts)
    whole_ND, parameters = encoder.encode(texts, side="query"), encoder.parameter_count
    cut_width(encoder, WIDTH, texts)
    cut_ND = encoder.encode(texts, side="query")
    assert np.abs(cut_ND - whole_ND).max() > 1e-4, "units were lost"
    save_encoder(encoder, tmp_path / "cut")
    opened = open_encoder(tmp_path / "cut")
    np.testing.assert_allclose(opened.encode(texts, side="query"), cut_ND, atol=1e-6)
    assert opened.parameter_count == encoder.parameter_count < parameters


@pytest.mark.parametrize("build", [_bert, _qwen3])
def test_sentence_transformers_opens_the_cut_model(build: Build, texts: list[str], tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    encoder = _model(build, texts)
    cut_layers(encoder, [0, 4])
    cut_width(encoder, WIDTH, texts)
    save_encoder(encoder, tmp_path / "cut")
    stock = SentenceTransformer(str(tmp_path / "cut"), device="cpu")
    expected_ND = encoder.encode(texts, side="query")
    np.testing.assert_allclose(stock.encode(texts, batch_size=1), expected_ND, atol=1e-6)
    assert stock[0].auto_model.config.intermediate_size == WIDTH


@pytest.mark.parametrize("build", [_bert, _qwen3])
def test_units_that_hand_on_nothing_are_those_that_go(build: Build, texts: list[str]) -> None:
    """Other units in each layer hand on zero whatever comes in; without them the vectors are what they were."""
    encoder = _model(build, texts)
    generator = torch.Generator().manual_seed(1)
    kept = [torch.sort(torch.randperm(64, generator=generator)[:WIDTH]).values for _ in range(6)]
    with torch.no_grad():
        for layer, kept_K in zip(_layers(encoder), kept, strict=True):
            silent_F = torch.ones(64, dtype=torch.bool)
            silent_F[kept_K] = False
            for name, module in layer.named_modules():  # of a gated network both maps in, as |0 x up| would do as well
                if name in ("mlp.up_proj", "mlp.gate_proj", "intermediate.dense"):
                    module.weight[silent_F] = 0.0
                    if module.bias is not None:
                        module.bias[silent_F] = 0.0
    down = [_down(encoder, layer).weight.detach().clone() for layer in range(6)]
    whole_ND = encoder.encode(texts, side="query")
    cut_width(encoder, WIDTH, texts)
    np.testing.assert_allclose(encoder.encode(texts, side="query"), whole_ND, atol=1e-6)
    for layer, kept_K in enumerate(kept):
        torch.testing.assert_close(_down(encoder, layer).weight, down[layer][:, kept_K], rtol=0, atol=0)
    assert len({tuple(kept_K.tolist()) for kept_K in kept}) == 6


def _layers(encoder: Encoder) -> torch.nn.ModuleList:
    return encoder.backbone.layers if hasattr(encoder.backbone, "layers") else encoder.backbone.encoder.layer


def test_scores_of_a_gated_network_by_hand(texts: list[str]) -> None:
    """|silu(gate x) * (up x)| of each token, computed from what enters the network, text by text without padding."""
    encoder = _model(_qwen3, texts)
    encoder.prompts["query"] = "find: "
    mlp = encoder.backbone.layers[2].mlp
    seen: list[torch.Tensor] = []
    handle = mlp.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for text in texts:
        encoder.encode([text], side="query")
    handle.remove()
    token_LH = torch.cat([hidden_1LH[0] for hidden_1LH in seen])
    gate_LF, up_LF = token_LH @ mlp.gate_proj.weight.T, token_LH @ mlp.up_proj.weight.T
    expected_F = (gate_LF / (1 + torch.exp(-gate_LF)) * up_LF).abs().mean(dim=0)
    torch.testing.assert_close(unit_scores(encoder, texts)[2].float(), expected_F, rtol=1e-4, atol=1e-6)


def test_scores_of_a_plain_network_by_hand(texts: list[str]) -> None:
    encoder = _model(_bert, texts)
    layer, seen = encoder.backbone.encoder.layer[1], []
    handle = layer.intermediate.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    for text in texts:
        encoder.encode([text], side="query")
    handle.remove()
    expected_F = torch.cat(seen).abs().mean(dim=0)
    torch.testing.assert_close(unit_scores(encoder, texts)[1].float(), expected_F, rtol=1e-4, atol=1e-6)


def test_padding_and_dropout_don_t_count(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch of texts of all lengths gives what batches of one text give, in training mode, too."""
    from harness.encoders import width

    encoder = _model(_bert, texts)
    together = unit_scores(encoder, texts)
    encoder.train()
    noisy = unit_scores(encoder, texts)
    assert encoder.training
    monkeypatch.setattr(width, "_BATCH_TOKENS", 1)
    apart = unit_scores(encoder, texts)
    for one, other, third in zip(together, apart, noisy, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(one, third, rtol=1e-4, atol=1e-6)


def test_the_highest_are_kept_in_their_order() -> None:
    score_F = torch.tensor([0.1, 0.9, 0.5, 0.5, 0.7, 0.5])
    assert highest(score_F, 3).tolist() == [1, 2, 4], "of equal ones the first"
    assert highest(score_F, 4).tolist() == [1, 2, 3, 4]


def test_the_full_width_changes_nothing(texts: list[str]) -> None:
    encoder = _model(_qwen3, texts)
    before = copy.deepcopy(encoder.state_dict())
    cut_width(encoder, 64, texts)
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize("build", [_bert, _qwen3])
def test_measured_units_are_better_than_random_ones(build: Build, texts: list[str]) -> None:
    """Where units differ in what they hand on, as in trained models: vectors stay nearer to those of the whole model
    than with any of twenty random choices of as many units."""
    encoder = _model(build, texts)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in _layers(encoder):
            for name, module in layer.named_modules():
                if name in ("mlp.up_proj", "intermediate.dense"):
                    module.weight.mul_(torch.exp(2 * torch.randn(64, 1, generator=generator)))
    held_out = [f"{text} in another place" for text in texts]
    whole_ND = encoder.encode(held_out, side="query")

    def kept_cosine(cut: Encoder) -> float:
        return float((cut.encode(held_out, side="query") * whole_ND).sum(axis=1).mean())

    cut = copy.deepcopy(encoder)
    cut_width(cut, WIDTH, texts)
    by_chance = []
    for seed in range(20):
        other, generator = copy.deepcopy(encoder), torch.Generator().manual_seed(seed)
        keep_units(other, [torch.sort(torch.randperm(64, generator=generator)[:WIDTH]).values for _ in range(6)])
        by_chance.append(kept_cosine(other))
    assert kept_cosine(cut) > max(by_chance), (kept_cosine(cut), sorted(by_chance)[-3:])


def test_what_can_t_be_cut_is_refused(texts: list[str]) -> None:
    encoder = _model(_bert, texts)
    with pytest.raises(InputError, match=r"fewer feed-forward units[\s\S]*1 to 64"):
        cut_width(encoder, 65, texts)
    with pytest.raises(InputError, match="no text to measure"):
        cut_width(encoder, WIDTH, [])
    encoder.backbone.config.intermediate_size = 63  # the config speaks of other networks than there are
    with pytest.raises(InputError, match="feed-forward networks of this architecture can't be cut") as caught:
        cut_width(encoder, WIDTH, texts)
    assert caught.value.problems[0].where == "student.feed_forward"


def test_an_architecture_that_is_not_known_is_refused(texts: list[str]) -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeModel

    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "num_key_value_heads": 1}
    encoder = _model(lambda vocab: Qwen3MoeModel(Qwen3MoeConfig(vocab_size=vocab, **BERT_LIKE, **experts)), texts)
    with pytest.raises(InputError, match=r"can't be cut[\s\S]*qwen3_moe"):
        cut_width(encoder, WIDTH, texts)
