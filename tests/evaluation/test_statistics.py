"""Means, recovery and paired differences: against a plain loop, against theory, and where they don't exist."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders.evaluations import per_query, random_pair
from scipy.stats import beta

from harness.evaluation.per_query import PerQuery
from harness.evaluation.statistics import agreement, paired_difference, quality, recovery, resample
from harness.evaluation.statistics import samples as drawing
from harness.metrics import METRICS
from harness.runtime.errors import InputError

UNKNOWN = {"value": None, "low": None, "high": None}


def one(student: PerQuery, reference: PerQuery, **options: Any) -> dict[str, dict[str, Any]]:
    """Recovery of P@1 alone: row -> value, low, high; the lowest language's also with its name."""
    settings = {"resamples": 500, "seed": 3, **options}
    found = recovery(student, reference, metrics=["P@1"], **settings)
    kept = ("value", "low", "high", "language")
    return {row: {key: by["P@1"][key] for key in kept if key in by["P@1"]} for row, by in found.items()}


# ------------------------------------------------------------------------------------------------ means


def test_quality_and_agreement() -> None:
    evaluated = per_query(["de", "en", "de", "de"], range(4), {"P@1": [1, 0, 0, 0.5], "MRR@10": [1, 1, 1, 1]})
    assert quality(evaluated) == {
        "de": {"queries": 3, "P@1": 0.5, "MRR@10": 1.0},
        "en": {"queries": 1, "P@1": 0.0, "MRR@10": 1.0},
        "macro": {"queries": 4, "P@1": 0.25, "MRR@10": 1.0},
        "all": {"queries": 4, "P@1": 0.375, "MRR@10": 1.0},
    }
    assert agreement(evaluated)["all"] == {"queries": 4, "overlap@10": 0.75, "cosine": 0.5}
    assert set(agreement(evaluated)) == {"de", "en", "all"}
    assert agreement(replace(evaluated, agreement={})) == {}


# --------------------------------------------------------------------------------------------- recovery


def test_the_values_are_as_defined() -> None:
    languages = ["de", "de", "de", "en", "fr", "fr"]
    rows = one(per_query(languages, range(6), [1, 0, 0, 0.5, 1, 0]), per_query(languages, range(6), [1, 1, 0, 1, 1, 0]))
    assert rows["de"]["value"] == pytest.approx((1 / 3) / (2 / 3))
    assert rows["en"]["value"] == pytest.approx(0.5)
    assert rows["macro"]["value"] == pytest.approx((1 / 3 + 0.5 + 0.5) / (2 / 3 + 1 + 0.5))
    assert rows["micro"]["value"] == pytest.approx(2.5 / 4)
    assert rows["worst"]["value"] == pytest.approx(0.5)


def test_equals_a_plain_loop_over_the_same_draws() -> None:
    """Languages share some groups and not others; every number of every sample is summed again query by query."""
    random = np.random.default_rng(5)
    languages = random.choice(["de", "en", "fr"], size=60).tolist()
    groups = random.integers(0, 17, size=60).tolist()
    systems = {name: per_query(languages, groups, random.random(60).tolist()) for name in ("a", "b")}
    samples = resample(systems, metrics=["P@1", "MRR@10"], resamples=30, seed=9)
    numbered = sorted({str(group) for group in groups})
    stream = np.random.default_rng([9, 0])
    for sample in range(1, 31):
        drawn = stream.integers(0, len(numbered), size=len(numbered), dtype=np.uint32)
        rows = [q for number in drawn for q in range(60) if str(groups[q]) == numbered[number]]
        for place, language in enumerate(["de", "en", "fr"]):
            mine = [q for q in rows if languages[q] == language]
            assert samples.count_SL[sample, place] == len(mine)
            for name, system in systems.items():
                expected = np.mean([system.metrics["P@1"][q] for q in mine])
                assert samples.means(name, "P@1")[sample, place] == pytest.approx(expected)
        expected = np.mean([systems["a"].metrics["MRR@10"][q] for q in rows])
        assert samples.micro("a", "MRR@10")[sample] == pytest.approx(expected)
    np.testing.assert_array_equal(samples.count_SL[0], [languages.count(name) for name in ("de", "en", "fr")])


