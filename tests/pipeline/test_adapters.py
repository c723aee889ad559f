"""A whole run whose teacher is trained by adapters: stopped, gone on with, merged, and opened by others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders.killed import Fault, Zygote
from builders.tiny_models import write_tiny_qwen3
from builders.tiny_run import tiniest_tree, write_recipe
from builders.whole import differences, partial_artefacts
from safetensors import safe_open

from harness.encoders.encoder import Encoder
from harness.encoders.folder import open_encoder, save_encoder
from harness.encoders.lora import is_adapter, merge_adapter
from harness.encoders.targets import stored_in_bf16
from harness.pipeline.controller import run_recipe
from harness.pipeline.launch import check_launch
from harness.pipeline.search import search_run
from harness.recipe import load_recipe
from harness.runtime.errors import InputError
from harness.runtime.process import read_json

TEXTS = ["what was searched for", "something", ""]


def tree_of(root: Path, **lora: Any) -> dict[str, Any]:
    tree = tiniest_tree(root)
    tree["teacher"]["training"] |= {"learning_rate": 1e-2, "gradient_checkpointing": True, "dropout": 0.1}
    tree["teacher"]["lora"] = {"rank": 4, "dropout": 0.1, **lora}
    tree["evaluate"]["systems"] = ["teacher", "teacher-base", "teacher-more", "student-refined"]
    return tree


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    return write_recipe(root, tree_of(root))


@pytest.fixture(scope="module")
def out(zygote: Zygote, recipe: Path) -> Path:
    """A run that was stopped while its teacher was trained."""
    out = recipe.parent / "out"
    command = ["run", str(recipe), "--output", str(out)]
    stopped = zygote.run(command, out, Fault("log", "write", 2, act="TERM"))
    assert stopped.code == 1 and "the same command goes on" in stopped.log, stopped.log
    (path,) = (out / "checkpoints" / "teacher").glob("step-*/model-*.safetensors")
    with safe_open(path, "pt") as stream:
        assert stream.keys() and all(".lora_" in name for name in stream.keys())  # noqa: SIM118 - no mapping
    ended = zygote.run(command, out)
    assert ended.code == 0 and "teacher: goes on from step" in ended.log, ended.log
    return out


def test_it_ends_as_if_it_had_not_been_stopped(zygote: Zygote, recipe: Path, out: Path, tmp_path: Path) -> None:
    ended = zygote.run(["run", str(recipe), "--output", str(tmp_path / "whole")], tmp_path / "whole")
    assert ended.code == 0, ended.log
    assert differences(tmp_path / "whole", out) == [] and partial_artefacts(out) == []


def test_the_teacher_is_a_plain_folder_that_is_not_its_base(recipe: Path, out: Path) -> None:
    base, teacher, more = (
        open_encoder(path) for path in (recipe.parent / "model", out / "teacher", out / "teacher-more")
    )
    names = [name for name, _ in base.named_parameters()]
    assert [name for name, _ in teacher.named_parameters()] == names
    pairs = zip(base.named_parameters(), teacher.parameters(), strict=True)
    changed = {name for (name, one), two in pairs if not one.equal(two)}
    ends = (".query.weight", ".key.weight", ".value.weight", ".dense.weight")
    assert changed == {name for name in names if name.endswith(ends)}
    vectors = [encoder.encode(TEXTS, side="query") for encoder in (base, teacher, more)]
    assert all(abs(one - two).max() > 1e-3 for one, two in zip(vectors, vectors[1:], strict=False))
    spaces = [read_json(out / name / "harness.json")["space"] for name in ("teacher", "student/refined")]
    assert spaces[0] == spaces[1]
    assert search_run(out, "something", k=3)


@pytest.mark.parametrize("name", ["teacher", "teacher-more", "export/student"])
def test_sentence_transformers_opens_what_came_of_it_with_equal_vectors(out: Path, name: str) -> None:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(out / name), device="cpu", local_files_only=True)
    vector_ND = open_encoder(out / name).encode(TEXTS, side="query")
    other_ND = theirs.encode(TEXTS, prompt_name="query", convert_to_numpy=True)
    assert np.abs(vector_ND - other_ND).max() < 1e-5


@pytest.mark.parametrize(("precision", "below"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_weights_stored_in_bf16_rest_in_bf16_where_the_training_computes_so(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, below: torch.dtype
) -> None:
    texts = [json.loads(line)["text"] for line in (recipe.parent / "data" / "queries.jsonl").open(encoding="utf-8")]
    model = write_tiny_qwen3(tmp_path / "float", texts=texts, vocab=400)
    save_encoder(open_encoder(model, dtype=torch.bfloat16), tmp_path / "half")
    trained: list[dict[bool, set[torch.dtype]]] = []

    def noted(encoder: Encoder, texts: list[str]) -> None:
        kinds = {True: set(), False: set()}
        for name, parameter in encoder.named_parameters():
            kinds[is_adapter(name)].add(parameter.dtype)
        trained.append(kinds)
        merge_adapter(encoder, texts)

    monkeypatch.setattr("harness.pipeline.work_training.merge_adapter", noted)
    changes = [f"teacher.model={tmp_path / 'half'}", f"teacher.training.precision={precision}"]
    run_recipe(load_recipe(recipe, changes), tmp_path / "out", last="teacher")
    assert trained == [{True: {torch.float32}, False: {below}}]
    losses = [json.loads(line).get("loss") for line in (tmp_path / "out" / "logs" / "teacher.jsonl").open()]
    assert all(loss > 0 for loss in losses if loss is not None)
    vectors = [open_encoder(path).encode(TEXTS, side="query") for path in (tmp_path / "half", tmp_path / "out/teacher")]
    assert abs(vectors[0] - vectors[1]).max() > 1e-3
    assert not stored_in_bf16(tmp_path / "out" / "teacher"), "a sum rounded to bf16 loses what is small in an adapter"


def test_wrong_targets_are_told_before_the_run(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no linear layer has such a name\n    got: q_proj\n.*layer\.N\.attention"):
        run_recipe(load_recipe(recipe, ["teacher.lora.targets=[q_proj, query]"]), tmp_path / "out")
    assert not (tmp_path / "out" / "teacher").exists()
    config = tmp_path / "model" / "config.json"
    shutil.copytree(recipe.parent / "model", tmp_path / "model")
    config.write_text(config.read_text().replace('"model_type": "bert"', '"model_type": "electra"'))
    with pytest.raises(InputError, match=r"got: a model of type 'electra'\n"):
        run_recipe(load_recipe(recipe, [f"teacher.model={tmp_path / 'model'}"]), tmp_path / "out")
    with pytest.raises(InputError, match=r"teacher\.lora: adapters are to be trained, but the teacher is not"):
        load_recipe(recipe, ["teacher.train=false", "evaluate.systems=[teacher]"])


def test_zero_is_refused_before_the_run(recipe: Path) -> None:
    accelerate = Path(__file__).parents[2] / "recipes" / "accelerate"
    for name, told in (("deepspeed-zero2", True), ("fsdp2", False)):
        file = f"launch.accelerate={{teacher: {accelerate / name}.yaml}}"
        wanted = load_recipe(recipe, [file, "launch.processes={teacher: 2}"])
        if not told:
            check_launch(wanted)
            continue
        with pytest.raises(InputError, match=r"adapters in fp32.*\n    got: DEEPSPEED for step 'teacher'"):
            check_launch(wanted)
