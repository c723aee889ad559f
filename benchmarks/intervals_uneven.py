"""How often bounds hold, and how wide they are, where groups are uneven and their queries are not answered alike.

    python benchmarks/intervals_uneven.py RUN --pairs student-refined/teacher student-int8/student-refined
    python benchmarks/intervals_uneven.py                      # made-up groups only

RUN's answers are taken for the whole truth: groups are drawn from its evaluation set with replacement, so many that the
set counts as a sample, and it is counted how often the recovery over the whole set lies inside. Made-up groups:
families (15 % of groups have 49 queries, the others 9), groups of 8, queries alone beside a few groups of 50, sizes by
Zipf's law, and queries alone that weigh unevenly (the row "weighted"); of the reference's hits the student loses whole
groups, single hits, or both, and gains elsewhere. Three ways stand side by side: plain percentiles of the bootstrap;
bounds that always allow for one more whole group; bounds that allow for the group of the next lost hit, as
``harness.evaluation.statistics`` does. Width: of the two-sided 95 % interval, as a ratio to the plain one, the median
over data sets.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from intervals import CONFIDENCE, per_query, table  # noqa: E402
from provenance import provenance, write  # noqa: E402

from harness.evaluation.per_query import PerQuery  # noqa: E402
from harness.evaluation.statistics import lower_bound, resample  # noqa: E402
from harness.evaluation.statistics.intervals import interval  # noqa: E402
from harness.evaluation.statistics.samples import Samples, divide  # noqa: E402

WAYS = ("plain", "a whole group", "next lost hit")
Pair = tuple[PerQuery, PerQuery]  # student, reference


@dataclass(frozen=True)
class Population:
    """What data sets are drawn from, and each scope's true recovery."""

    name: str
    metric: str
    draw: Callable[[np.random.Generator, int], Pair]
    truth_P: np.ndarray


# --------------------------------------------------------------------------------------------------- populations


def of_run(run: Path, student: str, reference: str, metric: str, data_set: str) -> Population:
    """A run's evaluation set, drawn group by group."""
    pair = [PerQuery.load(run / "evaluations" / name / data_set, hits=False) for name in (student, reference)]
    names, group_Q = np.unique(pair[0].groups, return_inverse=True)
    order_Q = np.argsort(group_Q, kind="stable")
    rows_G = np.split(order_Q, np.cumsum(np.bincount(group_Q))[:-1])

    def draw(random: np.random.Generator, groups: int) -> Pair:
        picked = [rows_G[number] for number in random.integers(0, len(names), groups)]
        row_Q = np.concatenate(picked)
        group = [str(number) for number, rows in enumerate(picked) for _ in rows]
        language = [pair[0].languages[row] for row in row_Q]
        one, other = (per_query(language, group, {metric: own.metrics[metric][row_Q]}) for own in pair)
        return one, other

    samples = resample({"s": pair[0], "r": pair[1]}, metrics=[metric], resamples=1, seed=0)
    truth_P = (samples.all_means("s", metric) / samples.all_means("r", metric))[0]
    return Population(f"{student} / {reference}", metric, draw, truth_P)


SIZES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "families": lambda random, groups: np.where(random.random(groups) < 0.15, 49, 9),
    "groups of 8": lambda random, groups: np.full(groups, 8),
    "1, some 50": lambda random, groups: np.where(random.random(groups) < 0.04, 50, 1),
    "Zipf": lambda random, groups: np.minimum(random.zipf(1.6, groups), 100),
    "weights": lambda random, groups: np.ones(groups, dtype=np.int64),
}


