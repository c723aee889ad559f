"""An approximate index: built, searched at an effort, and at rest.

Axes: Q queries, N documents, D dimensions, K hits, B rows of a block.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.runtime.errors import InputError, Problem, StaleArtefactError
from harness.runtime.process import (
    atomic_file,
    atomic_folder,
    file_sha256,
    fingerprint,
    logger,
    progress,
    read_json,
    write_json,
)
from harness.vectors.approximate.parameters import Parameters, misfits, resolved
from harness.vectors.queries import checked_queries, rows_by_partition
from harness.vectors.space import Space, require_same_space

if TYPE_CHECKING:
    from harness.vectors.store import StoreRows

SCHEMA = 1
BLOCK = 16_384  # documents added at once
TRAINED_ON = 64  # documents for each centroid
AGAIN = "delete the folder and run the step that makes it again"

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


class Searcher(Protocol):
    """What answers queries: ``VectorIndex``, an ``ApproximateIndex`` at an effort, or that index ``AsAsked``."""

    def search(
        self, query_QD: Floats, k: int, partition_Q: Sequence[str] | None = None
    ) -> tuple[Floats, Rows]:
        """(score_QK float32, row_QK int64), sorted by -score; -inf and -1 where there is no hit."""
        ...


# ------------------------------------------------------------------------------------------------------- the index


@dataclass(frozen=True, slots=True)
class _Part:
    """The documents of one partition: their rows, and a trained ``faiss.Index`` over them."""

    row_N: Rows
    searcher: Any


@dataclass(frozen=True)
class ApproximateIndex:
    """Make one with ``build`` or ``load``, and search it ``at`` an effort.

    Attributes:
        ids: the documents' ids; hits are rows of this list.
        kind, parameters, seed, threads: what it was built with; ``threads`` search, too.
        dimension: D.
        effort: efSearch or nprobe of searches.
        seconds: how long it took to build.
    """

    ids: list[str]
    kind: str
    parameters: Parameters
    seed: int
    threads: int
    dimension: int
    parts: Mapping[str | None, _Part]
    rank_N: Rows
    seconds: float = 0.0
    effort: int = 1

    @classmethod
    def build(
        cls,
        vector_ND: Floats | StoreRows,
        ids: Sequence[str],
        kind: str,
        parameters: Mapping[str, int | None],
        *,
        partition_N: Sequence[str] | None = None,
        seed: int = 0,
        threads: int = 1,
    ) -> ApproximateIndex:
        """Index document vectors.

        Args:
            vector_ND: float [N, D], or a store's rows, read in blocks.
            ids: N distinct ids.
            kind: of ``KINDS``. parameters: see ``resolved``; those that depend on N are chosen for each partition.
            partition_N: each document's partition, to be searched alone: each has an index of its own.

        Raises:
            InputError: FAISS is not installed; too few documents for the parameters; vectors that are not finite.
        """
        assert len(ids) == len(vector_ND) == len(set(ids)) > 0, "one vector for every distinct id"
        faiss = _require_faiss()
        rows = rows_by_partition(len(ids), partition_N)
        dimension = vector_ND.shape[1]
        smallest = min(map(len, rows.values()))
        told = resolved(kind, parameters, max(map(len, rows.values())), dimension)
        problems = misfits(kind, resolved(kind, parameters, smallest, dimension), smallest, dimension)
        if problems:
            raise InputError(problems)
        started = perf_counter()
        parts = {}
        with _threads(faiss, threads):
            for name, row_N in rows.items():
                own = resolved(kind, parameters, len(row_N), dimension)
                searcher = _trained(faiss, kind, own, vector_ND, row_N, seed)
                what = kind if name is None else f"{kind} {name}"
                for start in progress(range(0, len(row_N), BLOCK), what=what, unit="block"):
                    searcher.add(_block(vector_ND, row_N[start : start + BLOCK]))
                parts[name] = _Part(row_N, searcher)
        seconds = perf_counter() - started
        return cls(list(ids), kind, told, seed, threads, dimension, parts, _ranks(ids), seconds)

    def at(self, effort: int) -> ApproximateIndex:
        """The same index, searched with this effort."""
        assert effort > 0
        return replace(self, effort=effort)

    @property
    def searched(self) -> int:
        """How many documents a query searches at most: those of the largest partition."""
        return max(len(part.row_N) for part in self.parts.values())

    def search(
        self, query_QD: Floats, k: int, partition_Q: Sequence[str] | None = None
    ) -> tuple[Floats, Rows]:
        """About the ``k`` best documents of each query, at ``effort``.

        Args:
            query_QD: float [Q, D].
            partition_Q: each query's partition, whose documents alone it sees; None: all documents.

        Returns:
            (score_QK float32, row_QK int64), sorted by (-score, id); score -inf and row -1 where nothing was found.

        Raises:
            InputError: queries of another dimension, or not finite.
        """
        query_QD = checked_queries(query_QD, self.dimension)
        assert k > 0 and (partition_Q is None or len(partition_Q) == len(query_QD))
        faiss = _require_faiss()
        with _threads(faiss, self.threads):
            if partition_Q is None:
                found = [self._search_part(faiss, part, query_QD, k) for part in self.parts.values()]
                return self._sorted(np.hstack([f[0] for f in found]), np.hstack([f[1] for f in found]), k)
            assert None not in self.parts, "the index was built without partitions"
            score_QK = np.full((len(query_QD), k), -np.inf, dtype=np.float32)
            row_QK = np.full((len(query_QD), k), -1, dtype=np.int64)
            name_Q = np.asarray(partition_Q, dtype=object)
            for name in set(partition_Q) & set(self.parts):
                own = np.flatnonzero(name_Q == name)
                score_QK[own], row_QK[own] = self._search_part(faiss, self.parts[name], query_QD[own], k)
        return self._sorted(score_QK, row_QK, k)

    def _search_part(self, faiss: Any, part: _Part, query_QD: Floats, k: int) -> tuple[Floats, Rows]:
        options = _search_options(faiss, self.kind, self.parameters, self.effort)
        score_QK, column_QK = part.searcher.search(query_QD, k, params=options)
        none_QK = column_QK < 0
        return np.where(none_QK, -np.inf, score_QK).astype(np.float32), np.where(none_QK, -1, part.row_N[column_QK])

    def _sorted(self, score_QK: Floats, row_QK: Rows, k: int) -> tuple[Floats, Rows]:
        rank_QK = np.where(row_QK < 0, len(self.ids), self.rank_N[row_QK])
        order_QK = np.lexsort((rank_QK, -score_QK), axis=1)[:, :k]
        return np.take_along_axis(score_QK, order_QK, axis=1), np.take_along_axis(row_QK, order_QK, axis=1)

    # ---------------------------------------------------------------------------------------------- at rest

    def save(self, folder: Path | str, space: Space, *, store_sha256: str = "") -> None:
        """Write it as a folder: FAISS's files, the ids, and a manifest.

        Args:
            folder: replaced as a whole.
            space: of the vectors.
            store_sha256: the store that they come from, so that ``load`` can tell whether that has changed.
        """
        assert space.dimension == self.dimension
        faiss = _require_faiss()
        with atomic_folder(folder) as target:
            entries = []
            for number, (name, part) in enumerate(self.parts.items()):
                path = target / f"part-{number:05d}.faiss"
                with atomic_file(path) as stream:
                    faiss.write_index(part.searcher, faiss.PyCallbackIOWriter(stream.write))
                entries.append({"name": name, "file": path.name, "bytes": path.stat().st_size,
                                "sha256": file_sha256(path),
                                "rows": None if name is None else part.row_N.tolist()})  # fmt: skip
            with atomic_file(target / "ids.json", "w") as stream:
                json.dump(self.ids, stream)
            manifest = {"schema": SCHEMA, "kind": self.kind, "parameters": dict(self.parameters), "seed": self.seed,
                        "threads": self.threads, "seconds": self.seconds, "space": space.to_json(),
                        "store": store_sha256, "ids": fingerprint(self.ids), "parts": entries}  # fmt: skip
            write_json(target / "manifest.json", {**manifest, "sha256": fingerprint(manifest)})

    @classmethod
    def load(
        cls, folder: Path | str, space: Space, *, store_sha256: str | None = None, verify: bool = False
    ) -> ApproximateIndex:
        """Open a saved index. Sizes are always checked; ``verify`` also reads every byte.

        Args:
            folder: what ``save`` wrote.
            space: the space of the vectors to search with.
            store_sha256: the store that it should have been built from.

        Raises:
            InputError: no index; FAISS is not installed.
            StaleArtefactError: damaged, of another space, or of another store.
        """
        folder, faiss = Path(folder), _require_faiss()
        manifest, ids = _read_manifest(folder)
        require_same_space(Space.from_json(manifest["space"]), space, str(folder), "the encoder")
        if store_sha256 is not None and manifest["store"] != store_sha256:
            raise StaleArtefactError(Problem("the index was built from another vector store", where=str(folder),
                                             got=manifest["store"], allowed=store_sha256, next=AGAIN))  # fmt: skip
        parts = {}
        for entry in manifest["parts"]:
            path = folder / entry["file"]
            whole = path.is_file() and path.stat().st_size == entry["bytes"]
            if not whole or (verify and file_sha256(path) != entry["sha256"]):
                raise StaleArtefactError(Problem("missing, truncated or damaged", where=str(path), next=AGAIN))
            row_N = np.arange(len(ids)) if entry["rows"] is None else np.array(entry["rows"], dtype=np.int64)
            parts[entry["name"]] = _Part(row_N, _read(faiss, path))
        return cls(ids, manifest["kind"], manifest["parameters"], manifest["seed"], manifest["threads"],
                   space.dimension, parts, _ranks(ids), manifest["seconds"])  # fmt: skip


def saved_bytes(folder: Path) -> int:
    """The size of a saved index's FAISS files."""
    return sum(path.stat().st_size for path in folder.glob("part-*.faiss"))


