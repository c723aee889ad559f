from __future__ import annotations

import pytest
from builders.training import toy_training
from hypothesis import given
from hypothesis import strategies as st

from harness.training.schedule import learning_rate


def rates(**changes: object) -> list[float]:
    settings = toy_training(**{"steps": 10, "learning_rate": 0.5, "warmup_share": 0.2, **changes})
    return [learning_rate(step, settings) for step in range(11)]


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("linear", [0.25, 0.5, 0.5, 0.4375, 0.375, 0.3125, 0.25, 0.1875, 0.125, 0.0625, 0]),
        # 0.25 (1 - cos(pi left)) for left = 8/8, 7/8, ... 0
        ("cosine", [0.25, 0.5, 0.5, 0.480970, 0.426777, 0.345671, 0.25, 0.154329, 0.073223, 0.019030, 0]),
        ("constant", [0.25] + [0.5] * 10),
    ],
)
def test_golden_rates(decay: str, expected: list[float]) -> None:
    assert rates(decay=decay) == pytest.approx(expected, abs=1e-6)


def test_without_warm_up_the_first_step_is_at_the_full_rate() -> None:
    assert rates(warmup_share=0.0)[0] == 0.5
    assert rates(warmup_share=0.04)[0] == 0.5, "a share of less than half a step is none"


def test_nothing_but_warm_up_rises_to_the_full_rate() -> None:
    assert rates(warmup_share=1.0)[:10] == pytest.approx([0.05 * step for step in range(1, 11)])


@given(
    steps=st.integers(1, 50), share=st.floats(0, 1), decay=st.sampled_from(["linear", "cosine", "constant"]),
)  # fmt: skip
def test_every_step_learns_and_none_above_the_rate(steps: int, share: float, decay: str) -> None:
    settings = toy_training(steps=steps, learning_rate=0.5, warmup_share=share, decay=decay)
    rate = [learning_rate(step, settings) for step in range(steps)]
    assert all(0 < value <= 0.5 for value in rate)
    warmup = round(share * steps)
    assert rate[:warmup] == sorted(rate[:warmup]) and rate[warmup:] == sorted(rate[warmup:], reverse=True)
    assert max(rate) == pytest.approx(0.5)
