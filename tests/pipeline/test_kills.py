"""A run that is killed, again and again and in the middle of every kind of write, ends like one that was not."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders.killed import Fault, Zygote
from builders.tiny_run import tiniest_tree, write_recipe
from builders.whole import count_artefacts, differences, partial_artefacts


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as made:
        yield made


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kills")
    return write_recipe(root, tiniest_tree(root))


def command(recipe: Path, out: Path) -> list[str]:
    return ["run", str(recipe), "--output", str(out)]


@pytest.fixture(scope="module")
def uninterrupted(zygote: Zygote, recipe: Path) -> Path:
    out = recipe.parent / "whole" / "out"
    out.parent.mkdir()
    ended = zygote.run(command(recipe, out), out)
    assert ended.code == 0, ended.log
    assert partial_artefacts(out) == [] and count_artefacts(out) > 30
    return out


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
    Fault("checkpoint", "replaced", 2, name="state.json"),
    Fault("mined", "write", 2),
    Fault("best", "replace", name="best"),
    Fault("export", "fsync", 2),
    Fault("evaluation", "write"),
    Fault("evaluation", "replace", 2, name="test"),
    Fault("results", "write"),
    Fault("report", "write"),
)


def test_kills_inside_every_kind_of_write(zygote: Zygote, recipe: Path, uninterrupted: Path) -> None:
    out = recipe.parent / "writes" / "out"
    out.parent.mkdir()
    for fault in KILLS:
        ended = zygote.run(command(recipe, out), out, fault)
        assert ended.code == -signal.SIGKILL, f"{fault} was not met:\n{ended.log}"
        assert partial_artefacts(out) == [], f"{fault} at {ended.struck}"
    ended = zygote.run(command(recipe, out), out)
    assert ended.code == 0, ended.log
    assert differences(uninterrupted, out) == []
    assert not list(out.rglob("*.tmp")) and not list(out.rglob("*.partial")), "leftovers"


def test_kills_at_random_moments(zygote: Zygote, recipe: Path, uninterrupted: Path) -> None:
    draw, kills, number = random.Random(5), 0, 0
    while kills < 8:
        number += 1
        out = recipe.parent / f"moments{number}" / "out"
        out.parent.mkdir()
        while True:
            wait = draw.uniform(0.1, 1.5) if kills < 8 else 1e9
            ended = zygote.run(command(recipe, out), out, Fault("any", "time", seconds=wait))
            assert partial_artefacts(out) == []
            if ended.code == 0:
                break
            assert ended.code == -signal.SIGKILL, ended.log
            kills += 1
        assert differences(uninterrupted, out) == []
