"""A whole run that exports everything, and what becomes of an artefact that is not the student."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from builders.tiny_run import tiniest_tree, write_recipe

from harness.data.prepare import load_dataset
from harness.encoders.folder import open_encoder
from harness.engines.onnx_runtime import OnnxEngine
from harness.evaluation.per_query import PerQuery
from harness.export import opening
from harness.export.pair import export_pair
from harness.export.student import export_student
from harness.pipeline import checks, surroundings, work_export
from harness.pipeline import verify as verify_module
from harness.pipeline.controller import Controller, run_recipe
from harness.pipeline.folder import RunFolder
from harness.pipeline.needs import needs
from harness.pipeline.plan import plan
from harness.pipeline.sizes import counts_of, models_of
from harness.pipeline.update import update_documents
from harness.recipe import load_recipe
from harness.runtime.errors import InputError, RunError, StaleArtefactError
from harness.runtime.process import read_json
from harness.vectors.index import VectorIndex
from harness.vectors.space import Space
from harness.vectors.store import VectorStore

pytest.importorskip("faiss")
pytest.importorskip("onnxruntime")
pytest.importorskip("sentence_transformers")
STRICT = {"min_cosine": 0.99999, "mean_cosine": 0.99999, "overlap": 0.5}  # what rounding to int8 can't keep
EXPORT = {"pair": True, "index": ["npy", "faiss", "faiss-int8"], "onnx": ["fp32", "int8"], "triton": True,
          "parity": STRICT}  # fmt: skip
BENCH = {"systems": ["teacher", "student-refined"], "queries_per_language": 2, "warmup": 1, "repeats": 1,
         "batch_sizes": [4], "engines": ["onnx", "onnx-int8"]}  # fmt: skip
EXPORTED = ["export", "export.pair", "export.index", "export.onnx"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    return write_recipe(root, {**tiniest_tree(root), "export": EXPORT, "bench": BENCH})


@pytest.fixture(scope="module")
def done(recipe: Path) -> RunFolder:
    """The finished run, its exports opened with sentence-transformers; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "has_sentence_transformers", lambda: True)
        folder, ran = run_recipe(load_recipe(recipe), recipe.parent / "out")
    assert [step for step in ran if step.startswith("export")] == EXPORTED
    return folder


