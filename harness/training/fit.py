"""The one trainer core: models, optimisers, checkpoints. What is learnt, and how it is judged, are handed in."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from harness.recipe import TrainingSettings
from harness.runtime.distributed import (
    broadcast,
    mean_over_processes,
    rank,
    seed_step,
    use_bf16,
    wait_for_all,
    world_size,
)
from harness.runtime.errors import RunError, StoppedError
from harness.runtime.process import atomic_file, disk_errors, is_main_process, logger, progress, write_json
from harness.training.checkpoint import TrainingState, load_best, load_checkpoint, save_best, save_checkpoint
from harness.training.feeding import Ahead, ToDevice
from harness.training.objectives import Objective
from harness.training.placement import trainable
from harness.training.schedule import learning_rate
from harness.training.strategy import place


class Batches(Protocol):
    """Micro-batches of a step, a pure function of the step: CPU tensors in nested dicts and lists, and ``ids``.

    On a GPU the next step's are made in a thread while a step runs, so nothing is drawn from torch's own randomness.
    """

    def __call__(self, step: int) -> list[Mapping[str, Any]]:
        """The ``accumulate`` micro-batches of 0-based ``step`` for this process."""
        ...


@dataclass
class RunFolder:
    """Where a training writes: ``checkpoints/<stage>/`` and ``logs/<stage>.jsonl``, and what it is a training of."""

    checkpoints: Path
    log: Path
    fingerprint: str
    seed: int
    what: str
    stop: Callable[[], bool] = lambda: False
    track: Callable[[Mapping[str, float], int], None] = lambda values, step: None


@dataclass
class Fitted:
    """What a training did: the step and score of the weights that the model now holds, and the seconds it took here."""

    step: int
    score: float | None
    seconds: float
    curve: list[dict[str, float]] = field(default_factory=list)


class Interrupted(StoppedError):
    """Stopped on request after saving a checkpoint; the same command goes on from there."""


def _optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW; vectors (biases, norms) are not decayed."""
    parameters = list(trainable(model).values())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def _read_log(path: Path, steps: int) -> list[dict[str, Any]]:
    """The log's lines of the first ``steps`` steps; a line cut short by a kill is dropped."""
    lines: list[dict[str, Any]] = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                line = json.loads(text)
                if line["step"] <= steps:
                    lines.append(line)
    return lines


class _Trainer:
    """The state of one ``fit`` call."""

    def __init__(self, model: nn.Module, settings: TrainingSettings, run: RunFolder, accelerator: Accelerator) -> None:
        self.model, self.settings, self.run, self.accelerator = model, settings, run, accelerator
        self.bf16 = use_bf16(settings.precision, accelerator.device)
        self.placement = place(
            model, lambda placed: _optimizer(placed, settings), accelerator,
            max_norm=settings.max_grad_norm, bf16=self.bf16,
        )  # fmt: skip
        self.to_device = ToDevice(accelerator.device)
        self.curve: list[dict[str, float]] = []
        self.state = load_checkpoint(run.checkpoints, self.placement, run.fingerprint) or TrainingState(
            0, run.fingerprint
        )
        kept = _read_log(run.log, self.state.step)
        self.curve += [line for line in kept if "score" in line]
        if is_main_process():
            with atomic_file(run.log, "w") as stream:
                stream.writelines(json.dumps(line) + "\n" for line in kept)

    def _write(self, line: Mapping[str, Any]) -> None:
        if not is_main_process():
            return
        text = json.dumps(line) + "\n"
        # Opened for each line: a stream would try again, when it is closed, what a full disk refused.
        with disk_errors(self.run.log, size=len(text)), open(self.run.log, "a", encoding="utf-8") as stream:
            stream.write(text)

    def step(self, objective: Objective, micro_batches: list[Mapping[str, Any]]) -> dict[str, float]:
        """One optimiser step over all micro-batches; returns the mean of what the objective logs."""
        number = self.state.step
        seed_step(self.run.seed, number)
        self.placement.clear()  # what a step that failed half-way may have left
        values: list[Mapping[str, float]] = []
        for index, batch in enumerate(micro_batches):
            last_batch = index == len(micro_batches) - 1

            def backward(loss: Tensor, sync: bool = True, last_batch: bool = last_batch) -> None:
                self.placement.backward(loss / len(micro_batches), sync=sync and last_batch)

            with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.bf16):
                values.append(objective.step(self.placement.model, self.to_device(batch), backward))
        for part, batch in zip(values, micro_batches, strict=True):  # only now: other processes wait for our gradients
            self._require_finite(part, batch["ids"])
        logs = {name: sum(part[name] for part in values) / len(values) for name in values[0]}
        rate = learning_rate(number, self.settings)
        norm = self.placement.update(rate, self.settings.max_grad_norm)
        if not math.isfinite(norm):
            ids = [name for batch in micro_batches for name in batch["ids"]]
            self._require_finite({"gradient norm": norm}, ids)
        self.state = replace(self.state, step=number + 1)
        logs = mean_over_processes(logs, self.accelerator.device)
        logs |= {"learning_rate": rate, "gradient_norm": norm}
        self._write({"step": self.state.step, **logs})
        self.run.track(logs, self.state.step)
        return logs

    def _require_finite(self, values: Mapping[str, float], ids: Sequence[str]) -> None:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if not bad:
            return
        # Each process names its own texts: a gradient carries one process's NaN to all.
        path = self.run.log.with_name(f"{self.run.log.stem}-nonfinite{rank() or ''}.json")
        write_json(path, {"step": self.state.step + 1, "not_finite": bad, "ids": list(ids)})
        raise RunError(
            f"{self.run.what}: {bad[0]} is not finite at step {self.state.step + 1}; the batch holds "
            f"{', '.join(map(str, ids[:3]))}... (all ids: {path}).\n"
            f"    next: look at those texts, lower {self.run.what}.training.learning_rate, or set precision: fp32"
        )

    def judge(self, evaluate: Callable[[], Mapping[str, float]]) -> None:
        """Evaluate, log, and keep the weights if they are the best so far. ``evaluate`` returns at least ``score``."""
        training_mode = self.model.training
        self.model.eval()
        try:
            values = broadcast(dict(evaluate()))  # one process's arithmetic decides for all
        except Exception:
            raise
        except BaseException:  # asked to stop in a long evaluation: it is made when the training goes on
            self.model.train(training_mode)
            if world_size() == 1:
                self.save()
            raise
        self.model.train(training_mode)
        line = {"step": self.state.step, **values}
        self.curve.append(line)
        self._write(line)
        self.run.track(values, self.state.step)
        score = values["score"]
        if self.settings.keep == "best" and (self.state.best_score is None or score > self.state.best_score):
            self.state = replace(self.state, best_score=score, best_step=self.state.step)
            save_best(self.run.checkpoints, self.placement, self.state)
        logger.info(
            "%s: step %d, %s",
            self.run.what,
            self.state.step,
            ", ".join(f"{k} {v:.4f}" for k, v in values.items() if k != "score"),
        )

    def stopping(self) -> bool:
        """Whether any process was asked to stop: all of them do so after the same step."""
        return mean_over_processes({"stop": float(self.run.stop())}, self.accelerator.device)["stop"] > 0

    def save(self) -> None:
        """A checkpoint of the step just done."""
        save_checkpoint(self.run.checkpoints, self.placement, self.state)