def test_a_group_is_resampled_jointly_over_languages() -> None:
    """Four languages that repeat each other are no more evidence than one of them."""
    student, reference = random_pair(1, groups=60, languages=["xx"])
    alone = one(student, reference, resamples=5_000)
    copies = [per_query(["de", "en", "fr", "it"] * 60, np.repeat(np.arange(60), 4).tolist(),
                        np.repeat(system.metrics["P@1"], 4).tolist()) for system in (student, reference)]  # fmt: skip
    together = one(*copies, resamples=5_000)
    for row in ("macro", "micro", "fr"):
        # Numbers of groups sort as text in both, so that the draws are the same too; but not those of the added group.
        assert together[row]["value"] == pytest.approx(alone["xx"]["value"])
        assert together[row]["low"] == pytest.approx(alone["xx"]["low"], abs=0.01)
        assert together[row]["high"] == pytest.approx(alone["xx"]["high"], abs=0.01)
    apart = one(*(replace(system, groups=[f"{i}" for i in range(240)]) for system in copies))
    assert apart["macro"]["high"] - apart["macro"]["low"] < 0.7 * (alone["xx"]["high"] - alone["xx"]["low"])


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """True macro recovery is .8; 300 data sets of 150 groups in 3 languages; 95 % intervals: 90 to 99 % hold it."""
    held = 0
    for seed in range(300):
        student, reference = random_pair(seed, groups=150, languages=["de", "en", "fr"])
        macro = one(student, reference, resamples=200)["macro"]
        held += macro["low"] <= 0.8 <= macro["high"]
    assert 0.90 <= held / 300 <= 0.99


def test_the_seed_decides_and_threads_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    student, reference = random_pair(0, groups=80, languages=["de", "en"])
    monkeypatch.setattr(drawing, "_COUNTS_AT_ONCE", 800)
    several = one(student, reference)
    monkeypatch.setattr(drawing.os, "cpu_count", lambda: 1)
    assert one(student, reference) == several
    assert one(student, reference, seed=4)["macro"] != several["macro"]
    assert one(student, reference, seed=4)["macro"]["value"] == several["macro"]["value"]


def test_bounds_are_the_percentiles_of_the_resamples() -> None:
    student, reference = random_pair(0, groups=80, languages=["de", "en"])
    samples = resample({"s": student, "r": reference}, metrics=["P@1"], resamples=500, seed=3)
    kept_S, base_S = samples.macro("s", "P@1"), samples.macro("r", "P@1")
    # What each group adds to the macro mean; the added group is that of the next lost hit.
    kept_G, base_G = (np.sum(np.split(system.metrics["P@1"], 2), axis=0) / 160 for system in (student, reference))
    lost_S = samples.more_SP[:, 2] * group_of_next_lost(base_G - kept_G, np.maximum(base_G, kept_G))
    won_S = samples.more_SP[:, 2] * group_of_next_lost(kept_G - base_G, np.maximum(base_G, kept_G))
    found = one(student, reference, confidence=0.9)["macro"]
    assert found["value"] == kept_S[0] / base_S[0] and lost_S[0] == 0 < lost_S[1:].min()
    assert found["low"] == pytest.approx(np.quantile((kept_S / (base_S + lost_S))[1:], 0.05, method="lower"))
    assert found["high"] == pytest.approx(np.quantile(((kept_S + won_S) / base_S)[1:], 0.95, method="higher"))


def group_of_next_lost(lost_G: np.ndarray, whole_G: np.ndarray) -> float:
    """Pair by pair: of a lost hit and any of its group, the share in which both are lost; three groups lost whole."""
    some = [float(whole) for whole in whole_G if whole > 0]
    unseen = 3 * sum(whole * whole for whole in some) / len(some)
    pairs = [(max(lost, 0.0), whole) for lost, whole in zip(lost_G, whole_G, strict=True)]
    share = (unseen + sum(lost * lost for lost, _ in pairs)) / (unseen + sum(lost * whole for lost, whole in pairs))
    return sum(whole * whole for whole in some) / sum(some) * share


def test_queries_alone_do_not_tell_how_large_groups_are_lost() -> None:
    """500 queries alone and 20 groups of 50, each group lost whole in one case of twenty: the bound must hold."""
    size_G, wrong = np.array([1] * 500 + [50] * 20), 0
    groups = np.repeat(np.arange(520), size_G)
    reference = per_query(["de"] * len(groups), groups, [1.0] * len(groups))
    for seed in range(60):
        kept_G = np.random.default_rng(seed).random(520) >= 0.05
        student = replace(reference, metrics={"P@1": kept_G[groups].astype(float)})
        wrong += one(student, reference, resamples=200)["de"]["low"] > 0.95
    assert wrong <= 3, "of 60; with groups as large as those in which hits were lost they were 18"


