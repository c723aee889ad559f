"""The same short training on a GPU as on a CPU: without padding, from batches made ahead, cached or direct, in bf16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from builders.training import Toy, run_folder, stage_parts, toy_training

from harness.training import feeding
from harness.training.fit import fit


def losses(toy: Toy, folder: Path, device: str, **changes: Any) -> list[float]:
    training = toy_training(**{"steps": 4, "keep": "last", "learning_rate": 5e-4, **changes})
    encoder = toy.encoder("bert").to(device)
    objective, batches = stage_parts("teacher", toy, encoder, training, loss="qwen3")
    run = run_folder(folder)
    fit(encoder, objective, batches, None, training, run, Accelerator(cpu=device == "cpu"))
    assert encoder.unpadded == (training.unpadded is True)
    return [json.loads(line)["loss"] for line in run.log.read_text().splitlines()]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("way", [{}, {"cached": True, "chunk_tokens": 40}, {"gradient_checkpointing": True}])
def test_losses_are_nearly_those_of_a_padded_training_in_fp32_on_a_cpu(
    toy: Toy, tmp_path: Path, device: str, way: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    wanted = losses(toy, tmp_path / "wanted", "cpu")
    monkeypatch.setattr(feeding, "_LARGE", 256)  # some tensors are placed once, the others pinned
    found = losses(toy, tmp_path / "found", device, precision="bf16", unpadded=True, **way)
    assert found == pytest.approx(wanted, rel=0.03)
