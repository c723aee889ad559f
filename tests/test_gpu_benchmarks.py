"""The GPU benchmarks: they run on a CPU with a tiny shape, and count and look up what they say they do."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu"


def script(name: str) -> ModuleType:
    """A benchmark as a module; its own import of its neighbours finds them."""
    if f"gpu_{name}" not in sys.modules:
        spec = importlib.util.spec_from_file_location(f"gpu_{name}", FOLDER / f"{name}.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[f"gpu_{name}"] = module
        spec.loader.exec_module(module)
    return sys.modules[f"gpu_{name}"]


@pytest.fixture(scope="module")
def shapes() -> ModuleType:
    script("training")
    return sys.modules["shapes"]


@pytest.mark.filterwarnings("ignore")
def test_training_runs_every_case_and_claims_no_mfu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = script("training")
    assert training.main(["--tiny", "--output", str(tmp_path / "found.json")]) == 0
    told = json.loads((tmp_path / "found.json").read_text())
    found, printed = told["measured"]["tiny"], capsys.readouterr().out
    assert set(found) == {*training.CASES, "equality"} and all(f"| {case} |" in printed for case in training.CASES)
    for name, case in training.CASES.items():
        values = found[name]
        assert values["steps"] == 2 and values["tokens_a_second"] > 0 and values["mfu"] is None, name
        assert values["unpadded"] == case.get("unpadded", True), name
    assert found["equality"]["equal"] and found["equality"]["cached"]["differs"] < 1e-5
    assert found["lora"]["trained_parameters"] < found["full"]["trained_parameters"]
    assert "no MFU is claimed" in printed and {"commit", "versions", "hardware"} <= told.keys()


@pytest.mark.filterwarnings("ignore")
def test_a_case_that_fails_is_named_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = script("training")
    measure = training.measure

    def sometimes(encoder: Any, shape: str, name: str, *rest: Any) -> Any:
        if name == "lora, padded":
            raise torch.OutOfMemoryError("too large")
        if name == "lora, cached":
            raise ValueError("no such\nthing")
        return measure(encoder, shape, name, *rest)

    monkeypatch.setattr(training, "measure", sometimes)
    cases = ["--cases", "lora", "lora, padded", "lora, cached"]
    assert training.main(["--tiny", *cases, "--output", str(tmp_path / "found.json")]) == 1
    found = json.loads((tmp_path / "found.json").read_text())["measured"]["tiny"]
    assert found["lora"]["steps"] == 2 and found["lora, padded"] == {"not_run": "out of memory"}
    assert found["lora, cached"]["not_run"] == "ValueError: no such thing"
    assert "| lora, padded | out of memory |" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_encoding_runs_and_both_ways_agree(tmp_path: Path) -> None:
    encoding = script("encoding")
    assert encoding.main(["--tiny", "--output", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())["measured"]["tiny"]
    assert found["equality"]["lowest_cosine"] > 0.9999
    assert all(found[way]["texts_a_second"] > 0 and found[way]["mfu"] is None for way in ("padded", "unpadded"))


def test_texts_have_the_tokens_that_are_counted(shapes: ModuleType) -> None:
    length_N = shapes.Texts(8, 8, 0.5, 32).lengths("document", 50, np.random.default_rng(0))
    texts = script("encoding").sentences(length_N, 500)
    tokens = shapes.tokenizer(500)(texts)["input_ids"]
    assert [len(part) for part in tokens] == length_N.tolist() and len(set(length_N.tolist())) > 5
    assert all(part[-1] == 0 and 0 not in part[:-1] for part in tokens)


def counted(encoder: Any, length: int, rows: int, backward: bool) -> int:
    tokens = torch.randint(1, 400, (rows, length))
    mode = FlopCounterMode(display=False)
    with mode:
        hidden_BTH = encoder.backbone(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
        if backward:
            hidden_BTH.sum().backward()
    return mode.get_total_flops()


@pytest.mark.parametrize("trained", [None, "full", "lora"])
def test_operations_are_those_that_torch_counts(shapes: ModuleType, trained: str | None) -> None:
    """Eager attention computes all pairs, of which a causal one needs half; the first layer's input has no gradient."""
    from harness.encoders.lora import add_adapter
    from harness.recipe import LoraSettings

    shape, (rows, length) = shapes.SHAPES["tiny"], (3, 20)
    encoder = shapes.build(shape, torch.device("cpu"), torch.float32, 32)
    encoder.backbone.set_attn_implementation("eager")
    adapters = 0
    if trained == "lora":
        add_adapter(encoder, LoraSettings(rank=2), seed=0)
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(".lora_" in name)
        adapters = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    ours = shapes.flops(shape, np.full(rows, length), trained=trained, adapters=adapters)
    other_half = 2 * rows * length**2 * shape.heads * shape.head_size * shape.layers * (3 if trained else 1)
    first = 0
    if trained == "lora":  # gradients that nothing before the first layer asks for: of its three projections' input
        wide = (shape.heads + 2 * shape.key_heads) * shape.head_size
        first = 2 * rows * length * (shape.hidden * wide + 3 * 2 * shape.hidden)
    found = counted(encoder, length, rows, backward=trained is not None)
    assert found == pytest.approx(ours["useful"] + other_half - first, rel=1e-4)  # RoPE, in some versions