def fit(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    evaluate: Callable[[], Mapping[str, float]] | None,
    settings: TrainingSettings,
    run: RunFolder,
    accelerator: Accelerator,
) -> Fitted:
    """Train ``model`` in place for ``settings.steps`` steps, going on from the newest checkpoint if there is one.

    At the end the model holds the best weights (``keep: best``, by ``evaluate``'s ``score``) or the last ones; where
    parameters are spread over processes, the main process's model holds them whole, and the others' hold no values.

    Raises:
        RunError: a loss or gradient that is not finite (the batch is named), or a stop was asked for (``Interrupted``).
        InputError: the newest checkpoint is damaged or of another training, or the launcher's accelerate file asks
            for what this trainer does not do.
    """
    started = time.monotonic()
    trainer = _Trainer(model, settings, run, accelerator)
    model.train()
    if trainer.state.step:
        logger.info("%s: goes on from step %d", run.what, trainer.state.step)

    def due(step: int) -> bool:
        return step == settings.steps or bool(settings.evaluate_every and step and step % settings.evaluate_every == 0)

    at = trainer.state.step
    if evaluate and due(at) and not broadcast(any(line["step"] == at for line in trainer.curve)):
        trainer.judge(evaluate)
        trainer.save()
    ahead = Ahead(batches, accelerator.device, settings.steps)
    with progress(
        what=run.what, total=settings.steps, initial=trainer.state.step, unit="step"
    ) as bar, contextlib.closing(ahead):  # fmt: skip
        while (step := trainer.state.step) < settings.steps:
            micro_batches = ahead(step)
            with ahead.while_making(step + 1):
                logs = trainer.step(objective, micro_batches)
            bar.update(1)
            bar.set_postfix_str(f"loss {logs['loss']:.3f}")
            done = trainer.state.step
            last = done == settings.steps
            if evaluate and due(done):
                trainer.judge(evaluate)
            stopping = trainer.stopping() and not last
            if last or stopping or (settings.checkpoint_every and done % settings.checkpoint_every == 0):
                trainer.save()
            if stopping:
                raise Interrupted(f"{run.what}: stopped after step {done}; the same command goes on from there")
    wait_for_all()
    state = trainer.state
    kept = state.step
    if settings.keep == "best" and state.best_step not in (None, state.step):
        load_best(run.checkpoints, trainer.placement)
        kept = state.best_step or kept
    trainer.placement.finish()
    model.eval()
    score = next((line["score"] for line in trainer.curve if line["step"] == kept), None)
    return Fitted(kept, score, time.monotonic() - started, trainer.curve)