def test_weights_that_differ_are_no_reason_for_narrow_bounds() -> None:
    """One query a group, weights by Pareto's law; each is lost in one case of twenty."""
    wrong, random = 0, np.random.default_rng(0)
    weights = random.pareto(1.2, 400) + 1
    reference = replace(per_query(["de"] * 400, range(400), [1.0] * 400), weights=weights)
    for _ in range(60):
        student = replace(reference, metrics={"P@1": (random.random(400) >= 0.05).astype(float)})
        wrong += recovery(student, reference, metrics=["P@1"], resamples=200)["weighted"]["P@1"]["low"] > 0.95
    assert wrong <= 3


def test_losses_that_do_not_bunch_cost_less_than_whole_groups() -> None:
    """120 groups of 10 queries, 40 hits lost: one in each of 40 groups, or all of 4 groups; and none at all."""
    reference = per_query(["de"] * 1200, np.repeat(range(120), 10), [1.0] * 1200)
    apart, bunched = np.ones((120, 10)), np.ones((120, 10))
    apart[:40, 0], bunched[:4] = 0, 0
    low = {}
    for name, kept in (("apart", apart), ("bunched", bunched), ("none", np.ones((120, 10)))):
        student = replace(reference, metrics={"P@1": kept.ravel()})
        low[name] = one(student, reference, resamples=2_000)["de"]["low"]
    assert 1 - 46 / 1200 - 0.012 < low["apart"] < 1 - 46 / 1200 + 0.002, "plain percentiles begin near 1 - 51 / 1200"
    assert low["bunched"] == pytest.approx(float(beta.ppf(0.025, 116, 5)), abs=0.01), "116 of 120 groups kept"
    assert low["none"] == pytest.approx(0.025 ** (1 / 120), abs=0.004), "nothing tells how losses bunch: whole groups"


def test_a_language_that_a_resample_lacks_keeps_its_mean_in_the_macro() -> None:
    """English has one query, and the draws without it are about the same mean over both languages."""
    system = per_query(["de"] * 40 + ["en"], range(41), [0.0, 1.0] * 20 + [1.0])
    samples = resample({"s": system}, metrics=["P@1"], resamples=400, seed=1)
    german_S, english_S = samples.means("s", "P@1").T
    assert 0.2 < np.isnan(english_S).mean() < 0.6
    np.testing.assert_allclose(samples.macro("s", "P@1"), (german_S + 1) / 2)


def test_a_wider_confidence_gives_a_wider_interval() -> None:
    student, reference = random_pair(0, groups=80, languages=["de", "en"])
    narrow, wide = (one(student, reference, confidence=confidence)["de"] for confidence in (0.8, 0.99))
    assert wide["low"] < narrow["low"] < narrow["value"] < narrow["high"] < wide["high"]


def test_a_student_equal_to_its_reference_keeps_everything_as_far_as_so_many_queries_tell() -> None:
    _, reference = random_pair(0, groups=50, languages=["de", "en"])
    found = one(reference, reference)["macro"]
    assert found["value"] == 1 and 0.75 < found["low"] < 0.95 and 1.05 < found["high"] < 1.25
    verdict = paired_difference(reference, reference, "P@1", resamples=200)
    assert verdict["difference"] == 0 and verdict["verdict"] == "undecided"
    assert -0.1 < verdict["low"] < -0.04 and 0.04 < verdict["high"] < 0.1


def test_without_any_loss_the_bound_is_the_exact_one() -> None:
    """60 of 60 kept: Clopper and Pearson's lower bound for 95 % on one side is 0.05 ** (1 / 60)."""
    everything = per_query(["de"] * 60, range(60), [1.0] * 60)
    found = recovery(everything, everything, metrics=["P@1"], seed=1)
    assert found["de"]["P@1"]["simultaneous_low"] == pytest.approx(0.05 ** (1 / 60), abs=0.004)
    assert found["de"]["P@1"]["low"] == pytest.approx(0.025 ** (1 / 60), abs=0.006)


