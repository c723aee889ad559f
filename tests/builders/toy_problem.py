"""A straight line to be learnt: the smallest model, objective and batches that the trainer core accepts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

TRUTH_D = torch.tensor([1.0, -2.0, 3.0])


def line(seed: int = 0) -> nn.Module:
    """Three weights and a bias."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(3, 1)


@dataclass
class LineBatches:
    """Eight points a micro-batch; in step ``poison``, ``value`` stands in point ``point`` of all micro-batches."""

    micro: int = 1
    poison: int | None = None
    value: float = float("nan")
    point: int = -1
    asked: list[int] = field(default_factory=list)

    def __call__(self, step: int) -> list[Mapping[str, Any]]:
        self.asked.append(step)
        generator = torch.Generator().manual_seed(step)
        points_BD = torch.randn(8 * self.micro, 3, generator=generator)
        value_B = points_BD @ TRUTH_D + 0.5
        if step == self.poison:
            points_BD[self.point, 0] = self.value
        ids = [f"point {step}-{number}" for number in range(len(value_B))]
        return [
            {"points_BD": points_BD[part], "value_B": value_B[part], "ids": ids[part]}
            for part in (slice(8 * m, 8 * m + 8) for m in range(self.micro))
        ]


class Squares:
    """The mean square error; it fails in the middle of step ``fail_at``, after the backward pass."""

    def __init__(self, fail_at: int | None = None, scale: float = 1.0) -> None:
        self.fail_at, self.scale, self.calls = fail_at, scale, 0

    def step(self, model: nn.Module, batch: Mapping[str, Any], backward: Callable[..., None]) -> dict[str, float]:
        loss = self.scale * self.loss(model, batch)
        backward(loss)
        self.calls += 1
        if self.calls - 1 == self.fail_at:
            raise KeyboardInterrupt
        return {"loss": float(loss.detach()), "double": 2 * float(loss.detach())}

    @staticmethod
    def loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        return (model(batch["points_BD"])[:, 0] - batch["value_B"]).square().mean()


def scripted(scores: list[float]) -> Callable[[], dict[str, float]]:
    """An ``evaluate`` that answers what it is told, call by call."""
    answers = iter(scores)
    return lambda: {"score": next(answers), "nDCG@10": 0.5}
