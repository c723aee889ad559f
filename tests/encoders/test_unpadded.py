"""Batches without padding give what padded ones give: vectors, every gradient, whatever stands beside a text."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders.tiny_models import byte_level_tokenizer, word_piece_tokenizer
from torch import Tensor
from transformers import (
    AutoModel,
    BertConfig,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    XLMRobertaConfig,
)

from harness.encoders import unpadded
from harness.encoders.chain import WITHOUT_PADDING
from harness.encoders.encoder import Encoder
from harness.encoders.folder import open_encoder, save_encoder
from harness.encoders.lora import add_adapter
from harness.encoders.unpadded import attend, why_padded
from harness.engines.torch_eager import TorchEngine
from harness.recipe import LoraSettings
from harness.runtime.errors import InputError

TEXTS = ["one red hat and two blue coats for a long cold winter", "hat", "", "a blue coat", "two hats",
         "one coat and one hat and one more coat"]  # fmt: skip
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
BERT: dict[str, Any] = {**SIZES, "max_position_embeddings": 90}
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 90}
CONFIGS: dict[str, partial[PreTrainedConfig]] = {
    "bert": partial(BertConfig, **BERT),
    "roberta": partial(RobertaConfig, **BERT),
    "xlm-roberta": partial(XLMRobertaConfig, **BERT),
    # A window of 4 tokens to either side in two layers of three.
    "modernbert": partial(ModernBertConfig, **BERT, local_attention=8, global_attn_every_n_layers=3,
                          reference_compile=False, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3),
    "qwen2": partial(Qwen2Config, **GROUPED),
    "qwen3": partial(Qwen3Config, **GROUPED, head_dim=16),
    "llama": partial(LlamaConfig, **GROUPED),
    "mistral": partial(MistralConfig, **GROUPED, sliding_window=5),
}  # fmt: skip
CAUSAL = ("qwen2", "qwen3", "llama", "mistral")


def tiny(kind: str, pooling: Any = None) -> Encoder:
    """An encoder with random weights, in evaluation mode."""
    tokenizer = byte_level_tokenizer(TEXTS, 300) if kind in CAUSAL else word_piece_tokenizer(TEXTS, 200)
    config = CONFIGS[kind](vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **(
        {"eos_token_id": 0, "bos_token_id": 0} if kind in CAUSAL else {}))  # fmt: skip
    torch.manual_seed(0)
    backbone = AutoModel.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in backbone.parameters():  # first weights are too small to tell one text's vector from another's
            parameter.add_(0.2 * torch.randn_like(parameter))
    pooling = pooling or ("lasttoken" if kind in CAUSAL else "mean")
    return Encoder(backbone, tokenizer, pooling=pooling, max_length=64).eval()


def without(encoder: Encoder) -> Encoder:
    twin = copy.deepcopy(encoder)
    if twin.backbone.config.model_type == "modernbert" and not unpadded.switch(twin.backbone, True):
        pytest.skip("this version of transformers has an attention of its own for it")
    twin.set_unpadded(True)
    return twin


def vectors(encoder: Encoder, texts: list[str] = TEXTS, chunks: int = 2) -> Tensor:
    tokens = encoder.collator("query", chunks)(texts)
    return encoder(chunks=tokens.chunks)[tokens.restore]


def gradients(encoder: Encoder, chunks: int = 2) -> dict[str, Tensor]:
    encoder.zero_grad()
    vector_BD = vectors(encoder, chunks=chunks)
    generator = torch.Generator().manual_seed(1)
    (vector_BD * torch.randn(vector_BD.shape, generator=generator)).sum().backward()
    return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


def assert_equal_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys() and ours
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        size = max(float(gradient.abs().max()), 1e-2 * largest)
        assert float((ours[name] - gradient).abs().max()) <= 2e-5 * size, name


@pytest.mark.parametrize("kind", CONFIGS)
def test_vectors_and_gradients_are_those_of_padded_batches(kind: str) -> None:
    padded = tiny(kind)
    ours = without(padded)
    torch.testing.assert_close(vectors(ours), vectors(padded), atol=2e-6, rtol=0)
    spread = (vectors(padded)[0] - vectors(padded)[1:]).norm(dim=1)
    assert float(spread.detach().min()) > 0.05, "the texts' vectors are hardly different"
    assert_equal_gradients(gradients(ours), gradients(padded))


def test_every_named_architecture_is_tried() -> None:
    assert {config().model_type for config in CONFIGS.values()} | {"camembert"} == WITHOUT_PADDING
    from transformers import CamembertModel
    from transformers.models.camembert import modeling_camembert
    from transformers.models.roberta import modeling_roberta

    # RoBERTa under another name: its own parts, generated from RoBERTa's.
    assert CamembertModel.__module__ == modeling_camembert.__name__ != modeling_roberta.__name__
    assert "padding_idx" in vars(modeling_camembert.CamembertEmbeddings(CONFIGS["roberta"](pad_token_id=1)))


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_every_pooling(kind: str, pooling: str) -> None:
    padded = tiny(kind, pooling)
    padded.normalize = False  # it would hide a wrong length
    ours = without(padded)
    torch.testing.assert_close(vectors(ours), vectors(padded), atol=2e-5, rtol=1e-5)
    assert_equal_gradients(gradients(ours), gradients(padded))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_text_s_neighbours_change_nothing(kind: str) -> None:
    ours = without(tiny(kind))
    with torch.no_grad():
        before_BD = vectors(ours, chunks=1)
        other = [*TEXTS[:3], "one two three four five six", *TEXTS[4:]]
        after_BD = vectors(ours, other, chunks=1)
        alone_BD = torch.cat([vectors(ours, [text]) for text in TEXTS])
    same = [0, 1, 2, 4, 5]
    torch.testing.assert_close(after_BD[same], before_BD[same], atol=1e-6, rtol=0)
    assert float((after_BD[3] - before_BD[3]).norm()) > 0.05
    torch.testing.assert_close(before_BD, alone_BD, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_adapters(kind: str) -> None:
    padded = tiny(kind)
    add_adapter(padded, LoraSettings(rank=2), seed=1)
    for name, parameter in padded.named_parameters():
        parameter.requires_grad_(".lora_" in name)
        if ".lora_B." in name:
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    assert_equal_gradients(gradients(without(padded)), gradients(padded))


@pytest.mark.parametrize("kind", ["roberta", "qwen3"])
def test_a_padded_batch_is_understood(kind: str) -> None:
    """What pads in vain, on either side, gets the same vectors: one batch, chunks, whole texts, the engine."""
    padded = tiny(kind)
    ours = without(padded)
    with torch.no_grad():
        wanted_BD = vectors(padded, chunks=1)
        tokens = padded.collator("query")(TEXTS)
        torch.testing.assert_close(ours(**tokens.chunks[0])[tokens.restore], wanted_BD, atol=2e-6, rtol=0)
        torch.testing.assert_close(ours(chunks=tokens.chunks)[tokens.restore], wanted_BD, atol=2e-6, rtol=0)
    for encode in (lambda: ours.encode(TEXTS, side="query"), lambda: TorchEngine(ours).encode(TEXTS)):
        np.testing.assert_allclose(encode(), wanted_BD.numpy(), atol=2e-6)


@pytest.mark.parametrize("kind", ["roberta", "qwen3"])
def test_bulk_encoding_makes_no_padding(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    padded = tiny(kind)
    ours, seen = without(padded), []
    texts = [*TEXTS, *[" ".join(["hat", "coat", "two"] * (1 + number % 7)) for number in range(30)]]
    forward = Encoder._vectors

    def counted(self: Encoder, chunk: Any, **tokens: Tensor) -> Tensor:
        seen.append((tuple(chunk["input_ids"].shape), "longest" in chunk))
        return forward(self, chunk, **tokens)

    monkeypatch.setattr(Encoder, "_vectors", counted)
    monkeypatch.setattr(unpadded, "without_padding", lambda chunk: chunk)
    found_ND = ours.encode(texts, side="document", batch_tokens=40)
    assert all(rows == 1 and tokens <= 40 and packed for (rows, tokens), packed in seen) and len(seen) > 3
    monkeypatch.undo()
    wanted_ND = padded.encode(texts, side="document", batch_tokens=40)
    np.testing.assert_allclose(found_ND, wanted_ND, atol=2e-6)


def test_bfloat16_under_autocast_stays_as_near_as_padded_is() -> None:
    padded = tiny("qwen3")
    ours = without(padded)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        both = vectors(ours), vectors(padded)
    with torch.no_grad():
        exact = vectors(padded)
    near, far = (float((vector_BD - exact).abs().max()) for vector_BD in both)
    assert near <= 2 * far + 1e-3 and both[0].dtype == torch.float32


def test_it_can_be_switched_off_again_and_leaves_nothing_in_the_folder(tmp_path: Path) -> None:
    padded = tiny("qwen3")
    ours = without(padded)
    save_encoder(ours, tmp_path / "saved")
    assert unpadded.NAME not in (tmp_path / "saved" / "config.json").read_text()
    opened = open_encoder(tmp_path / "saved")
    assert not opened.unpadded
    with torch.no_grad():
        torch.testing.assert_close(vectors(opened), vectors(padded), atol=2e-6, rtol=0)
        ours.set_unpadded(False)
        assert "attention_mask" in ours.collator("query")(TEXTS).chunks[0]
        torch.testing.assert_close(vectors(ours), vectors(padded), atol=2e-6, rtol=0)


def test_a_model_with_an_attention_of_its_own_keeps_its_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Early versions of transformers 5 say no in a warning, and go on as before."""
    encoder = tiny("bert")
    monkeypatch.setattr(type(encoder.backbone), "set_attn_implementation", lambda self, name: None)
    unpadded.choose(encoder, "auto", bf16=True, where="here")
    with pytest.raises(InputError, match="attention of its own"):
        unpadded.choose(encoder, True, bf16=True, where="here")
    assert not encoder.unpadded
    with pytest.raises(AssertionError):
        encoder.set_unpadded(True)


