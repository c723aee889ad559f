"""Steps, their keys, and what depends on what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from builders.tiny_run import tiny_tree, write_recipe

from harness.pipeline.controller import _find
from harness.pipeline.launch import check_launch, command, printed, refuse_other_machines
from harness.pipeline.plan import STEPS, VERBS, depends_on, keys, plan, prepared_anew
from harness.recipe import DataSettings, Recipe, load_recipe
from harness.runtime.errors import InputError
from harness.runtime.process import fingerprint

OTHERS = {  # not in the tiny recipe
    "data.slices", "mine.base", "mine.refine", "teacher.streams", "teacher.more", "embed.more", "embed.streams",
    "export.pair", "export.index", "export.onnx", "bench.ann", "embed.outside", "evaluate.outside",
}  # fmt: skip
AFTER_TEACHER = {"teacher", "embed", "student", "align", "refine", "export", "evaluate", "bench", "report"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plan")
    return write_recipe(root, tiny_tree(root))


def _changed(path: Path, *overrides: str) -> set[str]:
    before, after = keys(load_recipe(path), {}), keys(load_recipe(path, overrides), {})
    return {name for name in before if before[name] != after.get(name)}


def test_inputs_come_before_the_steps_that_take_them() -> None:
    names = [step.name for step in STEPS]
    assert len(names) == len(set(names))
    for step in STEPS:
        assert all(names.index(name) < names.index(step.name) for name in step.inputs), step.name


def test_every_setting_that_a_step_names_exists(path: Path) -> None:
    """A misspelt one would be read as one at its default, and never change a key."""
    recipe = load_recipe(path, ["mine.base={}", "mine.refine={}", "teacher.hard_negatives=1"])
    for name in {name for step in STEPS for name in step.settings if " " not in name and name != "teacher.encoder"}:
        part: Any = recipe
        for key in name.split("."):
            part = getattr(part, key)


def test_each_verb_of_a_step_is_a_command() -> None:
    from typer.main import get_command

    from harness.cli import app

    assert set(VERBS) <= set(get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("report.warn_teacher_gain=0.1", {"report"}),
        ("bench.repeats=2", {"bench", "report"}),
        ("bench.k=5", {"bench", "report"}),
        ("bench.price_per_hour=2.5", {"report"}),
        ("evaluate.resamples=300", {"export", "report"}),
        ("evaluate.depth=200", {"evaluate", "report"}),
        ("evaluate.searcher=exact", {"evaluate", "bench", "report"}),
        ("evaluate.metrics=[P@1, Hit@5]", {"evaluate", "report"}),
        ("refine.anchor=2.0", {"refine", "export", "evaluate", "bench", "report"}),
        ("align.texts=[queries]", {step for step in AFTER_TEACHER if step != "teacher"}),
        ("refine.temperature=0.1", {"refine", "export", "evaluate", "bench", "report"}),
        ("student.ridge=0.1", {"student", "align", "refine", "export", "evaluate", "bench", "report"}),
        ("data.hold_out=0.2", {step.name for step in STEPS} - OTHERS),
        ("teacher.lora.rank=4", AFTER_TEACHER),
        ("teacher.lora=null", set()),
        ("align.training.gradient_checkpointing=false", set()),
        ("refine.training.gradient_checkpointing=true", {"refine", "export", "evaluate", "bench", "report"}),
        ("launch.threads=1", set()),
        ("tracking.project=other", set()),
    ],
)
def test_a_changed_setting_changes_what_depends_on_it(path: Path, override: str, expected: set[str]) -> None:
    assert _changed(path, override) == expected


@pytest.mark.parametrize(
    ("override", "made", "expected"),
    [
        ("export.pair=true", "export.pair", {"report"}),
        ("export.index=[npy]", "export.index", {"report"}),
        ("export.onnx=[fp32]", "export.onnx", {"report"}),
        ("export.parity.overlap=0.8", None, {"export", "report"}),
        ("export.system=student-aligned", None, {"export", "report"}),
    ],
)
def test_what_is_exported_beside_the_student_leaves_the_student_where_it_is(
    path: Path, override: str, made: str | None, expected: set[str]
) -> None:
    assert _changed(path, override) == expected
    more = {step.name for step in plan(load_recipe(path, [override]))} - {step.name for step in plan(load_recipe(path))}
    assert more == ({made} if made else set())


def test_every_artefact_is_made_anew_when_what_it_is_made_of_changes(path: Path) -> None:
    everything = ("export={pair: true, index: [npy], onnx: [fp32]}",)
    before = keys(load_recipe(path, everything), {})
    for override, expected in {
        "refine.anchor=2.0": {"export", "export.pair", "export.index", "export.onnx"},
        "export.parity.overlap=0.8": {"export", "export.pair", "export.onnx"},
        "export.index=[npy, parquet]": {"export.index"},
    }.items():
        after = keys(load_recipe(path, [*everything, override]), {})
        changed = {name for name in before if before[name] != after[name]}
        assert {name for name in changed if name.startswith("export")} == expected
        assert "report" in changed


def test_evaluate_waits_for_onnx_files_only_for_the_system_that_is_one(path: Path) -> None:
    systems = "evaluate.systems=[teacher, student-refined{}]"
    for more, reads in (("", False), (", student-int8", True)):
        recipe = load_recipe(path, ["export={onnx: [fp32, int8]}", systems.format(more)])
        (step,) = [step for step in plan(recipe) if step.name == "evaluate"]
        assert ("export.onnx" in step.inputs) == reads
    for wrong, said in (("export.onnx=[fp32]", "add int8 to export.onnx"), ("export=", "add int8 to export.onnx"),
                        ("bench.systems=[teacher, student-refined, student-int8]", "onnx-int8 to bench.engines")):
        with pytest.raises(InputError, match=said):
            load_recipe(path, ["export={onnx: [fp32, int8]}", systems.format(", student-int8"), wrong])


@pytest.mark.parametrize(("engine", "reads"), [(None, False), ("torch-compile", False), ("onnx", True)])
def test_bench_waits_for_onnx_files_only_where_an_engine_runs_them(
    path: Path, engine: str | None, reads: bool
) -> None:
    exported = ["export={onnx: [fp32]}", f"bench.engines=[{engine or ''}]"]
    recipe = load_recipe(path, exported)
    (bench,) = [step for step in plan(recipe) if step.name == "bench"]
    assert ("export.onnx" in bench.inputs) == reads == ("bench" in depends_on("export.onnx", recipe))
    stricter = load_recipe(path, [*exported, "export.parity.overlap=0.8"])
    assert (keys(recipe, {})["bench"] != keys(stricter, {})["bench"]) == reads


def test_the_verb_runs_all_that_is_exported(path: Path) -> None:
    recipe = load_recipe(path, ["export={pair: true, index: [npy], onnx: [fp32]}"])
    assert [step.name for step in _find(recipe, "export")] == ["export", "export.pair", "export.index", "export.onnx"]
    assert [step.name for step in _find(recipe, "export.index")] == ["export.index"]
    assert [step.name for step in _find(recipe, "embed")] == ["embed"]


def test_settings_that_came_later_leave_the_keys_of_older_runs() -> None:
    """The number is that of the first version. It may move only when a step's version rises, for a reason.

    ``bench`` has risen to 2: it searches, and finds the batch sizes itself; to 3: the encoder is timed within the whole
    path, and a batch size that is timed again has that rate. ``report`` has risen to 2: a bar is reached
    where its bound is, and bounds allow for one more group; to 3: what judges a set is in its hash; to 4: the
    ledger branches, latency bars can be undecided, and results.json names its candidate and its method; to 5: bars say
    why they are undecided and of which kind their bounds are, and ``report.bars.stage_gain`` is auto by default.
    ``data`` has risen to 3, but only where it shows: where lines may have both a group and a parallel id, and where
    unlabelled texts are held against evaluations.
    """
    training = {"steps": 10, "batch_size": 4, "learning_rate": 1e-3}
    stages = {name: {"training": training} for name in ("align", "refine")}
    tree = {"name": "old", "data": {"source": "beir", "path": "data"}, **stages}
    recipe = Recipe.model_validate({**tree, "teacher": {"model": "m", "training": training}})
    found = {name: key for name, key in keys(recipe, {}).items() if name not in ("evaluate", "bench", "report")}
    assert fingerprint(found) == "8c6a6256fde74b6bfa84e4bd97ec9968a481ab65fc040c3bcbf284abfcb37ba0"
    named = Recipe.model_validate({**recipe.keyed(), "data": {**tree["data"], "group": "product"}})
    found = {name: key for name, key in keys(named, {}).items() if name not in ("evaluate", "bench", "report")}
    assert fingerprint(found) == "a68f9bc70e479b6cfced881c030b7633c8184460ca4f0deb94b90c902319cfb2", "the first version"
    assert fingerprint(keys(recipe, {})) == "aacdcffe0a2d7b6c393d150978fbb20bfe97701c1420b07bf4a364a0349aef19"


@pytest.mark.parametrize(
    ("data", "anew"),
    [({"source": "emoji"}, False), ({"source": "emoji", "unlabelled": [{"path": "a.txt"}]}, True),
     ({"source": "beir", "path": "a"}, True), ({"source": "beir", "path": "a", "group": "group"}, True),
     ({"source": "beir", "path": "a", "group": "product"}, False),
     ({"source": "pairs", "path": "a"}, True), ({"source": "pairs", "path": "a", "columns": {"group": "g"}}, False)],
)  # fmt: skip
def test_data_is_prepared_anew_where_what_it_means_may_have_changed(data: dict[str, Any], anew: bool) -> None:
    recipe = Recipe.model_construct(data=DataSettings(**data))
    assert prepared_anew(recipe) == ("3" if anew else None)


def test_processes_that_tokenise_stay_out_of_keys_and_storage_types_don_t(path: Path) -> None:
    def key(settings: str) -> str:
        return keys(load_recipe(path, [f"embed={settings}"]), {})["embed"]

    assert key("{workers: 3}") == key("{workers: 0}") == key("{}")
    assert len({key(f"{{dtype: {dtype}}}") for dtype in ("float32", "float16", "bfloat16", "int8")}) == 4


def test_filters_of_mining_that_are_not_set_leave_the_key(path: Path) -> None:
    def key(settings: str) -> str:
        return keys(load_recipe(path, [f"mine.refine={settings}"]), {})["mine.refine"]

    plain = key("{top_k: 9}")
    assert key("{top_k: 9, until: null, margin: null, positive: lowest, pick: top, model_scores: null}") == plain
    others = [key(f"{{top_k: 9, {filter}}}") for filter in ("margin: 0.1", "pick: random", "share: 0.9")]
    assert len({plain, *others}) == 4


def test_a_changed_source_changes_what_reads_it(path: Path) -> None:
    recipe = load_recipe(path)
    before, after = keys(recipe, {"student": 1}), keys(recipe, {"student": 2})
    assert [name for name in before if before[name] != after[name]] == depends_on("student", recipe)


def test_commands_run_a_step_alone(path: Path) -> None:
    recipe: Recipe = load_recipe(path)
    (teacher,) = [step for step in plan(recipe) if step.name == "teacher"]
    inside = command(teacher, Path("r.yaml"), recipe.launch, gpus=0)
    assert inside[1:] == ["-m", "harness", "teacher", "r.yaml", "--only", "teacher"]
    on_gpu = command(teacher, Path("r.yaml"), recipe.launch.model_copy(update={"device": "auto"}), gpus=1)
    assert "accelerate.commands.launch" in on_gpu and on_gpu[on_gpu.index("--num_processes") + 1] == "1"


def _launched(path: Path, *overrides: str, gpus: int = 0) -> dict[str, list[str]]:
    """Each step's command."""
    recipe = load_recipe(path, list(overrides))
    return {step.name: command(step, Path("r.yaml"), recipe.launch, gpus) for step in plan(recipe)}


