"""SIGTERM and Ctrl-C: a training saves, everything else stops where it is, and the same command goes on."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders.killed import Ended, Fault, Zygote
from builders.tiny_run import tiniest_tree, write_recipe
from builders.whole import differences, partial_artefacts

from harness.pipeline.stop import signals
from harness.runtime.errors import StoppedError

SECONDS = 5.0  # "within seconds"; well below one on an idle machine


def assert_stopped(ended: Ended, out: Path) -> None:
    assert ended.code == 1, ended.log
    assert "Traceback" not in ended.log, ended.log
    assert "harness: " in ended.log and "the same command goes on" in ended.log, ended.log
    assert ended.after < SECONDS, f"{ended.after:.1f} s after the signal"
    assert partial_artefacts(out) == []


STOPS = (
    Fault("data", "write", act="TERM"),
    Fault("log", "write", 2, act="TERM"),  # in a training: half a line is written
    Fault("checkpoint", "save", 2, act="INT"),  # while a checkpoint is being written
    Fault("shard", "write", 2, act="TERM"),
    Fault("index", "write", 2, act="INT"),  # inside a callback of FAISS
    Fault("best", "save", act="TERM"),
    Fault("model", "save", act="INT"),
    Fault("mined", "write", act="INT"),
    Fault("log", "write", act="TERM+TERM"),  # the second signal does not wait for the step
    Fault("log", "write", 2, act="INT"),
    Fault("export", "fsync", act="TERM"),
    Fault("evaluation", "replace", 3, act="INT"),
    Fault("results", "write", act="TERM"),
)


def test_stopped_in_every_kind_of_work(zygote: Zygote, recipe: Path, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["run", str(recipe), "--output", str(out)]
    for fault in STOPS:
        ended = zygote.run(command, out, fault)
        assert ended.struck, f"{fault} was not met:\n{ended.log}"
        assert_stopped(ended, out)
    assert zygote.run(command, out).code == 0
    assert differences(uninterrupted, out) == []


def test_a_training_saves_the_step_it_is_in(zygote: Zygote, tmp_path: Path) -> None:
    """Without ``checkpoint_every`` nothing is saved before the end but what a stop saves."""
    tree = tiniest_tree(tmp_path)
    tree["teacher"]["training"]["checkpoint_every"] = 0
    recipe, out = write_recipe(tmp_path, tree), tmp_path / "out"
    command = ["run", str(recipe), "--output", str(out), "--to", "teacher"]
    assert_stopped(zygote.run(command, out, Fault("log", "write", 3, act="TERM")), out)
    steps = [path.name for path in (out / "checkpoints" / "teacher").glob("step-*")]
    assert steps in (["step-00000002"], ["step-00000003"]), "the step in which the signal came"
    ended = zygote.run(command, out)
    assert ended.code == 0 and f"goes on from step {int(steps[0][-1])}" in ended.log


def test_what_was_finished_is_not_done_again(zygote: Zygote, recipe: Path, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["run", str(recipe), "--output", str(out)]
    assert_stopped(zygote.run(command, out, Fault("evaluation", "replaced", 2, act="TERM", name="test")), out)
    kept = out / "evaluations" / "teacher" / "test" / "per_query.parquet"
    before = kept.stat().st_mtime_ns
    ended = zygote.run(command, out)
    assert ended.code == 0 and "evaluate: teacher done" not in ended.log
    assert kept.stat().st_mtime_ns == before
    assert differences(uninterrupted, out) == []


def test_stopped_at_random_moments(zygote: Zygote, recipe: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """Also while a model is loaded or data is read, where libraries catch what they don't know."""
    out, draw = tmp_path / "out", random.Random(2)
    command = ["run", str(recipe), "--output", str(out)]
    for _ in range(8):
        act = draw.choice(["TERM", "INT"])
        ended = zygote.run(command, out, Fault("any", "time", act=act, seconds=draw.uniform(0.2, 1.2)))
        if ended.code == 0:
            break
        if "> " in ended.log or "done already" in ended.log:  # before that, nothing is begun that could be lost
            assert_stopped(ended, out)
    assert zygote.run(command, out).code == 0
    assert differences(uninterrupted, out) == []


def test_an_evaluation_within_a_training_is_not_waited_for(tmp_path: Path) -> None:
    """Nor is one begun when the stop was asked for before; the training itself goes on to the end of its step."""
    with pytest.raises(StoppedError, match="SIGTERM"), signals(tmp_path) as stop:
        stop.patient = True
        with stop.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the evaluation went on")
    with pytest.raises(StoppedError, match="before an evaluation"), signals(tmp_path) as stop:
        stop.patient = True
        os.kill(os.getpid(), signal.SIGINT)
        assert stop() and stop.patient
        with stop.at_once():
            pytest.fail("the evaluation began")


ENDING = """
import atexit, os, signal, sys
from harness import cli
when, name = sys.argv.pop(1), sys.argv.pop(1)
strike = lambda *_: os.kill(os.getpid(), getattr(signal, name))
if when == "shown":
    cli._show_report = strike
else:
    atexit.register(strike)
cli.main()
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize(("when", "code"), [("shown", 1), ("exit", 0)])
def test_a_signal_after_the_run_was_done_is_told_or_too_late(
    when: str, code: int, name: str, uninterrupted: Path, tmp_path: Path
) -> None:
    """While the report is shown a command still stops with its exit code; a process that is ending goes on to its end.

    Neither is a process killed by a signal.
    """
    out = Path(shutil.copytree(uninterrupted, tmp_path / "out"))
    command = [sys.executable, "-c", ENDING, when, name, "run", str(out / "recipe.resolved.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    assert (f"harness: stopped by {name}; the same command goes on" in done.stderr) is (code == 1), done.stderr


# As in the run that it is compared with, whose exports say by whom they were opened.
WITHOUT_SENTENCE_TRANSFORMERS = """
from harness.cli import main
from harness.export import opening
opening.has_sentence_transformers = lambda: False
main()
"""


def test_ctrl_c_in_a_terminal(recipe: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """The command itself, with its whole process group, as a terminal does it."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", WITHOUT_SENTENCE_TRANSFORMERS, "run", str(recipe), "--output", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("> teacher"):
                break
        time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        started = time.monotonic()
        told = process.stdout.read()
        code = process.wait(timeout=60)
    assert code == 1 and "Traceback" not in told and "the same command goes on" in told, told
    assert time.monotonic() - started < 6 * SECONDS  # Python may still be importing torch, on a machine with other load
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert differences(uninterrupted, out) == []
