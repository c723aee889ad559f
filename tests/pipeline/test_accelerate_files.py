"""Every file of recipes/accelerate, read by accelerate itself: what it would start, and that the trainer takes it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from harness.training import strategy

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))
# What would be started: processes of this machine, machines, on the CPU.
STARTED = {
    "cpu2": (DistributedType.MULTI_GPU, 2, 1, True),
    "ddp": (DistributedType.MULTI_GPU, 8, 1, False),
    "fsdp2": (DistributedType.FSDP, 8, 1, False),
    "deepspeed-zero2": (DistributedType.DEEPSPEED, 8, 1, False),
    "deepspeed-zero3": (DistributedType.DEEPSPEED, 8, 1, False),
    "multi-node": (DistributedType.MULTI_GPU, 8, 2, False),
}


def launched(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, str]]:
    """What ``accelerate launch`` makes of a file: the arguments of torch's launcher, what it tells the processes."""
    if "deepspeed" in path.name:
        monkeypatch.setattr("accelerate.utils.launch.is_port_in_use", lambda *_: False)
    options = ["--config_file", str(path), "--machine_rank", "1", "--main_process_ip", "10.0.0.1", "-m", "harness"]
    args, config, _ = _validate_launch_command(launch_command_parser().parse_args(options))
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config)
        return args, prepare_deepspeed_cmd_env(args)[1]
    return args, prepare_multi_gpu_env(args)


def test_the_walk_finds_all_of_them() -> None:
    assert {path.stem for path in FILES} == STARTED.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_would_start_what_the_file_is_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, processes, machines, cpu = STARTED[path.stem]
    config = load_config_from_file(str(path))
    assert (config.distributed_type, config.num_machines, bool(config.use_cpu)) == (kind, machines, cpu)
    args, told = launched(path, monkeypatch)
    assert (int(args.nproc_per_node), args.num_machines) == (processes, machines)
    assert args.num_processes == config.num_processes == processes * machines
    assert args.multi_gpu == (kind == DistributedType.MULTI_GPU) and not args.cpu
    assert told["ACCELERATE_MIXED_PRECISION"] == "no"
    assert told.get("ACCELERATE_USE_FSDP", "false") == str(kind == DistributedType.FSDP).lower()
    assert told.get("ACCELERATE_USE_DEEPSPEED", "false") == str(kind == DistributedType.DEEPSPEED).lower()
    if kind == DistributedType.FSDP:
        assert (told["FSDP_VERSION"], told["FSDP_RESHARD_AFTER_FORWARD"]) == ("2", "true")
        assert told["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
    if kind == DistributedType.DEEPSPEED:
        assert told["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == path.stem[-1]
    if machines > 1:
        assert (args.nnodes, args.node_rank, args.rdzv_backend) == ("2", 1, "static")
        assert args.rdzv_endpoint == "10.0.0.1:29500"
        assert config.main_process_ip is None, "an address belongs on the command line"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_trainer_does_what_the_file_asks_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, told = launched(path, monkeypatch)
    for name in [name for name in told if name.startswith(("ACCELERATE_", "FSDP_"))]:
        monkeypatch.setenv(name, told[name])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())  # as if DeepSpeed were installed
    kind = load_config_from_file(str(path)).distributed_type
    accelerator: Any = type("Told", (), {"mixed_precision": told["ACCELERATE_MIXED_PRECISION"],
                                         "distributed_type": kind})  # fmt: skip
    strategy._require_supported(accelerator)
    assert strategy._wants("FSDP") == (kind == DistributedType.FSDP)
    assert strategy._wants("DEEPSPEED") == (kind == DistributedType.DEEPSPEED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_file_says_what_it_is_for_and_whether_it_was_run(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    head = text[: text.index("compute_environment")]
    assert 1 <= head.count("\n") <= 8 and all(line.startswith("#") for line in head.splitlines())
    assert ("not run here" in head.lower().replace("\n# ", " ")) == (path.stem != "cpu2")
    for named in re.findall(r"[\w.-]+\.yaml", text):
        assert named == "recipe.resolved.yaml" or (FOLDER / Path(named).name).is_file(), named


def test_an_unknown_key_is_an_error(tmp_path: Path) -> None:
    for path in FILES:
        told = yaml.safe_load(path.read_text())
        (tmp_path / path.name).write_text(yaml.safe_dump(told | {"num_proceses": 2}))
        with pytest.raises(ValueError, match="num_proceses"):
            load_config_from_file(str(tmp_path / path.name))