@pytest.fixture
def run(done: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of it."""
    return RunFolder(Path(shutil.copytree(done.root, tmp_path / "out")))


def test_everything_asked_for_is_there(done: RunFolder) -> None:
    names = {path.relative_to(done.export).as_posix() for path in done.export.rglob("*") if path.is_file()}
    assert {"student/model.safetensors", "student/onnx/model.onnx", "parity/student.json", "parity/onnx.json",
            "pair/router_config.json", "index/vectors.npy", "index/ids.txt", "index/index.faiss",
            "index/index-int8.faiss", "index/manifest.json", "triton-models/student/config.pbtxt"} <= names  # fmt: skip
    assert not list(done.root.glob(".*.tmp")), "no scratch folder is left"
    folders = [path.name for path in done.export.iterdir() if path.is_dir()]
    assert not {"triton", "torch", "onnx"} & set(folders), "Python started there would import it as the package"


def test_an_artefact_that_is_the_student_is_exported_with_the_proof(done: RunFolder) -> None:
    told = read_json(done.proof("onnx"))
    assert set(told) == {"fp32", "int8"} and told["fp32"]["passed"]
    assert set(told["fp32"]["languages"]) == {"aa", "bb", "cc", "all"}
    assert told["fp32"]["languages"]["all"]["min_cosine"] > 0.99999
    assert told["fp32"]["recovery"]["P@1"]["macro"]["value"] == pytest.approx(1)
    assert read_json(done.export / "student" / "onnx" / "parity.json") == told, "it travels with the folder"


def test_one_that_is_not_is_not_exported_and_the_report_says_why(done: RunFolder) -> None:
    told = read_json(done.proof("onnx"))["int8"]
    assert not told["passed"] and "the least cosine" in told["reasons"][0]
    assert 0.9 < told["languages"]["all"]["min_cosine"] < 0.99999
    names = [path.name for place in ("student/onnx", "triton-models") for path in (done.export / place).rglob("*")]
    assert "model.onnx" in names and not [name for name in names if "int8" in name]
    (warning,) = [text for text in read_json(done.results)["warnings"] if "int8" in text]
    assert warning.startswith("onnx int8 is not exported: ") and told["reasons"][0] in warning
    report = (done.root / "report.md").read_text(encoding="utf-8")
    assert "onnx int8 is not exported" in report and "| onnx int8 | not exported |" in report
    assert "| onnx fp32 | exported |" in report and "| faiss-int8 |" in report
    assert "ONNX int8: **not exported**" in (done.export / "README.md").read_text(encoding="utf-8")


def test_the_index_holds_the_frozen_vectors(done: RunFolder) -> None:
    store = VectorStore.open(done.vectors / "documents")
    np.testing.assert_array_equal(np.load(done.export / "index" / "vectors.npy"), store.vectors())
    told = read_json(done.export / "index" / "manifest.json")
    assert told["space"] == store.space.to_json() and 0.9 < told["cost"]["faiss-int8"]["recall@10"] <= 1


def test_the_pair_is_teacher_and_student(done: RunFolder) -> None:
    library: Any = pytest.importorskip("sentence_transformers")
    pair = library.SentenceTransformer(str(done.export / "pair"), device="cpu")
    texts = ["bado kami", "kami"]
    student = open_encoder(done.student("refined")).encode(texts, side="query")
    np.testing.assert_allclose(pair.encode_query(texts), student, atol=1e-5)


def test_folder_and_pair_pass_the_gate_too(done: RunFolder) -> None:
    """As sentence-transformers opens them, on the same queries and the same index."""
    pytest.importorskip("sentence_transformers")
    told = {**read_json(done.proof("student")), **read_json(done.proof("pair"))}
    assert set(told) == {"student", "pair", "pair documents"} and all(row["passed"] for row in told.values())
    for name in ("student", "pair"):
        assert told[name]["languages"]["all"]["min_cosine"] > 0.99999
        assert "sentence-transformers" in told[name]["artefact"]
        assert told[name]["recovery"]["P@1"]["macro"]["value"] == 1 and told[name]["bounds"]["min_cosine"] == 0.99999
        assert set(told[name]["languages"]) == {"aa", "bb", "cc", "all"}
    assert told["pair documents"]["queries"] > 50
    results = read_json(done.results)["parity"]
    assert set(results) == {*told, "fp32", "int8"}
    report = (done.root / "report.md").read_text(encoding="utf-8")
    assert "| folder (sentence-transformers" in report and "| pair, documents (sentence-transformers" in report


def test_a_pair_that_is_not_the_two_is_not_exported_and_the_report_says_why(
    recipe: Path, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the other prompt, say, documents are elsewhere."""
    def wrong(teacher: Path, student: Path, target: Path) -> None:
        export_pair(teacher, student, target)
        path = target / "config_sentence_transformers.json"
        path.write_text(path.read_text().replace('"document": ""', '"document": "kami kami kami: "'))

    monkeypatch.setattr(work_export, "export_pair", wrong)
    assert run_recipe(load_recipe(recipe), run.root, first="export.pair")[1] == ["export.pair", "report"]
    told = read_json(run.proof("pair"))
    assert not any(row["passed"] for row in told.values()) and not (run.export / "pair").exists()
    assert told["pair"]["reasons"] == ["the pair's other tower failed"]
    card = (run.export / "README.md").read_text(encoding="utf-8")
    assert 'SentenceTransformer("pair")' not in card and card.count("pair, ") == 2 == card.count("**not exported**") - 1
    assert 'SentenceTransformer("student")' in card
    assert told["pair"]["artefact"] == "pair, queries (harness)"
    warnings = [text for text in read_json(run.results)["warnings"] if "pair" in text]
    assert len(warnings) == 2 and "pair, documents (harness) is not exported: the least cosine" in warnings[1]


def test_a_folder_that_is_not_the_student_ends_the_run_and_is_not_there(
    recipe: Path, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(source: Path, target: Path) -> None:
        export_student(source, target)
        path = target / "1_Pooling" / "config.json"
        told = read_json(path)
        path.write_text(json.dumps({**told, "pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}))

    monkeypatch.setattr(work_export, "export_student", wrong)
    with pytest.raises(RunError, match="is not the student, and is not exported(.|\n)*the least cosine"):
        run_recipe(load_recipe(recipe), run.root, first="export")
    assert not (run.export / "student").exists() and not read_json(run.proof("student"))["student"]["passed"]
    monkeypatch.setattr(work_export, "export_student", export_student)
    assert run_recipe(load_recipe(recipe), run.root)[1] == ["export", "export.onnx", "bench", "report"]


def test_the_deployed_student_is_timed_in_every_engine(done: RunFolder) -> None:
    latency = read_json(done.results)["latency"]
    assert set(latency["student-refined"]) == {"torch", "onnx"}, "int8 failed, and is not there to be timed"
    assert set(latency["teacher"]) == {"torch"}
    assert all(row["all"]["p50_ms"] > 0 for row in latency["student-refined"].values())
    rows = read_json(done.results)["throughput"]["student-refined"]
    assert set(rows) == {"torch", "onnx"}
    size = (done.export / "student" / "onnx" / "model.onnx").stat().st_size
    assert rows["onnx"]["weights_mb"] == pytest.approx(size / 1e6)
    assert "onnx" in (done.root / "report.md").read_text(encoding="utf-8")


def test_the_same_again_does_nothing(recipe: Path, run: RunFolder) -> None:
    assert run_recipe(load_recipe(recipe), run.root)[1] == []


def test_an_artefact_taken_out_of_the_recipe_goes(recipe: Path, run: RunFolder) -> None:
    less = load_recipe(recipe, ["export.onnx=[]", "export.pair=false", "export.triton=false", "export.index=[npy]",
                                "bench="])  # fmt: skip
    assert run_recipe(less, run.root)[1] == ["export.index", "report"]
    assert sorted(path.name for path in run.export.iterdir()) == ["README.md", "index", "parity", "student"]
    assert not (run.export / "student" / "onnx").exists()
    assert [path.name for path in (run.export / "index").iterdir() if "faiss" in path.name] == []


def test_a_student_made_anew_takes_what_lay_in_its_folder_along(recipe: Path, run: RunFolder) -> None:
    """Its folder is replaced as a whole: ONNX files and the card are to be made again, and nothing else."""
    loaded = load_recipe(recipe)
    export_student(run.student("refined"), run.export / "student")
    controller = Controller(loaded, run)
    assert [step.name for step in controller.todo(plan(loaded))] == ["export.onnx", "report"]


def test_the_int8_file_is_evaluated_as_a_system_of_its_own(
    recipe: Path, run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """What it costs in quality is told by the same queries and hits as that of every other step; where it failed the
    gate, the rest is told without it.
    """
    loose = ["export.parity={min_cosine: 0.5, mean_cosine: 0.5, overlap: 0.1, recovery_loss: 1.0}", "bench="]
    systems = "evaluate.systems=[teacher, student-aligned, student-refined, student-int8]"
    stale, strict = run.evaluations / "student-int8", load_recipe(recipe, [systems, "bench="])
    stale.mkdir()
    with caplog.at_level("WARNING"):
        run_recipe(strict, run.root)
    assert "student-int8 is not evaluated: its ONNX file failed the parity gate" in caplog.text
    assert not stale.exists() and (run.evaluations / "student-refined").exists()
    results = read_json(run.results)
    assert not any("student-int8" in results[part] for part in ("quality", "recovery", "systems", "disagreements"))
    assert not [row for row in results["ledger"] if "student-int8" in row["systems"]]
    (warning,) = [text for text in results["warnings"] if text.startswith("student-int8")]
    assert "the least cosine is" in warning and "student-int8" in (run.root / "report.md").read_text(encoding="utf-8")
    assert "ONNX int8: **not exported**" in (run.export / "README.md").read_text(encoding="utf-8")
    assert run_recipe(strict, run.root)[1] == []
    wanted = load_recipe(recipe, [systems, *loose])
    assert "evaluate" in run_recipe(wanted, run.root)[1]
    results = read_json(run.results)
    (name,) = [name for name in results["quality"]["student-int8"] if name in ("test", "report")][:1]
    assert results["quality"]["student-int8"][name]["macro"]["P@1"] > 0
    assert results["recovery"]["student-int8"][name]["macro"]["P@1"]["value"] > 0
    kept = PerQuery.load(run.evaluations / "student-int8" / name)
    texts = {record.id: record.text for record in load_dataset(run.data).splits[name]}
    engine = OnnxEngine(run.export / "student", precision="int8", threads=1)
    index = VectorIndex.load(run.index, Space.from_json(read_json(run.export / "student" / "harness.json")["space"]))
    for row in (0, len(kept) - 1):
        score_1K, _ = index.search(engine.encode([texts[kept.ids[row]]]), 10, None)
        np.testing.assert_allclose(score_1K[0], kept.scores[row][:10], atol=1e-5)
    assert run_recipe(wanted, run.root)[1] == []
    ran = run_recipe(load_recipe(recipe, [systems, *loose, "report.warn_teacher_gain=0.5"]), run.root)[1]
    assert ran == ["report"], "the card beside it is written anew, and the file is the same"
    run_recipe(strict, run.root, last="export.onnx")
    assert not (run.export / "README.md").exists(), "the card offered what is left out now"


def test_after_an_update_of_the_documents_nothing_stale_is_served_in_silence(
    recipe: Path, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """verify refuses what lies in the run and was made before; the run makes all of it anew and trains nothing."""
    monkeypatch.setattr(verify_module, "installed", lambda name: False)
    corpus, loaded = recipe.parent / "data" / "corpus.jsonl", load_recipe(recipe)
    before = corpus.read_text(encoding="utf-8")
    assert run_recipe(loaded, run.root)[1] == []  # which notes that files were copied
    old = {name: read_json(run.export / name) for name in ("index/manifest.json", "parity/onnx.json")}
    card = (run.export / "README.md").read_text(encoding="utf-8")
    queries = run.root.parent / "queries.txt"
    queries.write_text("bado kami\n", encoding="utf-8")
    try:
        corpus.write_text("".join(before.splitlines(keepends=True)[9:]), encoding="utf-8")
        update_documents(loaded, run.root)
        student, pair, index = run.export / "student", run.export / "pair", run.export / "index"
        for folder, said in ((student, "export, export.onnx"), (pair, "export.pair")):
            with pytest.raises(StaleArtefactError, match=f"exported before(.|\n)*got: {said}:(.|\n)*harness run"):
                verify_module.verify(folder, run.root)
        with pytest.raises(StaleArtefactError, match="handed over before(.|\n)*harness run"):
            verify_module.verify(student, index, queries)
        made = ["export", "export.pair", "export.index", "export.onnx", "evaluate", "report"]
        assert run_recipe(loaded, run.root)[1] == made
    finally:
        corpus.write_text(before, encoding="utf-8")
    assert all(one.passed for one in verify_module.verify(student, run.root))
    assert all(one.passed for one in verify_module.verify(pair, run.root))
    assert all(one.passed for one in verify_module.verify(student, index, queries))
    told = read_json(index / "manifest.json")
    assert told["rows"] == old["index/manifest.json"]["rows"] - 9
    assert read_json(run.proof("onnx")) == read_json(student / "onnx" / "parity.json") != old["parity/onnx.json"]
    assert card != (run.export / "README.md").read_text(encoding="utf-8"), "the card tells of the new documents"


def test_packages_and_a_gpu_that_are_missing_are_told_before_any_work(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surroundings, "installed", lambda name: name not in ("onnxscript", "faiss"))
    with pytest.raises(InputError) as caught:
        checks.check_surroundings(load_recipe(recipe, ["bench.engines=[cuda-graphs]"]))
    told = {problem.where: str(problem) for problem in caught.value.problems}
    assert set(told) == {"export.onnx", "export.index", "bench.engines"}
    assert "onnxscript" in told["export.onnx"] and "[onnx]" in told["export.onnx"]


def test_the_disk_that_exports_take_is_counted(done: RunFolder, recipe: Path) -> None:
    loaded = load_recipe(recipe)
    wanted = needs(loaded, models_of(loaded), counts_of(loaded, done.data))
    for step, place in (("export.pair", "pair"), ("export.index", "index"), ("export.onnx", "student/onnx")):
        there = sum(path.stat().st_size for path in (done.export / place).rglob("*") if path.is_file())
        assert there / 3 < sum(wanted[step].disk.values()) < 3 * there, step


def test_the_card_is_true_and_its_code_runs(
    done: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sentence_transformers")
    text = (done.export / "README.md").read_text(encoding="utf-8")
    assert text == (done.export / "student" / "README.md").read_text(encoding="utf-8")
    told = yaml.safe_load(text.split("---")[1])
    assert told["language"] == ["aa", "bb", "cc"] and told["license"] == "unknown"
    results = read_json(done.results)
    value = results["quality"]["student-refined"]["report" if "test" not in results["sets"] else "test"]["macro"]["P@1"]
    (entry,) = told["model-index"][0]["results"]
    assert [metric["value"] for metric in entry["metrics"] if metric["name"] == "P@1"] == [value]
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 4 and all(len(block.splitlines()) <= 6 for block in blocks)
    monkeypatch.chdir(done.export)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where harness.load keeps its choice
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
        if "vectors" in names:
            assert names["vectors"].shape == (1, 32)
    assert len(names["found"]) == 10 and set(names["found"]) <= set(VectorStore.open(done.vectors / "documents").ids)
