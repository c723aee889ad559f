"""The README's commands run, on a model and data made in memory; its make targets exist; its map is true."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from builders.tiny_run import write_tiny_inputs
from typer.testing import CliRunner

from harness.cli import app


@pytest.fixture
def repository() -> Path:
    return Path(__file__).resolve().parents[1]


def _blocks(repository: Path) -> list[str]:
    text = (repository / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def _commands(repository: Path, program: str) -> list[list[str]]:
    everything = "\n".join(_blocks(repository)).splitlines()
    lines = [line for line in everything if line.startswith(f"{program} ")]
    return [shlex.split(line, comments=True) for line in lines]


def _tiny(root: Path) -> list[str]:
    """Overrides that turn the quickstart's recipe into a run of seconds."""
    inputs = write_tiny_inputs(root)
    stages = ("teacher", "align", "refine")
    values = [
        "data.source=beir", f"data.path={inputs['data']}", "data.languages=null", "teacher.sha256=null",
        f"teacher.model={inputs['model']}", "student.layers=[1, 4]", "evaluate.resamples=100",
        "bench.queries_per_language=2",
        *(f"{stage}.training.{key}" for stage in stages for key in ("steps=2", "batch_size=8")),
    ]  # fmt: skip
    return [word for value in values for word in ("--set", value)]


def test_every_command_of_the_readme_runs(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = _commands(repository, "harness")
    assert {command[1] for command in commands} >= {"run", "check", "search", "make-emoji"}
    pytest.importorskip("emoji")
    tiny = _tiny(tmp_path)
    shutil.copytree(repository / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    first = ["harness", "run", "recipes/quickstart.yaml"]  # what `make quickstart` runs
    for command in [first, *commands]:
        overrides = tiny if any(word.endswith(".yaml") for word in command) else []
        if "--trec" in command:  # the reader's own recipe and runs
            shutil.copy("recipes/quickstart.yaml", "recipes/mine.yaml")
            overrides = [*tiny, "--output", "outputs/quickstart"]
        if "--compare" in command:
            for name in ("a", "b"):
                shutil.copytree("outputs/quickstart", f"outputs/{name}")
        if "--labels" in command:
            graded = Path("pool.tsv").read_text(encoding="utf-8").splitlines()
            place = graded[0].split("\t").index("grade")
            rows = [line.split("\t") for line in graded[1:]]
            lines = ["\t".join([*row[:place], "0", *row[place + 1 :]]) for row in rows]
            Path("pool.tsv").write_text("\n".join([graded[0], *lines, ""]), encoding="utf-8")
        done = runner.invoke(app, [*command[1:], *overrides], catch_exceptions=False)
        assert done.exit_code == 0, (command, done.output)
    assert (tmp_path / "outputs/quickstart/report.html").exists()
    assert (tmp_path / "outputs/emoji/corpus.jsonl").exists()


def test_the_make_targets_of_the_readme_exist(repository: Path) -> None:
    targets = {command[1] for command in _commands(repository, "make")}
    assert {"quickstart", "test"} <= targets
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_map_names_every_room(repository: Path) -> None:
    (house,) = [block for block in _blocks(repository) if block.startswith("harness/\n")]
    named = set(re.findall(r"^  (\w+(?:\.py)?)/? ", house, re.MULTILINE))
    rooms = {path.name for path in (repository / "harness").iterdir() if not path.name.startswith("__")}
    assert named == rooms


def test_the_links_of_the_readme_lead_somewhere(repository: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (repository / "README.md").read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (repository / link).exists()] == []
