"""Axes: Q queries, N documents, D dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from builders.vectors import unit_vectors

from harness.data.records import Documents, Record
from harness.export.parity import Questions, bounds_of, measure_parity, one_line, same_documents, some_of_each
from harness.recipe import ParitySettings
from harness.vectors.index import VectorIndex

Q, N, D = 120, 300, 16
DOCUMENT_ND = unit_vectors(N, D)
NOISE_QD = unit_vectors(Q, D, seed=4)
QUERY_QD = DOCUMENT_ND[:Q] + 0.3 * NOISE_QD
QUERY_QD = (QUERY_QD / np.linalg.norm(QUERY_QD, axis=1, keepdims=True)).astype(np.float32)
LANGUAGES = ("de", "en", "fr")


def questions(judged: bool = True, within: bool = False) -> Questions:
    ids = [f"d{row}" for row in range(N)]
    languages = [LANGUAGES[row % 3] for row in range(N)]
    documents = Documents(ids, ids, languages, [""] * N)
    records = [
        Record(f"q{row}", f"query {row}" + " more" * (row * 7 % 5), languages[row], f"g{row // 2}",
               {ids[row]: 1.0} if judged else {})
        for row in range(Q)
    ]  # fmt: skip
    partition = languages if within else None
    index = VectorIndex.build(DOCUMENT_ND, ids, kind="exact", partition_N=partition)
    return Questions(records, documents, index, within)


def artefact(vector_QD: np.ndarray, calls: list[int] | None = None) -> Any:
    def encode(texts: Sequence[str]) -> np.ndarray:
        if calls is not None:
            calls.append(len(texts))
        return vector_QD[[int(text.split()[1]) for text in texts]]

    return encode


def unit(vector_QD: np.ndarray) -> np.ndarray:
    return np.asarray(vector_QD / np.linalg.norm(vector_QD, axis=1, keepdims=True), dtype=np.float32)


def measured(vector_QD: np.ndarray, precision: str = "fp32", asked: Questions | None = None) -> dict[str, Any]:
    return measure_parity(artefact(vector_QD), QUERY_QD, asked or questions(), bounds_of(precision, ParitySettings()),
                          resamples=100)  # fmt: skip


@pytest.mark.parametrize("within", [False, True])
def test_the_same_vectors_are_the_student(within: bool) -> None:
    told = measured(QUERY_QD, asked=questions(within=within))
    assert told["passed"] and told["reasons"] == []
    assert set(told["languages"]) == {*LANGUAGES, "all"} and told["languages"]["all"]["queries"] == Q
    assert told["languages"]["all"]["min_cosine"] == pytest.approx(1, abs=1e-7)
    macro = told["recovery"]["P@1"]["macro"]
    assert macro["value"] == macro["low"] == macro["high"] == 1, "the very same answers to the very same queries"
    assert "overlap@10 1.0000" in one_line(told) and "keeps 1.0000" in one_line(told)


def test_batches_come_back_in_their_order() -> None:
    calls: list[int] = []
    told = measure_parity(artefact(QUERY_QD, calls), QUERY_QD, questions(), ParitySettings(), resamples=100)
    assert told["passed"] and max(calls) == 64 and sum(calls) == Q


def test_a_little_noise_passes_for_int8_and_not_for_fp32() -> None:
    near_QD = QUERY_QD + 0.03 * unit_vectors(Q, D, seed=5)
    told = measured(near_QD, "fp32")
    assert not told["passed"] and any("least cosine" in reason for reason in told["reasons"])
    assert measured(near_QD, "int8")["languages"]["all"]["min_cosine"] > 0.99


def test_one_wrong_vector_among_many_is_found() -> None:
    wrong_QD = QUERY_QD.copy()
    wrong_QD[7] = -wrong_QD[7]
    told = measured(wrong_QD, "int8")
    assert not told["passed"]
    assert told["reasons"][0].startswith(f"the least cosine is -1 in {LANGUAGES[7 % 3]}, at least 0.99 is wanted")
    assert "(1 of 3 languages fall short)" in told["reasons"][0]


def test_vectors_of_another_length_are_found() -> None:
    """An artefact that lost its normalisation has the same cosines and hits."""
    long_QD = QUERY_QD * np.float32(1.05)
    for precision in ("fp32", "fp16", "int8"):
        told = measured(long_QD, precision)
        assert told["norm"] == pytest.approx(0.05, abs=1e-5) and not told["passed"]
        assert told["reasons"][0].startswith("the length of a vector is off by 0.05 of the length of the student's")
    bent_QD = QUERY_QD.copy()
    bent_QD[5, 3] += 2e-4
    told = measured(bent_QD)
    assert told["max_difference"] == pytest.approx(2e-4, rel=0.01) and "a component" in told["reasons"][0]
    assert measured(bent_QD, "int8")["passed"] and "lengths off by" in one_line(told)


def test_documents_of_another_length_are_found() -> None:
    texts = [f"document {row}" for row in range(20)]
    assert same_documents(artefact(DOCUMENT_ND), texts, DOCUMENT_ND[:20])["passed"]
    told = same_documents(artefact(DOCUMENT_ND * np.float32(2)), texts, DOCUMENT_ND[:20])
    assert not told["passed"] and "the length of a vector is off by 1 " in told["reasons"][0]


def test_a_language_that_is_worse_than_the_mean_is_named() -> None:
    rows = np.array([row % 3 == 1 for row in range(Q)])
    other_QD = np.where(rows[:, None], unit(QUERY_QD + 0.4 * unit_vectors(Q, D, seed=6)), QUERY_QD)
    told = measured(other_QD, "int8")
    assert len(told["reasons"]) >= 2
    assert all(" in en, " in reason and "(1 of 3 " in reason for reason in told["reasons"] if "loses" not in reason)


def test_the_loss_of_recovery_counts_by_itself() -> None:
    loose = ParitySettings(min_cosine=0.0, mean_cosine=0.0, overlap=0.0, recovery_loss=0.05)
    worse_QD = unit(QUERY_QD + 0.8 * unit_vectors(Q, D, seed=8))
    told = measure_parity(artefact(worse_QD), QUERY_QD, questions(), loose, resamples=200)
    assert not told["passed"] and all("loses" in reason for reason in told["reasons"])
    macro = told["recovery"]["P@1"]["macro"]
    assert macro["low"] < macro["value"] < macro["high"] and macro["value"] < 0.95
    lenient = loose.model_copy(update={"recovery_loss": 1.0})
    assert measure_parity(artefact(worse_QD), QUERY_QD, questions(), lenient, resamples=100)["passed"]


def test_without_judgments_no_recovery_is_told() -> None:
    told = measured(QUERY_QD, asked=questions(judged=False))
    assert told["passed"] and told["recovery"] == {} and "keeps" not in one_line(told)


@pytest.mark.parametrize(
    ("vector_QD", "said"),
    [(np.full((Q, D), np.nan), f"{Q} vectors are not finite"), (QUERY_QD[:, :8], "shape [120, 8]")],
)
def test_vectors_that_can_not_be_compared_fail_with_the_reason(vector_QD: np.ndarray, said: str) -> None:
    told = measured(vector_QD)
    assert not told["passed"] and said in told["reasons"][0] and said in one_line(told)


def test_of_two_bounds_the_tighter_one_binds() -> None:
    assert bounds_of("int8", ParitySettings()) == ParitySettings()
    assert bounds_of("fp32", ParitySettings(overlap=0.5)).overlap == 0.98
    strict = ParitySettings(min_cosine=1.0, mean_cosine=1.0, overlap=1.0, recovery_loss=0.0)
    assert bounds_of("fp16", strict) == strict


def test_some_of_each_language_always_the_same() -> None:
    records = questions().records[:100]
    some = some_of_each(records, 5, seed=1)
    assert [record.language for record in some].count("de") == 5 and len(some) == 15
    assert some == some_of_each(records, 5, seed=1) != some_of_each(records, 5, seed=2)
    assert some_of_each(records, 1000, seed=1) == records