def test_this_attention_refuses_to_run_without_ends() -> None:
    state = torch.zeros(1, 2, 3, 4)
    with pytest.raises(AssertionError, match="without padding"):
        attend(torch.nn.Identity(), state, state, state, None)


def test_reasons_for_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    config = Qwen3Config()
    assert why_padded(config, cpu, bf16=False) is None
    assert "mpnet" in (why_padded(MPNetConfig(), cpu, bf16=False) or "")
    assert "16 bits" in (why_padded(config, gpu, bf16=False) or "")
    assert "dropout" in (why_padded(config, gpu, bf16=True, dropout=0.1) or "")
    assert why_padded(config, gpu, bf16=True, dropout=0.1, own_attention=False) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert why_padded(config, gpu, bf16=True) is None
    assert "12" in (why_padded(Qwen3Config(head_dim=12), gpu, bf16=True) or "")
    assert "24" not in (why_padded(BertConfig(hidden_size=96, num_attention_heads=4), gpu, bf16=True) or "")
    assert "10" in (why_padded(BertConfig(hidden_size=40, num_attention_heads=4), gpu, bf16=True) or "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old one")
    assert "an old one" in (why_padded(config, gpu, bf16=True) or "")
    monkeypatch.setattr(unpadded, "_kernel", lambda: None)
    assert "torch" in (why_padded(config, gpu, bf16=True) or "")


