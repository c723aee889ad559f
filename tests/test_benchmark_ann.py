"""The benchmark of the ANN tax: vectors are enlarged as it says, and the whole script runs on a few random ones."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from builders.vectors import unit_vectors

pytest.importorskip("faiss")
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "ann.py"


@pytest.fixture(scope="module")
def ann() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_ann", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(SCRIPT.parent)  # as where it is started as a script
        spec.loader.exec_module(module)
    return module


def test_copies_lie_as_far_from_their_document_as_its_neighbours(ann: ModuleType, tmp_path: Path) -> None:
    vector_ND = unit_vectors(400, 24)
    vector_ND[:100] = vector_ND[100:200]  # documents with the same text are no measure of distance
    distance_S = ann.nearest_distances(vector_ND)
    assert distance_S.min() > 0.3
    big_ND = ann.enlarged(vector_ND, 1500, tmp_path / "big.npy")
    np.testing.assert_array_equal(big_ND[:400], vector_ND)
    np.testing.assert_allclose(np.linalg.norm(big_ND, axis=1), 1, atol=1e-5)
    moved_S = np.sqrt(np.maximum(2 - 2 * (big_ND[400:] @ vector_ND.T).max(axis=1), 0))
    assert 0.5 * np.median(distance_S) < np.median(moved_S) < 1.5 * np.median(distance_S)
    np.testing.assert_array_equal(big_ND, ann.enlarged(vector_ND, 1500, tmp_path / "again.npy"))


def test_the_whole_script_runs_on_random_vectors(
    ann: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = {"hnsw": {"neighbours": 4, "ef_construction": 10}, "ivf-pq": {"bits": 4}}
    flags = ["--random", "900", "--documents", "1000", "--queries", "30", "--timed", "4", "--repeats", "1"]
    flags += ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "ann.json")]
    flags += ["--parameters", json.dumps(parameters)]
    ann.main([*flags, "--build-only"])
    assert not (tmp_path / "ann.json").exists() and (tmp_path / "work" / "hnsw-1000").is_dir()
    capsys.readouterr()
    monkeypatch.setattr("harness.vectors.approximate.ApproximateIndex.build", None)  # what was built is opened
    ann.main(flags)
    told, shown = json.loads((tmp_path / "ann.json").read_text()), capsys.readouterr().out
    assert {"commit", "load", "versions", "hardware"} < told["provenance"].keys()
    assert (told["verdict"], told["documents"], told["real_documents"]) == ("too small to tell", 1000, 900)
    assert "100 of them made up" in shown and "of so few documents: too small to tell" in shown
    assert set(told["indexes"]) == {"hnsw", "ivf", "ivf-pq"}
    for index in told["indexes"].values():
        assert set(index["systems"]) == {"teacher", "student-refined"}
        nothing = {"effort_ratio": None, "end_to_end": None, "effort_ratio_0.95": None}
        assert index["students"]["student-refined"] == nothing
        assert all(own["curve"][-1]["recall@10"] > 0.8 for own in index["systems"].values())


def test_with_enough_documents_it_concludes(
    ann: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.vectors.approximate.LEAST_DOCUMENTS", 1000)
    output = tmp_path / "ann.json"
    ann.main(["--random", "1000", "--documents", "1000", "--queries", "30", "--indexes", "ivf", "--work", str(tmp_path),
              "--output", str(output), "--timed", "2", "--repeats", "1"])  # fmt: skip
    told = json.loads(output.read_text())
    assert told["verdict"] == "measured"
    index = told["indexes"]["ivf"]
    assert index["students"]["student-refined"]["effort_ratio"]["value"] > 0
    efforts = {}
    for name, own in index["systems"].items():
        often = [row["effort"] for row in own["curve"] if row["recall@10"] >= 0.95]
        assert own["recall_0.95"] == often[0] <= own["within_1_percent"]
        efforts[name] = often[0]
    student, teacher = efforts["student-refined"], efforts["teacher"]
    ratio = index["students"]["student-refined"]["effort_ratio_0.95"]
    assert ratio["value"] == student / teacher and ratio["low"] <= ratio["value"] <= ratio["high"]
    line = f"recall 0.95 at effort {student}, the teacher at {teacher}: ratio {student / teacher:.2f}"
    assert f"- student-refined: {line}" in capsys.readouterr().out


def test_a_runs_queries_come_with_their_groups(
    ann: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [SimpleNamespace(text=f"text {number}", group=f"group {number % 7}") for number in range(40)]
    splits = {"report": records[:3], "test": records}
    monkeypatch.setattr("harness.data.prepare.load_dataset", lambda folder: SimpleNamespace(splits=splits))
    texts, groups = ann.run_queries(tmp_path, 35)
    assert len(set(texts)) == 35 and all(groups[i] == f"group {int(text[5:]) % 7}" for i, text in enumerate(texts))
    document_ND = unit_vectors(50, 8)
    asked, _ = ann.exact_of({"teacher": document_ND[:35]}, document_ND, groups)
    assert asked["teacher"].group_Q == groups and asked["teacher"].exact_row_QK[:, 0].tolist() == list(range(35))
