"""The teacher's batches from logs too large for memory: pairs of a query and a text that answers it, as cached tokens.

Axes: B pairs of all processes, Q those of this one, N = B documents, K keys.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.data.collator import Collator
from harness.data.dedupe import NOTHING, Hashes
from harness.data.mixture import Draw, Mixture
from harness.data.token_cache import TokenStream
from harness.recipe import TrainingSettings
from harness.runtime.distributed import rank, world_size
from harness.training.batches import Batch, require_equal_parts

QUERY, POSITIVE = range(2)  # which field of a cache is which; columns have other names in every log


class PairStreamBatches:
    """The pairs of each step: a pure function of (seed, step), and this process's part of it.

    Every pair's positive is a negative of all others, but for what is known: no two pairs of a batch share a query or a
    positive, for so ``mixture`` draws them; of those that do nevertheless, none is the other's negative.

    Args:
        mixture: of token caches with two fields, query and positive, prompts included.
        collator: pads both; it adds no prompt.
        with_towers: whether the loss looks at other queries and at documents among each other.
    """

    def __init__(
        self, mixture: Mixture, collator: Collator, settings: TrainingSettings, *, with_towers: bool = False
    ) -> None:
        require_equal_parts(settings)
        assert mixture.batch_size == settings.batch_size
        self.mixture, self.collator, self.with_towers = mixture, collator, with_towers
        self.parts = settings.accumulate

    def __call__(self, step: int) -> list[Batch]:
        draw = self.mixture.draw(step)
        return [self._micro_batch(draw.share(part, self.parts)) for part in range(self.parts)]

    def _micro_batch(self, draw: Draw) -> Batch:
        local = draw.share(rank(), world_size())
        size = len(local.row_B)
        first = rank() * size  # of this process's documents among those of all
        queries, positives, ids = self._texts(local)
        tokens = self.collator.pad([*queries, *positives])
        same_QN = torch.from_numpy(share_a_key(self._keys(draw))[first : first + size])
        positive_Q = torch.arange(first, first + size)
        batch: dict[str, Any] = {
            "chunks": tokens.chunks, "restore": tokens.restore, "queries": size, "positive_Q": positive_Q,
            "forbidden_QN": same_QN, "weight_Q": None, "ids": ids,
        }  # fmt: skip
        if self.with_towers:
            own_QN = torch.zeros_like(same_QN).scatter_(1, positive_Q[:, None], True)
            batch |= {"related_QG": same_QN, "own_QN": own_QN}
        return batch

    def _texts(self, draw: Draw) -> tuple[list[list[int]], list[list[int]], list[str]]:
        """Tokens of queries and positives, and where each pair comes from."""
        size = len(draw.row_B)
        queries, positives, ids = [[0]] * size, [[0]] * size, [""] * size
        for number in np.unique(draw.stratum_B).tolist():
            place_c, stream = np.flatnonzero(draw.stratum_B == number), self._stream(number)
            row_c, cache = stream.locate(draw.row_B[place_c]), stream.cache
            rows = (cache.tokens(row_c, cache.fields[QUERY]), cache.tokens(row_c, cache.fields[POSITIVE]))
            source = self.mixture.strata[number].source
            for place, query, positive, (file, row) in zip(place_c.tolist(), *rows, cache.sources(row_c), strict=True):
                queries[place], positives[place] = query, positive
                ids[place] = f"{source}, file {file + 1}, row {row + 1}"
        return queries, positives, ids

    def _keys(self, draw: Draw) -> Hashes:
        """uint64_BK: the hashes of each pair's query and positive."""
        key_BK = np.zeros((len(draw.row_B), 2), dtype=np.uint64)
        for number in np.unique(draw.stratum_B).tolist():
            own = draw.stratum_B == number
            key_BK[own] = self._stream(number).keys(draw.row_B[own])[:, :2]
        return key_BK

    def _stream(self, number: int) -> TokenStream:
        stream = self.mixture.strata[number].stream
        assert isinstance(stream, TokenStream) and len(stream.cache.fields) == 2, "a mixture of caches of pairs"
        return stream


def share_a_key(key_BK: Hashes) -> NDArray[np.bool_]:
    """bool_BB: which rows have a key of a column in common; each with itself."""
    same_BBK = (key_BK[:, None] == key_BK[None]) & (key_BK != NOTHING)[:, None]
    return same_BBK.any(axis=2) | np.eye(len(key_BK), dtype=np.bool_)