@pytest.mark.parametrize(("name", "billions"), [("190m", 0.20), ("0.6b", 0.60), ("4b", 4.02), ("8b", 7.57)])
def test_shapes_are_of_full_size(shapes: ModuleType, name: str, billions: float) -> None:
    encoder = shapes.build(shapes.SHAPES[name], torch.device("meta"), torch.bfloat16, 512)
    assert encoder.parameter_count / 1e9 == pytest.approx(billions, abs=0.006 if billions > 1 else 0.012)


@pytest.mark.parametrize(
    ("name", "rate"),
    [("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA H100 PCIe", 756.0), ("NVIDIA H200", 989.4), ("NVIDIA L40S", 362.0),
     ("NVIDIA L4", 121.0), ("NVIDIA A100-SXM4-80GB", 311.9), ("NVIDIA A10", 125.0), ("NVIDIA T4", None)],
)  # fmt: skip
def test_peak_rates_by_device_name(
    shapes: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, rate: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    gpu = torch.device("cuda", 0)
    assert shapes.peak_rate(gpu, None) == (rate * 1e12 if rate else None)
    assert shapes.peak_rate(gpu, 5.0) == 5e12 and shapes.peak_rate(torch.device("cpu"), None) is None


def test_one_command_runs_them_all() -> None:
    subprocess.run(["sh", "-n", str(FOLDER / "run_all.sh")], check=True)
    told = (FOLDER / "run_all.sh").read_text()
    assert {"training.py", "encoding.py", "latency.py"} == {path.name for path in FOLDER.glob("*.py")} - {"shapes.py"}
    assert "training.py --quick" in told and "encoding.py" in told and "latency.py" in told
    training = script("training")
    assert all(set(cases) <= set(training.CASES) for cases in training.QUICK.values())


def test_latency_runs_and_compares_with_the_first_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    latency = script("latency")
    assert latency.main(["--tiny", "--output", str(tmp_path / "found.json")]) == 0
    told = json.loads((tmp_path / "found.json").read_text())
    assert set(told["measured"]["latency"]) == {"tiny"} and "| tiny |" in capsys.readouterr().out
    p50s, rates = {"8b": 54.0, "190m": 2.0}, {"8b": 9.0, "190m": 180.0}
    found = {
        "latency": {name: {"x": {"all": {"p50_ms": p50, "p99_ms": 9.0}}} for name, p50 in p50s.items()},
        "throughput": {name: {"x": {"queries_per_second": rate, "batch": 8}} for name, rate in rates.items()},
    }
    assert [(row[3], row[6]) for row in latency.rows_of(found, "8b")] == [("1.0", "1.0"), ("27.0", "20.0")]
