"""One process and its surroundings: atomic writes, full disks, hashes, locks, logging, progress. Imports no torch."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from harness.runtime.errors import DiskError, InputError, Problem

T = TypeVar("T")
logger = logging.getLogger("harness")


def configure_logging(verbose: bool = False) -> None:
    """Send the package's log to standard error, one plain line a message; quieten noisy libraries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers[:] = [handler]
    level = logging.INFO if is_main_process() else logging.WARNING
    logger.setLevel(logging.DEBUG if verbose else level)
    logger.propagate = False
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def launched_processes() -> int:
    """How many processes the launcher started together, told from its environment; 1 when there is none.

    Schedulers set WORLD_SIZE in every pod, for a launcher to read; LOCAL_RANK comes from launchers alone.
    """
    told = os.environ.get("WORLD_SIZE", "1")
    return int(told) if "LOCAL_RANK" in os.environ and told.isdigit() else 1


def is_main_process() -> bool:
    """Whether this process is rank 0 (or the only one), told from the launcher's environment."""
    return launched_processes() == 1 or os.environ.get("RANK", "0") == "0"


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


# ------------------------------------------------------------------------------------------ a disk that refuses

_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room or raise the quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or choose another file system with --output DIR",
    errno.EROFS: "make the file system writable, or choose another with --output DIR",
    errno.EIO: "repair the disk, or choose another with --output DIR",
}


def _disk_errno(error: BaseException) -> int | None:
    """The number of a disk's refusal, in whatever a library made of it; None: something else is wrong."""
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        return error.errno
    # newer and older safetensors; shutil.copytree
    told = re.search(r"(?:os error |Os \{ code: |\[Errno )(\d+)", str(error))
    if told and int(told[1]) in _REMEDIES:
        return int(told[1])
    if not isinstance(error, OSError) or not re.search(r"requested and \d+ written", str(error)):
        return None
    import resource  # numpy.save loses the number when a write is cut short

    limited = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
    return errno.EFBIG if limited else errno.ENOSPC


def _bytes_below(path: Path) -> int:
    """The size of a file, or of all files below a folder; 0 when there is nothing."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _free(path: Path) -> str:
    place = next(parent for parent in path.absolute().parents if parent.is_dir() and parent.suffix != ".tmp")
    return f"{shutil.disk_usage(place).free:,} bytes in {place}"


@contextlib.contextmanager
def disk_errors(path: Path, *, size: int | None = None, written: Path | None = None) -> Iterator[None]:
    """Around a write: where the disk refuses it, say what was to be written where, and how much room there is.

    Args:
        path: the final name of what is written.
        size: how many bytes it needs, where that is known.
        written: where the bytes go meanwhile.

    Raises:
        DiskError: no space, quota, file too large, read-only or broken; what of it was begun has no final name.
    """
    try:
        yield
    except Exception as error:
        inner = error if isinstance(error, DiskError) else None
        number = inner.number if inner else _disk_errno(error)
        if number is None:
            raise
        begun = _bytes_below(written) if written else 0
        least = f"more than the {begun:,} bytes written so far"
        needed = f"{size:,} bytes" if size is not None else inner.needed if inner else least
        free = inner.free if inner else _free(path)
        raise DiskError(
            f"{path}: can't be written: {os.strerror(number)}\n    needed: {needed}\n    free: {free}\n"
            f"    next: {_REMEDIES[number]}; the same command goes on from the last good state",
            number, needed, free,
        ) from error  # fmt: skip


# ---------------------------------------------------------------------------------------------- atomic writes


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(
    path: str | os.PathLike[str], mode: str = "wb", *, size: int | None = None, **options: Any
) -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path``; move it over ``path`` when the block ends well, else remove it.

    A reader sees the old content or the new content, never a part, also after a kill or a power cut. ``size`` is how
    many bytes are to come, told when the disk is full.

    Raises:
        DiskError: the disk refuses.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")
    try:
        with disk_errors(path, size=size, written=temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, mode, **options) as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
            _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):  # what went wrong before is what counts
            temporary.unlink()


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], *, size: int | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; when the block ends well it takes the place of ``path``.

    An existing ``path`` is moved aside first and removed after; whoever finds ``path`` finds it whole. Killed in
    between, ``remove_leftovers`` puts the old one back. ``size`` is as for ``atomic_file``.

    Raises:
        DiskError: the disk refuses.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
    try:
        with disk_errors(path, size=size, written=temporary):
            temporary.mkdir(parents=True)
            yield temporary
            for inside in [*temporary.rglob("*"), temporary]:  # else a power cut may leave the name without its bytes
                _sync(inside)
            replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(new: Path, path: Path) -> None:
    """Give the whole folder ``new`` the name ``path``; what had it is moved aside and then removed."""
    old = path.parent / f".{path.name}.{os.getpid()}.old.tmp"
    if path.exists():
        os.replace(path, old)
    os.replace(new, path)
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder so that nobody, after a kill either, meets a part of it under its name."""
    if path.exists():
        aside = path.parent / f".{path.name}.{os.getpid()}.gone.tmp"
        os.replace(path, aside)
        shutil.rmtree(aside, ignore_errors=True)


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


def refuse_file_in_the_way(folder: Path, where: str) -> None:
    """Refuse a folder that is to be written into and can never be there.

    Args:
        where: how the user named it.

    Raises:
        InputError: it is a file, or lies below one.
    """
    at = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not at.is_dir():
        raise InputError(
            Problem("a file stands where a folder has to be", where=where, got=str(at),
                    allowed="a folder, or a new name", next="choose another")
        )  # fmt: skip


def remove_leftovers(folder: Path, pattern: str = "**/.*.tmp") -> None:
    """Clear away what killed processes left below ``folder``; what they had only moved aside gets its name back."""
    for path in sorted(folder.glob(pattern), reverse=True):
        moved = re.fullmatch(r"\.(.+)\.\d+\.old\.tmp", path.name)
        if moved and not (path.parent / moved[1]).exists():
            os.replace(path, path.parent / moved[1])
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented UTF-8 JSON, atomically. NaN is refused: it is not JSON."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    content = text.encode("utf-8")
    with atomic_file(path, size=len(content)) as stream:
        stream.write(content)


def read_json(path: str | os.PathLike[str], *, next: str = "restore it from where it came") -> Any:
    """Read JSON; ``next`` is what to do when it is missing or damaged.

    Raises:
        InputError: there is no such file, or it is not JSON (a damaged artefact).
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(Problem("no such file", where=str(path), next=next)) from None
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


LOCK = ".lock"  # held by whoever runs a recipe or a verb


def is_locked(folder: Path, name: str = LOCK) -> bool:
    """Whether a living process holds the folder's lock."""
    import fcntl

    try:
        with open(folder / name, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


@contextlib.contextmanager
def folder_lock(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Hold the folder's lock, so that one run works in it at a time; the system releases it if we are killed.

    Raises:
        InputError: another process holds it (named by its process id), or the folder can't be written.
    """
    import fcntl

    path = folder / name
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
