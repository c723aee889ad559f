"""Mean metrics per language and over all. Axis: Q queries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.records import RESERVED
from harness.evaluation.per_query import PerQuery
from harness.runtime.errors import InputError, Problem

Floats = NDArray[np.float64]


def quality(per_query: PerQuery) -> dict[str, dict[str, float]]:
    """Mean metrics: ``{LANG | "macro" | "all": {"queries", METRIC}}``, ``macro`` over languages, ``all`` over queries.

    Raises:
        InputError: a language has the name of one of the summary rows.
    """
    means = _language_means(per_query, per_query.metrics)
    macro = {name: _mean([row[name] for row in means.values()]) for name in per_query.metrics}
    everything = {name: _mean(column) for name, column in per_query.metrics.items()}
    return {**means, "macro": {"queries": len(per_query), **macro}, "all": {"queries": len(per_query), **everything}}


def agreement(per_query: PerQuery) -> dict[str, dict[str, float]]:
    """Mean agreement with the reference: ``{LANG | "all": {"queries", MEASURE}}``; empty where nothing was measured."""
    if not per_query.agreement:
        return {}
    everything = {name: _mean(column) for name, column in per_query.agreement.items()}
    return {**_language_means(per_query, per_query.agreement), "all": {"queries": len(per_query), **everything}}


def refuse_reserved(languages: Sequence[str]) -> None:
    """A language called ``macro`` would overwrite the summary of that name."""
    taken = [language for language in languages if language in RESERVED]
    if taken:
        raise InputError(
            Problem("a language has the name of a summary row", got=", ".join(taken),
                    allowed=f"any name but {', '.join(RESERVED)}", next="rename it in the data")
        )  # fmt: skip


def numbered(names: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct names, sorted, and the number of each. (numpy's unique would pad every name to the longest.)"""
    distinct = sorted(set(names))
    number = {name: i for i, name in enumerate(distinct)}
    return distinct, np.fromiter((number[name] for name in names), np.int64, len(names))


def _language_means(per_query: PerQuery, columns: Mapping[str, Floats]) -> dict[str, dict[str, float]]:
    languages, language_Q = numbered(per_query.languages)
    refuse_reserved(languages)
    return {
        language: {"queries": int(rows.sum()), **{name: _mean(column[rows]) for name, column in columns.items()}}
        for language, rows in ((name, language_Q == i) for i, name in enumerate(languages))
    }


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else math.nan
