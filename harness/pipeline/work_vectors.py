"""What the steps ``data``, ``embed`` and ``mine`` do."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from harness.data.dropped import dropped_of_set, dropped_texts, lost_warnings
from harness.data.grouping import joined_warnings
from harness.data.overlap import EVALUATION_SPLITS, overlap_warnings
from harness.data.prepare import load_dataset, prepare_data
from harness.data.records import Dataset, in_context
from harness.encoders import unpadded
from harness.encoders.bulk import BulkEncoder
from harness.encoders.chain import weights_sha256
from harness.encoders.encoder import Encoder, Side
from harness.encoders.sources import resolve_model
from harness.pipeline.checks import check_data
from harness.pipeline.context import Run
from harness.pipeline.plan import embedded_kinds
from harness.pipeline.streams import FIRST_LOOK, preview_streams
from harness.recipe import MineSettings, Recipe, VectorFiles
from harness.runtime.errors import StoppedError
from harness.runtime.process import file_sha256, logger, progress
from harness.vectors.files import GivenVectors, Read, check_sample, import_vectors, read_vectors
from harness.vectors.mining import Ground, load_mined, mine
from harness.vectors.space import Space
from harness.vectors.store import VectorStore
from harness.vectors.windows import Encode
from harness.vectors.writer import write_store

QUERY = "query:"  # prefixes of the ids in vectors/queries
DOCUMENT = "document:"
TEXT = "text:"
KINDS = {"queries": QUERY, "documents": DOCUMENT, "unlabelled": TEXT}
Texts = tuple[list[str], list[str], list[str]]  # ids, texts, languages


def do_data(run: Run) -> list[Path]:
    """Read, check, split and write the data; refuse languages that the models' tokenizers can't read."""

    def accept(folder: Path) -> None:
        run.dataset = load_dataset(folder)  # read once, also for the steps that follow
        check_data(run.recipe, run.dataset)

    preview_streams(run.recipe, most=FIRST_LOOK)  # all are read later: what is wrong should not show after days
    tell_data(prepare_data(run.recipe.data, run.folder.data, accept=accept))
    return [run.folder.data]


def tell_data(summary: Mapping[str, Any]) -> None:
    """Log what was dropped and which lines were bad, and what training and evaluation share: nothing in silence."""
    for text in dropped_texts(summary):
        logger.info("  data: dropped: %s", text)
    for file, kinds in summary["bad_lines"].items():
        for kind, told in kinds.items():
            logger.info("  data: %s: %d bad lines (%s), first %s", file, told["count"], kind, told["first"])
    sets = [name for name in summary["splits"] if name in EVALUATION_SPLITS]
    lost = lost_warnings({name: dropped_of_set(summary, name) for name in sets})
    for warning in [*joined_warnings(summary["splits"]), *overlap_warnings(summary["splits"]), *lost]:
        logger.warning("  data: %s", warning)


# ----------------------------------------------------------------------------------------------------- embedding


@dataclass(frozen=True, slots=True)
class EncodeSide:
    """The encoder's one side as a function of texts; before each window it may be asked to stop."""

    encoder: Encoder
    side: Side
    run: Run
    what: str

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        (window,) = self._until_stopped([texts])
        tokens = self.run.recipe.embed.batch_tokens
        return self.encoder.encode(window, side=self.side, batch_tokens=tokens, bf16=self.bf16, what=self.what)

    @property
    def bf16(self) -> bool:
        """Whether the encoder computes in bfloat16."""
        return self.run.recipe.embed.precision == "bf16"

    def windows(self, windows: Iterable[Sequence[str]]) -> Generator[np.ndarray]:
        """The vectors of each window, in order (``harness.vectors.windows.EncodesWindows``)."""
        embed = self.run.recipe.embed
        bulk = BulkEncoder(
            self.encoder, self.side, batch_tokens=embed.batch_tokens, bf16=self.bf16, workers=embed.workers
        )
        with progress(what=self.what, unit="text") as bar:
            yield from bulk.windows(self._until_stopped(windows), bar.update)

    def _until_stopped(self, windows: Iterable[Sequence[str]]) -> Generator[Sequence[str]]:
        for window in windows:
            if self.run.stop and self.run.stop():
                raise StoppedError("stopped; the same command goes on from the last finished shard")
            yield window


def encode_with(encoder: Encoder, side: Side, run: Run, what: str) -> EncodeSide:
    """The encoder's one side as a function of texts; the encoder is set to pad or not, as the recipe has it."""
    encode = EncodeSide(encoder, side, run, what)
    unpadded.choose(encoder, run.recipe.embed.unpadded, bf16=encode.bf16, where="embed.unpadded")
    return encode