def _option(words: list[str], name: str) -> str | None:
    return words[words.index(name) + 1] if name in words else None


def test_each_step_has_its_own_launch_settings(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "sharded.yaml"
    file.write_text("distributed_type: FSDP\nnum_machines: 1\nnum_processes: 8\n")
    commands = _launched(path, "launch.device=auto", "launch.processes={teacher: 4, align: 2}",
                         f"launch.accelerate={{teacher: {file}}}", gpus=8)  # fmt: skip
    asked = {name: _option(words, "--num_processes") for name, words in commands.items()}
    assert asked["teacher"] == "4" and asked["align"] == "2" and asked["refine"] == "8", "auto: the visible GPUs"
    assert asked["student"] == asked["bench"] == "1", "one process does them"
    assert str(file) in commands["teacher"] and str(file) not in commands["align"]
    assert "--multi_gpu" in commands["align"] and "--multi_gpu" not in commands["bench"]
    for step in ("data", "export", "report"):
        assert commands[step][1:3] == ["-m", "harness"], "no GPU, no launcher"


def test_several_processes_on_a_cpu_really_are_started(path: Path) -> None:
    """accelerate's flags start one process in silence; torch's launcher starts those that were asked for."""
    commands = _launched(path, "launch.processes=2")
    assert "torch.distributed.run" in commands["align"]
    assert _option(commands["align"], "--nproc_per_node") == "2"
    assert "torch.distributed.run" not in commands["student"]


def test_a_cpu_file_says_how_many_unless_the_recipe_does(path: Path) -> None:
    named = "launch.accelerate={align: recipes/accelerate/cpu2.yaml}"
    assert _option(_launched(path, named, "launch.processes=auto")["align"], "--num_processes") == "2"
    assert _option(_launched(path, named, "launch.processes=3")["align"], "--num_processes") == "3"
    assert _launched(path, named, "launch.processes=auto")["refine"][1:3] == ["-m", "harness"]


def test_a_step_over_several_machines_is_printed_and_not_run(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "wide.yaml"
    file.write_text("distributed_type: MULTI_GPU\nnum_machines: 2\nnum_processes: 16\n")
    recipe = load_recipe(path, [f"launch.accelerate={{teacher: {file}}}", "launch.processes=auto"])
    (teacher,) = [step for step in plan(recipe) if step.name == "teacher"]
    line = printed(command(teacher, Path("r.yaml"), recipe.launch, gpus=8))
    assert "--num_processes 16" in line and '--machine_rank "$MACHINE_RANK"' in line and '"$MAIN_ADDRESS"' in line
    with pytest.raises(InputError, match="this machine only"):
        refuse_other_machines(plan(recipe), recipe.launch)


def test_a_batch_that_can_t_be_shared_out_is_refused_before_any_step(path: Path) -> None:
    with pytest.raises(InputError) as caught:
        check_launch(load_recipe(path, ["launch.processes={align: 3, refine: 5}"]))
    assert [problem.where for problem in caught.value.problems] == [
        "align.training.batch_size", "refine.training.batch_size"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text, said",
    [
        ("mixed_precision: fp16", "sets mixed_precision"),
        ("gradient_accumulation_steps: 4", "sets gradient_accumulation_steps"),
        ("fsdp_config: {gradient_accumulation_steps: 4}", "sets gradient_accumulation_steps"),
        ("[1, 2]", "no mapping"),
        ("a: [", "not readable as YAML"),
        ("num_processes: two", "num_processes is no number"),
        ("num_machines: '2'", "num_machines is no number"),
        ("num_machines: null", "num_machines is no number"),
        ("num_processes: -1", "num_processes is no number"),
    ],
)
def test_an_accelerate_file_that_would_change_what_the_recipe_says_is_refused(
    path: Path, tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=said):
        check_launch(load_recipe(path, [f"launch.accelerate={{align: {file}}}"]))


def test_accelerate_s_own_no_is_accepted(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text("mixed_precision: no\nnum_processes: 2\n")  # YAML reads this as false
    check_launch(load_recipe(path, [f"launch.accelerate={{align: {file}}}", "launch.processes=auto"]))


def test_accelerate_files_belong_to_steps_and_exist(path: Path) -> None:
    recipe = load_recipe(path, ["launch.accelerate={teacher: nowhere.yaml, teecher: r.yaml}"])
    with pytest.raises(InputError) as caught:
        check_launch(recipe)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("processes", ["1", "{align: 1}"])
def test_a_file_that_one_process_would_not_use_is_refused(path: Path, tmp_path: Path, processes: str) -> None:
    file = tmp_path / "zero.yaml"
    file.write_text("distributed_type: DEEPSPEED\nnum_processes: 2\n")
    named = [f"launch.accelerate={{align: {file}}}", "launch.device=cpu"]
    with pytest.raises(InputError, match="one process does not use it") as caught:
        check_launch(load_recipe(path, [*named, f"launch.processes={processes}", "align.training.cached=true"]))
    assert "DEEPSPEED for step 'align'" in str(caught.value), "what the file can't do is told at once"
    for fine in ("auto", "2", "{align: 2, refine: 1}"):
        check_launch(load_recipe(path, [*named, f"launch.processes={fine}"]))
