"""A task of ``mteb`` in a run, and the exported pair in ``mteb.evaluate``: the same numbers. Skipped without it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builders.outside import mteb_task, outside_lines
from builders.tiny_run import tiniest_tree, write_recipe

from harness.pipeline.controller import run_recipe
from harness.pipeline.surroundings import package_problems
from harness.recipe import load_recipe
from harness.runtime.process import read_json

THEIRS = {"nDCG@10": "ndcg_at_10", "P@1": "precision_at_1", "P@10": "precision_at_10", "MRR@10": "mrr_at_10",
          "Recall@100": "recall_at_100"}  # fmt: skip


def _tree(root: Path) -> dict[str, Any]:
    tree = tiniest_tree(root)
    tree["teacher"]["prompts"] = {"query": "ask ", "document": "text "}
    tree["evaluate"]["outside"] = [{"name": "task", "mteb": "InMemoryRetrieval"}]
    return {**tree, "export": {"pair": True}}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run that read the task and exported the pair."""
    mteb = pytest.importorskip("mteb")
    root = tmp_path_factory.mktemp("mteb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mteb, "get_task", lambda *_, **__: mteb_task(default=outside_lines()))
        run_recipe(load_recipe(write_recipe(root, _tree(root))), root / "out")
    yield root / "out"


def test_mteb_measures_the_exported_pair_as_the_run_did(out: Path) -> None:
    import mteb
    from sentence_transformers import SentenceTransformer

    pair = SentenceTransformer(str(out / "export" / "pair"), device="cpu")
    found = mteb.evaluate(pair, mteb_task(default=outside_lines()), cache=None, show_progress_bar=False)
    (theirs,) = found.task_results[0].scores["test"]
    told = read_json(out / "results.json")["outside"]["task"]
    assert told["source"] == "mteb InMemoryRetrieval, test" and told["queries"] == 20
    for ours, name in THEIRS.items():
        assert theirs[name] == pytest.approx(told["student-refined"][ours], abs=1e-5), ours
    assert told["student-refined"]["nDCG@10"] != told["teacher"]["nDCG@10"], "or the towers could not be told apart"


def test_without_the_extra_the_recipe_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.pipeline.surroundings.installed", lambda module: module != "mteb")
    problems = package_problems(load_recipe(write_recipe(tmp_path, _tree(tmp_path))))
    (problem,) = [problem for problem in problems if problem.where == "evaluate.outside"]
    assert "harness-retrieval[mteb]" in problem.next and "take its tasks out" in problem.next
