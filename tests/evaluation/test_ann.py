"""The ANN tax: curves against a system's own exact search, the effort that is enough, and what is concluded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from builders.vectors import unit_vectors

from harness.evaluation import ann
from harness.evaluation.ann import (
    Asked,
    Curve,
    effort_curves,
    effort_ratio,
    end_to_end,
    exact_scores,
    first_held,
    recall,
    time_encoding,
    told_of_index,
)
from harness.vectors.index import VectorIndex

EFFORTS = [1, 2, 4, 8, 16]


def curve(*recall_E: float, queries: int = 200, spread: float = 0.0) -> Curve:
    """A curve whose queries all have the mean recall, or lie ``spread`` above and below."""
    recall_EQ = np.repeat(np.array(recall_E)[:, None], queries, axis=1)
    recall_EQ += spread * np.where(np.arange(queries) % 2, 1, -1)
    return Curve(EFFORTS[: len(recall_E)], recall_EQ, None, [np.full(4, 1_000_000)] * len(recall_E),
                 [[2_000_000]] * len(recall_E))  # fmt: skip


class Halting:
    """Finds the exact hits of the first ``effort`` tenths of the queries, and nothing for the others."""

    def __init__(self, exact: VectorIndex, effort: int) -> None:
        self.exact, self.effort, self.calls = exact, effort, [0]

    def search(
        self, query_QD: np.ndarray, k: int, partition_Q: Sequence[str] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        self.calls.append(len(query_QD))
        score_QK, row_QK = self.exact.search(query_QD, k, partition_Q)
        score_QK[self.effort * len(query_QD) // 10 :], row_QK[self.effort * len(query_QD) // 10 :] = -np.inf, -1
        return score_QK, row_QK


DOCUMENTS = unit_vectors(200, 8)
EXACT = VectorIndex.build(DOCUMENTS, [f"d{number:03d}" for number in range(200)], kind="exact")


def asked(seed: int, **more: Any) -> Asked:
    query_QD = unit_vectors(50, 8, seed=seed)
    return Asked(query_QD, *EXACT.search(query_QD, 10), **more)


# -------------------------------------------------------------------------------------------------- recall


def test_documents_with_equal_vectors_are_equally_right() -> None:
    exact_QK = np.array([[0.9, 0.8, 0.8], [0.5, 0.4, -np.inf]], dtype=np.float32)
    found_QK = np.array([[0.9, 0.8 - 5e-7, 0.8], [0.5, 0.39, 0.38]], dtype=np.float32)
    assert recall(found_QK, exact_QK).tolist() == [1.0, 0.5]
    nothing_QK = np.full((2, 3), -np.inf, dtype=np.float32)
    assert recall(nothing_QK, exact_QK).tolist() == [0.0, 0.0]


def test_hits_are_scored_exactly_whatever_the_index_said() -> None:
    query_QD, row_QK = unit_vectors(2, 8, seed=1), np.array([[3, -1, 7], [7, 3, 3]])
    score_QK = exact_scores(query_QD, row_QK, DOCUMENTS.__getitem__)
    assert np.isneginf(score_QK[0, 1])
    np.testing.assert_allclose(score_QK[0, [0, 2]], DOCUMENTS[[3, 7]] @ query_QD[0], rtol=1e-6)
    np.testing.assert_allclose(score_QK[1], DOCUMENTS[[7, 3, 3]] @ query_QD[1], rtol=1e-6)


# -------------------------------------------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("values", "effort"),
    [
        ([0.5, 0.9, 0.989, 0.99, 1.0], 8),  # the first measured one that holds; nothing is interpolated
        ([0.995, 0.98, 0.99, 1.0, 1.0], 4),  # a dip later on counts: the curve need not rise
        ([1.0, 1.0, 1.0, 1.0, 1.0], 1),
        ([0.5, 0.6, 0.7, 0.8, 0.9899], None),
        ([1.0, 1.0, 1.0, 1.0, 0.5], None),
    ],
)
def test_enough_is_the_first_effort_from_which_on_it_holds(values: list[float], effort: int | None) -> None:
    assert first_held(EFFORTS, np.array(values), 0.99) == effort
    assert curve(*values).held(0.99) == effort


# -------------------------------------------------------------------------------------------------- the ratio


def test_two_equal_systems_have_a_ratio_of_one() -> None:
    same = curve(0.5, 0.9, 0.97, 0.995, 1.0, spread=0.004)
    found = effort_ratio(same, same, 0.99, None, resamples=200)
    assert found == {"value": 1.0, "low": 1.0, "high": 1.0, "loss": 0.01, "step": 2.0, "verdict": "equal",
                     "why": None}  # fmt: skip


def test_efforts_far_apart_show_no_equality() -> None:
    same = Curve([1, 16, 200], np.tile([[0.5], [0.9], [1.0]], 40), None)
    found = effort_ratio(same, same, 0.99, None, resamples=200)
    assert (found["value"], found["low"], found["high"]) == (1.0, 1.0, 1.0)
    assert (found["step"], found["verdict"]) == (12.5, "undecided")
    assert found["why"] == "efforts lie a factor of 12.5 apart"
    apart = Curve([4, 16, 64], np.tile([[0.5], [1.0], [1.0]], 40), None)
    assert effort_ratio(apart, apart, 0.99, None, resamples=50)["why"] == "efforts lie a factor of 4 apart"
    first = Curve([64, 90], np.ones((2, 40)), None)
    found = effort_ratio(first, first, 0.99, None, resamples=50)
    assert (found["verdict"], found["why"]) == ("undecided", "no effort below 64 was tried")


def test_a_system_that_needs_more_effort_is_said_to() -> None:
    found = effort_ratio(curve(0.3, 0.5, 0.9, 0.98, 1.0), curve(0.5, 0.98, 1.0, 1.0, 1.0), 0.99, None, resamples=200)
    assert (found["value"], found["low"], found["high"], found["verdict"]) == (4.0, 4.0, 4.0, "more")
    found = effort_ratio(curve(0.5, 0.98, 1.0, 1.0, 1.0), curve(0.3, 0.5, 0.9, 0.98, 1.0), 0.99, None, resamples=200)
    assert (found["value"], found["verdict"]) == (0.25, "less")


def test_the_interval_comes_from_the_queries() -> None:
    near = curve(0.3, 0.5, 0.9, 0.9901, 1.0, spread=0.009)  # by chance of the queries, 8 is enough or is not
    found = effort_ratio(near, curve(0.5, 0.98, 1.0, 1.0, 1.0), 0.99, None, resamples=500)
    assert (found["value"], found["low"], found["high"], found["verdict"]) == (2.0, 2.0, 4.0, "more")
    assert found == effort_ratio(near, curve(0.5, 0.98, 1.0, 1.0, 1.0), 0.99, None, resamples=500), "seeded"
    found = effort_ratio(near, curve(0.3, 0.5, 0.9, 0.9951, 1.0), 0.99, None, resamples=500)
    assert (found["low"], found["high"], found["why"]) == (1.0, 2.0, "the interval holds 1")


def test_groups_are_resampled_not_queries() -> None:
    """The same evidence in eight languages tells no more than in one; a group's queries count one by one."""
    hit_EQ = np.random.default_rng(0).binomial(10, [[0.3], [0.5], [0.9], [0.9905], [1.0]], size=(5, 125)) / 10
    fine_EQ = np.repeat(np.array([[0.5], [0.98], [1.0], [1.0], [1.0]]), 125, axis=1)

    def found(copies: int, group_Q: list[str] | None, confidence: float = 0.95) -> dict[str, Any]:
        student, teacher = (Curve(EFFORTS, np.repeat(own_EQ, copies, axis=1), None) for own_EQ in (hit_EQ, fine_EQ))
        return effort_ratio(student, teacher, 0.99, group_Q, resamples=500, confidence=confidence)

    once = found(1, None)
    assert once == found(8, [f"g{number:03d}" for number in range(125) for _ in range(8)])
    assert (once["low"], once["high"]) == (2.0, 4.0), "by chance of the queries"
    assert found(1, None, confidence=0.05)["low"] == found(1, None, confidence=0.05)["high"]
    uneven = Curve([1, 2], np.array([[0.0] * 31 + [1.0] * 69, [1.0] * 100]), None)
    groups = [str(number) for number in range(31)] + ["many"] * 69
    told = effort_ratio(uneven, uneven, 0.6, groups, resamples=500)
    assert told["value"] == 1.0, "recall is 0.69 at effort 1, not 1 of 32"