def test_the_kernel_is_asked_for_what_the_loop_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes, window and scale as torch documents them; the kernel itself needs a GPU."""
    from torch.nn.attention.varlen import varlen_attn  # the pinned torch has it

    assert unpadded._kernel() is not None and varlen_attn.__name__ == "varlen_attn"
    asked: dict[str, Any] = {}

    def record(query_TAE: Tensor, key_TKE: Tensor, value_TKE: Tensor, *ends: Any, **options: Any) -> Tensor:
        asked.update(shapes=(query_TAE.shape, key_TKE.shape, value_TKE.shape), ends=ends, **options)
        return query_TAE

    class Gpu(torch.Tensor):  # only says that it is on one
        device = torch.device("cuda", 0)  # type: ignore[assignment]

    monkeypatch.setattr(unpadded, "_kernel", lambda: record)
    assert unpadded._fits(128) and not unpadded._fits(12) and not unpadded._fits(264)
    query, key = torch.zeros(1, 4, 7, 8, dtype=torch.bfloat16), torch.zeros(1, 2, 7, 8, dtype=torch.bfloat16)
    module: Any = torch.nn.Identity()
    module.is_causal, module.config = True, Qwen3Config()
    ends = torch.tensor([0, 3, 7], dtype=torch.int32)
    places = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 4, "max_length_k": 4}
    out, _ = attend(module, query.as_subclass(Gpu), key, key, None, scaling=0.25, sliding_window=3, **places)
    assert asked["shapes"] == ((7, 4, 8), (7, 2, 8), (7, 2, 8)) and out.shape == (1, 7, 4, 8)
    assert asked["window_size"] == (2, 0) and asked["scale"] == 0.25 and asked["ends"][2:] == (4, 4)
    module.is_causal = False
    attend(module, query.as_subclass(Gpu), key, key, None, **places)
    assert asked["window_size"] == (-1, -1)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["qwen3", "modernbert", "bert"])
def test_the_kernel_gives_what_the_loop_gives(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, in bf16: vectors and gradients by torch's kernel against text after text."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    ours = without(tiny(kind).to("cuda"))
    tokens = ours.collator("query")(TEXTS)
    chunk = {name: part.cuda() if isinstance(part, Tensor) else part for name, part in tokens.chunks[0].items()}
    found = []
    for kernel in (unpadded._kernel(), None):
        monkeypatch.setattr(unpadded, "_kernel", lambda kernel=kernel: kernel)
        ours.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            vector_BD = ours(chunks=[chunk])
        vector_BD[:, 0].sum().backward()
        gradient_of = {name: p.grad.clone() for name, p in ours.named_parameters() if p.grad is not None}
        found.append((vector_BD.detach(), gradient_of))
    torch.testing.assert_close(found[0][0], found[1][0], atol=2e-2, rtol=0)
    for name, gradient in found[1][1].items():
        assert float((found[0][1][name] - gradient).norm()) <= 0.05 * max(float(gradient.norm()), 1e-2), name
