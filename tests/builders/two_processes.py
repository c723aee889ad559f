"""What each of two real processes does: ``python -m builders.two_processes FOLDER``, under ``accelerate launch``.

Whatever a check needs is written below FOLDER, one file a rank; the comparing is done by the tests.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from builders import sharding
from builders.pair_logs import pair_mixture
from builders.toy_problem import LineBatches, Squares, line, scripted
from builders.training import (
    ENCODERS,
    LOSSES,
    STAGES,
    Toy,
    graded,
    gradients,
    hash_score,
    one_step,
    open_toy,
    run_folder,
    run_stage,
    stage_parts,
    stage_settings,
    toy_training,
)
from safetensors.torch import save_file

from harness.data.collator import Collator
from harness.runtime.distributed import (
    average_gradients,
    gather,
    join_processes,
    rank,
    seed_step,
    world_size,
)
from harness.runtime.errors import InputError, RunError
from harness.training.fit import fit
from harness.training.objectives import Contrastive
from harness.training.pair_streams import PairStreamBatches
from harness.training.stages import prepare_parameters, trained_temperature

TRAINING = toy_training(batch_size=16, max_grad_norm=0.5)
# ``keep: last``, since the score that tells every bit apart makes another step the best one.
WHOLE = toy_training(batch_size=16, accumulate=2, steps=4, evaluate_every=2, learning_rate=1e-3, keep="last")


ADAPTED = ("bert-lora", "qwen3-lora")


def gradients_of(
    stage: str, kind: str, toy: Toy, step: int, **settings: Any
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Loss and averaged gradients of a global batch, however many processes share it."""
    encoder = toy.encoder(kind)
    objective, batches = stage_parts(stage, toy, encoder, TRAINING.model_copy(update=settings))
    logs, _ = one_step(objective, encoder, batches(step)[0])
    average_gradients(encoder.parameters())
    return logs, gradients(encoder)


# Every loss, directly and with cached gradients, which also cut their chunks differently in each process.
LOSS_CASES = [(loss, cached) for loss in LOSSES for cached in (False, True)]


def loss_gradients(loss: str, cached: bool, toy: Toy) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Loss and averaged gradients of the teacher's global batch, the learned temperature's gradient included."""
    toy, training = graded(toy), toy_training(batch_size=16, cached=cached, chunk_tokens=32 if cached else None)
    encoder = toy.encoder("qwen3" if loss == "qwen3" else "bert")
    objective, batches = stage_parts("teacher", toy, encoder, training, loss=loss)
    with trained_temperature(encoder, stage_settings("teacher", training, loss)):
        logs, _ = one_step(objective, encoder, batches(1)[0])
        average_gradients(encoder.parameters())
        return logs, gradients(encoder)


# On pairs from logs: loss, cached gradients, encoder.
PAIR_CASES = [("info_nce", False, "bert"), ("qwen3", True, "qwen3"), ("towers", True, "bert-lora")]


def pair_gradients(
    loss: str, cached: bool, kind: str, toy: Toy, folder: Path
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Loss and averaged gradients of a global batch of pairs from logs, whose tokens all processes write together."""
    training = toy_training(batch_size=16, cached=cached, chunk_tokens=32 if cached else None)
    encoder, settings = toy.encoder(kind), stage_settings("teacher", training, loss)
    prepare_parameters(encoder, training)
    mixture = pair_mixture(folder / kind, encoder, 16)
    collator = Collator(
        encoder.tokenizer, prompt="", max_length=encoder.max_length, chunk_tokens=training.chunk_tokens
    )  # fmt: skip
    batches = PairStreamBatches(mixture, collator, training, with_towers=settings.loss.with_towers)
    with trained_temperature(encoder, settings):
        objective = Contrastive(settings.temperature, settings.loss, cached)
        logs, _ = one_step(objective, encoder, batches(1)[0])
        average_gradients(encoder.parameters())
        return logs, gradients(encoder)


def whole_run(stage: str, toy: Toy, folder: Path, kind: str = "bert") -> dict[str, torch.Tensor]:
    """The weights after a whole training."""
    encoder = toy.encoder(kind)
    run_stage(stage, toy, encoder, WHOLE, run_folder(folder), hash_score(encoder))
    return {name: value.contiguous() for name, value in encoder.state_dict().items()}


