"""How the embed step computes: in bf16, without padding. Another precision is another result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders.tiny_run import tiny_tree, write_recipe

from harness.encoders.encoder import Encoder
from harness.pipeline import controller
from harness.pipeline.controller import run_recipe
from harness.recipe import Recipe, load_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ways")
    tree = tiny_tree(root)
    return write_recipe(root, {**tree, "teacher": {"model": tree["teacher"]["model"], "train": False},
                               "evaluate": {"systems": ["teacher"], "resamples": 100}})  # fmt: skip


def vectors(recipe: Recipe, folder: Path) -> np.ndarray:
    run_recipe(recipe, folder, last="embed")
    return np.load(folder / "vectors" / "documents" / "shard-00000.npy")


def test_without_padding_vectors_are_the_same_and_in_bf16_nearly(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "after_step", lambda *_: None)  # evaluations encode as they always do
    plain_ND = vectors(load_recipe(recipe), tmp_path / "plain")
    modes: list[bool] = []
    forward = Encoder._vectors

    def seen(self: Encoder, *chunk: object, **tokens: object) -> object:
        modes.append(self.unpadded)
        return forward(self, *chunk, **tokens)  # type: ignore[arg-type]

    monkeypatch.setattr(Encoder, "_vectors", seen)
    unpadded_ND = vectors(load_recipe(recipe, ["embed.unpadded=true"]), tmp_path / "unpadded")
    assert modes and all(modes)
    np.testing.assert_allclose(unpadded_ND, plain_ND, atol=2e-6)
    low_ND = vectors(load_recipe(recipe, ["embed.precision=bf16"]), tmp_path / "bf16")
    off = np.abs(low_ND - plain_ND).max()
    assert 1e-5 < off < 2e-2, "not computed in bf16, or wrongly"


def test_another_precision_is_another_result(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    before_ND = vectors(load_recipe(recipe), folder)
    _, ran = run_recipe(load_recipe(recipe), folder, last="embed")
    assert not ran
    _, ran = run_recipe(load_recipe(recipe, ["embed.precision=bf16"]), folder, last="embed")
    assert ran == ["embed"]
    assert not np.array_equal(np.load(folder / "vectors" / "documents" / "shard-00000.npy"), before_ND)