def test_behind_few_groups_there_is_no_interval() -> None:
    more, fewer = curve(0.3, 0.5, 0.9, 0.98, 1.0), curve(0.5, 0.98, 1.0, 1.0, 1.0)
    for groups, verdict in ((29, "undecided"), (30, "more")):
        group_Q = [f"g{number % groups}" for number in range(200)]
        found = effort_ratio(more, fewer, 0.99, group_Q, resamples=100)
        assert found["value"] == 4.0 and found["verdict"] == verdict and (found["low"] is None) == (groups == 29)
        assert found["why"] == ("29 groups of the 30 needed" if groups == 29 else None)


def test_an_effort_that_is_never_enough_is_no_number() -> None:
    never, fine = curve(0.3, 0.5, 0.6, 0.7, 0.8), curve(0.5, 0.98, 1.0, 1.0, 1.0)
    found = effort_ratio(never, fine, 0.99, None, resamples=100)
    assert (found["value"], found["low"], found["high"]) == (None, None, None) and found["verdict"] == "more"
    assert effort_ratio(fine, never, 0.99, None, resamples=100)["value"] is None
    both = effort_ratio(never, never, 0.99, None, resamples=100)
    assert (both["value"], both["low"], both["verdict"]) == (None, None, "undecided")
    assert both["why"] == "neither reaches it, or chance of the queries decides whether one does"


