"""Bring your own vectors: files become a store, and a sample encoded again proves that they are this encoder's.

Axes: N rows of the files, B rows wanted or of a block, D dimensions.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from harness.recipe import VectorFiles
from harness.runtime.errors import InputError, Problem
from harness.runtime.process import file_sha256, logger
from harness.vectors.index import require_faiss
from harness.vectors.space import Space
from harness.vectors.store import VectorStore, name_some
from harness.vectors.writer import Encode, write_store

Read = tuple[list[str], np.ndarray]  # ids and vectors [N, D] of files

BLOCK = 65_536
NORM_TOLERANCE = 1e-2  # float16 keeps lengths to about 1e-3


def import_vectors(
    files: VectorFiles,
    folder: Path | str,
    space: Space,
    ids_wanted: Sequence[str],
    *,
    dtype: str = "float32",
    shard_rows: int = 100_000,
    prefix: str = "",
    read: Read | None = None,
) -> VectorStore:
    """Write the vectors of ``ids_wanted`` from files into a store, in that order. Other rows of the files are left out.

    Args:
        files: ``npy`` [N, D] with a text file of N ids; ``parquet`` with columns ``id`` and ``vector``; or a ``faiss``
            index that keeps its vectors, with a text file of ids.
        folder: the store's folder.
        space: the space that they are said to be of.
        ids_wanted: distinct ids.
        dtype, shard_rows: as for ``write_store``.
        prefix: what the ids wanted have before the files' ids.
        read: what ``read_vectors`` gave, where the files were read already.

    Raises:
        InputError: every problem of the files at once: unreadable, counts that differ, ids missing or double, another
            dimension, values not finite, or lengths other than 1 in a normalised space; ids named.
    """
    row, vector_ND = check_vectors(
        files, ids_wanted, space.dimension, normalized=space.normalized, prefix=prefix, read=read
    )  # fmt: skip
    # The ids stand in for the texts, which the files don't tell; the files' own hashes are what makes a store stale.
    hashes = [file_sha256(path) for path in (files.path, files.ids) if path is not None]
    return write_store(
        folder, ids_wanted, ids_wanted, lambda window: np.asarray(vector_ND[[row[name] for name in window]]), space,
        dtype=dtype, shard_rows=shard_rows, key=" ".join([files.format, *hashes]),
    )  # fmt: skip


def check_vectors(
    files: VectorFiles,
    ids_wanted: Sequence[str],
    dimension: int | None,
    *,
    normalized: bool,
    prefix: str = "",
    rows: int | None = None,
    read: Read | None = None,
) -> tuple[dict[str, int], np.ndarray]:
    """Read files of vectors and refuse what can't be used; what ``import_vectors`` refuses, without a store.

    Args:
        files, ids_wanted, prefix, read: as for ``import_vectors``.
        dimension: that they must have; None: any.
        normalized: whether the wanted ones must have length 1.
        rows: look at the values of so many wanted rows at most; None: of all.

    Returns:
        The row of each id of the files (with ``prefix``), and the vectors, float [N, D].

    Raises:
        InputError: every problem of the files at once, as for ``import_vectors``.
    """
    ids, vector_ND = read or read_vectors(files)
    problems = []
    if vector_ND.ndim != 2 or vector_ND.dtype.kind != "f":
        raise InputError(Problem("not a matrix of floats", where=files.path, got=f"{vector_ND.dtype} {vector_ND.shape}",
                                 allowed="float [rows, dimension]"))
    if len(ids) != len(vector_ND):
        raise InputError(Problem("ids and vectors differ in number", where=files.ids or files.path,
                                 got=f"{len(ids)} ids, {len(vector_ND)} vectors", next="give one id for every vector"))
    if dimension is not None and vector_ND.shape[1] != dimension:
        problems.append(Problem("vectors of another dimension", where=files.path, got=str(vector_ND.shape[1]),
                                allowed=str(dimension), next="name the teacher that made them, or its dimension"))
    row = {name: at for at, name in enumerate(ids)}
    if len(row) < len(ids):
        twice = [name for name, count in Counter(ids).items() if count > 1]
        problems.append(Problem(f"{len(twice)} ids stand more than once", where=files.ids or files.path,
                                got=name_some(twice), next="keep one vector for each id"))
    row = {prefix + name: at for name, at in row.items()} if prefix else row
    missing = [name.removeprefix(prefix) for name in ids_wanted if name not in row]
    if missing:
        problems.append(Problem(f"{len(missing)} of {len(ids_wanted)} ids have no vector", got=name_some(missing),
                                where=files.ids or files.path, next="add them, or take them out of the data"))
    row_B = np.fromiter((row[name] for name in islice(ids_wanted, rows) if name in row), dtype=np.int64)
    problems += _wrong_values(vector_ND, row_B, ids, normalized, files.path)
    if problems:
        raise InputError(problems)
    return row, vector_ND


def _wrong_values(
    vector_ND: np.ndarray, row_B: np.ndarray, ids: Sequence[str], normalized: bool, where: str
) -> list[Problem]:
    """Wanted rows that are not finite, or not of length 1 though the space says so."""
    broken, long = [], []
    for start in range(0, len(row_B), BLOCK):
        part_B = row_B[start : start + BLOCK]
        with np.errstate(over="ignore", invalid="ignore"):
            norm_B = np.linalg.norm(np.asarray(vector_ND[part_B], dtype=np.float64), axis=1)
        broken += part_B[~np.isfinite(norm_B)].tolist()
        long += part_B[np.isfinite(norm_B) & (np.abs(norm_B - 1) > NORM_TOLERANCE)].tolist()
    problems = []
    if broken:
        problems.append(Problem(f"{len(broken)} vectors are not finite", where=where,
                                got=name_some(ids[row] for row in broken), next="encode these again"))
    if long and normalized:
        length = float(np.linalg.norm(np.asarray(vector_ND[long[0]], dtype=np.float64)))
        problems.append(Problem(f"{len(long)} vectors are not normalised, but the space is", where=where,
                                got=f"length {length:.4f} for {name_some((ids[row] for row in long), 1)}",
                                allowed="length 1", next="normalise them, or name a teacher that doesn't"))
    return problems


def peek_dimension(files: VectorFiles) -> int:
    """The dimension of the vectors in the files.

    Raises:
        InputError: the files are missing or unreadable.
    """
    _refuse_absent(files)
    with _readable(files):
        if files.format == "parquet":
            return _parquet_dimension(files.path)
        if files.format == "npy":
            return int(np.load(files.path, mmap_mode="r", allow_pickle=False).shape[-1])
        return int(require_faiss(files.path).read_index(files.path).d)


# ------------------------------------------------------------------------------------------------------- the formats


def read_vectors(files: VectorFiles) -> Read:
    """Ids and vectors [N, D] of the files, vectors memory-mapped where the format allows.

    Raises:
        InputError: the files are missing or unreadable.
    """
    _refuse_absent(files)
    with _readable(files):
        if files.format == "parquet":
            return _read_parquet(files.path)
        assert files.ids is not None
        ids = Path(files.ids).read_text(encoding="utf-8-sig").split("\n")
        ids = [line.removesuffix("\r") for line in (ids[:-1] if ids[-1] == "" else ids)]
        if files.format == "npy":
            return ids, np.load(files.path, mmap_mode="r", allow_pickle=False)
        return ids, _read_faiss(files.path)


def _refuse_absent(files: VectorFiles) -> None:
    lost = [path for path in (files.path, files.ids) if path is not None and not Path(path).is_file()]
    problems = [Problem("no such file", where=path) for path in lost]
    if files.ids is None and files.format != "parquet":
        problems.append(Problem(f"{files.format} vectors need their ids", where=files.path,
                                allowed="ids: a text file with one id a line", next="add ids beside path"))
    if problems:
        raise InputError(problems)


@contextlib.contextmanager
def _readable(files: VectorFiles) -> Iterator[None]:
    """What goes wrong while the files are read is a problem of the files."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(Problem(f"not readable as {files.format}", where=files.path, got=str(error)[:200],
                                 next="write the file again")) from None