def made_up(sizes: str, whole: float, single: float, won: float) -> Population:
    """One language; the reference finds 9 of 10 hits in one half of the groups, and 1 of 10 in the other."""

    def hits(random: np.random.Generator, groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        size_G = SIZES[sizes](random, groups)
        group_Q = np.repeat(np.arange(groups), size_G)
        easy_G, lost_G = random.random(groups) < 0.5, random.random(groups) < whole
        found_Q = random.random(len(group_Q)) < np.where(easy_G, 0.9, 0.1)[group_Q]
        kept_Q = ~(lost_G[group_Q] | (random.random(len(group_Q)) < single))
        won_Q = random.random(len(group_Q)) < won
        return group_Q, np.where(found_Q, kept_Q, won_Q), found_Q

    def draw(random: np.random.Generator, groups: int) -> Pair:
        group_Q, *columns = hits(random, groups)
        names, languages = group_Q.astype(str).tolist(), ["xx"] * len(group_Q)
        one, other = (per_query(languages, names, {"P@1": column.astype(float)}) for column in columns)
        if sizes == "weights":
            weights = random.pareto(1.2, len(names)) + 1
            return replace(one, weights=weights), replace(other, weights=weights)
        return one, other

    _, kept_Q, found_Q = hits(np.random.default_rng(0), 300_000)
    lost = " and ".join(f"{100 * share:g} % {what}" for share, what in ((whole, "whole"), (single, "single")) if share)
    truth_P = np.full(4 if sizes == "weights" else 3, kept_Q.sum() / found_Q.sum())
    return Population(f"{sizes}: {lost}", "P@1", draw, truth_P)


def populations(options: argparse.Namespace) -> Iterator[Population]:
    """The run's pairs, then what is made up."""
    for pair in options.pairs if options.run else ():
        student, reference = pair.split("/")
        for metric in options.metrics:
            yield of_run(options.run, student, reference, metric, options.set)
    for sizes in ("families", "groups of 8"):
        yield made_up(sizes, 0, 0.03, 0.03)
        yield made_up(sizes, 0.01, 0, 0.01)
        yield made_up(sizes, 0.01, 0.02, 0.02)
        yield made_up(sizes, 0.005, 0.05, 0.05)
    for sizes in ("1, some 50", "Zipf"):
        yield made_up(sizes, 0.05, 0, 0.01)
        yield made_up(sizes, 0.02, 0.03, 0.02)
    yield made_up("weights", 0, 0.05, 0.01)


# ---------------------------------------------------------------------------------------------------- the counting


def bounds(samples: Samples, metric: str) -> dict[str, list[tuple[float, float, float]]]:
    """Way -> of each scope (low, high, one-sided low)."""
    student_SP, reference_SP = samples.all_means("s", metric), samples.all_means("r", metric)
    lost_P, won_P = samples.lost_group("s", "r", metric), samples.lost_group("r", "s", metric)
    whole_P = np.maximum(*(samples.lost_group(name, name, metric) for name in ("s", "r")))
    added = {"plain": (0 * lost_P, 0 * won_P), "a whole group": (whole_P, whole_P), "next lost hit": (lost_P, won_P)}
    told = {}
    for way, (less_P, more_P) in added.items():
        low_SP = divide(student_SP, reference_SP + samples.more_SP * less_P)
        high_SP = divide(np.minimum(student_SP + samples.more_SP * more_P, 1), reference_SP)
        told[way] = [_bounds(low_S, high_S) for low_S, high_S in zip(low_SP.T, high_SP.T, strict=True)]
    return told


def _bounds(low_S: np.ndarray, high_S: np.ndarray) -> tuple[float, float, float]:
    both = interval(low_S, high_S, CONFIDENCE, known=True)
    least = lower_bound(low_S, CONFIDENCE)
    return (
        -np.inf if both["low"] is None else both["low"],
        np.inf if both["high"] is None else both["high"],
        -np.inf if least is None else least,
    )


def counted(population: Population, groups: int, data_sets: int) -> list[dict[str, Any]]:
    """How often the truth lies inside, and the widths: over the languages, and over macro."""
    told: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
    for number in range(data_sets):
        student, reference = population.draw(np.random.default_rng([groups, number]), groups)
        samples = resample({"s": student, "r": reference}, metrics=[population.metric], resamples=1_000, seed=number)
        if len(samples.scopes) != len(population.truth_P):
            continue  # a language of the population was not drawn
        for way, rows in bounds(samples, population.metric).items():
            told[way].append(np.array(rows))
    languages = len(samples.languages)
    scopes = {"macro": slice(languages, languages + 1)}
    if languages > 1:
        scopes["language"] = slice(0, languages)
    if samples.weighted_SM:
        scopes = {"weighted": slice(languages + 2, None)}
    found = []
    for scope, places in scopes.items():
        row: dict[str, Any] = {"population": population.name, "metric": population.metric, "groups": groups,
                               "scope": scope, "data_sets": len(told["plain"])}  # fmt: skip
        truth_P = population.truth_P[places]
        width = {}
        for way in WAYS:
            low_NP, high_NP, least_NP = np.moveaxis(np.array(told[way])[:, places], -1, 0)
            row[f"{way}: both sides"] = float(np.mean((low_NP <= truth_P) & (truth_P <= high_NP)))
            row[f"{way}: one-sided"] = float(np.mean(least_NP <= truth_P))
            width[way] = np.median(high_NP - low_NP, axis=0)
        for way in WAYS:
            known = bool(np.all(width["plain"]))
            row[f"{way}: width"] = float(np.mean(width[way]) / np.mean(width["plain"])) if known else None
        found.append(row)
    return found


def shown(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of what was counted."""
    header = ["student / reference, or what is lost", "metric", "groups", "scope"]
    lines = []
    for row in rows:
        cells = [row["population"], row["metric"], str(row["groups"]), row["scope"]]
        for way in WAYS:
            width = row[f"{way}: width"]
            share = f"{row[f'{way}: both sides']:.3f} / {row[f'{way}: one-sided']:.3f}"
            cells.append(share + (", -" if width is None else f", {width:.2f}"))
        lines.append(cells)
    return table([*header, *(f"{way}: both sides / one-sided, width" for way in WAYS)], lines)


def main() -> None:
    """Count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a run's folder, with evaluations")
    parser.add_argument("--pairs", nargs="+", default=["student-refined/teacher"], metavar="STUDENT/REFERENCE")
    parser.add_argument("--metrics", nargs="+", default=["P@1"])
    parser.add_argument("--set", default="test", help="the evaluation set of the run")
    parser.add_argument("--groups", type=int, nargs="+", default=[60, 150, 470])
    parser.add_argument("--data-sets", type=int, default=400)
    parser.add_argument("--output", type=Path, default=Path("outputs/intervals_uneven.json"))
    options, started = parser.parse_args(), provenance()
    rows = [row for population in populations(options) for groups in options.groups
            for row in counted(population, groups, options.data_sets)]  # fmt: skip
    print(f"nominal {CONFIDENCE}; {options.data_sets} data sets a row\n\n{shown(rows)}\n")
    write(options.output, {"provenance": started, "rows": rows})


if __name__ == "__main__":
    main()
