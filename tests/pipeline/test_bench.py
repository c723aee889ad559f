"""The step ``bench`` of a run: what it searches, with how many threads, what it leaves and what it refuses."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from builders.tiny_run import tiniest_tree, write_recipe

from harness.encoders.folder import open_encoder
from harness.pipeline import checks_evaluation, work_bench
from harness.pipeline.context import Run
from harness.pipeline.controller import run_recipe, run_verb
from harness.pipeline.folder import RunFolder
from harness.recipe import load_recipe
from harness.runtime.errors import InputError
from harness.runtime.process import read_json
from harness.vectors.index import VectorIndex

BENCH = {"systems": ["teacher", "student-refined"], "queries_per_language": 2, "warmup": 1, "repeats": 2,
         "max_batch": 4, "ramp_seconds": 0.5, "k": 3}  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench")
    return write_recipe(root, {**tiniest_tree(root), "export": None, "bench": BENCH})


@pytest.fixture(scope="module")
def done(recipe: Path) -> RunFolder:
    """The finished run; not to be changed."""
    return run_recipe(load_recipe(recipe), recipe.parent / "out")[0]


@pytest.fixture
def run(done: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of it."""
    return RunFolder(Path(shutil.copytree(done.root, tmp_path / "out")))


def test_what_was_timed_is_told_with_its_conditions(done: RunFolder) -> None:
    results = read_json(done.results)
    documents = next(iter(results["sets"].values()))["documents"]
    told = results["conditions"]
    assert (told["documents"], told["k"], told["search_within"]) == (documents, 3, "all documents")
    assert told["searcher"] in ("faiss", "exact") and told["dimension"] == results["systems"]["teacher"]["dimensions"]
    assert told["threads"] == torch.get_num_threads() and told["tokeniser_threads"] >= 1
    assert told["search_threads"] == (1 if told["searcher"] == "faiss" else told["threads"])
    assert told["versions"]["torch"] == torch.__version__ and {"warmup", "repeats", "cpu", "max_length"} <= set(told)
    for system in BENCH["systems"]:
        row, rates = results["latency"][system]["torch"]["all"], results["throughput"][system]["torch"]
        assert row["whole_p50_ms"] > row["search_p50_ms"] > 0 and row["calls"] == 12 and row["p99_9_ms"] is None
        assert set(rates["by_batch"]) <= {"1", "2", "4"} and rates["stopped"] and rates["queries_per_second"] > 0
        assert "cost_per_million" not in rates, "no price"
        assert rates["queries_per_second"] == rates["by_batch"][str(rates["batch"])] == max(rates["by_batch"].values())
        assert rates["weights_mb"] == pytest.approx(4 * results["systems"][system]["parameters"] / 1e6)
    assert results["noise"]["cores"] >= 1 and "warning" in results["noise"]


def test_the_whole_path_searches_the_frozen_index_with_the_systems_own_vectors(
    recipe: Path, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, np.ndarray, int]] = []
    search = VectorIndex.search

    def watched(index: VectorIndex, query_QD: np.ndarray, k: int, partition_Q: Any = None) -> Any:
        seen.append((index, query_QD, k))
        assert partition_Q is None
        return search(index, query_QD, k, partition_Q)

    monkeypatch.setattr(VectorIndex, "search", watched)
    loaded = load_recipe(recipe)
    of_run = Run(loaded, run, {})
    work_bench.do_bench(of_run)
    assert len({id(index) for index, _, _ in seen}) == 1, "one in memory for both"
    assert list(seen[0][0].ids) == list(of_run.dataset.documents.ids) and {k for _, _, k in seen} == {3}
    texts = [text for several in work_bench.sample_queries(of_run, 2).values() for text in several]
    for folder in (run.teacher, run.student("refined")):
        for vector_D in open_encoder(folder).encode(texts, side="query"):
            assert any(np.allclose(vector_D, query_QD[0], atol=1e-5) for _, query_QD, _ in seen)