def made_with(encode: EncodeSide) -> str:
    """What a store's vectors depend on besides texts and space."""
    return f"{encode.side}, {encode.encoder.max_length} tokens" + (", bf16" if encode.bf16 else "")


def _write(
    run: Run, encoder: Encoder, side: Side, rows: tuple[list[str], list[str]], space: Space, name: str
) -> VectorStore:
    """Encode (ids, texts) into ``vectors/NAME``."""
    embed, (ids, texts) = run.recipe.embed, rows
    encode = encode_with(encoder, side, run, f"embed {name}")
    return write_store(
        run.folder.vectors / name, ids, texts, encode, space,
        dtype=embed.dtype, shard_rows=embed.shard_rows, key=made_with(encode),
    )  # fmt: skip


def write_documents(run: Run, encoder: Encoder, space: Space, name: str) -> VectorStore:
    """Encode all documents into ``vectors/NAME``."""
    documents = run.dataset.documents
    return _write(run, encoder, "document", (documents.ids, documents.texts), space, name)


def _write_queries(run: Run, encoder: Encoder, space: Space, name: str, kinds: Sequence[str]) -> Path:
    ids, texts, _ = query_texts(run.dataset, kinds, context=run.recipe.teacher.context)
    _write(run, encoder, "query", (ids, texts), space, name)
    return run.folder.vectors / name


def query_texts(dataset: Dataset, kinds: Sequence[str], *, context: str | None = None) -> Texts:
    """The texts whose teacher query vectors are wanted, with ids ``query:ID``, ``document:ID``, ``text:N``.

    Args:
        context: how a query's context is put to its text (``in_context``): what the teacher reads, and nobody else.
    """
    ids: list[str] = []
    texts: list[str] = []
    languages: list[str] = []

    def add(name: str, text: str, language: str) -> None:
        ids.append(name)
        texts.append(text)
        languages.append(language)

    if "queries" in kinds:
        for record in dataset.splits["train"]:
            add(f"{QUERY}{record.id}", in_context(record.text, record.context, context), record.language)
    if "documents" in kinds:
        columns = dataset.documents
        for key, text, language in zip(columns.ids, columns.texts, columns.languages, strict=True):
            add(f"{DOCUMENT}{key}", text, language)
    if "unlabelled" in kinds:
        for number, (text, language) in enumerate(dataset.unlabelled):
            add(f"{TEXT}{number}", text, language)
    return ids, texts, languages


def base_teacher(run: Run) -> tuple[Encoder, Space]:
    """The teacher before its training, and its space."""
    encoder, settings = run.load(run.recipe.teacher), run.recipe.teacher
    return encoder, Space.of(encoder, weights_sha256(resolve_model(settings.model or "", settings.revision)))


def do_embed_base(run: Run) -> list[Path]:
    """Vectors of the teacher before its training."""
    encoder, space = base_teacher(run)
    write_documents(run, encoder, space, "base-documents")
    written = [run.folder.vectors / "base-documents"]
    if run.recipe.mine.base:
        written.append(_write_queries(run, encoder, space, "base-queries", ["queries"]))
    return written


def do_embed_more(run: Run) -> list[Path]:
    """Document vectors of the teacher that was trained on."""
    encoder = run.open(run.folder.teacher_more)
    write_documents(run, encoder, run.space(run.folder.teacher_more), "more-documents")
    return [run.folder.vectors / "more-documents"]


def do_embed(run: Run) -> list[Path]:
    """The frozen index, and the teacher's vectors of the queries it is to be imitated on."""
    recipe = run.recipe
    encoder = run.open(run.folder.teacher) if recipe.teacher.model else None
    space = run.space(run.folder.teacher)
    if recipe.documents.vectors:
        store = given_documents(run, recipe.documents.vectors, encoder, space)
    else:
        assert encoder is not None, "validated by the recipe"
        store = write_documents(run, encoder, space, "documents")
    if recipe.teacher.query_vectors:
        given_queries(run, recipe.teacher.query_vectors, space)
    elif kinds := embedded_kinds(recipe):
        assert encoder is not None, "validated by the recipe"
        _write_queries(run, encoder, space, "queries", kinds)
    if run.is_main:
        run.index_of(store).save(run.folder.index, space, store_sha256=store.sha256)
    queries = [run.folder.vectors / "queries"] if recipe.teacher.query_vectors or embedded_kinds(recipe) else []
    return [run.folder.vectors / "documents", *queries, run.folder.index]


