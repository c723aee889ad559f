"""One process and its surroundings: atomic writes, hashes, locks, logging, progress. Imports no torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from harness.runtime.errors import InputError, Problem

T = TypeVar("T")
logger = logging.getLogger("harness")


def configure_logging(verbose: bool = False) -> None:
    """Send the package's log to standard error, one plain line a message; quieten noisy libraries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def is_main_process() -> bool:
    """Whether this process is rank 0 (or the only one), told from the launcher's environment."""
    return os.environ.get("RANK", "0") == "0"


def progress(
    items: Iterable[T] | None = None, *, what: str, total: int | None = None, unit: str = "it", initial: int = 0
) -> Any:
    """A progress bar with rate and remaining time; silent when standard error is no terminal or rank is not 0.

    Returns:
        A ``tqdm`` bar: iterate over it, or call ``update`` and ``set_postfix_str`` and use it in a ``with``.
    """
    from tqdm import tqdm

    hidden = True if not is_main_process() else None  # None: tqdm asks whether it writes to a terminal
    return tqdm(
        items, desc=what, total=total, unit=unit, initial=initial, disable=hidden, dynamic_ncols=True, leave=False
    )


# ---------------------------------------------------------------------------------------------- atomic writes


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str], mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path``; move it over ``path`` when the block ends well, else remove it.

    A reader sees the old content or the new content, never a part, also after a kill or a power cut.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")
    try:
        with open(temporary, mode, **options) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; when the block ends well it takes the place of ``path``.

    An existing ``path`` is moved aside first and removed after; whoever finds ``path`` finds it whole.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        old = path.parent / f".{path.name}.{os.getpid()}.old.tmp"
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        _sync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_foreign_content(folder: Path, ours: Sequence[str]) -> None:
    """Refuse to write into something that holds what we would not write there ourselves.

    Args:
        folder: may be absent, empty, or hold names of ``ours`` only.

    Raises:
        InputError: it is a file, or holds something else (named).
    """
    if not folder.exists():
        return
    others = sorted(p.name for p in folder.iterdir() if p.name not in ours) if folder.is_dir() else [folder.name]
    if others:
        raise InputError(
            Problem("this holds other things, which would be lost", where=str(folder), got=", ".join(others[:5]),
                    next="give a new or empty folder")
        )  # fmt: skip


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files and folders that a killed process left anywhere below ``folder``."""
    for path in sorted(folder.rglob(".*.tmp"), reverse=True):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented UTF-8 JSON, atomically. NaN is refused: it is not JSON."""
    with atomic_file(path, "w") as stream:
        json.dump(value, stream, indent=1, ensure_ascii=False, allow_nan=False)
        stream.write("\n")


def read_json(path: str | os.PathLike[str], *, next: str = "restore it from where it came") -> Any:
    """Read JSON; ``next`` is what to do when it is damaged.

    Raises:
        InputError: there is no such file, or it is not JSON (a damaged artefact).
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(Problem("no such file", where=str(path))) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            Problem("not readable as JSON", where=str(path), got=str(error), next=next)
        ) from None


# -------------------------------------------------------------------------------------------------- fingerprints


def fingerprint(value: Any) -> str:
    """The sha256 of ``value`` in canonical JSON, the same on every machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_sha256(folder: str | os.PathLike[str]) -> str:
    """One sha256 over the relative names and contents of all files below ``folder``, hidden ones left out."""
    folder = Path(folder)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return fingerprint(
        [(name.as_posix(), file_sha256(folder / name)) for name in names if not name.name.startswith(".")]
    )


# ---------------------------------------------------------------------------------------------------------- locks


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that one run works in it at a time; the system releases it if we are killed.

    Raises:
        InputError: another process holds it (named by its process id), or the folder can't be written.
    """
    import fcntl

    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - closed below, held meanwhile
    except OSError as error:
        raise InputError(
            Problem(
                "the output folder can't be written",
                where=str(folder),
                got=str(error),
                next="choose another with --output DIR",
            )
        ) from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise InputError(
                Problem(
                    "another run works in this folder",
                    where=str(folder),
                    got=f"process {holder}",
                    next="wait for it, stop it, or choose another folder with --output DIR",
                )
            ) from None
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield
