"""Which hits may be negatives, which filter took the others away, and which of those left are kept.

Axes: B queries of a block, K hits of a query, P positives of all queries of the block.
"""

from __future__ import annotations

import numpy as np

from harness.recipe import MineSettings

# In the order in which they are asked; a hit falls to the first that takes it. ``positive``: the query's own.
# ``known``: equal in text or key to a positive, positive for a query with the same text, or of another language where
# languages are searched apart.
FILTERS = ("positive", "known", "rank", "min_score", "max_score", "margin", "share", "model_scores")
PASSES, NO_HIT = -1, -2


def fallen(
    score_BK: np.ndarray,
    own_BK: np.ndarray,
    forbidden_BK: np.ndarray,
    positive_B: np.ndarray,
    model_BK: np.ndarray | None,
    settings: MineSettings,
) -> np.ndarray:
    """What each hit falls to.

    Args:
        score_BK: float [B, K], best first; -inf is the padding where there are fewer hits.
        own_BK: true for the query's own positives.
        forbidden_BK: ``Relevance.forbidden``: true for all that is known to be relevant, and for the padding.
        positive_B: the positive's score that margins refer to; inf: the query has none, and no margin.
        model_BK: a relevance model's scores, NaN where unknown; ``None`` without one.

    Returns:
        int8 [B, K]: a position in ``FILTERS``, ``PASSES``, or ``NO_HIT`` for the padding.
    """
    score_BK, limit_B1 = score_BK.astype(np.float64), positive_B.astype(np.float64)[:, None]
    rank_BK = np.cumsum(~forbidden_BK, axis=1) - 1
    tests = {"positive": own_BK, "known": forbidden_BK, "rank": rank_BK < settings.skip}
    if settings.until is not None:
        tests["rank"] = tests["rank"] | (rank_BK >= settings.until)
    if settings.min_score is not None:
        tests["min_score"] = score_BK < settings.min_score
    if settings.max_score is not None:
        tests["max_score"] = score_BK > settings.max_score
    if settings.margin is not None:
        tests["margin"] = score_BK >= limit_B1 - settings.margin
    if settings.share is not None:
        # Not ``share * positive``: of a positive's score below zero, that would be more than all of it.
        below = np.where(np.isfinite(limit_B1), np.abs(limit_B1), 0.0) * (1 - settings.share)
        tests["share"] = score_BK >= limit_B1 - below
    if settings.model_scores is not None:
        assert model_BK is not None
        unknown_BK = np.isnan(model_BK)
        tests["model_scores"] = np.where(
            unknown_BK, settings.model_scores.unknown == "drop", model_BK > settings.model_scores.max_score
        )
    fallen_BK = np.full(score_BK.shape, PASSES, dtype=np.int8)
    for code in reversed(range(len(FILTERS))):
        if FILTERS[code] in tests:
            fallen_BK[tests[FILTERS[code]]] = code
    fallen_BK[np.isneginf(score_BK)] = NO_HIT
    return fallen_BK


def picked(passes_BK: np.ndarray, row_BK: np.ndarray, query_B: np.ndarray, settings: MineSettings) -> np.ndarray:
    """Which of the hits that pass are kept, bool [B, K]: at most ``settings.keep`` of a query.

    A random sample depends on the seed, the query's number and the documents' rows alone, not on blocks or processes.
    """
    if settings.pick == "top":
        return passes_BK & (np.cumsum(passes_BK, axis=1) <= settings.keep)
    seed_11 = _mixed(np.array([[settings.seed % 2**64]], dtype=np.uint64))
    query_B1 = _mixed(seed_11 ^ query_B.astype(np.uint64)[:, None])
    ticket_BK = _mixed(query_B1 ^ row_BK.astype(np.uint64))
    ticket_BK[~passes_BK] = np.iinfo(np.uint64).max
    drawn_BK = np.argsort(ticket_BK, axis=1, kind="stable")[:, : settings.keep]
    kept_BK = np.zeros_like(passes_BK)
    np.put_along_axis(kept_BK, drawn_BK, values=True, axis=1)
    return kept_BK & passes_BK


def _mixed(value: np.ndarray) -> np.ndarray:
    """A hash of 64-bit numbers (the finaliser of SplitMix64, Steele et al. 2014)."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
