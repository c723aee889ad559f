"""How often "languages are not treated alike" is said where they are, and where they are not; how good the spread is.

    python benchmarks/alike.py                      # some eight minutes on one core
    python benchmarks/alike.py --data-sets 100

Data sets are made up, of which the truth is known: six languages, a reference that finds a share of each one's queries,
and a student that keeps a share of that; half of what happens to a query is its group's doing. Groups hold every
language (``parallel``), or one (``apart``), or every language and up to twenty queries of each (``uneven``). Counted
are permutation tests with p <= 0.05: of what is lost (points) and of the share that is kept (recovery), and the rank
test that the set calls for (Friedman's, or that of Kruskal and Wallis), and how often the interval of the standard
deviation of recovery holds the true one. Then the time of all of it for three students over 50,000 queries.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance, write

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from harness.evaluation.alike import alike  # noqa: E402
from harness.evaluation.per_query import PerQuery  # noqa: E402

LANGUAGES = 6
LEVEL = 0.05
EQUAL, RISING = np.full(LANGUAGES, 0.6), np.array([0.25, 0.35, 0.45, 0.6, 0.75, 0.9])
KEPT = {"all 0.90": np.full(LANGUAGES, 0.9), "0.87 to 0.93": np.linspace(0.87, 0.93, LANGUAGES),
        "0.80 to 1.00": np.linspace(0.8, 1.0, LANGUAGES)}  # fmt: skip
DESIGNS = ("parallel", "apart", "uneven")


def data_set(
    random: np.random.Generator, design: str, groups: int, found_L: np.ndarray, kept_L: np.ndarray
) -> dict[str, PerQuery]:
    """The reference and a student over one set; ``groups`` groups hold each language."""
    count = np.minimum(random.zipf(2.0, groups), 20) if design == "uneven" else np.ones(groups, dtype=int)
    group_Q = np.tile(np.repeat(np.arange(groups), count), LANGUAGES)
    language_Q = np.repeat(np.arange(LANGUAGES), count.sum())
    if design == "apart":
        group_Q = group_Q * LANGUAGES + language_Q
    joint_2G = random.random((2, group_Q.max() + 1))
    own_2Q = random.random((2, len(group_Q)))
    luck_2Q = np.where(random.random((2, len(group_Q))) < 0.5, joint_2G[:, group_Q], own_2Q)
    found_Q = luck_2Q[0] < found_L[language_Q]
    kept_Q = found_Q & (luck_2Q[1] < kept_L[language_Q])
    languages, names = [f"l{i}" for i in language_Q], [str(i) for i in group_Q]
    return {name: per_query(languages, names, value.astype(float)) for name, value in
            (("reference", found_Q), ("student", kept_Q))}  # fmt: skip


def per_query(languages: list[str], groups: list[str], value_Q: np.ndarray) -> PerQuery:
    """What a system answered, as far as statistics look at it."""
    count = len(languages)
    return PerQuery([f"q{i}" for i in range(count)], languages, groups, np.ones(count), [[]] * count,
                    np.zeros((count, 0), np.float32), {"P@1": value_Q})  # fmt: skip


def rates(design: str, groups: int, found_L: np.ndarray, kept_L: np.ndarray, data_sets: int) -> dict[str, float]:
    """How often each test rejects, and how often the interval holds the truth."""
    counted: dict[str, list[float]] = {"points": [], "recovery": [], "ranks": [], "interval": [], "estimate": []}
    true = float(np.std(kept_L, ddof=1))
    for number in range(data_sets):
        random = np.random.default_rng([number, groups, DESIGNS.index(design)])
        systems = data_set(random, design, groups, found_L, kept_L)
        told = alike(systems, "reference", {}, ["P@1"], 500, 0.95, number, permutations=199)["student"]["P@1"]
        ranks, spread = told["friedman"] or told["kruskal"], told["sd_recovery"]
        counted["points"].append(told["permutation"]["p"] <= LEVEL)
        counted["recovery"].append(told["permutation_of_recovery"]["p"] <= LEVEL)
        counted["ranks"].append(ranks is not None and ranks["p"] <= LEVEL)
        counted["interval"].append(spread["low"] - 1e-9 <= true <= spread["high"] + 1e-9)
        counted["estimate"].append(spread["value"])
    return {**{name: float(np.mean(values)) for name, values in counted.items()}, "true": true}


def seconds(queries: int) -> dict[str, float]:
    """Processor seconds of three students over groups of ten languages, two metrics each."""
    random = np.random.default_rng(0)
    languages = [f"l{i % 10}" for i in range(queries)]
    groups = [str(i // 10) for i in range(queries)]
    systems = {}
    for name in ("reference", "one", "two", "three"):
        systems[name] = per_query(languages, groups, random.random(queries).round(1))
        systems[name].metrics["nDCG@10"] = random.random(queries)
    started, used = time.perf_counter(), time.process_time()
    told = alike(systems, "reference", {}, ["P@1", "nDCG@10"], 10_000, 0.95, 0)
    made = told["one"]["P@1"]["permutation"]["permutations"]
    return {"seconds": time.perf_counter() - started, "processor": time.process_time() - used, "permutations": made}


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table."""
    header = ["groups", "design", "reference finds", "student keeps", "points", "recovery", "ranks", "true sd",
              "mean estimate", "interval holds it"]  # fmt: skip
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        numbers = [f"{row[name]:.3f}" for name in ("points", "recovery", "ranks", "true", "estimate", "interval")]
        lines.append("| " + " | ".join([str(row["groups"]), row["design"], row["found"], row["kept"], *numbers]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-sets", type=int, default=300, help="made up for each row")
    parser.add_argument("--groups", type=int, nargs="+", default=[60, 200], help="that hold a language")
    parser.add_argument("--queries", type=int, default=50_000, help="of the timing")
    parser.add_argument("--output", type=Path, default=Path("outputs/alike.json"))
    given = parser.parse_args()
    told: dict[str, Any] = {"provenance": provenance(), "settings": {**vars(given), "output": str(given.output)}}
    rows = told["rows"] = []
    for groups in given.groups:
        for design in DESIGNS:
            for found, found_L in (("0.6 in all", EQUAL), ("0.25 to 0.9", RISING)):
                for kept, kept_L in KEPT.items():
                    row = rates(design, groups, found_L, kept_L, given.data_sets)
                    rows.append({"groups": groups, "design": design, "found": found, "kept": kept, **row})
    told["time"] = seconds(given.queries)
    print(f"{given.data_sets} data sets a row\n\n{table(rows)}\n")
    print(f"{given.queries:,} queries, three students: {told['time']['processor']:.1f} s of processor time, "
          f"{told['time']['permutations']:,} permutations")  # fmt: skip
    write(given.output, told)


if __name__ == "__main__":
    main()
