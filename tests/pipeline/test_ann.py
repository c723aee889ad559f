"""The step bench.ann in a whole run, the system that searches what it built, and what is refused before any work."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders.tiny_run import tiniest_tree, write_recipe

from harness.data.prepare import load_dataset
from harness.engines.machine import available_cores
from harness.evaluation import ann as ann_tax
from harness.evaluation.per_query import PerQuery
from harness.pipeline import checks_evaluation, surroundings, work_ann
from harness.pipeline.check import check_recipe
from harness.pipeline.context import Run
from harness.pipeline.controller import _find, run_recipe, run_verb
from harness.pipeline.folder import RunFolder
from harness.pipeline.manifest import Manifest
from harness.pipeline.needs import needs
from harness.pipeline.plan import depends_on, keys, plan
from harness.pipeline.sizes import counts_of, models_of
from harness.recipe import Recipe, load_recipe
from harness.runtime.errors import InputError
from harness.runtime.process import read_json
from harness.vectors.index import VectorIndex

pytest.importorskip("faiss")
ANN: dict[str, Any] = {
    "indexes": ["hnsw", "ivf"], "hnsw": {"neighbours": 4, "ef_construction": 8}, "ivf": {"lists": 3},
    "efforts": {"hnsw": [1, 200]}, "k": 10, "queries": 30, "timed": 4,
}  # fmt: skip
BENCH = {"queries_per_language": 2, "warmup": 1, "repeats": 1, "batch_sizes": [4], "ann": ANN}
BOTH = ("student-ann", "student-refined")
SYSTEMS = ["teacher", "student-aligned", "student-refined", "student-ann"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ann")
    tree = tiniest_tree(root)
    return write_recipe(root, {**tree, "bench": BENCH, "evaluate": {**tree["evaluate"], "systems": SYSTEMS}})


@pytest.fixture(scope="module")
def done(recipe: Path) -> RunFolder:
    """The finished run; not to be changed."""
    folder, ran = run_recipe(load_recipe(recipe), recipe.parent / "out")
    assert [step for step in ran if step in ("bench.ann", "evaluate", "bench")] == ["bench.ann", "evaluate", "bench"]
    return folder


def load(recipe: Path, *overrides: str) -> Recipe:
    return load_recipe(recipe, overrides)


def refusals(recipe: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        check_recipe(load(recipe, *overrides), output=recipe.parent / "none")
    return str(caught.value)


# -------------------------------------------------------------------------------------------------- a run


def test_curves_of_teacher_and_student_are_in_the_results(done: RunFolder) -> None:
    found = read_json(done.results)["ann"]
    deployed = {"system": "student-ann", "index": "hnsw", "effort": 200, "why": "within 1 %"}
    assert found == read_json(done.ann) | {"deployed": deployed}
    assert found["verdict"] == "too small to tell" and found["documents"] == found["searched"] == 120
    assert (found["set"], found["queries"], found["k"], found["threads"]) == ("test", 30, 10, 1)
    assert found["cores"] == available_cores()
    assert set(found["indexes"]) == {"hnsw", "ivf"} and set(found["exact"]["systems"]) == {"teacher", "student-refined"}
    hnsw, ivf = found["indexes"]["hnsw"], found["indexes"]["ivf"]
    assert hnsw["built"]["parameters"] == {"neighbours": 4, "ef_construction": 8} and hnsw["built"]["bytes"] > 0
    assert set(hnsw["systems"]) == {"teacher", "student-refined"}
    for index, efforts in ((hnsw, [1, 200]), (ivf, [1, 2, 3])):
        assert index["effort_ratio"] is None and index["end_to_end"] is None, "120 documents tell nothing"
        for own in index["systems"].values():
            assert [row["effort"] for row in own["curve"]] == efforts
            assert own["curve"][-1]["recall@10"] == 1 and own["within_1_percent"] == efforts[-1]
            assert own["curve"][0]["recall@10"] < 1 and own["curve"][0]["queries_per_second"] > 0
            assert own["curve"][-1]["nDCG@10"] == pytest.approx(own["exact"]["nDCG@10"])


def test_the_deployed_student_is_evaluated_on_the_first_index(done: RunFolder) -> None:
    folder = done.evaluations / "student-ann" / "test"
    approximate, exact = (PerQuery.load(done.evaluations / name / "test") for name in BOTH)
    assert read_json(folder / "manifest.json")["system"] == "student-ann"
    assert approximate.ids == exact.ids and [hits[:10] for hits in approximate.hits] == [h[:10] for h in exact.hits]
    np.testing.assert_array_equal(approximate.metrics["nDCG@10"], exact.metrics["nDCG@10"])
    assert approximate.agreement["cosine"].tolist() == exact.agreement["cosine"].tolist(), "the same vectors"
    results = read_json(done.results)
    assert results["systems"]["student-ann"] == results["systems"]["student-refined"]
    assert set(results["recovery"]["student-ann"]["test"]["macro"]["nDCG@10"]) >= {"value", "low", "high"}


def test_an_effort_that_is_set_is_searched_with_and_indexes_are_kept(
    recipe: Path, done: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(Path(shutil.copytree(done.root, tmp_path / "out")))
    before = [path.stat().st_mtime_ns for path in sorted(folder.approximate.glob("*/part-*"))]
    _, ran = run_recipe(load(recipe, "bench.ann.effort=1"), folder.root, last="evaluate")
    assert ran == ["bench.ann", "evaluate"]
    assert [path.stat().st_mtime_ns for path in sorted(folder.approximate.glob("*/part-*"))] == before
    approximate, exact = (PerQuery.load(folder.evaluations / name / "test") for name in BOTH)
    assert approximate.hits != exact.hits, "one candidate is not enough"
    assert run_recipe(load(recipe, "bench.ann.effort=1"), folder.root, last="evaluate")[1] == []
    other = load(recipe, "bench.ann.hnsw.neighbours=8", "evaluate.confidence=0.8")
    run_recipe(other, folder.root, last="export")
    opened, told = watched(monkeypatch, VectorIndex, "load"), watched(monkeypatch, ann_tax, "effort_ratio")
    monkeypatch.setattr(work_ann, "LEAST_DOCUMENTS", 100)  # so that it concludes
    monkeypatch.setattr(checks_evaluation, "available_cores", lambda: 0)
    monkeypatch.setattr(work_ann, "available_cores", lambda: 0)
    warned = watched(monkeypatch, work_ann.logger, "warning")
    assert run_recipe(other, folder.root, last="bench.ann")[1] == ["bench.ann"]
    assert len(opened) == 1, "the exact index is read once"
    assert sum("bench.ann.threads is 1, and this machine has 0 cores" in str(given) for given, _ in warned) == 1
    (caveat,) = work_ann.with_ann(Run(other, folder, {}), {"warnings": []})["warnings"]
    assert "with 1 threads on 0 cores" in caveat
    whole = read_json(folder.ann)["indexes"]["hnsw"]["end_to_end"]
    assert (whole["calls"], whole["encode_calls"]) == (4, 30)
    assert read_json(folder.ann)["indexes"]["hnsw"]["built"]["parameters"]["neighbours"] == 8
    known = {record.group for record in load_dataset(folder.data).splits["test"]}
    assert len(told) == 2, "one ratio an index"
    for given, named in told:
        assert len(given[3]) == 30 and set(given[3]) <= known and named["confidence"] == 0.8


def watched(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[tuple[Any, Any]]:
    """The arguments of each call of a function, which does what it did."""
    calls: list[tuple[Any, Any]] = []
    real = getattr(owner, name)

    def watching(*given: Any, **named: Any) -> Any:
        calls.append((given, named))
        return real(*given, **named)

    monkeypatch.setattr(owner, name, watching)
    return calls


def test_languages_that_are_searched_alone_have_indexes_of_their_own(tmp_path: Path) -> None:
    tree, ann = tiniest_tree(tmp_path), {"indexes": ["ivf"], "queries": 20, "timed": 2}
    tree |= {"mine": {}, "align": None, "refine": None, "export": None}
    tree["evaluate"] = {"systems": ["teacher", "student-ann"], "resamples": 100}
    tree["bench"] = {**BENCH, "systems": ["teacher"], "ann": ann}
    tree["data"] |= {"search_within": "lang"}
    lines = (Path(tree["data"]["path"]) / "corpus.jsonl").read_text().splitlines()
    names = ["aa", "bb", "cc"]
    (Path(tree["data"]["path"]) / "corpus.jsonl").write_text(
        "\n".join(line.replace('"lang": "aa"', f'"lang": "{names[number % 3]}"') for number, line in enumerate(lines))
    )
    folder, _ = run_recipe(load_recipe(write_recipe(tmp_path, tree)), tmp_path / "out", last="evaluate")
    told = read_json(folder.ann)
    assert told["searched"] == 40 and told["documents"] == 120 and told["verdict"] == "too small to tell"
    assert told["indexes"]["ivf"]["systems"]["student-untrained"]["curve"][-1]["recall@10"] == 1
    assert len(list((folder.approximate / "ivf").glob("part-*.faiss"))) == 3


# -------------------------------------------------------------------------------------------------- the plan


def test_only_what_searches_an_approximate_index_waits_for_it(recipe: Path) -> None:
    assert "evaluate" in depends_on("bench.ann", load(recipe))
    without = load(recipe, "evaluate.systems=[teacher, student-refined]")
    assert set(depends_on("bench.ann", without)) == {"bench.ann", "report"}
    plain = load(recipe, "evaluate.systems=[teacher, student-refined]", "bench.ann=null")
    assert "bench.ann" not in [step.name for step in plan(plain)]
    before, after = keys(plain, {}), keys(without, {})
    assert {name for name in before if before[name] != after[name]} == {"report"}, "timing encoders is another step"


def test_the_verb_bench_runs_both_and_from_bench_means_bench(recipe: Path, done: RunFolder, tmp_path: Path) -> None:
    assert [step.name for step in _find(load(recipe), "bench")] == ["bench.ann", "bench"]
    folder = Path(shutil.copytree(done.root, tmp_path / "out"))
    assert run_recipe(load(recipe), folder, first="bench")[1] == ["bench", "report"]
    assert set(Manifest(RunFolder(folder)).steps) >= {"bench", "bench.ann", "report"}


def test_indexes_are_counted_before_they_are_built(recipe: Path, done: RunFolder) -> None:
    loaded = load(recipe)
    need = needs(loaded, models_of(loaded), counts_of(loaded, done.data))["bench.ann"]
    built = {kind: sum(path.stat().st_size for path in (done.approximate / kind).glob("part-*"))
             for kind in ("hnsw", "ivf")}  # fmt: skip
    for kind, size in built.items():
        assert need.disk[f"{kind} index"] == pytest.approx(size, rel=0.35)


# -------------------------------------------------------------------------------------------------- refused


def test_too_few_documents_for_centroids_are_refused_before_any_work(recipe: Path) -> None:
    told = refusals(recipe, "bench.ann.indexes=[hnsw, ivf-pq]", "bench.ann.efforts={}")
    assert "bench.ann.ivf_pq: too few documents to train 256 centroids" in told and "120 documents" in told
    assert not (recipe.parent / "none").exists()
    assert "lower lists to 3" in refusals(recipe, "bench.ann.ivf.lists=50")


def test_they_are_refused_before_anything_is_built_where_the_data_is_there(
    recipe: Path, done: RunFolder, tmp_path: Path
) -> None:
    folder = RunFolder(Path(shutil.copytree(done.root, tmp_path / "out")))
    other = load(recipe, "bench.ann.indexes=[ivf, ivf-pq]", "bench.ann.ivf.lists=2", "bench.ann.efforts={}")
    before = read_json(folder.approximate / "ivf" / "manifest.json")
    for run in (lambda: run_recipe(other, folder.root), lambda: run_verb(other, folder.root, "bench")):
        with pytest.raises(InputError, match="bench.ann.ivf_pq: too few documents to train 256 centroids"):
            run()
    assert read_json(folder.approximate / "ivf" / "manifest.json") == before


def test_efforts_beyond_the_lists_that_were_chosen_are_told_and_measured_at_all_lists(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    efforts = "bench.ann.efforts={ivf: [1, 2, 100000], hnsw: [1, 5000]}"
    settings = load(recipe, efforts, "bench.ann.ivf.lists=null").bench
    assert settings is not None and settings.ann is not None
    told = watched(monkeypatch, work_ann.logger, "warning")
    assert work_ann.efforts_of(settings.ann, "hnsw", {"neighbours": 4}) == [1, 5000] and not told
    assert work_ann.efforts_of(settings.ann, "ivf", {"lists": 3}) == [1, 2, 3]
    assert told[0][0][1:] == ("ivf", 3, 3, "100000")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["bench.ann=null"], ["evaluate.systems: student-ann searches an approximate index, and bench.ann builds"]),
        (["bench=null"], ["evaluate.systems: student-ann searches an approximate index"]),
        (["bench.systems=[teacher, student-ann]"], ["bench.systems: student-ann has the encoder of the deployed"]),
        (["bench.ann.indexes=[ivf]"], ["bench.ann.efforts.hnsw: hnsw is not among bench.ann.indexes"]),
        (["bench.ann.indexes=[ivf, ivf]", "bench.ann.efforts={}"], ["bench.ann.indexes: one of them stands twice"]),
        (["bench.ann.indexes=[hnws]"], ["bench.ann.indexes", "did you mean 'hnsw'?"]),
        (["bench.ann.efforts={scann: [1]}"], ["bench.ann.efforts"]),
        (["bench.ann.hnsw.M=16"], ["bench.ann.hnsw.M", "neighbours"]),
    ],
)  # fmt: skip
def test_what_can_not_be_is_named(recipe: Path, overrides: list[str], says: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load(recipe, *overrides)
    assert all(text in str(caught.value) for text in says), caught.value


def test_without_faiss_the_step_is_refused(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "installed", lambda module: module != "faiss")
    told = refusals(recipe, "evaluate.searcher=exact")
    assert "bench.ann: the package 'faiss' is not installed" in told and "remove bench.ann" in told
