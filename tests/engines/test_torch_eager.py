"""The torch engine gives what the encoder gives, prompt included, and says under which conditions."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.tiny_models import QWEN_PROMPT, write_tiny_bert, write_tiny_qwen3

from harness.encoders.encoder import Encoder
from harness.encoders.folder import open_encoder
from harness.engines.protocol import Engine
from harness.engines.torch_eager import TorchEngine
from harness.evaluation.bench import bench

TEXTS = ["a laughing face", "cat", "the cat laughs at a face that laughs", "face"]


@pytest.fixture(scope="module", params=[write_tiny_bert, write_tiny_qwen3], ids=["bert", "qwen3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = request.param(tmp_path_factory.mktemp("model") / "tiny", texts=TEXTS, layers=2)
    return path


@pytest.fixture
def encoder(folder: Path) -> Encoder:
    return open_encoder(folder)


def test_equals_the_encoder_on_the_query_side(encoder: Encoder) -> None:
    engine: Engine = TorchEngine(encoder)
    expected_ND = encoder.encode(TEXTS, side="query")
    vector_ND = engine.encode(TEXTS)
    assert vector_ND.dtype == np.float32 and vector_ND.shape == (4, encoder.dimension)
    np.testing.assert_allclose(vector_ND, expected_ND, atol=1e-6)
    np.testing.assert_array_equal(engine.forward(engine.tokenise(TEXTS)), vector_ND)
    for text, vector_D in zip(TEXTS, vector_ND, strict=True):
        np.testing.assert_allclose(engine.encode([text])[0], vector_D, atol=1e-6)
    if encoder.prompts["query"] == QWEN_PROMPT:
        assert np.abs(vector_ND - encoder.encode(TEXTS, side="document")).max() > 1e-3


def test_the_encoder_is_in_evaluation_mode_and_records_no_gradient(encoder: Encoder) -> None:
    encoder.train()
    engine = TorchEngine(encoder)
    assert not encoder.training
    np.testing.assert_array_equal(engine.encode(TEXTS), engine.encode(TEXTS))
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_another_dtype_is_that_of_the_backbone(encoder: Encoder) -> None:
    exact_ND = encoder.encode(TEXTS, side="query")
    engine = TorchEngine(encoder, device="cpu", dtype=torch.bfloat16)
    assert encoder.token_table.weight.dtype == torch.bfloat16
    vector_ND = engine.encode(TEXTS)
    assert vector_ND.dtype == np.float32
    assert np.sum(vector_ND * exact_ND, axis=1).min() > 0.99
    assert engine.describe()["dtype"] == "bfloat16"


def test_says_its_conditions(encoder: Encoder) -> None:
    assert TorchEngine(encoder).describe() == {
        "device": "cpu", "dtype": "float32", "threads": torch.get_num_threads(), "max_length": encoder.max_length
    }  # fmt: skip


def test_bench_times_it(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "collect", lambda: 0)  # it takes a second beside torch
    found = bench({"student": TorchEngine(encoder)}, {"en": TEXTS}, warmup=1, repeats=2, batch_sizes=[2])
    row = found["latency"]["student"]["torch"]["en"]
    assert row["calls"] == 8 and 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
    assert 0 < row["tokenise_p50_ms"] < row["total_p50_ms"]
    assert found["throughput"]["student"]["torch"]["queries_per_second"] > 0
    assert found["conditions"]["max_length"] == encoder.max_length


@pytest.mark.gpu
def test_on_a_gpu(encoder: Encoder) -> None:
    expected_ND = encoder.encode(TEXTS, side="query")
    engine = TorchEngine(encoder, device="cuda")
    np.testing.assert_allclose(engine.encode(TEXTS), expected_ND, atol=1e-4)
    assert engine.describe()["device"].startswith("cuda:0 (")
