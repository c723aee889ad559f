"""A hub that can't be reached: told at once and once, instead of after half a minute of retries."""

from __future__ import annotations

import logging
import time

import pytest
from huggingface_hub import constants

from harness.data.pairs import read_pairs
from harness.data.reading import Reading
from harness.recipe import DataSettings
from harness.runtime.errors import InputError

CLOSED = "http://127.0.0.1:9"  # a port that nothing listens on


def test_an_unreachable_hub_is_told_once_and_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    import datasets

    for module in (constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", CLOSED)
    started = time.perf_counter()
    with caplog.at_level(logging.WARNING), pytest.raises(InputError) as error:
        read_pairs(DataSettings(source="huggingface", dataset="some-team/no-such-data"), Reading())
    assert time.perf_counter() - started < 10
    (problem,) = error.value.problems
    assert CLOSED in problem.got and "some-team/no-such-data" in problem.where and "pairs" in problem.next
    assert "Retrying" not in caplog.text + "".join(capfd.readouterr())
    assert not constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE, "put back as they were"
