"""What must hold between data and models before anything is trained. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from harness.data.records import Dataset
from harness.encoders.sources import resolve_model
from harness.encoders.tokens import read_tokenizer, unknown_share
from harness.recipe import Recipe
from harness.runtime.errors import InputError, Problem


def tokenizers_of(recipe: Recipe) -> dict[str, str]:
    """Which model's tokenizer reads queries: teacher and, where it has another, student."""
    named = {
        "teacher": recipe.teacher.model,
        "student": None if recipe.student.model == "teacher" else recipe.student.model,
    }
    return {role: model for role, model in named.items() if model}


def unknown_shares(recipe: Recipe, dataset: Dataset, limit: int = 5_000) -> dict[str, dict[str, float]]:
    """Role -> language -> share of [UNK] among the tokens of up to ``limit`` queries of a language."""
    texts: dict[str, list[str]] = {}
    for records in dataset.splits.values():
        for record in records:
            of_language = texts.setdefault(record.language, [])
            if len(of_language) < limit:
                of_language.append(record.text)
    revisions = {"teacher": recipe.teacher.revision, "student": recipe.student.revision}
    found = {}
    for role, model in tokenizers_of(recipe).items():
        tokenizer = read_tokenizer(resolve_model(model, revisions[role]))
        found[role] = {language: unknown_share(tokenizer, words) for language, words in sorted(texts.items())}
    return found


def refuse_unknown(recipe: Recipe, shares: Mapping[str, Mapping[str, float]]) -> None:
    """Refuse languages that a tokenizer can't read.

    Raises:
        InputError: naming each language, its share and the limit.
    """
    limit = recipe.data.max_unknown_share
    problems = [
        Problem(
            f"the {role}'s tokenizer does not know {share:.1%} of the tokens in {language!r} queries",
            where="data.languages",
            allowed=f"at most {limit:.1%} (data.max_unknown_share)",
            next=f"take {language!r} out of data.languages, choose a model that reads it, or raise the limit",
        )
        for role, by_language in shares.items()
        for language, share in by_language.items()
        if share > limit
    ]
    if problems:
        raise InputError(problems)


def check_unknown_shares(recipe: Recipe, dataset: Dataset) -> None:
    """Measure and refuse in one."""
    refuse_unknown(recipe, unknown_shares(recipe, dataset))
