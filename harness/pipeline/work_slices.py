"""Slices, leakage, and whether languages are treated alike: what the report gets from stored evaluations and the data.

Nothing is encoded here. The step ``data.slices`` reads the columns that the recipe names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.columns import Column, read_columns
from harness.data.folder import read_lines
from harness.data.overlap import EVALUATION_SPLITS, FORMER
from harness.data.token_cache import TokenCache
from harness.encoders.tokens import read_tokenizer, token_counts
from harness.evaluation.alike import alike
from harness.evaluation.languages import language_table, training_shares
from harness.evaluation.leakage import Flags, leakage, places, seen_among, seen_anywhere, seen_in_logs
from harness.evaluation.per_query import PerQuery
from harness.evaluation.results import compared_metrics, qualities
from harness.evaluation.slices import Slice, asked_for, by_column, by_frequency, by_length, by_seen
from harness.pipeline.context import Run
from harness.recipe import Recipe
from harness.runtime.process import read_json, write_json

Evaluations = Mapping[str, Mapping[str, PerQuery]]


def do_slices(run: Run) -> list[Path]:
    """Read the columns that evaluations are sliced by, of all queries that may be evaluated."""
    wanted = {record.id for name in EVALUATION_SPLITS for record in run.dataset.splits.get(name, [])}
    columns = read_columns(run.recipe.data, run.recipe.evaluate.slices, wanted)
    write_json(run.folder.slices, {"data": run.dataset.sha256, "columns": columns})
    return [run.folder.slices]


# ------------------------------------------------------------------------------------------------------- the queries


@dataclass(frozen=True)
class Sliced:
    """What is known of the queries of each set that is evaluated.

    Args:
        slices: set -> slice; a slice that does not tell a set's queries apart is absent there.
        seen: set -> where from -> bool_Q: whose text occurs there.
        tokens: set -> tokens of each query and how many of them are unknown, to the student; may be empty.
    """

    slices: dict[str, dict[str, Slice]]
    seen: dict[str, dict[str, Flags]]
    tokens: dict[str, tuple[np.ndarray, np.ndarray]]

    def values(self, name: str) -> dict[str, list[str]]:
        """Slice -> value of each query of a set, in the order of its evaluations."""
        return {key: cut.values for key, cut in self.slices[name].items()}


def slice_queries(run: Run, names: Sequence[str]) -> Sliced:
    """Cut up the queries of some sets, from the prepared data, the models' tokenizers and the columns read."""
    splits = {name: run.dataset.splits[name] for name in names}
    every = [record for records in splits.values() for record in records]
    texts = [record.text for record in every]
    columns: dict[str, Column] = read_json(run.folder.slices)["columns"] if run.recipe.evaluate.slices else {}
    whole = {  # cut alike in all sets
        "length": _by_length(run, texts),
        **{name: by_column(name, [column.get(record.id) for record in every]) for name, column in columns.items()},
    }
    seen, asked = _seen(run, texts), asked_for(every, run.dataset.splits["train"])
    counted = _tokens(run.folder.student("cut"), texts)
    found = Sliced({}, {}, {})
    for name, at in places(splits).items():
        found.seen[name] = {source: seen_Q[at] for source, seen_Q in seen.items() if source != name}
        if counted:
            found.tokens[name] = counted[0][at], counted[1][at]
        cuts = {
            "length": _of_set(whole["length"], at),
            "frequency": by_frequency([record.weight for record in every[at]], asked[at]),
            "seen": by_seen(seen_anywhere(found.seen[name], len(every[at])).tolist()),
            **{column: _of_set(whole[column], at) for column in columns},
        }
        found.slices[name] = {key: cut for key, cut in cuts.items() if cut is not None}
    return found


def _of_set(cut: Slice | None, at: slice) -> Slice | None:
    """One set's part of a slice of all sets."""
    if cut is None or len(set(cut.values[at])) < 2:
        return None
    values = cut.values[at]
    return Slice(values, [value for value in cut.order if value in set(values)], cut.told)


def _by_length(run: Run, texts: Sequence[str]) -> Slice | None:
    """By the tokens of each query to the teacher; by characters where it has no tokenizer."""
    if counted := _tokens(run.folder.teacher, texts):
        return by_length(counted[0].tolist(), "tokens")
    return by_length([len(text) for text in texts], "characters")


