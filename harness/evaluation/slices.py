"""Slices: queries told apart by what they are, and what a system keeps of the reference on each part.

- ``length``: tokens (characters where there is no tokenizer, so that a language without spaces has a length, too) in
  three parts as equal as ties allow, cut at the same lengths in every set;
- ``frequency``: ``head``, ``torso``, ``tail``: the most frequent queries, those between, the least frequent, each about
  a third of all traffic, where queries have different weights; else by how many training queries ask for what a query
  is looking for, each about a third of the queries. Equally frequent queries stay together, so that parts may be
  larger, and there may be no torso. Data that has neither says nothing about frequency, and there is no such slice;
- ``seen``: whether the query's text occurs in what was trained or aligned on (``leakage``);
- any column that the recipe names (``evaluate.slices``), numbers of many values in four parts.

Axes: Q queries, S samples, of which the first is the data itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.columns import Value, are_numbers
from harness.data.records import Record
from harness.evaluation.per_query import PerQuery
from harness.evaluation.statistics import FEW_GROUPS, Samples, recovery_of

Numbers = NDArray[np.float64]

FEW_NUMBERS = 12  # so many different numbers are slices of their own
PARTS = 4  # of more
UNNAMED = "(none)"  # queries without a value in a column
_THIRDS = ("head", "torso", "tail")


@dataclass(frozen=True)
class Slice:
    """One way to tell queries apart.

    Args:
        values: one a query.
        order: the different values as they are to be read.
        told: what it was made from.
    """

    values: list[str]
    order: list[str]
    told: str


# ------------------------------------------------------------------------------------------------- who is in which


def by_length(length_Q: Sequence[int], unit: str) -> Slice | None:
    """Short, medium and long queries; None where all are about equally long."""
    lengths = np.asarray(length_Q, dtype=np.float64)
    return _named_parts(lengths, ("short", "medium", "long"), unit, f"{unit} of the query")


def by_frequency(weight_Q: Sequence[float], asked_Q: Sequence[int]) -> Slice | None:
    """Head, torso and tail by weight or, where all weigh the same, by how often training asks for the same documents.

    Args:
        asked_Q: of the query's relevant documents, the most training queries that ask for one.

    Returns:
        None where neither tells queries apart.
    """
    weights, asked = np.asarray(weight_Q, dtype=np.float64), np.asarray(asked_Q, dtype=np.float64)
    if found := _by_mass(weights, weights, "weight of the query", "all weight"):
        return found
    return _by_mass(asked, np.ones(len(asked)), "training queries that ask for the same document", "the queries")


def by_seen(seen_Q: Iterable[bool]) -> Slice | None:
    """Queries whose text occurs in what was trained or aligned on; None where none does, or all do."""
    values = ["yes" if seen else "no" for seen in seen_Q]
    if len(set(values)) < 2:
        return None
    return Slice(values, ["no", "yes"], "the query's text occurs in training or alignment text")


def by_column(name: str, values: Sequence[Value | None]) -> Slice | None:
    """The queries by a column's value; None where they do not differ in it."""
    given = {value for value in values if value is not None}
    told = f"the query's {name}"
    if given and are_numbers(given):
        if len(given) > FEW_NUMBERS:
            return _quarters(values, told)
        written = _written(sorted(given, key=float))
        order = list(written.values())
        labels = [UNNAMED if value is None else written[value] for value in values]
    else:
        order = sorted(map(str, given))
        labels = [UNNAMED if value is None else str(value) for value in values]
    if UNNAMED in labels and UNNAMED not in order:
        order.append(UNNAMED)
    return Slice(labels, list(dict.fromkeys(order)), told) if len(set(labels)) > 1 else None


def asked_for(records: Sequence[Record], train: Iterable[Record]) -> list[int]:
    """Of each query's relevant documents, the most training queries that have one of them as relevant, too."""
    counts: dict[str, int] = {}
    for record in train:
        for document in record.positives:
            counts[document] = counts.get(document, 0) + 1
    return [max((counts.get(document, 0) for document in record.positives), default=0) for record in records]


def _by_mass(value_Q: Numbers, mass_Q: Numbers, told: str, whole: str) -> Slice | None:
    """Highest values first, equal values together: head, torso and tail with a third of the mass each, as far as ties
    allow; what each really has is told.

    A value belongs where the middle of its mass lies; but the highest is head and the lowest tail in any case.
    """
    if not len(value_Q) or mass_Q.sum() <= 0:
        return None
    distinct, number_Q = np.unique(-value_Q, return_inverse=True)
    mass_V = np.bincount(number_Q, weights=mass_Q)
    middle_V = (np.cumsum(mass_V) - mass_V / 2) / mass_V.sum()
    if len(distinct) < 2:
        return None
    part_V = np.minimum((middle_V * 3).astype(int), 2)
    part_V[0], part_V[-1] = 0, 2
    part_Q = part_V[number_Q]
    share_P = np.bincount(part_V, weights=mass_V, minlength=len(_THIRDS)) / mass_V.sum()
    present = [number for number in range(len(_THIRDS)) if number in part_V]
    shares = ", ".join(f"{_THIRDS[part]} {share_P[part]:.0%}" for part in present)
    return Slice([_THIRDS[part] for part in part_Q.tolist()], [_THIRDS[part] for part in present],
                 f"{told}, highest first, equal ones together: {shares} of {whole}")  # fmt: skip


