"""What a script of benchmarks/ computes itself; what it calls has tests of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders.rich_results import rich_results

import harness.pipeline.provenance
from harness.evaluation.per_query import PerQuery
from harness.recipe import load_recipe

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def script(name: str) -> Any:
    """A benchmark as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    path, environment = list(sys.path), dict(os.environ)
    sys.path.insert(0, str(BENCHMARKS))
    spec.loader.exec_module(module)
    sys.path[:] = path
    os.environ.clear()
    os.environ.update(environment)
    return module


def test_a_number_of_edited_code_does_not_bear_the_name_of_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    code = tmp_path / "code.py"
    code.write_text("x = 1\n")
    git("init")
    git("add", "code.py")
    git("commit", "-m", "first")
    monkeypatch.setattr(harness.pipeline.provenance, "__file__", str(code))
    told = script("provenance").provenance(seed=7)
    assert len(told["commit"]) == 12 and told["seed"] == 7
    assert {"started", "load", "versions", "hardware"} < told.keys() and "numpy" in told["versions"]
    code.write_text("x = 2\n")
    assert script("provenance").provenance()["commit"] == f"{told['commit']}-dirty"


def test_numbers_that_can_not_be_written_leave_those_that_lie_there(tmp_path: Path) -> None:
    path, write = tmp_path / "new" / "found.json", script("provenance").write
    write(path, {"found": 1})
    with pytest.raises(TypeError):
        write(path, {"found": 2, "more": object()})
    assert json.loads(path.read_text()) == {"found": 1} and list(path.parent.iterdir()) == [path]


