"""The pair is opened with sentence-transformers itself, without its leave to run code. Axes: N texts, D dimensions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.encoders.folder import open_encoder, save_encoder
from harness.export.pair import export_pair
from harness.runtime.errors import InputError, StaleArtefactError
from harness.runtime.process import read_json


@pytest.fixture(scope="module")
def folder(teacher: Path, student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("exported") / "pair"
    export_pair(teacher, student, target)
    return target


@pytest.fixture(scope="module")
def pair(folder: Path) -> Any:
    library = pytest.importorskip("sentence_transformers")
    return library.SentenceTransformer(str(folder), device="cpu", trust_remote_code=False)


def test_each_side_gives_its_tower_s_own_vectors(
    pair: Any, teacher: Path, student: Path, texts: list[str]
) -> None:
    query_ND = open_encoder(student).encode(texts, side="query")
    document_ND = open_encoder(teacher).encode(texts, side="document")
    np.testing.assert_allclose(pair.encode_query(texts), query_ND, atol=1e-5)
    np.testing.assert_allclose(pair.encode_document(texts), document_ND, atol=1e-5)
    assert np.abs(query_ND - document_ND).max() > 0.1, "else this test could not tell the towers apart"


def test_one_text_at_a_time_gives_the_same(pair: Any, student: Path, texts: list[str]) -> None:
    query_ND = open_encoder(student).encode(texts, side="query")
    for text, query_D in zip(texts, query_ND, strict=True):
        np.testing.assert_allclose(pair.encode_query(text), query_D, atol=1e-5)


def test_a_search_through_it_finds_what_the_towers_find(
    pair: Any, teacher: Path, student: Path, texts: list[str]
) -> None:
    score_NN = open_encoder(student).encode(texts, side="query") @ open_encoder(teacher).encode(
        texts, side="document").T  # fmt: skip
    found_NN = pair.similarity(pair.encode_query(texts), pair.encode_document(texts)).numpy()
    np.testing.assert_allclose(found_NN, score_NN, atol=1e-5)
    assert (found_NN.argmax(axis=1) == score_NN.argmax(axis=1)).all()


def test_the_pair_says_its_prompts_and_its_similarity(pair: Any) -> None:
    assert pair.prompts == {"query": "find: ", "document": "passage: "}
    assert pair.similarity_fn_name == "cosine"


def test_vectors_that_are_not_normalised_are_compared_by_inner_product(
    teacher: Path, student: Path, tmp_path: Path
) -> None:
    space = {**read_json(teacher / "harness.json")["space"], "normalized": False}
    for name, folder in (("teacher", teacher), ("student", student)):
        encoder = open_encoder(folder)
        encoder.normalize = False
        save_encoder(encoder, tmp_path / name, {"space": space})
    export_pair(tmp_path / "teacher", tmp_path / "student", tmp_path / "pair")
    assert read_json(tmp_path / "pair" / "config_sentence_transformers.json")["similarity_fn_name"] == "dot"


def test_the_folder_holds_stock_modules_and_safetensors_alone(folder: Path) -> None:
    types = set(read_json(folder / "router_config.json")["types"].values())
    kinds = ("Transformer", "Pooling", "Dense", "Normalize")
    assert types == {f"sentence_transformers.models.{kind}" for kind in kinds}
    assert not {path.suffix for path in folder.rglob("*") if path.is_file()} - {".json", ".safetensors"}
    assert "auto_map" not in json.dumps([read_json(path) for path in folder.rglob("config.json")])
    assert not (folder / "query_0_Transformer" / "2_Dense").exists(), "a module stands once"


def test_towers_of_two_spaces_are_refused(teacher: Path, student: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(student, tmp_path / "other"))
    told = read_json(other / "harness.json")
    told["space"]["teacher"] = "another"
    (other / "harness.json").write_text(json.dumps(told))
    with pytest.raises(StaleArtefactError, match="two different spaces"):
        export_pair(teacher, other, tmp_path / "pair")
    assert not (tmp_path / "pair").exists()


def test_an_adapter_that_is_not_merged_is_refused(teacher: Path, student: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(student, tmp_path / "other"))
    (other / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="not merged"):
        export_pair(teacher, other, tmp_path / "pair")
