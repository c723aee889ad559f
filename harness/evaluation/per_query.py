"""The evaluation of one system on one set, query by query: the file from which every number is computed later.

Axes: Q queries, K ranks, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.runtime.errors import InputError, Problem, StaleArtefactError
from harness.runtime.process import atomic_folder, file_sha256, read_json, write_json

Floats = NDArray[np.float64]

TABLE = "per_query.parquet"
VECTORS = "query_vectors.npy"
MANIFEST = "manifest.json"
AGAIN = "delete the folder and run the evaluate step again"
_COLUMNS = ("id", "lang", "group", "weight", "hits", "scores")


@dataclass
class PerQuery:
    """What one system answered to each query of a set, and how good that was.

    Attributes:
        ids, languages, groups: one a query; a group is what the bootstrap resamples (``Record.group``).
        weights: float64_Q, the queries' weights.
        hits: document ids, best first; a list may be shorter than K where there are fewer documents.
        scores: float32_QK; -inf where there is no hit.
        metrics: metric -> float64_Q (see ``harness.metrics``).
        agreement: measure against the reference -> float64_Q (``overlap@10``, ``rbo@100``, ``cosine``); may be empty.
    """

    ids: list[str]
    languages: list[str]
    groups: list[str]
    weights: Floats
    hits: list[list[str]]
    scores: NDArray[np.float32]
    metrics: dict[str, Floats]
    agreement: dict[str, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns: dict[str, Any] = {
            "languages": self.languages, "groups": self.groups, "weights": self.weights, "hits": self.hits,
            "scores": self.scores, **self.metrics, **self.agreement,
        }  # fmt: skip
        wrong = [f"{name} has {len(column)}" for name, column in columns.items() if len(column) != len(self.ids)]
        assert not wrong, f"{len(self.ids)} queries, but {', '.join(wrong)}"

    def __len__(self) -> int:
        return len(self.ids)

    def save(self, folder: Path, manifest: Mapping[str, Any], query_QD: NDArray[np.float32] | None = None) -> None:
        """Write ``per_query.parquet`` (one row a query) and ``manifest.json``, both or neither.

        The columns are id, lang, group, weight, hits, scores and one for each metric and measure of agreement;
        ``manifest`` (what the evaluation was made from) gains the names of those and the files' sha256. ``query_QD``
        are the queries' vectors, where they are to be kept beside (``load_query_vectors``).
        """
        import pyarrow as pa
        import pyarrow.parquet as parquet

        assert not set(_COLUMNS) & (self.metrics.keys() | self.agreement.keys()), "a metric is named like a column"
        assert not self.metrics.keys() & self.agreement.keys(), "a metric is named like a measure of agreement"
        scores = pa.FixedSizeListArray.from_arrays(
            pa.array(np.ascontiguousarray(self.scores, dtype=np.float32).ravel()), self.scores.shape[1]
        )
        columns = {
            "id": pa.array(self.ids, pa.string()),
            "lang": pa.array(self.languages, pa.string()),
            "group": pa.array(self.groups, pa.string()),
            "weight": pa.array(self.weights, pa.float64()),
            "hits": pa.array(self.hits, pa.list_(pa.string())),
            "scores": scores,
            **{name: pa.array(column, pa.float64()) for name, column in (self.metrics | self.agreement).items()},
        }
        with atomic_folder(folder) as temporary:
            parquet.write_table(pa.table(columns), temporary / TABLE, compression="zstd")
            own = {"queries": len(self), "metrics": list(self.metrics), "agreement": list(self.agreement),
                   "sha256": file_sha256(temporary / TABLE)}  # fmt: skip
            if query_QD is not None:
                with open(temporary / VECTORS, "wb") as stream:
                    np.save(stream, query_QD, allow_pickle=False)
                own["vectors_sha256"] = file_sha256(temporary / VECTORS)
            write_json(temporary / MANIFEST, {**manifest, **own})

    @classmethod
    def load(cls, folder: Path, *, hits: bool = True) -> PerQuery:
        """Read what ``save`` wrote; ``hits=False`` leaves hits and scores empty, for who needs numbers alone.

        Raises:
            InputError: a file is missing, or the table is not the one that the manifest describes.
        """
        import pyarrow.parquet as parquet

        manifest = read_json(folder / MANIFEST, next=AGAIN)
        path = _described(folder / TABLE, manifest.get("sha256"))
        names = [*manifest["metrics"], *manifest["agreement"]]
        wanted = [column for column in _COLUMNS if hits or column not in ("hits", "scores")]
        table = parquet.read_table(path, columns=[*wanted, *names])
        numbers = {name: table[name].to_numpy() for name in ["weight", *names]}
        return cls(
            ids=table["id"].to_pylist(),
            languages=table["lang"].to_pylist(),
            groups=table["group"].to_pylist(),
            weights=numbers["weight"],
            hits=_hit_lists(table["hits"]) if hits else [[] for _ in range(len(table))],
            scores=_score_rows(table["scores"]) if hits else np.zeros((len(table), 0), np.float32),
            metrics={name: numbers[name] for name in manifest["metrics"]},
            agreement={name: numbers[name] for name in manifest["agreement"]},
        )


def described(folder: Path, *, vectors: bool = False) -> dict[str, Any]:
    """An evaluation's manifest, if the files beside it are those that it describes; ``vectors``: the queries' too.

    Raises:
        InputError: one is missing, damaged or another.
    """
    manifest: dict[str, Any] = read_json(folder / MANIFEST, next=AGAIN)
    _described(folder / TABLE, manifest.get("sha256"))
    if vectors:
        _described(folder / VECTORS, manifest.get("vectors_sha256"))
    return manifest


def load_query_vectors(folder: Path) -> NDArray[np.float32]:
    """The queries' vectors that ``PerQuery.save`` kept, [Q, D].

    Raises:
        InputError: the file is missing, or not the one that the manifest describes.
    """
    path = _described(folder / VECTORS, read_json(folder / MANIFEST, next=AGAIN).get("vectors_sha256"))
    query_QD: NDArray[np.float32] = np.load(path, allow_pickle=False)
    return query_QD


def _described(path: Path, sha256: str | None) -> Path:
    """The path, if its file is the one that the manifest beside it describes."""
    if not path.is_file():
        raise InputError(Problem("no such file", where=str(path), next="run the evaluate step again"))
    got = file_sha256(path)
    if got != sha256:
        raise StaleArtefactError(
            Problem("the file is not the one that its manifest describes", where=str(path), got=f"sha256 {got[:12]}",
                    allowed=f"sha256 {str(sha256)[:12]}", next=AGAIN)
        )  # fmt: skip
    return path


def _hit_lists(column: Any) -> list[list[str]]:
    """Lists of ids in which equal ids are one string: 50,000 x 100 hits then take 40 MB instead of 300."""
    column = column.combine_chunks()
    encoded = column.flatten().dictionary_encode()
    names = np.array(encoded.dictionary.to_pylist(), dtype=object)
    flat = names[encoded.indices.to_numpy()].tolist()
    offsets = (column.offsets.to_numpy() - column.offsets[0].as_py()).tolist()
    return [flat[start:end] for start, end in zip(offsets[:-1], offsets[1:], strict=True)]


def _score_rows(column: Any) -> NDArray[np.float32]:
    column = column.combine_chunks()
    return np.asarray(column.flatten().to_numpy(), dtype=np.float32).reshape(-1, column.type.list_size)