def _tokens(folder: Path, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Tokens of each query, and how many are unknown, to the model in a folder; None where it has no tokenizer."""
    return token_counts(read_tokenizer(folder), texts) if (folder / "tokenizer.json").is_file() else None


# ------------------------------------------------------------------------------------------------------ what was seen


def _seen(run: Run, texts: Sequence[str]) -> dict[str, Flags]:
    """Of all sets' queries, which occur in what was trained on, chosen on, aligned on, and in logs: each read once."""
    recipe = run.recipe
    found: dict[str, Flags] = {}
    if _trains_on_queries(recipe):
        found["train"] = seen_among(texts, _split_texts(run, "train"))
    found["select"] = seen_among(texts, _split_texts(run, "select"))
    if recipe.align and recipe.align.texts:
        found["align"] = seen_among(texts, _aligned(run, recipe.align.texts))
    if logs := _logs(run):
        found["streams"] = seen_in_logs(texts, (hash_N for log in logs for hash_N in log.first_texts()))
    return found


def _trains_on_queries(recipe: Recipe) -> bool:
    """Whether any stage trains on the train split's queries; a teacher with streams does not."""
    return bool(recipe.refine or (recipe.teacher.train and not recipe.teacher.streams))


def _split_texts(run: Run, split: str) -> Iterator[str]:
    """The queries of a split, and those of before the documents were updated."""
    yield from (record.text for record in run.dataset.splits.get(split, []))
    yield from (line["text"] for line in read_lines(run.folder.data / FORMER) if line["split"] == split)


def _aligned(run: Run, kinds: Iterable[str]) -> Iterator[str]:
    kinds = set(kinds)
    if "queries" in kinds:
        yield from _split_texts(run, "train")
    if "documents" in kinds:
        yield from run.dataset.documents.texts
    if "unlabelled" in kinds:
        yield from (text for text, _ in run.dataset.unlabelled)


def _logs(run: Run) -> list[TokenCache]:
    """The logs that the teacher and the alignment read; a log's first text is its query."""
    recipe, streams = run.recipe, run.folder.streams
    folders = [*(streams / "teacher" / stream for stream in recipe.teacher.streams),
               *(streams / "align" / stream for stream in (recipe.align.streams if recipe.align else []))]  # fmt: skip
    return [TokenCache(folder, read_json(folder / "manifest.json")) for folder in folders]


# --------------------------------------------------------------------------------------------------------- the report


def slice_sections(
    run: Run, evaluations: Evaluations, sliced: Sliced, recovery: Mapping[str, Any]
) -> dict[str, Any]:
    """What results.json gains: ``slice_sources``, ``leakage``, ``alike`` and ``languages``.

    Args:
        evaluations: system -> set, hits not needed.
        recovery: as results.json has it.
    """
    settings, reference = run.recipe.evaluate, run.recipe.evaluate.reference
    found: dict[str, dict[str, Any]] = {"alike": {}}
    for name in sliced.slices:
        systems = {system: sets[name] for system, sets in evaluations.items() if name in sets}
        if reference not in systems:
            continue
        told = (settings.resamples, settings.confidence, run.recipe.seed)
        metrics = compared_metrics(qualities(systems))
        for system, part in alike(systems, reference, sliced.values(name), metrics, *told).items():
            found["alike"].setdefault(system, {})[name] = part
    trained = _trained(run)
    languages = {name: _languages(run, name, evaluations, sliced, recovery, trained) for name in sliced.slices}
    leaks = {name: leakage(seen, len(run.dataset.splits[name])) for name, seen in sliced.seen.items()}
    sources = {name: {key: cut.told for key, cut in cuts.items()} for name, cuts in sliced.slices.items()}
    return found | {"slice_sources": sources, "leakage": leaks, "languages": languages}


def _languages(
    run: Run, name: str, evaluations: Evaluations, sliced: Sliced, recovery: Mapping[str, Any],
    trained: Mapping[str, float],
) -> dict[str, Any]:  # fmt: skip
    records, reference = run.dataset.splits[name], run.recipe.evaluate.reference
    texts: dict[str, list[str]] = {}
    for record in records:
        texts.setdefault(record.language, []).append(record.text)
    tokens: dict[str, tuple[float, float]] = {}
    if name in sliced.tokens:
        token_Q, unknown_Q = sliced.tokens[name]
        language_Q = np.array([record.language for record in records])
        for language in texts:
            own = language_Q == language
            tokens[language] = (float(token_Q[own].mean()), float(unknown_Q[own].sum() / max(token_Q[own].sum(), 1)))
    systems = {system: sets[name] for system, sets in evaluations.items() if system != reference and name in sets}
    measured = qualities({system: sets[name] for system, sets in evaluations.items() if name in sets})
    metric = next(iter(compared_metrics(measured)), "")
    recovered = {
        system: {key: rows.get(metric, {}).get("value") for key, rows in recovery[system][name].items()}
        for system in systems if name in recovery.get(system, {})
    }  # fmt: skip
    return language_table(texts, tokens, trained, systems, recovered)


def _trained(run: Run) -> dict[str, float]:
    """Each language's share of the training queries or, where there are none, of the logs' rows."""
    counts: dict[str, int] = {}
    for record in run.dataset.splits["train"]:
        counts[record.language] = counts.get(record.language, 0) + 1
    for log in [] if counts else _logs(run):
        for language, rows in log.languages.items():
            counts[language] = counts.get(language, 0) + rows
    return training_shares(counts)
