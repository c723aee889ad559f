"""Exact search over document vectors by inner product: FAISS, or torch in bounded memory, with the same answers.

Both return hits sorted by (-score, id). Inside, a hit is one 64-bit key that sorts that way: the score's bits above,
the document's rank by id below. So merging blocks, breaking ties and padding are all "the k largest keys".

Axes: Q queries, N documents, D dimensions, K hits, B queries of a block, M documents of a block.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from harness.runtime.errors import InputError, Problem, StaleArtefactError
from harness.runtime.process import atomic_file, atomic_folder, file_sha256, fingerprint, read_json, write_json
from harness.vectors.space import Space, require_same_space
from harness.vectors.store import StoreRows, name_some

Kind = Literal["auto", "faiss", "exact"]
SCHEMA = 1
SCORE_BYTES = 64 * 2**20  # memory for one block of scores
BLOCK_DOCUMENTS = 16_384  # documents of a block: enough for a fast matrix product
_LOW = 2**32 - 1
_NO_HIT = torch.iinfo(torch.int64).min
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
        assert len(ids) <= _LOW, "an index holds fewer than 2**32 documents"
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
        for start in range(0, len(ids), BLOCK_DOCUMENTS):
            broken = np.flatnonzero(~np.isfinite(vector_ND[start : start + BLOCK_DOCUMENTS]).all(axis=1)) + start
            if broken.size:
                raise InputError(Problem("document vectors that are not finite", next="embed the documents again",
                                         got=name_some(ids[row] for row in broken.tolist())))
        kind = "faiss" if kind == "auto" and _faiss_installed() else "exact" if kind == "auto" else kind
        make = _faiss_part if kind == "faiss" else _exact_part
        parts = {name: make(vector_ND, row_N) for name, row_N in _rows_by_partition(len(ids), partition_N).items()}
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
        query_QD = np.ascontiguousarray(query_QD, dtype=np.float32)
        assert k > 0 and (partition_Q is None or len(partition_Q) == len(query_QD))
        if query_QD.ndim != 2 or query_QD.shape[1] != self.dimension:
            raise InputError(Problem("queries of another dimension than the index", got=str(query_QD.shape),
                                     allowed=f"[queries, {self.dimension}]",
                                     next="search with the encoder of this space"))
        broken = np.flatnonzero(~np.isfinite(query_QD).all(axis=1))
        if broken.size:
            raise InputError(Problem(f"{broken.size} query vectors are not finite",
                                     got=f"the first are queries {broken[:5].tolist()}, counted from 0",
                                     next="look at these queries, or encode them in higher precision"))
        if partition_Q is None:
            found = [self._search_part(part, torch.from_numpy(query_QD), k) for part in self._parts.values()]
            return self._decode(torch.cat(found, dim=1).sort(dim=1, descending=True).values[:, :k])
        assert None not in self._parts, "the index was built without partitions"
        key_QK = torch.full((len(query_QD), k), _NO_HIT)
        name_Q = np.asarray(partition_Q, dtype=object)
        for name in set(partition_Q) & set(self._parts):
            query_B = np.flatnonzero(name_Q == name)
            key_QK[query_B] = self._search_part(self._parts[name], torch.from_numpy(query_QD[query_B]), k)
        return self._decode(key_QK)

    @torch.inference_mode()
    def _search_part(self, part: _Part, query_QD: Tensor, k: int) -> Tensor:
        """The keys of the k best documents, int64 [Q, k], best first."""
        rank_N = self._rank_N[torch.from_numpy(part.row_N)]
        if self.kind == "faiss":
            score, column = part.searcher.search(query_QD.numpy(), min(k, len(rank_N)))
            best_QK = _keys(torch.from_numpy(score), rank_N[torch.from_numpy(column)])
        else:
            best_QK = _exact_search(query_QD, part.searcher, rank_N, k)
        best_QK = best_QK.sort(dim=1, descending=True).values
        return torch.nn.functional.pad(best_QK, (0, k - best_QK.shape[1]), value=_NO_HIT)

    def _decode(self, key_QK: Tensor) -> tuple[np.ndarray, np.ndarray]:
        none_QK = key_QK == _NO_HIT
        bits_QK = (key_QK >> 32).to(torch.int32)
        score_QK = (bits_QK ^ ((bits_QK >> 31) & 0x7FFFFFFF)).view(torch.float32)
        row_QK = self._row_by_rank[(_LOW - (key_QK & _LOW)).masked_fill(none_QK, 0)]
        return score_QK.masked_fill(none_QK, -torch.inf).numpy(), row_QK.masked_fill(none_QK, -1).numpy()

    def save(self, folder: Path | str, space: Space, *, store_sha256: str = "") -> None:
        """Write the index as a folder that needs nothing else: ids, and each partition's FAISS file or vectors.

        Args:
            folder: replaced as a whole.
            space: of the vectors.
            store_sha256: the store that they come from, so that ``load`` can tell whether that has changed.
        """
        assert space.dimension == self.dimension
        rows = _listed({name: part.row_N for name, part in self._parts.items()})
        size = sum(4 * len(part.row_N) * self.dimension for part in self._parts.values())
        with atomic_folder(folder, size=size) as target:
            entries = []
            for number, (name, part) in enumerate(self._parts.items()):
                path = target / f"part-{number:05d}.{'faiss' if self.kind == 'faiss' else 'npy'}"
                _write_part(path, part, self.kind)
                entries.append({"name": name, "file": path.name, "rows": rows[name], "bytes": path.stat().st_size,
                                "sha256": file_sha256(path)})  # fmt: skip
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
        partition_N: Sequence[str] | None = None,
        store_sha256: str | None = None,
        verify: bool = False,
    ) -> VectorIndex:
        """Open a saved index. Sizes are always checked; ``verify`` also reads every byte.

        Args:
            folder: what ``save`` wrote.
            space: the space of the vectors to search with.
            ids, partition_N: the documents and partitions that the index should hold, in order; with ``ids`` both
                are compared.
            store_sha256: the store that it should have been built from.

        Raises:
            InputError: no index, or one that needs FAISS where it is not installed.
            StaleArtefactError: damaged, of another space, of other documents or partitions, or of another store.
        """
        folder = Path(folder)
        manifest, own_ids = _read_manifest(folder)
        require_same_space(Space.from_json(manifest["space"]), space, str(folder), "the encoder")
        if store_sha256 is not None and manifest["store"] != store_sha256:
            raise StaleArtefactError(Problem("the index was built from another vector store", where=str(folder),
                                             got=manifest["store"], allowed=store_sha256, next=AGAIN))
        rows = {entry["name"]: entry["rows"] for entry in manifest["parts"]}
        if ids is not None and (list(ids) != own_ids or _listed(_rows_by_partition(len(ids), partition_N)) != rows):
            raise StaleArtefactError(Problem("the index holds other documents or partitions, or in another order",
                                             where=str(folder), got=f"{len(own_ids)} documents, {len(rows)} partitions",
                                             allowed=f"the data's {len(ids)} documents", next=AGAIN))
        if manifest["kind"] == "faiss":
            require_faiss(str(folder))
        parts = {}
        for entry in manifest["parts"]:
            path = folder / entry["file"]
            whole = path.is_file() and path.stat().st_size == entry["bytes"]
            if not whole or (verify and file_sha256(path) != entry["sha256"]):
                raise StaleArtefactError(Problem("missing, truncated or damaged", where=str(path), next=AGAIN))
            row_N = np.arange(len(own_ids)) if entry["rows"] is None else np.array(entry["rows"], dtype=np.int64)
            parts[entry["name"]] = _Part(row_N, _read_part(path, manifest["kind"]))
        return cls(own_ids, manifest["kind"], space.dimension, parts)


def _rows_by_partition(documents: int, partition_N: Sequence[str] | None) -> dict[str | None, np.ndarray]:
    if partition_N is None:
        return {None: np.arange(documents)}
    name_N = np.asarray(partition_N, dtype=object)
    return {name: np.flatnonzero(name_N == name) for name in sorted(set(partition_N))}


def _listed(rows: dict[str | None, np.ndarray]) -> dict[str | None, list[int] | None]:
    """Rows of each partition as the manifest has them: none are listed where there are no partitions."""
    return {name: None if name is None else row_N.tolist() for name, row_N in rows.items()}


def _read_manifest(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The manifest of a saved index and its ids, both as they were written."""
    manifest, ids = read_json(folder / "manifest.json"), read_json(folder / "ids.json")
    seal = manifest.pop("sha256", None) if isinstance(manifest, dict) else None
    if seal != fingerprint(manifest) or manifest["schema"] != SCHEMA or manifest["ids"] != fingerprint(ids):
        raise StaleArtefactError(Problem("damaged, edited, or no index of this version", where=str(folder), next=AGAIN))
    return manifest, ids


