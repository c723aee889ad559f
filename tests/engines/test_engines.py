"""The engines agree, on every kind of model and text; the tokeniser makes what transformers makes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.deployable import KINDS, TEXTS, deployable, write_deployable

from harness.encoders.folder import open_encoder
from harness.engines import torch_compile
from harness.engines.cuda_graphs import CudaGraphsEngine
from harness.engines.protocol import Engine
from harness.engines.tokeniser import Tokeniser
from harness.engines.torch_compile import TorchCompileEngine
from harness.engines.torch_eager import TorchEngine
from harness.runtime.errors import InputError, RunError


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokeniser_makes_what_the_encoder_reads(kind: str, tmp_path: Path) -> None:
    encoder = write_deployable(kind, tmp_path / "model")
    for side in ("query", "document"):
        expected = encoder.collator(side).tokens(TEXTS)
        for tokeniser in (Tokeniser.of_folder(tmp_path / "model", side), Tokeniser.of_encoder(encoder, side)):
            assert tokeniser.token_lists(TEXTS) == expected
            assert tokeniser.max_length == 512 == max(map(len, expected))
            tokens = tokeniser(TEXTS)
            (chunk,) = encoder.collator(side).pad(expected).chunks
            order = np.argsort([-len(each) for each in expected], kind="stable")  # the collator's
            np.testing.assert_array_equal(tokens.input_ids[order], chunk["input_ids"].numpy())
            np.testing.assert_array_equal(tokens.attention_mask[order], chunk["attention_mask"].numpy())
    assert encoder.tokenizer.backend_tokenizer.padding is None, "the encoder's own tokenizer is left alone"


def test_a_text_without_a_token_is_one_padding_token(tmp_path: Path) -> None:
    encoder = deployable("qwen3")
    encoder.tokenizer.backend_tokenizer.post_processor = None  # no special tokens
    encoder.prompts["query"] = ""
    tokens = Tokeniser.of_encoder(encoder)(["", "hat"])
    assert tokens.attention_mask[0].tolist().count(1) == 1


def test_lower_casing_and_length_come_from_the_folder(tmp_path: Path) -> None:
    encoder = write_deployable("qwen3", tmp_path / "model")  # its tokenizer tells cases apart
    assert encoder.tokenizer.tokenize("Hat") != encoder.tokenizer.tokenize("hat")
    path = tmp_path / "model" / "sentence_bert_config.json"
    path.write_text('{"max_seq_length": 20, "do_lower_case": true}')
    tokeniser = Tokeniser.of_folder(tmp_path / "model")
    texts = ["Hat", "HAT " * 40]
    assert tokeniser.token_lists(texts) == open_encoder(tmp_path / "model").collator("query").tokens(texts)
    assert tokeniser.max_length == 20
    path.unlink()
    (tmp_path / "model" / "modules.json").unlink()
    assert Tokeniser.of_folder(tmp_path / "model").max_length == 512  # the tokenizer's, within the model's positions


def test_a_folder_without_a_padding_token_is_refused(tmp_path: Path) -> None:
    write_deployable("bert", tmp_path / "model")
    (tmp_path / "model" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InputError, match="no padding token"):
        Tokeniser.of_folder(tmp_path / "model")


def check(engine: Engine, expected_ND: np.ndarray, tolerance: float = 1e-5) -> None:
    scale = np.abs(expected_ND).max() / tolerance
    one_by_one_ND = np.concatenate([engine.encode([text]) for text in TEXTS])
    assert one_by_one_ND.dtype == np.float32
    for found_ND in (one_by_one_ND, engine.encode(TEXTS)):
        np.testing.assert_allclose(found_ND * scale, expected_ND * scale, atol=1)
    assert {"device", "dtype", "threads", "max_length"} <= engine.describe().keys()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_by_torch_it_is_the_same(kind: str) -> None:
    encoder = deployable(kind)
    expected_ND = TorchEngine(encoder).encode(TEXTS)
    check(TorchCompileEngine(encoder), expected_ND)


def test_torch_compile_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    encoder = deployable("bert")
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    with pytest.raises(InputError, match=r"CXX: torch-compile needs a C\+\+ compiler"):
        TorchCompileEngine(encoder)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(InputError, match=r"PATH: torch-compile needs a C\+\+ compiler"):
        TorchCompileEngine(encoder)


def test_what_torch_cannot_compile_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> torch.Tensor:
        raise ValueError("no such operator\nand a hundred lines")

    monkeypatch.setattr(torch_compile, "require_compiler", lambda: None)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    with pytest.raises(RunError, match="^torch can't compile this model: ValueError: no such operator$"):
        TorchCompileEngine(deployable("bert"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_cuda_graphs_without_a_gpu_are_refused() -> None:
    with pytest.raises(InputError, match="needs a CUDA device"):
        CudaGraphsEngine(deployable("bert"))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_replayed_from_cuda_graphs_it_is_the_same(kind: str, dtype: torch.dtype) -> None:
    encoder = deployable(kind)
    expected_ND = TorchEngine(encoder).encode(TEXTS)
    engine = CudaGraphsEngine(encoder, dtype=dtype, buckets=(8, 32, 128))
    assert engine.buckets == [8, 32, 128]
    check(engine, expected_ND, 1e-4 if dtype == torch.float32 else 2e-2)
    # Replays follow each other: a longer text, then a shorter one in the same bucket, leaves nothing behind.
    for count in (6, 1, 3, 25, 2):
        tokens = engine.tokenise(["hat " * count])
        np.testing.assert_allclose(engine.forward(tokens), engine._plainly(tokens), atol=1e-2)
