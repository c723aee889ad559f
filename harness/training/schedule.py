"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from harness.recipe import TrainingSettings


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """The rate of 0-based ``step``: linear warm-up over ``warmup_share`` of the steps, then the decay, to zero."""
    warmup = round(settings.warmup_share * settings.steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    left = (settings.steps - step) / max(1, settings.steps - warmup)
    factor = {"linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left)), "constant": 1.0}[settings.decay]
    return settings.learning_rate * factor