@pytest.mark.parametrize(("lost", "of"), [(1, 60), (3, 150), (20, 400)])
def test_with_losses_the_bound_is_close_to_the_exact_one(lost: int, of: int) -> None:
    reference, student = (per_query(["de"] * of, range(of), [0.0] * n + [1.0] * (of - n)) for n in (0, lost))
    found = recovery(student, reference, metrics=["P@1"], seed=1)["de"]["P@1"]["simultaneous_low"]
    exact = float(beta.ppf(0.05, of - lost, lost + 1))
    assert found == pytest.approx(exact, abs=0.15 * (1 - exact))


def test_a_reference_at_zero_has_no_recovery() -> None:
    languages = ["de"] * 4 + ["en"] * 4
    student = per_query(languages, range(8), [1, 1, 0, 0, 1, 0, 0, 0])
    rows = one(student, per_query(languages, range(8), [0] * 4 + [1] * 4))
    assert rows["de"] == UNKNOWN
    assert rows["worst"]["language"] == "en" and rows["worst"]["value"] == 0.25
    assert rows["macro"]["value"] == pytest.approx((0.5 + 0.25) / (0 + 1))
    nothing = one(per_query(languages, range(8), [0] * 8), per_query(languages, range(8), [0] * 8))
    assert nothing["macro"] == nothing["micro"] == UNKNOWN and nothing["worst"]["value"] is None


def test_a_bound_that_is_infinite_is_not_a_number() -> None:
    """The reference finds one of four: every third resample lacks it, while the student is right everywhere."""
    found = one(per_query(["de"] * 4, range(4), [1] * 4), per_query(["de"] * 4, range(4), [1, 0, 0, 0]))["de"]
    assert found["value"] == 4 and found["low"] is not None and found["high"] is None


def test_a_language_with_one_group_has_no_interval() -> None:
    languages, groups = ["de"] * 20 + ["la"] * 3, [*range(20), 7, 7, 7]
    student = per_query(languages, groups, [1, 0] * 10 + [1, 0, 0])
    reference = per_query(languages, groups, [1] * 23)
    rows = one(student, reference)
    assert rows["la"] == {"value": pytest.approx(1 / 3), "low": None, "high": None}
    assert rows["worst"] == {"value": pytest.approx(1 / 3), "low": None, "high": None, "language": "la"}
    assert rows["de"]["low"] < rows["de"]["high"]
    assert rows["macro"]["low"] < rows["macro"]["high"]


def test_one_query() -> None:
    rows = one(per_query(["de"], [0], [0.5]), per_query(["de"], [0], [1]))
    for row in ("de", "macro", "micro"):
        assert rows[row] == {"value": 0.5, "low": None, "high": None}


# ------------------------------------------------------------------------------------ paired differences


def test_paired_difference_is_macro_and_paired() -> None:
    languages = ["de"] * 100 + ["en"] * 150
    before = np.random.default_rng(0).integers(0, 2, size=250) / 2
    after = before.copy()
    after[:20] += 0.5  # 20 of 100 in German: .1; none in English: 0
    a, b = per_query(languages, range(250), after.tolist()), per_query(languages, range(250), before.tolist())
    gain = paired_difference(a, b, "nDCG@10", resamples=500)
    assert gain["difference"] == pytest.approx(0.05) and gain["verdict"] == "gain"
    assert 0 < gain["low"] < 0.05 < gain["high"] < 0.1  # unpaired noise would be .06 wide on either side
    loss = paired_difference(b, a, "nDCG@10", resamples=500)
    assert loss["verdict"] == "loss" and loss["difference"] == pytest.approx(-0.05)
    assert paired_difference(a, b, "P@1", resamples=500)["verdict"] == "gain"


def test_a_small_difference_is_undecided() -> None:
    a = per_query(["de"] * 100, range(100), [1.0] * 49 + [0.0] * 49 + [1.0] * 2)
    b = per_query(["de"] * 100, range(100), [1.0] * 50 + [0.0] * 50)
    result = paired_difference(a, b, "P@1")
    assert result["difference"] == pytest.approx(0.01) and result["verdict"] == "undecided"
    assert result["low"] < 0 < result["high"]