# -------------------------------------------------------------------------------------------------- measuring


def test_each_system_is_held_against_its_own_exact_search() -> None:
    systems = {"teacher": asked(1), "student": asked(2)}
    searchers: dict[int, Halting] = {}

    def at(effort: int) -> Halting:
        return searchers.setdefault(effort, Halting(EXACT, effort))

    found = effort_curves(at, systems, [2, 5, 10], 10, DOCUMENTS.__getitem__, repeats=2, timed=20)
    for one in found.values():
        assert one.recall_EQ.mean(axis=1).tolist() == [0.2, 0.5, 1.0] and one.held(0.99) == 10
        assert [taken.shape for taken in one.one_ns] == [(20,)] * 3 and all((taken > 0).all() for taken in one.one_ns)
        assert [len(taken) for taken in one.batch_ns] == [2] * 3
    swapped = {"teacher": Asked(systems["student"].query_QD, systems["teacher"].exact_score_QK,
                                systems["teacher"].exact_row_QK)}  # fmt: skip
    wrong = effort_curves(at, swapped, [10], 10, DOCUMENTS.__getitem__, repeats=1, timed=1)["teacher"]
    assert wrong.recall_EQ.mean() < 0.9, "another system's exact search is another bar"


def test_systems_take_turns_and_first_calls_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[tuple[str, int]] = []
    now = [0]
    monkeypatch.setattr(ann, "perf_counter_ns", lambda: now[0])

    class Slow:
        """The first call of a turn takes a second."""

        def search(self, query_QD: np.ndarray, k: int, partition_Q: Any = None) -> Any:
            system = "teacher" if query_QD[0, 0] >= 0 else "student"
            first = not log or log[-1][0] != system
            now[0] += 1_000_000_000 if first else 1_000_000
            log.append((system, int(abs(query_QD[0, 1]))))

    number_QD = np.stack([np.ones(20), np.arange(20)], axis=1).astype(np.float32)
    empty = np.zeros((20, 1), dtype=np.float32), np.zeros((20, 1), dtype=np.int64)
    systems = {"teacher": Asked(number_QD, *empty), "student": Asked(-number_QD, *empty)}
    taken = ann.time_one(Slow(), systems, 1, 20)  # type: ignore[arg-type]
    turns = [system for place, (system, _) in enumerate(log) if place == 0 or log[place - 1][0] != system]
    assert turns == ["teacher", "student", "teacher", "student"], "A B, B A, A B: two blocks of one stand together"
    asked_of_teacher = [number for system, number in log if system == "teacher"]
    assert asked_of_teacher == [0, *range(8), 8, *range(8, 16), 16, *range(16, 20)]
    assert set(taken["teacher"].tolist()) == set(taken["student"].tolist()) == {1_000_000}


