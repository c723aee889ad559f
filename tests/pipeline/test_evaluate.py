"""What the step ``evaluate`` does a second time, and what it does once: a finished run, evaluated otherwise."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.evaluation.per_query import PerQuery
from harness.pipeline.context import Run
from harness.pipeline.controller import run_recipe
from harness.pipeline.folder import RunFolder
from harness.recipe import load_recipe
from harness.runtime.errors import StaleArtefactError
from harness.vectors import index


def _never(*_: object) -> None:
    raise AssertionError("nothing is encoded, loaded or searched for it")


@pytest.fixture
def out(uninterrupted: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(uninterrupted, tmp_path / "out"))


def test_a_finished_run_is_searched_with_the_searcher_that_a_recipe_names(
    recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embed saved an index in FAISS; to leave it, FAISS is not needed any more."""
    pytest.importorskip("faiss")
    told = {folder: PerQuery.load(folder) for folder in sorted(out.glob("evaluations/*/*"))}
    run, other = Run(load_recipe(recipe), RunFolder(out), {}), load_recipe(recipe, ["evaluate.searcher=exact"])
    assert index.saved_kind(run.folder.index) == run.frozen_index().kind == "faiss" and told
    with monkeypatch.context() as without:
        without.setattr(index, "require_faiss", _never)
        assert run_recipe(other, out, last="evaluate")[1] == ["evaluate"]
        assert Run(other, RunFolder(out), {}).frozen_index().kind == "exact"
    for folder, before in told.items():
        np.testing.assert_allclose(PerQuery.load(folder).scores, before.scores, atol=1e-6, err_msg=str(folder))


def test_an_index_of_documents_in_another_order_is_refused(recipe: Path, out: Path) -> None:
    """Hits are rows of the data's documents."""
    run = Run(load_recipe(recipe), RunFolder(out), {})
    run.dataset = replace(run.dataset, documents=replace(run.dataset.documents, ids=run.dataset.documents.ids[::-1]))
    with pytest.raises(StaleArtefactError, match="other documents, or in another order"):
        run.frozen_index()