def test_no_benchmark_tells_its_provenance_in_a_way_of_its_own() -> None:
    for path in sorted(BENCHMARKS.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        own = [word for word in ("getloadavg", "metadata.version(", '"describe"', '"HEAD"]') if word in text]
        assert path.name == "provenance.py" or not own, (path, own)


@pytest.fixture(scope="module")
def quality() -> Any:
    return script("teacher_quality")


def answers(quality: Any, hits: list[int]) -> PerQuery:
    count = len(hits)
    return PerQuery(
        ids=[f"q{i}" for i in range(count)], languages=["de", "en"] * (count // 2),
        groups=[f"g{i // 2}" for i in range(count)], weights=np.ones(count), hits=[[]] * count,
        scores=np.zeros((count, 0), np.float32), metrics={name: np.array(hits, float) for name in quality.METRICS},
    )  # fmt: skip


def test_every_row_of_the_teachers_table_is_a_valid_recipe(quality: Any) -> None:
    for task in quality.TASKS:
        names = {quality.ZERO_SHOT}
        for row in task.rows:
            assert row.above in names, "compared with a row above it"
            names.add(row.name)
            recipe = load_recipe(BENCHMARKS / "recipes" / task.recipe, quality.overrides(row, 7, Path("DIR")))
            assert recipe.seed == 7 and bool(recipe.mine.base) == ("mined" in row.name)
            assert (recipe.teacher.hard_negatives > 0) == ("mined" in row.name or row.judged)


def test_the_teachers_table_gives_values_and_paired_differences(quality: Any) -> None:
    zero, trained = [0, 1] * 40, [1, 1, 0, 1] * 20
    rows = [
        {"name": quality.ZERO_SHOT, "above": None, "per_query": answers(quality, zero), "runs": []},
        {"name": "trained", "above": quality.ZERO_SHOT, "per_query": answers(quality, trained), "runs": []},
    ]
    first, second = quality.numbers(rows, 200)
    assert first["values"]["P@1"]["difference"] == 0.5 and first["over_above"] is None
    assert second["values"]["P@1"]["difference"] == 0.75
    gain = second["over_zero_shot"]["P@1"]
    assert gain["difference"] == 0.25 and 0 < gain["low"] < 0.25 < gain["high"] < 0.5 and gain["verdict"] == "gain"
    assert (first["queries"], first["groups"], first["languages"]) == (80, 40, ["de", "en"])
    assert "| trained less zero-shot | +0.250 [" in quality.table(rows)


def test_what_was_judged_irrelevant_is_taken_out_of_training_alone(quality: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "qrels").mkdir(parents=True)
    for name in ("train", "dev"):
        (source / "qrels" / f"{name}.tsv").write_text("query-id\tcorpus-id\tscore\na\tx\t0\na\ty\t1\n")
    kept = quality.data_folder(source, tmp_path / "copy", False)
    assert (kept / "qrels" / "train.tsv").read_text() == "query-id\tcorpus-id\tscore\na\ty\t1\n"
    assert (kept / "qrels" / "dev.tsv").read_text() == (source / "qrels" / "dev.tsv").read_text()
    assert quality.data_folder(source, tmp_path / "other", True) == source
    assert quality.data_folder(kept, tmp_path / "again", False) == kept, "nothing to take out"


def test_searchers_side_by_side_find_the_same(tmp_path: Path) -> None:
    searching = script("searching")
    searching.write_vectors(tmp_path, 30, 700, 16)
    query_QD = np.load(tmp_path / "queries.npy")
    np.testing.assert_allclose(np.linalg.norm(query_QD, axis=1), 1, atol=1e-5)
    ours = searching.harness_search(tmp_path, query_QD, 7)()
    if importlib.util.find_spec("faiss") is not None:  # importing the other one takes many seconds
        assert searching.same_hits(ours, searching.faiss_search(tmp_path, query_QD, 7)()) == 1
    wrong = ours[1].copy()
    wrong[:3, 0] = 699 - wrong[:3, 0]
    assert searching.same_hits(ours, (ours[0], wrong)) == pytest.approx(0.9)
    assert searching.same_hits(ours, (ours[0] + 1e-3, ours[1])) == 0
    told = {"seconds": 2.0, "cpu_seconds": 3.9, "ready_seconds": 1.0, "flops_per_second": 7e9,
            "product_flops_per_second": 1e10, "share_of_product": 0.7, "queries_per_second": 15.0,
            "peak_bytes": 2**30, "same_hits": 0.9}  # fmt: skip
    rows = searching.table({"harness": told, "faiss": {"failed": "exit code 1"}})
    assert rows[2] == "| harness | 2.0 | 3.9 | 15.0 | 7 | 10 | 70% | 1,024 | 1.0 | 90.00% |"
    assert {row.count("|") for row in rows} == {11}


def test_metrics_side_by_side_are_the_same(tmp_path: Path) -> None:
    metrics = script("metrics")
    given = metrics.rankings(60, 1_000)
    hit_QK, judgments = given
    assert all(len(set(rows)) == 1_000 for rows in hit_QK.tolist())
    assert all(1 <= sum(grade > 0 for grade in grades.values()) <= metrics.RELEVANT for grades in judgments)
    results = {name: metrics.RUNS[name](given, tmp_path) | {"queries": 60, "peak_bytes": 0}
               for name in metrics.SYSTEMS[:3]}  # fmt: skip
    assert metrics.furthest(tmp_path, "pytrec_eval") < 1e-12
    with np.load(tmp_path / "harness.npz") as ours:
        assert 0 < ours["nDCG@10"].mean() < 1 and 0 < ours["judged@10"].mean() < 1
        means = {name: np.array(ours[name].mean()) for name in metrics.NAMES}
        np.savez(tmp_path / "sentence-transformers.npz", **means)
    assert metrics.furthest(tmp_path, "sentence-transformers") == 0
    assert {row.count("|") for row in metrics.table(results | {"other": {"failed": "exit code 1"}})} == {8}


def test_a_run_is_printed_with_all_that_the_report_claims() -> None:
    results = rich_results()
    results["provenance"]["hardware"] = {"cpu": "a processor", "cores": 2, "memory_gib": 24}
    text = script("run_recipe").markdown(results, "COMMAND", 61.0)
    assert "Loses less than" in text and "Ledger" in text and "the whole command 61" in text
    for system, engines in results["latency"].items():
        for engine in engines:
            assert f"| {system} | {engine} |" in text
    assert all(f"| {system} |" in text for system in results["quality"])
