"""What becomes of streams in a run: tokens, the teacher's vectors in step with them, and the alignment's mixture."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from harness.data.collator import Collator
from harness.data.mixture import Mixture, MixtureSource
from harness.data.shards import Shard, open_shards
from harness.data.streams import stream_files
from harness.data.token_cache import CacheSettings, Context, TokenCache, Tokenise, tokenizer_fingerprint
from harness.data.token_writer import SLICE, build_token_cache, read_texts
from harness.encoders import unpadded
from harness.encoders.encoder import Encoder
from harness.encoders.folder import Reader, load_reader
from harness.pipeline.context import Run
from harness.pipeline.work_vectors import encode_with, made_with, query_texts
from harness.recipe import EncoderSettings, Recipe
from harness.runtime.distributed import on_main
from harness.runtime.process import fingerprint, logger
from harness.training.batches import Online
from harness.training.stages import OnlineTeacher
from harness.training.stream_batches import LoggedRows, RowsInMemory
from harness.vectors.stream_store import Recorded, StreamVectors, Texts, write_stream_vectors

IN_MEMORY = "align.texts"  # the mixture's name of texts that are no stream: no stream can have it
ALIGN, ONLINE = "align", "online"  # whose tokens: what the student reads, what the teacher reads beside it

# ------------------------------------------------------------------------------------------------------------ tokens


def tokenise(encoder: Encoder | Reader, prompt: str, context: Context | None = None) -> Tokenise:
    """How an encoder's texts become tokens, with this prompt."""
    collator = Collator(encoder.tokenizer, prompt=prompt, max_length=encoder.max_length)
    told = tokenizer_fingerprint(encoder.tokenizer, prompt=prompt, max_length=encoder.max_length)
    return Tokenise(collator.tokens, told, len(encoder.tokenizer), context)


def build_cache(run: Run, stage: str, name: str, texts: Mapping[str, Tokenise]) -> TokenCache:
    """A stream's tokens, column by column, for one stage: in ``streams/STAGE/NAME``, built as far as that is to do.

    Raises:
        InputError: files can't be read; rows can't be used, unless ``skip_bad``; nothing is left.
    """
    stream = run.recipe.data.streams[name]
    settings = CacheSettings(
        texts, language=stream.language, default_language=stream.default_language, deduplicate=stream.deduplicate,
        skip_bad=stream.skip_bad, apart=(stream.context,) if stream.context else (),
    )  # fmt: skip
    cache = build_token_cache(
        run.folder.streams / stage / name, stream_files(name, stream), settings,
        remedy=f"correct the file, or set data.streams.{name}.skip_bad: true",
    )  # fmt: skip
    left_out = {kind: sum(shard.left_out.get(kind, 0) for shard in cache.shards) for kind in ("bad", "duplicates")}
    logger.info("  %s: %s rows (%s); left out: %s unusable, %s duplicates", name, f"{len(cache):,}",
                ", ".join(f"{language} {rows:,}" for language, rows in cache.languages.items()),
                *(f"{count:,}" for count in left_out.values()))  # fmt: skip
    return cache


def context_of(recipe: Recipe, name: str) -> Context | None:
    """How the teacher reads a stream's queries."""
    column = recipe.data.streams[name].context
    return Context(column, recipe.teacher.context) if column and recipe.teacher.context else None


def _teacher_prompt(run: Run, name: str, teacher: Encoder | Reader) -> str:
    own = run.recipe.data.streams[name].prompts.query
    return teacher.prompts["query"] if own is None else own


def _student_cache(run: Run, name: str, student: Encoder | Reader) -> TokenCache:
    column = run.recipe.data.streams[name].query
    return build_cache(run, ALIGN, name, {column: tokenise(student, student.prompts["query"])})


def _teacher_cache(run: Run, name: str, teacher: Encoder | Reader) -> TokenCache:
    """The teacher's tokens of the rows that the student's cache holds, under the same row numbers."""
    column, prompt = run.recipe.data.streams[name].query, _teacher_prompt(run, name, teacher)
    return build_cache(run, ONLINE, name, {column: tokenise(teacher, prompt, context_of(run.recipe, name))})


# ----------------------------------------------------------------------------------------------------------- vectors


def do_embed_streams(run: Run) -> list[Path]:
    """Tokens of the streams that the alignment reads, and the teacher's vectors of their queries or its own tokens."""
    align = run.recipe.align
    assert align is not None, "planned only with the section"
    student = load_reader(EncoderSettings(model=str(run.folder.student("cut"))))
    caches = {name: _student_cache(run, name, student) for name in align.streams}
    written = [cache.folder for cache in caches.values()]
    if align.targets == "online":
        reader = load_reader(EncoderSettings(model=str(run.folder.teacher)))
        return [*written, *(_teacher_cache(run, name, reader).folder for name in caches)]
    teacher = run.open(run.folder.teacher)
    return [*written, *(_write_vectors(run, name, cache, teacher).folder for name, cache in caches.items())]


