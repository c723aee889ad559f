"""Hard negatives in their plain form: the top of the index without what may not be a negative.

Axes: Q queries, K hits, M negatives kept, B queries of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.runtime.distributed import join_rows, share
from harness.runtime.errors import InputError, Problem, StaleArtefactError
from harness.runtime.process import atomic_file, atomic_folder, progress, write_json
from harness.vectors.index import VectorIndex
from harness.vectors.store import name_some

Forbidden = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (query_B, row_BK) -> bool_BK
SEARCHED = 4096  # queries searched at once
FILTERED = 256  # queries filtered at once; memory grows with its square


def mine(
    index: VectorIndex,
    query_QD: np.ndarray,
    *,
    top_k: int,
    skip: int,
    keep: int,
    forbidden: Forbidden,
    partition_Q: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Of each query's ``top_k`` hits: without the forbidden ones, without the first ``skip`` of the rest, ``keep``.

    Several processes, given the same queries, mine for a part of them each; all get all negatives.

    Args:
        index: over all documents, in the order that ``forbidden`` knows.
        query_QD: float [Q, D], in the order that ``forbidden`` knows.
        top_k: hits looked at, positives included.
        skip: ranks left out as likely false negatives, counted after the forbidden ones are gone.
        keep: negatives kept.
        forbidden: ``Relevance.forbidden``: true where a hit may not be the query's negative, and for the padding -1.
        partition_Q: for an index whose queries see only their partition.

    Returns:
        (row_QM int64, score_QM float32) with M = ``keep``, best first; row -1 and score -inf where there are fewer.
    """
    assert top_k > 0 and skip >= 0 and keep > 0
    own = share(len(query_QD))
    row_QM = np.full((len(query_QD), keep), -1, dtype=np.int64)
    score_QM = np.full((len(query_QD), keep), -np.inf, dtype=np.float32)
    with progress(what="mine", total=own.stop - own.start, unit="query") as bar:
        for start in range(own.start, own.stop, SEARCHED):
            part = slice(start, min(start + SEARCHED, own.stop))
            score_BK, row_BK = index.search(query_QD[part], top_k, None if partition_Q is None else partition_Q[part])
            forbidden_BK = [
                forbidden(start + first + np.arange(len(block_BK)), block_BK)
                for first in range(0, len(row_BK), FILTERED)
                for block_BK in [row_BK[first : first + FILTERED]]
            ]
            column_BM, kept_BM = _columns(~np.concatenate(forbidden_BK), skip, keep)
            width = column_BM.shape[1]
            row_QM[part, :width] = np.where(kept_BM, np.take_along_axis(row_BK, column_BM, 1), -1)
            score_QM[part, :width] = np.where(kept_BM, np.take_along_axis(score_BK, column_BM, 1), -np.inf)
            bar.update(len(row_BK))
    return join_rows(row_QM[own], len(query_QD)), join_rows(score_QM[own], len(query_QD))


