"""What a run needs of disk and memory: by hand, against what a run writes, and when it is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from builders.tiny_run import tiny_tree, write_recipe

from harness.pipeline import foresight, machine
from harness.pipeline.check import check_recipe
from harness.pipeline.controller import run_recipe
from harness.pipeline.folder import RunFolder
from harness.pipeline.foresight import foresee
from harness.pipeline.needs import needs, size_text
from harness.pipeline.plan import plan
from harness.pipeline.sizes import Counts, Model, counts_of, models_of
from harness.recipe import Recipe, dump_recipe, load_recipe
from harness.runtime.errors import InputError, StaleArtefactError

MODEL = Model(parameters=1000, body=600, layers=2, hidden=10, heads=2, dimension=10)
ALL = ("data", "embed.base", "teacher", "embed", "student", "align", "refine", "export", "evaluate")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_tree(tmp_path_factory.mktemp("foresight"))


def _recipe(tmp_path: Path, tree: dict[str, Any], *overrides: str) -> Recipe:
    return load_recipe(write_recipe(tmp_path, tree), overrides)


def test_needs_by_hand(tmp_path: Path, tree: dict[str, Any]) -> None:
    recipe = _recipe(tmp_path, tree, "align.training.token_table=frozen", "align.training.keep=last",
                     "embed.dtype=float16", "align.texts=[queries]")  # fmt: skip
    counts = Counts(documents=100, queries=50, evaluated=20, text_bytes=5_000, tokens={"query": 4, "document": 8})
    found = needs(recipe, {"teacher": MODEL, "student": MODEL}, counts)
    assert found["embed"].disk == {"vectors": (100 + 50) * 10 * 2, "index": 100 * 10 * 4}
    assert found["teacher"].disk == {"model": 4_000, "checkpoints": 16 * 1000}, "weights, two moments, the best"
    assert found["align"].disk == {"model": 4_000, "checkpoints": 12 * 600}, "the token table rests, no best is kept"
    assert found["teacher"].memory["gradients and moments"] == 12_000
    assert found["evaluate"].disk == {"hits": 4 * 5 * 100 * 20}
    rows, tokens = 32, 4  # of the alignment's batch
    # A token of a layer in fp32: 8 tensors of 10 numbers, 2 of 40, and two heads' scores of 4 tokens; 2 of 10 outside.
    of_token = 2 * (8 * 10 + 2 * 40 + 2 * tokens) + 2 * 10
    assert found["align"].activations == rows * tokens * 4 * of_token
    assert found["align"].memory["activations"] < found["align"].activations


@pytest.mark.parametrize(("dtype", "row"), [("float32", 40), ("float16", 20), ("bfloat16", 20), ("int8", 14)])
def test_vectors_take_what_their_type_takes(tmp_path: Path, tree: dict[str, Any], dtype: str, row: int) -> None:
    recipe = _recipe(tmp_path, tree, f"embed.dtype={dtype}", "align.texts=[queries]")
    counts = Counts(documents=100, queries=50, tokens={"query": 4, "document": 8})
    need = needs(recipe, {"teacher": MODEL, "student": MODEL}, counts)["embed"]
    assert need.disk == {"vectors": (100 + 50) * row, "index": 100 * 10 * 4}


def test_needs_of_adapters_by_hand(tmp_path: Path, tree: dict[str, Any]) -> None:
    """A model of 4 blocks whose linear layers are 32 x 32 (four), 32 x 64 and 64 x 32."""
    recipe = _recipe(tmp_path, tree, "teacher.lora.rank=2", "teacher.training.gradient_checkpointing=true")
    models, counts = models_of(recipe), Counts(queries=50, tokens={"query": 4, "document": 8})
    trained = 4 * 2 * (4 * (32 + 32) + 2 * (32 + 64))
    assert (models["teacher"].adapters, models["student"].adapters) == (trained, 0)
    need = needs(recipe, models, counts)["teacher"]
    parameters = models["teacher"].parameters
    assert need.disk == {"model": 4 * parameters, "checkpoints": 16 * trained}
    assert need.memory["weights"] == 4 * (parameters + trained)
    assert need.memory["gradients and moments"] == 12 * trained
    # Of every block its input; of one block, for one of two chunks, 8 tensors of 32 numbers, 2 of 64, scores, and 2 of
    # each of 6 adapters; 2 of 32 outside.
    blocks = {tokens: 32 * tokens * 4 * (8 * 32 + 2 * 64 + 2 * tokens + 2 * 6) for tokens in (4, 8)}
    inputs = {tokens: 32 * tokens * 4 * 32 for tokens in (4, 8)}
    assert need.activations == sum(6 * inputs[tokens] + blocks[tokens] / 2 for tokens in (4, 8))
    assert need.memory["activations"] == sum(4 * 2 * 32 * tokens * 32 for tokens in (4, 8)), "2 bytes a number at least"


def test_the_estimate_is_less_than_a_run_writes_and_most_of_it(tmp_path: Path, tree: dict[str, Any]) -> None:
    short = [f"{stage}.training.steps=2" for stage in ("teacher", "align", "refine")]
    recipe = _recipe(tmp_path, tree, *short, "bench=null")
    before = needs(recipe, models_of(recipe), counts_of(recipe, tmp_path / "out" / "data"))
    run_recipe(recipe, tmp_path / "out", last="refine")
    after = needs(recipe, models_of(recipe), counts_of(recipe, tmp_path / "out" / "data"))
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and "evaluations" not in path.parts]
    written = sum(path.stat().st_size for path in files)  # evaluations are counted with the step of that name
    steps = ALL[: ALL.index("refine") + 1]
    sure, known = (sum(sum(found[step].disk.values()) for step in steps) for found in (before, after))
    assert sure < known < written < 1.5 * known, (sure, known, written)


def test_steps_that_are_done_need_nothing(
    tmp_path: Path, tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, folder = _recipe(tmp_path, tree), RunFolder(tmp_path / "out")
    monkeypatch.setattr(foresight, "free_disk", lambda path: 10)
    monkeypatch.setattr(foresight, "total_memory", lambda: 200_000)
    with pytest.raises(InputError, match="not enough disk"):
        foresee(recipe, folder, ["export"])
    foresee(recipe, folder, [])
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(foresight, "free_disk", lambda path: 10**9)
    with pytest.raises(InputError, match="not enough memory: step 'teacher'") as caught:
        foresee(recipe, folder, ["export", "teacher"])
    (problem,) = caught.value.problems
    assert problem.got == "200 KB in all" and "gradients and moments 524 KB" in problem.allowed
    assert "lower batch_size" in problem.next and "teacher.lora" in problem.next
    monkeypatch.setattr(foresight, "total_memory", lambda: 1000)
    with pytest.raises(InputError, match="not enough memory: step 'embed'") as caught:
        foresee(recipe, folder, ["embed"])
    (problem,) = caught.value.problems
    assert "a machine with more" in problem.next and "lower batch_size" not in problem.next


def test_data_that_turns_out_larger_is_refused_before_anything_is_trained(
    tmp_path: Path, tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, data = _recipe(tmp_path, tree), tmp_path / "out" / "data"
    sure = sum(sum(need.disk.values()) for need in needs(recipe, models_of(recipe), counts_of(recipe, data)).values())
    monkeypatch.setattr(foresight, "free_disk", lambda path: sure + 50_000)
    with pytest.raises(InputError, match="not enough disk"):
        run_recipe(recipe, tmp_path / "out")
    assert (data / "data.json").is_file() and not (tmp_path / "out" / "teacher").exists()


def test_a_tight_machine_is_warned_of(
    tmp_path: Path, tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = _recipe(tmp_path, tree)
    monkeypatch.setattr(foresight, "free_disk", lambda path: 110_000)
    monkeypatch.setattr(foresight.logger, "propagate", True)
    foresee(recipe, RunFolder(tmp_path / "out"), ["export"])
    assert "disk is tight: the run writes about 106 KB, 110 KB are free" in caplog.text
    monkeypatch.setattr(foresight, "total_memory", lambda: 240_000)
    monkeypatch.setattr(foresight, "free_disk", lambda path: 10**9)
    foresee(recipe, RunFolder(tmp_path / "out"), ["embed.base"])
    assert "memory is tight: step embed.base may take 212 KB of 240 KB" in caplog.text


def test_what_a_gpu_holds_is_not_asked_of_the_machine(
    tmp_path: Path, tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, folder = _recipe(tmp_path, tree), RunFolder(tmp_path / "out")
    monkeypatch.setattr(foresight, "total_memory", lambda: 200_000)
    monkeypatch.setattr(foresight, "usable_gpus", lambda launch: 2)
    monkeypatch.setattr(foresight, "gpu_memory", lambda launch: 10**9)
    foresee(recipe, folder, ["teacher"])
    monkeypatch.setattr(foresight, "gpu_memory", lambda launch: 500_000)
    with pytest.raises(InputError, match="a GPU: not enough memory: step 'teacher'"):
        foresee(recipe, folder, ["teacher"])


def test_the_limit_of_a_control_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = machine.total_memory()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "above").write_text("123456789\n")
    monkeypatch.setattr(machine, "_limit_files", lambda: [tmp_path / "memory.max", tmp_path / "none"])
    assert machine.total_memory() >= whole
    monkeypatch.setattr(machine, "_limit_files", lambda: [tmp_path / "memory.max", tmp_path / "above"])
    assert machine.total_memory() == 123456789


def test_free_disk_is_that_of_the_nearest_folder(tmp_path: Path) -> None:
    assert machine.free_disk(tmp_path / "a" / "b" / "c") > 0


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (1500, "1.5 KB"), (25e9, "25 GB"), (3.2e15, "3200 TB")])
def test_sizes_as_text(size: float, text: str) -> None:
    assert size_text(size) == text


def test_nothing_is_promised_of_sources_that_only_reading_tells(tmp_path: Path, tree: dict[str, Any]) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"query": "a", "positive": "b"}) + "\n")
    pairs = _recipe(tmp_path, {**tree, "data": {"source": "pairs", "path": str(path)}})
    assert counts_of(pairs, tmp_path / "none") == Counts()
    told = counts_of(_recipe(tmp_path, tree), tmp_path / "none")
    assert told.documents == pytest.approx(60) and told.text_bytes > 0, "half of what the first lines promise"


def _write(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"0" * size)


def _needed(recipe: Recipe, out: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(foresight, "free_disk", lambda path: 0)
    with pytest.raises(InputError, match="not enough disk") as caught:
        foresee(recipe, RunFolder(out), [step])
    return caught.value.problems[0].what


def test_only_what_a_step_goes_on_with_needs_no_more_room(
    tmp_path: Path, tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = _recipe(tmp_path, tree), tmp_path / "out"
    refine, embed = (_needed(recipe, out, step, monkeypatch) for step in ("refine", "embed"))
    for name in ("foreign", "teacher/model.safetensors", "student/refined/model.safetensors", "index/part-00000.faiss",
                 "checkpoints/align/step-00000001/model.safetensors", "data/old.jsonl"):  # fmt: skip
        _write(out / name, 10**6)
    assert _needed(recipe, out, "refine", monkeypatch) == refine, "what others wrote, and what is written anew"
    assert _needed(recipe, out, "embed", monkeypatch) == embed
    holes = out / "checkpoints" / "refine" / "holes"
    holes.parent.mkdir(parents=True)
    holes.touch()
    os.truncate(holes, 10**10)
    assert _needed(recipe, out, "refine", monkeypatch) == refine, "a file with holes takes no room"
    _write(out / "checkpoints" / "refine" / "step-00000001" / "model.safetensors", 10**7)
    models = models_of(recipe)
    assert _needed(recipe, out, "refine", monkeypatch).endswith(f" {size_text(4 * models['student'].parameters)}")
    _write(out / "vectors" / "documents.partial" / "shard-00000.npy", 10**7)
    dimension = models["teacher"].dimension
    index = counts_of(recipe, None).documents * dimension * 4
    assert _needed(recipe, out, "embed", monkeypatch).endswith(f" {size_text(index)}")


def test_nothing_outside_the_runs_own_folders_is_walked(
    tmp_path: Path, tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(tmp_path, tree)
    walked: list[Path] = []
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda path: walked.append(Path(path)) or walk(path))  # type: ignore[func-returns-value]
    foresee(recipe, RunFolder(Path("/")), [step.name for step in plan(recipe)])
    owned = {Path("/vectors"), Path("/checkpoints"), Path("/evaluations"), Path("/streams")}
    assert walked and not [path for path in walked if not owned & {path, *path.parents}]


def test_hits_are_no_more_than_the_documents(tmp_path: Path, tree: dict[str, Any]) -> None:
    deep = _recipe(tmp_path, tree, "evaluate.depth=100000000")
    counts = Counts(documents=120, evaluated=288)
    assert needs(deep, {"teacher": MODEL}, counts)["evaluate"].disk == {"hits": 4 * 5 * 120 * 288}


def test_damaged_data_is_named_and_not_read_where_it_is_made_anew(tmp_path: Path, tree: dict[str, Any]) -> None:
    recipe, folder = _recipe(tmp_path, tree), RunFolder(tmp_path / "out")
    folder.data.mkdir(parents=True)
    for name, content in {"data.json": "{}", "queries.jsonl": "", "corpus.jsonl": '{"text'}.items():
        (folder.data / name).write_text(content)
    with pytest.raises(StaleArtefactError, match=r"the prepared data is damaged[\s\S]*--from data"):
        foresee(recipe, folder, ["teacher"])
    foresee(recipe, folder, ["data", "teacher"])
    dump_recipe(recipe, folder.recipe)
    check_recipe(recipe, output=folder.root)


def test_what_a_killed_run_left_takes_no_room(
    tmp_path: Path, tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "out" / ".index.77.ab.tmp"
    left.mkdir(parents=True)
    monkeypatch.setattr(foresight, "free_disk", lambda path: 0 if left.exists() else 10**12)
    assert run_recipe(_recipe(tmp_path, tree), tmp_path / "out", last="data")[1] == ["data"]
