"""What the tests of kills, stops, full disks and damage share: one process that forks runs, and one whole run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from builders.killed import Zygote
from builders.tiny_run import tiniest_tree, write_recipe
from builders.whole import count_artefacts, partial_artefacts

from harness.export import opening


@pytest.fixture(scope="package", autouse=True)
def without_sentence_transformers() -> Iterator[None]:
    """Exports are opened by us: its import costs seconds. What opens them with it says so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "has_sentence_transformers", lambda: False)
        yield


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    with Zygote() as made:
        yield made


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiniest recipe with every kind of artefact."""
    root = tmp_path_factory.mktemp("tiniest")
    return write_recipe(root, tiniest_tree(root))


@pytest.fixture(scope="session")
def uninterrupted(zygote: Zygote, recipe: Path) -> Path:
    """The folder of its run from beginning to end; not to be changed."""
    out = recipe.parent / "out"
    ended = zygote.run(["run", str(recipe), "--output", str(out)], out)
    assert ended.code == 0, ended.log
    assert partial_artefacts(out) == [] and count_artefacts(out) > 30
    return out