# ------------------------------------------------------------------------------------------------- the exact searcher


def _keys(score: Tensor, rank: Tensor) -> Tensor:
    """One int64 per hit that is larger for a higher score and, between equal scores, for a smaller rank."""
    bits = (score + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal to 0.0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the floats
    return (ordered.to(torch.int64) << 32) | (_LOW - rank)


def _exact_search(query_QD: Tensor, vector_ND: np.ndarray, rank_N: Tensor, k: int) -> Tensor:
    """Keys of the k best documents, int64 [Q, min(k, N)], in no order; scores of one block at a time are in memory."""
    documents = min(len(vector_ND), BLOCK_DOCUMENTS)
    queries = max(1, SCORE_BYTES // (4 * documents))
    best_QK = torch.empty((len(query_QD), 0), dtype=torch.int64)
    for start in range(0, len(vector_ND), documents):
        document_MD = _as_tensor(vector_ND[start : start + documents])
        rank_M = rank_N[start : start + documents]
        found = []
        with torch.autocast("cpu", enabled=False):  # a caller's bf16 must not reach the scores
            for query_BD, best_BK in zip(torch.split(query_QD, queries), torch.split(best_QK, queries), strict=True):
                both = torch.cat([best_BK, _block_best(query_BD @ document_MD.T, rank_M, k)], dim=1)
                found.append(both.topk(min(k, both.shape[1]), dim=1, sorted=False).values)
        best_QK = torch.cat(found) if found else best_QK
    return best_QK


def _block_best(score_BM: Tensor, rank_M: Tensor, k: int) -> Tensor:
    """Keys of the k best documents of a block, int64 [B, min(k, M)]."""
    if score_BM.shape[1] <= k:
        return _keys(score_BM, rank_M)
    value_BK, column_BK = score_BM.topk(k + 1, dim=1)
    best_BK = _keys(value_BK[:, :k], rank_M[column_BK[:, :k]])
    # Where the k-th and the next score are equal, topk chose among them by chance; the ids must choose.
    tied = torch.nonzero(value_BK[:, k - 1] == value_BK[:, k]).squeeze(1)
    for query_A in torch.split(tied, max(1, len(score_BM) // 8)):
        best_BK[query_A] = _keys(score_BM[query_A], rank_M).topk(k, dim=1).values
    return best_BK


def _as_tensor(vector_MD: np.ndarray) -> Tensor:
    """float32 in memory: without a copy where it is that already."""
    ready = vector_MD.dtype == np.float32 and vector_MD.flags.writeable and vector_MD.flags.c_contiguous
    return torch.from_numpy(vector_MD if ready else np.array(vector_MD, dtype=np.float32, order="C"))


# --------------------------------------------------------------------------------------------------------- back ends


def _exact_part(vector_ND: np.ndarray | StoreRows, row_N: np.ndarray) -> _Part:
    whole = isinstance(vector_ND, np.ndarray) and len(row_N) == len(vector_ND)
    return _Part(row_N, vector_ND if whole else vector_ND[row_N])


def _faiss_part(vector_ND: np.ndarray | StoreRows, row_N: np.ndarray) -> _Part:
    faiss = require_faiss("VectorIndex")
    index = faiss.IndexFlatIP(vector_ND.shape[1])
    for start in range(0, len(row_N), BLOCK_DOCUMENTS):
        index.add(np.ascontiguousarray(vector_ND[row_N[start : start + BLOCK_DOCUMENTS]], dtype=np.float32))
    return _Part(row_N, index)


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
