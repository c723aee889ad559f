"""Two real processes on a CPU do every step, and get what one process gets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders.every_step import JUDGED, searched
from builders.outside import SPLIT, write_outside
from builders.tiny_run import tiny_tree, write_recipe
from builders.tiny_streams import with_streams
from safetensors.numpy import load_file

from harness.evaluation.per_query import PerQuery
from harness.pipeline.controller import run_recipe
from harness.pipeline.folder import RunFolder
from harness.pipeline.manifest import Manifest
from harness.pipeline.plan import plan
from harness.recipe import load_recipe
from harness.runtime.process import is_locked, read_json
from harness.vectors.mining import read_tables
from harness.vectors.store import VectorStore
from harness.vectors.stream_store import StreamVectors

ROOT = Path(__file__).parents[2]
CPU2 = ROOT / "recipes" / "accelerate" / "cpu2.yaml"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}


def _recipe(folder: Path, **training: Any) -> Path:
    tree = tiny_tree(folder)
    for stage in ("teacher", "align", "refine"):
        tree[stage]["training"] |= {"steps": 6, "learning_rate": 1e-3, "evaluate_every": 3, "keep": "last", **training}
    tree["mine"] = {"base": {"top_k": 20, "keep": 4}, "refine": {"top_k": 20, "keep": 4, "skip": 1, "part_queries": 20}}
    tree["teacher"]["hard_negatives"] = 1
    tree["refine"]["mined"] = 2
    tree["embed"] = {"shard_rows": 7, "batch_tokens": 100}
    tree["evaluate"]["outside"] = [{"name": "far", "beir": str(write_outside(folder / "far")), "split": SPLIT}]
    return write_recipe(folder, with_streams(folder, tree))


@dataclass(frozen=True)
class Runs:
    """A run of one process, and each of its steps done again by two: ``two/STEP`` is a whole folder."""

    recipe: Path
    one: Path
    two: Path
    log: str

    def folders(self, step: str) -> tuple[RunFolder, RunFolder]:
        return RunFolder(self.one), RunFolder(self.two / step)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("two")
    recipe, one, two = _recipe(root), root / "one", root / "steps"
    run_recipe(load_recipe(recipe), one)
    two.mkdir()
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(CPU2), "--main_process_port", "0"]
    command = [sys.executable, *launch, "-m", "builders.every_step", str(recipe), str(one), str(two)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return Runs(recipe, one, two, done.stderr)


def test_every_step_was_done_by_two(runs: Runs) -> None:
    recipe = load_recipe(runs.recipe)
    names = [step.name for step in plan(recipe)]
    assert len(names) == 16
    before = Manifest(RunFolder(runs.one)).steps
    for name in names:
        after = Manifest(RunFolder(runs.two / name)).steps
        assert after[name]["key"] == before[name]["key"], "launch settings stay out of the key"
        assert set(after[name]["outputs"]) == set(before[name]["outputs"])
    assert runs.log.count("> teacher\n") == 1, "one process speaks"


@pytest.mark.parametrize(
    "stage, model", [("teacher", "teacher"), ("align", "student/aligned"), ("refine", "student/refined")]
)
def test_trained_weights_are_those_of_one_process(runs: Runs, stage: str, model: str) -> None:
    one, two = (load_file(folder.root / model / "model.safetensors") for folder in runs.folders(stage))
    assert one.keys() == two.keys()
    start = load_file({"teacher": runs.one.parent / "model", "align": runs.one / "student/cut",
                       "refine": runs.one / "student/aligned"}[stage] / "model.safetensors")  # fmt: skip
    moved = max(float(np.abs(one[name] - start[name]).max()) for name in one)
    for name in one:
        np.testing.assert_allclose(two[name], one[name], atol=0.02 * moved, err_msg=name)


@pytest.mark.parametrize("stage", ["teacher", "align", "refine"])
def test_logged_losses_and_scores_are_those_of_one_process(runs: Runs, stage: str) -> None:
    logs = (folder.log(stage).read_text().splitlines() for folder in runs.folders(stage))
    one, two = ([json.loads(line) for line in lines] for lines in logs)
    assert [line.keys() for line in one] == [line.keys() for line in two]
    for ours, theirs in zip(one, two, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4)


@pytest.mark.parametrize("system", ["teacher", "student-refined"])
def test_outside_sets_are_answered_as_by_one_process(runs: Runs, system: str) -> None:
    folders = [RunFolder(runs.one), RunFolder(runs.two / "embed.outside")]
    one, two = (VectorStore.open(folder.outside / "far" / "documents") for folder in folders)
    assert (one.ids, one.sha256) == (two.ids, two.sha256) and len(one) == 40
    np.testing.assert_allclose(two.vectors(), one.vectors(), atol=1e-5)
    ours, theirs = (PerQuery.load(folder.outside / "far" / system) for folder in runs.folders("evaluate.outside"))
    assert ours.ids == theirs.ids and [len(hits) for hits in ours.hits] == [len(hits) for hits in theirs.hits]
    np.testing.assert_allclose(theirs.scores, ours.scores, atol=1e-5)


@pytest.mark.parametrize(
    "step, store",
    [("embed.base", "base-documents"), ("embed.base", "base-queries"), ("embed", "documents"), ("embed", "queries")],
)
def test_stores_hold_the_vectors_of_one_process(runs: Runs, step: str, store: str) -> None:
    one, two = (VectorStore.open(folder.vectors / store, verify=True) for folder in runs.folders(step))
    assert one.ids == two.ids and one.sha256 == two.sha256 and len(one.manifest.shards) > 2
    cosine_N = np.einsum("nd,nd->n", one.vectors().astype(np.float64), two.vectors())
    assert cosine_N.min() > 1 - 1e-6


@pytest.mark.parametrize("stream", ["clicks", "searches"])
def test_streams_are_shared_by_file_without_overlap_or_gap(runs: Runs, stream: str) -> None:
    """Each process tokenised and encoded every second file."""
    folders = [folder.stream_vectors(stream) for folder in runs.folders("embed.streams")]
    one, two = (StreamVectors.open(folder, verify=True) for folder in folders)
    assert [shard.content for shard in one.shards] == [shard.content for shard in two.shards]
    shard_N = np.repeat(np.arange(2), [shard.rows for shard in one.shards])
    row_N = np.concatenate([np.arange(shard.rows) for shard in one.shards])
    np.testing.assert_allclose(two.vectors(shard_N, row_N), one.vectors(shard_N, row_N), atol=1e-3)
    caches = (folder.streams / "align" / stream for folder in runs.folders("embed.streams"))
    ours, theirs = ({path.name: path.read_bytes() for path in cache.iterdir()} for cache in caches)
    assert ours == theirs and len(ours) == 5


def _assert_same_but_for_near_ties(one: list[str], two: list[str], score: dict[str, float]) -> None:
    """PEERS: two lists are the same answer if they differ only between scores that are nearly equal."""
    assert len(one) == len(two)
    for ours, theirs in zip(one, two, strict=True):
        assert ours == theirs or abs(score[ours] - score[theirs]) < 1e-6, (ours, theirs)


@pytest.mark.parametrize("name", ["base", "refine"])
def test_mined_lists_are_those_of_one_process(runs: Runs, name: str) -> None:
    folders = [folder.mined / name for folder in runs.folders(f"mine.{name}")]
    one, two = ([row for _, table in read_tables(folder) for row in table.to_pylist()] for folder in folders)
    assert len(one) == len(two) > 50
    assert read_json(folders[0] / "audit.json")["fell_to"] == read_json(folders[1] / "audit.json")["fell_to"]
    for ours, theirs in zip(one, two, strict=True):
        assert ours["query_id"] == theirs["query_id"]
        score = dict(zip(theirs["document_ids"], theirs["scores"], strict=True))
        score |= dict(zip(ours["document_ids"], ours["scores"], strict=True))
        _assert_same_but_for_near_ties(ours["document_ids"], theirs["document_ids"], score)


def test_hits_and_metrics_are_those_of_one_process(runs: Runs) -> None:
    one, two = runs.folders("evaluate")
    systems = load_recipe(runs.recipe).evaluate.systems
    for system in systems:
        for name in ("report", "test"):
            ours, theirs = (PerQuery.load(folder.evaluations / system / name) for folder in (one, two))
            assert ours.ids == theirs.ids
            for row, (own, other) in enumerate(zip(ours.hits, theirs.hits, strict=True)):
                score = dict(zip(other, theirs.scores[row], strict=False))
                score |= dict(zip(own, ours.scores[row], strict=False))
                _assert_same_but_for_near_ties(own, other, score)
            for metric in ours.metrics:
                np.testing.assert_allclose(theirs.metrics[metric], ours.metrics[metric], atol=1e-6)
    assert (two.root / "evaluations").exists()


def test_one_process_decides_whether_stored_hits_are_judged_again(runs: Runs) -> None:
    """A slower one would find files of before and after, and wait for the other with queries to encode."""
    one, two = RunFolder(runs.one), RunFolder(runs.two / "judged")
    for system in load_recipe(runs.recipe).evaluate.systems:
        ours, theirs = (PerQuery.load(folder.evaluations / system / "test") for folder in (one, two))
        assert list(theirs.metrics) == list(JUDGED) and theirs.ids == ours.ids
        np.testing.assert_allclose(theirs.scores, ours.scores, atol=1e-5)


def test_what_all_processes_call_together(runs: Runs) -> None:
    main, other = (json.loads((runs.two / f"together-{rank}.json").read_text()) for rank in (0, 1))
    assert (main.pop("failed"), other.pop("failed")) == ("RunError", "StoppedError")
    assert main == other
    assert main["searched"] == searched(), "documents parted among processes, hits merged: bit for bit those of one"
    assert "1 query vectors are not finite" in main["refused"] and "[3]" in main["refused"]
    assert main["broadcast"] == {"é": [1, None]} and main["on_main"] == 0 and main["sum"] == [[3.0, 3.0]] * 2
    for count, rows in main["joined"].items():
        assert rows == [[3.0 * row, 3.0 * row + 1, 3.0 * row + 2] for row in range(int(count))]


# ----------------------------------------------------------------------------------------- the controller and its steps


def _wait(until: Any, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, f"waited {seconds} s for: {what}"
        time.sleep(0.05)


def _steps_logged(out: Path) -> int:
    log = RunFolder(out).log("teacher")
    return log.read_text().count('"loss"') if log.exists() else 0


def _saved(out: Path) -> int:
    steps = [int(path.name.removeprefix("step-")) for path in RunFolder(out).checkpoints("teacher").glob("step-*")]
    return max(steps, default=0)


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Any]:
    """Start ``harness run`` over two processes, in a training that would take minutes."""
    recipe = _recipe(tmp_path, steps=100_000, evaluate_every=0)
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "harness", "run", str(recipe), "--output", str(tmp_path / "out"), "--to",
                   "teacher", "--set", "launch.processes={teacher: 2}"]  # fmt: skip
        started.append(subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def test_a_controller_stops_its_step_and_a_killed_one_s_step_stops_by_itself(controller: Any, tmp_path: Path) -> None:
    """SIGTERM, then SIGKILL of the controller alone: in both cases the processes save and leave."""
    out = tmp_path / "out"
    first = controller()
    _wait(lambda: _steps_logged(out) > 3, 90, "the first steps")
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate(timeout=30)
    assert first.returncode == 1 and "the same command goes on" in said and "Traceback" not in said, said
    stopped_at = _saved(out)
    assert stopped_at > 3
    second = controller()
    _wait(lambda: _steps_logged(out) > stopped_at + 3, 90, "going on from there")
    second.kill()
    assert second.wait(10) == -signal.SIGKILL
    _wait(lambda: not is_locked(out, ".step.lock"), 30, "the step of the killed controller to stop")
    assert _saved(out) > stopped_at + 3
