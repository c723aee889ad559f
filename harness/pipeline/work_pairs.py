"""What the step ``teacher.streams`` does: logs of pairs as the tokens that the teacher trains on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from harness.data.mixture import Mixture, MixtureSource
from harness.data.overlap import EVALUATION_SPLITS
from harness.data.records import Dataset
from harness.data.token_cache import TokenCache
from harness.encoders.folder import Reader, load_reader
from harness.evaluation.leakage import places, seen_in_logs
from harness.pipeline.context import Run
from harness.pipeline.work_streams import build_cache, context_of, tokenise
from harness.recipe import Recipe
from harness.runtime.errors import InputError, Problem
from harness.runtime.process import logger, read_json, write_json

TEACHER = "teacher"  # whose tokens
ASKED = "asked.json"  # beside them: how many queries of each evaluation the logs ask, too


def do_teacher_streams(run: Run) -> list[Path]:
    """Tokenise the pairs of each stream, all processes together, and count what evaluations ask, too."""
    caches = pair_caches(run)
    _require_rows(run.recipe, {name: len(cache) for name, cache in caches.items()})
    if run.is_main:
        asked = also_asked(run.dataset, caches)
        for split, count in asked.items():
            if count:
                logger.warning("  %s of %s queries of %s are asked in the teacher's streams, too, word for word",
                               f"{count:,}", f"{len(run.dataset.splits[split]):,}", split)  # fmt: skip
        write_json(run.folder.streams / TEACHER / ASKED, {"data": run.dataset.sha256, "queries": asked})
    return [run.folder.streams / TEACHER]


def _require_rows(recipe: Recipe, rows: Mapping[str, int]) -> None:
    """A batch needs as many pairs, from one stream where so many come from one.

    Raises:
        InputError: naming the streams that have fewer.
    """
    training = recipe.teacher.training
    assert training is not None, "validated by the recipe"
    given = dict(rows) if recipe.data.one_stream_per_batch else {", ".join(rows): sum(rows.values())}
    if problems := [
        Problem(f"a batch is larger than all there is to train on in {name}", got=str(training.batch_size),
                where="teacher.training.batch_size", allowed=f"2 to {count}",
                next="lower batch_size, or give more data")
        for name, count in given.items() if count < training.batch_size
    ]:  # fmt: skip
        raise InputError(problems)


def pair_caches(run: Run) -> dict[str, TokenCache]:
    """The tokens of each stream's pairs, written as far as that is to do: queries with their contexts first."""
    reader = load_reader(run.recipe.teacher)
    return {name: _pair_cache(run, name, reader) for name in run.recipe.teacher.streams}


def _pair_cache(run: Run, name: str, reader: Reader) -> TokenCache:
    stream = run.recipe.data.streams[name]
    assert stream.positive is not None, "validated by the recipe"
    own = {**reader.prompts, **stream.prompts.model_dump(exclude_none=True)}
    texts = {stream.query: tokenise(reader, own["query"], context_of(run.recipe, name)),
             stream.positive: tokenise(reader, own["document"])}  # fmt: skip
    return build_cache(run, TEACHER, name, texts)


def mixed_pairs(run: Run) -> Mixture:
    """The pairs of each step of the teacher's training."""
    recipe, training = run.recipe, run.recipe.teacher.training
    assert training is not None, "validated by the recipe"
    sources = [
        MixtureSource(name, cache.streams(seed=[recipe.seed, number]), recipe.data.streams[name].weight)
        for number, (name, cache) in enumerate(pair_caches(run).items())
    ]
    return Mixture(
        sources, batch_size=training.batch_size, seed=recipe.seed, temperature=recipe.data.language_temperature,
        one_source_per_batch=recipe.data.one_stream_per_batch,
    )  # fmt: skip


def also_asked(dataset: Dataset, caches: Mapping[str, TokenCache]) -> dict[str, int]:
    """Of each evaluation, how many queries some log asks, too: a log's first text is its query."""
    sets = {name: records for name, records in dataset.splits.items() if name in EVALUATION_SPLITS}
    logs = (hash_N for cache in caches.values() for hash_N in cache.first_texts())
    asked_Q = seen_in_logs([record.text for records in sets.values() for record in records], logs)
    return {name: int(asked_Q[at].sum()) for name, at in places(sets).items()}


def asked_in_streams(run: Run) -> Mapping[str, int]:
    """What ``also_asked`` found, if it was counted for the data as it is now."""
    path = run.folder.streams / TEACHER / ASKED
    told = read_json(path) if run.recipe.teacher.streams and path.is_file() else {}
    return told["queries"] if told.get("data") == run.dataset.sha256 else {}
