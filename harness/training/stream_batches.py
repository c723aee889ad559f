"""The alignment's batches where some of its texts are logs: tokens from caches, and the teacher's vectors in step.

Axes: B rows of a global batch, C rows of one stream, Q queries of this process, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from harness.data.collator import Collator
from harness.data.dedupe import Hashes
from harness.data.mixture import Draw, Mixture
from harness.data.order import BlockOrder
from harness.data.sampling import Ints
from harness.data.token_cache import TokenCache, TokenStream
from harness.recipe import TrainingSettings
from harness.runtime.distributed import rank, world_size
from harness.training.batches import Batch, Online, require_equal_parts, token_part
from harness.vectors.store import VectorStore
from harness.vectors.stream_store import StreamVectors

Tokens = list[list[int]]


class AlignmentRows(Protocol):
    """One language of a source that students are aligned on: a stream of a ``Mixture`` that knows its targets."""

    @property
    def order(self) -> BlockOrder: ...
    def keys(self, row_C: Ints) -> Hashes: ...

    def tokens(self, row_C: Ints) -> Tokens:
        """What the student reads."""
        ...

    def teacher_tokens(self, row_C: Ints) -> Tokens:
        """What the teacher reads, where it encodes each batch."""
        ...

    def vectors(self, row_C: Ints) -> np.ndarray:
        """float32_CD: the teacher's stored vectors, where it does not."""
        ...

    def names(self, row_C: Ints) -> list[str]:
        """Where each row comes from, for people."""
        ...


@dataclass(frozen=True)
class LoggedRows:
    """One language of a log.

    Args:
        stream: of the cache of the student's tokens.
        stored: the teacher's vectors, in step with that cache; None where the teacher encodes each batch.
        asked: then, the cache of the teacher's tokens, which holds the same rows.
    """

    name: str
    stream: TokenStream
    stored: StreamVectors | None = None
    asked: TokenCache | None = None

    @property
    def order(self) -> BlockOrder:
        return self.stream.order

    def keys(self, row_C: Ints) -> Hashes:
        return self.stream.keys(row_C)

    def tokens(self, row_C: Ints) -> Tokens:
        cache = self.stream.cache
        return cache.tokens(self.stream.locate(row_C), cache.fields[0])

    def teacher_tokens(self, row_C: Ints) -> Tokens:
        assert self.asked is not None
        return self.asked.tokens(self.stream.locate(row_C), self.asked.fields[0])

    def vectors(self, row_C: Ints) -> np.ndarray:
        assert self.stored is not None
        return self.stored.vectors(*self.stream.cache.places(self.stream.locate(row_C)))

    def names(self, row_C: Ints) -> list[str]:
        places = self.stream.cache.sources(self.stream.locate(row_C))
        return [f"{self.name}, file {file + 1}, row {row + 1}" for file, row in places]


@dataclass(frozen=True)
class RowsInMemory:
    """Texts in memory of one language, beside logs.

    Args:
        texts, ids: of all languages; ``row_N``: those of this one.
        collator: of the student.
        store, store_rows: the teacher's vectors, and which of them is whose; None where ``online`` encodes each batch.
    """

    texts: Sequence[str]
    ids: Sequence[str]
    row_N: Ints
    collator: Collator
    seed: Sequence[int]
    store: VectorStore | None = None
    store_rows: Ints | None = None
    online: Online | None = None
    order: BlockOrder = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", BlockOrder([len(self.row_N)], window=1, seed=self.seed))

    def keys(self, row_C: Ints) -> Hashes:
        return np.zeros((len(row_C), 1), dtype=np.uint64)

    def tokens(self, row_C: Ints) -> Tokens:
        return self.collator.tokens([self.texts[row] for row in self.row_N[row_C]])

    def teacher_tokens(self, row_C: Ints) -> Tokens:
        assert self.online is not None
        return self.online.tokens(self.row_N[row_C])

    def vectors(self, row_C: Ints) -> np.ndarray:
        assert self.store is not None and self.store_rows is not None
        return self.store.vectors(self.store_rows[self.row_N[row_C]])

    def names(self, row_C: Ints) -> list[str]:
        return [self.ids[row] for row in self.row_N[row_C]]


class MixedAlignmentBatches:
    """Rows of a mixture of logs and texts in memory, with their targets: a pure function of (seed, step).

    Args:
        mixture: its streams are ``AlignmentRows``. Rows of a batch may be relevant to each other: none is a negative.
        collator: pads what the student reads.
        online: pads what the teacher reads, where it encodes each batch; None where its vectors are stored.
    """

    def __init__(
        self, mixture: Mixture, collator: Collator, settings: TrainingSettings, *, online: Collator | None = None
    ) -> None:
        require_equal_parts(settings)
        assert mixture.batch_size == settings.batch_size
        self.mixture, self.collator, self.online, self.parts = mixture, collator, online, settings.accumulate

    def __call__(self, step: int) -> list[Batch]:
        draw = self.mixture.draw(step)
        return [self._micro_batch(draw.share(part, self.parts).share(rank(), world_size()))
                for part in range(self.parts)]  # fmt: skip

    def _micro_batch(self, draw: Draw) -> Batch:
        size = len(draw.row_B)
        own: Tokens = [[]] * size
        asked: Tokens = [[]] * size
        ids = [""] * size
        vector_CD: list[np.ndarray] = []
        places: list[Ints] = []
        for number in np.unique(draw.stratum_B).tolist():
            place_c, rows = np.flatnonzero(draw.stratum_B == number), self._rows(number)
            row_c = draw.row_B[place_c]
            _put(own, place_c, rows.tokens(row_c))
            _put(ids, place_c, rows.names(row_c))
            if self.online:
                _put(asked, place_c, rows.teacher_tokens(row_c))
            else:
                vector_CD.append(rows.vectors(row_c))
                places.append(place_c)
        batch: dict[str, Any] = {**token_part(self.collator.pad(own)), "weight_Q": None, "ids": ids}
        if self.online:
            return batch | {"teacher": token_part(self.online.pad(asked))}
        teacher_QD = np.concatenate(vector_CD)[np.argsort(np.concatenate(places))]
        return batch | {"teacher_QD": torch.from_numpy(teacher_QD)}

    def _rows(self, number: int) -> AlignmentRows:
        rows = self.mixture.strata[number].stream
        assert isinstance(rows, LoggedRows | RowsInMemory), "a mixture of rows with targets"
        return rows


def _put(values: list[Any], place_c: Ints, found: Sequence[Any]) -> None:
    for place, value in zip(place_c.tolist(), found, strict=True):
        values[place] = value
