"""Checkpoints: everything a run needs to go on as if it had never stopped; safetensors and JSON, no pickle.

``step-000120/`` holds the trainable weights, the optimiser's moments and ``state.json`` (step, best score so far,
fingerprint of what is being trained). Learning rate, data position and random numbers are functions of (seed, step)
and so need no state. A checkpoint appears whole, by a rename, and the one before it goes only then.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.runtime.errors import InputError, Problem, StaleArtefactError
from harness.runtime.process import atomic_folder, logger, read_json, write_json

_STEP, _BEST = "step-{:08d}", "best"


@dataclass(frozen=True)
class TrainingState:
    """Where a training stands. ``step`` optimiser steps are done; ``fingerprint`` names what is trained, and how."""

    step: int
    fingerprint: str
    best_score: float | None = None
    best_step: int | None = None


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the trainable parameters of ``model`` to a safetensors file."""
    save_file({name: _copy(parameter) for name, parameter in trainable(model).items()}, path)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            Problem(
                "the checkpoint is damaged",
                where=str(path),
                got=str(error),
                next=f"delete {path.parent.parent} to start afresh",
            )
        ) from None


def load_weights(model: nn.Module, path: Path) -> None:
    """Put saved trainable parameters back.

    Raises:
        InputError: the file is damaged, or its names or shapes are not the model's.
    """
    saved, wanted = _read_tensors(path), trainable(model)
    if {n: t.shape for n, t in saved.items()} != {n: p.shape for n, p in wanted.items()}:
        different = sorted(set(saved) ^ set(wanted)) or [n for n in saved if saved[n].shape != wanted[n].shape]
        raise InputError(
            Problem(
                "the checkpoint is of another model",
                where=str(path),
                got=", ".join(different[:3]),
                next="delete the checkpoint's folder, or go back to the model that it was made with",
            )
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(saved[name])


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{key}/{name}": value
        for name, parameter in trainable(model).items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def save_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainingState) -> None:
    """Write ``folder/step-N`` whole, then remove older steps (``best/`` stays)."""
    path = folder / _STEP.format(state.step)
    with atomic_folder(path) as temporary:
        save_weights(model, temporary / "model.safetensors")
        moments = _optimizer_tensors(model, optimizer)
        save_file({name: _copy(value) for name, value in moments.items()}, temporary / "optimizer.safetensors")
        write_json(temporary / "state.json", asdict(state))
    for other in folder.glob("step-*"):
        if other != path:
            shutil.rmtree(other)


def save_best(folder: Path, model: nn.Module, state: TrainingState) -> None:
    """Write the weights with the best score so far to ``folder/best``, and which step they are of."""
    with atomic_folder(folder / _BEST) as temporary:
        save_weights(model, temporary / "model.safetensors")
        write_json(temporary / "state.json", asdict(state))


def load_best(folder: Path, model: nn.Module) -> None:
    """Put the weights of ``save_best`` back. Raises what ``load_weights`` raises."""
    load_weights(model, folder / _BEST / "model.safetensors")


def _best_step(folder: Path) -> int | None:
    path = folder / _BEST / "state.json"
    return TrainingState(**read_json(path)).best_step if path.exists() else None


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint, if there is one."""
    return max(folder.glob("step-*"), default=None)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, fingerprint: str
) -> TrainingState | None:
    """Put the newest checkpoint back into model and optimiser; None when there is none.

    A run that was killed after this checkpoint may have put later weights into ``best/``. The steps since are done
    again, so nothing is lost; but the best score that the checkpoint knows has no weights any more and is forgotten.

    Raises:
        StaleArtefactError: the checkpoint belongs to another training (other data, model or settings).
        InputError: the checkpoint is damaged.
    """
    path = latest(folder)
    if path is None:
        return None
    state = TrainingState(**read_json(path / "state.json", next=f"delete {path}"))
    if state.fingerprint != fingerprint:
        raise StaleArtefactError(
            Problem(
                "the checkpoint is of another training",
                where=str(path),
                got=state.fingerprint[:12],
                allowed=fingerprint[:12],
                next=f"delete {folder} to start afresh, or restore the recipe it was made with",
            )
        )
    moments = _read_tensors(path / "optimizer.safetensors")
    load_weights(model, path / "model.safetensors")
    parameters = trainable(model)
    for name, value in moments.items():
        key, _, parameter_name = name.partition("/")
        parameter = parameters[parameter_name]
        # AdamW keeps its step count on the CPU unless it is capturable; fused kernels want it beside the parameter.
        optimizer.state[parameter][key] = value.to(parameter.device)
    if state.best_step is None or _best_step(folder) == state.best_step:
        return state
    logger.warning("%s: weights kept as the best are not those of step %s any more", folder, state.best_step)
    return replace(state, best_score=None, best_step=None)
