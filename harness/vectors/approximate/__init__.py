"""Approximate search over document vectors by inner product, at an effort that is chosen when searching (FAISS).

| kind | what it is | effort |
|---|---|---|
| ``hnsw`` | a graph of near neighbours (Malkov and Yashunin, arXiv 1603.09320) | efSearch: candidates kept |
| ``ivf`` | vectors in lists around centroids (Sivic and Zisserman 2003) | nprobe: lists read |
| ``ivf-pq`` | the same, a vector in a few bytes (Jegou et al. 2011) | nprobe |

Hits look like those of ``VectorIndex``: sorted by (-score, id). One thread builds the same index every time; several
threads build another graph each time (``hnsw``). Imports no torch.
"""

from harness.vectors.approximate.index import ApproximateIndex, AsAsked, Searcher, saved_bytes
from harness.vectors.approximate.parameters import (
    KINDS,
    LEAST_DOCUMENTS,
    TOO_SMALL,
    default_efforts,
    misfits,
    resolved,
)

__all__ = [
    "ApproximateIndex",
    "AsAsked",
    "KINDS",
    "LEAST_DOCUMENTS",
    "Searcher",
    "TOO_SMALL",
    "default_efforts",
    "misfits",
    "resolved",
    "saved_bytes",
]
