"""Stale, foreign and damaged artefacts: each is refused before any step begins, and named.

A row damages one thing in the folder of a run (finished, or stopped in the alignment), gives a command line, and says
what must be told. Nothing in the folder may change through the refusal.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from builders.killed import Ended, Fault, Zygote
from builders.whole import differences

from harness.runtime.process import folder_lock, read_json


@dataclass
class Place:
    """The folder of a run, to be damaged, its recipe, and the folder of another run."""

    recipe: Path
    out: Path
    other: Path

    def command(self, verb: str, *flags: str) -> list[str]:
        return [verb, str(self.recipe), "--output", str(self.out), *flags]


def flip(path: Path) -> None:
    """Change one bit in the middle, and set the time back: only the content, and ctime, tell."""
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**read_json(path), **values}), encoding="utf-8")


def unseal(path: Path, without: str = "") -> None:
    """A manifest without its sha256, and its steps without one of their parts."""
    told = read_json(path)
    steps = {name: {part: value for part, value in step.items() if part != without}
             for name, step in told["steps"].items()}  # fmt: skip
    del told["sha256"]
    path.write_text(json.dumps({**told, "steps": steps}), encoding="utf-8")


def from_other(place: Place, name: str) -> None:
    """What another run has there, in the place of ours."""
    target = place.out / name
    if target.is_dir():
        shutil.rmtree(target)
        shutil.copytree(place.other / name, target)
    else:
        shutil.copy2(place.other / name, target)


def change_recipe(place: Place) -> None:
    path = place.out / "recipe.resolved.yaml"
    path.write_text(path.read_text().replace("resamples: 100", "resamples: 200"))


def change_document(place: Place) -> None:
    corpus = Path(yaml.safe_load(place.recipe.read_text())["data"]["path"]) / "corpus.jsonl"
    lines = corpus.read_text().splitlines(keepends=True)
    corpus.write_text("".join([lines[0].replace('"text": "', '"text": "bado '), *lines[1:]]))


SHARD, WEIGHTS = "vectors/documents/shard-00001.npy", "model.safetensors"
PARTS = "model-00000-of-00001.safetensors"


@dataclass(frozen=True)
class Row:
    """``damage`` something; ``file`` and ``says`` must be told.

    ``stopped``: in the folder of an unfinished run. ``begins``: the step that reads it and may have begun.
    """

    id: str
    damage: Callable[[Place], object]
    file: str
    says: str
    verb: str = "run"
    flags: tuple[str, ...] = ()
    stopped: bool = False
    begins: str = ""


WROTE = "the file is not what step {} wrote"

ROWS = (
    # vectors
    Row("shard truncated", lambda p: truncate(p.out / SHARD), SHARD, WROTE.format("'embed'")),
    Row("shard flipped, time set back", lambda p: flip(p.out / SHARD), SHARD, WROTE.format("'embed'")),
    Row("shard flipped, a later step to run", lambda p: flip(p.out / SHARD), SHARD, WROTE.format("'embed'"),
        flags=("--from", "refine")),
    Row("shard flipped, a verb alone", lambda p: flip(p.out / SHARD), SHARD, WROTE.format("'embed'"), verb="align"),
    Row("ids flipped", lambda p: flip(p.out / "vectors/queries/ids-00000.json"), "ids-00000.json",
        WROTE.format("'embed'")),
    Row("manifest of another store", lambda p: from_other(p, "vectors/documents/manifest.json"),
        "vectors/documents/manifest.json", WROTE.format("'embed'")),
    Row("another run's store", lambda p: from_other(p, "vectors/queries"), "vectors/queries/", WROTE.format("'embed'")),
    Row("index of another store", lambda p: from_other(p, "index"), "index/manifest.json", WROTE.format("'embed'")),
    Row("index flipped, a search", lambda p: flip(p.out / "index/part-00000.faiss"), "index/part-00000.faiss",
        WROTE.format("'embed'"), verb="search"),
    Row("mined in another run", lambda p: from_other(p, "mined/refine"), "mined/refine/part-00000.parquet",
        WROTE.format("'mine.refine'")),
    # models
    Row("a student of another space", lambda p: from_other(p, "student/refined"), "student/refined/model.safetensors",
        WROTE.format("'refine'")),
    Row("a student of another space, a search", lambda p: from_other(p, "student/refined"), "student/refined/",
        WROTE.format("'refine'"), verb="search"),
    Row("the teacher of another run", lambda p: from_other(p, "teacher"), "teacher/model.safetensors",
        WROTE.format("'teacher'")),
    Row("weights flipped", lambda p: flip(p.out / "student/aligned" / WEIGHTS), WEIGHTS, WROTE.format("'align'")),
    Row("weights truncated", lambda p: truncate(p.out / "teacher" / WEIGHTS), WEIGHTS, WROTE.format("'teacher'")),
    Row("config edited", lambda p: edit(p.out / "student/cut/config.json", hidden_act="relu"), "cut/config.json",
        WROTE.format("'student'")),
    Row("tokenizer edited", lambda p: flip(p.out / "teacher/tokenizer.json"), "tokenizer.json",
        WROTE.format("'teacher'")),
    Row("export edited", lambda p: flip(p.out / "export/student" / WEIGHTS), "export/student",
        WROTE.format("'export'")),
    # data and what was found
    Row("prepared data edited", lambda p: flip(p.out / "data/queries.jsonl"), "data/queries.jsonl",
        WROTE.format("'data'")),
    Row("prepared data edited, a search", lambda p: flip(p.out / "data/corpus.jsonl"), "data/corpus.jsonl",
        WROTE.format("'data'"), verb="search"),
    Row("documents changed", change_document, "", "", verb="align"),
    Row("evaluation edited", lambda p: flip(p.out / "evaluations/teacher/test/per_query.parquet"), "per_query.parquet",
        WROTE.format("'evaluate'")),
    Row("query vectors flipped", lambda p: flip(p.out / "evaluations/teacher/test/query_vectors.npy"),
        "query_vectors.npy", WROTE.format("'evaluate'"), flags=("--from", "report")),
    Row("results edited", lambda p: edit(p.out / "results.json", reference="student"), "results.json",
        WROTE.format("'report'")),
    Row("a log damaged", lambda p: truncate(p.out / "logs/align.jsonl"), "logs/align.jsonl", "the log is damaged",
        flags=("--from", "report"), begins="report"),
    # the run's own notes
    Row("manifest truncated", lambda p: truncate(p.out / "manifest.json"), "manifest.json", "not readable as JSON"),
    Row("manifest not JSON", lambda p: (p.out / "manifest.json").write_text("steps:"), "manifest.json",
        "not readable as JSON"),
    Row("manifest of a newer version", lambda p: edit(p.out / "manifest.json", schema=99), "manifest.json",
        "not of this version"),
    Row("manifest edited", lambda p: edit(p.out / "manifest.json", steps={}), "manifest.json", "edited or damaged"),
    Row("manifest without its seal", lambda p: unseal(p.out / "manifest.json"), "manifest.json", "edited or damaged"),
    Row("manifest without its seal, a step without a key", lambda p: unseal(p.out / "manifest.json", "key"),
        "manifest.json", "edited or damaged", verb="search"),
    Row("manifest a list", lambda p: (p.out / "manifest.json").write_text("[]"), "manifest.json",
        "not of this version"),
    Row("resolved recipe edited", change_recipe, "recipe.resolved.yaml", "not as the run wrote it"),
    Row("resolved recipe edited, a search", change_recipe, "recipe.resolved.yaml", "not as the run wrote it",
        verb="search"),
    # checkpoints
    Row("checkpoint of another recipe", lambda p: None, "checkpoints/align", "under other settings", stopped=True,
        flags=("--set", "align.training.learning_rate=2e-3")),
    Row("checkpoint of another seed, earlier steps to run", lambda p: None, "checkpoints/align", "under other settings",
        stopped=True, flags=("--set", "seed=9")),
    Row("checkpoint of another run", lambda p: from_other(p, "checkpoints/align"), "checkpoints/align",
        "under other settings", stopped=True),
    Row("checkpoint truncated", lambda p: truncate(p.out / "checkpoints/align/step-00000002" / PARTS), PARTS, "damaged",
        stopped=True, begins="align"),
    Row("checkpoint flipped", lambda p: flip(p.out / "checkpoints/align/step-00000002" / PARTS), PARTS, "damaged",
        stopped=True, begins="align"),
    Row("checkpoint's state flipped", lambda p: flip(p.out / "checkpoints/align/step-00000002/state.json"),
        "checkpoints/align/step-00000002/state.json", "", stopped=True),
    Row("best weights flipped", lambda p: flip(p.out / "checkpoints/align/best" / PARTS), "checkpoints/align/best",
        "damaged", stopped=True, begins="align"),
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(
    zygote: Zygote, recipe: Path, uninterrupted: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The finished run, one that was stopped in its alignment, and one of another seed."""
    root = tmp_path_factory.mktemp("damage")
    made = {"finished": uninterrupted, "stopped": root / "stopped", "other": root / "other"}
    stop = Fault("best", "save", act="TERM")
    command = ["run", str(recipe), "--output", str(made["stopped"])]
    assert zygote.run([*command, "--to", "student"], made["stopped"]).code == 0
    ended = zygote.run(command, made["stopped"], stop)
    assert ended.code == 1 and "align: stopped after step 2" in ended.log, ended.log
    other = zygote.run(["run", str(recipe), "--output", str(made["other"]), "--set", "seed=4"], made["other"])
    assert other.code == 0, other.log
    return made


