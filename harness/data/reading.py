"""Reading files line by line: what is wrong is counted per file and kind, and the first few places are named."""

from __future__ import annotations

import codecs
import glob
import gzip
import json
import math
import re
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.data.grouping import PARALLEL
from harness.data.records import UNKNOWN_LANGUAGE
from harness.recipe import DataSettings
from harness.runtime.errors import InputError, Problem

NAMED_PLACES = 5  # of each kind of bad line in a file
PREVIEW_LINES = 1_000_000  # a file, where a preview is enough
MAX_LINE_BYTES = 4 * 2**20  # a longer line is no text to search for or with: a file without line breaks, or garbage
_EXACT = 2**53  # below it a float64 holds every whole number
_JSONL = (".jsonl", ".json")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class BadLine(Exception):
    """A line that can't be used: ``kind`` says why, ``got`` what stood there."""

    def __init__(self, kind: str, got: Any = "") -> None:
        super().__init__(kind)
        self.kind = kind
        text = got if isinstance(got, str) else repr(got)
        self.got = text if len(text) <= 60 else text[:57] + "..."


@dataclass
class FileCount:
    """How much of a file was read; ``estimated`` is the number of lines of the whole file."""

    lines: int = 0
    complete: bool = True
    estimated: int = 0


@dataclass
class _Places:
    count: int = 0
    first: list[tuple[int, str]] = field(default_factory=list)


