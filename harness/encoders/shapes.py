"""The shapes of a model's weights by its config alone: of a model whose weights are not here yet. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.runtime.errors import InputError, Problem

Shapes = dict[str, list[int]]
_DECODERS = ("qwen2", "qwen3", "llama", "mistral")
_BERTS = ("bert", "roberta", "xlm-roberta", "camembert")


def shapes_of_config(config: Mapping[str, Any], where: str) -> Shapes:
    """Name -> shape of every weight of the backbone, as transformers names them.

    Args:
        config: the content of a ``config.json``.
        where: the model, for the error.

    Raises:
        InputError: the architecture is not one of those whose weights are known here, or a size is missing.
    """
    kind = config.get("model_type")
    try:
        if kind in _DECODERS:
            return _decoder(config)
        if kind in _BERTS:
            return _bert(config)
    except KeyError as error:
        raise InputError(Problem("the config lacks a size", where=where, got=f"no {error.args[0]}")) from None
    raise InputError(Problem("the size of this architecture is not told by its config", where=where, got=str(kind),
                             allowed=", ".join((*_DECODERS, *_BERTS)), next="get the whole model"))


def _decoder(config: Mapping[str, Any]) -> Shapes:
    hidden, wide, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    queries, keys = heads * size, (config.get("num_key_value_heads") or heads) * size
    block: Shapes = {
        "self_attn.q_proj.weight": [queries, hidden], "self_attn.k_proj.weight": [keys, hidden],
        "self_attn.v_proj.weight": [keys, hidden], "self_attn.o_proj.weight": [hidden, queries],
        "mlp.gate_proj.weight": [wide, hidden], "mlp.up_proj.weight": [wide, hidden],
        "mlp.down_proj.weight": [hidden, wide],
        "input_layernorm.weight": [hidden], "post_attention_layernorm.weight": [hidden],
    }  # fmt: skip
    if config["model_type"] == "qwen3":
        block |= {"self_attn.q_norm.weight": [size], "self_attn.k_norm.weight": [size]}
    if config["model_type"] == "qwen2" or config.get("attention_bias"):
        block |= {"self_attn.q_proj.bias": [queries], "self_attn.k_proj.bias": [keys], "self_attn.v_proj.bias": [keys]}
    if config["model_type"] != "qwen2" and config.get("attention_bias"):
        block["self_attn.o_proj.bias"] = [hidden]
    if config.get("mlp_bias"):
        block |= {"mlp.gate_proj.bias": [wide], "mlp.up_proj.bias": [wide], "mlp.down_proj.bias": [hidden]}
    outside: Shapes = {"embed_tokens.weight": [config["vocab_size"], hidden], "norm.weight": [hidden]}
    return outside | _layers("layers", block, config["num_hidden_layers"])


def _bert(config: Mapping[str, Any]) -> Shapes:
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    block: Shapes = {}
    for name, (out, into) in {
        "attention.self.query": (hidden, hidden), "attention.self.key": (hidden, hidden),
        "attention.self.value": (hidden, hidden), "attention.output.dense": (hidden, hidden),
        "intermediate.dense": (wide, hidden), "output.dense": (hidden, wide),
    }.items():  # fmt: skip
        block |= {f"{name}.weight": [out, into], f"{name}.bias": [out]}
    for name in ("attention.output.LayerNorm", "output.LayerNorm"):
        block |= {f"{name}.weight": [hidden], f"{name}.bias": [hidden]}
    outside: Shapes = {
        "embeddings.word_embeddings.weight": [config["vocab_size"], hidden],
        "embeddings.position_embeddings.weight": [config["max_position_embeddings"], hidden],
        "embeddings.token_type_embeddings.weight": [config.get("type_vocab_size", 2), hidden],
        "embeddings.LayerNorm.weight": [hidden], "embeddings.LayerNorm.bias": [hidden],
    }  # fmt: skip
    return outside | _layers("encoder.layer", block, config["num_hidden_layers"])


def _layers(place: str, block: Shapes, count: int) -> Shapes:
    return {f"{place}.{layer}.{name}": shape for layer in range(count) for name, shape in block.items()}
