"""The gap ledger: its steps, that they add up, and what is left out."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from builders.evaluations import per_query

from harness.evaluation.ledger import BRANCHES, CHAIN, ledger
from harness.evaluation.per_query import PerQuery
from harness.evaluation.report import evidence, plots
from harness.evaluation.report.view import View
from harness.evaluation.slices import Slice, cut_up
from harness.evaluation.statistics import resample

GROUPS = 60
STEPS = ["cut", "align", "refine", "quantise", "approximate index"]


def chain(without: tuple[str, ...] = ()) -> dict[str, PerQuery]:
    """Every system of the chain (and one that is no part of it), with metrics of random numbers."""
    random = np.random.default_rng(8)
    names = ["de"] * GROUPS + ["en"] * GROUPS + ["fr"] * 20
    groups = [*range(GROUPS), *range(GROUPS), *range(20)]
    return {
        name: per_query(names, groups, {"P@1": random.integers(0, 2, len(names)), "nDCG@10": random.random(len(names))})
        for name in (*CHAIN, *BRANCHES, "teacher-base") if name not in without
    }  # fmt: skip


def rows(
    systems: dict[str, PerQuery], slices: dict[str, list[str]] | None = None, exported: str = "student-refined"
) -> list[dict[str, Any]]:
    return rows_of(systems, ["P@1", "nDCG@10"], slices or {}, exported)


def rows_of(
    systems: dict[str, PerQuery], metrics: list[str], slices: dict[str, list[str]], exported: str
) -> list[dict[str, Any]]:
    cuts = {name: Slice(values, sorted(set(values)), "") for name, values in slices.items()}
    draw = partial(resample, metrics=metrics, resamples=500, seed=2)
    sliced = draw({name: cut_up(system, cuts, metrics) for name, system in systems.items()}) if cuts else None
    return ledger(draw(systems), sliced, set_name="test", metrics=metrics, exported=exported, confidence=0.95)


HALVES = {"length": ["short", "long"] * (GROUPS + 10), "seen": ["no"] * (2 * GROUPS) + ["yes"] * 20}


def test_the_contract() -> None:
    found = rows(chain(), HALVES)
    assert list(dict.fromkeys(row["step"] for row in found)) == STEPS
    assert {row["scope"] for row in found} == {
        "macro", "de", "en", "fr", "length=short", "length=long", "seen=no", "seen=yes"
    }  # fmt: skip
    assert len(found) == 5 * 2 * 8
    assert set(found[0]) == {
        "step", "systems", "set", "metric", "scope", "before", "after", "difference", "low", "high", "verdict",
        "queries",
    }  # fmt: skip
    assert found[0]["systems"] == ["student-untrained", "teacher"] and found[0]["set"] == "test"
    counts = {row["scope"]: row["queries"] for row in found}
    assert counts["macro"] == 2 * GROUPS + 20 and counts["fr"] == counts["seen=yes"] == 20
    assert all(row["low"] <= row["difference"] <= row["high"] for row in found)


def test_the_steps_add_up_to_the_whole_gap_in_every_scope() -> None:
    systems = chain()
    found = rows(systems, HALVES)
    for metric in ("P@1", "nDCG@10"):
        for scope in {row["scope"] for row in found}:
            steps = [row for row in found
                     if row["metric"] == metric and row["scope"] == scope and "branch" not in row]  # fmt: skip
            assert len(steps) == 3
            for step, following in zip(steps, steps[1:], strict=False):
                assert step["after"] == following["before"]
            total = math.fsum(step["difference"] for step in steps)
            assert total == pytest.approx(steps[-1]["after"] - steps[0]["before"], abs=1e-14)
    first, last = (systems[name].metrics["P@1"] for name in ("teacher", "student-refined"))
    languages = np.array(systems["teacher"].languages)
    whole = np.mean([np.mean((last - first)[languages == name]) for name in ("de", "en", "fr")])
    found = [row for row in found if "branch" not in row]
    steps = [row["difference"] for row in found if row["metric"] == "P@1" and row["scope"] == "macro"]
    assert math.fsum(steps) == pytest.approx(whole, abs=1e-14)
    long = [row["difference"] for row in found if row["metric"] == "P@1" and row["scope"] == "length=long"]
    assert math.fsum(long) == pytest.approx(np.mean((last - first)[1::2]), abs=1e-14)


def test_a_step_that_was_not_evaluated_is_skipped_and_its_neighbours_are_joined() -> None:
    found = rows(chain(without=("student-aligned", "student-int8")))
    macro = [row for row in found if row["metric"] == "P@1" and row["scope"] == "macro"]
    assert [(row["step"], row["systems"]) for row in macro] == [
        ("cut", ["student-untrained", "teacher"]),
        ("align + refine", ["student-refined", "student-untrained"]),
        ("approximate index", ["student-ann", "student-refined"]),
    ]
    for systems, steps in (
        (["teacher", "student-aligned", "student-refined"], ["cut + align", "refine"]),
        (["teacher", "student-refined", "student-ann"], ["cut + align + refine", "approximate index"]),
        (["teacher", "student-aligned", "student-int8"], ["cut + align", "refine + quantise"]),
        (["teacher", "student-int8"], ["cut + align + refine + quantise"]),
    ):
        joined = rows({name: system for name, system in chain().items() if name in systems})
        assert list(dict.fromkeys(row["step"] for row in joined)) == steps, "a joined step bears the name of all"
        view = View({"quality": {name: {"test": {}} for name in systems}, "ledger": joined, "reference": "teacher",
                     "sets": {"test": {}}})  # fmt: skip
        grid = evidence.ledger(view)
        assert grid is not None and grid.header == ["scope", *steps] and "was not evaluated" in grid.note
        for width in (328, 960):
            drawn = plots.ledger(view, width) or ""
            labels = " ".join(re.findall(r">([^<>]+)</text>", drawn)).replace("approx. index", "approximate index")
            assert all(step in labels for step in steps)
    assert rows({name: system for name, system in chain().items() if name in ("teacher", "teacher-base")}) == []
    assert rows({name: system for name, system in chain().items() if name in BRANCHES}) == []
    assert rows({name: system for name, system in chain().items() if name == "teacher-base"}) == []


def test_the_int8_file_and_the_approximate_index_are_branches_of_the_exported_student() -> None:
    for exported in ("student-refined", "student-aligned"):
        found = [row for row in rows(chain(), HALVES, exported) if row["metric"] == "P@1" and row["scope"] == "macro"]
        branches = [row for row in found if row.get("branch")]
        assert [(row["step"], row["systems"]) for row in branches] == [
            ("quantise", ["student-int8", exported]), ("approximate index", ["student-ann", exported])
        ]  # fmt: skip
        assert branches == found[-2:] and found[-3]["systems"][0] == "student-refined"
        assert {row["before"] for row in branches} == {next(r["after"] for r in found if r["systems"][0] == exported)}
    missing = rows(chain(without=("student-refined",)))
    assert {row["systems"][1] for row in missing if row.get("branch")} == {"student-aligned"}


def test_the_waterfall_ends_at_the_student_and_branches_start_at_its_level() -> None:
    found = rows(chain())
    view = View({"quality": {name: {"test": {"macro": {"P@1": 0.5}}} for name in chain()}, "ledger": found})
    picture = plots.ledger(view, 960)
    assert picture is not None
    steps = [row for row in found if row["metric"] == "P@1" and row["scope"] == "macro"]
    rectangles = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"', picture)
    assert len(rectangles) == len(steps) == 5
    heights = [float(y) for _, y, _ in rectangles]
    gaps = np.diff(heights)
    assert gaps[2] == pytest.approx(2 * gaps[0]), "the student's own row stands before the branches"
    levels = [[float(x), float(x) + float(width)] for x, _, width in rectangles]
    refined = min(((a, b) for a in levels[2] for b in levels[3]), key=lambda pair: abs(pair[0] - pair[1]))
    assert refined[0] == pytest.approx(refined[1], abs=1.6)
    assert min(abs(edge - refined[0]) for edge in levels[4]) < 1.6, "not where the other branch ended"
    assert f"{100 * steps[2]['after'] / steps[0]['before']:.1f} % of the first" in picture
    assert "student-refined" in picture and "student-ann<" not in picture
    told = evidence.ledger(view)
    assert told is not None and "quantise, approximate index: beside student-refined; no step of the chain" in told.note


def test_what_a_step_won_or_lost_is_told_per_language_and_slice() -> None:
    before = per_query(["de"] * 100 + ["en"] * 100, [*range(100)] * 2, [0.0] * 40 + [1.0] * 60 + [1.0] * 100)
    after = replace(before, metrics={"P@1": np.concatenate([np.ones(100), np.repeat([0.0, 1.0], [40, 60])])})
    systems = {"student-aligned": before, "student-refined": after}
    found = rows_of(systems, ["P@1"], {"half": ["first"] * 100 + ["second"] * 100, "few": ["yes"] * 20 + ["no"] * 180},
                    "student-refined")  # fmt: skip
    verdicts = {row["scope"]: row["verdict"] for row in found}
    assert verdicts == {
        "macro": "undecided", "de": "gain", "en": "loss", "half=first": "gain", "half=second": "loss",
        "few=yes": "undecided", "few=no": "loss",
    }  # fmt: skip
    assert {row["scope"]: row["difference"] for row in found}["few=yes"] == 1, "of 20 groups nothing is claimed"
