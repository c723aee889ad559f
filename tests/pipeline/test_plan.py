"""Steps, their keys, and what depends on what."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders.tiny_run import tiny_tree, write_recipe

from harness.pipeline.launch import check_launch, command
from harness.pipeline.plan import STEPS, VERBS, depends_on, keys, plan
from harness.recipe import Recipe, load_recipe
from harness.runtime.errors import InputError

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


def test_each_verb_of_a_step_is_a_command() -> None:
    from typer.main import get_command

    from harness.cli import app

    assert set(VERBS) <= set(get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("report.warn_teacher_gain=0.1", {"report"}),
        ("bench.repeats=2", {"bench", "report"}),
        ("evaluate.resamples=300", {"report"}),
        ("evaluate.depth=200", {"evaluate", "report"}),
        ("refine.anchor=2.0", {"refine", "export", "evaluate", "bench", "report"}),
        ("align.texts=[queries]", {step for step in AFTER_TEACHER if step != "teacher"}),
        ("refine.temperature=0.1", {"refine", "export", "evaluate", "bench", "report"}),
        ("student.ridge=0.1", {"student", "align", "refine", "export", "evaluate", "bench", "report"}),
        ("data.hold_out=0.2", {step for step in [s.name for s in STEPS] if "mine" not in step and "more" not in step}),
        ("launch.threads=1", set()),
        ("tracking.project=other", set()),
    ],
)
def test_a_changed_setting_changes_what_depends_on_it(path: Path, override: str, expected: set[str]) -> None:
    assert _changed(path, override) == expected


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


def test_accelerate_files_belong_to_steps_and_exist(path: Path) -> None:
    recipe = load_recipe(path, ["launch.accelerate={teacher: nowhere.yaml, teecher: r.yaml}"])
    with pytest.raises(InputError) as caught:
        check_launch(recipe)
    assert len(caught.value.problems) == 3