def gathered() -> dict[str, torch.Tensor]:
    """``gather`` of different rows, and gradients of a loss in which autograd shares one tensor between branches."""
    local_BD = (torch.arange(6.0).view(3, 2) + 10 * rank()).requires_grad_()
    other_GD = torch.zeros(6, 2, requires_grad=True)
    earlier_GD = 1.0 * other_GD  # made before the gather, so its backward pass comes after the gather's
    everything_GD = gather(local_BD)
    weight_GD = torch.arange(12.0).view(6, 2) + rank()
    ((everything_GD + earlier_GD) * weight_GD).sum().backward()
    strided_BD = torch.arange(6.0).view(2, 3).T  # not contiguous
    return {
        "everything": everything_GD.detach().contiguous(), "local_gradient": local_BD.grad,
        "other_gradient": other_GD.grad, "strided": gather(strided_BD),
    }  # fmt: skip


def outcome(work: Callable[[], Any]) -> dict[str, str]:
    """What was raised, if anything."""
    try:
        work()
    except (RunError, InputError) as error:
        return {"kind": type(error).__name__, "text": str(error)}
    return {"kind": "", "text": ""}


def fit_line(folder: Path, batches: LineBatches, **run: Any) -> None:
    training = toy_training(learning_rate=0.1, accumulate=batches.micro)
    fit(line(), Squares(), batches, None, training, run_folder(folder, **run), Accelerator(cpu=True))


def differently_judged(folder: Path) -> dict[str, Any]:
    """A training that each process would judge differently."""
    model, training = line(), toy_training(learning_rate=0.1, steps=3, evaluate_every=1)
    evaluate = scripted([0.1, 0.9, 0.2] if rank() == 0 else [0.9, 0.1, 0.2])
    fitted = fit(model, Squares(), LineBatches(), evaluate, training, run_folder(folder), Accelerator(cpu=True))
    return {"step": fitted.step, "scores": [entry["score"] for entry in fitted.curve],
            "weight": model.weight.detach()[0].tolist()}  # fmt: skip


def random_numbers(step: int) -> list[float]:
    """What a step would draw for dropout."""
    seed_step(7, step)
    return torch.rand(3).tolist()


def main(folder: Path) -> None:
    join_processes(torch.device("cpu"))
    torch.set_num_threads(1)
    toy, answers = open_toy(folder / "toy"), {}
    answers["processes"] = [world_size(), rank(), Accelerator(cpu=True).num_processes, dist.get_backend()]
    save_file(gathered(), folder / f"gather-{rank()}.safetensors")
    for stage in STAGES:
        for kind in ENCODERS:
            for step in range(3):
                name = f"{stage}-{kind}-{step}"
                answers[name], found = gradients_of(stage, kind, toy, step)
                save_file(found, folder / f"{name}-{rank()}.safetensors")
        save_file(whole_run(stage, toy, folder / stage), folder / f"{stage}-{rank()}.safetensors")
    for kind in ADAPTED:
        for cached in (False, True):
            name = f"{kind}-{cached}"
            answers[name], found = gradients_of("teacher", kind, toy, 1, cached=cached)
            save_file(found, folder / f"{name}-{rank()}.safetensors")
    save_file(whole_run("teacher", toy, folder / ADAPTED[0], ADAPTED[0]), folder / f"{ADAPTED[0]}-{rank()}.safetensors")
    for loss, cached in LOSS_CASES:
        name = f"{loss}-{cached}"
        answers[name], found = loss_gradients(loss, cached, toy)
        save_file(found, folder / f"{name}-{rank()}.safetensors")
    for loss, cached, kind in PAIR_CASES:
        name = f"pairs-{loss}"
        answers[name], found = pair_gradients(loss, cached, kind, toy, folder / "pairs")
        save_file(found, folder / f"{name}-{rank()}.safetensors")
    answers["random"] = [random_numbers(step) for step in (3, 4, 3)]
    calls = iter(range(2))
    in_third_step_of_second = lambda: rank() == 1 and next(calls, None) is None  # noqa: E731
    answers["stop"] = outcome(lambda: fit_line(folder / "stop", LineBatches(), stop=in_third_step_of_second))
    # Only the second process meets a NaN, and not in the last micro-batch.
    poisoned = LineBatches(micro=2, poison=2 if rank() == 1 else None, point=0)
    answers["nan"] = outcome(lambda: fit_line(folder / "nan", poisoned))
    answers["judged"] = differently_judged(folder / "judged")
    answers["sharded"] = sharding.by_two(toy, folder)
    answers["odd"] = outcome(lambda: stage_parts("align", toy, toy.encoder(), toy_training(batch_size=15)))
    (folder / f"answers-{rank()}.json").write_text(json.dumps(answers))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
