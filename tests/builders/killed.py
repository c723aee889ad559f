"""Runs that die: a process that has imported everything forks one child a run, in which a fault strikes where it is
told to, as a kill, a signal or a full disk. Nothing of this is known to the package.

    with Zygote() as zygote:
        code, log = zygote.run(["run", recipe, "--output", out], out, Fault("checkpoint", "replace", 2))

A start costs seconds of imports; a fork costs milliseconds. Nothing is computed before the fork: no threads exist yet.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Fault:
    """Strike at the ``count``-th ``event`` on an artefact of a kind, or after some seconds.

    Attributes:
        kind: of ``kind_of``; ``any``: whatever is written.
        event: ``write`` (after half of the bytes), ``fsync`` (the file cut in half), ``save`` (safetensors, likewise),
            ``replace`` (before the rename), ``replaced`` (after it), ``rmtree`` (after one entry), ``time``.
        count: which of these events, from 1.
        name: a pattern of the file's or folder's own name.
        act: ``KILL``, ``TERM``, ``INT`` (signals to itself, joined by ``+``), ``ENOSPC``, ``EFBIG`` (the event raises).
        seconds: for ``time``.
    """

    kind: str
    event: str
    count: int = 1
    act: str = "KILL"
    seconds: float = 0.0
    name: str = "*"


def kind_of(path: Path, out: Path) -> str | None:
    """Which artefact a file below a run's folder belongs to, by its final or temporary name."""
    if not path.is_relative_to(out) or path == out:
        return None
    parts = path.relative_to(out).parts
    top = parts[0].lstrip(".").split(".")[0]
    if top == "checkpoints":
        stage = len(parts) > 2 and parts[2].lstrip(".").startswith("best")
        return "best" if stage else "checkpoint"
    known = {"vectors": "shard", "teacher": "model", "student": "model", "evaluations": "evaluation", "logs": "log"}
    return known.get(top, top)


# ------------------------------------------------------------------------------------------------ in the child


class _Striker:
    """Counts events and strikes at the one that was asked for."""

    def __init__(self, fault: Fault, out: Path, told: Path) -> None:
        self.fault, self.out, self.told, self.left = fault, out, told, fault.count

    def meets(self, event: str, path: Any) -> bool:
        """Whether this is the event."""
        if event != self.fault.event:
            return False
        with contextlib.suppress(TypeError, OSError):
            place = Path(os.path.abspath(os.fspath(path)))
            kind = kind_of(place, self.out)
            if kind and self.fault.kind in (kind, "any") and fnmatch(place.name, self.fault.name):
                self.left -= 1
                return self.left == 0
        return False

    def strike(self, where: Any) -> None:
        """Tell where, and do it."""
        self.told.write_text(str(where))
        if self.fault.act in ("ENOSPC", "EFBIG"):
            number = getattr(errno, self.fault.act)
            raise OSError(number, os.strerror(number))
        for name in self.fault.act.split("+"):
            os.kill(os.getpid(), getattr(signal, f"SIG{name}"))


