"""Where a step runs: in the controller's process, or started under a launcher. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from harness.pipeline.plan import STEPS, Step, plan
from harness.recipe import LaunchSettings, Recipe, impossible_with
from harness.runtime.errors import InputError, Problem, StepFailedError, StoppedError
from harness.runtime.process import LOCK, folder_lock, is_locked, launched_processes, logger

_FOLDER = "HARNESS_STEP_FOLDER"  # where the controller and the step that it started leave word for each other
STEP_LOCK = ".step.lock"  # held by a started step's main process
MACHINE = "$MACHINE_RANK"  # in printed commands that are to be started on every machine
MAIN_ADDRESS = "$MAIN_ADDRESS"


def visible_gpus() -> int:
    """How many NVIDIA GPUs a process started now would see, without touching one."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [] if wanted is None else [name for name in wanted.split(",") if name.strip() not in ("", "-1")]
    if wanted is not None and not names:
        return 0
    here = _gpus_here()
    # A GPU that is cut into instances (MIG) is one device here, and has a name for each of them.
    return len(names) if names and here and names[0].startswith("MIG") else min(len(names) or here, here)


def _gpus_here() -> int:
    driver = Path("/proc/driver/nvidia/gpus")
    if driver.is_dir():
        return len(list(driver.iterdir()))
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in answer.stdout.splitlines())


def usable_gpus(launch: LaunchSettings) -> int:
    """The GPUs that the steps may use."""
    return 0 if launch.device == "cpu" else visible_gpus()


# ------------------------------------------------------------------------------------------------ how many processes


def accelerate_file(step: Step, launch: LaunchSettings) -> str | None:
    """The accelerate file that the recipe names for a step."""
    return launch.accelerate.get(step.name) or launch.accelerate.get(step.verb)


def _told(file: str | None) -> dict[str, Any]:
    """What an accelerate file says; ``check_accelerate_files`` has refused those that can't be read."""
    return yaml.safe_load(Path(file).read_text(encoding="utf-8")) if file else {}


def _asked(step: Step, launch: LaunchSettings) -> int | str:
    """The processes that the recipe itself asks for: a number, or ``auto``."""
    asked = launch.processes
    return (asked.get(step.name) or asked.get(step.verb) or "auto") if isinstance(asked, dict) else asked


def processes_of(step: Step, launch: LaunchSettings, gpus: int) -> int:
    """How many processes a step is asked to run in, over all machines."""
    if not step.shared:
        return 1
    told = _told(accelerate_file(step, launch))
    if (asked := _asked(step, launch)) != "auto":
        return int(asked)
    if told.get("num_machines", 1) > 1 or not gpus:
        return int(told.get("num_processes") or 1)
    return gpus


def shares_out(step: Step, launch: LaunchSettings) -> bool:
    """Whether a step's model is spread over its processes (FSDP, DeepSpeed ZeRO), by its accelerate file."""
    kind = str(_told(accelerate_file(step, launch)).get("distributed_type", "NO")).upper()
    return kind in ("FSDP", "DEEPSPEED")


def require_processes(step: Step, launch: LaunchSettings) -> None:
    """A step stops when it does not see the processes that it was asked for.

    A step that is not shared may be started in several: the main process does it, the others wait.

    Raises:
        InputError: naming both numbers.
    """
    seen = launched_processes()
    if not step.shared and seen > 1:
        return
    wanted = processes_of(step, launch, usable_gpus(launch))
    if seen != wanted:
        raise InputError(
            Problem(f"step {step.name!r} does not see the processes that it was asked for", where="launch.processes",
                    got=f"{seen} running", allowed=f"{wanted}",
                    next=f"start it as `harness run --print` shows, or add --set launch.processes={seen}")
        )  # fmt: skip


def refuse_launcher() -> None:
    """`harness run` starts the processes itself.

    Raises:
        InputError: a launcher started several of us.
    """
    if (seen := launched_processes()) > 1:
        raise InputError(
            Problem("`harness run` starts its steps' processes itself", where="the launcher", got=f"{seen} processes",
                    next="run it without a launcher, with launch.processes; or launch a single verb")
        )  # fmt: skip


def runs_inside(step: Step, launch: LaunchSettings, gpus: int) -> bool:
    """Whether the controller runs the step itself: it uses no GPU and one process."""
    return not (step.gpu and gpus) and processes_of(step, launch, gpus) == 1


# ------------------------------------------------------------------------------------------------------ commands


