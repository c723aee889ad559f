"""How often intervals, bounds and claims are wrong, and what the bootstrap costs.

    python benchmarks/intervals.py                        # both, some four minutes on one core
    python benchmarks/intervals.py --only speed           # 50,000 queries in 8 languages, 10,000 resamples
    python benchmarks/intervals.py --only coverage --data-sets 300

Coverage: data sets are made up, of which the true recovery is known: a reference that finds half of all groups (the
same in all languages), and a student that keeps a share of its hits, half of them jointly in all languages, and finds
2 % of what the reference misses. Each data set is bootstrapped (1,000 resamples), and it is counted how often the truth
lies inside. A plain percentile bootstrap, and the percentile interval of the lowest language, stand beside. Claims: the
student loses exactly what it is claimed not to lose, so that each "shown" is an error; flipping the signs of
student - (1 - margin) * reference group by group (a paired randomisation test) stands beside. By name: some of eight
languages lose the margin, and any of them named is an error.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance, write

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from harness.evaluation.per_query import PerQuery  # noqa: E402
from harness.evaluation.statistics import (  # noqa: E402
    ALL_LANGUAGES,
    loses_less_than,
    paired_difference_of,
    recovery,
    recovery_of,
    resample,
)

METRICS = ("P@1", "P@10", "nDCG@10", "MRR@10", "Recall@100")
LANGUAGES = 8
FOUND, WON = 0.5, 0.02
CONFIDENCE = 0.95


def per_query(languages: list[str], groups: list[str], columns: dict[str, np.ndarray]) -> PerQuery:
    """What a system answered, as far as statistics look at it."""
    count = len(languages)
    return PerQuery([f"q{i}" for i in range(count)], languages, groups, np.ones(count), [[]] * count,
                    np.zeros((count, 0), np.float32), columns)  # fmt: skip


# ------------------------------------------------------------------------------------------------------- speed


def speed(queries: int, resamples: int) -> dict[str, Any]:
    """Seconds, processor seconds and peak memory of a recovery, of all metrics, in 8 languages."""
    random, rows = np.random.default_rng(0), {}
    languages = [f"l{i % LANGUAGES}" for i in range(queries)]
    for name, size in (("a group a query", 1), ("a group in 8 languages", LANGUAGES)):
        groups = [str(i // size) for i in range(queries)]
        pair = [per_query(languages, groups, {metric: random.random(queries).round(2) for metric in METRICS})
                for _ in range(2)]  # fmt: skip
        weights = random.pareto(2, queries) + 1
        for kind, systems in (("", pair), (", weights", [replace(system, weights=weights) for system in pair])):
            started, used = time.perf_counter(), time.process_time()
            recovery(*systems, metrics=METRICS, resamples=resamples)
            rows[name + kind] = {"seconds": time.perf_counter() - started, "processor": time.process_time() - used}
    return {"rows": rows, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


# ---------------------------------------------------------------------------------------------------- coverage


def data_set(
    random: np.random.Generator, groups: int, kept_L: np.ndarray, size_G: np.ndarray | int = 1
) -> tuple[PerQuery, PerQuery]:
    """(student, reference); the queries of a group and language are all answered alike."""
    found_G, joint_G, shared_G = random.random(groups) < FOUND, random.random(groups), random.random(groups) < 0.5
    luck_LG = np.where(shared_G, joint_G, random.random((len(kept_L), groups)))
    won_LG = random.random((len(kept_L), groups)) < WON
    student_LG = np.where(found_G, luck_LG < kept_L[:, None], won_LG)
    size_LG = np.broadcast_to(size_G, student_LG.shape)
    languages = np.repeat([f"l{i}" for i in range(len(kept_L))], size_LG.sum(axis=1)).tolist()
    numbers = np.repeat([str(group) for group in range(groups)] * len(kept_L), size_LG.ravel()).tolist()
    values = student_LG.ravel(), np.tile(found_G, len(kept_L))
    student, reference = (
        per_query(languages, numbers, {"P@1": np.repeat(value.astype(float), size_LG.ravel())}) for value in values
    )
    return student, reference


def coverage(groups: int, kept_L: np.ndarray, data_sets: int, resamples: int) -> dict[str, float]:
    """How often the truth lies inside: of languages, macro, and the lowest; with and without one more group."""
    random = np.random.default_rng([groups, round(1000 * kept_L.min())])
    truth_L = kept_L + (1 - FOUND) * WON / FOUND
    counted: dict[str, list[float]] = {}

    def held(name: str, inside: Any) -> None:
        counted.setdefault(name, []).append(float(np.mean(inside)))

    for number in range(data_sets):
        student, reference = data_set(random, groups, kept_L)
        samples = resample({"s": student, "r": reference}, metrics=["P@1"], resamples=resamples, seed=number)
        bare = replace(samples, more_SP=np.zeros_like(samples.more_SP))
        for kind, drawn in (("", samples), (", plain", bare)):
            rows = recovery_of(drawn, "s", "r", confidence=CONFIDENCE)
            told = [rows[name]["P@1"] for name in samples.languages]
            held(f"language{kind}", [_inside(row, truth) for row, truth in zip(told, truth_L, strict=True)])
            held(f"macro{kind}", _inside(rows["macro"]["P@1"], float(truth_L.mean())))
            held(f"worst{kind}", (rows["worst"]["P@1"]["low"] or 0.0) <= truth_L.min())
            lows = [row["simultaneous_low"] or 0.0 for row in told]
            held(f"all bounds{kind}", all(low <= truth for low, truth in zip(lows, truth_L, strict=True)))
        lowest_S = _lowest(samples)
        low, high = np.nanquantile(lowest_S, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        held("percentiles of the lowest", low <= truth_L.min() <= high)
    return {name: float(np.mean(values)) for name, values in counted.items()}


def _inside(row: dict[str, Any], truth: float) -> bool:
    low, high = (-np.inf if row["low"] is None else row["low"]), (np.inf if row["high"] is None else row["high"])
    return bool(low <= truth <= high)


def _lowest(samples: Any) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nanmin(samples.means("s", "P@1") / samples.means("r", "P@1"), axis=1)[1:]


# ------------------------------------------------------------------------------------------------------ claims


def errors(groups: int, margin: float, sizes: str, data_sets: int, resamples: int) -> dict[str, float]:
    """How often "loses less than the margin" is shown of a student that loses the margin; and gains out of nothing.

    Args:
        sizes: of groups: "1", or "uneven" for a geometric distribution of mean 3.
    """
    random = np.random.default_rng([groups, round(1000 * margin)])
    kept_L = np.array([1 - margin - (1 - FOUND) * WON / FOUND])
    counted: dict[str, list[bool]] = {"shown": [], "by flipping signs": [], "gain or loss": []}
    for number in range(data_sets):
        size_G = random.geometric(1 / 3, groups) if sizes == "uneven" else 1
        student, reference = data_set(random, groups, kept_L, size_G)
        group_Q = np.unique(student.groups, return_inverse=True)[1]
        samples = resample({"s": student, "r": reference}, metrics=["P@1"], resamples=resamples, seed=number)
        if reference.metrics["P@1"].any():
            told = loses_less_than(samples, "s", "r", "P@1", margin=margin, confidence=CONFIDENCE)
            counted["shown"].append(told[0]["verdict"] == "shown")
            d_G = np.bincount(group_Q, student.metrics["P@1"] - (1 - margin) * reference.metrics["P@1"])
            sign_RG = 2.0 * np.random.default_rng(number).integers(0, 2, size=(resamples, groups)) - 1
            p = (1 + np.sum(sign_RG @ d_G >= d_G.sum() - 1e-9)) / (1 + resamples)
            counted["by flipping signs"].append(bool(p <= 1 - CONFIDENCE))
        swapped_Q = (random.random(groups) < 0.5)[group_Q]  # no difference between the two: each group's by chance
        one, two = student.metrics["P@1"], reference.metrics["P@1"]
        sides = {"a": np.where(swapped_Q, one, two), "b": np.where(swapped_Q, two, one)}
        equal = {name: replace(student, metrics={"P@1": column}) for name, column in sides.items()}
        drawn = resample(equal, metrics=["P@1"], resamples=resamples, seed=number)
        verdict = paired_difference_of(drawn, "a", "b", "P@1", confidence=CONFIDENCE)["verdict"]
        counted["gain or loss"].append(verdict != "undecided")
    return {name: float(np.mean(values)) for name, values in counted.items()}


def names(groups: int, losing: int, margin: float, data_sets: int, resamples: int) -> dict[str, float]:
    """Of 8 languages so many lose the margin and the others a tenth of it.

    Returns:
        How often any of the former is named wrongly, and all languages at once; the share of the latter that is named.
    """
    random = np.random.default_rng([groups, losing])
    lost_L = np.where(np.arange(LANGUAGES) < losing, margin, margin / 10)
    kept_L = 1 - lost_L - (1 - FOUND) * WON / FOUND
    counted: dict[str, list[float]] = {"any named wrongly": [], "all at once": [], "named rightly": []}
    for number in range(data_sets):
        student, reference = data_set(random, groups, kept_L)
        samples = resample({"s": student, "r": reference}, metrics=["P@1"], resamples=resamples, seed=number)
        told = loses_less_than(samples, "s", "r", "P@1", margin=margin, confidence=CONFIDENCE)
        shown = {row["scope"]: row["verdict"] == "shown" for row in told}
        named = [shown[f"l{place}"] for place in range(LANGUAGES)]
        counted["any named wrongly"].append(any(named[:losing]))
        counted["all at once"].append(shown[ALL_LANGUAGES])
        counted["named rightly"] += named[losing:]
    return {name: float(np.mean(values)) if values else float("nan") for name, values in counted.items()}


# ------------------------------------------------------------------------------------------------------- tables


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def speed_table(told: dict[str, Any]) -> str:
    """Of ``speed``."""
    rows = [[name, f"{row['seconds']:.2f}", f"{row['processor']:.2f}"] for name, row in told["rows"].items()]
    peak = f"Peak memory of the process, with the data of the four: {told['peak_bytes'] / 2**20:,.0f} MiB."
    return table(["groups", "seconds", "of processor"], rows) + f"\n\n{peak}"


def coverage_table(told: list[dict[str, Any]]) -> str:
    """Of ``coverage``."""
    names = [name for name in told[0] if name not in ("groups", "kept")]
    rows = [[str(row["groups"]), row["kept"], *(f"{row[name]:.3f}" for name in names)] for row in told]
    return table(["groups", "kept", *names], rows)


def error_table(told: list[dict[str, Any]], given: tuple[str, ...] = ("groups", "size", "margin")) -> str:
    """Of ``errors`` or ``names``."""
    others = [name for name in told[0] if name not in given]
    shown = [[f"{row[name]:.3f}".replace("nan", "-") for name in others] for row in told]
    rows = [[*(str(row[name]) for name in given), *cells] for row, cells in zip(told, shown, strict=True)]
    return table([*given, *others], rows)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["speed", "coverage"])
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--resamples", type=int, default=10_000, help="of the timing; coverage takes 1,000")
    parser.add_argument("--data-sets", type=int, default=400, help="made up for each row of the coverage")
    parser.add_argument("--groups", type=int, nargs="+", default=[30, 100, 300, 1000])
    parser.add_argument("--output", type=Path, default=Path("outputs/intervals.json"))
    given = parser.parse_args()
    told: dict[str, Any] = {"provenance": provenance(), "settings": {**vars(given), "output": str(given.output)}}
    if given.only != "coverage":
        told["speed"] = speed(given.queries, given.resamples)
        print(f"{given.queries:,} queries, {given.resamples:,} resamples\n\n{speed_table(told['speed'])}\n", flush=True)
    if given.only != "speed":
        shares = {"0.98": np.full(LANGUAGES, 0.96), "0.92": np.full(LANGUAGES, 0.90),
                  "0.92 to 1": np.linspace(0.90, 0.98, LANGUAGES)}  # fmt: skip
        told["coverage"] = [
            {"groups": groups, "kept": name, **coverage(groups, kept_L, given.data_sets, 1_000)}
            for groups in given.groups for name, kept_L in shares.items()
        ]  # fmt: skip
        print(f"nominal {CONFIDENCE}\n\n{coverage_table(told['coverage'])}\n", flush=True)
        told["errors"] = [
            {"groups": groups, "size": size, "margin": margin, **errors(groups, margin, size, given.data_sets, 1_000)}
            for groups in given.groups for size in ("1", "uneven") for margin in (0.02, 0.05)
        ]  # fmt: skip
        print(f"at most {1 - CONFIDENCE:.2f}\n\n{error_table(told['errors'])}\n", flush=True)
        told["names"] = [
            {"groups": groups, "losing": losing, **names(groups, losing, 0.05, given.data_sets, 1_000)}
            for groups in given.groups for losing in (8, 4, 1)
        ]  # fmt: skip
        print(f"languages by name, margin 0.05\n\n{error_table(told['names'], ('groups', 'losing'))}\n", flush=True)
    write(given.output, told)
    print(json.dumps(told["provenance"]))


if __name__ == "__main__":
    main()