def test_encoders_are_timed_in_turns() -> None:
    log: list[str] = []
    encoders = {name: lambda text, name=name: log.append(f"{name} {text}") for name in ("teacher", "student")}
    found = time_encoding(encoders, {"teacher": list("abc"), "student": list("ABC")})
    assert log == [*(f"teacher {text}" for text in "aabc"), *(f"student {text}" for text in "AABC")]
    assert set(found) == {"teacher", "student"} and min(found.values()) > 0


# -------------------------------------------------------------------------------------------------- what is told


def told(enough: bool = True, **encode_ms: float | None) -> dict[str, Any]:
    curves = {"teacher": curve(0.5, 0.98, 1.0, 1.0, 1.0), "student": curve(0.3, 0.5, 0.9, 0.98, 1.0)}
    for number in range(len(EFFORTS)):
        for one in curves.values():
            one.one_ns[number] = np.full(4, 1_000_000 * EFFORTS[number])
    systems = {"teacher": asked(1), "student": asked(2)}
    given = {"teacher": 40.0, "student": 2.0} | encode_ms
    return told_of_index(curves, systems, "student", "teacher", given, k=10, metric=None, enough=enough,
                         encode_calls=100)  # fmt: skip


def test_the_whole_path_is_slower_than_the_encoders_promise() -> None:
    found = told()
    assert [found["systems"][name]["within_1_percent"] for name in ("teacher", "student")] == [4, 16]
    assert found["effort_ratio"]["systems"] == ["student", "teacher"] and found["effort_ratio"]["value"] == 4
    assert found["end_to_end"]["teacher"] == {"encode_p50_ms": 40, "search_p50_ms": 4, "whole_ms": 44}
    assert found["end_to_end"]["student"]["whole_ms"] == 18
    assert found["end_to_end"]["speed_up"] == pytest.approx(44 / 18)
    assert found["end_to_end"]["encoder_speed_up"] == 20
    assert (found["end_to_end"]["calls"], found["end_to_end"]["encode_calls"]) == (4, 100)
    assert found["systems"]["teacher"]["curve"][2] == {
        "effort": 4, "recall@10": 1.0, "queries_per_second": 250.0, "p50_ms": 4.0, "p99_ms": 4.0,
        "batched_queries_per_second": pytest.approx(100_000.0),
    }  # fmt: skip


def test_of_few_documents_nothing_is_concluded() -> None:
    found = told(enough=False)
    assert found["effort_ratio"] is None and found["end_to_end"] is None
    assert found["systems"]["student"]["curve"][-1]["recall@10"] == 1.0, "the curve is shown"


def test_a_teacher_that_encodes_nothing_has_no_whole_path() -> None:
    assert told(teacher=None)["end_to_end"] is None
    fine = {"encode_p50_ms": 1.0, "search_p50_ms": 1.0}
    assert end_to_end({**fine, "search_p50_ms": None}, fine, 5) is None


def test_the_metric_is_held_against_its_own_exact_value() -> None:
    def metric_of(row_QK: np.ndarray) -> np.ndarray:
        return (row_QK[:, 0] >= 0) * 0.5

    systems = {name: asked(seed, metric_of=metric_of) for seed, name in ((1, "teacher"), (2, "student"))}
    curves = effort_curves(lambda effort: Halting(EXACT, effort), systems, [5, 10], 10, DOCUMENTS.__getitem__,
                           repeats=1, timed=5)  # fmt: skip
    found = told_of_index(curves, systems, "student", "teacher", {}, k=10, metric="nDCG@10", enough=False)
    own = found["systems"]["teacher"]
    assert own["exact"] == {"nDCG@10": 0.5} and own["nDCG@10 within_1_percent"] == 10
    assert [row["nDCG@10"] for row in own["curve"]] == [0.25, 0.5]
