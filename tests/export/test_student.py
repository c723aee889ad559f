"""Axes: N texts, D dimensions."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders.deployable import TEXTS, write_deployable

from harness.encoders.folder import open_encoder, save_encoder
from harness.export.student import check_student, export_student
from harness.runtime.errors import InputError, StaleArtefactError
from harness.runtime.process import read_json


@pytest.fixture
def exported(student: Path, tmp_path: Path) -> Path:
    export_student(student, tmp_path / "export" / "student")
    return tmp_path / "export" / "student"


def test_sentence_transformers_gives_the_student_s_own_vectors(exported: Path, student: Path, texts: list[str]) -> None:
    library: Any = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(str(exported), device="cpu", trust_remote_code=False)
    query_ND = open_encoder(student).encode(texts, side="query")
    np.testing.assert_allclose(model.encode_query(texts), query_ND, atol=1e-5)
    assert model.prompts["query"] == "find: " and model.similarity_fn_name == "cosine"


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "qwen3"])
def test_sentence_transformers_opens_it_without_a_word(kind: str, tmp_path: Path) -> None:
    """A pooler that nobody reads would be reported as missing and random."""
    library: Any = pytest.importorskip("sentence_transformers")
    write_deployable(kind, tmp_path / "made")
    export_student(tmp_path / "made", tmp_path / "student")
    said: list[logging.LogRecord] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record)

    handler, names = Kept(logging.WARNING), ("transformers", "sentence_transformers", "torch")
    for name in names:
        logging.getLogger(name).addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", UserWarning)
            model = library.SentenceTransformer(str(tmp_path / "student"), device="cpu", trust_remote_code=False)
            found_ND = model.encode_query(TEXTS)
    finally:
        for name in names:
            logging.getLogger(name).removeHandler(handler)
    assert [record.getMessage() for record in said] == []
    assert [str(one.message) for one in warned if issubclass(one.category, UserWarning)] == []
    expected_ND = open_encoder(tmp_path / "student").encode(TEXTS, side="query")
    np.testing.assert_allclose(found_ND, expected_ND, atol=1e-5 * np.abs(expected_ND).max())


def test_vectors_that_are_not_normalised_are_compared_by_inner_product(student: Path, tmp_path: Path) -> None:
    encoder = open_encoder(student)
    encoder.normalize = False
    save_encoder(encoder, tmp_path / "student")
    assert read_json(tmp_path / "student" / "config_sentence_transformers.json")["similarity_fn_name"] == "dot"


def test_an_exported_folder_is_whole(exported: Path, student: Path) -> None:
    told = check_student(exported)
    assert set(told["files"]) == {
        path.relative_to(student).as_posix() for path in student.rglob("*") if path.is_file()
    } - {"harness.json"}


def test_what_is_added_beside_it_is_let_be(exported: Path) -> None:
    (exported / "README.md").write_text("# a card")
    (exported / "onnx").mkdir()
    (exported / "onnx" / "model.onnx").write_bytes(b"x")
    check_student(exported)


def edit_config(folder: Path) -> str:
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    return "1_Pooling/config.json"


def swap_weights(folder: Path) -> str:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1] + b"\x7f")
    return "model.safetensors"


def remove_prompts(folder: Path) -> str:
    (folder / "config_sentence_transformers.json").unlink()
    return "config_sentence_transformers.json"


def edit_space(folder: Path) -> str:
    told = json.loads((folder / "harness.json").read_text())
    told["space"]["dimension"] = 7
    (folder / "harness.json").write_text(json.dumps(told))
    return "harness.json"


@pytest.mark.parametrize("change", [edit_config, swap_weights, remove_prompts, edit_space])
def test_a_folder_that_was_edited_is_refused_by_the_file_s_name(exported: Path, change: Any) -> None:
    name = change(exported)
    with pytest.raises(StaleArtefactError) as caught:
        check_student(exported)
    assert [Path(problem.where) for problem in caught.value.problems] == [exported / name]


def test_a_file_added_where_a_library_reads_it_is_refused(exported: Path) -> None:
    """``2_Normalize/config.json`` would change the model, and every file that was exported is as it was."""
    (exported / "notes.txt").write_text("mine")
    (exported / "1_Pooling" / "README.md").write_text("mine")
    check_student(exported)
    added = [exported / "1_Pooling" / "more.json", exported / "9_Mine" / "config.json"]
    for path in added:
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    with pytest.raises(StaleArtefactError, match="a file that was not exported") as caught:
        check_student(exported)
    assert [Path(problem.where) for problem in caught.value.problems] == added


def add_adapter(folder: Path) -> str:
    (folder / "adapter_config.json").write_text("{}")
    return "not merged"


def take_tokenizer(folder: Path) -> str:
    (folder / "tokenizer.json").unlink()
    return "no tokenizer"


def pickle_weights(folder: Path) -> str:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return "no safetensors weights"


def unknown_module(folder: Path) -> str:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "mine.Pooling2"
    (folder / "modules.json").write_text(json.dumps(modules))
    return "not supported"


@pytest.mark.parametrize("change", [add_adapter, take_tokenizer, pickle_weights, unknown_module])
def test_what_no_server_starts_on_is_neither_exported_nor_accepted(
    student: Path, exported: Path, tmp_path: Path, change: Any
) -> None:
    source = Path(shutil.copytree(student, tmp_path / "source"))
    message = change(source)
    with pytest.raises(InputError, match=message):
        export_student(source, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    change(exported)
    with pytest.raises(InputError, match=message):
        check_student(exported)


def test_all_that_a_folder_lacks_is_told_at_once(student: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(student, tmp_path / "source"))
    take_tokenizer(source)
    pickle_weights(source)
    with pytest.raises(InputError) as caught:
        export_student(source, tmp_path / "other")
    assert len(caught.value.problems) == 2


def test_an_unsealed_folder_is_told_from_an_exported_one(student: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not an exported folder"):
        check_student(student)
    with pytest.raises(InputError, match="no such model folder"):
        check_student(tmp_path / "nowhere")
