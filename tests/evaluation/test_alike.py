"""Are languages treated alike: the tests' rates under no effect and under one, and numbers against scipy and theory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from builders.evaluations import per_query
from scipy import stats

from harness.evaluation.alike import alike, friedman, kruskal, permutation_tests, units_of
from harness.evaluation.per_query import PerQuery
from harness.evaluation.results import compared_metrics, qualities
from harness.evaluation.variance import variance_components, variance_shares

SIMULATED = 120
LEVEL = 0.05


def simulated(
    seed: int, found: Sequence[float], kept: Sequence[float], *, parallel: bool, groups: int = 120
) -> tuple[PerQuery, PerQuery]:
    """(student, reference): in language l the reference finds ``found[l]``, of which the student keeps ``kept[l]``.

    Half of what happens to a query is its group's doing; groups hold every language, or each has one. The first
    language asks twice.
    """
    random = np.random.default_rng(seed)
    languages, names, numbers, columns = len(found), [], [], []
    for language in range(languages):
        for _ in range(2 if language == 0 else 1):
            own = random.random((2, groups)) < 0.5
            stream = np.random.default_rng([seed, 1 if parallel else 2 + language])
            common_2G, alone_2G = stream.random((2, groups)), random.random((2, groups))
            hard_G, lost_G = np.where(own, alone_2G, common_2G)
            found_G = hard_G < found[language]
            columns.append((found_G & (lost_G < kept[language]), found_G))
            names += [f"l{language}"] * groups
            numbers += [group if parallel else group * languages + language for group in range(groups)]
    student, reference = (np.concatenate(column).astype(float).tolist() for column in zip(*columns, strict=True))
    return per_query(names, numbers, student), per_query(names, numbers, reference)


def answer(student: PerQuery, reference: PerQuery, **options: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"resamples": 200, "confidence": 0.95, "seed": 3, "permutations": 99, **options}
    return alike({"teacher": reference, "student": student}, "teacher", {}, ["P@1"], **told)["student"]["P@1"]


def rejected(
    found: Sequence[float], kept: Sequence[float], *, parallel: bool, runs: int = SIMULATED
) -> dict[str, float]:
    """The share of simulated sets in which each permutation's p is at most ``LEVEL``, and the mean p."""
    p: dict[str, list[float]] = {"permutation": [], "permutation_of_recovery": []}
    for seed in range(runs):
        told = answer(*simulated(seed, found, kept, parallel=parallel), seed=seed, resamples=5)
        for name, values in p.items():
            values.append(told[name]["p"])
    rates = {name: float(np.mean(np.array(values) <= LEVEL)) for name, values in p.items()}
    return {**rates, "mean": float(np.mean(p["permutation"]))}


@pytest.mark.parametrize("parallel", [True, False])
def test_without_an_effect_the_level_is_kept(parallel: bool) -> None:
    told = rejected([0.6] * 4, [0.9] * 4, parallel=parallel)
    most = stats.binom.ppf(0.999, SIMULATED, LEVEL) / SIMULATED
    assert told["permutation"] <= most and told["permutation_of_recovery"] <= most
    assert 0.4 < told["mean"] < 0.6, "p is about uniform"


@pytest.mark.parametrize("parallel", [True, False])
def test_an_effect_is_found(parallel: bool) -> None:
    told = rejected([0.6] * 4, [0.7, 0.9, 0.95, 1.0], parallel=parallel, runs=20)
    assert told["permutation"] > 0.9 and told["permutation_of_recovery"] > 0.9


def test_a_reference_that_finds_more_in_one_language_is_no_unequal_treatment() -> None:
    """The same share of more is lost: points differ, recoveries don't."""
    told = rejected([0.2, 0.4, 0.7, 0.95], [0.85] * 4, parallel=True)
    assert told["permutation"] > 0.5
    assert told["permutation_of_recovery"] <= stats.binom.ppf(0.999, SIMULATED, LEVEL) / SIMULATED


def test_the_verdict_and_the_spread() -> None:
    unequal = answer(*simulated(1, [0.6] * 4, [0.6, 0.8, 0.95, 1.0], parallel=True, groups=400), permutations=199)
    assert unequal["verdict"] == "not alike"
    spread, true = unequal["sd_recovery"], np.std([0.6, 0.8, 0.95, 1.0], ddof=1)
    assert spread["low"] < true < spread["high"] and spread["value"] == pytest.approx(true, abs=0.05)
    equal = answer(*simulated(1, [0.6] * 4, [0.9] * 4, parallel=True, groups=400), permutations=199)
    assert equal["verdict"] == "no difference found" and equal["sd_recovery"]["low"] == 0.0
    assert answer(*simulated(2, [0.1, 0.3, 0.6, 0.95], [0.7] * 4, parallel=True, groups=400), permutations=199)[
        "verdict"] == "not alike in points"  # fmt: skip


