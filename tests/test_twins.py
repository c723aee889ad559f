"""The large recipes, each as a twin of its own: tests/recipes/NAME.yaml differs from recipes/NAME.yaml in sizes and
paths alone, and runs from the data to the report with models of random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from builders.tiny_data import write_jsonl, write_tiny_beir
from builders.tiny_models import write_tiny_qwen3
from typer.testing import CliRunner

from harness.cli import app
from harness.encoders.chain import describe_folder, read_chain
from harness.encoders.folder import open_encoder, save_encoder
from harness.pipeline.needs import needs
from harness.pipeline.sizes import counts_of, models_of
from harness.pipeline.surroundings import trainings
from harness.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[1]
TWINS = sorted(path.stem for path in (ROOT / "tests" / "recipes").glob("*.yaml"))
# Keys in which a twin may differ from its recipe, as patterns of dotted names.
SIZES = (
    "teacher.dimension", "teacher.max_length", "student.max_length", "teacher.lora.rank", "student.layers.count",
    "student.feed_forward.width", "mine.*.top_k", "mine.*.keep", "evaluate.resamples", "bench.queries_per_language",
    "bench.warmup", "bench.repeats", "bench.max_batch",
    *(f"*.training.{key}" for key in ("steps", "batch_size", "chunk_tokens", "evaluate_every", "checkpoint_every")),
)  # fmt: skip
PATHS = (
    "data.path", "data.streams.*.path", "teacher.model", "student.model", "launch.accelerate*", "launch.device",
    "launch.processes",
)  # fmt: skip


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a resolved recipe by its dotted name; an empty section is a value, too."""
    if isinstance(node, dict) and node:
        for name, value in node.items():
            yield from _leaves(value, f"{key}.{name}" if key else name)
    else:
        yield key, node


def _differing(name: str) -> dict[str, tuple[Any, Any]]:
    """What differs between a recipe and its twin, key -> both values."""
    recipe, twin = (
        dict(_leaves(load_recipe(folder / f"{name}.yaml").model_dump(mode="json")))
        for folder in (ROOT / "recipes", ROOT / "tests" / "recipes")
    )
    return {key: (recipe.get(key), twin.get(key)) for key in recipe.keys() | twin.keys()
            if recipe.get(key) != twin.get(key)}  # fmt: skip


def test_every_large_recipe_has_a_twin() -> None:
    assert sorted(path.stem for path in (ROOT / "recipes").glob("qwen3-*.yaml")) == TWINS and len(TWINS) == 3


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_differs_in_sizes_and_paths_alone(name: str) -> None:
    for key, (full, tiny) in _differing(name).items():
        assert any(fnmatch(key, pattern) for pattern in (*SIZES, *PATHS)), f"{key}: {full!r} here, {tiny!r} there"
        if any(fnmatch(key, pattern) for pattern in SIZES):
            assert type(full) is type(tiny), f"{key} is set in one of them only"
            assert isinstance(full, list) or tiny < full, key


def test_all_that_may_differ_does_somewhere() -> None:
    found = {key for name in TWINS for key in _differing(name)}
    unused = [pattern for pattern in (*SIZES, *PATHS) if not any(fnmatch(key, pattern) for key in found)]
    assert not unused, unused


@pytest.mark.parametrize("name", TWINS)
def test_the_launch_files_that_a_recipe_names_are_there(name: str) -> None:
    for path in load_recipe(ROOT / "recipes" / f"{name}.yaml").launch.accelerate.values():
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("name", TWINS)
def test_large_recipes_compute_in_bf16_alone(name: str) -> None:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    assert recipe.embed.precision == "bf16"
    assert {training.precision for training in trainings(recipe).values()} == {"bf16"} and len(trainings(recipe)) == 3


