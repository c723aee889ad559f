"""Run the tests against the oldest and the newest supported versions, each in its own venv, and record the outcome.

    python benchmarks/version_matrix.py --python oldest=python3.11 --python newest=python3.13

Oldest: the lower bounds of pyproject.toml, the test extra included, as a file of constraints. Newest: no pins. What
these force in turn is left to pip. A commit is tested, not the working tree. On Linux, torch from the default registry
brings gigabytes of CUDA libraries; the venvs are removed at the end unless --keep is given.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from provenance import write

SIDES = ("oldest", "newest")
SHOWN = ("torch", "transformers", "sentence-transformers", "accelerate", "numpy", "tokenizers", "huggingface-hub",
         "peft", "datasets")  # fmt: skip
EXTRA = "test"


def lower_bounds(project: dict[str, Any], extra: str) -> dict[str, str]:
    """Package -> lower bound of the dependencies and of an extra (with the extras of our own that it names)."""
    own, extras = project["name"], project["optional-dependencies"]
    found: dict[str, str] = {}
    waiting = [*project["dependencies"], *extras[extra]]
    while waiting:
        requirement = waiting.pop()
        inner = re.fullmatch(rf"{re.escape(own)}\[([\w,-]+)\]", requirement)
        if inner:
            waiting += [entry for name in inner[1].split(",") for entry in extras[name]]
            continue
        bound = re.fullmatch(r"([\w.-]+)(?:\[[\w,-]+\])?>=([\w.]+)(?:\s*;.*)?", requirement)
        if bound is None:
            raise SystemExit(f"no plain lower bound in {requirement!r}: the oldest version can't be told")
        found[bound[1]] = bound[2]
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def counts(junit: Path) -> dict[str, Any]:
    """How many tests passed, failed, were skipped, and the names of those that failed, from pytest's XML."""
    found: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0, "failures": []}
    for case in ElementTree.parse(junit).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            found["failed"] += 1
            found["failures"].append(f"{case.get('classname')}::{case.get('name')}")
        else:
            found["skipped" if case.find("skipped") is not None else "passed"] += 1
    return found


def quiet(command: list[str], log: Path, cwd: Path, limit: float) -> tuple[int, float]:
    """Run a command with its output in a log; its exit code (124: stopped at the limit) and seconds."""
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, cwd=cwd, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = 124
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with what it started
                process.wait()
    return code, round(time.monotonic() - started, 1)


def installed(python: Path) -> dict[str, str]:
    """Package -> version in a venv, names in their canonical form."""
    listing = subprocess.check_output([python, "-m", "pip", "list", "--format", "json"], text=True)
    return {re.sub(r"[-_.]+", "-", entry["name"]).lower(): entry["version"] for entry in json.loads(listing)}


def last_lines(log: Path, count: int) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]


def run_side(side: str, commit: str, interpreter: str, folder: Path, limit: float) -> dict[str, Any]:
    """Install one side and run the tests in it."""
    place, tree = folder / side, folder / side / "tree"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    subprocess.run(["git", "clone", "--quiet", "--shared", "--no-checkout", ".", str(tree)], check=True)
    subprocess.run(["git", "-C", str(tree), "checkout", "--quiet", commit], check=True)
    pins: list[str] = []
    if side == "oldest":
        project = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        lines = [f"{name}=={version}\n" for name, version in lower_bounds(project, EXTRA).items()]
        (place / "constraints.txt").write_text("".join(lines), encoding="utf-8")
        pins = ["--constraint", str(place / "constraints.txt")]
    subprocess.run([interpreter, "-m", "venv", str(place / "venv")], check=True)
    python = place / "venv/bin/python"
    install = [str(python), "-m", "pip", "install", "--no-cache-dir", "--quiet", *pins, "--editable", f".[{EXTRA}]"]
    code, seconds = quiet(install, place / "install.log", tree, limit)
    outcome: dict[str, Any] = {"commit": commit, "date": datetime.now(UTC).date().isoformat(), "cores": os.cpu_count(),
                               "platform": platform.platform()}  # fmt: skip
    outcome |= {"install_seconds": seconds, "install_exit_code": code}
    if code:
        return {**outcome, "log": last_lines(place / "install.log", 20)}
    versions = installed(python)
    version = subprocess.check_output([python, "--version"], text=True).split()[1]
    outcome |= {"python": version, "versions": {name: versions[name] for name in SHOWN}, "everything": versions}
    tests = [str(python), "-m", "pytest", "-q", f"--junitxml={place / 'junit.xml'}"]
    code, seconds = quiet(tests, place / "test.log", tree, limit)
    outcome |= {"test_seconds": seconds, "test_exit_code": code}
    if (place / "junit.xml").exists():
        return outcome | counts(place / "junit.xml")
    return {**outcome, "log": last_lines(place / "test.log", 20)}


def table(record: dict[str, Any]) -> str:
    """The record as Markdown, for RESULTS.md."""
    lines = ["| | Python | " + " | ".join(SHOWN) + " | passed | failed | skipped | seconds | commit, date |"]
    lines.append("|---" * (len(SHOWN) + 7) + "|")
    for side, outcome in record.items():
        cells = [side, outcome.get("python", "-"), *(outcome.get("versions", {}).get(name, "-") for name in SHOWN)]
        cells += [str(outcome.get(key, "-")) for key in ("passed", "failed", "skipped", "test_seconds")]
        lines.append("| " + " | ".join([*cells, f"{outcome['commit']}, {outcome['date']}"]) + " |")
    lines += [f"{side}: {name} failed" for side, outcome in record.items() for name in outcome.get("failures", [])]
    return "\n".join(lines)


def main() -> None:
    """Run the sides one after the other; exit code 1 if one does not install or has a failing test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", action="append", choices=SIDES, help="one of them; the other's record stays")
    parser.add_argument("--commit", default="HEAD")
    parser.add_argument("--python", action="append", default=[], metavar="SIDE=PATH", help="default: this Python")
    parser.add_argument("--folder", type=Path, default=Path(".matrix"), help="where the venvs go (default .matrix)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/version_matrix.json"))
    parser.add_argument("--limit", type=float, default=3600, help="seconds for an installation, and for the tests")
    parser.add_argument("--keep", action="store_true", help="leave the venvs")
    options = parser.parse_args()
    interpreters = dict(entry.split("=", 1) for entry in options.python)
    if not set(interpreters) <= set(SIDES):
        parser.error(f"--python {' '.join(options.python)}: SIDE is one of {', '.join(SIDES)}")
    name = ["git", "rev-parse", "--short=12", f"{options.commit}^{{commit}}"]
    commit = subprocess.check_output(name, text=True).strip()
    record = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    sides = options.side or SIDES
    for side in sides:
        print(f"{side} ...", file=sys.stderr, flush=True)
        interpreter = interpreters.get(side, sys.executable)
        record[side] = run_side(side, commit, interpreter, options.folder.resolve(), options.limit)
        if not options.keep:
            shutil.rmtree(options.folder / side / "venv", ignore_errors=True)
        write(options.output, record)
    print(table(record))
    sys.exit(any(record[side]["install_exit_code"] or record[side].get("test_exit_code") for side in sides))


if __name__ == "__main__":
    main()