def _named_parts(value_Q: Numbers, names: Sequence[str], unit: str, told: str) -> Slice | None:
    """As many parts as names, lowest first, as equal as ties allow; a name tells the range of its part."""
    part_Q = _parts(value_Q, len(names))
    present = np.unique(part_Q).tolist()
    called = names if len(present) == len(names) else (names[0], names[-1])
    order, label = [], {}
    for part, name in zip(present, called, strict=False):
        inside = value_Q[part_Q == part]
        low, high = _number(inside.min()), _number(inside.max())
        bounds = f"{low} {unit}".removesuffix("s" if low == "1" else "") if low == high else f"{low} to {high} {unit}"
        label[part] = f"{name} ({bounds})"
        order.append(label[part])
    return Slice([label[part] for part in part_Q.tolist()], order, told) if len(order) > 1 else None


def _quarters(values: Sequence[Value | None], told: str) -> Slice:
    """Numbers in four parts, each called by its range."""
    given = np.array([value is not None for value in values])
    number_Q = np.array([float(value) if value is not None else np.nan for value in values])
    part_Q = _parts(number_Q[given], PARTS)
    ranges = {part: number_Q[given][part_Q == part] for part in np.unique(part_Q).tolist()}
    ends = {part: (float(inside.min()), float(inside.max())) for part, inside in ranges.items()}
    written = _written(end for both in ends.values() for end in both)
    label = {part: f"{written[low]} to {written[high]}" for part, (low, high) in ends.items()}
    labels = np.full(len(values), UNNAMED, dtype=object)
    labels[given] = [label[part] for part in part_Q.tolist()]
    order = [*label.values(), *([] if given.all() else [UNNAMED])]
    return Slice(labels.tolist(), order, f"{told}, in {len(label)} parts of about as many queries")


def _parts(value_Q: Numbers, count: int) -> NDArray[np.int64]:
    """The part of each value, lowest first: a value belongs where the middle of its queries lies."""
    _, number_Q, size_V = np.unique(value_Q, return_inverse=True, return_counts=True)
    middle_V = (np.cumsum(size_V) - size_V / 2) / max(len(value_Q), 1)
    return np.asarray(np.minimum((middle_V * count).astype(np.int64), count - 1)[number_Q])


def _written(numbers: Iterable[Value]) -> dict[Value, str]:
    """Different numbers in different words: in few digits, or in all that they have where few don't tell them apart."""
    short = {value: _number(value) for value in numbers}
    return short if len(set(short.values())) == len(short) else {value: repr(value) for value in short}


def _number(value: Value) -> str:
    """A whole number in all its digits (an id, a date), another in up to 12."""
    number = float(value)
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else f"{number:.12g}"


# -------------------------------------------------------------------------------------------------- what is kept


def cut_up(system: PerQuery, slices: Mapping[str, Slice], metrics: Sequence[str]) -> PerQuery:
    """The evaluation once for each slice, its parts (``SLICE=VALUE``) for languages.

    So that all slices share one draw of groups (``statistics.resample``), and a part counts as a language does there.
    """
    times = len(slices)
    return PerQuery(
        ids=system.ids * times,
        languages=[f"{name}={value}" for name, cut in slices.items() for value in cut.values],
        groups=system.groups * times,
        weights=np.ones(len(system) * times),
        hits=[[]] * (len(system) * times),
        scores=np.zeros((len(system) * times, 0), np.float32),
        metrics={name: np.tile(system.metrics[name], times) for name in metrics},
    )


def slice_results(
    samples: Samples, reference: str, slices: Mapping[str, Slice], confidence: float
) -> dict[str, dict[str, dict[str, Any]]]:
    """What each system keeps of the reference on each part of one set.

    A part of fewer than ``FEW_GROUPS`` groups is marked as undecided.

    Args:
        samples: of all systems, the reference among them, as ``cut_up`` by these slices.

    Returns:
        ``{NAME: {SLICE: {VALUE: {"queries", "groups", "reference": {METRIC: mean}, "system": {METRIC: mean},
        "recovery": {METRIC: {"value", "low", "high"}}, "undecided"}}}}`` of every system but the reference.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in samples.sum_SLM if name != reference}
    place = {label: number for number, label in enumerate(samples.languages)}
    means = {name: {metric: samples.means(name, metric)[0] for metric in samples.metrics} for name in samples.sum_SLM}
    for name, by_slice in found.items():
        rows = recovery_of(samples, name, reference, confidence=confidence)
        for slice_name, cut in slices.items():
            labels = {value: f"{slice_name}={value}" for value in cut.order}
            by_slice[slice_name] = {
                value: _row(samples, place[label], means[reference], means[name], rows[label])
                for value, label in labels.items() if label in place
            }  # fmt: skip
    return found


def _row(
    samples: Samples, at: int, reference: Mapping[str, Numbers], system: Mapping[str, Numbers],
    recovered: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    estimates = {
        metric: {key: estimate[key] for key in ("value", "low", "high")} for metric, estimate in recovered.items()
    }
    return {
        "queries": int(samples.count_SL[0, at]),
        "groups": int(samples.groups_L[at]),
        "reference": {metric: float(mean_L[at]) for metric, mean_L in reference.items()},
        "system": {metric: float(mean_L[at]) for metric, mean_L in system.items()},
        "recovery": estimates,
        "undecided": bool(samples.groups_L[at] < FEW_GROUPS or any(e["low"] is None for e in estimates.values())),
    }
