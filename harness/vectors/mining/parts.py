"""Mined negatives at rest: parts of consecutive queries, each whole or not there.

    manifest.json       what they were made from, and one entry a part; written last
    part-00000.parquet  query_id, document_ids, scores (best first), positive_scores
    part-00000.json     the part's own entry, written when the part is whole, so that a killed run can go on
    audit.json  audit.md

Axes: Q queries, B queries of a part, M negatives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.runtime.errors import InputError, Problem, StaleArtefactError
from harness.runtime.process import atomic_file, file_sha256, read_json, write_json
from harness.vectors.store import name_some

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA = 1
AGAIN = "run the mine step again"


@dataclass(frozen=True, slots=True)
class Part:
    """One part's entry.

    ``made`` is the fingerprint of what everything was mined from, ``content`` that of its queries' ids; ``longest`` the
    most negatives of a query; ``counts`` is what ``audit.Counts`` tells.
    """

    number: int
    made: str
    content: str
    queries: int
    longest: int
    sha256: str
    counts: dict[str, Any]

    def path(self, folder: Path, suffix: str = "parquet") -> Path:
        """One of the part's two files."""
        return folder / f"part-{self.number:05d}.{suffix}"


def write_part(folder: Path, part: Part, table: pa.Table) -> None:
    """Write the part's table, then its entry. ``sha256`` is found here."""
    import pyarrow.parquet as pq

    part.path(folder, "json").unlink(missing_ok=True)  # from here until the end the part is unfinished
    with atomic_file(part.path(folder)) as stream:
        pq.write_table(table, stream)
    write_json(part.path(folder, "json"), {**asdict(part), "sha256": file_sha256(part.path(folder))})


def finished_part(folder: Path, number: int, made: str, content: str) -> Part | None:
    """The part, if an earlier run left it whole and made from the same."""
    try:
        part = Part(**read_json(Part(number, "", "", 0, 0, "", {}).path(folder, "json")))
        same = (part.number, part.made, part.content) == (number, made, content)
        return part if same and file_sha256(part.path(folder)) == part.sha256 else None
    except (InputError, TypeError, OSError):
        return None


def table_of(
    query_ids: Sequence[str], lists: Mapping[str, tuple[np.ndarray, Any]], positive: tuple[np.ndarray, np.ndarray]
) -> pa.Table:
    """A part's table.

    Args:
        query_ids: B ids.
        lists: column -> (how many of it each query has, int [B]; the values of all queries one after the other).
        positive: the same of the scores of positives.
    """
    import pyarrow as pa

    columns: dict[str, Any] = {"query_id": pa.array(query_ids, type=pa.string())}
    for name, (count_B, values) in {**lists, "positive_scores": positive}.items():
        offsets = pa.array(np.concatenate([[0], np.cumsum(count_B)]).astype(np.int32))
        columns[name] = pa.ListArray.from_arrays(offsets, pa.array(values))
    return pa.table(columns)


def write_manifest(folder: Path, made: str, parts: Sequence[Part]) -> None:
    """Seal a folder whose parts are all there."""
    entries = [{key: value for key, value in asdict(part).items() if key not in ("counts", "made")} for part in parts]
    write_json(folder / "manifest.json", {"schema": SCHEMA, "made": made, "parts": entries})


def read_manifest(folder: Path) -> tuple[str, list[Part]]:
    """What the parts were made from, and the parts.

    Raises:
        InputError: nothing was mined there. StaleArtefactError: the manifest is no manifest of this version.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise InputError(Problem("no mined negatives", where=str(folder), got="no manifest.json", next=AGAIN))
    told = read_json(path, next=AGAIN)
    try:
        assert told["schema"] == SCHEMA
        return told["made"], [Part(**entry, made=told["made"], counts={}) for entry in told["parts"]]
    except (KeyError, TypeError, AssertionError):
        raise StaleArtefactError(Problem("not the manifest of mined negatives of this version", where=str(path),
                                         next=AGAIN)) from None


def read_tables(folder: Path | str) -> Iterator[tuple[Path, pa.Table]]:
    """The parts one by one: (file, query_id, document_ids, scores). What version 0.1 wrote is one file.

    Raises:
        InputError: nothing was mined there, or what version 0.1 wrote is damaged.
        StaleArtefactError: a part is missing, damaged, or of other negatives.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(folder)
    single = folder / "mined.parquet"
    if single.is_file():
        paths: list[tuple[Path, Part | None]] = [(single, None)]
    else:
        paths = [(part.path(folder), part) for part in read_manifest(folder)[1]]
    for path, part in paths:
        if part is not None and (not path.is_file() or file_sha256(path) != part.sha256):
            raise StaleArtefactError(Problem("missing, damaged, or of other negatives than the manifest says",
                                             where=str(path), next=AGAIN))
        try:
            yield path, pq.read_table(path, columns=["query_id", "document_ids", "scores"])
        except (OSError, pa.ArrowException) as error:
            raise InputError(Problem("damaged", where=str(path), got=str(error)[:200], next=AGAIN)) from None


def load_mined(folder: Path | str, query_ids: Sequence[str], row: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Read the negatives of the given queries.

    Args:
        folder: what ``mine`` wrote.
        query_ids: Q ids, in the order wanted.
        row: document id -> row.

    Returns:
        (row_QM int64, score_QM float32), best first; row -1 and score -inf where there are fewer; M is the longest
        list's length.

    Raises:
        InputError: nothing was mined there, or the file is damaged.
        StaleArtefactError: a part is missing or damaged, queries are lacking, or documents are not in ``row``.
    """
    place = {name: at for at, name in enumerate(query_ids)}
    found_Q = np.zeros(len(query_ids), dtype=bool)
    strange: set[str] = set()
    read = [_rows_of(table, place, row, strange) for _, table in read_tables(folder)]
    longest = max((int(count_B.max(initial=0)) for _, count_B, _, _ in read), default=0)
    row_QM = np.full((len(query_ids), longest), -1, dtype=np.int64)
    score_QM = np.full((len(query_ids), longest), -np.inf, dtype=np.float32)
    for query_B, count_B, row_P, score_P in read:
        found_Q[query_B] = True
        real_BM = np.arange(longest) < count_B[:, None]
        query_P, column_P = query_B[np.nonzero(real_BM)[0]], np.nonzero(real_BM)[1]
        row_QM[query_P, column_P], score_QM[query_P, column_P] = row_P, score_P
    lacking = [query_ids[at] for at in np.flatnonzero(~found_Q).tolist()]
    if lacking or strange:
        raise StaleArtefactError([
            Problem(f"{len(some)} {what}", where=str(folder), got=name_some(some), next=AGAIN)
            for what, some in (("queries are not in it", lacking), ("documents in it are unknown", sorted(strange)))
            if some
        ])  # fmt: skip
    return row_QM, score_QM


def _rows_of(
    table: pa.Table, place: Mapping[str, int], row: Mapping[str, int], strange: set[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of the wanted queries of a part: their places, how many negatives each has, and all rows and scores."""
    place_B = np.array([place.get(name, -1) for name in table["query_id"].to_pylist()], dtype=np.int64)
    table = table.filter(place_B >= 0) if (place_B < 0).any() else table
    lists, scores = table["document_ids"].combine_chunks(), table["scores"].combine_chunks()
    names = lists.flatten().to_pylist()
    strange.update(name for name in names if name not in row)
    row_P = np.array([row.get(name, -1) for name in names], dtype=np.int64)
    return place_B[place_B >= 0], np.diff(lists.offsets.to_numpy()), row_P, scores.flatten().to_numpy()