def _write_vectors(run: Run, name: str, cache: TokenCache, teacher: Encoder) -> StreamVectors:
    """Encode a stream's queries into ``vectors/streams/NAME``."""
    column, context = run.recipe.data.streams[name].query, context_of(run.recipe, name)
    paths, index = [Path(shard.source) for shard in cache.shards], run.folder.streams / f"{name}.blocks.json"
    on_main(lambda: len(open_shards(paths, index)))  # looked through once, for all
    shards = open_shards(paths, index)
    prompt = _teacher_prompt(run, name, teacher)
    encode = encode_with(teacher, "query", run, f"embed {name}")
    key = fingerprint([made_with(encode), prompt, column, context and [context.column, context.template]])
    recorded = Recorded(run.space(run.folder.teacher), run.recipe.embed.stream_dtype, key)
    with _prompted(teacher, prompt):
        return write_stream_vectors(
            run.folder.stream_vectors(name), recorded, [(shard.kept, shard.rows) for shard in cache.shards],
            stream_texts(cache, shards, column, context), encode,
        )  # fmt: skip


def stream_texts(cache: TokenCache, shards: Sequence[Shard], column: str, context: Context | None) -> Texts:
    """What the teacher reads of each shard, in the order of its rows in the cache."""
    columns = [column, *([context.column] if context else [])]

    def texts(number: int) -> Iterator[list[str]]:
        for block, chosen in shards[number].chosen(cache.source_rows(number), columns):
            for begin in range(0, len(chosen), SLICE):
                yield read_texts(block, chosen[begin : begin + SLICE], column, context)

    return texts


@contextlib.contextmanager
def _prompted(encoder: Encoder, prompt: str) -> Iterator[None]:
    """Let the encoder put another prompt before queries, for as long as the block lasts."""
    own = encoder.prompts
    encoder.prompts = {**own, "query": prompt}
    try:
        yield
    finally:
        encoder.prompts = own


# --------------------------------------------------------------------------------------------------- the alignment


def online_teacher(run: Run) -> OnlineTeacher | None:
    """The teacher beside the student, where the recipe wants it; texts in memory as it reads them."""
    recipe, align = run.recipe, run.recipe.align
    assert align is not None
    if align.targets == "stored":
        return None
    training = align.training
    teacher = run.open(run.folder.teacher, attention=run.attention(training), bf16=run.precision(training))
    unpadded.choose(
        teacher, "auto" if training.unpadded else False, bf16=run.precision(training), where="align.targets: online",
        attention=training.attention,
    )  # fmt: skip
    texts = query_texts(run.dataset, align.texts, context=recipe.teacher.context)[1]
    return OnlineTeacher.of(teacher, texts, recipe.embed.batch_tokens)


def alignment_mixture(run: Run, student: Encoder, online: OnlineTeacher | None) -> Mixture:
    """Streams and texts in memory as one sequence of batches.

    Raises:
        StaleArtefactError: vectors of another space, or of other rows than the tokens are of.
    """
    recipe, align = run.recipe, run.recipe.align
    assert align is not None
    sources = []
    for number, name in enumerate(align.streams):
        cache = _student_cache(run, name, student)
        asked = _teacher_cache(run, name, online.encoder) if online else None
        assert asked is None or [part.kept for part in asked.shards] == [part.kept for part in cache.shards]
        stored = None if online else StreamVectors.open(
            run.folder.stream_vectors(name), space=run.space(run.folder.teacher),
            contents=[shard.kept for shard in cache.shards],
        )  # fmt: skip
        streams = {language: LoggedRows(name, stream, stored, asked)
                   for language, stream in cache.streams(seed=[recipe.seed, 3, number]).items()}  # fmt: skip
        sources.append(MixtureSource(name, streams, recipe.data.streams[name].weight))
    if align.texts:
        sources.append(MixtureSource(IN_MEMORY, _in_memory(run, student, online.reading if online else None)))
    return Mixture(
        sources, batch_size=align.training.batch_size, seed=recipe.seed, disjoint=False,
        temperature=recipe.data.language_temperature, one_source_per_batch=recipe.data.one_stream_per_batch,
    )  # fmt: skip


def _in_memory(run: Run, student: Encoder, online: Online | None) -> dict[str, RowsInMemory]:
    """The texts of ``align.texts``, by language."""
    recipe, align = run.recipe, run.recipe.align
    assert align is not None
    ids, texts, languages = query_texts(run.dataset, align.texts)
    store = None if online else run.store("queries")
    store_rows = store.rows_of(ids) if store else None
    language_N = np.array(languages)
    return {
        language: RowsInMemory(
            texts, ids, np.flatnonzero(language_N == language), student.collator("query"),
            seed=[recipe.seed, 4, number], store=store, store_rows=store_rows, online=online,
        )
        for number, language in enumerate(sorted(set(languages)))
    }  # fmt: skip
