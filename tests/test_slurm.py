"""The SLURM scripts with stand-ins for SLURM's commands: a stop is passed on, waited for, and queued again once."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from builders.tiny_run import tiniest_tree, write_recipe

ROOT = Path(__file__).resolve().parents[1]
ONE_NODE, MULTI_NODE = (ROOT / "recipes" / "slurm" / f"{name}.sh" for name in ("one-node", "multi-node"))
BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="needs bash")

SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then printf 'node-a\\nnode-b\\n'; else echo "$*" >> "$FAKE/scontrol.log"; fi
"""
# One task a node, all on this machine; a signal goes to every task, and the worst exit code is ours.
SRUN = """#!{python}
import os, signal, subprocess, sys
options = [word for word in sys.argv[1:] if word.startswith("--")]
count = int(next(word for word in options if word.startswith("--ntasks=")).partition("=")[2])
with open(os.environ["FAKE"] + "/srun.log", "a") as log:
    log.write(" ".join(options) + "\\n")
command = sys.argv[1 + len(options):]
tasks = []
signal.signal(signal.SIGTERM, lambda number, frame: [task.send_signal(number) for task in tasks])
for rank in range(count):
    tasks.append(subprocess.Popen(command, env={{**os.environ, "SLURM_NODEID": str(rank)}}))
sys.exit(max(abs(task.wait()) for task in tasks))
"""


def _executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a script as the batch shell of a job; its stand-ins write logs into ``tmp_path``."""
    folder = tmp_path / "bin"
    folder.mkdir()
    _executable(folder / "scontrol", SCONTROL)
    _executable(folder / "srun", SRUN.format(python=sys.executable))
    _executable(folder / "harness", f'#!/usr/bin/env bash\nexec {sys.executable} -m harness "$@"\n')
    job = {"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NNODES": "2", "FAKE": str(tmp_path)}
    environment = {**os.environ, **job, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    jobs: list[subprocess.Popen[str]] = []

    def start(script: Path, *arguments: object) -> subprocess.Popen[str]:
        command = [BASH or "bash", str(script), *map(str, arguments)]
        with (tmp_path / "job.log").open("a") as log:
            options = {"env": environment, "stdout": log, "stderr": log, "text": True, "start_new_session": True}
            jobs.append(subprocess.Popen(command, **options))
        return jobs[-1]

    yield start
    for job in jobs:  # of a test that failed
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()


def _until(there: Callable[[], bool], process: subprocess.Popen[str], log: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.02)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("script", [ONE_NODE, MULTI_NODE], ids=lambda path: path.stem)
def test_what_a_job_that_may_be_preempted_needs(script: Path) -> None:
    assert subprocess.run([BASH or "bash", "-n", str(script)]).returncode == 0
    text = script.read_text()
    options = dict(option.partition("=")[::2] for option in re.findall(r"^#SBATCH --(.*)", text, re.MULTILINE))
    assert {"requeue", "open-mode", "signal", "nodes", "time"} <= set(options)
    assert options["open-mode"] == "append" and re.fullmatch(r"B:TERM@\d+", options["signal"])
    assert "Not run on a cluster" in text.splitlines()[2]
    first_command = text.index("set -uo pipefail")
    assert text.rindex("#SBATCH") < first_command, "sbatch reads no option after the first command"


def test_one_node_stops_saves_is_queued_again_and_finishes(
    slurm: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    tree = tiniest_tree(tmp_path)
    tree["teacher"]["train"] = False
    tree["align"]["training"] |= {"steps": 300, "evaluate_every": 300, "checkpoint_every": 0}
    recipe, out, log = write_recipe(tmp_path, tree), tmp_path / "out", tmp_path / "job.log"
    job = slurm(ONE_NODE, recipe, "--output", out, "--to", "align")
    _until(lambda: len(_lines(out / "logs" / "align.jsonl")) > 3, job, log)
    job.send_signal(signal.SIGTERM)
    job.send_signal(signal.SIGTERM)  # some clusters send it twice
    assert job.wait(60) == 1, log.read_text()
    assert _lines(tmp_path / "scontrol.log") == ["requeue 42"], log.read_text()
    saved = [int(path.name.removeprefix("step-")) for path in (out / "checkpoints" / "align").glob("step-*")]
    assert saved and 0 < saved[0] < 300, "the run saved before the script ended"

    assert slurm(ONE_NODE, recipe, "--output", out, "--to", "align").wait(120) == 0, log.read_text()
    assert f"goes on from step {saved[0]}" in log.read_text()
    assert (out / "student" / "aligned" / "modules.json").exists()
    assert len(_lines(tmp_path / "scontrol.log")) == 1


def test_what_fails_by_itself_is_not_queued_again(slurm: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    assert slurm(ONE_NODE, tmp_path / "missing.yaml").wait(60) == 2
    assert slurm(MULTI_NODE, tmp_path / "missing.yaml").wait(60) == 2
    assert not (tmp_path / "scontrol.log").exists() and not (tmp_path / "srun.log").exists()


# A run of three steps, the second on every node. A stopped step leaves a file with which its second start ends.
HARNESS = """#!/usr/bin/env bash
case "$*" in
  *--print) cat <<'COMMANDS'