def command(step: Step, recipe_path: Path, launch: LaunchSettings, gpus: int) -> list[str]:
    """The command that runs one step alone, for the controller and for schedulers."""
    own = ["-m", "harness", step.verb, str(recipe_path), "--only", step.name]
    if runs_inside(step, launch, gpus):
        return [sys.executable, *own]
    file, processes = accelerate_file(step, launch), processes_of(step, launch, gpus)
    if not gpus and not file:
        # accelerate's own flags can't ask for several CPU processes (they start one, in silence).
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), *own]
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    if file and step.shared:
        launcher += ["--config_file", file]
    else:
        launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_machines", "1"]
        launcher += ["--multi_gpu"] if processes > 1 else []
    if step.shared and _told(file).get("num_machines", 1) > 1:
        return [*launcher, "--num_processes", str(processes), "--machine_rank", MACHINE,
                "--main_process_ip", MAIN_ADDRESS, *own]  # fmt: skip
    # Port 0: any that is free, so that two runs on one machine don't meet.
    return [*launcher, "--num_processes", str(processes), "--main_process_port", "0", *own]


def printed(arguments: list[str]) -> str:
    """A command as a shell takes it; what differs from machine to machine stays a variable."""
    return " ".join(f'"{a}"' if a in (MACHINE, MAIN_ADDRESS) else shlex.quote(a) for a in arguments)


def check_launch(recipe: Recipe) -> None:
    """Accelerate files can be used, and every stage's batch can be shared out.

    Raises:
        InputError: everything that is wrong.
    """
    launch = recipe.launch
    problems = [problem for name, path in launch.accelerate.items() for problem in _file_problems(name, path)]
    known = {name for step in STEPS for name in (step.name, step.verb)}
    named = {"accelerate": launch.accelerate, "processes": launch.processes}
    problems += [
        Problem(f"no step or verb {name!r}", where=f"launch.{key}.{name}", allowed=", ".join(sorted(known)))
        for key, by_step in named.items() if isinstance(by_step, dict) for name in by_step if name not in known
    ]  # fmt: skip
    if problems:
        raise InputError(problems)
    problems += _unused_files(recipe)
    gpus = usable_gpus(launch)
    stages = {"teacher": recipe.teacher if recipe.teacher.train else None, "align": recipe.align,
              "refine": recipe.refine}  # fmt: skip
    for step in (step for step in plan(recipe) if step.trains):
        stage = stages[step.verb]
        training, processes = stage.training if stage else None, processes_of(step, launch, gpus)
        if training and training.batch_size % (training.accumulate * processes):
            problem = Problem(
                "the batch can't be shared out equally", where=f"{step.verb}.training.batch_size",
                got=f"{training.batch_size} for accumulate {training.accumulate} x {processes} processes",
                allowed=f"a multiple of {training.accumulate * processes}",
                next="change batch_size, accumulate, or launch.processes",
            )  # fmt: skip
            problems += [problem] if problem not in problems else []
        if training:
            kind = str(_told(accelerate_file(step, launch)).get("distributed_type", "NO")).upper()
            teacher = recipe.teacher if step.verb == "teacher" else None
            told = impossible_with(
                kind, cached=training.cached, adapters=bool(teacher and teacher.lora),
                learned_temperature=bool(teacher and teacher.loss.learned_temperature),
            ) if processes > 1 or _asked(step, launch) == 1 else []  # fmt: skip
            problems += [
                Problem(what, where=f"launch.accelerate ({accelerate_file(step, launch)})",
                        got=f"{kind} for step {step.name!r}", next=next_)
                for what, next_ in told
            ]  # fmt: skip
    if problems:
        raise InputError(problems)


def _unused_files(recipe: Recipe) -> list[Problem]:
    """Accelerate files named for steps that the recipe itself wants in one process."""
    launch = recipe.launch
    files = {}
    for key, path in launch.accelerate.items():
        steps = [step for step in plan(recipe) if step.shared and key in (step.name, step.verb)]
        if steps and all(_asked(step, launch) == 1 for step in steps):
            files[key] = path
    return [
        Problem("an accelerate file is named, but one process does not use it", where=f"launch.accelerate.{key}",
                got=f"{path}, with launch.processes: 1 for this step",
                next="remove the file, or raise launch.processes (auto: what the machine or the file has)")
        for key, path in files.items()
    ]  # fmt: skip


def _file_problems(name: str, path: str) -> list[Problem]:
    """What is wrong with an accelerate file: absent, unreadable, or it would change what the recipe says."""
    where = f"launch.accelerate.{name}"
    try:
        told = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError:
        return [Problem("no such accelerate file", where=where, got=path, next="check the path")]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return [Problem("the accelerate file is not readable as YAML", where=f"{where} ({path})", got=str(error))]
    if not isinstance(told, dict):
        return [Problem("the accelerate file is no mapping of settings", where=f"{where} ({path})")]
    counts = [
        Problem(f"{key} is no number of them", where=f"{where} ({path})", got=repr(told[key]), allowed="1 or more")
        for key in ("num_processes", "num_machines")
        if key in told and (type(told[key]) is not int or told[key] < 1)
    ]
    fixed = {"mixed_precision": ("no", "the recipe's training.precision decides"),
             "gradient_accumulation_steps": (1, "the recipe's training.accumulate decides")}  # fmt: skip
    parts = [told, *(part for part in told.values() if isinstance(part, dict))]
    return counts + [
        Problem(f"the accelerate file sets {key}", where=f"{where} ({path})", got=str(part[key]), allowed=str(only),
                next=reason)
        for key, (only, reason) in fixed.items() for part in parts if part.get(key, only) not in (only, False, "auto")
    ]  # fmt: skip


