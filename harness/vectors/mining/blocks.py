"""Mining: queries in blocks, results in parts, several processes without a word between them until the end.

In memory are, beside texts, ids and the index, one block of queries with its hits and one part of results; nothing
grows with queries x documents, nor with queries x dimensions.

Axes: Q queries, N documents, D dimensions, B queries of a block, K hits, P positives of all queries of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.records import Documents, Record
from harness.data.relevance import Relevance
from harness.recipe import MineSettings
from harness.runtime.distributed import rank, wait_for_all, world_size
from harness.runtime.errors import StoppedError
from harness.runtime.process import (
    atomic_file,
    file_sha256,
    fingerprint,
    logger,
    progress,
    remove_leftovers,
    replace_folder,
    write_json,
)
from harness.vectors.index import VectorIndex
from harness.vectors.mining.audit import EXAMPLES, SHOWN, Counts, audit_markdown, audit_of, bin_width, worst_first
from harness.vectors.mining.filters import FILTERS, NO_HIT, PASSES, fallen, picked
from harness.vectors.mining.model_scores import PairScores, read_pair_scores
from harness.vectors.mining.parts import Part, finished_part, read_manifest, table_of, write_manifest, write_part

SEARCHED = 4096  # queries searched at once, where their hits are few
HITS = 2**19  # hits of a block
TABLE = 2**24  # cells of the table by which ``Relevance`` finds what is forbidden
VECTOR_BYTES = 2**25  # of positives' vectors at once
PART = 16_384  # queries of a part at most; where there are fewer than 16 such parts, smaller ones
Lookup = Callable[[np.ndarray], np.ndarray]


@dataclass
class Ground:
    """What is mined.

    Args:
        documents: N documents, the rows of ``index``.
        records: Q queries.
        within_language: a query sees the documents of its language only; the index has them as partitions.
        query_vectors, document_vectors: numbers of queries, or rows of documents, int64 [B] -> float32 [B, D].
        made_from: what these are, as plain data (content hashes), so that another run's parts are never taken over.
    """

    documents: Documents
    records: Sequence[Record]
    index: VectorIndex
    query_vectors: Lookup
    document_vectors: Lookup
    within_language: bool
    made_from: Mapping[str, Any]

    @cached_property
    def relevance(self) -> Relevance:
        """Who may not be whose negative."""
        return Relevance(self.documents, self.records, within_language=self.within_language)


def mine(
    folder: Path | str, ground: Ground, settings: MineSettings, *, stop: Callable[[], bool] = lambda: False
) -> None:
    """Find, filter and write the negatives of all queries, with an audit (see ``parts`` and ``audit``).

    Several processes call this with the same arguments: each writes every W-th part, the main one the rest. Parts
    grow in ``FOLDER.partial``, which takes the final name when all is there; one that an earlier, interrupted run
    left is used again if it was made from the same. ``stop`` is asked before every block.

    Raises:
        InputError: the file of model scores is not one.
        StoppedError: when ``stop`` says so; finished parts stay.
    """
    folder = Path(folder)
    partial = folder.with_name(folder.name + ".partial")
    work = _Mining(partial, ground, settings, stop)
    if _is_whole(folder, work.made):
        return
    partial.mkdir(parents=True, exist_ok=True)
    if rank() == 0:
        remove_leftovers(partial, ".*.tmp")
    wait_for_all()
    work.write_own()
    wait_for_all()
    if rank() == 0:
        parts = work.all_parts()
        _seal(partial, work, parts)
        replace_folder(partial, folder)
    wait_for_all()


def _is_whole(folder: Path, made: str) -> bool:
    """Whether exactly this was mined before: killed between the last rename and the run's manifest."""
    if not (folder / "manifest.json").is_file():
        return False
    told, parts = read_manifest(folder)
    return told == made and all(
        part.path(folder).is_file() and file_sha256(part.path(folder)) == part.sha256 for part in parts
    )


def _seal(partial: Path, work: _Mining, parts: Sequence[Part]) -> None:
    """Remove what is not ours, add up the audit, write the manifest."""
    ours = {part.path(partial, suffix).name for part in parts for suffix in ("parquet", "json")}
    for path in partial.iterdir():
        if path.name not in ours:
            path.unlink()
    counts = Counts(work.width)
    for part in parts:
        counts.merge(Counts.from_json(part.counts))
    audit = audit_of(counts, work.settings.model_dump(mode="json"), work.ground.records, work.ground.documents)
    write_json(partial / "audit.json", audit)
    with atomic_file(partial / "audit.md", "w") as stream:
        stream.write(audit_markdown(audit))
    write_manifest(partial, work.made, parts)


@dataclass
class _Block:
    """Hits of some queries. ``fallen_BK`` is what ``filters.fallen`` tells; positives are of all queries in a row."""

    query_B: np.ndarray
    row_BK: np.ndarray
    score_BK: np.ndarray
    fallen_BK: np.ndarray
    kept_BK: np.ndarray
    slot_P: np.ndarray
    row_P: np.ndarray
    score_P: np.ndarray