class Reading:
    """One pass over the files of a data set.

    Args:
        limit: the most lines (or rows) read of a file; ``None`` reads everything.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.files: dict[str, FileCount] = {}
        self._bad: dict[tuple[str, str], _Places] = {}

    @property
    def complete(self) -> bool:
        """Whether every file was read to its end."""
        return all(count.complete for count in self.files.values())

    @property
    def bad_count(self) -> int:
        """How many lines could not be used."""
        return sum(places.count for places in self._bad.values())

    def bad(self, file: Path | str, line: int, problem: BadLine, count: int = 1) -> None:
        """Count a bad line, or so many with this one; the first few of its kind in the file are remembered."""
        places = self._bad.setdefault((str(file), problem.kind), _Places())
        places.count += count
        if len(places.first) < NAMED_PLACES:
            places.first.append((line, problem.got))

    def problems(self, forgiven: Container[str] = ()) -> list[Problem]:
        """One problem for each file and kind of bad line (but those forgiven), with its count and first places."""
        found = []
        for (file, kind), places in self._bad.items():
            if kind in forgiven:
                continue
            got = "; ".join(f"line {line} {text}".rstrip() for line, text in places.first)
            found.append(
                Problem(
                    f"{kind} ({places.count} {'line' if places.count == 1 else 'lines'})",
                    where=f"{file}:{places.first[0][0]}",
                    got=got + ("; ..." if places.count > len(places.first) else ""),
                    next="correct the file, or set data.on_error: skip",
                )
            )
        return found

    def bad_lines(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The same as plain values: file -> kind -> {"count", "first"}, ``first`` holding line numbers."""
        result: dict[str, dict[str, dict[str, Any]]] = {}
        for (file, kind), places in self._bad.items():
            kinds = result.setdefault(file, {})
            kinds[kind] = {"count": places.count, "first": [line for line, _ in places.first]}
        return result

    def lines(self, path: Path) -> Iterator[tuple[int, str]]:
        """The lines of a UTF-8 file, plain or ``.gz``, counted from 1, blank ones left out; a BOM and CRLF are removed.

        Raises:
            InputError: the file can't be read, or is a damaged ``.gz``.
        """
        count = self.files[str(path)] = FileCount()
        try:
            with open(path, "rb") as raw:
                stream: Any = gzip.open(raw) if path.suffix == ".gz" else raw  # noqa: SIM115 - raw is closed
                for number, line in enumerate(_bounded_lines(stream), 1):
                    if self.limit is not None and number > self.limit:
                        count.complete = False
                        share = raw.tell() / max(path.stat().st_size, 1)
                        count.estimated = max(number, round(count.lines / max(share, 1e-9)))
                        return
                    count.lines = count.estimated = number
                    if number == 1:
                        _require_text_file(path, line)
                        line = line.removeprefix(codecs.BOM_UTF8)
                    if len(line) > MAX_LINE_BYTES:
                        head = line[:40].decode("utf-8", "replace")
                        self.bad(path, number, BadLine(f"a line longer than {MAX_LINE_BYTES:,} bytes", head))
                        continue
                    try:
                        text = line.decode("utf-8").rstrip("\r\n")
                    except UnicodeDecodeError as error:
                        self.bad(path, number, BadLine("not UTF-8", line[error.start : error.start + 8]))
                        continue
                    if text and not text.isspace():
                        yield number, text
        except (OSError, EOFError, zlib.error) as error:
            what = "no such file" if isinstance(error, FileNotFoundError) else "the file can't be read"
            problem = Problem(what, where=str(path), got=str(error), next="check the path, or get it again")
            raise InputError(problem) from None

    def objects(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """The JSON objects of a JSONL file, with their line numbers."""
        for number, line in self.lines(path):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                self.bad(path, number, BadLine("not JSON", line))
                continue
            if isinstance(value, dict):
                yield number, value
            else:
                self.bad(path, number, BadLine("not a JSON object", line))

    def rows(self, path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows of a JSONL (plain or ``.gz``) or Parquet file; of Parquet, only those of ``columns`` that it has.

        Raises:
            InputError: the file can't be read, or is neither.
        """
        if path.name.removesuffix(".gz").endswith(_JSONL):
            yield from self.objects(path)
        elif path.suffix == ".parquet":
            yield from self.table(str(path), _parquet_rows(path, columns), parquet_length(path))
        else:
            raise InputError(kind_problems(path, "data"))

    def table(self, name: str, rows: Iterable[dict[str, Any]], length: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number the rows of a table from 1 and stop at the limit."""
        count = self.files[name] = FileCount(estimated=length)
        for number, row in enumerate(rows, 1):
            if self.limit is not None and number > self.limit:
                count.complete = False
                return
            count.lines = number
            yield number, row


def _bounded_lines(stream: Any) -> Iterator[bytes]:
    """The lines of a binary stream; of one that is too long, only its head is kept in memory."""
    while line := stream.readline(MAX_LINE_BYTES + 1):
        rest = line
        while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = stream.readline(MAX_LINE_BYTES + 1)
        yield line


def _require_text_file(path: Path, head: bytes) -> None:
    """Refuse what its first bytes show to be no UTF-8 text at all."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(Problem("the file is UTF-16, not UTF-8", where=str(path),
                                 next=f"convert it: iconv -f UTF-16 -t UTF-8 {path.name}"))
    if head.startswith(b"\x1f\x8b"):
        raise InputError(Problem("the file is compressed with gzip, but its name does not end in .gz", where=str(path),
                                 next=f"rename it to {path.name}.gz"))


def open_parquet(path: Path) -> Any:
    """A ``pyarrow.parquet.ParquetFile``, to be closed.

    Raises:
        InputError: it can't be read as one.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        return parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(Problem("not readable as Parquet", where=str(path), got=str(error).splitlines()[0],
                                 next="get the file again, or write it again")) from None


def parquet_length(path: Path) -> int:
    """Its rows; raises as ``open_parquet``."""
    with open_parquet(path) as file:
        return int(file.metadata.num_rows)


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    with open_parquet(path) as file:
        present = [name for name in dict.fromkeys(columns) if name in file.schema_arrow.names]
        for batch in file.iter_batches(columns=present):
            yield from batch.to_pylist()


def kind_problems(path: Path, key: str) -> list[Problem]:
    """A problem if a file's name says that it is neither JSONL nor Parquet."""
    if path.name.removesuffix(".gz").endswith(_JSONL) or path.suffix == ".parquet":
        return []
    return [Problem("unknown kind of file", where=f"{key}: {path}", allowed=".jsonl, .jsonl.gz, .parquet",
                    next="convert it, and name it so")]  # fmt: skip


