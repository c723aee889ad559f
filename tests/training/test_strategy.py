"""Which placement an accelerate file leads to, and what is refused."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from builders.toy_problem import line
from torch import nn

from harness.runtime.errors import InputError
from harness.training.placement import Replicated
from harness.training.strategy import place


def placed(accelerator: Any = None) -> Any:
    accelerator = accelerator or Accelerator(cpu=True)
    return place(line(), lambda model: torch.optim.AdamW(model.parameters()), accelerator, max_norm=1.0, bf16=False)


def problems(accelerator: Any = None) -> dict[str, str]:
    with pytest.raises(InputError) as error:
        placed(accelerator)
    assert all(problem.next and problem.allowed for problem in error.value.problems)
    return {problem.where: problem.got for problem in error.value.problems}


def of_kind(kind: str, precision: str = "no") -> Any:
    return SimpleNamespace(mixed_precision=precision, distributed_type=kind, device=torch.device("cpu"))


@pytest.mark.parametrize("kind", ["NO", "MULTI_GPU", "FSDP"])
def test_one_process_holds_everything_whatever_the_file_says(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", str(kind == "FSDP").lower())
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert isinstance(placed(of_kind(kind)), Replicated)


def test_the_precision_of_an_accelerate_file_is_refused_and_so_are_other_strategies() -> None:
    assert problems(of_kind("NO", "fp16")) == {"mixed_precision": "fp16"}
    assert problems(of_kind("MEGATRON_LM", "bf16")) == {"mixed_precision": "bf16", "distributed_type": "MEGATRON_LM"}


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("VERSION", "1", "fsdp_version"),
        ("OFFLOAD_PARAMS", "true", "fsdp_offload_params"),
        ("CPU_RAM_EFFICIENT_LOADING", "true", "fsdp_cpu_ram_efficient_loading"),
        ("ACTIVATION_CHECKPOINTING", "true", "fsdp_activation_checkpointing"),
    ],
)
def test_what_fsdp_can_do_and_we_do_not_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, key: str
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv(f"FSDP_{name}", value)
    assert problems() == {f"fsdp_config.{key}": value}


def test_version_1_is_what_accelerate_takes_where_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.delenv("FSDP_VERSION", raising=False)
    assert problems() == {"fsdp_config.fsdp_version": "1"}


def test_deepspeed_has_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert problems(of_kind("DEEPSPEED")) == {"distributed_type": "DEEPSPEED"}


def test_what_deepspeed_can_do_and_we_do_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    wanted = {"ZERO_STAGE": "1", "OFFLOAD_OPTIMIZER_DEVICE": "cpu", "OFFLOAD_PARAM_DEVICE": "nvme",
              "ZERO3_INIT": "true", "CONFIG_FILE": "mine.json"}  # fmt: skip
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    for name, value in wanted.items():
        monkeypatch.setenv(f"ACCELERATE_DEEPSPEED_{name}", value)
    keys = ["zero_stage", "offload_optimizer_device", "offload_param_device", "zero3_init_flag",
            "deepspeed_config_file"]  # fmt: skip
    expected = {f"deepspeed_config.{key}": value for key, value in zip(keys, wanted.values(), strict=True)}
    assert problems(of_kind("DEEPSPEED")) == expected


def test_blocks_are_the_members_of_the_outermost_lists() -> None:
    from harness.training.placement import _blocks

    experts = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    layers = [nn.Sequential(nn.Linear(2, 2), experts), nn.Sequential(nn.Linear(2, 2))]
    model = nn.ModuleDict({"table": nn.Embedding(3, 2), "body": nn.ModuleDict({"layers": nn.ModuleList(layers)})})
    assert _blocks(model) == layers and _blocks(line()) == []
