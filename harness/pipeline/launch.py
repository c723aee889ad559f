"""Where a step runs: in the controller's process, or started under ``accelerate launch``. Imports no torch."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from harness.pipeline.plan import STEPS, Step
from harness.recipe import LaunchSettings
from harness.runtime.errors import InputError, Problem, RunError


def visible_gpus() -> int:
    """How many NVIDIA GPUs a process started now would see, without touching one."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is not None:
        return len([name for name in wanted.split(",") if name.strip() not in ("", "-1")])
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in answer.stdout.splitlines())


def runs_inside(step: Step, launch: LaunchSettings, gpus: int) -> bool:
    """Whether the controller runs the step itself: it uses no GPU."""
    return not (step.gpu and launch.device != "cpu" and gpus > 0)


def command(step: Step, recipe_path: Path, launch: LaunchSettings, gpus: int) -> list[str]:
    """The command that runs one step alone, for the controller and for schedulers."""
    own = ["-m", "harness", step.verb, str(recipe_path), "--only", step.name]
    if runs_inside(step, launch, gpus):
        return [sys.executable, *own]
    file = launch.accelerate.get(step.name) or launch.accelerate.get(step.verb)
    options = (
        ["--config_file", file]
        if file
        else ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_machines", "1"]
    )
    return [sys.executable, "-m", "accelerate.commands.launch", *options, "--num_processes", "1", *own]


_HOLDER = "HARNESS_CONTROLLER"  # the folder whose lock the controller holds for the steps that it starts


def started_by_controller(output: Path) -> bool:
    """Whether a controller that holds this folder's lock started this process."""
    return os.environ.get(_HOLDER) == str(output.resolve())


def run_command(arguments: list[str], step: str, output: Path) -> None:
    """Run a step's command to its end; when we are stopped, it is asked to stop and waited for.

    Raises:
        RunError: it failed; its own messages stand above.
    """
    with subprocess.Popen(arguments, env={**os.environ, _HOLDER: str(output.resolve())}) as process:
        try:
            code = process.wait()
        except RunError:
            process.terminate()
            process.wait()
            raise
    if code:
        raise RunError(f"step {step!r} failed with exit code {code}: {shlex.join(arguments)}")


def check_accelerate_files(launch: LaunchSettings) -> None:
    """Every named accelerate file exists and belongs to a step or verb.

    Raises:
        InputError: naming those that don't.
    """
    known = {name for step in STEPS for name in (step.name, step.verb)}
    unknown = [
        Problem(f"no step or verb {name!r}", where=f"launch.accelerate.{name}", allowed=", ".join(sorted(known)))
        for name in launch.accelerate
        if name not in known
    ]
    missing = [
        Problem("no such accelerate file", where=f"launch.accelerate.{name}", got=path, next="check the path")
        for name, path in launch.accelerate.items()
        if not Path(path).is_file()
    ]
    if unknown or missing:
        raise InputError(unknown + missing)
