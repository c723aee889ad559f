"""A disk that is full, or refuses a file's size: a message with what is needed, and the last good state stays."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from builders.killed import Ended, Fault, Zygote
from builders.whole import differences, partial_artefacts

from harness.runtime.process import folder_sha256


def assert_told(ended: Ended, out: Path, what: str = "No space left on device") -> None:
    """The run stopped in words, and nothing under its final name is a part of something."""
    assert ended.code == 1, ended.log
    assert "Traceback" not in ended.log, ended.log
    told = ended.log[ended.log.index("harness: ") :]
    assert what in told and str(out) in told, told
    assert "needed: " in told and "bytes" in told and "free: " in told and "next: " in told, told
    assert partial_artefacts(out) == []


# In running order: what is written, and in whose words the disk refuses it.
REFUSALS = (
    (Fault("recipe", "write", act="ENOSPC"), "recipe.resolved.yaml"),
    (Fault("data", "write", 3, act="ENOSPC"), "data"),
    (Fault("log", "write", act="ENOSPC"), "logs/teacher.jsonl"),
    (Fault("checkpoint", "save", act="ENOSPC"), "checkpoints/teacher/step-00000001"),
    (Fault("checkpoint", "save", 2, act="EFBIG"), "checkpoints/teacher/step-"),
    (Fault("best", "save", act="ENOSPC"), "checkpoints/teacher/best"),
    (Fault("model", "save", act="ENOSPC"), "teacher"),
    (Fault("manifest", "write", act="ENOSPC"), "manifest.json"),
    (Fault("shard", "write", act="ENOSPC"), "vectors/documents.partial/ids-00000.json"),
    (Fault("shard", "write", 10, act="ENOSPC"), "vectors/"),
    (Fault("index", "write", act="ENOSPC"), "index"),  # through a callback of FAISS
    (Fault("evaluation", "write", act="ENOSPC"), "evaluations/teacher/"),  # as soon as its documents are embedded
    (Fault("mined", "write", act="ENOSPC"), "mined/refine"),
    (Fault("log", "write", 2, act="ENOSPC"), "logs/"),
    (Fault("export", "fsync", act="ENOSPC"), ".export."),  # aside, until it is held against the student
    (Fault("results", "write", act="ENOSPC"), "results.json"),
    (Fault("report", "write", act="ENOSPC"), "report."),
)


def test_every_artefact_refused_once(zygote: Zygote, recipe: Path, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for fault, name in REFUSALS:
        ended = zygote.run(["run", str(recipe), "--output", str(out)], out, fault)
        assert ended.struck or fault.event == "save", f"{fault} was not met:\n{ended.log}"
        assert_told(ended, out, "File too large" if fault.act == "EFBIG" else "No space left on device")
        assert f"harness: {out / name}" in ended.log, ended.log
    ended = zygote.run(["run", str(recipe), "--output", str(out)], out)
    assert ended.code == 0, ended.log
    assert differences(uninterrupted, out) == []
    assert not list(out.rglob("*.tmp")) and not list(out.rglob("*.partial")), "leftovers"


def test_the_old_artefact_stays_until_the_new_is_whole(
    zygote: Zygote, recipe: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(uninterrupted, tmp_path / "out"))
    before = folder_sha256(out / "student" / "refined")
    command = ["run", str(recipe), "--output", str(out), "--from", "refine"]
    assert_told(zygote.run(command, out, Fault("model", "save", act="ENOSPC")), out)
    assert folder_sha256(out / "student" / "refined") == before
    assert zygote.run(command[:-2], out).code == 0
    assert differences(uninterrupted, out) == []


def test_a_limit_on_the_size_of_files(zygote: Zygote, recipe: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """RLIMIT_FSIZE, as batch systems set it."""
    out = tmp_path / "out"
    command = ["run", str(recipe), "--output", str(out)]
    assert_told(zygote.run(command, out, limit=100_000), out, "File too large")
    assert zygote.run(command, out).code == 0
    assert differences(uninterrupted, out) == []


def fill(disk: Path, when: Path) -> threading.Thread:
    """Another user of the disk, who takes all of it as soon as something exists."""

    def work() -> None:
        until = time.monotonic() + 60
        while not when.exists() and time.monotonic() < until:
            time.sleep(0.001)
        with contextlib.suppress(OSError), open(disk / "ballast", "wb", buffering=0) as stream:
            while stream.write(b"0" * 4096):
                pass

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_disk_that_really_fills_up(zygote: Zygote, recipe: Path, uninterrupted: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        out = disk / "out"
        command = ["run", str(recipe), "--output", str(out)]
        for name in ("logs/teacher.jsonl", "index", "logs/refine.jsonl", "export"):
            thread = fill(disk, out / name)
            ended = zygote.run(command, out)
            thread.join()
            assert_told(ended, out)
            (disk / "ballast").unlink()
        assert zygote.run(command, out).code == 0
        assert differences(uninterrupted, out) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