def test_noise_alone_is_no_spread() -> None:
    """Among equal languages the recoveries found differ; what is left of that without noise is about 0."""
    raw, corrected, covered = [], [], 0
    for seed in range(40):
        student, reference = simulated(seed, [0.5] * 5, [0.85] * 5, parallel=False, groups=60)
        told = answer(student, reference, permutations=1)["sd_recovery"]
        means = [[system.metrics["P@1"][np.array(system.languages) == f"l{i}"].mean() for i in range(5)]
                 for system in (student, reference)]  # fmt: skip
        raw.append(np.var(np.divide(*means), ddof=1))
        corrected.append(told["value"] ** 2)
        covered += told["low"] == 0.0
    assert np.mean(corrected) < 0.6 * np.mean(raw) and covered >= 36


def test_a_permutation_keeps_to_the_groups() -> None:
    """Groups differ a lot and each has one language of another pair: only within a group may languages change."""
    group = np.repeat(np.arange(100), 2)
    language = np.where(group < 50, [0, 1] * 100, [2, 3] * 100)
    value = np.where(group < 50, 5.0, 0.0) + np.random.default_rng(2).normal(size=200)
    units = units_of(language, group)
    assert units.spanning == 100
    assert permutation_tests(units, value[:, None], 199, 1)[0]["p"] > LEVEL
    shifted = value + (language == 3)
    assert permutation_tests(units, shifted[:, None], 199, 1)[0]["p"] <= LEVEL


