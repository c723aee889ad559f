"""Tiny encoders of every kind that is deployed, with weights large enough to tell one text's vector from another's."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from builders.tiny_models import QWEN_PROMPT, byte_level_tokenizer, word_piece_tokenizer
from transformers import AutoModel, BertConfig, ModernBertConfig, PreTrainedConfig, Qwen3Config, XLMRobertaConfig

from harness.encoders.encoder import Encoder
from harness.encoders.folder import save_encoder
from harness.encoders.surgery import add_projection
from harness.engines.torch_eager import TorchEngine
from harness.export.onnx import export_onnx

LEARNT = ["one red hat and two blue coats for a long cold winter", "ein Hut", "قبعة حمراء", "😀 hat", "שתי מעילים"]
# What queries are like, and unlike: a batch of mixed lengths, and the odd ones alone.
TEXTS = [
    "hat", "", " ", "a blue coat for a cold winter", "😀👩‍👩‍👧‍👦 hat", "قبعة حمراء", "שתי מעילים", "ein Hut",
    "one red hat and two blue coats", "hat " * 600,
]  # fmt: skip
KINDS = ("bert", "xlm-roberta", "modernbert", "qwen3", "qwen3-right")
_SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
                          "max_position_embeddings": 600}  # fmt: skip


def deployable(kind: str) -> Encoder:
    """One of ``KINDS``: 512 tokens; ``bert`` with a projection and tanh, ``xlm-roberta`` with the first token's state
    and vectors of any length, ``qwen3`` with a prompt and padding on the left (``-right``: on the right)."""
    causal = kind.startswith("qwen3")
    tokenizer = byte_level_tokenizer(LEARNT, 300) if causal else word_piece_tokenizer(LEARNT, 200)
    tokenizer.padding_side = "left" if kind == "qwen3" else "right"
    common: dict[str, Any] = {**_SIZES, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    configs: dict[str, PreTrainedConfig] = {
        "bert": BertConfig(**common),
        "xlm-roberta": XLMRobertaConfig(**common, type_vocab_size=1),
        "modernbert": ModernBertConfig(**common, local_attention=8, global_attn_every_n_layers=2, bos_token_id=2,
                                       eos_token_id=3, cls_token_id=2, sep_token_id=3, reference_compile=False),
    }  # fmt: skip
    config = configs.get(kind) or Qwen3Config(
        **common, num_key_value_heads=2, head_dim=12, eos_token_id=0, bos_token_id=0
    )
    pooling: Any = "lasttoken" if causal else "cls" if kind == "xlm-roberta" else "mean"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = AutoModel.from_config(config, attn_implementation="sdpa")
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        encoder = Encoder(
            backbone, tokenizer, pooling=pooling, normalize=kind != "xlm-roberta", max_length=512, tanh=False,
            prompts={"query": QWEN_PROMPT} if causal else {},
        )  # fmt: skip
        if kind == "bert":
            add_projection(encoder, torch.randn(24, 32) / 4, torch.randn(24) / 4)
            encoder.tanh = True
    return encoder.eval()


def write_deployable(kind: str, folder: Path) -> Encoder:
    """Save one of them as a folder; returns the encoder."""
    encoder = deployable(kind)
    save_encoder(encoder, folder)
    return encoder


# ------------------------------------------------------------------------------------------------- exported once each


@dataclass(frozen=True)
class Exported:
    """An encoder, and its folder with ONNX files, which no test may change."""

    encoder: Encoder
    folder: Path

    def expected(self, texts: list[str]) -> np.ndarray:
        return TorchEngine(self.encoder).encode(texts)


_FOLDER = tempfile.TemporaryDirectory(prefix="harness-deployable-")  # removed when Python ends
_PRECISIONS = {"bert": ["fp32", "fp16", "int8", "int8-static"], "qwen3": ["fp32", "fp16", "int8"]}


@functools.cache
def exported(kind: str) -> Exported:
    """Exported at its first use, for all tests: it takes seconds."""
    folder = Path(_FOLDER.name) / kind
    encoder = write_deployable(kind, folder)
    export_onnx(encoder, folder, _PRECISIONS.get(kind, ["fp32"]), calibration=TEXTS[3:9])
    return Exported(encoder, folder)