def test_no_bound_says_what_no_metric_in_0_to_1_can_be() -> None:
    """Two groups in which the student finds all: one more would be found as well, and no more than that."""
    names, groups = ["de"] * 4, [0, 0, 1, 1]
    all_found, half = per_query(names, groups, [1.0] * 4), per_query(names, groups, [1.0, 0.0] * 2)
    kept = recovery(all_found, half, resamples=500)["macro"]["P@1"]
    assert kept["low"] >= 0 and kept["value"] == kept["high"] == 2
    for a, b in ((all_found, per_query(names, groups, [0.0] * 4)), (half, all_found), (all_found, half)):
        for first, second in ((a, b), (b, a)):
            told = paired_difference(first, second, "P@1", resamples=500)
            assert -1 <= told["low"] <= told["difference"] <= told["high"] <= 1
    nothing = paired_difference(per_query(names, groups, [0.0] * 4), all_found, "P@1", resamples=500)
    assert nothing["low"] == nothing["difference"] == -1 < nothing["high"]


def test_one_group_decides_nothing() -> None:
    result = paired_difference(per_query(["de"], [0], [1]), per_query(["de"], [0], [0]), "P@1")
    assert result == {"difference": 1.0, "low": None, "high": None, "verdict": "undecided"}


# ----------------------------------------------------------------------------------------- what is refused


def test_no_queries_are_refused() -> None:
    none = per_query([], [], [])
    with pytest.raises(InputError, match="no queries to resample"):
        recovery(none, none, resamples=10)


def test_different_queries_are_refused_by_count_and_first_difference() -> None:
    full = per_query(["de"] * 3, range(3), [1, 1, 1])
    short = per_query(["de"] * 2, range(2), [1, 1])
    with pytest.raises(InputError, match="3 and 2 queries.*query 3: 'q2' and nothing"):
        paired_difference(full, short, "P@1")
    swapped = replace(full, ids=["q0", "q2", "q1"])
    with pytest.raises(InputError, match="query 2: 'q2' and 'q1'"):
        recovery(swapped, full)
    regrouped = replace(full, groups=["0", "0", "2"])
    with pytest.raises(InputError, match=r"'q1' has language and group \('de', '0'\) and \('de', '1'\)"):
        recovery(regrouped, full)
    with pytest.raises(InputError) as caught:
        resample({"a": full, "b": short, "c": swapped}, metrics=["P@1"], resamples=10, seed=0)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("name", ["macro", "all", "all languages", "worst", "micro", "weighted"])
def test_a_language_named_like_a_summary_is_refused(name: str) -> None:
    evaluated = per_query(["de", name], range(2), [1, 1])
    for call in (lambda: quality(evaluated), lambda: recovery(evaluated, evaluated, resamples=10)):
        with pytest.raises(InputError, match=name):
            call()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0])
def test_a_metric_or_weight_that_is_not_a_number_is_refused_by_system_and_query(wrong: float) -> None:
    whole = per_query(["de"] * 3, range(3), [1, 0, 1])
    broken = per_query(["de"] * 3, range(3), {"P@1": [1, 0, 1], "nDCG@10": [1, wrong, wrong]})
    with pytest.raises(InputError, match=r"student: nDCG@10 is not .*\n.*at query 'q1' \(2 of 3 queries\)"):
        recovery(broken, whole, metrics=["P@1", "nDCG@10"], resamples=10)
    assert recovery(broken, whole, metrics=["P@1"], resamples=10)["de"]["P@1"]["value"] == 1, "nobody asks for nDCG"
    heavy = [replace(system, weights=np.array([1, wrong, 1])) for system in (whole, whole)]
    with pytest.raises(InputError, match="weight is not a number"):
        recovery(*heavy, metrics=["P@1"], resamples=10)


# ------------------------------------------------------------------------------------------ speed and memory


def many(queries: int, languages: int) -> tuple[PerQuery, PerQuery]:
    random = np.random.default_rng(0)
    names = [f"l{i % languages}" for i in range(queries)]
    columns = [{m: random.random(queries).round(2).tolist() for m in METRICS} for _ in range(2)]
    student, reference = (per_query(names, range(queries), column) for column in columns)
    return student, reference


def test_memory_is_bounded() -> None:
    """200 resamples of 50,000 groups are 80 MB of counts; they are never all there."""
    student, reference = many(50_000, 8)
    resample({"a": student}, metrics=["P@1"], resamples=2, seed=0)
    tracemalloc.start()
    try:
        resample({"a": student, "b": reference}, metrics=["P@1"], resamples=200, seed=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50e6


@pytest.mark.slow
def test_fifty_thousand_queries_take_under_five_seconds() -> None:
    student, reference = many(50_000, 8)
    started = time.perf_counter()
    recovery(student, reference, resamples=10_000)
    assert time.perf_counter() - started < 5
