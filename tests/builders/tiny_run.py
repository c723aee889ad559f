"""A whole run at the size of a test: a tiny model, a tiny data set, and the recipe that joins them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from builders.tiny_data import write_tiny_beir
from builders.tiny_models import write_tiny_bert


def write_tiny_inputs(root: Path) -> dict[str, str]:
    """A data folder and a model folder below ``root``; the overrides that make any recipe use them."""
    data = write_tiny_beir(root / "data")
    texts = [
        json.loads(line)["text"]
        for name in ("corpus", "queries")
        for line in (data / f"{name}.jsonl").open(encoding="utf-8")
    ]
    write_tiny_bert(root / "model", texts=texts)
    return {"data": str(data), "model": str(root / "model")}


def tiny_tree(root: Path, **changes: Any) -> dict[str, Any]:
    """The recipe as a tree: full-batch runs of a second each; ``changes`` replace whole sections."""
    inputs = write_tiny_inputs(root)
    training = {"steps": 40, "batch_size": 32, "learning_rate": 5e-3, "precision": "fp32", "chunks": 2}
    tree: dict[str, Any] = {
        "name": "tiny",
        "seed": 3,
        "data": {"source": "beir", "path": inputs["data"]},
        "teacher": {"model": inputs["model"], "training": {**training, "evaluate_every": 10}},
        "embed": {"shard_rows": 50},
        "student": {"layers": [1, 4]},
        "align": {"training": {**training, "steps": 60}},
        "refine": {"training": {**training, "steps": 20, "learning_rate": 1e-3}},
        "export": {},
        "evaluate": {
            "systems": ["teacher", "teacher-base", "student-untrained", "student-aligned", "student-refined"],
            "resamples": 200,
        },
        "bench": {"queries_per_language": 3, "warmup": 1, "repeats": 1, "batch_sizes": [4]},
        "launch": {"device": "cpu", "processes": 1},
    }
    return {**tree, **changes}


def write_recipe(root: Path, tree: dict[str, Any]) -> Path:
    """The tree as a recipe file."""
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path


def tiniest_tree(root: Path) -> dict[str, Any]:
    """A recipe with every kind of artefact and next to no work: for runs that are stopped and started many times."""
    training = {
        "steps": 4, "batch_size": 8, "learning_rate": 1e-3, "precision": "fp32", "chunks": 1, "evaluate_every": 2,
        "checkpoint_every": 1,
    }  # fmt: skip
    tree = tiny_tree(root)
    tree["teacher"] |= {"training": dict(training)}
    tree["align"] = {"training": dict(training)}
    tree["mine"] = {"refine": {"top_k": 10, "keep": 3}}
    tree["refine"] = {"training": dict(training), "candidates": "sampled", "sampled": 16, "mined": 2}
    tree["evaluate"] = {"systems": ["teacher", "student-aligned", "student-refined"], "resamples": 100}
    return {**tree, "bench": None}
