"""The exact searcher: inner products of all pairs in bounded memory, at the speed of the matrix product.

A hit is one 64-bit key that sorts as hits do: the score's bits above, the document's rank by id below. So merging
blocks, breaking ties and padding are all "the k largest keys". To look for the k best in every row of scores would take
longer than to compute them; instead the largest score of every ``CHUNK`` documents is compared with the query's k-th
best so far, which soon few chunks reach, and only those are looked into.

Axes: Q queries, N documents, D dimensions, K hits, B queries of a block, M documents of a block, C chunks of a block,
P chunks that are looked into, E scores that are kept for now.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BLOCK_DOCUMENTS = 16_384  # documents of a block: enough for a fast matrix product
SCORE_BYTES = 64 * 2**20  # memory for one block of scores
CHUNK = 64
NO_HIT = torch.iinfo(torch.int64).min
_LOW = 2**32 - 1
_LOOKED_INTO, _KEPT = 0.5, 0.125  # the largest shares of a block's scores for which that is the faster way


def keys(score: Tensor, rank: Tensor) -> Tensor:
    """One int64 per hit that is larger for a higher score and, between equal scores, for a smaller rank."""
    bits = (score + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal to 0.0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the floats
    return (ordered.to(torch.int64) << 32) | (_LOW - rank)


def scores_of(key: Tensor) -> Tensor:
    """The scores that ``keys`` were made of."""
    bits = (key >> 32).to(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)


def ranks_of(key: Tensor) -> Tensor:
    """The ranks that ``keys`` were made of."""
    return _LOW - (key & _LOW)


def search(query_QD: Tensor, vector_ND: np.ndarray, rank_N: Tensor, k: int) -> Tensor:
    """Keys of the k best documents, int64 [Q, min(k, N)], in no order; scores of one block at a time are in memory.

    Blocks of queries and of documents begin at fixed places, so that a search of some whole blocks of documents finds
    the very scores that a search of all of them finds.
    """
    if not len(query_QD):
        return torch.empty((0, min(k, len(vector_ND))), dtype=torch.int64)
    queries = max(1, SCORE_BYTES // (4 * BLOCK_DOCUMENTS))
    width = _whole_chunks(min(len(vector_ND), BLOCK_DOCUMENTS))
    # Rows a chunk apart: where they lie a power of two apart, they fall into the same few lines of the cache.
    room_BM = torch.empty((min(queries, len(query_QD)), width + CHUNK))[:, :width]
    best_QK = torch.empty((len(query_QD), 0), dtype=torch.int64)
    for start in range(0, len(vector_ND), BLOCK_DOCUMENTS):
        document_MD = _as_tensor(vector_ND[start : start + BLOCK_DOCUMENTS])
        rank_M = rank_N[start : start + BLOCK_DOCUMENTS]
        found = []
        for query_BD, best_BK in zip(torch.split(query_QD, queries), torch.split(best_QK, queries), strict=True):
            score_BM = _scores(query_BD, document_MD, room_BM)
            more_BK = _above(score_BM, rank_M, best_BK, k)
            if more_BK is None:
                more_BK = _block_best(score_BM[:, : len(rank_M)], rank_M, k)
            both = torch.cat([best_BK, more_BK], dim=1)
            found.append(both.topk(min(k, start + len(rank_M)), dim=1, sorted=False).values)
        best_QK = torch.cat(found)
    return best_QK


def _whole_chunks(documents: int) -> int:
    return -(-documents // CHUNK) * CHUNK


def _scores(query_BD: Tensor, document_MD: Tensor, room_BM: Tensor) -> Tensor:
    """The block's scores, -inf after the last document up to a whole chunk, in memory that is used again and again."""
    score_BM = room_BM[: len(query_BD), : _whole_chunks(len(document_MD))]
    with torch.autocast("cpu", enabled=False):  # a caller's bf16 must not reach the scores
        torch.mm(query_BD, document_MD.T, out=score_BM[:, : len(document_MD)])
    score_BM[:, len(document_MD) :] = -torch.inf
    return score_BM


def _above(score_BM: Tensor, rank_M: Tensor, best_BK: Tensor, k: int) -> Tensor | None:
    """Keys of all scores that may be among the k best, padded with no hits; None where that isn't worth it.

    That is: of all scores that are not below the k-th best so far, or in the first block the k-th best of the peaks.
    """
    score_BCM = score_BM.unflatten(1, (-1, CHUNK))
    peak_BC = score_BCM.amax(dim=2)
    if best_BK.shape[1] == k:
        floor_B = scores_of(best_BK.amin(dim=1))
    elif peak_BC.shape[1] >= 2 * k:
        floor_B = peak_BC.topk(k, dim=1).values[:, -1]
    else:
        return None
    if not (floor_B.isfinite().all() and peak_BC.isfinite().all()):  # sums that overflow compare with nothing
        return None
    query_P, chunk_P = torch.nonzero(peak_BC >= floor_B[:, None], as_tuple=True)
    if len(query_P) * CHUNK > score_BM.numel() * _LOOKED_INTO:
        return None
    score_PC = score_BCM[query_P, chunk_P]
    pair_E, lane_E = torch.nonzero(score_PC >= floor_B[query_P, None], as_tuple=True)
    query_E = query_P[pair_E]
    count_B = torch.bincount(query_E, minlength=len(score_BM))
    most = int(count_B.max())
    if most > score_BM.shape[1] * _KEPT:
        return None
    more_BK = torch.full((len(score_BM), most), NO_HIT)
    place_E = torch.arange(len(query_E)) - (count_B.cumsum(0) - count_B)[query_E]
    more_BK[query_E, place_E] = keys(score_PC[pair_E, lane_E], rank_M[chunk_P[pair_E] * CHUNK + lane_E])
    return more_BK


def _block_best(score_BM: Tensor, rank_M: Tensor, k: int) -> Tensor:
    """Keys of the k best documents of a block, int64 [B, min(k, M)], by looking at every score."""
    if score_BM.shape[1] <= k:
        return keys(score_BM, rank_M)
    value_BK, column_BK = score_BM.topk(k + 1, dim=1)
    best_BK = keys(value_BK[:, :k], rank_M[column_BK[:, :k]])
    # Where the k-th and the next score are equal, topk chose among them by chance; the ids must choose.
    tied = torch.nonzero(value_BK[:, k - 1] == value_BK[:, k]).squeeze(1)
    for query_A in torch.split(tied, max(1, len(score_BM) // 8)):
        best_BK[query_A] = keys(score_BM[query_A], rank_M).topk(k, dim=1).values
    return best_BK


def _as_tensor(vector_MD: np.ndarray) -> Tensor:
    """float32 in memory: without a copy where it is that already."""
    ready = vector_MD.dtype == np.float32 and vector_MD.flags.writeable and vector_MD.flags.c_contiguous
    return torch.from_numpy(vector_MD if ready else np.array(vector_MD, dtype=np.float32, order="C"))
