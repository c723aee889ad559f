"""Metrics of many deep rankings: time and memory, beside sentence-transformers' evaluator and pytrec_eval.

    python benchmarks/metrics.py                        # 50,000 queries x 1,000 hits; the others 5,000 of them

Every system is given the same rankings and judgments in a process of its own with one thread, and must find the same
numbers: of each query to 1e-9 (pytrec_eval), of all queries together to 1e-9 (sentence-transformers, which tells no
more). Ours starts from rows of documents and the judgments of the searcher; the others from ids in the dictionaries
that they ask for, 1,000 queries at a time, whose making (``convert``) is told apart from the computing. Relevant or
not, as sentence-transformers knows no grades: graded judgments are compared by the tests. Ours computes judged@10
besides, and ``harness, agreement`` overlap@100 and rbo@100 with another ranking of each query. Peak memory is
ru_maxrss.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance, write

SYSTEMS = ("harness", "harness, agreement", "pytrec_eval", "sentence-transformers")
# ours -> pytrec_eval's
NAMES = {
    "P@1": "P_1", "P@10": "P_10", "nDCG@10": "ndcg_cut_10", "MRR@1000": "recip_rank", "Recall@100": "recall_100",
    "Hit@10": "success_10", "nDCG@1000": "ndcg_cut_1000", "Recall@1000": "recall_1000",
}  # fmt: skip
DOCUMENTS = 1_000_003  # a prime
RELEVANT, JUDGED = 3, 10  # of each query's judged documents, so many are relevant
PART = 1_000

Rankings = tuple[np.ndarray, list[dict[int, float]]]


def rankings(queries: int, hits: int) -> Rankings:
    """hit_QK, and judgments: most of hits, more of the first ones; some of what was not found."""
    random = np.random.default_rng(0)
    first_Q, step_Q = (random.integers(1, DOCUMENTS, size=(queries, 1)) for _ in range(2))
    place_QJ = (hits ** random.random((queries, JUDGED)) * 1.3).astype(np.int64)  # beyond the last: not found
    hit_QK = (first_Q + step_Q * np.arange(hits)) % DOCUMENTS
    row_QJ = (first_Q + step_Q * place_QJ) % DOCUMENTS
    grades = [float(place < RELEVANT) for place in range(JUDGED)]
    # The first judgment of a place counts, so that every query keeps a relevant document.
    return hit_QK, [dict(zip(rows[::-1], grades[::-1], strict=True)) for rows in row_QJ.tolist()]


# ------------------------------------------------------------------------------------------------- in its own process


def run_harness(given: Rankings, folder: Path) -> dict[str, float]:
    from harness import metrics

    started = time.perf_counter()
    found = metrics.score(*given, [*NAMES, "judged@10"])
    seconds = time.perf_counter() - started
    np.savez(folder / "harness.npz", **found)
    return {"seconds": seconds, "convert_seconds": 0.0}


def run_agreement(given: Rankings, folder: Path) -> dict[str, float]:
    from harness import metrics

    hit_QK, _ = given
    other_QK = np.roll(hit_QK, 3, axis=1)
    started = time.perf_counter()
    metrics.overlap(hit_QK, other_QK, 100)
    metrics.rbo(hit_QK, other_QK, 100)
    return {"seconds": time.perf_counter() - started, "convert_seconds": 0.0}


def run_pytrec_eval(given: Rankings, folder: Path) -> dict[str, float]:
    import pytrec_eval

    hit_QK, judgments = given
    score_K = (-np.arange(hit_QK.shape[1], dtype=float)).tolist()
    convert = seconds = 0.0
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    for start in range(0, len(hit_QK), PART):
        started = time.perf_counter()
        qrels = {str(q): {str(row): int(grade) for row, grade in grades.items()}
                 for q, grades in enumerate(judgments[start : start + PART])}  # fmt: skip
        run = {str(q): dict(zip(map(str, rows), score_K, strict=True))
               for q, rows in enumerate(hit_QK[start : start + PART].tolist())}  # fmt: skip
        converted = time.perf_counter()
        measured = pytrec_eval.RelevanceEvaluator(qrels, set(NAMES.values())).evaluate(run)
        seconds += time.perf_counter() - converted
        convert += converted - started
        for ours, theirs in NAMES.items():
            found[ours] += [measured[str(q)][theirs] for q in range(len(run))]
    np.savez(folder / "pytrec_eval.npz", **{name: np.array(values) for name, values in found.items()})
    return {"seconds": seconds, "convert_seconds": convert}


def run_sentence_transformers(given: Rankings, folder: Path) -> dict[str, float]:
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    hit_QK, judgments = given
    score_K = (-np.arange(hit_QK.shape[1], dtype=float)).tolist()
    convert = seconds = 0.0
    sums = dict.fromkeys(NAMES, 0.0)
    for start in range(0, len(hit_QK), PART):
        started = time.perf_counter()
        relevant = {str(q): {str(row) for row, grade in grades.items() if grade > 0}
                    for q, grades in enumerate(judgments[start : start + PART])}  # fmt: skip
        evaluator = InformationRetrievalEvaluator(
            dict.fromkeys(relevant, ""), {}, relevant, mrr_at_k=[1000], ndcg_at_k=[10, 1000], accuracy_at_k=[10],
            precision_recall_at_k=[1, 10, 100, 1000], map_at_k=[],
        )  # fmt: skip
        results: list[object] = [
            [{"corpus_id": str(row), "score": score} for row, score in zip(rows, score_K, strict=True)]
            for rows in hit_QK[start : start + PART].tolist()
        ]
        converted = time.perf_counter()
        measured = evaluator.compute_metrics(results)
        seconds += time.perf_counter() - converted
        convert += converted - started
        kinds = {"P": "precision@k", "nDCG": "ndcg@k", "MRR": "mrr@k", "Recall": "recall@k", "Hit": "accuracy@k"}
        for name in NAMES:
            kind, k = name.split("@")
            sums[name] += float(measured[kinds[kind]][int(k)]) * len(results)
    means = {name: np.array(total / len(hit_QK)) for name, total in sums.items()}
    np.savez(folder / "sentence-transformers.npz", **means)
    return {"seconds": seconds, "convert_seconds": convert}


RUNS = dict(zip(SYSTEMS, (run_harness, run_agreement, run_pytrec_eval, run_sentence_transformers), strict=True))


def work(system: str, folder: Path, queries: int, hits: int) -> None:
    """One system, measured; prints JSON, and leaves its numbers in the folder."""
    told = {"queries": queries, **RUNS[system](rankings(queries, hits), folder)}
    told["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sys.stdout.write(json.dumps(told) + "\n")


# ------------------------------------------------------------------------------------------------------- the comparison


def furthest(folder: Path, system: str) -> float:
    """How far any number of a system is from ours: of each query where it tells them, else of the mean."""
    with np.load(folder / "harness.npz") as ours, np.load(folder / f"{system}.npz") as theirs:
        return max(
            float(np.abs((ours[name] if theirs[name].ndim else ours[name].mean()) - theirs[name]).max())
            for name in NAMES
        )


def measured(system: str, folder: Path, queries: int, hits: int) -> dict[str, Any]:
    """One system in a process of its own."""
    environment = os.environ | dict.fromkeys(["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"], "1")
    command = [sys.executable, __file__, "--work", system, "--folder", str(folder), "--queries", str(queries), "--hits",
               str(hits)]  # fmt: skip
    done = subprocess.run(command, env=environment | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    if done.returncode:
        return {"failed": f"exit code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def compare(folder: Path, queries: int, fewer: int, hits: int) -> dict[str, dict[str, Any]]:
    """Ours over all queries; then every system over the fewer, whose numbers must be ours.

    Raises:
        AssertionError: they are not.
    """
    results = {name: measured(name, folder, queries, hits) for name in SYSTEMS[:2]}
    reference = measured("harness", folder, fewer, hits)
    results["harness, of fewer"] = reference
    for system in SYSTEMS[2:]:
        results[system] = measured(system, folder, fewer, hits)
        if "failed" not in results[system]:
            results[system]["furthest"] = furthest(folder, system)
            assert results[system]["furthest"] < 1e-9, (system, results[system])
    return results


def table(results: dict[str, Any]) -> list[str]:
    """A Markdown table."""
    columns = ("system", "queries", "seconds", "queries/s", "convert, s", "peak MiB", "furthest from ours")
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    for system, told in results.items():
        if "failed" in told:
            lines.append(f"| {system} | {told['failed']} |" + " |" * (len(columns) - 2))
            continue
        cells = [system, f"{told['queries']:,}", f"{told['seconds']:.2f}", f"{told['queries'] / told['seconds']:,.0f}",
                 f"{told['convert_seconds']:.2f}", f"{told['peak_bytes'] / 2**20:,.0f}",
                 f"{told['furthest']:.0e}" if "furthest" in told else "-"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--others-queries", type=int, default=5_000)
    parser.add_argument("--hits", type=int, default=1_000)
    parser.add_argument("--output", type=Path, default=Path("outputs/measured/metrics.json"))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        work(options.work, options.folder, options.queries, options.hits)
        return 0
    told = provenance()
    fewer = min(options.others_queries, options.queries)
    with tempfile.TemporaryDirectory(prefix="metrics-") as name:
        results = compare(Path(name), options.queries, fewer, options.hits)
    content = {"provenance": told, "hits": options.hits, "threads": 1, "metrics": list(NAMES), "systems": results}
    write(options.output, content)
    heading = f"{options.hits:,} hits a query, {len(NAMES)} metrics, one thread"
    sys.stdout.write("\n".join([heading, "", *table(results)]) + "\n")
    return int(any("failed" in result for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
