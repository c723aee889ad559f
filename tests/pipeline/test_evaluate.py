"""What the step ``evaluate`` does a second time, and what it does once: a finished run, evaluated otherwise."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.evaluation.per_query import PerQuery
from harness.evaluation.searching import judged_again
from harness.pipeline import int8_system, work_evaluation, work_report
from harness.pipeline.context import Run
from harness.pipeline.controller import run_recipe, run_verb
from harness.pipeline.folder import RunFolder
from harness.pipeline.manifest import Manifest
from harness.recipe import load_recipe
from harness.runtime.errors import InputError, Problem, StaleArtefactError
from harness.runtime.process import file_sha256
from harness.vectors import index
from harness.vectors.store import VectorStore


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


def test_what_a_step_made_is_evaluated_when_it_ends(
    recipe: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the ledger subtracts what was stored then; the step ``evaluate`` finds it, and searches nothing again."""
    run_recipe(load_recipe(recipe), tmp_path / "out", last="align")
    ended = RunFolder(tmp_path / "out").evaluations
    assert {folder.parent.name for folder in ended.glob("*/test")} == {"teacher", "student-aligned"}
    for folder in ended.glob("*/test"):
        whole = RunFolder(uninterrupted).evaluations / folder.relative_to(ended)
        assert file_sha256(folder / "per_query.parquet") == file_sha256(whole / "per_query.parquet"), folder
    steps = Manifest(RunFolder(tmp_path / "out")).steps
    assert {name for name, told in steps.items() if "evaluation_seconds" in told} == {"embed", "align"}
    run_recipe(load_recipe(recipe), tmp_path / "out", last="refine")
    monkeypatch.setattr(work_evaluation, "query_vectors", _never)
    monkeypatch.setattr(work_evaluation, "judge", _never)
    assert run_recipe(load_recipe(recipe), tmp_path / "out", last="evaluate")[1][-1] == "evaluate"