def given_documents(run: Run, files: VectorFiles, encoder: Encoder | None, space: Space) -> VectorStore:
    """Given vectors as ``vectors/documents``; where the teacher's weights are here, a sample is encoded again."""
    documents, settings, read = run.dataset.documents, run.recipe.documents, read_vectors(files)
    if encoder is not None:
        texts = dict(zip(documents.ids, documents.texts, strict=True))
        check_sample(
            GivenVectors.of(files, space, documents.ids, read), texts,
            encode_with(encoder, "document", run, "check sample"),
            sample=settings.sample, min_cosine=settings.min_cosine, alternatives=_other_ways(run, encoder),
        )  # fmt: skip
    return _import(run, files, "documents", space, documents.ids, read=read)


def given_queries(run: Run, files: VectorFiles, space: Space) -> VectorStore:
    """Given vectors of the queries of all splits as ``vectors/queries``."""
    ids = [f"{QUERY}{record.id}" for records in run.dataset.splits.values() for record in records]
    return _import(run, files, "queries", space, ids, prefix=QUERY)


def _other_ways(run: Run, encoder: Encoder) -> dict[str, Callable[[Sequence[str]], np.ndarray]]:
    """Other set-ups of the encoder that the given vectors may come from, to be named when they don't match."""

    def without_prompt(texts: Sequence[str]) -> np.ndarray:
        prompts, encoder.prompts = encoder.prompts, {"query": "", "document": ""}
        try:
            return encoder.encode(texts, side="document")
        finally:
            encoder.prompts = prompts

    def pooled(pooling: Literal["mean", "cls", "lasttoken"]) -> Callable[[Sequence[str]], np.ndarray]:
        def encode(texts: Sequence[str]) -> np.ndarray:
            own, encoder.pooling = encoder.pooling, pooling
            try:
                return encoder.encode(texts, side="document")
            finally:
                encoder.pooling = own

        return encode

    ways: dict[str, Encode] = {"with the query prompt": encode_with(encoder, "query", run, "check sample")}
    if encoder.prompts["document"]:
        ways["without a prompt"] = without_prompt
    poolings: tuple[Literal["mean", "cls", "lasttoken"], ...] = ("mean", "cls", "lasttoken")
    return ways | {f"with {name} pooling": pooled(name) for name in poolings if name != encoder.pooling}


def _import(
    run: Run, files: VectorFiles, name: str, space: Space, ids: Sequence[str], *, prefix: str = "",
    read: Read | None = None,
) -> VectorStore:  # fmt: skip
    embed, folder = run.recipe.embed, run.folder.vectors / name
    return import_vectors(
        files, folder, space, ids, dtype=embed.dtype, shard_rows=embed.shard_rows, prefix=prefix, read=read
    )


def given_vectors_sha256(recipe: Recipe) -> str:
    """What stands for the teacher's weights when only its vectors are given."""
    assert recipe.documents.vectors is not None
    return file_sha256(recipe.documents.vectors.path)


# -------------------------------------------------------------------------------------------------------- mining


def do_mine_base(run: Run) -> list[Path]:
    """Negatives for the teacher's training, found by the teacher before it."""
    assert run.recipe.mine.base is not None
    return _mine(run, "base", run.recipe.mine.base, run.store("base-documents"), run.store("base-queries"))


def do_mine_refine(run: Run) -> list[Path]:
    """Negatives for the refinement, found by the teacher."""
    assert run.recipe.mine.refine is not None
    return _mine(run, "refine", run.recipe.mine.refine, run.store("documents"), run.store("queries"))


def _mine(run: Run, name: str, settings: MineSettings, documents: VectorStore, queries: VectorStore) -> list[Path]:
    data, records = run.dataset, run.dataset.splits["train"]
    query_Q = queries.rows_of([f"{QUERY}{record.id}" for record in records])
    row_N = documents.rows_of(data.documents.ids)
    ground = Ground(
        data.documents, records, run.frozen_index() if name == "refine" else run.index_of(documents),
        query_vectors=lambda query_B: queries.vectors(query_Q[query_B]),
        document_vectors=lambda row_B: documents.vectors(row_N[row_B]),
        within_language=data.search_within,
        made_from={"data": data.sha256, "documents": documents.sha256, "queries": queries.sha256},
    )  # fmt: skip
    mine(run.folder.mined / name, ground, settings, stop=run.stop or (lambda: False))
    return [run.folder.mined / name]


def negatives_of(run: Run, name: str | None) -> list[np.ndarray]:
    """Each training query's hard negatives as document rows: judged or given ones first, then mined ones."""
    documents, records = run.dataset.documents, run.dataset.splits["train"]
    given = [[documents.row[i] for i in record.negatives] for record in records]
    if name:
        row_QM, _ = load_mined(run.folder.mined / name, [record.id for record in records], documents.row)
        given = [[*own, *(row for row in mined if row >= 0)] for own, mined in zip(given, row_QM.tolist(), strict=True)]
    return [np.array(list(dict.fromkeys(rows)), dtype=np.int64) for rows in given]
