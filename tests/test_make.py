"""What `make` promises: the same parts here and in .ci/run; every dependency pinned at or above its lower bound."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def makefile() -> str:
    return (ROOT / "Makefile").read_text(encoding="utf-8")


def _needs(makefile: str, target: str) -> list[str]:
    (line,) = re.findall(rf"^{target}:(.*)$", makefile, re.MULTILINE)
    return line.split()


def test_check_and_ci_have_the_same_parts(makefile: str) -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    parts = re.findall(r"^step (\S+)$", ci, re.MULTILINE)
    assert _needs(makefile, "check") == parts == ["lint", "types", "arrows", "browser", "test"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_the_arrows_are_the_test_of_the_architecture(makefile: str) -> None:
    (path,) = re.findall(r"^arrows:.*\n\t.*pytest.* (\S+)$", makefile, re.MULTILINE)
    assert (ROOT / path).is_file() and "arrows" in (ROOT / path).read_text(encoding="utf-8")


def test_every_phony_target_exists_and_is_told(makefile: str) -> None:
    told = re.search(r"^help:\n(?:\t.*\n)+", makefile, re.MULTILINE)
    assert told
    told_text = told[0] + "\n".join(makefile.splitlines()[:4])
    for target in _needs(makefile, r"\.PHONY"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
        assert target == "help" or f"make {target}" in told_text, target


def _dependencies() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(entry) for several in lists for entry in several if not entry.startswith(project["name"])]


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()]
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines if line)}
    assert len(_dependencies()) > 25
    for requirement in _dependencies():
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not pinned"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} against {version}"


def test_every_lower_bound_can_be_tested() -> None:
    """`make matrix` takes the lower bounds as exact versions: each needs one, and no other condition."""
    for requirement in _dependencies():
        operators = [clause.operator for clause in requirement.specifier]
        assert operators in ([">="], []), requirement
        assert operators or requirement.name.startswith("types-"), f"{requirement.name} has no lower bound"