@pytest.fixture
def place(
    folders: dict[str, Path], recipe: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Place]:
    """A copy of a run; its data is put back after the test."""
    stopped = getattr(request, "param", False)
    shutil.copytree(folders["stopped" if stopped else "finished"], tmp_path / "out")
    shutil.copytree(recipe.parent / "data", tmp_path / "data")
    yield Place(recipe, tmp_path / "out", folders["other"])
    shutil.copytree(tmp_path / "data", recipe.parent / "data", dirs_exist_ok=True)


def state(out: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file but locks and the manifest (which notes the times of a copy)."""
    files = [path for path in out.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.parent != out
    }


def assert_refused(ended: Ended, file: str, says: str, begins: str = "") -> None:
    assert ended.code == 2, ended.log
    assert "Traceback" not in ended.log, ended.log
    begun = [line[2:] for line in ended.log.splitlines() if line.startswith("> ")]
    assert begun in ([], [begins]), f"a step had begun:\n{ended.log}"
    for text in (file, says, "next: "):
        assert text in ended.log, f"{text!r} is not in\n{ended.log}"


@pytest.mark.parametrize(("row", "place"), [(row, row.stopped) for row in ROWS], ids=[row.id for row in ROWS],
                         indirect=["place"])  # fmt: skip
def test_refused_before_work_begins(zygote: Zygote, row: Row, place: Place) -> None:
    row.damage(place)
    before = state(place.out)
    command = place.command(row.verb, *row.flags) if row.verb != "search" else ["search", str(place.out), "bado"]
    assert_refused(zygote.run(command, place.out), row.file, row.says, row.begins)
    assert state(place.out) == before


def test_an_undamaged_copy_goes_on(zygote: Zygote, place: Place) -> None:
    """Else every row above would prove nothing. It is read once: then the manifest knows the copy's times."""
    ended = zygote.run(place.command("run"), place.out)
    assert ended.code == 0 and "nothing ran" in ended.log, ended.log
    for step in read_json(place.out / "manifest.json")["steps"].values():
        for name, (_, modified, _, changed) in step["outputs"].items():
            assert (place.out / name).stat().st_mtime_ns == modified
            assert (place.out / name).stat().st_ctime_ns == changed
    assert zygote.run(["search", str(place.out), "bado"], place.out).code == 0


def test_only_what_the_run_left_is_cleared_away(zygote: Zygote, place: Place) -> None:
    """A user's temporary files, in the folder or below it, are not the run's."""
    kept = [place.out / ".editor.tmp", place.out / "notes" / ".draft.tmp"]
    left = [place.out / name for name in (".results.json.77.tmp", "student/.refined.77.1234.tmp", ".step.a.tmp")]
    for path in (*kept, *left):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert zygote.run(place.command("run"), place.out).code == 0
    assert all(path.exists() for path in kept) and not any(path.exists() for path in left)


def test_one_run_in_a_folder(zygote: Zygote, place: Place) -> None:
    with folder_lock(place.out):
        for flags in ((), ("--set", "seed=9")):
            ended = zygote.run(place.command("run", *flags), place.out)
            assert_refused(ended, str(place.out), "another run works in this folder")
            assert f"process {os.getpid()}" in ended.log


def test_a_folder_that_cannot_be_written(zygote: Zygote, place: Place) -> None:
    below = place.recipe / "out"  # below a file
    ended = zygote.run(["run", str(place.recipe), "--output", str(below)], below)
    assert_refused(ended, str(below), "can't be written")
    mounted = subprocess.run(["mount", "--bind", "-o", "ro", str(place.out), str(place.out)], capture_output=True)
    if mounted.returncode:
        place.out.chmod(0o500)
        if os.access(place.out, os.W_OK):
            pytest.skip("this user may write anywhere, and mount nothing")
    try:
        assert_refused(zygote.run(place.command("run", "--from", "report"), place.out), str(place.out), "written")
    finally:
        if mounted.returncode:
            place.out.chmod(0o700)
        else:
            subprocess.run(["umount", str(place.out)], check=True)


LOST = (
    "student/refined/model.safetensors", "data/queries.jsonl", "mined", "evaluations/teacher/test/per_query.parquet",
    "evaluations/teacher/report/query_vectors.npy", "report.html", "manifest.json", "recipe.resolved.yaml",
)  # fmt: skip


@pytest.mark.parametrize("name", LOST)
def test_what_is_missing_is_made_again(zygote: Zygote, place: Place, uninterrupted: Path, name: str) -> None:
    path = place.out / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    ended = zygote.run(place.command("run"), place.out)
    assert ended.code == 0, ended.log
    assert differences(uninterrupted, place.out) == []


@pytest.mark.parametrize("damage", [
    lambda out: flip(out / "data" / "corpus.jsonl"), lambda out: (out / "data" / "data.json").write_text("{}"),
    lambda out: (out / "data" / "data.json").write_text("["), lambda out: truncate(out / "data" / "queries.jsonl"),
], ids=["corpus", "no keys", "no JSON", "queries"])  # fmt: skip
def test_damaged_data_is_made_again_as_advised(
    zygote: Zygote, place: Place, damage: Callable[[Path], object], uninterrupted: Path
) -> None:
    damage(place.out)
    assert zygote.run(place.command("check"), place.out).code == 0
    ended = zygote.run(place.command("run", "--from", "data", "--to", "data"), place.out)
    assert ended.code == 0, ended.log
    for name in ("corpus.jsonl", "queries.jsonl"):
        assert (place.out / "data" / name).read_bytes() == (uninterrupted / "data" / name).read_bytes()