class _Stream:
    """A file that is open for writing, and breaks off in the middle of the write that was asked for."""

    def __init__(self, stream: Any, path: Any, striker: _Striker) -> None:
        self._stream, self._path, self._striker = stream, path, striker

    def write(self, data: Any) -> Any:
        if self._striker.meets("write", self._path):
            whole = data if isinstance(data, str) else bytes(data)
            self._stream.write(whole[: len(whole) // 2])
            self._stream.flush()
            self._striker.strike(self._path)
            return self._stream.write(whole[len(whole) // 2 :])
        return self._stream.write(data)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()


def _install(fault: Fault, out: Path, told: Path) -> None:
    """Put the striker around everything that writes."""
    import safetensors.torch

    striker = _Striker(fault, out, told)
    replace, fsync, rmtree, open_ = os.replace, os.fsync, shutil.rmtree, builtins.open
    save = safetensors.torch.save_file

    def cut(path: Any) -> None:
        if fault.act == "KILL":
            os.truncate(path, os.path.getsize(path) // 2)

    def replaces(source: Any, target: Any, **options: Any) -> None:
        if striker.meets("replace", target):
            striker.strike(target)
        replace(source, target, **options)
        if striker.meets("replaced", target):
            striker.strike(target)

    def syncs(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if os.path.isfile(path) and striker.meets("fsync", path):
            cut(path)
            striker.strike(path)
        fsync(descriptor)

    def removes(path: Any, *arguments: Any, **options: Any) -> None:
        if os.path.isdir(path) and os.listdir(path) and striker.meets("rmtree", path):
            first = Path(path) / sorted(os.listdir(path))[0]
            rmtree(first) if first.is_dir() else first.unlink()
            striker.strike(path)
        rmtree(path, *arguments, **options)

    def opens(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        stream = open_(file, mode, *arguments, **options)
        return _Stream(stream, file, striker) if isinstance(file, (str, Path)) and set(mode) & set("wa") else stream

    def saves(tensors: Any, filename: Any, *arguments: Any, **options: Any) -> None:
        if striker.meets("save", filename) and fault.act in ("ENOSPC", "EFBIG"):
            number = getattr(errno, fault.act)  # in the words of the library
            raise safetensors.SafetensorError(f"I/O error: {os.strerror(number)} (os error {number})")
        save(tensors, filename, *arguments, **options)
        if striker.left == 0 and fault.event == "save":
            striker.left = -1
            cut(filename)
            striker.strike(filename)

    os.replace, os.fsync, shutil.rmtree, builtins.open = replaces, syncs, removes, opens
    safetensors.torch.save_file = saves
    for module in list(sys.modules.values()):  # whoever imported the name
        names = vars(module)  # not getattr: a lazy module would import what may not be there
        if names.get("save_file") is save and module is not safetensors.torch:
            module.save_file = saves
        if names.get("safe_save_file") is save:
            module.safe_save_file = saves


def _child(order: dict[str, Any]) -> int:
    """What the fork does: the command line, with a fault."""
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import logging

    logging.getLogger("harness").handlers[:] = []
    if order["fault"]:
        _install(Fault(**order["fault"]), Path(order["out"]), Path(order["struck"]))
    if order["limit"]:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], order["limit"]))
    sys.argv = ["harness", *order["arguments"]]
    from harness.cli import main

    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    return 0


def _serve() -> None:
    """Import everything, then fork a child for each line of standard input, and answer with how it ended."""
    import accelerate  # noqa: F401
    import faiss  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import torch
    import transformers.models.bert.modeling_bert
    import transformers.models.bert.tokenization_bert  # noqa: F401

    import harness.cli
    import harness.export.opening
    import harness.pipeline.work_bench
    import harness.pipeline.work_evaluation
    import harness.pipeline.work_report
    import harness.pipeline.work_streams
    import harness.pipeline.work_training
    import harness.pipeline.work_vectors

    torch.set_num_threads(1)
    harness.export.opening.has_sentence_transformers = lambda: False  # its import would cost each child seconds
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        order = json.loads(line)
        started = time.monotonic()
        child = os.fork()
        if not child:
            code = 70
            try:
                code = _child(order)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        fault = order["fault"] or {}
        ended, status = 0, 0
        while not ended:
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended:
                if fault.get("event") == "time" and time.monotonic() - started > fault["seconds"]:
                    fault = {}
                    Path(order["struck"]).touch()
                    os.kill(child, getattr(signal, f"SIG{order['fault']['act']}"))
                time.sleep(0.002)
        struck = Path(order["struck"])
        after = time.time() - struck.stat().st_mtime if struck.exists() else 0.0
        answer = {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - started, "after": after}
        print(json.dumps(answer), flush=True)  # noqa: T201


# ------------------------------------------------------------------------------------------------ in the test


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit code (negative: killed by that signal), seconds, those after the fault struck, what the run
    said, and where the fault struck (empty: by time)."""

    code: int
    seconds: float
    after: float
    log: str
    struck: str


class Zygote:
    """The process that forks; ``run`` starts one run and waits for its end."""

    def __init__(self) -> None:
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1", "COLUMNS": "120",
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parents[1])]),
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "builders.killed"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip
        assert self.process.stdout is not None and self.process.stdin is not None
        self.own = tempfile.TemporaryDirectory(prefix="harness-runs-")
        self._read: Callable[[], str] = self.process.stdout.readline
        self._write = self.process.stdin
        assert self._read() == "ready\n"

    def run(self, arguments: Sequence[str], out: Path, fault: Fault | None = None, limit: int = 0) -> Ended:
        """Run ``harness ARGUMENTS``. ``out`` is the run's folder, ``limit`` the size that no file may exceed."""
        log, struck = Path(self.own.name) / "run.log", Path(self.own.name) / "struck"
        struck.unlink(missing_ok=True)
        order = {"arguments": list(arguments), "out": str(out), "fault": asdict(fault) if fault else None,
                 "log": str(log), "struck": str(struck), "limit": limit}  # fmt: skip
        self._write.write(json.dumps(order) + "\n")
        self._write.flush()
        told = json.loads(self._read())
        place = struck.read_text() if struck.exists() else ""
        where = Path(place).relative_to(out).as_posix() if place else ""
        return Ended(told["code"], told["seconds"], told["after"], log.read_text(errors="replace"), where)

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *error: object) -> None:
        self._write.close()
        self.process.wait(timeout=60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.own.cleanup()


if __name__ == "__main__":
    _serve()
