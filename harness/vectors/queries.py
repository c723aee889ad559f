"""What exact and approximate indexes have in common: documents in partitions, and queries that can be answered.

Imports no torch. Axes: Q queries, N documents, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harness.runtime.errors import InputError, Problem


def rows_by_partition(documents: int, partition_N: Sequence[str] | None) -> dict[str | None, NDArray[np.int64]]:
    """The rows of each partition, by its name; of all documents, by None, where there are no partitions."""
    if partition_N is None:
        return {None: np.arange(documents)}
    name_N = np.asarray(partition_N, dtype=object)
    return {name: np.flatnonzero(name_N == name) for name in sorted(set(partition_N))}


def checked_queries(query_QD: np.ndarray, dimension: int) -> NDArray[np.float32]:
    """The queries as float32 in one piece.

    Raises:
        InputError: they are of another dimension, or not finite.
    """
    query_QD = np.ascontiguousarray(query_QD, dtype=np.float32)
    if query_QD.ndim != 2 or query_QD.shape[1] != dimension:
        raise InputError(Problem("queries of another dimension than the index", got=str(query_QD.shape),
                                 allowed=f"[queries, {dimension}]",
                                 next="search with the encoder of this space"))  # fmt: skip
    broken = np.flatnonzero(~np.isfinite(query_QD).all(axis=1))
    if broken.size:
        raise InputError(Problem(f"{broken.size} query vectors are not finite",
                                 got=f"the first are queries {broken[:5].tolist()}, counted from 0",
                                 next="look at these queries, or encode them in higher precision"))  # fmt: skip
    return query_QD