@dataclass
class _Mining:
    """One call of ``mine`` in one process."""

    folder: Path
    ground: Ground
    settings: MineSettings
    stop: Callable[[], bool]
    pairs: PairScores | None = field(default=None, init=False)

    @cached_property
    def made(self) -> str:
        """The fingerprint of everything that the negatives depend on."""
        model = self.settings.model_scores
        return fingerprint({
            "from": dict(self.ground.made_from), "index": self.ground.index.kind, "settings": self.settings.keyed(),
            "model_scores": file_sha256(model.path) if model else None,
        })  # fmt: skip

    @cached_property
    def bounds(self) -> list[slice]:
        """The queries of each part: by their number alone, so that any number of processes finds the same parts."""
        queries = len(self.ground.records)
        rows = self.settings.part_queries or min(PART, max(1024, -(-queries // 16)))
        return [slice(start, min(start + rows, queries)) for start in range(0, queries, rows)]

    @cached_property
    def width(self) -> float:
        """The width of a histogram's bin, which all processes find alike from the first queries' positives."""
        query_B = np.arange(min(256, len(self.ground.records)))
        return bin_width(self.positives(query_B, self.ground.query_vectors(query_B))[2])

    @cached_property
    def shown(self) -> set[int]:
        """The queries that are shown as samples."""
        return set(np.linspace(0, len(self.ground.records) - 1, EXAMPLES).astype(int).tolist())

    def content(self, number: int) -> str:
        """The fingerprint of a part's queries."""
        return fingerprint([record.id for record in self.ground.records[self.bounds[number]]])

    def all_parts(self) -> list[Part]:
        """Every part, when all are there."""
        found = [finished_part(self.folder, number, self.made, self.content(number))
                 for number in range(len(self.bounds))]  # fmt: skip
        assert None not in found, "a process left its part unfinished"
        return [part for part in found if part]

    def write_own(self) -> None:
        """Write this process's parts that are not there yet."""
        own = range(rank(), len(self.bounds), world_size())
        todo = [at for at in own if not finished_part(self.folder, at, self.made, self.content(at))]
        if len(todo) < len(own):
            logger.info("  mine: goes on, %d of %d parts are there", len(own) - len(todo), len(own))
        if self.settings.model_scores and todo:
            self.pairs = self._read_pairs(todo)
        queries = [self.bounds[at].stop - self.bounds[at].start for at in todo]
        with progress(what="mine", total=sum(queries), unit="query") as bar:
            for at in todo:
                self._write(at, bar)

    def _read_pairs(self, todo: Sequence[int]) -> PairScores:
        """The model's scores for this process's queries."""
        model, ground = self.settings.model_scores, self.ground
        assert model is not None
        wanted = {ground.records[q].id: q for at in todo for q in range(self.bounds[at].start, self.bounds[at].stop)}
        pairs = read_pair_scores(model.path, wanted, ground.documents.row)
        if not len(pairs):
            logger.warning("%s: no pair is of a training query and a document", model.path)
        return pairs

    def _write(self, number: int, bar: Any) -> None:
        ground, bounds = self.ground, self.bounds[number]
        counts, blocks = Counts(self.width), []
        size = max(1, min(SEARCHED, HITS // min(self.settings.top_k, len(ground.documents))))
        for start in range(bounds.start, bounds.stop, size):
            if self.stop():
                raise StoppedError("stopped; the same command goes on from the last finished part")
            block = self._block(np.arange(start, min(start + size, bounds.stop)))
            self._count(block, counts)
            blocks.append((
                block.kept_BK.sum(axis=1), block.row_BK[block.kept_BK], block.score_BK[block.kept_BK],
                np.bincount(block.slot_P, minlength=len(block.query_B)), block.score_P,
            ))  # fmt: skip
            bar.update(len(block.query_B))
        count_B, row_P, score_P, positives_B, positive_P = map(np.concatenate, zip(*blocks, strict=True))
        names = [ground.documents.ids[row] for row in row_P.tolist()]
        query_ids = [record.id for record in ground.records[bounds]]
        table = table_of(query_ids, {"document_ids": (count_B, names), "scores": (count_B, score_P)},
                         (positives_B, positive_P))  # fmt: skip
        part = Part(number, self.made, self.content(number), len(query_ids), int(count_B.max()), "", counts.to_json())
        write_part(self.folder, part, table)

    def positives(self, query_B: np.ndarray, query_BD: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The positives of some queries: (position in ``query_B``, row, score), each [P]."""
        ground = self.ground
        lists = [list(ground.records[q].positives) for q in query_B.tolist()]
        slot_P = np.repeat(np.arange(len(lists)), [len(names) for names in lists])
        row_P = np.array([ground.documents.row[name] for names in lists for name in names], dtype=np.int64)
        score_P = np.empty(len(row_P), dtype=np.float32)
        step = max(1, VECTOR_BYTES // (4 * query_BD.shape[1]))
        for start in range(0, len(row_P), step):
            some = slice(start, start + step)
            score_P[some] = np.einsum("pd,pd->p", ground.document_vectors(row_P[some]), query_BD[slot_P[some]])
        return slot_P, row_P, score_P

    def _block(self, query_B: np.ndarray) -> _Block:
        """Search for some queries and filter what is found."""
        ground, settings = self.ground, self.settings
        languages = [ground.records[q].language for q in query_B.tolist()] if ground.within_language else None
        k = min(settings.top_k, len(ground.documents))
        query_BD = ground.query_vectors(query_B)
        score_BK, row_BK = ground.index.search(query_BD, k, languages)
        slot_P, row_P, score_P = self.positives(query_B, query_BD)
        documents = len(ground.documents)
        own_BK = np.isin(np.arange(len(query_B))[:, None] * documents + row_BK, slot_P * documents + row_P)
        limit_B = np.full(len(query_B), np.inf if settings.positive == "lowest" else -np.inf, dtype=np.float32)
        (np.minimum if settings.positive == "lowest" else np.maximum).at(limit_B, slot_P, score_P)
        limit_B[np.isneginf(limit_B)] = np.inf  # no positive, no margin
        fallen_BK = fallen(
            score_BK, own_BK & (row_BK >= 0), self._forbidden(query_B, row_BK), limit_B,
            self.pairs.of(query_B, row_BK) if self.pairs is not None else None, settings,
        )  # fmt: skip
        kept_BK = picked(fallen_BK == PASSES, row_BK, query_B, settings)
        return _Block(query_B, row_BK, score_BK, fallen_BK, kept_BK, slot_P, row_P, score_P)

    def _forbidden(self, query_B: np.ndarray, row_BK: np.ndarray) -> np.ndarray:
        """``Relevance.forbidden`` in pieces: the memory of one grows with its square."""
        size = max(1, min(256, int((TABLE / row_BK.shape[1]) ** 0.5)))
        starts = range(0, len(query_B), size)
        relevance = self.ground.relevance
        return np.concatenate([relevance.forbidden(query_B[s : s + size], row_BK[s : s + size]) for s in starts])

    def _count(self, block: _Block, counts: Counts) -> None:
        """Add a block to the counts."""
        codes, numbers = np.unique(block.fallen_BK[block.fallen_BK != NO_HIT], return_counts=True)
        kept_B = block.kept_BK.sum(axis=1)
        for code, number in zip(codes.tolist(), numbers.tolist(), strict=True):
            if code == PASSES:
                counts.fallen["kept"] += int(kept_B.sum())
                counts.fallen["not_picked"] += number - int(kept_B.sum())
            else:
                counts.fallen[FILTERS[code]] += number
        best_B = np.full(len(block.query_B), -np.inf, dtype=np.float32)
        np.maximum.at(best_B, block.slot_P, block.score_P)
        above_BK = block.kept_BK & (block.score_BK > best_B[:, None]) & np.isfinite(best_B)[:, None]
        language_B = np.array([self.ground.records[q].language for q in block.query_B.tolist()], dtype=object)
        for name in set(language_B):
            here_B = language_B == name
            tally = counts.language(name)
            tally.queries += int(here_B.sum())
            tally.without += int((kept_B[here_B] == 0).sum())
            tally.above += int(above_BK[here_B].sum())
            tally.positives.add(block.score_P[here_B[block.slot_P]])
            tally.negatives.add(block.score_BK[block.kept_BK & here_B[:, None]])
        counts.without = [*counts.without, *block.query_B[kept_B == 0].tolist()][:EXAMPLES]
        read = [at for at, query in enumerate(block.query_B.tolist()) if query in self.shown]
        counts.samples += [self._entry(block, at) for at in read]
        excess_B = np.where(above_BK.any(axis=1), block.score_BK.max(axis=1, where=block.kept_BK, initial=-np.inf)
                            - best_B, -np.inf)  # fmt: skip
        farthest = np.argsort(-excess_B, kind="stable")[:EXAMPLES]
        far = [self._entry(block, int(at)) for at in farthest if np.isfinite(excess_B[at])]
        counts.worst = worst_first([*counts.worst, *far])

    def _entry(self, block: _Block, at: int) -> dict[str, Any]:
        """A query to read: its number, and its best positives and negatives as [row, score]."""
        mine_P, kept_K = block.slot_P == at, block.kept_BK[at]
        order_P = np.argsort(-block.score_P[mine_P], kind="stable")[:SHOWN]
        return {
            "query": int(block.query_B[at]),
            "positives": _pairs(block.row_P[mine_P][order_P], block.score_P[mine_P][order_P]),
            "negatives": _pairs(block.row_BK[at, kept_K][:SHOWN], block.score_BK[at, kept_K][:SHOWN]),
        }


def _pairs(row_P: np.ndarray, score_P: np.ndarray) -> list[list[Any]]:
    return [[row, round(score, 6)] for row, score in zip(row_P.tolist(), score_P.tolist(), strict=True)]