def _read_manifest(folder: Path) -> tuple[dict[str, Any], list[str]]:
    manifest, ids = read_json(folder / "manifest.json", next=AGAIN), read_json(folder / "ids.json", next=AGAIN)
    seal = manifest.pop("sha256", None) if isinstance(manifest, dict) else None
    if seal != fingerprint(manifest) or manifest["schema"] != SCHEMA or manifest["ids"] != fingerprint(ids):
        raise StaleArtefactError(Problem("damaged, edited, or no approximate index of this version", where=str(folder),
                                         next=AGAIN))  # fmt: skip
    return manifest, ids


def _read(faiss: Any, path: Path) -> Any:
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        raise StaleArtefactError(Problem("damaged", where=str(path), got=str(error)[:200], next=AGAIN)) from None


@dataclass(frozen=True)
class AsAsked:
    """An index as who asks for ``k`` hits meets it, however deep it is searched.

    A search for more hits may find better first ones: ``ivf-pq`` scores rerank x K documents exactly. So the first
    ``k`` are those of a search for ``k``; those after come from the deeper one, scored no higher than the ``k``-th.
    """

    index: ApproximateIndex
    k: int

    def search(
        self, query_QD: Floats, depth: int, partition_Q: Sequence[str] | None = None
    ) -> tuple[Floats, Rows]:
        """(score_QK, row_QK) as ``ApproximateIndex.search``, K = ``depth``."""
        score_QK, row_QK = self.index.search(query_QD, min(self.k, depth), partition_Q)
        if depth <= self.k:
            return score_QK, row_QK
        more_score_QK, more_row_QK = self.index.search(query_QD, depth, partition_Q)
        again_QK = more_row_QK < 0
        for row_Q in row_QK.T:  # one by one: all at once, it would be Q x K x k booleans
            again_QK |= more_row_QK == row_Q[:, None]
        more_score_QK = np.where(again_QK, -np.inf, np.minimum(more_score_QK, score_QK[:, -1:])).astype(np.float32)
        more_row_QK = np.where(again_QK, -1, more_row_QK)
        order_QK = np.argsort(again_QK, axis=1, kind="stable")[:, : depth - self.k]
        more_score_QK = np.take_along_axis(more_score_QK, order_QK, axis=1)
        more_row_QK = np.take_along_axis(more_row_QK, order_QK, axis=1)
        return np.hstack([score_QK, more_score_QK]), np.hstack([row_QK, more_row_QK])


