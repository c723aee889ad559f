"""A run that is killed, again and again and in the middle of every kind of write, ends like one that was not."""

from __future__ import annotations

import random
import signal
from pathlib import Path

from builders.killed import Fault, Zygote
from builders.whole import differences, partial_artefacts


def command(recipe: Path, out: Path) -> list[str]:
    return ["run", str(recipe), "--output", str(out)]


# In running order: each is met on the way from where the one before it struck.
KILLS = (
    Fault("recipe", "replace"),
    Fault("data", "fsync", 2),
    Fault("data", "replaced", name="data"),
    Fault("checkpoint", "save"),
    Fault("checkpoint", "replace", 2, name="step-*"),
    Fault("checkpoint", "rmtree"),
    Fault("best", "save"),
    Fault("log", "write", 2),
    Fault("model", "save"),
    Fault("model", "replace", name="teacher"),
    Fault("manifest", "write"),
    Fault("shard", "write", 4),
    Fault("shard", "replace", 5),
    Fault("shard", "replace", name="documents"),
    Fault("index", "write", 2),
    Fault("index", "replace", name="index"),
    Fault("manifest", "replace"),
    Fault("evaluation", "write"),  # of the teacher, once its documents are embedded
    Fault("checkpoint", "replaced", 2, name="state.json"),
    Fault("evaluation", "replace", 2, name="test"),  # the teacher's, made up for, then the aligned student's
    Fault("mined", "write", 2),
    Fault("best", "replace", name="best"),
    Fault("export", "fsync", 2),
    Fault("results", "write"),
    Fault("report", "write"),
)


def test_kills_inside_every_kind_of_write(zygote: Zygote, recipe: Path, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for fault in KILLS:
        ended = zygote.run(command(recipe, out), out, fault)
        assert ended.code == -signal.SIGKILL, f"{fault} was not met:\n{ended.log}"
        assert partial_artefacts(out) == [], f"{fault} at {ended.struck}"
    ended = zygote.run(command(recipe, out), out)
    assert ended.code == 0, ended.log
    assert differences(uninterrupted, out) == []
    assert not list(out.rglob("*.tmp")) and not list(out.rglob("*.partial")), "leftovers"


def test_kills_at_random_moments(zygote: Zygote, recipe: Path, uninterrupted: Path, tmp_path: Path) -> None:
    draw, kills, number = random.Random(5), 0, 0
    while kills < 8:
        number += 1
        out = tmp_path / f"out{number}"
        while True:
            wait = draw.uniform(0.1, 1.5) if kills < 8 else 1e9
            ended = zygote.run(command(recipe, out), out, Fault("any", "time", seconds=wait))
            assert partial_artefacts(out) == []
            if ended.code == 0:
                break
            assert ended.code == -signal.SIGKILL, ended.log
            kills += 1
        assert differences(uninterrupted, out) == []
