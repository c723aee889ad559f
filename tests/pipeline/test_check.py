"""`harness check`: what it says of a good recipe, what it refuses, and that it needs no torch."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builders.tiny_run import tiny_tree, write_recipe

from harness.encoders.chain import describe_folder
from harness.pipeline import compute, foresight, surroundings
from harness.pipeline.check import check_recipe, describe_run
from harness.pipeline.controller import run_recipe
from harness.recipe import load_recipe
from harness.runtime.errors import InputError


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("check")
    return write_recipe(root, tiny_tree(root))


def _text(parts: list[object]) -> str:
    from rich.console import Console

    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    for part in parts:
        console.print(part)
    return console.export_text()


def test_check_says_what_a_run_will_do(recipe: Path) -> None:
    text = _text(check_recipe(load_recipe(recipe)))
    loaded = load_recipe(recipe)
    told = describe_folder(Path(loaded.teacher.model or ""))
    assert f"{told['parameters']:,}" in text and "33.3%" in text
    for word in ("40 steps of 32", "memory", "disk", "time here", "fine", "unknown tokens (teacher)"):
        assert word in text, word


def test_check_says_which_steps_compute_in_fp32(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = " ".join(_text(check_recipe(load_recipe(recipe))).split())
    assert {"teacher", "embed"} < set(re.split("[(), ]+", told.split("TFLOP/s in bf16, of 67 in fp32 ")[1]))
    assert "Advice" not in told
    told = " ".join(_text(check_recipe(load_recipe(recipe, ["embed.precision=bf16"]))).split())
    assert "in fp32 (teacher, align, refine)" in told
    monkeypatch.setattr(compute, "usable_gpus", lambda launch: 1)
    told = " ".join(_text(check_recipe(load_recipe(recipe))).split())
    assert "fp32 on a GPU" in told and "embed.precision: bf16" in told and "is many times faster." in told


def test_check_needs_no_torch(recipe: Path) -> None:
    code = "import sys; from harness.cli import app\n"
    code += "try: app(['check', sys.argv[1]])\nexcept SystemExit as e: code = e.code\n"
    code += "assert not code, code; assert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run([sys.executable, "-c", code, str(recipe)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_languages_that_the_tokenizer_cannot_read_are_refused(recipe: Path, tmp_path: Path) -> None:
    from builders.tiny_models import write_tiny_bert

    write_tiny_bert(tmp_path / "stranger", texts=["0 1 2"])
    with pytest.raises(InputError, match=r"does not know 100\.0% of the tokens in 'bb' queries") as caught:
        check_recipe(load_recipe(recipe, [f"teacher.model={tmp_path / 'stranger'}"]))
    assert len(caught.value.problems) == 3, "one for each language, all at once"


def test_a_language_that_looks_like_markup_is_shown_as_it_is(recipe: Path, tmp_path: Path) -> None:
    data = shutil.copytree(str(load_recipe(recipe).data.path), tmp_path / "data")
    queries = Path(data) / "queries.jsonl"
    queries.write_text(queries.read_text().replace('"lang": "bb"', '"lang": "[/red]"'))
    assert "[/red]" in _text(check_recipe(load_recipe(recipe, [f"data.path={data}"])))


def test_all_missing_files_are_named_at_once(recipe: Path) -> None:
    with pytest.raises(InputError) as caught:
        check_recipe(load_recipe(recipe, ["data.path=nowhere", "teacher.model=./no-model"]))
    assert len(caught.value.problems) == 2


def test_an_unreachable_hub_id_is_a_clear_error(recipe: Path) -> None:
    with pytest.raises(InputError, match="some-team/no-such-model"):
        check_recipe(load_recipe(recipe, ["teacher.model=some-team/no-such-model"]))


def test_what_a_later_step_would_refuse_is_refused_first(recipe: Path) -> None:
    overrides = ["student.layers=[1, 9]", "teacher.max_length=4000", "evaluate.sets=[test]", "data.qrels.test=null"]
    with pytest.raises(InputError) as caught:
        check_recipe(load_recipe(recipe, overrides))
    assert "longer than the model's positions" in str(caught.value)
    with pytest.raises(InputError, match="no such layer"):
        check_recipe(load_recipe(recipe, overrides[:1]))
    with pytest.raises(InputError, match="the data has no set 'test'"):
        check_recipe(load_recipe(recipe, overrides[2:]))


def test_a_language_with_the_name_of_a_summary_row_is_refused_before_any_training(recipe: Path, tmp_path: Path) -> None:
    data = shutil.copytree(recipe.parent / "data", tmp_path / "data")
    lines = (data / "queries.jsonl").read_text(encoding="utf-8")
    (data / "queries.jsonl").write_text(lines.replace('"lang": "bb"', '"lang": "macro"'), encoding="utf-8")
    loaded = load_recipe(recipe, [f"data.path={data}"])
    for run in (lambda: check_recipe(loaded), lambda: run_recipe(loaded, tmp_path / "out", last="data")):
        with pytest.raises(InputError, match="a language has the name of a summary row") as caught:
            run()
        problem = next(problem for problem in caught.value.problems if problem.got == "macro")
        assert problem.where.startswith("data: select, query ")


def test_check_warns_of_more_threads_than_cores(recipe: Path) -> None:
    told = _text(check_recipe(load_recipe(recipe, ["bench.threads=6000", "bench.ann={threads: 7000}"])))
    assert "Warning: bench.threads is 6000, and this machine has" in told and "bench.ann.threads is 7000" in told
    assert "cores: threads" not in _text(check_recipe(load_recipe(recipe, ["bench.threads=1"])))


def test_check_tells_what_training_and_test_share(recipe: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(Path(str(load_recipe(recipe).data.path)), data)
    plain = _text(check_recipe(load_recipe(recipe, [f"data.path={data}"])))
    assert "Warning" not in plain
    shutil.copy(data / "qrels" / "train.tsv", data / "qrels" / "test.tsv")
    text = _text(check_recipe(load_recipe(recipe, [f"data.path={data}"])))
    assert "Warning: 432 of 432 queries of test (100.0%) are asked, word for word, in training too." in text


def test_check_tells_of_a_placeholder_that_joins_most_queries(recipe: Path, tmp_path: Path) -> None:
    data = shutil.copytree(Path(str(load_recipe(recipe).data.path)), tmp_path / "data")
    judged = (data / "qrels" / "train.tsv").read_text(encoding="utf-8").splitlines()
    trained = {line.split("\t")[0] for line in judged}
    queries = [json.loads(line) for line in (data / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps(query | ({"parallel_id": "-"} if query["_id"] in trained else {})) for query in queries]
    (data / "queries.jsonl").write_text("\n".join(lines), encoding="utf-8")
    text = _text(check_recipe(load_recipe(recipe, [f"data.path={data}"])))
    assert "Warning: parallel_id '-' joins 432 of 432 queries of train (100.0%) into one group" in text


@pytest.mark.parametrize("place", ["recipe.yaml", "recipe.yaml/out", "/dev/null", "/proc/out"])
def test_a_folder_that_a_run_could_not_write_is_refused(recipe: Path, place: str) -> None:
    for does in (lambda: check_recipe(load_recipe(recipe), output=recipe.parent / place),
                 lambda: run_recipe(load_recipe(recipe), recipe.parent / place)):  # fmt: skip
        with pytest.raises(InputError, match="the output folder can't be written") as caught:
            does()
        assert "choose another with --output DIR" in str(caught.value)


def test_a_folder_of_any_name_is_welcome_and_not_made(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("", "a/b/c"):
        assert "The recipe is fine." in check_recipe(load_recipe(recipe), output=Path(place))
    assert not list(tmp_path.iterdir())


def test_batches_without_padding_are_refused_where_they_can_t_be(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ["align.training.unpadded=true", "teacher.training.unpadded=true", "embed.unpadded=true"]
    check_recipe(load_recipe(recipe, wanted))
    model = Path(shutil.copytree(str(load_recipe(recipe).teacher.model), tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "electra"}))
    with pytest.raises(InputError, match="not tried with this architecture") as caught:
        check_recipe(load_recipe(recipe, [*wanted, f"teacher.model={model}"]))
    found = {problem.where for problem in caught.value.problems}
    assert found == {"teacher.training.unpadded", "align.training.unpadded", "embed.unpadded"}
    monkeypatch.setattr(surroundings, "usable_gpus", lambda launch: 1)
    for dropout, got in (("0.1", "dropout: 0.1"), ("0", "precision: fp32")):
        with pytest.raises(InputError, match="16 bits and without dropout") as caught:
            check_recipe(load_recipe(recipe, [wanted[0], "launch.device=auto", f"align.training.dropout={dropout}"]))
        assert [problem.got for problem in caught.value.problems] == [got]
    with pytest.raises(InputError, match="computes in 16 bits") as caught:
        check_recipe(load_recipe(recipe, [wanted[2], "launch.device=auto"]))
    assert [problem.where for problem in caught.value.problems] == ["embed.unpadded"]


def test_a_gpu_that_is_asked_for_and_not_there_is_refused(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "usable_gpus", lambda launch: 0)
    with pytest.raises(InputError, match="no GPU is visible"):
        check_recipe(load_recipe(recipe, ["launch.device=cuda"]))


def test_what_does_not_fit_this_machine_is_described_and_refused(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foresight, "total_memory", lambda: 1000)
    monkeypatch.setattr(surroundings, "usable_gpus", lambda launch: 0)
    tables = [" models ", " steps ", " estimates ", " data (beir)"]
    parts, error = describe_run(load_recipe(recipe, ["launch.device=cuda"]), output=tmp_path / "out")
    text = _text(parts)
    assert all(table in text for table in tables) and "GPU hours" in text and "The recipe is fine" not in text
    told = str(error)
    assert "no GPU is visible" in told and told.count("not enough memory") == 1, "all at once, each once"
    parts, error = describe_run(load_recipe(recipe, ["data.path=nowhere"]), output=tmp_path / "out")
    assert [table in _text(parts) for table in tables] == [True, True, False, False] and "nowhere" in str(error)
    with pytest.raises(InputError, match="not enough memory"):
        check_recipe(load_recipe(recipe), output=tmp_path / "out")