def test_within_a_language_where_the_run_searches_so(recipe: Path, done: RunFolder) -> None:
    of_run = Run(load_recipe(recipe), done, {})
    of_run.__dict__["dataset"] = replace(of_run.dataset, search_within=True)  # in place of the cached one
    asked: list[Any] = []

    class Index:
        kind = "exact"

        def search(self, query_QD: np.ndarray, k: int, partition_Q: Any) -> None:
            asked.append((k, partition_Q))

    work_bench._search(of_run, Index(), 7)(np.zeros((1, 4), np.float32), "aa")
    assert asked == [(7, ["aa"])]


def test_threads_are_those_of_the_bench_and_afterwards_as_before(
    recipe: Path, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(checks_evaluation, "available_cores", lambda: 0)
    monkeypatch.setattr(work_bench.logger, "warning", lambda text, *given: warned.append(text % given))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        changed = load_recipe(recipe, ["bench.threads=1", "launch.threads=2", "bench.batch_sizes=[2]", "bench.k=5000"])
        work_bench.do_bench(Run(changed, run, {}))
        told = read_json(run.bench)["conditions"]
        assert (told["threads"], told["search_threads"]) == (1, 1)
        assert told["k"] == told["documents"] < 5000, "there are no more hits"
        assert torch.get_num_threads() == 2, "as the launch settings say"
        assert any(text.startswith("bench.threads is 1, and this machine has 0 cores") for text in warned)
    finally:
        torch.set_num_threads(before)


def test_a_single_thread_has_no_parallel_tokeniser_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setenv("RAYON_NUM_THREADS", "5")
    with work_bench.on_threads(1, faiss=False) as told:
        assert told == {"search_threads": 1, "tokeniser_threads": 1}
    with work_bench.on_threads(2, faiss=False) as told:
        assert told == {"search_threads": 2, "tokeniser_threads": 5}


def test_one_query_is_searched_in_one_thread_and_torch_keeps_its_own(done: RunFolder, recipe: Path) -> None:
    of_run = Run(load_recipe(recipe), done, {})
    before, seen = torch.get_num_threads(), []

    class Index:
        kind = "faiss"

        def search(self, vector_1D: np.ndarray, k: int, partition: list[str] | None) -> None:
            seen.append(faiss.omp_get_max_threads())

    with work_bench.on_threads(2, faiss=True) as told:
        work_bench._search(of_run, Index(), 7)(np.zeros((1, 4), np.float32), "aa")
        assert (seen, told["search_threads"], torch.get_num_threads()) == ([1], 1, 2)
    assert torch.get_num_threads() == before


def test_a_price_changes_the_report_alone(recipe: Path, run: RunFolder) -> None:
    timed = run.bench.read_bytes()
    folder, ran = run_recipe(load_recipe(recipe, ["bench.price_per_hour=3.6", "bench.currency=EUR"]), run.root)
    assert ran == ["report"] and run.bench.read_bytes() == timed
    row = read_json(folder.results)["throughput"]["student-refined"]["torch"]
    assert row["cost_per_million"] == pytest.approx(1000 / row["queries_per_second"])
    assert row["cost_per_million_batch_1"] == pytest.approx(1000 / row["batch_1_queries_per_second"])
    assert (row["price_per_hour"], row["currency"]) == (3.6, "EUR")


def test_the_verb_alone_times_again_what_changed(recipe: Path, run: RunFolder) -> None:
    timed = run.bench.read_bytes()
    run_verb(load_recipe(recipe), run.root, "bench")
    assert run.bench.read_bytes() == timed, "done already"
    run_verb(load_recipe(recipe, ["bench.k=5", "bench.batch_sizes=[2]"]), run.root, "bench")
    told = read_json(run.bench)
    assert told["conditions"]["k"] == 5 and set(told["throughput"]["teacher"]["torch"]["by_batch"]) == {"2"}


def test_the_verb_alone_says_what_it_lacks(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no step 'bench'[\s\S]*add the section"):
        run_verb(load_recipe(recipe, ["bench="]), tmp_path / "out", "bench")
    with pytest.raises(InputError, match=r"'bench' needs data, [\s\S]*harness run RECIPE --to bench"):
        run_verb(load_recipe(recipe), tmp_path / "out", "bench")