# ------------------------------------------------------------------------------------------------------- the runs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders that the twins name: ``data/`` and ``models/``, those in bf16 as they are on the hub."""
    root = tmp_path_factory.mktemp("twins")
    data = write_tiny_beir(root / "data" / "labelled", documents=40)
    lines = [json.loads(line) for name in ("queries", "corpus") for line in (data / f"{name}.jsonl").open()]
    spoken = [{"query": line["text"], "lang": line["lang"]} for line in lines]
    write_jsonl(root / "data" / "log" / "part-0.jsonl", spoken[::2])
    write_jsonl(root / "data" / "log" / "part-1.jsonl", spoken[1::4])
    write_jsonl(root / "data" / "public-queries" / "part-0.jsonl", spoken[3::4])
    for name, hidden, layers, seed in (("teacher", 48, 3, 0), ("student", 32, 4, 1)):
        texts = [line["text"] for line in lines]
        folder = write_tiny_qwen3(root / "fp32" / name, texts=texts, hidden=hidden, layers=layers, seed=seed, vocab=400)
        encoder = open_encoder(folder)
        encoder.backbone.to(torch.bfloat16)
        save_encoder(encoder, root / "models" / name)
    return root


SHAPES = {  # layers, feed-forward width and dimension of the student, and of its vectors
    "qwen3-0.6b-to-14-layers": (2, 96, 48),
    "qwen3-4b-to-0.6b": (4, 64, 32),
    "qwen3-8b-to-190m": (2, 40, 32),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_runs_to_its_report(
    name: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("data", "models"):
        shutil.copytree(inputs / folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    path = ROOT / "tests" / "recipes" / f"{name}.yaml"
    done = CliRunner().invoke(app, ["run", str(path)])
    assert done.exit_code == 0, done.output
    out, recipe = tmp_path / "outputs" / name, load_recipe(path)
    _assert_cut(out, recipe, *SHAPES[name])
    _assert_foreseen(out, recipe)
    results = json.loads((out / "results.json").read_text())
    assert set(results["systems"]) == set(recipe.evaluate.systems)
    for system in ("teacher-base", "student-untrained", "student-aligned", "student-refined"):
        for metric in ("P@1", "nDCG@10"):
            assert set(results["recovery"][system]["test"]["macro"][metric]) >= {"value", "low", "high"}
    for file in ("report.md", "report.html", "bench.json", "mined/refine/audit.md", "export/student/config.json"):
        assert (out / file).is_file(), file
    for stage in ("teacher", "align", "refine"):
        steps = [json.loads(line)["step"] for line in (out / "logs" / f"{stage}.jsonl").open() if "step" in line]
        assert max(steps) >= 2, stage


def _assert_cut(out: Path, recipe: Recipe, layers: int, width: int, dimension: int) -> None:
    for stage in ("cut", "aligned", "refined"):
        folder = out / "student" / stage
        told, config = describe_folder(folder), json.loads((folder / "config.json").read_text())
        assert (told["layers"], told["stored_layers"], config["intermediate_size"]) == (layers, layers, width), stage
        assert told["dimension"] == dimension
        encoder = open_encoder(folder)
        assert encoder.encode(["a text"], side="query").shape == (1, dimension)
        assert encoder.max_length == recipe.student.max_length and read_chain(folder).pooling == "lasttoken"
        assert encoder.prompts["query"].startswith("Instruct"), "the hub model's own"


def _assert_foreseen(out: Path, recipe: Recipe) -> None:
    """Parameters to the last one; model folders, checkpoints and vectors on the disk within a tenth."""
    models = models_of(recipe)
    foreseen = needs(recipe, models, counts_of(recipe, out / "data"))
    for role, folder in (("teacher", out / "teacher"), ("student", out / "student" / "refined")):
        assert models[role].parameters == open_encoder(folder).parameter_count, role
        stage = "teacher" if role == "teacher" else "refine"
        weights = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        assert foreseen[stage].disk["model"] == pytest.approx(weights, rel=0.1), role
    stores = [sorted((out / "vectors").glob(pattern)) for pattern in ("*/shard-*.npy", "streams/*/shard-*.npy")]
    vectors, of_streams = (sum(path.stat().st_size - 128 for path in paths) for paths in stores)  # numpy's header
    assert sum(foreseen[step].disk["vectors"] for step in ("embed.base", "embed")) == vectors
    assert 0 < of_streams <= foreseen["embed.streams"].likely["vectors"] < 1.5 * of_streams, "less what is double"
