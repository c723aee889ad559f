"""Document vectors that exist already, a teacher that is not trained, and a teacher of which only vectors are left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders.tiny_run import tiny_tree, write_recipe

from harness.encoders.encoder import Encoder
from harness.encoders.folder import open_encoder
from harness.pipeline.controller import run_recipe
from harness.recipe import Recipe, load_recipe
from harness.runtime.errors import InputError
from harness.runtime.process import read_json
from harness.vectors import files as vector_files

SHORT = {"steps": 3, "batch_size": 8, "learning_rate": 1e-3, "precision": "fp32"}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def _write_vectors(root: Path, encoder: Encoder, side: str, name: str) -> dict[str, str]:
    lines = _lines(root / "data" / f"{'corpus' if side == 'document' else 'queries'}.jsonl")
    vector_ND = encoder.encode([line["text"] for line in lines], side=side)  # type: ignore[arg-type]
    np.save(root / f"{name}.npy", vector_ND)
    (root / f"{name}.txt").write_text("".join(line["_id"] + "\n" for line in lines), encoding="utf-8")
    return {"format": "npy", "path": str(root / f"{name}.npy"), "ids": str(root / f"{name}.txt")}


def _recipe(root: Path, tree: dict[str, Any], **changes: Any) -> Recipe:
    tree |= {
        "align": {"texts": ["queries"], "training": SHORT}, "refine": {"training": SHORT}, "bench": None,
        "evaluate": {"systems": ["teacher", "student-refined"], "resamples": 100},
    }  # fmt: skip
    return load_recipe(write_recipe(root, {**tree, **changes}))


def test_given_document_vectors_are_searched_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tiny_tree(tmp_path)
    model = tree["teacher"]["model"]
    files = _write_vectors(tmp_path, open_encoder(Path(model)), "document", "documents")
    recipe = _recipe(
        tmp_path, tree, teacher={"model": model, "train": False}, documents={"vectors": files, "sample": 10}
    )
    run_recipe(recipe, tmp_path / "out", last="teacher")
    opened, real = [], vector_files._refuse_absent
    monkeypatch.setattr(vector_files, "_refuse_absent", lambda files: opened.append(files.path) or real(files))  # type: ignore[func-returns-value]
    run_recipe(recipe, tmp_path / "out", last="embed")
    assert opened == 2 * [files["path"]], "by the checks before the run, and by the step"
    run_recipe(recipe, tmp_path / "out")
    given, stored = np.load(tmp_path / "documents.npy"), np.load(tmp_path / "out/vectors/documents/shard-00000.npy")
    np.testing.assert_array_equal(stored, given[: len(stored)])


def test_vectors_of_another_set_up_stop_the_run_and_name_the_difference(tmp_path: Path) -> None:
    tree = tiny_tree(tmp_path)
    model = tree["teacher"]["model"]
    encoder = open_encoder(Path(model))
    encoder.pooling = "cls"
    files = _write_vectors(tmp_path, encoder, "document", "documents")
    recipe = _recipe(
        tmp_path, tree, teacher={"model": model, "train": False}, documents={"vectors": files, "sample": 10}
    )
    with pytest.raises(InputError, match="with cls pooling"):
        run_recipe(recipe, tmp_path / "out")
    assert not (tmp_path / "out" / "student").exists() and not (tmp_path / "out" / "vectors").exists()


def test_a_teacher_known_by_its_vectors_alone(tmp_path: Path) -> None:
    tree = tiny_tree(tmp_path)
    model = tree["teacher"]["model"]
    encoder = open_encoder(Path(model))
    documents = _write_vectors(tmp_path, encoder, "document", "documents")
    queries = _write_vectors(tmp_path, encoder, "query", "queries")
    recipe = _recipe(
        tmp_path, tree,
        teacher={"train": False, "query_vectors": queries}, documents={"vectors": documents},
        student={"model": model, "layers": [1, 4]},
    )  # fmt: skip
    run_recipe(recipe, tmp_path / "out")
    results = read_json(tmp_path / "out" / "results.json")
    assert set(results["quality"]) == {"teacher", "student-refined"}
    np.save(tmp_path / "documents.npy", -np.load(tmp_path / "documents.npy"))
    _, ran = run_recipe(recipe, tmp_path / "out", last="student")
    assert ran == ["teacher", "embed", "student"], "other vectors are another space"
    assert results["recovery"]["student-refined"]["test"]["macro"]["P@1"]["value"] > 0