"$FAKE/step" data
"$FAKE/step" teacher "$MACHINE_RANK" "$MAIN_ADDRESS"
"$FAKE/step" report
COMMANDS
  ;;
  *'--to data') echo "resolved $*" >> "$FAKE/steps.log" ;;
esac
"""
STEP = """#!/usr/bin/env bash
echo "$*" >> "$FAKE/steps.log"
[[ $1 == teacher && ! -e "$FAKE/saved-$2" ]] || exit 0
trap 'sleep 0.3; touch "$FAKE/saved-$2"; exit 1' TERM
while true; do sleep 0.05; done
"""


def test_several_nodes_start_each_step_where_it_belongs(
    slurm: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    _executable(tmp_path / "bin" / "harness", HARNESS)
    _executable(tmp_path / "step", STEP)
    steps, log = tmp_path / "steps.log", tmp_path / "job.log"
    on_every_node = ["teacher 0 node-a", "teacher 1 node-a"]
    job = slurm(MULTI_NODE, "recipe.yaml", "--output", "out")
    _until(lambda: len(_lines(steps)) == 4, job, log)
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) == 1, log.read_text()
    assert sorted(_lines(steps)) == ["data", "resolved run recipe.yaml --output out --to data", *on_every_node]
    assert all((tmp_path / f"saved-{rank}").exists() for rank in (0, 1)), "the script waits while the processes save"
    assert _lines(tmp_path / "scontrol.log") == ["requeue 42"]

    steps.unlink()
    assert slurm(MULTI_NODE, "recipe.yaml", "--output", "out").wait(30) == 0, log.read_text()
    assert sorted(_lines(steps)[1:]) == ["data", "report", *on_every_node] and _lines(steps)[-1] == "report"
    assert len(_lines(tmp_path / "scontrol.log")) == 1
    spans = ["--nodes=2 --ntasks=2" in line for line in _lines(tmp_path / "srun.log")]
    assert spans == [False, True, False, True, False]


@pytest.mark.slow
def test_two_nodes_train_together_stop_and_go_on(
    slurm: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """The real commands: two launches of one CPU process each find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = yaml.safe_load((ROOT / "recipes" / "accelerate" / "multi-node.yaml").read_text())
    told |= {"use_cpu": True, "num_processes": 2, "main_process_port": port}
    (tmp_path / "nodes.yaml").write_text(yaml.safe_dump(told))
    _executable(tmp_path / "bin" / "scontrol", SCONTROL.replace("node-a", "127.0.0.1"))
    tree = tiniest_tree(tmp_path)
    tree["teacher"]["train"] = False
    tree["align"]["training"] |= {"steps": 400, "evaluate_every": 400, "checkpoint_every": 0}
    tree["launch"] = {"device": "cpu", "accelerate": {"align": str(tmp_path / "nodes.yaml")}}
    recipe, out, log = write_recipe(tmp_path, tree), tmp_path / "out", tmp_path / "job.log"
    job = slurm(MULTI_NODE, recipe, "--output", out)
    _until(lambda: len(_lines(out / "logs" / "align.jsonl")) > 3, job, log, 300)
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) != 0, log.read_text()
    assert _lines(tmp_path / "scontrol.log") == ["requeue 42"], log.read_text()
    assert list((out / "checkpoints" / "align").glob("step-*")), log.read_text()
    assert slurm(MULTI_NODE, recipe, "--output", out).wait(300) == 0, log.read_text()
    assert (out / "report.md").exists() and "goes on from step" in log.read_text()
