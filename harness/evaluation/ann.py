"""The ANN tax: the search effort that an approximate index costs the student's queries, beside the teacher's.

Every system is held against the exact search of its *own* queries over the same documents, so that this is about the
index alone. Recall counts a hit whose exact score reaches that of the k-th exact hit, less 1e-6: documents with equal
vectors are equally right. Systems take turns in short blocks of queries, so that a machine that slows down meanwhile
does so for all, and the first call of a turn is not timed.

A system *stays within 1 %* at the smallest measured effort from which on, at every larger measured one too, its
recall@k is 0.99 or more. Nothing is interpolated: the effort that it needs lies above the measured one before.

Axes: Q queries, G groups, N documents, D dimensions, K hits, E efforts, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.evaluation.bench.latency import turns
from harness.evaluation.bench.machine import quiet
from harness.evaluation.statistics import FEW_GROUPS
from harness.evaluation.statistics.means import numbered
from harness.runtime.process import progress
from harness.vectors.approximate import Searcher

LOSS = 0.01  # how far below its own exact search a system may stay
COARSEST = 2.0  # neighbouring efforts further apart than this factor show no equality
EQUAL = 1e-6  # scores that differ by less are equal
BLOCK = 8  # queries of a system until the next one has its turn
BATCH = 256  # queries at once, where many are asked

Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Asked:
    """One system's queries, and what exact search finds for them.

    Attributes:
        query_QD: its vectors of the queries, the same queries for every system.
        exact_score_QK, exact_row_QK: the exact hits, best first; -inf and -1 pad.
        partition_Q: each query's partition; None: all documents are searched.
        group_Q: each query's group, which is resampled as a whole; None: each query is a group.
        metric_of: row_QK -> the metric of each query, where there are judgments.
    """

    query_QD: Vectors
    exact_score_QK: Vectors
    exact_row_QK: Rows
    partition_Q: Sequence[str] | None = None
    group_Q: Sequence[str] | None = None
    metric_of: Callable[[Rows], Floats] | None = None


@dataclass
class Curve:
    """What one system gets from one index, by effort.

    Attributes:
        recall_EQ: share of the k best that were found; metric_EQ: the metric where queries are judged.
        one_ns: effort -> nanoseconds of each query asked alone; batch_ns: effort -> nanoseconds of all, by repeat.
    """

    efforts: list[int]
    recall_EQ: Floats
    metric_EQ: Floats | None
    one_ns: list[NDArray[np.int64]] = field(default_factory=list)
    batch_ns: list[list[int]] = field(default_factory=list)

    def held(self, bound: float) -> int | None:
        """The smallest effort from which on mean recall is ``bound`` or more; None where it never is."""
        return first_held(self.efforts, self.recall_EQ.mean(axis=1), bound)


def first_held(efforts: Sequence[int], value_E: Floats, bound: float) -> int | None:
    """The smallest of rising efforts from which on, at every larger one too, the value reaches ``bound``."""
    below = np.flatnonzero(value_E < bound - 1e-12)
    first = int(below[-1]) + 1 if below.size else 0
    return efforts[first] if first < len(efforts) else None


# -------------------------------------------------------------------------------------------------- recall


def exact_scores(query_QD: Vectors, row_QK: Rows, vectors: Callable[[Rows], Vectors]) -> Vectors:
    """The inner products of queries with their hits, float32 [Q, K]; -inf where the row is -1."""
    rows, place = np.unique(row_QK, return_inverse=True)
    document_ND = vectors(np.maximum(rows, 0))
    score_QK = np.empty(row_QK.shape, dtype=np.float32)
    for query, places in enumerate(place.reshape(row_QK.shape)):
        score_QK[query] = document_ND[places] @ query_QD[query]
    score_QK[row_QK < 0] = -np.inf
    return score_QK


def recall(found_score_QK: Vectors, exact_score_QK: Vectors) -> Floats:
    """Share of the k best documents that were found, float64_Q: hits as good as the k-th exact one count."""
    there_Q = np.isfinite(exact_score_QK).sum(axis=1)
    assert there_Q.min(initial=1) > 0, "a query without any document"
    worst_Q = np.take_along_axis(exact_score_QK, there_Q[:, None] - 1, axis=1)
    right_Q = (found_score_QK[:, : exact_score_QK.shape[1]] >= worst_Q - EQUAL).sum(axis=1)
    return np.asarray(np.minimum(right_Q / there_Q, 1.0))


# -------------------------------------------------------------------------------------------------- measuring


def effort_curves(
    at: Callable[[int], Searcher],
    asked: Mapping[str, Asked],
    efforts: Sequence[int],
    k: int,
    vectors: Callable[[Rows], Vectors],
    *,
    repeats: int = 3,
    timed: int = 200,
    what: str = "ann",
) -> dict[str, Curve]:
    """Search with every system's queries at every effort.

    Args:
        at: effort -> what answers at this effort.
        asked: system -> its queries.
        efforts: rising.
        vectors: rows -> the documents' vectors, float32 [rows, D], to score hits exactly.
        repeats: how often all queries are asked in batches; timed: how many are asked one at a time.
    """
    assert list(efforts) == sorted(set(efforts)) and efforts, "efforts rise"
    recall_of: dict[str, list[Floats]] = {system: [] for system in asked}
    metric_of: dict[str, list[Floats]] = {system: [] for system in asked}
    one: dict[str, list[NDArray[np.int64]]] = {system: [] for system in asked}
    batch: dict[str, list[list[int]]] = {system: [] for system in asked}
    for effort in progress(efforts, what=what, unit="effort"):
        for system, own in asked.items():
            _, row_QK = at(effort).search(own.query_QD, k, own.partition_Q)
            recall_of[system].append(recall(exact_scores(own.query_QD, row_QK, vectors), own.exact_score_QK[:, :k]))
            if own.metric_of:
                metric_of[system].append(own.metric_of(row_QK))
    with quiet():
        for effort in progress(efforts, what=f"{what}, timed", unit="effort"):
            for system, taken in time_one(at(effort), asked, k, timed).items():
                one[system].append(taken)
            for system, taken_all in time_batches(at(effort), asked, k, repeats).items():
                batch[system].append(taken_all)
    return {
        system: Curve(list(efforts), np.stack(recall_of[system]),
                      np.stack(metric_of[system]) if metric_of[system] else None, one[system], batch[system])
        for system in asked
    }  # fmt: skip


def time_one(searcher: Searcher, asked: Mapping[str, Asked], k: int, timed: int) -> dict[str, NDArray[np.int64]]:
    """Nanoseconds of queries asked one at a time, the same queries for every system."""
    count = min(timed, *(len(own.query_QD) for own in asked.values()))
    found = {system: np.zeros(count, dtype=np.int64) for system in asked}
    for start in range(0, count, BLOCK):
        for system in turns(list(asked), start // BLOCK):
            own = asked[system]
            for number in (start, *range(start, min(start + BLOCK, count))):  # the first call does not count
                part = None if own.partition_Q is None else own.partition_Q[number : number + 1]
                began = perf_counter_ns()
                searcher.search(own.query_QD[number : number + 1], k, part)
                found[system][number] = perf_counter_ns() - began
    return found


def time_batches(searcher: Searcher, asked: Mapping[str, Asked], k: int, repeats: int) -> dict[str, list[int]]:
    """Nanoseconds of all queries in batches, by repeat; systems take turns by the batch."""
    found = {system: [0] * repeats for system in asked}
    count = min(len(own.query_QD) for own in asked.values())
    for repeat in range(repeats):
        for turn, start in enumerate(range(0, count, BATCH)):
            for system in turns(list(asked), repeat + turn):
                own, rows = asked[system], slice(start, min(start + BATCH, count))
                part = None if own.partition_Q is None else own.partition_Q[rows]
                began = perf_counter_ns()
                searcher.search(own.query_QD[rows], k, part)
                found[system][repeat] += perf_counter_ns() - began
    return found


def time_encoding(
    encoders: Mapping[str, Callable[[str], object]], texts: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Median milliseconds from a text to its vector, one query at a time, systems in turns.

    Args:
        encoders: system -> what encodes one text. texts: system -> the same queries as it reads them.
    """
    count = min(len(own) for own in texts.values())
    taken = {system: np.zeros(count) for system in encoders}
    for start in range(0, count, BLOCK):
        for system in turns(list(encoders), start // BLOCK):
            for number in (start, *range(start, min(start + BLOCK, count))):
                began = perf_counter_ns()
                encoders[system](texts[system][number])
                taken[system][number] = (perf_counter_ns() - began) / 1e6
    return {system: float(np.median(own)) for system, own in taken.items()}


# -------------------------------------------------------------------------------------------------- the conclusion


def effort_ratio(
    student: Curve,
    teacher: Curve,
    bound: float,
    group_Q: Sequence[str] | None,
    *,
    resamples: int = 2_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """The effort at which the student stays above ``bound`` over that of the teacher, and its interval.

    Groups of queries are resampled, the same for both; None: each query is a group. An effort that is never enough
    counts as infinite: the bound that falls there is None, as is the value. Of "less", "equal", "more" the verdict is
    what the interval shows, else "undecided". Behind fewer than ``FEW_GROUPS`` groups there is no interval. Efforts
    were measured in steps: what is "equal" may differ by the factor ``step`` between the one found and the one before,
    and where that is above ``COARSEST`` nothing is called equal. ``why``: what leaves it undecided, else None.
    """
    assert student.recall_EQ.shape == teacher.recall_EQ.shape and student.efforts == teacher.efforts, "asked the same"
    efforts, queries = [student.held(bound), teacher.held(bound)], student.recall_EQ.shape[1]
    number_Q = np.arange(queries) if group_Q is None else numbered(group_Q)[1]
    count_G = np.bincount(number_Q)
    sums = [np.stack([np.bincount(number_Q, weights=row_Q) for row_Q in curve.recall_EQ])
            for curve in (student, teacher)]  # fmt: skip
    random, groups = np.random.default_rng(seed), len(count_G)
    ratio_R = np.empty(resamples)
    for number in range(resamples):
        drawn_G = np.bincount(random.integers(groups, size=groups), minlength=groups)
        found = [first_held(student.efforts, sum_EG @ drawn_G / (count_G @ drawn_G), bound) for sum_EG in sums]
        ratio_R[number] = _ratio(*found)
    known = ratio_R[~np.isnan(ratio_R)]  # a ratio of two efforts that are never enough is none
    tail = (1 - confidence) / 2
    low, high = (None, None)
    if groups >= FEW_GROUPS and known.size > 0.95 * resamples:
        low, high = (float(np.quantile(known, q, method="nearest")) for q in (tail, 1 - tail))
    step = max((_step(student.efforts, effort) for effort in efforts if effort is not None), default=None)
    verdict, why = _verdict(low, high), None
    if verdict == "equal" and (step is None or step > COARSEST):
        verdict = "undecided"
    if verdict == "undecided":
        first = student.efforts[0]
        why = _undecided(groups, low, high, f"no effort below {first} was tried" if first in efforts else
                         f"efforts lie a factor of {step or 0:.3g} apart")  # fmt: skip
    return {"value": _finite(_ratio(*efforts)), "low": _finite(low), "high": _finite(high), "loss": round(1 - bound, 6),
            "step": step, "verdict": verdict, "why": why}  # fmt: skip


def _undecided(groups: int, low: float | None, high: float | None, coarse: str) -> str:
    """Why a ratio is undecided; ``coarse``: how its efforts were too few."""
    if groups < FEW_GROUPS:
        return f"{groups} groups of the {FEW_GROUPS} needed"
    if low is None:
        return "neither reaches it, or chance of the queries decides whether one does"
    return coarse if low == high == 1 else "the interval holds 1"


def _step(efforts: Sequence[int], effort: int) -> float:
    """How many times the effort before this one it is; of the smallest, what it is itself."""
    place = efforts.index(effort)
    return effort / efforts[place - 1] if place else float(effort)


def _ratio(student: int | None, teacher: int | None) -> float:
    if teacher is None:
        return np.nan if student is None else 0.0
    return np.inf if student is None else student / teacher


def _finite(value: float | None) -> float | None:
    return None if value is None or not 0 < value < np.inf else float(value)


def _verdict(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "undecided"
    if low > 1 or high < 1:
        return "more" if low > 1 else "less"
    return "equal" if low == high == 1 else "undecided"


def end_to_end(
    student: Mapping[str, float | None], teacher: Mapping[str, float | None], calls: int,
    encode_calls: int | None = None,
) -> dict[str, Any] | None:  # fmt: skip
    """How much faster a query is answered, encoding and search at the system's own effort, one query at a time.

    Args:
        student, teacher: ``encode_p50_ms`` and ``search_p50_ms``; None where it can't be told.
        calls: how many searches stand behind each median; encode_calls: how many encodings.

    Returns:
        Both with their sum, ``speed_up`` of the whole, and ``encoder_speed_up``, which is what a comparison of encoders
        alone would promise. None where either search never comes near enough, or an encoder is not there.
    """
    whole: dict[str, dict[str, float]] = {}
    for name, own in (("student", student), ("teacher", teacher)):
        encode, search = own["encode_p50_ms"], own["search_p50_ms"]
        if encode is None or search is None:
            return None
        whole[name] = {"encode_p50_ms": encode, "search_p50_ms": search, "whole_ms": encode + search}
    return {
        **whole,
        "speed_up": whole["teacher"]["whole_ms"] / whole["student"]["whole_ms"],
        "encoder_speed_up": whole["teacher"]["encode_p50_ms"] / whole["student"]["encode_p50_ms"],
        "calls": calls,
        "encode_calls": encode_calls,
    }


# ------------------------------------------------------------------------------------------ as results.json has it


def curve_rows(curve: Curve, k: int, metric: str | None) -> list[dict[str, Any]]:
    """The curve as results.json has it: one row an effort."""
    rows = []
    for number, effort in enumerate(curve.efforts):
        one_ms = curve.one_ns[number] / 1e6
        rows.append({
            "effort": effort,
            f"recall@{k}": float(curve.recall_EQ[number].mean()),
            "queries_per_second": 1e3 / float(np.median(one_ms)),  # of few calls one slow one would rule a mean
            "p50_ms": float(np.median(one_ms)),
            "p99_ms": float(np.percentile(one_ms, 99)),
            "batched_queries_per_second": _per_second(curve, number),
            **({metric: float(curve.metric_EQ[number].mean())} if metric and curve.metric_EQ is not None else {}),
        })  # fmt: skip
    return rows


def _per_second(curve: Curve, number: int) -> float:
    return float(curve.recall_EQ.shape[1] / (np.median(curve.batch_ns[number]) / 1e9))


def told_of_index(  # noqa: PLR0913 - a summary of as many things
    curves: Mapping[str, Curve],
    asked: Mapping[str, Asked],
    student: str,
    teacher: str,
    encode_ms: Mapping[str, float | None],
    *,
    k: int,
    metric: str | None,
    enough: bool,
    confidence: float = 0.95,
    seed: int = 0,
    encode_calls: int | None = None,
) -> dict[str, Any]:
    """What results.json holds of one index: curves, the efforts found and, with ``enough`` documents, conclusions."""
    systems: dict[str, Any] = {}
    parts: dict[str, dict[str, float | None]] = {}
    for system, curve in curves.items():
        held, rows = curve.held(1 - LOSS), curve_rows(curve, k, metric)
        systems[system] = {"curve": rows, "within_1_percent": held, **_judged(curve, asked[system], metric)}
        at_effort = next((row["p50_ms"] for row in rows if row["effort"] == held), None)
        parts[system] = {"encode_p50_ms": encode_ms.get(system), "search_p50_ms": at_effort}
    told: dict[str, Any] = {"systems": systems, "effort_ratio": None, "end_to_end": None}
    if enough:
        ratio = effort_ratio(curves[student], curves[teacher], 1 - LOSS, asked[student].group_Q,
                             confidence=confidence, seed=seed)  # fmt: skip
        told["effort_ratio"] = {"systems": [student, teacher], **ratio}
        told["end_to_end"] = end_to_end(parts[student], parts[teacher], len(curves[student].one_ns[0]), encode_calls)
    return told


def _judged(curve: Curve, asked: Asked, metric: str | None) -> dict[str, Any]:
    """The metric of exact search, and the effort from which on at most 1 % of it is lost."""
    if metric is None or curve.metric_EQ is None or asked.metric_of is None:
        return {}
    exact = float(asked.metric_of(asked.exact_row_QK).mean())
    held = first_held(curve.efforts, curve.metric_EQ.mean(axis=1), (1 - LOSS) * exact)
    return {"exact": {metric: exact}, f"{metric} within_1_percent": held}
