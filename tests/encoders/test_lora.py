"""Adapters: what they go to, that they change nothing at first, and that a merge is them."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from harness.encoders.encoder import Encoder
from harness.encoders.folder import load_encoder, open_encoder, save_encoder
from harness.encoders.lora import add_adapter, is_adapted, is_adapter, merge_adapter
from harness.encoders.targets import AUTO, adapted_layers, adapter_size, stored_in_bf16
from harness.recipe import EncoderSettings, LoraSettings
from harness.runtime.errors import InputError, RunError

KINDS = ("tiny_bert", "tiny_qwen3")
LORA = LoraSettings(rank=4, alpha=8.0)


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def encoder(folder: Path) -> Encoder:
    return open_encoder(folder)


def learn(encoder: Encoder, size: float = 0.05) -> None:
    """Give the adapters weights that change vectors."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in encoder.named_parameters():
        if is_adapter(name):
            parameter.data = size * torch.randn(parameter.shape, generator=generator)


# ------------------------------------------------------------------------------------------------------------ targets


@pytest.mark.parametrize("architecture", sorted(AUTO))
def test_auto_finds_all_linear_layers_of_every_block_of_each_architecture_it_names(architecture: str) -> None:
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "pad_token_id": 0}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    names = {"distilbert": {"vocab_size": 20, "dim": 8, "hidden_dim": 16, "n_layers": 2, "n_heads": 2}}
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(architecture, **names.get(architecture, {**sizes, **heads})))
    model.pooler = None
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    expected = [name for name in linear if ".0." in name or ".1." in name]
    assert len(expected) >= 8 and adapted_layers(architecture, linear, LoraSettings()) == expected


def test_listed_targets_are_ends_of_names() -> None:
    names = ["layers.0.q_proj", "layers.0.k_proj", "layers.1.q_proj", "layers.1.mlp.up_proj"]
    assert adapted_layers("new", names, LoraSettings(targets=["q_proj"])) == [names[0], names[2]]
    assert adapted_layers("new", names, LoraSettings(targets=["1.q_proj", "mlp.up_proj"])) == names[2:]
    with pytest.raises(InputError, match=r"got: proj, query\n.*layers\.N\.q_proj, layers\.N\.k_proj, layers\.N\.mlp"):
        adapted_layers("qwen3", names, LoraSettings(targets=["proj", "q_proj", "query"]))


def test_auto_and_an_architecture_that_it_does_not_know_lists_the_names() -> None:
    with pytest.raises(InputError, match=r"'new'\n.*names: layers\.N\.q_proj, head\n"):
        adapted_layers("new", ["layers.0.q_proj", "layers.1.q_proj", "head"], LoraSettings())


def test_a_folder_tells_the_size_of_its_adapters(folder: Path, encoder: Encoder) -> None:
    add_adapter(encoder, LORA, seed=0)
    trained = sum(p.numel() for name, p in encoder.named_parameters() if is_adapter(name))
    assert trained == adapter_size(folder, LORA) > 0
    with pytest.raises(InputError, match="no linear layer has such a name"):
        adapter_size(folder, LoraSettings(targets=["nothing"]))


# ----------------------------------------------------------------------------------------------------------- adapters


def test_a_new_adapter_changes_no_vector_and_depends_on_the_seed_alone(encoder: Encoder, texts: list[str]) -> None:
    before_ND, others = encoder.encode(texts, side="query"), [copy.deepcopy(encoder) for _ in range(2)]
    state = torch.get_rng_state()
    add_adapter(encoder, LORA, seed=3)
    assert torch.get_rng_state().equal(state) and is_adapted(encoder)
    assert np.array_equal(encoder.encode(texts, side="query"), before_ND)
    torch.rand(7)
    for other, seed in zip(others, (3, 4), strict=True):
        add_adapter(other, LORA, seed=seed)
        pairs = zip(encoder.parameters(), other.parameters(), strict=True)
        assert all(one.equal(two) for one, two in pairs) == (seed == 3)


def test_merged_vectors_are_the_adapters_and_the_folder_is_a_plain_one(
    folder: Path, encoder: Encoder, texts: list[str], tmp_path: Path
) -> None:
    base, names = encoder.encode(texts, side="query"), [name for name, _ in encoder.named_parameters()]
    add_adapter(encoder, LORA, seed=0)
    learn(encoder)
    given = encoder.encode(texts, side="query")
    assert abs(given - base).max() > 1e-2
    merge_adapter(encoder, texts)
    assert [name for name, _ in encoder.named_parameters()] == names and not is_adapted(encoder)
    assert abs(encoder.encode(texts, side="query") - given).max() < 1e-5
    save_encoder(encoder, tmp_path / "merged")
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {path.name for path in folder.iterdir()}
    assert abs(open_encoder(tmp_path / "merged").encode(texts, side="query") - given).max() < 1e-5


def test_a_base_in_bf16_stays_so_below_adapters_in_fp32_and_is_merged_in_fp32(
    tiny_qwen3: Path, texts: list[str], tmp_path: Path
) -> None:
    half = open_encoder(tiny_qwen3, dtype=torch.bfloat16)
    save_encoder(half, tmp_path / "half")
    assert stored_in_bf16(tmp_path / "half") and not stored_in_bf16(tiny_qwen3)
    add_adapter(half, LORA, seed=0)
    learn(half, 0.01)  # less than bf16 can add to a weight
    for name, parameter in half.named_parameters():
        assert parameter.dtype == (torch.float32 if is_adapter(name) else torch.bfloat16)
    exact = load_encoder(EncoderSettings(model=str(tmp_path / "half")))
    add_adapter(exact, LORA, seed=0)
    learn(exact, 0.01)
    merge_adapter(half, texts)
    assert abs(half.encode(texts, side="query") - exact.encode(texts, side="query")).max() < 1e-5


def test_a_merge_that_changes_nothing_is_an_error(encoder: Encoder, texts: list[str]) -> None:
    add_adapter(encoder, LORA, seed=0)
    with pytest.raises(RunError, match="left every weight as it was"):
        merge_adapter(encoder, texts)


def test_a_merge_that_is_not_the_adapters_is_an_error(
    encoder: Encoder, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import Linear

    add_adapter(encoder, LORA, seed=0)
    learn(encoder)
    right = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda layer, name: 0.9 * right(layer, name))
    with pytest.raises(RunError, match="the merged model's vectors are not those of its adapters"):
        merge_adapter(encoder, texts)
