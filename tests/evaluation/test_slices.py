"""Slices: who is in which, and what a system keeps on each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders.evaluations import per_query, random_pair

from harness.data.dedupe import text_hashes
from harness.data.records import Record
from harness.evaluation.leakage import leakage, seen_among, seen_anywhere, seen_in_logs
from harness.evaluation.per_query import PerQuery
from harness.evaluation.slices import (
    Slice,
    asked_for,
    by_column,
    by_frequency,
    by_length,
    by_seen,
    cut_up,
    slice_results,
)
from harness.evaluation.statistics import FEW_GROUPS, recovery, resample


def counts(cut: Slice | None) -> dict[str, int]:
    assert cut is not None and set(cut.values) == set(cut.order)
    return {value: cut.values.count(value) for value in cut.order}


# ------------------------------------------------------------------------------------------------- who is in which


def test_length_in_thirds_named_by_their_range() -> None:
    assert counts(by_length(range(1, 10), "tokens")) == {
        "short (1 to 3 tokens)": 3, "medium (4 to 6 tokens)": 3, "long (7 to 9 tokens)": 3
    }  # fmt: skip
    assert counts(by_length([1] * 8 + [2, 3], "tokens")) == {"short (1 token)": 8, "long (2 to 3 tokens)": 2}
    assert by_length([4] * 5, "tokens") is None and by_length([], "tokens") is None


def test_frequency_by_weight_is_cut_by_traffic() -> None:
    cut = by_frequency([50.0, 30.0, *[1.0] * 60], [0] * 62)
    assert counts(cut) == {"head": 1, "torso": 1, "tail": 60} and cut is not None and "weight" in cut.told


def test_the_most_frequent_are_head_however_many_there_are() -> None:
    """71 % of all weight lie on the highest weight: they are the head all the same, and what it holds is told."""
    cut = by_frequency([20.0] * 71, [0] * 71)
    assert cut is None, "all are equally frequent"
    cut = by_frequency([1.0] * 180, [*[0] * 179, 1])
    assert counts(cut) == {"head": 1, "tail": 179}
    cut = by_frequency([*[1.0] * 180, *[5.0] * 80, *[20.0] * 71], [0] * 331)
    assert counts(cut) == {"head": 71, "tail": 260} and cut is not None
    assert cut.values[-1] == "head" and cut.values[0] == "tail"
    assert "head 71%, tail 29% of all weight" in cut.told
    cut = by_frequency([*[1.0] * 80, 5.0, 5.0, 20.0], [0] * 83)
    assert counts(cut) == {"head": 3, "tail": 80}, "the least frequent are the tail, too"


def test_frequency_without_weights_is_what_training_asks_for() -> None:
    cut = by_frequency([1.0] * 9, [9, 8, 7, 3, 3, 3, 0, 0, 0])
    assert counts(cut) == {"head": 3, "torso": 3, "tail": 3} and cut is not None and "training" in cut.told
    assert "head 33%, torso 33%, tail 33% of the queries" in cut.told
    assert counts(by_frequency([1.0] * 10, [5] + [0] * 9)) == {"head": 1, "tail": 9}


@pytest.mark.parametrize("weights", [[1.0] * 5, [0.0] * 5, []])
def test_data_that_says_nothing_of_frequency_has_no_such_slice(weights: list[float]) -> None:
    assert by_frequency(weights, [0] * len(weights)) is None


def test_what_training_asks_for() -> None:
    def record(id_: str, *documents: str) -> Record:
        return Record(id_, id_, "en", id_, dict.fromkeys(documents, 1.0))

    train = [record("a", "d1", "d2"), record("b", "d2"), record("c", "d2")]
    assert asked_for([record("x", "d1"), record("y", "d1", "d2"), record("z", "d9")], train) == [1, 3, 0]


def test_columns_of_texts_and_of_numbers() -> None:
    assert counts(by_column("device", ["b", "a", None, "b"])) == {"a": 1, "b": 2, "(none)": 1}
    assert counts(by_column("year", [2021, 2020, 2021.0])) == {"2020": 1, "2021": 2}
    assert counts(by_column("price", [*range(40), None])) == {
        "0 to 9": 10, "10 to 19": 10, "20 to 29": 10, "30 to 39": 10, "(none)": 1
    }  # fmt: skip
    assert counts(by_column("mixed", [1, "1", "x"])) == {"1": 2, "x": 1}
    assert by_column("device", ["a", "a"]) is None and by_column("device", [None, None]) is None


def test_large_numbers_are_told_apart() -> None:
    assert counts(by_column("id", [1234567, 1234568, 1234568.0])) == {"1234567": 1, "1234568": 2}
    assert counts(by_column("day", [20240101, 20240102, None])) == {"20240101": 1, "20240102": 1, "(none)": 1}
    assert counts(by_column("share", [0.1 + 0.2, 1 / 3, 2.0, -5e20])) == {
        "-5e+20": 1, "0.3": 1, "0.333333333333": 1, "2": 1
    }  # fmt: skip
    assert counts(by_column("close", [0.1 + 0.2, 0.3])) == {"0.3": 1, "0.30000000000000004": 1}
    assert counts(by_column("id", [2**60, 2**60 + 1])) == {"1152921504606846976": 1, "1152921504606846977": 1}
    seconds = range(1_700_000_000, 1_700_000_040)
    assert counts(by_column("time", [*seconds])) == {
        f"{start} to {start + 9}": 10 for start in range(1_700_000_000, 1_700_000_040, 10)
    }  # fmt: skip
    fine = by_column("time", [1_700_000_000 + number / 2**20 for number in range(40)])
    assert list(counts(fine).values()) == [10] * 4, "that differ after the 12th digit"


# ------------------------------------------------------------------------------------------------------- what was seen


def test_seen_texts_are_equal_but_for_case_and_whitespace() -> None:
    queries = ["Red  shoe", "hat", "red shoe", "Straße"]
    assert seen_among(queries, ["RED SHOE", "hats", "STRASSE"]).tolist() == [True, False, True, True]
    blocks = [text_hashes(["x", "red shoe"]), text_hashes([None, "STRASSE"])]
    assert seen_in_logs(queries, blocks).tolist() == [True, False, True, True]
    assert seen_in_logs(queries, []).tolist() == [False] * 4 and seen_in_logs([], blocks).tolist() == []


def test_seen_texts_may_have_another_unicode_form() -> None:
    composed, apart = "\u00e9t\u00e9", "e\u0301te\u0301"
    queries = [composed, apart, "\ufb01ne", "a\u200bb", "else"]
    texts = [apart.upper(), composed, "fine", "ab"]
    assert seen_among(queries, texts).tolist() == [True] * 4 + [False]
    assert seen_in_logs(queries, [text_hashes(texts)]).tolist() == [True] * 4 + [False]
    assert seen_in_logs([composed, "x"], [text_hashes([apart])]).tolist() == [True, False], "whatever the log has"
    assert seen_among(["fine"], ["\ufb01ne"]).all()
    queries = ["istanbul", "izmir", "iki di\u015f", "is"]
    texts = ["\u0130stanbul", "\u0130ZM\u0130R", "\u0130ki Di\u015f"]
    assert seen_among(queries, texts).tolist() == [True] * 3 + [False]
    for logged in (texts, [text.lower() for text in texts]):
        assert seen_in_logs(queries, [text_hashes(logged)]).tolist() == [True] * 3 + [False]
    assert seen_in_logs(texts, [text_hashes(queries)]).all()


def test_leakage_counts_each_source_and_any() -> None:
    seen = {"train": np.array([True, False, False, False]), "align": np.array([True, True, False, False])}
    assert leakage(seen, 4) == {"queries": 4, "seen": {"train": 1, "align": 2, "any": 2}, "share": 0.5}
    assert leakage({}, 4)["share"] == 0.0 and leakage({}, 0)["share"] is None
    cut = by_seen(seen_anywhere(seen, 4).tolist())
    assert counts(cut) == {"no": 2, "yes": 2} and by_seen([False, False]) is None


# -------------------------------------------------------------------------------------------------- what is kept


def kept(systems: dict[str, PerQuery], slices: dict[str, Slice], metrics: list[str], **draws: int) -> dict[str, Any]:
    parts = {name: cut_up(system, slices, metrics) for name, system in systems.items()}
    return slice_results(resample(parts, metrics=metrics, **draws), "t", slices, 0.95)


def test_a_slice_is_what_the_bootstrap_says_of_a_language() -> None:
    """The numbers are those of ``recovery`` over the same queries with the slice for a language."""
    student, reference = random_pair(4, groups=80, languages=["de", "en"])
    values = ["macro" if number % 3 else "rare" for number in range(len(student))]
    cut = Slice(values, ["rare", "macro", "absent"], "a column with the name of a summary row")
    found = kept({"t": reference, "s": student}, {"column": cut}, ["P@1", "MRR@10"], resamples=400, seed=5)
    assert list(found) == ["s"] and list(found["s"]["column"]) == ["rare", "macro"]
    relabelled = [per_query([f"column={value}" for value in values], system.groups, system.metrics)
                  for system in (student, reference)]  # fmt: skip
    rows = recovery(*relabelled, metrics=["P@1", "MRR@10"], resamples=400, confidence=0.95, seed=5)
    for value, row in found["s"]["column"].items():
        own = np.array(values) == value
        assert row["queries"] == own.sum()
        assert row["groups"] == len({group for group, inside in zip(student.groups, own, strict=True) if inside})
        assert row["system"]["P@1"] == pytest.approx(student.metrics["P@1"][own].mean())
        assert row["reference"]["P@1"] == pytest.approx(reference.metrics["P@1"][own].mean())
        for metric, estimate in row["recovery"].items():
            assert estimate == {key: rows[f"column={value}"][metric][key] for key in ("value", "low", "high")}
        assert row["undecided"] is False


def test_few_groups_and_a_reference_at_zero_are_undecided() -> None:
    count = FEW_GROUPS - 1
    labels = ["few"] * count + ["zero"] * 50 + ["many"] * 50
    reference = per_query(["en"] * len(labels), range(len(labels)), [1.0] * count + [0.0] * 50 + [1.0] * 50)
    student = per_query(["en"] * len(labels), range(len(labels)), [1.0] * len(labels))
    cut = Slice(labels, ["few", "zero", "many"], "")
    rows = kept({"t": reference, "s": student}, {"x": cut}, ["P@1"], resamples=200, seed=1)["s"]["x"]
    assert {value: row["undecided"] for value, row in rows.items()} == {"few": True, "zero": True, "many": False}
    assert rows["zero"]["recovery"]["P@1"]["value"] is None