# ------------------------------------------------------------------------------------------------- FAISS and its ways


def _require_faiss() -> Any:
    from harness.vectors.index import require_faiss

    return require_faiss("bench.ann")


@contextlib.contextmanager
def _threads(faiss: Any, count: int) -> Iterator[None]:
    """FAISS's threads are a setting of the process."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _trained(
    faiss: Any, kind: str, own: Parameters, vector_ND: Floats | StoreRows, row_N: Rows, seed: int
) -> Any:
    """An empty index that takes vectors."""
    dimension = vector_ND.shape[1]
    if kind == "hnsw":
        graph = faiss.IndexHNSWFlat(dimension, own["neighbours"], faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = own["ef_construction"]
        graph.hnsw.rng = faiss.RandomGenerator(seed)
        return graph
    quantiser = faiss.IndexFlatIP(dimension)
    if kind == "ivf":
        index = faiss.IndexIVFFlat(quantiser, dimension, own["lists"], faiss.METRIC_INNER_PRODUCT)
        centroids = own["lists"]
    else:
        index = faiss.IndexIVFPQ(quantiser, dimension, own["lists"], own["parts"], own["bits"],
                                 faiss.METRIC_INNER_PRODUCT)  # fmt: skip
        index.pq.cp.seed = seed
        centroids = max(own["lists"], 2 ** own["bits"])
    index.cp.seed = seed
    some = np.unique(np.linspace(0, len(row_N) - 1, min(len(row_N), TRAINED_ON * centroids)).astype(np.int64))
    logger.debug("%s: trained on %d documents", kind, len(some))
    index.train(_block(vector_ND, row_N[some]))
    return faiss.IndexRefineFlat(index) if own.get("rerank") else index


def _search_options(faiss: Any, kind: str, parameters: Parameters, effort: int) -> Any:
    if kind == "hnsw":
        return faiss.SearchParametersHNSW(efSearch=effort)
    probe = faiss.SearchParametersIVF(nprobe=effort)
    if not parameters.get("rerank"):
        return probe
    return faiss.IndexRefineSearchParameters(k_factor=float(parameters["rerank"]), base_index_params=probe)


def _block(vector_ND: Floats | StoreRows, row_B: Rows) -> Floats:
    """Vectors of some rows, float32 in memory.

    Raises:
        InputError: some are not finite.
    """
    vector_BD = np.ascontiguousarray(vector_ND[row_B], dtype=np.float32)
    broken = row_B[~np.isfinite(vector_BD).all(axis=1)]
    if broken.size:
        raise InputError(Problem("document vectors that are not finite", got=f"rows {broken[:5].tolist()}",
                                 next="embed the documents again"))  # fmt: skip
    return vector_BD


def _ranks(ids: Sequence[str]) -> Rows:
    """Each row's place among the sorted ids."""
    rank_N = np.empty(len(ids), dtype=np.int64)
    rank_N[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
    return rank_N
