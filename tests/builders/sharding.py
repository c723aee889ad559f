"""Trainings whose parameters are spread over processes, and the same in one: ``python -m builders.sharding FOLDER``.

What is run here runs with any number of processes, one included; the comparing is done by the tests.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from accelerate import Accelerator
from builders.toy_problem import scripted
from builders.training import Toy, open_toy, run_folder, run_stage, stage_parts, toy_training
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from harness.encoders.folder import save_encoder
from harness.encoders.lora import is_adapted, merge_adapter
from harness.runtime.distributed import join_processes, rank, wait_for_all
from harness.runtime.errors import InputError, RunError
from harness.training.fit import Interrupted
from harness.training.objectives import Backward, Objective
from harness.training.placement import trainable
from harness.training.strategy import place

RUNS = (("teacher", "bert"), ("refine", "qwen3"), ("teacher", "qwen3-lora"))
SCORES = [0.9, 0.1]  # of steps 2 and 4: the best weights are not the last
STOP = 3


class InParts:
    """An objective with a forward and a backward pass for every chunk; only the last backward is to be shared."""

    def step(self, model: nn.Module, batch: Mapping[str, Any], backward: Backward) -> dict[str, float]:
        chunks, total = batch["chunks"], 0.0
        for number, chunk in enumerate(chunks):
            vector_BD = model(chunks=[chunk])
            loss = (vector_BD * torch.arange(vector_BD.shape[1])).square().sum() / len(batch["ids"])
            backward(loss, sync=number == len(chunks) - 1)
            total += float(loss.detach())
        return {"loss": total}


def _whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone().contiguous()


def _adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(trainable(model).values(), lr=1e-3, fused=True)


def two_steps(
    stage: str, kind: str, toy: Toy, accumulate: int, *, objective: Objective | None = None, bf16: bool = False,
    reshard: bool = True, **settings: Any,
) -> tuple[dict[str, Any], dict[str, Tensor]]:  # fmt: skip
    """What happened in two steps of a sharded training, and every gradient of them and every weight after them."""
    training = toy_training(batch_size=16, accumulate=accumulate, chunks=3, **settings)
    encoder, numbers, tensors = toy.encoder(kind), {"loss": [], "norm": [], "early": [], "kinds": []}, {}
    usual, batches = stage_parts(stage, toy, encoder, training)
    with mock.patch.dict(os.environ, {"FSDP_RESHARD_AFTER_FORWARD": str(reshard).lower()}):
        placement: Any = place(encoder, _adamw, Accelerator(cpu=True), max_norm=0.5, bf16=bf16)
    for step in range(2):
        for number, batch in enumerate(batches(step)):
            last = number == accumulate - 1

            def backward(loss: Tensor, sync: bool = True, last: bool = last) -> None:
                placement.backward(loss / accumulate, sync=sync and last)
                if not (sync and last):  # what is not shared yet is no gradient of a shard yet
                    numbers["early"].append(sum(p.grad is not None for p in placement.parameters.values()))

            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logs = (objective or usual).step(placement.model, batch, backward)
            numbers["loss"].append(logs["loss"])
        tensors |= {f"gradient {step} {name}": _whole(p.grad) for name, p in placement.parameters.items()}
        numbers["norm"].append(placement.update(1e-3, 0.5))
        numbers["vector"] = encoder.encode(["a text", "another one"], side="query", bf16=bf16)[0].tolist()
    numbers["kinds"] = sorted({type(p).__name__ for p in placement.parameters.values()})
    numbers["rows"] = {name: len(part.value) for name, part in placement.weights().items() if part.shape}
    placement.finish()
    if rank() == 0:
        tensors |= {f"weight {name}": value.clone().contiguous() for name, value in encoder.state_dict().items()}
    numbers["model"] = type(encoder).__name__
    numbers["after"] = sorted({f"{type(p).__name__} on {p.device}" for p in encoder.parameters()})
    return numbers, tensors


def whole_run(stage: str, kind: str, toy: Toy, folder: Path, *, stop: int = 0, scores: list[float]) -> None:
    """A training, or the part of it until ``stop``; the main process saves the encoder that comes out."""
    encoder, score = toy.encoder(kind), scripted(scores)
    # 12 queries in two micro-batches: for one, two and three processes.
    training = toy_training(
        batch_size=12, accumulate=2, steps=4, evaluate_every=2, learning_rate=1e-3, max_grad_norm=0.5, chunks=3
    )
    asked = iter(range(1, 100))

    def evaluate() -> dict[str, float]:
        vector_ND = encoder.encode(toy.dataset.documents.texts[:5], side="document")
        return {**score(), "size": float(abs(vector_ND).sum())}

    run = run_folder(folder, stop=lambda: next(asked) == stop)
    with contextlib.suppress(Interrupted):
        run_stage(stage, toy, encoder, training, run, evaluate)
        if rank() == 0:
            if is_adapted(encoder):
                merge_adapter(encoder, toy.texts[1][:5])
            save_encoder(encoder, folder / "encoder")


def name_of(stage: str, kind: str) -> str:
    return f"{stage}-{kind}"


CASES: dict[str, dict[str, Any]] = {
    **{f"{stage}-{kind}-{accumulate}": {"stage": stage, "kind": kind, "accumulate": accumulate}
       for stage in ("teacher", "align", "refine") for kind in ("bert", "qwen3") for accumulate in (1, 2)},
    "frozen": {"stage": "refine", "kind": "qwen3", "accumulate": 2, "token_table": "frozen"},
    "in parts": {"stage": "align", "kind": "bert", "accumulate": 2, "objective": InParts()},
    # In two processes with chunks of so many tokens the numbers of chunks differ.
    "cached": {"stage": "teacher", "kind": "qwen3", "accumulate": 2, "cached": True, "chunk_tokens": 24},
    "kept": {"stage": "align", "kind": "bert", "accumulate": 2, "reshard": False},
    "lora": {"stage": "teacher", "kind": "bert-lora", "accumulate": 2},
    "again": {"stage": "teacher", "kind": "qwen3-lora", "accumulate": 2, "gradient_checkpointing": True},
    "bf16": {"stage": "align", "kind": "qwen3", "accumulate": 2, "bf16": True},
    "bf16 lora": {"stage": "teacher", "kind": "qwen3-bf16-lora", "accumulate": 2, "bf16": True},
}  # fmt: skip


@mock.patch.dict(os.environ, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"})  # as the launcher would say it
def by_two(toy: Toy, folder: Path) -> dict[str, Any]:
    """All cases, whole runs, runs that stop, and runs that go on from what one process has left."""
    answers = {}
    for case, how in CASES.items():
        answers[case], tensors = two_steps(toy=toy, **how)
        save_file(tensors, folder / f"sharded-{case}-{rank()}.safetensors")
    for stage, kind in RUNS:
        name = name_of(stage, kind)
        whole_run(stage, kind, toy, folder / "sharded" / name, scores=SCORES)
        whole_run(stage, kind, toy, folder / "stopped" / name, stop=STOP, scores=SCORES[:1])
        whole_run(stage, kind, toy, folder / "from-one" / name, scores=SCORES[1:])
    whole_run(*RUNS[0], toy, folder / "full-disk", stop=2, scores=SCORES[:1])
    answers["full disk"] = _refused(lambda: _fail_to_write(toy, folder / "full-disk"))
    damaged = folder / "stopped" / name_of(*RUNS[0])
    answers["damaged"] = _refused(lambda: _damage(toy, damaged, folder / "damaged"))
    return answers


def _refused(work: Callable[[], None]) -> list[str]:
    try:
        work()
    except (RunError, InputError) as error:
        return [type(error).__name__, str(error)]
    return []


def _fail_to_write(toy: Toy, folder: Path) -> None:
    """The disk is full in the second process only, at the checkpoint after step 3."""
    refusal = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with mock.patch("harness.training.checkpoint.save_file", side_effect=refusal if rank() else save_file):
        whole_run(*RUNS[0], toy, folder, stop=1, scores=[])


def _damage(toy: Toy, source: Path, folder: Path) -> None:
    """One bit of the second process's moments is not what was written."""
    if rank() == 0:
        shutil.copytree(source, folder)
        (path,) = folder.glob("checkpoints/step-*/optimizer-00001-of-00002.safetensors")
        content = bytearray(path.read_bytes())
        content[-5] ^= 4
        path.write_bytes(bytes(content))
    wait_for_all()
    whole_run(*RUNS[0], toy, folder, scores=SCORES)


def main(folder: Path) -> None:
    """Go on from what others have left in ``folder/from-two``, and note how parameters were placed."""
    join_processes(torch.device("cpu"))
    torch.set_num_threads(1)
    toy, kinds = open_toy(folder / "toy"), []

    def noted(*args: Any, **options: Any) -> Any:
        placement = place(*args, **options)
        kinds.append(type(placement).__name__)
        return placement

    with mock.patch("harness.training.fit.place", noted):
        for stage, kind in RUNS:
            whole_run(stage, kind, toy, folder / "from-two" / name_of(stage, kind), scores=SCORES[1:])
    (folder / f"placements-{rank()}.txt").write_text(" ".join(kinds))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
