"""The teacher's losses and cached gradients as a recipe asks for them: keys, what `check` refuses, a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders.tiny_run import tiny_tree, write_recipe
from safetensors.torch import load_file

from harness.data.prepare import load_dataset, prepare_data
from harness.pipeline.checks import check_data, check_models
from harness.pipeline.controller import run_recipe
from harness.pipeline.launch import check_launch
from harness.pipeline.needs import needs
from harness.pipeline.plan import keys
from harness.pipeline.sizes import Counts, Model
from harness.recipe import Recipe, load_recipe
from harness.runtime.errors import InputError


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_tree(tmp_path_factory.mktemp("losses"))


def recipe_of(tmp_path: Path, tree: dict[str, Any], *overrides: str) -> Recipe:
    return load_recipe(write_recipe(tmp_path, tree), overrides)


def test_a_run_with_all_of_it_trains_saves_and_goes_on_to_the_student(tmp_path: Path, tree: dict[str, Any]) -> None:
    recipe = recipe_of(
        tmp_path, tree, "teacher.training.steps=20", "teacher.hard_negatives=1", "teacher.training.cached=true",
        "teacher.training.chunk_tokens=128", "teacher.loss.kind=qwen3", "teacher.loss.learned_temperature=true",
        "teacher.loss.matryoshka=[32, 16]", "teacher.loss.margin=0.05", "align.training.cached=true",
        "align.training.steps=10",
    )  # fmt: skip
    _, ran = run_recipe(recipe, tmp_path / "out", last="align")
    assert ran[-1] == "align"
    lines = [json.loads(text) for text in (tmp_path / "out/logs/teacher.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 20 and steps[-1]["loss"] < 0.9 * steps[0]["loss"]
    assert steps[0]["temperature"] == pytest.approx(0.05) and steps[-1]["temperature"] != steps[0]["temperature"]
    names = load_file(tmp_path / "out/teacher/model.safetensors").keys()
    assert names == load_file(Path(tree["teacher"]["model"]) / "model.safetensors").keys()
    assert run_recipe(recipe, tmp_path / "out", last="align")[1] == [], "the recipe as it was resolved is the same"


def test_a_loss_changes_the_teachers_key_and_what_depends_on_it(tmp_path: Path, tree: dict[str, Any]) -> None:
    before, after = (
        keys(recipe_of(tmp_path, tree, *overrides), {}) for overrides in ([], ["teacher.loss.same_tower=true"])
    )
    assert {step for step in before if before[step] != after[step]} >= {"teacher", "embed", "align", "refine"}
    assert before["data"] == after["data"] and before["embed.base"] == after["embed.base"]
    said = recipe_of(tmp_path, tree, "teacher.loss.kind=info_nce", "teacher.training.cached=false")
    assert keys(said, {}) == before


@pytest.mark.parametrize(
    ("told", "overrides", "reason"),
    [
        ({"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 2}},
         ["teacher.training.cached=true"], "ZeRO 2 and 3 reduce all gradients each time"),
        ({"distributed_type": "FSDP"}, ["teacher.loss.learned_temperature=true"], "spread over processes"),
        ({"distributed_type": "FSDP"}, ["teacher.training.cached=true"], ""),
        ({"distributed_type": "MULTI_GPU"},
         ["teacher.training.cached=true", "teacher.loss.learned_temperature=true"], ""),
    ],
)  # fmt: skip
def test_what_an_accelerate_file_can_not_do_is_refused_before_it_starts(
    tmp_path: Path, tree: dict[str, Any], told: dict[str, Any], overrides: list[str], reason: str
) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(yaml.safe_dump({**told, "mixed_precision": "no", "num_processes": 2}))
    launch = [f"launch.accelerate={{teacher: {file}}}", "launch.processes={teacher: 2}"]
    recipe = recipe_of(tmp_path, tree, *launch, *overrides)
    check_launch(recipe_of(tmp_path, tree, *launch))
    if not reason:
        return check_launch(recipe)
    with pytest.raises(InputError, match=reason) as error:
        check_launch(recipe)
    assert "next: take recipes/accelerate/" in str(error.value) and "step 'teacher'" in str(error.value)
    check_launch(recipe_of(tmp_path, tree, *overrides))  # in one process, nothing is spread
    return None


def test_dimensions_above_the_models_and_scores_that_are_not_there(tmp_path: Path, tree: dict[str, Any]) -> None:
    check_models(recipe_of(tmp_path, tree, "teacher.loss.matryoshka=[32, 8]"))
    with pytest.raises(InputError, match=r"teacher\.loss\.matryoshka: more dimensions than the model gives"):
        check_models(recipe_of(tmp_path, tree, "teacher.loss.matryoshka=[33]"))
    data = tmp_path / "bare"
    data.mkdir()
    source = Path(tree["data"]["path"])
    (data / "qrels").mkdir()
    for name in ("corpus.jsonl", "queries.jsonl"):
        (data / name).write_bytes((source / name).read_bytes())
    for name in ("train.tsv", "dev.tsv", "test.tsv"):
        lines = (source / "qrels" / name).read_text().splitlines()
        (data / "qrels" / name).write_text("\n".join(line for line in lines if not line.endswith("\t0")) + "\n")
    for path, fine in ((source, True), (data, False)):
        recipe = recipe_of(tmp_path, tree, f"data.path={path}", "teacher.loss.kind=kl", "teacher.hard_negatives=1")
        prepare_data(recipe.data, tmp_path / f"prepared-{fine}")
        dataset = load_dataset(tmp_path / f"prepared-{fine}")
        if fine:
            check_data(recipe, dataset)
            continue
        with pytest.raises(InputError, match="no training query has judged documents of different scores"):
            check_data(recipe, dataset)


def test_with_cached_gradients_one_chunk_is_in_memory(tmp_path: Path, tree: dict[str, Any]) -> None:
    model = Model(parameters=1000, body=600, layers=2, hidden=10, heads=2, dimension=10)
    counts = Counts(documents=100, queries=50, tokens={"query": 4, "document": 8})

    def activations(*overrides: str) -> float:
        found = needs(recipe_of(tmp_path, tree, *overrides), {"teacher": model, "student": model}, counts)
        return found["teacher"].activations

    whole = activations()
    assert activations("teacher.training.cached=true") == pytest.approx(whole / 2), "the recipe has two chunks"
    tokens = 32 * (4 + 8)
    cached = "teacher.training.cached=true"
    assert activations(cached, f"teacher.training.chunk_tokens={tokens // 4}") == pytest.approx(whole / 4)
    assert activations(cached, f"teacher.training.chunk_tokens={tokens * 4}") == pytest.approx(whole)