def find_files(paths: str | Sequence[str], key: str) -> list[Path]:
    """Expand a path, a list of paths, or patterns with ``*`` into existing files, each once.

    Raises:
        InputError: a path or pattern that matches no file.
    """
    found: list[Path] = []
    problems = []
    for name in [paths] if isinstance(paths, str) else paths:
        names = [name] if Path(name).exists() else sorted(glob.glob(name, recursive=True))
        matches = [Path(match) for match in names if Path(match).is_file()]
        if not matches:
            problems.append(Problem("no such file", where=f"{key}: {name}", allowed="a file, or a pattern with *"))
        found += matches
    if problems:
        raise InputError(problems)
    return list(dict.fromkeys(found))


# --------------------------------------------------------------------------------------------- values of a line


def check_id(value: Any) -> str:
    """An id as it is. Raises ``BadLine`` for anything but a string without control characters."""
    if value is None or value == "":
        raise BadLine("no id")
    if not isinstance(value, str):
        raise BadLine("the id is not a string: put it in quotes", value)
    if _CONTROL.search(value) or value.isspace():
        raise BadLine("the id is blank or holds a control character", repr(value))
    return _encodable(value, "id")


def check_text(value: Any, name: str = "text") -> str:
    """A text without the whitespace around it, ``""`` for none. Raises ``BadLine`` for what is no string."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadLine(f"the {name} is not a string", value)
    return _encodable(value.strip(), name)


def require_text(value: Any, name: str = "text") -> str:
    """Like ``check_text``, but a missing or blank text is a ``BadLine`` too."""
    text = check_text(value, name)
    if not text:
        raise BadLine(f"no {name}")
    return text


def check_language(value: Any, name: str = "lang") -> str:
    """A language, ``""`` for none; it will stand in tables, so control characters are refused."""
    language = check_text(value, name)
    if _CONTROL.search(language):
        raise BadLine(f"the {name} holds a control character", repr(language))
    return language


def check_label(value: Any, name: str) -> str:
    """A group or key: a string or a whole number, ``""`` for none.

    Tables store whole numbers as floats where some are missing: such are the same number, and NaN is none. Beyond
    ``_EXACT`` two numbers may be stored as one, so that floats are refused there.
    """
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        if value.is_integer() and abs(value) < _EXACT:
            value = int(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else check_text(value, name)


def group_fields(settings: DataSettings, usual: str) -> tuple[str, str]:
    """The fields of a line's group and parallel id; the latter is ``""`` where the recipe names a field of groups."""
    field = settings.group or usual
    return field, PARALLEL if settings.group is None and field == "group" else ""


def check_groups(value: Mapping[str, Any], group: str, parallel: str) -> tuple[str, str]:
    """The group and the parallel id of a line, ``""`` for none; ``parallel`` is ``""`` where it is not to be read."""
    return check_label(value.get(group), group), check_label(value.get(parallel), parallel) if parallel else ""


def check_number(value: Any, name: str, *, lowest: float = -math.inf) -> float:
    """A finite number, 1.0 for none."""
    if value is None:
        return 1.0
    try:
        number = float(value) if not isinstance(value, bool | bytes) else math.nan
        if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):  # Python also reads 1_0 and other digits
            number = math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadLine(f"the {name} is not a finite number", value)
    if number < lowest:
        raise BadLine(f"the {name} is below {lowest:g}", value)
    return number


def _encodable(text: str, name: str) -> str:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:  # JSON can spell half a character ("\\ud83d"), which no UTF-8 file can hold
            raise BadLine(f"the {name} holds half a character", ascii(text)) from None
    return text


class LanguageColumn:
    """The ``lang`` of a file's rows: on every row, or on none (``und`` for all).

    ``default`` stands in for rows without one.
    """

    def __init__(self, default: str | None = None) -> None:
        self.values: list[str] = []
        self._default = default
        self._missing: list[tuple[int, int]] = []

    def add(self, value: str, line: int) -> None:
        """Append a row's language, ``""`` for none."""
        if not value and self._default is None:
            self._missing.append((len(self.values), line))
        self.values.append(value or self._default or UNKNOWN_LANGUAGE)

    def settle(self, reading: Reading, path: Path | str) -> set[int]:
        """The rows to leave out: those without a language where other rows have one; they are counted as bad."""
        if len(self._missing) == len(self.values):
            return set()
        for _, line in self._missing:
            reading.bad(path, line, BadLine("no lang, which other lines of the file have"))
        return {row for row, _ in self._missing}