def _columns(allowed_BK: np.ndarray, skip: int, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns of the hits to keep, in rank order, and whether each column is one (there may be fewer than ``keep``)."""
    rank_BK = np.cumsum(allowed_BK, axis=1) - 1
    kept_BK = allowed_BK & (rank_BK >= skip) & (rank_BK < skip + keep)
    column_BM = np.argsort(~kept_BK, axis=1, kind="stable")[:, :keep]
    return column_BM, np.take_along_axis(kept_BK, column_BM, axis=1)


def save_mined(
    folder: Path | str,
    query_ids: Sequence[str],
    document_ids: Sequence[str],
    row_QM: np.ndarray,
    score_QM: np.ndarray,
    *,
    positive_score_Q: np.ndarray | None = None,
) -> dict[str, Any]:
    """Write negatives as ``mined.parquet`` (query_id, document_ids, scores) and ``audit.json``; return the audit.

    Args:
        folder: replaced as a whole.
        query_ids: Q ids.
        document_ids: ids of the index's rows.
        row_QM, score_QM: what ``mine`` returned.
        positive_score_Q: the score of each query's best positive (NaN where unknown), for the audit.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    real_QM = row_QM >= 0
    count_Q = real_QM.sum(axis=1)
    offsets = pa.array(np.concatenate([[0], np.cumsum(count_Q)]).astype(np.int32))
    ids = pa.array(document_ids, type=pa.string()).take(pa.array(row_QM[real_QM]))
    table = pa.table({
        "query_id": pa.array(query_ids, type=pa.string()),
        "document_ids": pa.ListArray.from_arrays(offsets, ids),
        "scores": pa.ListArray.from_arrays(offsets, pa.array(score_QM[real_QM])),
    })
    audit: dict[str, Any] = {
        "queries": len(query_ids),
        "queries_without_negatives": int((count_Q == 0).sum()),
        "negatives": int(count_Q.sum()),
        "negatives_per_query": float(count_Q.mean()) if len(count_Q) else 0.0,
        "scores": {"negatives": _summary(score_QM[real_QM])},
    }
    if positive_score_Q is not None:
        known_QM = real_QM & np.isfinite(positive_score_Q)[:, None]
        above_QM = known_QM & (score_QM > positive_score_Q[:, None])
        audit["scores"]["positives"] = _summary(positive_score_Q[np.isfinite(positive_score_Q)])
        audit["negatives_above_their_positive"] = float(above_QM.sum() / max(1, known_QM.sum()))
    with atomic_folder(folder) as target:
        with atomic_file(target / "mined.parquet") as stream:
            pq.write_table(table, stream)
        write_json(target / "audit.json", audit)
    return audit


def _summary(scores: np.ndarray) -> dict[str, float] | None:
    if not scores.size:
        return None
    low, median, high = np.quantile(scores, [0.05, 0.5, 0.95])
    named = {"mean": scores.mean(), "min": scores.min(), "p5": low, "median": median, "p95": high, "max": scores.max()}
    return {name: float(value) for name, value in named.items()}


def load_mined(folder: Path | str, query_ids: Sequence[str], row: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Read the negatives of the given queries.

    Args:
        folder: what ``save_mined`` wrote.
        query_ids: Q ids, in the order wanted.
        row: document id -> row.

    Returns:
        (row_QM int64, score_QM float32), best first and padded like ``mine``'s; M is the longest list's length.

    Raises:
        InputError: nothing was mined there, or the file is damaged.
        StaleArtefactError: it lacks queries, or names documents that are not in ``row``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(folder) / "mined.parquet"
    try:
        table = pq.read_table(path, columns=["query_id", "document_ids", "scores"])
    except (OSError, pa.ArrowException) as error:
        raise InputError(Problem("no mined negatives, or damaged ones", where=str(path), got=str(error)[:200],
                                 next="run the mine step again")) from None
    place = {name: at for at, name in enumerate(table["query_id"].to_pylist())}
    lists, scores = table["document_ids"].combine_chunks(), table["scores"].combine_chunks()
    names = lists.flatten().to_pylist()
    lacking = [name for name in query_ids if name not in place]
    strange = sorted({name for name in names if name not in row})
    if lacking or strange:
        raise StaleArtefactError([
            Problem(f"{len(found)} {what}", where=str(path), got=name_some(found), next="run the mine step again")
            for what, found in (("queries are not in it", lacking), ("documents in it are unknown", strange)) if found
        ])  # fmt: skip
    count_Q = np.diff(lists.offsets.to_numpy())
    real_QM = np.arange(count_Q.max(initial=0)) < count_Q[:, None]
    row_QM = np.full(real_QM.shape, -1, dtype=np.int64)
    score_QM = np.full(real_QM.shape, -np.inf, dtype=np.float32)
    row_QM[real_QM] = [row[name] for name in names]
    score_QM[real_QM] = scores.flatten().to_numpy()
    order_Q = np.array([place[name] for name in query_ids], dtype=np.int64)
    return row_QM[order_Q], score_QM[order_Q]
