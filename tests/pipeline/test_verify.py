"""A deployed folder is verified by the command itself, as on another machine; each bad input is named and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders.tiny_run import tiniest_tree, write_recipe
from builders.vectors import unit_vectors
from typer.testing import CliRunner

import harness
from harness.cli import app
from harness.encoders.folder import open_encoder
from harness.engines.deployed import check_onnx, seal, write_parity
from harness.export.index import export_index
from harness.export.student import export_student
from harness.pipeline import verify as module
from harness.pipeline.controller import run_recipe
from harness.pipeline.verify import read_queries, verify
from harness.recipe import load_recipe
from harness.runtime.errors import InputError, RunError, StaleArtefactError
from harness.runtime.process import file_sha256, read_json
from harness.vectors.space import Space
from harness.vectors.store import VectorStore
from harness.vectors.writer import write_store


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that exported its student and an index; not to be changed."""
    root = tmp_path_factory.mktemp("verify")
    tree = tiniest_tree(root) | {"export": {"index": ["npy"], "pair": True}}
    run_recipe(load_recipe(write_recipe(root, tree)), root / "out")
    return root / "out"


@pytest.fixture
def folder(done: Path, tmp_path: Path) -> Path:
    """The deployed folder, copied elsewhere."""
    return Path(shutil.copytree(done / "export" / "student", tmp_path / "student"))


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    path = tmp_path / "queries.txt"
    path.write_text("bado kami\nkamiock\nsomething else\n", encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def without_sentence_transformers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing it costs seconds; one test does."""
    if "sentence_transformers" not in request.node.name:
        monkeypatch.setattr(module, "installed", lambda name: False)


def test_against_the_run_with_its_own_queries(folder: Path, done: Path) -> None:
    (found,) = verify(folder, done)
    assert found.artefact == "torch" and found.passed
    assert set(found.parity["languages"]) == {"aa", "bb", "cc", "all"}
    assert found.parity["recovery"]["P@1"]["macro"]["value"] == 1


@pytest.mark.parametrize("name", ["vectors/documents", "export/index", "."])
def test_against_vectors_with_queries_of_a_file(name: str, folder: Path, done: Path, queries: Path) -> None:
    (found,) = verify(folder, done / name, queries)
    assert found.passed and found.parity["queries"] == 3 and found.parity["recovery"] == {}


def test_sentence_transformers_is_verified_where_it_is_installed(folder: Path, done: Path) -> None:
    pytest.importorskip("sentence_transformers")
    found = {one.artefact: one for one in verify(folder, done)}
    assert set(found) == {"torch", "sentence-transformers"} and found["sentence-transformers"].passed


def with_onnx(folder: Path, monkeypatch: pytest.MonkeyPatch, noise: float) -> None:
    """An ``onnx/`` as the export leaves it, and an engine that answers as the student does, but for some noise."""
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model_int8.onnx").write_bytes(b"a graph")
    told = {
        "files": {"int8": {"model_int8.onnx": file_sha256(folder / "onnx" / "model_int8.onnx")}}, "beside": {},
        "weights_sha256": read_json(folder / "harness.json")["weights_sha256"],
    }  # fmt: skip
    (folder / "onnx" / "harness.json").write_text(json.dumps(seal(told)))
    encoder = open_encoder(folder)

    class Noisy:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def encode(self, texts: list[str]) -> np.ndarray:
            return encoder.encode(texts, side="query") + noise * unit_vectors(len(texts), encoder.dimension)

    monkeypatch.setattr("harness.engines.onnx_runtime.OnnxEngine", Noisy)


def test_onnx_files_are_verified_and_one_that_differs_fails_the_command(
    folder: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_onnx(folder, monkeypatch, noise=1.0)
    answer = CliRunner().invoke(app, ["verify", str(folder), "--index", str(done)])
    assert isinstance(answer.exception, RunError) and answer.exception.exit_code == 1
    assert "onnx int8" in str(answer.exception) and "the least cosine" in str(answer.exception)
    assert "FAILED" in answer.stdout and "passed" in answer.stdout


def test_the_bounds_of_the_export_travel_with_the_files(
    folder: Path, done: Path, queries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_onnx(folder, monkeypatch, noise=0.5)
    assert not verify(folder, done / "vectors" / "documents", queries)[1].passed
    bounds = {"min_cosine": 0.1, "mean_cosine": 0.1, "overlap": 0.0, "recovery_loss": 1.0, "norm": 1.0}
    write_parity(folder, {"int8": {"bounds": bounds}})
    assert verify(folder, done / "vectors" / "documents", queries)[1].passed
    write_parity(folder, {"int8": {"bounds": {"min_cosine": "high"}}})
    with pytest.raises(InputError, match="damaged"):
        verify(folder, done / "vectors" / "documents", queries)


def test_edited_bounds_are_refused_and_missing_or_unsealed_ones_do_not_count(
    folder: Path, done: Path, queries: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_onnx(folder, monkeypatch, noise=0.5)
    path, index = folder / "onnx" / "parity.json", done / "vectors" / "documents"
    loose = {"min_cosine": 0.1, "mean_cosine": 0.1, "overlap": 0.0, "recovery_loss": 1.0}
    path.write_text(json.dumps({"int8": {"bounds": loose}}))
    assert not verify(folder, index, queries)[1].passed and "the default bounds apply" in caplog.text
    write_parity(folder, {"int8": {"bounds": {**loose, "min_cosine": 0.99}}})
    path.write_text(json.dumps({"int8": {"bounds": loose}}))
    with pytest.raises(StaleArtefactError, match="parity.json: not the file that was exported"):
        verify(folder, index, queries)
    caplog.clear()
    path.unlink()
    assert not verify(folder, index, queries)[1].passed and "parity.json is missing" in caplog.text


def test_the_command_shows_a_table(folder: Path, done: Path) -> None:
    answer = CliRunner().invoke(app, ["verify", str(folder), "--index", str(done)])
    assert answer.exit_code == 0 and "1.000000" in answer.stdout and "passed" in answer.stdout


# ------------------------------------------------------------------------------------------------------- bad input


def unmerged_adapter(folder: Path) -> str:
    (folder / "adapter_config.json").write_text("{}")
    return "an adapter that is not merged"


def edited_by_hand(folder: Path) -> str:
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "other: "}}')
    return "config_sentence_transformers.json: not the file that was exported"


def no_tokenizer(folder: Path) -> str:
    (folder / "tokenizer.json").unlink()
    return "no tokenizer"


def swapped_onnx(folder: Path) -> str:
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"another graph")
    told = {"files": {"fp32": {"model.onnx": "0" * 64}}, "beside": {},
            "weights_sha256": read_json(folder / "harness.json")["weights_sha256"]}  # fmt: skip
    (folder / "onnx" / "harness.json").write_text(json.dumps(seal(told)))
    return "model.onnx: not the file that was exported"


@pytest.mark.parametrize("change", [unmerged_adapter, edited_by_hand, no_tokenizer, swapped_onnx])
def test_a_folder_that_is_not_what_was_exported_is_refused(folder: Path, done: Path, change: Any) -> None:
    message = change(folder)
    with pytest.raises(InputError, match=message):
        verify(folder, done)


def test_an_index_of_another_space_is_refused(folder: Path, done: Path, queries: Path, tmp_path: Path) -> None:
    store = VectorStore.open(done / "vectors" / "documents")
    other = Space(**{**store.space.to_json(), "teacher": "another teacher"})
    made = write_store(tmp_path / "store", store.ids, store.ids, lambda texts: store.vectors()[: len(texts)], other)
    export_index(made, tmp_path / "index", ["npy"], store.vectors()[:2])
    for index in (tmp_path / "store", tmp_path / "index"):
        with pytest.raises(StaleArtefactError, match="two different spaces.*\n.*another teacher"):
            verify(folder, index, queries)


def test_all_that_is_wrong_is_told_at_once(folder: Path, done: Path) -> None:
    edited_by_hand(folder)
    swapped_onnx(folder)
    with pytest.raises(InputError) as caught:
        verify(folder, done / "vectors" / "documents")
    text = str(caught.value)
    assert "config_sentence_transformers.json" in text and "model.onnx" in text and "without queries" in text


def test_no_index_and_no_exported_folder(folder: Path, done: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no index here"):
        verify(folder, tmp_path)
    with pytest.raises(InputError, match="the search index of a run") as caught:
        verify(folder, done / "index")
    assert caught.value.problems[0].next == f"name {done}"
    with pytest.raises(InputError, match="not an exported folder(.|\n)*next: name .*export/student"):
        verify(done / "teacher", done)
    with pytest.raises(InputError, match="not an exported folder(.|\n)*next: name .*export/student"):
        verify(done / "student" / "refined", done)
    export_student(done / "student" / "refined", tmp_path / "again")
    assert verify(tmp_path / "again", done)[0].passed


def test_onnx_files_of_another_student_are_refused_where_the_weights_were_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_onnx(folder, monkeypatch, noise=0.0)
    (folder / "model.safetensors").unlink()
    check_onnx(folder, ["int8"])
    told = read_json(folder / "harness.json")
    told.pop("sealed")
    (folder / "harness.json").write_text(json.dumps(seal({**told, "weights_sha256": "0" * 64})))
    with pytest.raises(StaleArtefactError, match="harness.json: not the weights that the ONNX files were made from"):
        check_onnx(folder, ["int8"])
    (folder / "harness.json").write_text(json.dumps(told))
    with pytest.raises(StaleArtefactError, match="harness.json: edited"):
        check_onnx(folder, ["int8"])


def test_folders_near_the_student_are_told_apart(done: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this is the export folder(.|\n)*export/student"):
        verify(done / "export", done)
    for near, what in ((done, "the folder of a run"), (done / "export", "the export folder"),
                       (done / "export" / "pair", "a pair")):  # fmt: skip
        with pytest.raises(InputError, match=f"this is {what}, not the student(.|\n)*name .*export/student") as caught:
            harness.load(near)
        assert len(caught.value.problems) == 1
    with pytest.raises(InputError, match="this is the folder of a run, not the student"):
        verify(done, done)
    (tmp_path / "pair").mkdir()
    (tmp_path / "pair" / "router_config.json").write_text("{}")
    with pytest.raises(InputError, match="no such file(.|\n)*export it again"):
        verify(tmp_path / "pair", done)
    (tmp_path / "pair" / "harness.json").write_text("{}")
    with pytest.raises(InputError, match="not an exported pair"):
        verify(tmp_path / "pair", done)


# ---------------------------------------------------------------------------------------------------------- the pair


@pytest.fixture
def pair(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done / "export" / "pair", tmp_path / "pair"))


def test_a_pair_is_verified_on_both_sides(pair: Path, done: Path, queries: Path) -> None:
    found = {one.artefact: one for one in verify(pair, done)}
    assert set(found) == {"pair, queries (harness)", "pair, documents (harness)"}
    assert all(one.passed for one in found.values())
    assert found["pair, queries (harness)"].parity["recovery"]["P@1"]["macro"]["value"] == 1
    assert found["pair, documents (harness)"].parity["languages"]["all"]["min_cosine"] > 0.9999
    (alone,) = verify(pair, done / "vectors" / "documents", queries)
    assert alone.passed and alone.artefact == "pair, queries (harness)", "vectors come without texts"


def test_a_pair_is_verified_by_sentence_transformers(pair: Path, done: Path) -> None:
    pytest.importorskip("sentence_transformers")
    answer = CliRunner().invoke(app, ["verify", str(pair), "--index", str(done)])
    assert answer.exit_code == 0 and answer.stdout.count("passed") == 4 and "FAILED" not in answer.stdout


def test_an_edited_pair_and_one_of_other_towers_are_refused(pair: Path, done: Path) -> None:
    path = pair / "query_0_Transformer" / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StaleArtefactError, match="query_0_Transformer/model.safetensors: not the file"):
        verify(pair, done)
    path.write_bytes(content)
    adapter = pair / "query_0_Transformer" / "adapter_config.json"
    adapter.write_text("{}")
    with pytest.raises(StaleArtefactError, match=f"{adapter}: a file that was not exported(.|\n)*got(.|\n)*next"):
        verify(pair, done)
    adapter.unlink()
    told = read_json(pair / "harness.json")
    told.pop("sealed")
    (pair / "harness.json").write_text(json.dumps(seal({**told, "towers": {**told["towers"], "student": "another"}})))
    with pytest.raises(StaleArtefactError, match="not the student that the run has now"):
        verify(pair, done)


def test_a_route_that_encodes_otherwise_fails(pair: Path, done: Path) -> None:
    """Whole and sealed, but with another document prompt."""
    path = pair / "config_sentence_transformers.json"
    config = read_json(path)
    path.write_text(json.dumps({**config, "prompts": {**config["prompts"], "document": "kami kami kami: "}}))
    told = read_json(pair / "harness.json")
    told.pop("sealed")
    told["files"][path.name] = file_sha256(path)
    (pair / "harness.json").write_text(json.dumps(seal(told)))
    queries, documents = verify(pair, done)
    assert queries.passed and not documents.passed and "a stored vector" in documents.parity["reasons"][0]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("q.txt", "", "no queries"), ("q.txt", "\n\n", "no queries"), ("q.jsonl", '{"text": 3}\n', "text"),
     ("q.jsonl", "{broken\n", "JSON"), ("q.txt", None, "no such")],
)  # fmt: skip
def test_queries_that_can_not_be_used_are_named(name: str, content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said) as caught:
        read_queries(tmp_path / name)
    assert "data.on_error" not in str(caught.value) and "data.unlabelled" not in str(caught.value)
    assert content is not None or "--queries: " in str(caught.value)
    assert all(problem.got and problem.next for problem in caught.value.problems)


def test_queries_with_languages(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"query {number}", "lang": "de" if number % 2 else "fr"}) for number in range(6)]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    assert [record.language for record in read_queries(tmp_path / "q.jsonl")] == ["fr", "de"] * 3
