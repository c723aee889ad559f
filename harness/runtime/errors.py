"""What goes wrong for people: every message says what, got, allowed, where and what to do next."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with an input.

    Args:
        what: what is wrong, in one clause ("unknown key").
        where: the file and line, recipe key or flag.
        got: what was found there.
        allowed: what would have been accepted.
        next: what to do about it.
    """

    what: str
    where: str = ""
    got: str = ""
    allowed: str = ""
    next: str = ""

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        parts = [("got", self.got), ("allowed", self.allowed), ("next", self.next)]
        return "\n".join([head, *(f"    {name}: {text}" for name, text in parts if text)])


class InputError(ValueError):
    """The input is wrong (recipe, data, flags): the command line exits with 2 and lists every problem."""

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        assert self.problems, "an InputError needs at least one problem"
        super().__init__("\n".join(str(problem) for problem in self.problems))


class StaleArtefactError(InputError):
    """An artefact was made from something else than what is at hand; both are named."""


def gather_problems(*checks: Callable[[], object]) -> None:
    """Run every check, so that all problems are told at once, each of them once.

    Raises:
        InputError: what any of them found. StaleArtefactError: where all of it is stale artefacts.
    """
    found: list[InputError] = []
    for check in checks:
        try:
            check()
        except InputError as error:
            found.append(error)
    if found:
        stale = all(isinstance(error, StaleArtefactError) for error in found)
        told = dict.fromkeys(problem for error in found for problem in error.problems)
        raise (StaleArtefactError if stale else InputError)(told)


class RunError(RuntimeError):
    """A run failed after its input was accepted: the command line exits with ``exit_code``."""

    exit_code = 1


class StoppedError(RunError):
    """A run was asked to stop, and did; the same command goes on."""


class StepFailedError(RunError):
    """A step that was started as a command failed, and has said why itself."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class DiskError(RunError):
    """A disk refused a write: what was written before is whole, and what was being written has no final name.

    Attributes:
        number: the system's number (``errno.ENOSPC``, ...).
        needed, free: how many bytes were to be written, and how many the disk has, in words.
    """

    def __init__(self, message: str, number: int, needed: str, free: str) -> None:
        super().__init__(message)
        self.number, self.needed, self.free = number, needed, free