def refuse_other_machines(steps: list[Step], launch: LaunchSettings) -> None:
    """The controller can start processes on its own machine only.

    Raises:
        InputError: naming the steps whose accelerate file spans machines.
    """
    wide = [s.name for s in steps if s.shared and _told(accelerate_file(s, launch)).get("num_machines", 1) > 1]
    if wide:
        raise InputError(
            Problem("`harness run` starts processes on this machine only", where="launch.accelerate",
                    got=f"num_machines above 1 for {', '.join(wide)}",
                    next="run the commands that `harness run --print` shows, those of these steps on every machine")
        )  # fmt: skip


# ---------------------------------------------------------------------------------------- a controller and its step


def started_by_controller(output: Path) -> bool:
    """Whether a controller that holds this folder's lock started this process."""
    return _FOLDER in os.environ and Path(os.environ[_FOLDER]).parent == output.resolve()


def told_to_stop(output: Path) -> bool:
    """Whether the controller asks its step to stop, or is gone: nobody would record what the step does."""
    if not started_by_controller(output):
        return False
    return (Path(os.environ[_FOLDER]) / "stop").exists() or not is_locked(output)


def leave(code: int, together: bool) -> None:
    """End this process after a failure that has been told.

    Launchers pass no exit code on, so the controller finds it in the step's folder. ``together``: all processes end, so
    that the launcher of a controlled step need not hear of a failure, and stays quiet.
    """
    controlled = _FOLDER in os.environ
    if controlled:
        with contextlib.suppress(OSError):
            (Path(os.environ[_FOLDER]) / "code").write_text(str(code))
    if launched_processes() == 1:
        sys.exit(code)
    # Not sys.exit: the others may be waiting for us, and tidying up would wait for them.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if controlled and together else code)


def _environment(arguments: list[str], word: Path) -> dict[str, str]:
    """Ours, and each process's share of the cores (launchers would give it one)."""
    option = "--nproc_per_node" if "--nproc_per_node" in arguments else "--num_processes"
    threads = len(os.sched_getaffinity(0)) // int(arguments[arguments.index(option) + 1])
    return {"OMP_NUM_THREADS": str(max(1, threads)), **os.environ, _FOLDER: str(word)}


def run_command(arguments: list[str], step: Step, output: Path, stop: Callable[[], bool]) -> None:
    """Run a step's command to its end. When ``stop`` says so, it is asked to stop, and waited for while it saves.

    Raises:
        StepFailedError: it failed; its own messages stand above. StoppedError: it was stopped.
    """
    output = output.resolve()
    with tempfile.TemporaryDirectory(prefix=".step.", suffix=".tmp", dir=output) as name:
        word = Path(name)
        # Its own session: Ctrl-C in a terminal reaches us alone, and we let a training save before it ends.
        process = subprocess.Popen(arguments, env=_environment(arguments, word), start_new_session=True)
        asked = False
        try:
            while (code := process.poll()) is None:
                if stop() and not asked:
                    asked = True
                    (word / "stop").touch()
                    if not step.trains:
                        process.terminate()
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        with contextlib.suppress(OSError, ValueError):
            code = int((word / "code").read_text())
    if code and asked:
        raise StoppedError(f"stopped in step {step.name!r}; the same command goes on from there")
    if code:
        raise StepFailedError(f"step {step.name!r} failed with exit code {code}: {printed(arguments)}", code)


@contextlib.contextmanager
def alone_in(output: Path, patience: float = 60.0) -> Iterator[None]:
    """Hold what keeps others out of the folder: as a controller or a verb its lock, as a started step the step's.

    A killed controller leaves its step behind, which then stops by itself: it is waited for.

    Raises:
        InputError: another run works here.
    """
    if started_by_controller(output):
        with folder_lock(output, STEP_LOCK):
            yield
        return
    with folder_lock(output, LOCK):
        until = time.monotonic() + patience
        while is_locked(output, STEP_LOCK) and time.monotonic() < until:
            logger.info("waiting for a step of a run that was killed: it saves and stops")
            time.sleep(2)
        with folder_lock(output, STEP_LOCK):
            pass
        yield
