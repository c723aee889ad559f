"""The frozen document vectors, handed over: for FAISS, for numpy, for anything that reads Parquet.

    manifest.json       space, rows, dimension, each file's sha256, and what an approximate one costs
    ids.txt             one id a line, in the order of the vectors; not beside Parquet alone
    vectors.npy         [N, D], float16 where they are stored so, else float32
    vectors.parquet     columns id and vector
    index.faiss         IndexFlatIP: exact
    index-int8.faiss    IndexScalarQuantizer, 8 bits a dimension: a quarter of the size
    index-pq.faiss      IndexPQ, a byte for every 4 dimensions: a 16th of the size

Vectors go from the store to the files in blocks; FAISS holds the index that it builds, as it will when it is searched.
``vectors.npy`` with its ids, ``vectors.parquet`` and ``index.faiss`` can be given back as ``documents.vectors``.

Axes: Q queries, N documents, B of them in a block, D dimensions, K hits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.recipe import VectorFiles
from harness.runtime.errors import InputError, Problem, StaleArtefactError
from harness.runtime.process import atomic_folder, file_sha256, fingerprint, progress, read_json, write_json
from harness.vectors.files import check_vectors
from harness.vectors.index import require_faiss
from harness.vectors.space import Space
from harness.vectors.store import VectorStore, name_some

SCHEMA = 1
FILES = {"npy": "vectors.npy", "parquet": "vectors.parquet", "faiss": "index.faiss", "faiss-int8": "index-int8.faiss",
         "faiss-pq": "index-pq.faiss"}  # fmt: skip
IDS = "ids.txt"
BLOCK = 16_384  # rows at once
TRAINED_ON = 65_536  # rows that a quantiser is trained on, drawn evenly
DEEP = 100  # hits from which an exact second look would choose
_AGAIN = "export it again"

Floats = NDArray[np.float32]


def export_index(
    store: VectorStore, target: Path, formats: Sequence[str], query_QD: Floats, *, k: int = 10
) -> dict[str, Any]:
    """Write the store's vectors in other forms, and measure what the approximate ones lose.

    Args:
        store: the frozen document vectors.
        target: a folder, replaced as a whole.
        formats: of ``FILES``.
        query_QD: real queries as the student encodes them, to measure with.
        k: hits of a query that are compared.

    Returns:
        The manifest. ``cost[FORMAT]``: ``recall@10``, the share of the exact first ten that are among its first ten;
        ``recall@10_of_100``, among its first hundred, which is what scoring those exactly would give;
        ``bytes_per_vector``; ``queries``.

    Raises:
        InputError: FAISS is not installed; ids that can't stand one a line.
    """
    assert formats and set(formats) <= set(FILES), formats
    if any(name.startswith("faiss") for name in formats):
        require_faiss("export.index")
    lined = [name for name in formats if name != "parquet"]
    if lined:
        _refuse_broken_ids(store.ids)
    size = int(sum(4 * len(store) * store.dimension * _share(name) for name in formats))
    with atomic_folder(target, size=size) as new:
        for name in formats:
            _WRITERS[name](store, new / FILES[name])
        if lined:
            (new / IDS).write_text("".join(f"{id_}\n" for id_ in store.ids), encoding="utf-8")
        files = {name: {"file": FILES[name], "bytes": (new / FILES[name]).stat().st_size,
                        "sha256": file_sha256(new / FILES[name])} for name in formats}  # fmt: skip
        manifest: dict[str, Any] = {
            "schema": SCHEMA, "space": store.space.to_json(), "rows": len(store), "dimension": store.dimension,
            "similarity": "cosine" if store.space.normalized else "inner product", "store": store.sha256,
            "files": files, "ids": file_sha256(new / IDS) if lined else None,
            "cost": _costs(store, new, formats, query_QD, k),
        }  # fmt: skip
        write_json(new / "manifest.json", {**manifest, "sha256": fingerprint(manifest)})
    return manifest


def _share(name: str) -> float:
    """The size of a format relative to float32."""
    return {"faiss-int8": 0.25, "faiss-pq": 0.0625}.get(name, 1.0)


def _refuse_broken_ids(ids: Sequence[str]) -> None:
    broken = [name for name in ids if "\n" in name or "\r" in name]
    if ids and ids[0].startswith("\ufeff"):
        broken.append(ids[0])
    if broken:
        raise InputError(Problem(f"{len(broken)} ids can't stand in a file of one id a line", where="export.index",
                                 got=name_some(broken), allowed="ids without line ends",
                                 next="set export.index: [parquet], or rename these documents"))  # fmt: skip


# ------------------------------------------------------------------------------------------------------- the writers


def _write_npy(store: VectorStore, path: Path) -> None:
    dtype = np.dtype(np.float16 if store.dtype == "float16" else np.float32)
    vector_ND = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(len(store), store.dimension))
    for start, vector_BD in store.blocks(BLOCK):
        vector_ND[start : start + len(vector_BD)] = vector_BD
    vector_ND.flush()


def _write_parquet(store: VectorStore, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    schema = pa.schema([("id", pa.string()), ("vector", pa.list_(pa.float32(), store.dimension))])
    schema = schema.with_metadata({"harness.space": fingerprint(store.space.to_json())})
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for start, vector_BD in store.blocks(BLOCK):
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(vector_BD.ravel()), store.dimension)
            ids = pa.array(store.ids[start : start + len(vector_BD)], pa.string())
            writer.write_table(pa.Table.from_arrays([ids, vectors], schema=schema))


def _write_flat(store: VectorStore, path: Path) -> None:
    _fill(require_faiss("export.index").IndexFlatIP(store.dimension), store, path)


def _write_int8(store: VectorStore, path: Path) -> None:
    faiss = require_faiss("export.index")
    index = faiss.IndexScalarQuantizer(store.dimension, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    index.train(_sample(store))
    _fill(index, store, path)


def _write_pq(store: VectorStore, path: Path) -> None:
    faiss = require_faiss("export.index")
    parts = next(count for count in range(max(store.dimension // 4, 1), 0, -1) if store.dimension % count == 0)
    bits = min(8, int(np.log2(max(len(store), 2))))  # there can't be more centroids than vectors
    index = faiss.IndexPQ(store.dimension, parts, bits, faiss.METRIC_INNER_PRODUCT)
    index.pq.cp.min_points_per_centroid = 1  # FAISS would print a warning
    index.train(_sample(store))
    _fill(index, store, path)


_WRITERS = {"npy": _write_npy, "parquet": _write_parquet, "faiss": _write_flat, "faiss-int8": _write_int8,
            "faiss-pq": _write_pq}  # fmt: skip


def _sample(store: VectorStore) -> Floats:
    """Rows at even distances, in memory."""
    return store.vectors(np.unique(np.linspace(0, len(store) - 1, min(len(store), TRAINED_ON)).astype(np.int64)))


def _fill(index: Any, store: VectorStore, path: Path) -> None:
    blocks = progress(store.blocks(BLOCK), what=path.name, total=-(-len(store) // BLOCK), unit="block")
    for _, vector_BD in blocks:
        index.add(vector_BD)
    require_faiss("export.index").write_index(index, str(path))


# ---------------------------------------------------------------------------------------------------------- the cost


def _costs(store: VectorStore, folder: Path, formats: Sequence[str], query_QD: Floats, k: int) -> dict[str, Any]:
    approximate = [name for name in formats if name in ("faiss-int8", "faiss-pq")]
    if not approximate:
        return {}
    exact_QK = exact_hits(store, query_QD, k)
    costs = {}
    for name in approximate:
        index = require_faiss("export.index").read_index(str(folder / FILES[name]))
        _, found_QK = index.search(np.ascontiguousarray(query_QD, dtype=np.float32), min(DEEP, len(store)))
        costs[name] = {
            f"recall@{k}": _recall(exact_QK, found_QK[:, :k]),
            f"recall@{k}_of_{DEEP}": _recall(exact_QK, found_QK),
            "bytes_per_vector": int(index.sa_code_size()),
            "queries": len(query_QD),
        }
    return costs


def exact_hits(store: VectorStore, query_QD: Floats, k: int) -> NDArray[np.int64]:
    """Rows of the k best documents of each query, int64 [Q, min(k, N)], in no order; a block at a time in memory."""
    best_QK = np.empty((len(query_QD), 0), dtype=np.float32)
    row_QK = np.empty((len(query_QD), 0), dtype=np.int64)
    for start, vector_BD in store.blocks(BLOCK):
        score_QB = query_QD @ vector_BD.T
        both = np.concatenate([best_QK, score_QB], axis=1)
        row_QB = np.broadcast_to(np.arange(start, start + len(vector_BD)), score_QB.shape)
        rows = np.concatenate([row_QK, row_QB], axis=1)
        kept = np.argpartition(-both, min(k, both.shape[1]) - 1, axis=1)[:, :k]
        best_QK, row_QK = np.take_along_axis(both, kept, axis=1), np.take_along_axis(rows, kept, axis=1)
    return row_QK


def _recall(exact_QK: NDArray[np.int64], found_QK: NDArray[np.int64]) -> float:
    shares = [len(set(exact) & set(found)) / len(exact)
              for exact, found in zip(exact_QK.tolist(), found_QK.tolist(), strict=True)]  # fmt: skip
    return float(np.mean(shares)) if shares else float("nan")


# -------------------------------------------------------------------------------------------------------- opening it


@dataclass(frozen=True)
class HandedOver:
    """An index that was handed over: its space, ids and exact vectors, float [N, D], from ``npy`` memory-mapped."""

    space: Space
    ids: list[str]
    vector_ND: NDArray[Any]


def is_handed_over(folder: Path) -> bool:
    """Whether a folder is what ``export_index`` wrote; a store has a manifest, too."""
    path = folder / "manifest.json"
    told = read_json(path) if path.is_file() else None
    return isinstance(told, dict) and "files" in told and "similarity" in told


def open_handed_over(folder: Path) -> HandedOver:
    """Open what ``export_index`` wrote, by its cheapest exact file; every file is held against the manifest.

    Raises:
        InputError: only approximate files are there. StaleArtefactError: files are damaged, edited or missing,
            each named.
    """
    told = read_json(folder / "manifest.json", next=_AGAIN)
    seal = told.pop("sha256", None)
    if seal != fingerprint(told) or told.get("schema") != SCHEMA:
        got = f"schema {told.get('schema')!r}, {'sealed' if seal == fingerprint(told) else 'not as it was sealed'}"
        raise StaleArtefactError(Problem("edited, damaged or of another version", where=str(folder / "manifest.json"),
                                         got=got, allowed=f"schema {SCHEMA}, as it was written", next=_AGAIN))
    problems = _changed(folder, told)
    if problems:
        raise StaleArtefactError(problems)
    exact = [name for name in ("npy", "parquet", "faiss") if name in told["files"]]
    if not exact:
        raise InputError(Problem("only approximate vectors were handed over", where=str(folder),
                                 got=", ".join(told["files"]), allowed="npy, parquet or faiss beside them",
                                 next="add npy to export.index"))  # fmt: skip
    name = exact[0]
    row, vector_ND = check_vectors(vector_files(folder, name), [], told["dimension"], normalized=False, rows=0)
    return HandedOver(Space.from_json(told["space"], where=str(folder)), list(row), vector_ND)


def _changed(folder: Path, told: dict[str, Any]) -> list[Problem]:
    """Every file of the manifest that is not what was handed over; one of another size is not read."""
    wanted = [(FILES[name], file["bytes"], file["sha256"]) for name, file in told["files"].items()]
    if told["ids"]:
        wanted.append((IDS, None, told["ids"]))
    return [
        Problem("missing, damaged or swapped since it was handed over", where=str(folder / name), got=got,
                allowed=f"sha256 {sha256[:12]}", next=_AGAIN)
        for name, size, sha256 in wanted if (got := _other(folder / name, size, sha256))
    ]  # fmt: skip


def _other(path: Path, size: int | None, sha256: str) -> str:
    """What a file is instead of the one that was handed over; empty where it is that."""
    if not path.is_file():
        return "no such file"
    if size is not None and path.stat().st_size != size:
        return f"{path.stat().st_size:,} bytes instead of {size:,}"
    found = file_sha256(path)
    return "" if found == sha256 else f"sha256 {found[:12]}"


def vector_files(folder: Path, name: str) -> VectorFiles:
    """An exact file of a handed-over index as a recipe's ``documents.vectors`` names it."""
    ids = None if name == "parquet" else str(folder / IDS)
    return VectorFiles(format=name, path=str(folder / FILES[name]), ids=ids)  # type: ignore[arg-type]