def test_the_recipe_stays_that_of_a_step_whose_evaluation_was_refused(
    recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise InputError(Problem("query vectors are not finite"))

    monkeypatch.setattr(work_evaluation, "evaluate", refused)
    changed = load_recipe(recipe, ["align.training.learning_rate=2e-3"])
    with pytest.raises(InputError, match="not finite"):
        run_recipe(changed, out, last="align")
    assert load_recipe(out / "recipe.resolved.yaml").align == changed.align, "the step was done under it"
    monkeypatch.undo()
    assert "align" not in run_recipe(changed, out, last="evaluate")[1]


def test_evaluations_of_ended_steps_count_as_evaluation() -> None:
    steps = {"embed": {"seconds": 4.0, "evaluation_seconds": 1.5}, "align": {"seconds": 2.0, "evaluation_seconds": 0.2},
             "evaluate": {"seconds": 0.1}}  # fmt: skip
    assert work_report._seconds(steps) == {"embed": 4.0, "align": 2.0, "evaluate": 1.8}


def test_an_index_of_documents_in_another_order_is_refused(recipe: Path, out: Path) -> None:
    """Hits are rows of the data's documents."""
    run = Run(load_recipe(recipe), RunFolder(out), {})
    run.dataset = replace(run.dataset, documents=replace(run.dataset.documents, ids=run.dataset.documents.ids[::-1]))
    with pytest.raises(StaleArtefactError, match="other documents, or in another order"):
        run.frozen_index()


NEVER = ("harness.pipeline.work_evaluation.query_vectors", "harness.pipeline.work_evaluation.index_of_system")


def test_other_metrics_judge_the_stored_hits_as_an_evaluation_afresh_does(
    recipe: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = load_recipe(recipe, ["evaluate.metrics=[nDCG@7, Hit@3, judged@100, Recall@90]"])
    fresh = Path(shutil.copytree(out, tmp_path / "fresh"))
    shutil.rmtree(fresh / "evaluations")
    run_verb(other, fresh, "evaluate", only="evaluate")
    with monkeypatch.context() as patch:
        for name in NEVER:
            patch.setattr(name, _never)
        run_verb(other, out, "evaluate", only="evaluate")
    found = sorted(path.relative_to(out) for path in (out / "evaluations").rglob("*") if path.is_file())
    assert len(found) > 12
    assert {str(path): file_sha256(out / path) for path in found} == {
        str(path): file_sha256(fresh / path) for path in found
    }
    assert list(PerQuery.load(out / "evaluations" / "teacher" / "test").metrics) == other.evaluate.metrics


def test_metrics_that_look_deeper_than_the_stored_hits_are_searched_for(
    recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    depths, real = [], work_evaluation.judge

    def judge(*given: Any, depth: int, **named: Any) -> PerQuery:
        depths.append(depth)
        return real(*given, depth=depth, **named)

    monkeypatch.setattr(work_evaluation, "judge", judge)
    deeper = load_recipe(recipe, ["evaluate.metrics=[Recall@110]", "evaluate.depth=120"])
    run_verb(deeper, out, "evaluate", only="evaluate")
    assert depths == [120] * len(list(out.glob("evaluations/*/*")))
    with pytest.raises(AssertionError, match="less deep"):
        stored = PerQuery.load(out / "evaluations" / "teacher" / "test")
        stored.scores = stored.scores[:, :9]
        data = Run(deeper, RunFolder(out), {}).dataset
        judged_again(stored, data.splits["test"], data.documents, ["P@10"])


def test_everything_is_opened_and_hashed_once(recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many systems are evaluated: the index is large, and so is the teacher."""
    counted: Counter[str] = Counter()

    def counting(place: object, name: str, what: Callable[..., str]) -> None:
        real = getattr(place, name)

        def counted_call(*given: object, **named: object) -> object:
            counted[what(*given)] += 1
            return real(*given, **named)

        monkeypatch.setattr(place, name, counted_call)

    counting(work_evaluation, "folder_sha256", lambda folder: f"hash {Path(folder).name}")
    counting(index.VectorIndex, "load", lambda folder, *_: f"load {Path(folder).name}")
    counting(VectorStore, "open", lambda folder: f"open {Path(folder).name}")
    shutil.rmtree(out / "evaluations")
    run_verb(load_recipe(recipe), out, "evaluate", only="evaluate")
    assert len(list(out.glob("evaluations/*/test"))) == 3
    assert counted == {"hash teacher": 1, "hash aligned": 1, "hash refined": 1, "load index": 1}


def test_one_index_is_in_memory_at_a_time(recipe: Path) -> None:
    systems = "evaluate.systems=[student-refined, teacher-base, student-aligned, teacher]"
    run = Run(load_recipe(recipe, [systems]), RunFolder(Path("none")), {})
    order = work_evaluation._in_order("teacher", run.recipe.evaluate.systems)
    assert order == ["teacher", "student-refined", "student-aligned", "teacher-base"]


def test_the_int8_file_is_opened_once_for_all_sets(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    class Engine:
        def __init__(self, *_: object, **__: object) -> None:
            opened.append(self)

        def encode(self, texts: list[str]) -> np.ndarray:
            return np.array([[len(text), 1] for text in texts], dtype=np.float32)

    monkeypatch.setattr("harness.engines.onnx_runtime.OnnxEngine", Engine)
    run = Run(load_recipe(recipe), RunFolder(Path("none")), {})
    found = int8_system.int8_vectors(run, {"report": ["a", "abc"], "test": [], "select": ["ab"]})
    assert {name: vector_QD.tolist() for name, vector_QD in found.items()} == {
        "report": [[1, 1], [3, 1]], "test": [], "select": [[2, 1]],
    }  # fmt: skip
    assert len(opened) == 1 and found["test"].shape == (0, 2)


def test_damage_in_a_copied_run_is_refused_every_time(recipe: Path, out: Path) -> None:
    """The times are new, so files are read, and the times of whole ones noted; those of damaged ones are not."""
    weights = out / "student" / "refined" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    for _ in range(2):
        with pytest.raises(StaleArtefactError, match="not what step 'refine' wrote"):
            run_recipe(load_recipe(recipe), out)