def _read_parquet(path: str) -> tuple[list[str], np.ndarray]:
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["id", "vector"])
    lists = table["vector"].combine_chunks()
    vectors = lists.flatten()
    dimension, rest = divmod(len(vectors), max(1, len(lists)))
    ragged = rest or (np.diff(lists.offsets.to_numpy()) != dimension).any() if hasattr(lists, "offsets") else False
    if lists.null_count or vectors.null_count or ragged:
        raise ValueError("column 'vector' holds nulls or lists of different lengths")
    return [str(name) for name in table["id"].to_pylist()], vectors.to_numpy().reshape(len(lists), dimension)


def _parquet_dimension(path: str) -> int:
    """The length of the first vector; little more than its page is read."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=1, columns=["vector"]):
            if (first := batch.column("vector")[0].as_py()) is None:
                raise ValueError("column 'vector' holds nulls")
            return len(first)
    return 0


def _read_faiss(path: str) -> np.ndarray:
    faiss = require_faiss(path)
    index = faiss.read_index(path)
    if lossy := rounding_of(index, faiss):
        logger.warning(
            "%s: %s: the index keeps its vectors rounded. Everything is then trained on and measured against rounded "
            "vectors, and recovery does not tell what the rounding cost. Give the exact vectors where they exist (npy, "
            "parquet, or a flat index)", path, lossy,
        )  # fmt: skip
    vector_ND: np.ndarray = index.reconstruct_n(0, index.ntotal)
    return vector_ND


def rounding_of(index: Any, faiss: Any) -> str:
    """How a FAISS index rounds the vectors that it keeps, in words; empty where it keeps them in 16 bits or more."""
    index = faiss.downcast_index(index)
    for inner in ("index", "storage"):  # maps of ids, transforms; the vectors of a graph
        if getattr(index, inner, None) is not None:
            return rounding_of(getattr(index, inner), faiss)
    name = type(index).__name__
    if name in ("IndexScalarQuantizer", "IndexIVFScalarQuantizer"):
        kinds = {getattr(faiss.ScalarQuantizer, kind): kind for kind in dir(faiss.ScalarQuantizer) if "QT_" in kind}
        kind = kinds.get(index.sq.qtype, "QT_unknown").removeprefix("QT_")
        return "" if kind in ("fp16", "bf16") else f"{name} ({kind})"
    return "" if name in ("IndexFlat", "IndexFlatIP", "IndexFlatL2", "IndexIVFFlat", "IndexIVFFlatDedup") else name


# ---------------------------------------------------------------------------------------------------- a sample again


class Sampled(Protocol):
    """What a sample is taken from: a store, or files that are to become one."""

    folder: Path
    space: Space
    ids: list[str]

    def vectors(self, row_B: np.ndarray) -> np.ndarray:
        """Vectors of the given rows, float32 [B, D]."""
        ...


@dataclass
class GivenVectors:
    """The vectors of ``ids`` in files, before they are a store; ``folder`` is the file."""

    folder: Path
    space: Space
    ids: list[str]
    row: Mapping[str, int]
    vector_ND: np.ndarray

    @classmethod
    def of(
        cls, files: VectorFiles, space: Space, ids_wanted: Sequence[str], read: Read | None = None
    ) -> GivenVectors:
        """Open the files, or take what ``read_vectors`` gave; raises what ``check_vectors`` raises, values apart."""
        row, vector_ND = check_vectors(
            files, ids_wanted, space.dimension, normalized=space.normalized, rows=0, read=read
        )  # fmt: skip
        return cls(Path(files.path), space, list(ids_wanted), row, vector_ND)

    def vectors(self, row_B: np.ndarray) -> np.ndarray:
        """Vectors of the given rows of ``ids``, float32 [B, D]."""
        return np.asarray(self.vector_ND[[self.row[self.ids[row]] for row in row_B.tolist()]], dtype=np.float32)


def check_sample(
    store: Sampled,
    texts_by_id: Mapping[str, str],
    encode: Encode,
    *,
    sample: int,
    min_cosine: float,
    alternatives: Mapping[str, Encode] | None = None,
) -> dict[str, Any]:
    """Encode a sample of the store's texts again; refuse vectors that this encoder, as it is set up, did not make.

    Args:
        store: whose vectors are in doubt.
        texts_by_id: texts of the store's ids.
        encode: texts -> float [B, D], by the encoder that the store's space names.
        sample: how many, always the same ones.
        min_cosine: the least cosine that any of them may have.
        alternatives: other set-ups of the encoder, by description ("without the document prompt"); tried when the check
            fails, so that the message can say which one the vectors match.

    Returns:
        {"sample", "min_cosine", "mean_cosine"}.

    Raises:
        InputError: a cosine below ``min_cosine``, another dimension, or, in a space that doesn't normalise, another
            length.
    """
    known = np.array([row for row, name in enumerate(store.ids) if name in texts_by_id], dtype=np.int64)
    if not known.size:
        raise InputError(Problem("none of the store's ids has a text", where=str(store.folder), next="check the ids"))
    row_B = np.sort(np.random.default_rng(0).choice(known, size=min(sample, len(known)), replace=False))
    names = [store.ids[row] for row in row_B.tolist()]
    texts = [texts_by_id[name] for name in names]
    stored_BD, again_BD = store.vectors(row_B), np.asarray(encode(texts))
    where, set_up = str(store.folder), _set_up(store.space)
    if again_BD.shape != stored_BD.shape:
        raise InputError(Problem("vectors of another dimension than the encoder's", where=where,
                                 got=str(stored_BD.shape[1]), allowed=f"{again_BD.shape[1]} ({set_up})",
                                 next="set teacher.dimension, or name the teacher that made them"))
    cosine_B, length_B = _compare(stored_BD, again_BD)
    found = {"sample": len(row_B), "min_cosine": float(cosine_B.min()), "mean_cosine": float(cosine_B.mean())}
    if cosine_B.min() < min_cosine:
        worst = name_some(names[at] for at in np.argsort(cosine_B)[:3].tolist())
        raise InputError(Problem(
            "these vectors were not made by this encoder as it is set up", where=where,
            got=f"cosine {found['min_cosine']:.4f} at least, {found['mean_cosine']:.4f} on average over {len(row_B)} "
                f"encoded again; furthest: {worst}",
            allowed=f"at least {min_cosine} with {set_up}",
            next="; ".join(["set prompts, pooling, dimension and revision to those that made the vectors",
                            *_hints(stored_BD, texts, alternatives or {})]),
        ))  # fmt: skip
    if not store.space.normalized and np.abs(length_B - 1).max() > NORM_TOLERANCE:
        raise InputError(Problem("the encoder's direction but another length", where=where, allowed="1.0 times",
                                 got=f"{length_B.min():.3f} to {length_B.max():.3f} times the encoder's ({set_up})",
                                 next="name a teacher that normalises, or give the vectors unchanged"))
    return found


def _set_up(space: Space) -> str:
    return (f"query prompt {space.query_prompt!r}, document prompt {space.document_prompt!r}, pooling {space.pooling}, "
            f"dimension {space.dimension}, {'' if space.normalized else 'not '}normalised")  # fmt: skip


def _compare(stored_BD: np.ndarray, again_BD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine of each pair, and the stored one's length relative to the other's."""
    stored_BD, again_BD = stored_BD.astype(np.float64), again_BD.astype(np.float64)
    stored_B, again_B = np.linalg.norm(stored_BD, axis=1), np.linalg.norm(again_BD, axis=1)
    cosine_B = (stored_BD * again_BD).sum(axis=1) / np.maximum(stored_B * again_B, 1e-12)
    return np.nan_to_num(cosine_B, nan=-1.0), stored_B / np.maximum(again_B, 1e-12)


def _hints(stored_BD: np.ndarray, texts: Sequence[str], alternatives: Mapping[str, Encode]) -> list[str]:
    """How well other set-ups of the encoder match the stored vectors."""
    hints = []
    for name, encode in alternatives.items():
        again_BD = np.asarray(encode(texts))
        same = again_BD.shape == stored_BD.shape
        matches = f"mean cosine {_compare(stored_BD, again_BD)[0].mean():.4f}" if same else "another dimension"
        hints.append(f"{name}: {matches}")
    return hints