def test_no_loss_at_all_is_no_difference() -> None:
    reference = simulated(0, [0.5] * 3, [1.0] * 3, parallel=True)[1]
    told = answer(reference, reference)
    assert told["permutation"]["p"] == 1.0 and told["sd_recovery"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert told["friedman"] is None and told["variance"] is None and told["verdict"] == "no difference found"


# --------------------------------------------------------------------------------------------------- ranks


def test_friedman_and_kruskal_are_scipys() -> None:
    random = np.random.default_rng(0)
    value_GL = random.integers(0, 3, (40, 5)).astype(float)
    mine, theirs = friedman(value_GL), stats.friedmanchisquare(*value_GL.T)
    assert mine is not None and (mine["statistic"], mine["p"]) == pytest.approx((theirs.statistic, theirs.pvalue))
    language_U, value_U = random.integers(0, 4, 200), random.integers(0, 5, 200).astype(float)
    theirs = stats.kruskal(*(value_U[language_U == language] for language in range(4)))
    mine = kruskal(value_U, language_U, dependent=False)
    assert mine is not None and (mine["statistic"], mine["p"]) == pytest.approx((theirs.statistic, theirs.pvalue))
    assert friedman(np.ones((20, 3))) is None and kruskal(np.ones(9), np.arange(9) % 3, dependent=False) is None


def test_which_ranks_are_looked_at() -> None:
    parallel = answer(*simulated(0, [0.6] * 3, [0.9] * 3, parallel=True))
    assert parallel["friedman"]["groups"] == 120 and parallel["kruskal"] is None
    apart = answer(*simulated(0, [0.6] * 3, [0.9] * 3, parallel=False))
    assert apart["friedman"] is None and apart["kruskal"]["units"] == 360
    assert "independent" not in apart["kruskal"]["tests"]


# ------------------------------------------------------------------------------------------------- too little data


def test_small_languages_are_left_out_and_named() -> None:
    student, reference = simulated(0, [0.6] * 3, [0.9] * 3, parallel=False, groups=40)
    few = [row for row, name in enumerate(student.languages) if name != "l2"] + [-1, -2]
    cut = [per_query([system.languages[row] for row in few], [system.groups[row] for row in few],
                     system.metrics["P@1"][few].tolist()) for system in (student, reference)]  # fmt: skip
    told = answer(*cut)
    assert told["languages"] == ["l0", "l1"] and "l2 (2)" in told["note"] and told["permutation"] is not None
    alone = answer(*simulated(0, [0.6], [0.9], parallel=False))
    assert alone["verdict"] == "undecided" and alone["permutation"] is None and "one language" in alone["note"]
    tiny = answer(*simulated(0, [0.6] * 3, [0.9] * 3, parallel=True, groups=20))
    assert tiny["verdict"] == "undecided" and tiny["languages"] == [] and "fewer than 30 groups" in tiny["note"]


# ------------------------------------------------------------------------------------------------------ variance


def test_what_can_t_be_told_apart_is_left_out_whatever_the_order() -> None:
    random = np.random.default_rng(5)
    language, length = np.tile(np.arange(4), 150), random.integers(0, 3, 600)
    value = np.array([0.0, 2.0, 5.0])[length] + random.normal(size=600)
    factors = {"language": language, "group": np.repeat(np.arange(150), 4), "market": 3 - language,
               "script": language // 2, "length": length, "short": (length == 0).astype(int), "words": length + 7,
               "row": np.arange(600), "one": np.zeros(600, dtype=int)}  # fmt: skip
    told = variance_shares(value, factors)
    assert told is not None and set(told["slices"]) == {"short", "length"} and told["slice"] > 0.5
    assert told["left_out"] == {
        "market": "told by language", "script": "told by language", "words": "not to be told apart from length",
        "one": "one value", "row": "another value for every query",
    }  # fmt: skip
    for _ in range(4):
        order = random.permutation(list(factors)).tolist()
        assert variance_shares(value, {name: factors[name] for name in order}) == told
    alone = variance_shares(value, {name: factors[name] for name in ("language", "group", "length")})
    with_market = variance_shares(value, {name: factors[name] for name in ("language", "group", "market", "length")})
    assert alone is not None and with_market is not None
    assert {**with_market, "left_out": {}} == alone, "what is left out changes nothing"


def test_variance_components_of_balanced_data_are_those_of_the_textbook() -> None:
    """Searle et al.: sigma_a = (MSA - MSE) / n with one factor."""
    random = np.random.default_rng(1)
    level = np.repeat(np.arange(6), 20)
    value = random.normal(size=6)[level] + random.normal(size=120)
    means = value.reshape(6, 20).mean(axis=1)
    within = ((value.reshape(6, 20) - means[:, None]) ** 2).sum() / (120 - 6)
    assert variance_components(value, [level]) == pytest.approx([means.var(ddof=1) - within / 20, within])


def test_variance_components_are_right_on_average() -> None:
    found = []
    for seed in range(150):
        random = np.random.default_rng(seed)
        first, second = random.integers(0, 12, 500), random.integers(0, 15, 500) ** 2 // 15
        effects = random.normal(size=12)[first] * 0.5 + random.normal(size=20)[second] * 0.8
        parts = variance_components(effects + random.normal(size=500), [first, second])
        assert parts is not None
        found.append(parts)
    assert np.mean(found, axis=0) == pytest.approx([0.25, 0.64, 1.0], rel=0.15)


def test_a_groups_share_belongs_to_the_rest() -> None:
    random = np.random.default_rng(3)
    group = np.repeat(np.arange(100), 4)
    language, length = np.tile(np.arange(4), 100), random.integers(0, 3, 400)
    value = random.normal(size=100)[group] * 2 + np.array([0.0, 1.0, 2.0, 3.0])[language] + random.normal(size=400)
    told = variance_shares(value, {"language": language, "group": group, "length": length})
    assert told is not None and told["language"] + told["slice"] + told["rest"] == pytest.approx(1.0)
    assert 0.1 < told["language"] < 0.4 and told["slice"] < 0.05 and set(told["slices"]) == {"length"}
    same = variance_shares(value, {"language": language, "group": group, "copy": language})
    assert same is not None and same["slices"] == {}, "a slice that is the language can't be told from it"
    assert same["left_out"] == {"copy": "told by language"} and told["left_out"] == {}
    assert variance_shares(value[:50], {"language": language[:50]}) is None
    assert variance_shares(np.ones(400), {"language": language}) is None


@pytest.mark.parametrize(("measured", "compared"), [
    (["MRR@10", "judged@10", "P@1"], ["P@1"]), (["judged@10", "MRR@10", "Hit@10"], ["MRR@10"]), (["judged@10"], [])
])  # fmt: skip
def test_whatever_a_recipe_measures(measured: list[str], compared: list[str]) -> None:
    systems = dict(zip(("student", "teacher"), simulated(1, [0.6] * 2, [0.9] * 2, parallel=True), strict=True))
    for system in systems.values():
        system.metrics = dict.fromkeys(measured, system.metrics["P@1"])
    metrics = compared_metrics(qualities(systems))
    told = alike(systems, "teacher", {}, metrics, 20, 0.95, 1, permutations=9)["student"]
    assert list(told) == metrics == compared
    assert all(answers["verdict"] != "undecided" for answers in told.values())
