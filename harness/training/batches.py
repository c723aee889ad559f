"""What each stage's batches hold. Every batch is a pure function of (seed, step); processes share one global batch.

Axes: Q queries of this process, N documents of all processes, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.data.collator import Collator, TokenBatch
from harness.data.records import Documents, Record
from harness.data.relevance import Relevance
from harness.data.sampling import EpochSampler
from harness.recipe import LossSettings, RefineSettings, TrainingSettings
from harness.runtime.distributed import rank, world_size
from harness.runtime.errors import InputError, Problem
from harness.vectors.store import VectorStore

Batch = Mapping[str, Any]
_PLAIN = LossSettings()
PairCollate = Callable[[Sequence[str], Sequence[str]], TokenBatch]


def mine(rows_B: np.ndarray) -> np.ndarray:
    """This process's equal share of a global batch's rows."""
    share, rest = divmod(len(rows_B), world_size())
    assert rest == 0, "see require_equal_parts"
    return rows_B[rank() * share : (rank() + 1) * share]


def require_equal_parts(settings: TrainingSettings) -> None:
    """Stop when a global batch can't be shared out equally.

    Raises:
        InputError: naming batch size, ``accumulate`` and the number of processes.
    """
    parts = settings.accumulate * world_size()
    if settings.batch_size % parts:
        raise InputError(
            Problem(
                "the batch can't be shared out equally",
                where="training.batch_size",
                got=f"{settings.batch_size} for accumulate {settings.accumulate} x {world_size()} processes",
                allowed=f"a multiple of {parts}",
                next="change batch_size, accumulate, or launch.processes",
            )
        )


def _weights(weight_R: np.ndarray) -> Callable[[np.ndarray], Tensor | None]:
    """A lookup of loss weights, scaled to mean 1 over all rows; None where all are equal."""
    if np.all(weight_R == weight_R[0]):
        return lambda rows: None
    scaled_R = torch.tensor(weight_R / weight_R.mean(), dtype=torch.float32)
    return lambda rows: scaled_R[torch.from_numpy(rows)]


def token_part(batch: TokenBatch) -> dict[str, Any]:
    """What of a training batch are the padded texts that an encoder reads."""
    return {"chunks": batch.chunks, "restore": batch.restore}


@dataclass
class TrainingQueries:
    """The training split as arrays: which documents answer a query, which may not be its negatives."""

    records: Sequence[Record]
    documents: Documents
    relevance: Relevance

    def __post_init__(self) -> None:
        row = self.documents.row
        self.positives = [np.array([row[i] for i in record.positives], dtype=np.int64) for record in self.records]
        self.weight_R = np.array([record.weight for record in self.records])

    def pick_positives(self, rows: np.ndarray, count: int, random: np.random.Generator) -> list[np.ndarray]:
        """Up to ``count`` positive documents' rows of each query, at random without repetition."""
        if count == 1:
            return list(self.pick_positive(rows, random)[:, None])
        return choose(rows, self.positives, count, random)

    def grades(self, row: int, documents: np.ndarray) -> list[float]:
        """The grades of a query's documents; of those that are no positives, 0."""
        known = self.records[row].positives
        return [known.get(self.documents.ids[document], 0.0) for document in documents]

    def pick_positive(self, rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """One positive document's row for each query, at random."""
        return np.array([self.positives[r][int(random.integers(len(self.positives[r])))] for r in rows], dtype=np.int64)


def choose(
    rows: np.ndarray, lists: Sequence[np.ndarray], count: int, random: np.random.Generator
) -> list[np.ndarray]:
    """Up to ``count`` of each query's list, at random without repetition."""
    return [random.permutation(lists[row])[:count].astype(np.int64) for row in rows]


def pick_negatives(
    rows: np.ndarray, negatives: Sequence[np.ndarray], count: int, random: np.random.Generator
) -> np.ndarray:
    """Up to ``count`` of each query's negatives, at random without repetition, as one flat array of document rows."""
    if not count:
        return np.empty(0, dtype=np.int64)
    chosen = choose(rows, negatives, count, random)
    return np.concatenate(chosen) if chosen else np.empty(0, dtype=np.int64)


class TeacherBatches:
    """Queries, their positives, hard negatives; a document that several queries name is encoded once."""

    def __init__(
        self,
        queries: TrainingQueries,
        collate: PairCollate,
        settings: TrainingSettings,
        *,
        seed: int,
        language_temperature: float,
        hard_negatives: int = 0,
        negatives: Sequence[np.ndarray] | None = None,
        loss: LossSettings = _PLAIN,
    ) -> None:
        require_equal_parts(settings)
        self.queries, self.collate, self.settings, self.seed, self.loss = queries, collate, settings, seed, loss
        self.hard_negatives, self.negatives = (hard_negatives, negatives) if negatives is not None else (0, [])
        languages = [record.language for record in queries.records]
        self.sampler = EpochSampler(languages, temperature=language_temperature, seed=seed)
        self.weights = _weights(queries.weight_R)

    def __call__(self, step: int) -> list[Batch]:
        rows_B = self.sampler.rows(step, self.settings.batch_size)
        random = np.random.default_rng([self.seed, step])
        return [self._micro_batch(rows, random) for rows in np.split(rows_B, self.settings.accumulate)]

    def _micro_batch(self, rows: np.ndarray, random: np.random.Generator) -> Batch:
        own = self.queries.pick_positives(rows, self.loss.positives, random)
        positive_B = np.array([documents[0] for documents in own], dtype=np.int64)
        if self.hard_negatives:
            negatives = choose(rows, self.negatives, self.hard_negatives, random)
            own = [np.concatenate(both) for both in zip(own, negatives, strict=True)]
        document_N = np.unique(np.concatenate(own))
        # Every process encodes the same number of documents: the last is repeated, and hidden from all.
        padding = -len(document_N) % world_size()
        column = {int(document): index for index, document in enumerate(document_N)}
        document_N = np.concatenate([document_N, np.repeat(document_N[-1:], padding)])
        local = mine(rows)
        forbidden_QN = self.queries.relevance.forbidden(local, document_N)
        if padding:
            forbidden_QN[:, -padding:] = True
        records = [self.queries.records[row] for row in local]
        texts = self.queries.documents.texts
        tokens = self.collate([record.text for record in records], [texts[row] for row in mine(document_N)])
        return {
            **token_part(tokens),
            "queries": len(records),
            "positive_Q": torch.tensor([column[int(row)] for row in mine(positive_B)]),
            "forbidden_QN": torch.from_numpy(forbidden_QN),
            "weight_Q": self.weights(local),
            **self._more_labels(rows, own, column, forbidden_QN.shape[1]),
            "ids": [record.id for record in records],
        }

    def _more_labels(
        self, rows: np.ndarray, own: Sequence[np.ndarray], column: Mapping[int, int], documents: int
    ) -> dict[str, Tensor]:
        """What only some losses need: each query's own documents, their grades, and the queries related to it."""
        graded, found = self.loss.to_scores or self.loss.positives > 1, {}
        if self.loss.with_towers:
            found["related_QG"] = torch.from_numpy(self.queries.relevance.related(mine(rows), rows))
        if graded or self.loss.with_towers:
            own_QN = torch.zeros(len(mine(rows)), documents, dtype=torch.bool)
            grade_QN = torch.zeros(own_QN.shape)
            for number, place in enumerate(mine(np.arange(len(rows)))):
                columns = [column[int(document)] for document in own[place]]
                own_QN[number, columns] = True
                grade_QN[number, columns] = torch.tensor(self.queries.grades(int(rows[place]), own[place]))
            found |= {"own_QN": own_QN} | ({"grade_QN": grade_QN} if graded else {})
        return found


@dataclass(frozen=True)
class Online:
    """What the teacher reads where it encodes each batch: ``texts`` as it sees them, its own tokens."""

    texts: Sequence[str]
    collator: Collator

    def tokens(self, rows: np.ndarray) -> list[list[int]]:
        """Of the texts of these rows."""
        return self.collator.tokens([self.texts[row] for row in rows])


class AlignmentBatches:
    """Texts and the teacher's vectors of them, looked up in a store; or what the teacher reads, to be encoded."""

    def __init__(
        self,
        texts: Sequence[str],
        languages: Sequence[str],
        ids: Sequence[str],
        targets: VectorStore | Online,
        collate: Collator,
        settings: TrainingSettings,
        *,
        seed: int,
        language_temperature: float,
    ) -> None:
        require_equal_parts(settings)
        self.texts, self.ids, self.targets, self.collate = texts, ids, targets, collate
        self.store_rows = np.arange(0) if isinstance(targets, Online) else targets.rows_of(ids)
        self.settings = settings
        self.sampler = EpochSampler(languages, temperature=language_temperature, seed=seed)

    def __call__(self, step: int) -> list[Batch]:
        rows_B = self.sampler.rows(step, self.settings.batch_size)
        return [self._micro_batch(mine(rows)) for rows in np.split(rows_B, self.settings.accumulate)]

    def _micro_batch(self, rows: np.ndarray) -> Batch:
        batch: dict[str, Any] = {
            **token_part(self.collate([self.texts[row] for row in rows])),
            "weight_Q": None,
            "ids": [self.ids[row] for row in rows],
        }
        if isinstance(self.targets, Online):
            return batch | {"teacher": token_part(self.targets.collator.pad(self.targets.tokens(rows)))}
        return batch | {"teacher_QD": torch.from_numpy(self.targets.vectors(self.store_rows[rows]))}


class RefinementBatches:
    """Queries, candidate documents' frozen vectors, and the teacher's query vectors for the anchor."""

    def __init__(
        self,
        queries: TrainingQueries,
        documents: VectorStore,
        teacher: VectorStore | None,
        collate: Collator,
        settings: RefineSettings,
        *,
        seed: int,
        language_temperature: float,
        mined: Sequence[np.ndarray] | None = None,
    ) -> None:
        require_equal_parts(settings.training)
        self.queries, self.documents, self.teacher, self.collate = queries, documents, teacher, collate
        self.settings, self.seed, self.mined = settings, seed, mined
        languages = [record.language for record in queries.records]
        self.sampler = EpochSampler(languages, temperature=language_temperature, seed=seed)
        self.weights = _weights(queries.weight_R)
        # documents.ids may hold another order than the data set's: columns follow the data set.
        self.store_row_N = np.array([documents.row[i] for i in queries.documents.ids], dtype=np.int64)
        small = len(self.store_row_N) <= settings.all_limit
        self.all = settings.candidates == "all" or (settings.candidates == "auto" and small)
        self.all_ND = torch.from_numpy(documents.vectors(self.store_row_N)) if self.all else None
        if teacher is not None:
            self.teacher_row = [teacher.row[f"query:{record.id}"] for record in queries.records]

    def __call__(self, step: int) -> list[Batch]:
        training = self.settings.training
        rows_B = self.sampler.rows(step, training.batch_size)
        random = np.random.default_rng([self.seed, step])
        return [self._micro_batch(rows, random) for rows in np.split(rows_B, training.accumulate)]

    def _candidates(
        self, rows: np.ndarray, positive_B: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray | None, Tensor]:
        if self.all_ND is not None:
            return None, self.all_ND
        mined = pick_negatives(rows, self.mined or [], self.settings.mined if self.mined else 0, random)
        sampled = random.integers(len(self.store_row_N), size=self.settings.sampled)
        document_N = np.unique(np.concatenate([positive_B, mined, sampled]))
        return document_N, torch.from_numpy(self.documents.vectors(self.store_row_N[document_N]))

    def _micro_batch(self, rows: np.ndarray, random: np.random.Generator) -> Batch:
        positive_B = self.queries.pick_positive(rows, random)
        document_N, document_ND = self._candidates(rows, positive_B, random)
        local, positive_Q = mine(rows), mine(positive_B)
        if document_N is not None:
            positive_Q = np.searchsorted(document_N, positive_Q)
        records = [self.queries.records[row] for row in local]
        batch = {
            **token_part(self.collate([record.text for record in records])),
            "document_ND": document_ND,
            "positive_Q": torch.from_numpy(positive_Q),
            "forbidden_QN": torch.from_numpy(self.queries.relevance.forbidden(local, document_N)),
            "weight_Q": self.weights(local),
            "ids": [record.id for record in records],
        }
        if self.teacher is not None:
            batch["teacher_QD"] = torch.from_numpy(self.teacher.vectors(np.array([self.teacher_row[r] for r in local])))
        return batch
