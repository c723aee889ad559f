"""Exact search over document vectors by inner product: FAISS, or torch in bounded memory, with the same answers.

Both return hits sorted by (-score, id). Inside, a hit is one 64-bit key that sorts that way (``exact.keys``).

Axes: Q queries, N documents, D dimensions, K hits, W processes.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from harness.runtime.distributed import join_rows, rank, share, world_size
from harness.runtime.errors import InputError, Problem, StaleArtefactError
from harness.runtime.process import atomic_file, atomic_folder, file_sha256, fingerprint, read_json, write_json
from harness.vectors import exact
from harness.vectors.queries import checked_queries, rows_by_partition
from harness.vectors.space import Space, require_same_space
from harness.vectors.store import StoreRows, name_some

Kind = Literal["auto", "faiss", "exact"]
SCHEMA = 1
GATHERED_KEYS = 4_000_000  # hits of all processes that are merged at a time; 32 MB
TIED_HITS = 4_000_000  # hits of queries with ties that FAISS is asked for at a time; 48 MB
AGAIN = "delete the folder and build the index again"


@dataclass(frozen=True, slots=True)
class _Part:
    """The documents of one partition: their rows, and a ``faiss.Index`` or their vectors, float [N, D]."""

    row_N: np.ndarray
    searcher: Any


class VectorIndex:
    """All documents' ids and, for each partition, a searcher. Make one with ``build`` or ``load``.

    Attributes:
        ids: the documents' ids; hits are rows of this list.
        kind: ``faiss`` or ``exact``.
        dimension: D.
    """

    def __init__(self, ids: Sequence[str], kind: str, dimension: int, parts: dict[str | None, _Part]) -> None:
        assert len(ids) < 2**32, "an index holds fewer than 2**32 documents"
        self.ids, self.kind, self.dimension, self._parts = list(ids), kind, dimension, parts
        self._row_by_rank = torch.tensor(sorted(range(len(self.ids)), key=self.ids.__getitem__), dtype=torch.int64)
        self._rank_N = torch.empty_like(self._row_by_rank)
        self._rank_N[self._row_by_rank] = torch.arange(len(self.ids))

    @classmethod
    def build(
        cls,
        vector_ND: np.ndarray | StoreRows,
        ids: Sequence[str],
        *,
        kind: Kind = "auto",
        partition_N: Sequence[str] | None = None,
    ) -> VectorIndex:
        """Index document vectors.

        Args:
            vector_ND: float [N, D]; float32 in memory is used as it is, float16, memory-mapped, or a store's rows
                block by block.
            ids: N distinct ids.
            kind: ``faiss`` (IndexFlatIP), ``exact`` (torch), or ``auto``: FAISS where it is installed.
            partition_N: each document's partition (its language, say), to be searched alone.

        Raises:
            InputError: vectors that are not finite (ids named), or ``faiss`` where it is not installed.
        """
        assert len(vector_ND.shape) == 2, "documents x dimensions"
        assert len(ids) == len(vector_ND) == len(set(ids)), "one vector for every distinct id"
        assert partition_N is None or len(partition_N) == len(ids)
        for start in range(0, len(ids), exact.BLOCK_DOCUMENTS):
            broken = np.flatnonzero(~np.isfinite(vector_ND[start : start + exact.BLOCK_DOCUMENTS]).all(axis=1)) + start
            if broken.size:
                raise InputError(Problem("document vectors that are not finite", next="embed the documents again",
                                         got=name_some(ids[row] for row in broken.tolist())))
        kind = "faiss" if kind == "auto" and _faiss_installed() else "exact" if kind == "auto" else kind
        make = _faiss_part if kind == "faiss" else _exact_part
        parts = {name: make(vector_ND, row_N) for name, row_N in rows_by_partition(len(ids), partition_N).items()}
        return cls(ids, kind, vector_ND.shape[1], parts)

    def search(
        self, query_QD: np.ndarray, k: int, partition_Q: Sequence[str] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` best documents of each query.

        Args:
            query_QD: float [Q, D].
            k: how many; may exceed the number of documents.
            partition_Q: each query's partition, whose documents alone it sees; ``None``: all documents.

        Returns:
            (score_QK float32, row_QK int64), sorted by (-score, id); score -inf and row -1 where there are fewer
            than ``k`` documents.

        Raises:
            InputError: queries of another dimension, or not finite.
        """
        return _decoded(self._best(query_QD, k, partition_Q), self._row_by_rank)

    @torch.inference_mode()
    def search_shared(
        self, query_QD: np.ndarray, k: int, partition_Q: Sequence[str] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """``search`` by all processes together, given the same queries: all get all hits.

        Each searches its part of the documents, and reads no other vectors. The answer is exactly that of one process,
        ties included: documents are parted between whole blocks, so that every score comes from the same product. An
        index in FAISS, or of a few blocks, is searched whole by each process for its part of the queries.

        Raises:
            InputError: in every process, queries of another dimension, or not finite.
        """
        processes, queries = world_size(), len(query_QD)
        if processes == 1:
            return self.search(query_QD, k, partition_Q)
        query_QD = checked_queries(query_QD, self.dimension)  # before anybody waits for anybody
        if self.kind == "faiss" or len(self._blocks()) < 2 * processes:
            some = share(queries)
            found = self.search(query_QD[some], k, None if partition_Q is None else partition_Q[some])
            score_QK, row_QK = (join_rows(part, queries) for part in found)
            return score_QK, row_QK
        key_QK = self.shard(rank(), processes)._best(query_QD, k, partition_Q)
        step = max(1, GATHERED_KEYS // (processes * k))
        for start in range(0, queries, step):
            own_BK = key_QK[start : start + step].numpy()
            all_WBK = join_rows(own_BK, processes * len(own_BK)).reshape(processes, *own_BK.shape)
            both_BK = torch.from_numpy(np.concatenate(list(all_WBK), axis=1))
            key_QK[start : start + step] = both_BK.sort(dim=1, descending=True).values[:, :k]
        return _decoded(key_QK, self._row_by_rank)

    def shard(self, number: int, of: int) -> VectorIndex:
        """One of ``of`` parts of an exact index: some whole blocks of its documents, whose hits it finds alone.

        Hits are rows of all ids, as ever. Vectors are not copied.
        """
        assert self.kind == "exact" and 0 <= number < of
        blocks = self._blocks()
        own: dict[str | None, list[int]] = {}
        for name, start in blocks[len(blocks) * number // of : len(blocks) * (number + 1) // of]:
            own.setdefault(name, []).append(start)
        made = copy.copy(self)
        made._parts = {}
        for name, starts in own.items():
            part, some = self._parts[name], slice(starts[0], starts[-1] + exact.BLOCK_DOCUMENTS)
            made._parts[name] = _Part(part.row_N[some], part.searcher[some])
        return made

    def _blocks(self) -> list[tuple[str | None, int]]:
        """Every block of documents: its partition, and its first place there."""
        return [(name, start) for name, part in self._parts.items()
                for start in range(0, len(part.row_N), exact.BLOCK_DOCUMENTS)]  # fmt: skip

    @torch.inference_mode()
    def _best(self, query_QD: np.ndarray, k: int, partition_Q: Sequence[str] | None) -> Tensor:
        """The keys of ``search``'s hits, int64 [Q, k], best first."""
        query_QD = checked_queries(query_QD, self.dimension)
        assert k > 0 and (partition_Q is None or len(partition_Q) == len(query_QD))
        key_QK = torch.full((len(query_QD), k), exact.NO_HIT)
        if partition_Q is None:
            for part in self._parts.values():
                both = torch.cat([key_QK, self._search_part(part, torch.from_numpy(query_QD), k)], dim=1)
                key_QK = both.sort(dim=1, descending=True).values[:, :k]
            return key_QK
        assert None not in self._parts, "the index was built without partitions"
        name_Q = np.asarray(partition_Q, dtype=object)
        for name in set(partition_Q) & set(self._parts):
            query_B = np.flatnonzero(name_Q == name)
            key_QK[query_B] = self._search_part(self._parts[name], torch.from_numpy(query_QD[query_B]), k)
        return key_QK

    def _search_part(self, part: _Part, query_QD: Tensor, k: int) -> Tensor:
        """The keys of the k best documents, int64 [Q, k], best first."""
        rank_N = self._rank_N[torch.from_numpy(part.row_N)]
        if self.kind == "faiss":
            best_QK = _faiss_search(query_QD.numpy(), part.searcher, rank_N, k)
        else:
            best_QK = exact.search(query_QD, part.searcher, rank_N, k)
        best_QK = best_QK.sort(dim=1, descending=True).values
        return torch.nn.functional.pad(best_QK, (0, k - best_QK.shape[1]), value=exact.NO_HIT)

    def save(self, folder: Path | str, space: Space, *, store_sha256: str = "") -> None:
        """Write the index as a folder that needs nothing else: ids, and each partition's FAISS file or vectors.

        Args:
            folder: replaced as a whole.
            space: of the vectors.
            store_sha256: the store that they come from, so that ``load`` can tell whether that has changed.
        """
        assert space.dimension == self.dimension
        size = sum(4 * len(part.row_N) * self.dimension for part in self._parts.values())
        with atomic_folder(folder, size=size) as target:
            entries = []
            for number, (name, part) in enumerate(self._parts.items()):
                path = target / f"part-{number:05d}.{'faiss' if self.kind == 'faiss' else 'npy'}"
                _write_part(path, part, self.kind)
                entries.append({"name": name, "file": path.name, "sha256": file_sha256(path),
                                "bytes": path.stat().st_size,
                                "rows": None if name is None else part.row_N.tolist()})  # fmt: skip
            with atomic_file(target / "ids.json", "w") as stream:
                json.dump(self.ids, stream)
            manifest = {"schema": SCHEMA, "kind": self.kind, "space": space.to_json(), "store": store_sha256,
                        "ids": fingerprint(self.ids), "parts": entries}  # fmt: skip
            write_json(target / "manifest.json", {**manifest, "sha256": fingerprint(manifest)})

    @classmethod
    def load(
        cls,
        folder: Path | str,
        space: Space,
        ids: Sequence[str] | None = None,
        *,
        store_sha256: str | None = None,
    ) -> VectorIndex:
        """Open a saved index, whose files have the sizes that they were written with.

        Args:
            folder: what ``save`` wrote.
            space: the space of the vectors to search with.
            ids: the documents that the index should hold, in order.
            store_sha256: the store that it should have been built from.

        Raises:
            InputError: no index, or one that needs FAISS where it is not installed.
            StaleArtefactError: damaged, of another space, of other documents, or of another store.
        """
        folder = Path(folder)
        manifest, own_ids = _read_manifest(folder), read_json(folder / "ids.json")
        if manifest["ids"] != fingerprint(own_ids):
            raise StaleArtefactError(_not_as_written(folder))
        require_same_space(Space.from_json(manifest["space"]), space, str(folder), "the encoder")
        if store_sha256 is not None and manifest["store"] != store_sha256:
            raise StaleArtefactError(Problem("the index was built from another vector store", where=str(folder),
                                             got=manifest["store"], allowed=store_sha256, next=AGAIN))
        if ids is not None and list(ids) != own_ids:
            raise StaleArtefactError(Problem("the index holds other documents, or in another order", where=str(folder),
                                             got=f"{len(own_ids)} documents",
                                             allowed=f"the data's {len(ids)} documents", next=AGAIN))
        if manifest["kind"] == "faiss":
            require_faiss(str(folder))
        parts = {}
        for entry in manifest["parts"]:
            path = folder / entry["file"]
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                raise StaleArtefactError(Problem("missing or truncated", where=str(path), next=AGAIN))
            row_N = np.arange(len(own_ids)) if entry["rows"] is None else np.array(entry["rows"], dtype=np.int64)
            parts[entry["name"]] = _Part(row_N, _read_part(path, manifest["kind"]))
        return cls(own_ids, manifest["kind"], space.dimension, parts)


def _decoded(key_QK: Tensor, row_by_rank: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(score_QK, row_QK) of keys."""
    none_QK = key_QK == exact.NO_HIT
    row_QK = row_by_rank[exact.ranks_of(key_QK).masked_fill(none_QK, 0)]
    return exact.scores_of(key_QK).masked_fill(none_QK, -torch.inf).numpy(), row_QK.masked_fill(none_QK, -1).numpy()


def saved_kind(folder: Path) -> str:
    """``faiss`` or ``exact``: what a saved index is searched with; reads its manifest alone, which needs no FAISS.

    Raises:
        InputError: no index. StaleArtefactError: its manifest is damaged.
    """
    return str(_read_manifest(folder)["kind"])


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a saved index, as it was written."""
    manifest = read_json(folder / "manifest.json")
    seal = manifest.pop("sha256", None) if isinstance(manifest, dict) else None
    if seal != fingerprint(manifest) or manifest["schema"] != SCHEMA:
        raise StaleArtefactError(_not_as_written(folder))
    return manifest


def _not_as_written(folder: Path) -> Problem:
    return Problem("damaged, edited, or no index of this version", where=str(folder), next=AGAIN)


# --------------------------------------------------------------------------------------------------------- back ends


def _exact_part(vector_ND: np.ndarray | StoreRows, row_N: np.ndarray) -> _Part:
    whole = isinstance(vector_ND, np.ndarray) and len(row_N) == len(vector_ND)
    return _Part(row_N, vector_ND if whole else vector_ND[row_N])


def _faiss_part(vector_ND: np.ndarray | StoreRows, row_N: np.ndarray) -> _Part:
    faiss = require_faiss("VectorIndex")
    index = faiss.IndexFlatIP(vector_ND.shape[1])
    for start in range(0, len(row_N), exact.BLOCK_DOCUMENTS):
        index.add(np.ascontiguousarray(vector_ND[row_N[start : start + exact.BLOCK_DOCUMENTS]], dtype=np.float32))
    return _Part(row_N, index)


def _faiss_search(query_QD: np.ndarray, searcher: Any, rank_N: Tensor, k: int) -> Tensor:
    """Keys of the k best documents, int64 [Q, min(k, N)], in no order.

    FAISS breaks ties by row. So one hit more is asked for: where it scores as the k-th does, FAISS chose among equals,
    and twice as many are asked for until a lower score tells that all of them are there, for the ids to choose.
    """

    def found(query_BD: np.ndarray, wide: int) -> tuple[np.ndarray, Tensor]:
        score_BW, column_BW = searcher.search(query_BD, wide)
        return score_BW, exact.keys(torch.from_numpy(score_BW), rank_N[torch.from_numpy(column_BW)])

    wide = min(k + 1, len(rank_N))
    score_QW, key_QW = found(query_QD, wide)
    if wide <= k:
        return key_QW
    best_QK = key_QW[:, :k]
    tied_T = np.flatnonzero(score_QW[:, k - 1] == score_QW[:, k])
    while tied_T.size:
        wide, still = min(2 * wide, len(rank_N)), []
        for query_B in np.split(tied_T, range(max(1, TIED_HITS // wide), len(tied_T), max(1, TIED_HITS // wide))):
            score_BW, key_BW = found(query_QD[query_B], wide)
            best_QK[query_B] = key_BW.topk(k, dim=1).values
            still.append(query_B[score_BW[:, k - 1] == score_BW[:, -1]])
        tied_T = np.concatenate(still) if wide < len(rank_N) else tied_T[:0]
    return best_QK


def _write_part(path: Path, part: _Part, kind: str) -> None:
    with atomic_file(path) as stream:
        if kind == "faiss":
            faiss = require_faiss(str(path))
            faiss.write_index(part.searcher, faiss.PyCallbackIOWriter(stream.write))
        else:
            np.save(stream, part.searcher, allow_pickle=False)


def _read_part(path: Path, kind: str) -> Any:
    try:
        return require_faiss(str(path)).read_index(str(path)) if kind == "faiss" else np.load(path, mmap_mode="r")
    except (RuntimeError, ValueError) as error:
        raise StaleArtefactError(Problem("damaged", where=str(path), got=str(error)[:200], next=AGAIN)) from None


def _faiss_installed() -> bool:
    return importlib.util.find_spec("faiss") is not None


def require_faiss(where: str) -> Any:
    if not _faiss_installed():
        raise InputError(Problem("FAISS is not installed", where=where, got="searcher faiss", allowed="exact, auto",
                                 next="pip install 'harness-retrieval[cpu]', or evaluate.searcher: exact"))
    import faiss

    return faiss
