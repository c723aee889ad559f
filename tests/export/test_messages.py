"""Every refusal of what is exported says what, where, got, allowed and what to do next."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.engines.deployed import check_folder
from harness.engines.load import load
from harness.export.pair import export_pair
from harness.export.student import check_student, export_student
from harness.runtime.errors import InputError

ROOT = Path(__file__).parents[2] / "harness"
FILES = [*sorted((ROOT / "export").rglob("*.py")), *sorted((ROOT / "engines").rglob("*.py")),
         *(ROOT / "pipeline" / name for name in ("verify.py", "verify_pair.py", "work_export.py"))]  # fmt: skip


def test_every_problem_has_all_five_parts() -> None:
    found, short = 0, []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Problem":
                found += 1
                missing = {"where", "got", "allowed", "next"} - {word.arg for word in node.keywords}
                short += [f"{path.name}:{node.lineno} lacks {', '.join(sorted(missing))}"] if missing else []
    assert found > 25 and short == []


def missing(path: Path) -> None:
    path.unlink()


def broken(path: Path) -> None:
    path.write_text("{broken", encoding="utf-8")


def a_list(path: Path) -> None:
    path.write_text("[1]", encoding="utf-8")


def edited(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "space": None}), encoding="utf-8")


def another_shape(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "files": ["a"]}), encoding="utf-8")


@pytest.fixture
def deployed(student: Path, tmp_path: Path) -> Path:
    export_student(student, tmp_path / "student")
    return tmp_path / "student"


@pytest.mark.parametrize("change", [missing, broken, a_list, edited, another_shape])
def test_a_missing_or_damaged_harness_json_says_what_to_do(
    deployed: Path, student: Path, teacher: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    other = Path(shutil.copytree(student, tmp_path / "other"))
    change(deployed / "harness.json")
    if change is not another_shape:
        change(other / "harness.json")
    checks: dict[str, Callable[[], Any]] = {"verify": lambda: check_student(deployed)}
    if change is not missing:  # then it is somebody else's folder
        checks |= {"load": lambda: load(deployed), "folder": lambda: check_folder(deployed)}
    if change is not another_shape:
        checks["pair"] = lambda: export_pair(teacher, other, tmp_path / "pair")
    for name, check in checks.items():
        with pytest.raises(InputError) as caught:
            check()
        told = [problem for problem in caught.value.problems if "harness.json" in str(problem)]
        assert told and all(problem.next for problem in told), f"{name}: {caught.value}"
