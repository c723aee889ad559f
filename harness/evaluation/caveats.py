"""What a reader of the numbers must be warned of."""

from __future__ import annotations

from typing import Any

from harness.data.dropped import lost_warnings
from harness.data.overlap import overlap_warnings
from harness.evaluation.bars import STUDENTS, at, headline_metric
from harness.evaluation.statistics import RESERVED

Tree = dict[str, Any]

FEW_QUERIES = 30


def caveats(results: Tree, headline: str | None, warn_teacher_gain: float) -> list[str]:
    """Warnings about the results of ``build_results``, as far as they are built.

    Args:
        headline: the set that tables, bars and the verdict use.
        warn_teacher_gain: a teacher that gained more than this in its last quarter of steps was undertrained.
    """
    if headline is None:
        return ["nothing was evaluated"]
    return [*_about_exported(results, headline), *_about_sets(results, headline),
            *_about_teacher(results, headline, warn_teacher_gain), *_about_languages(results, headline),
            *filter(None, [at(results, "noise", "warning")]), *_about_threads(results)]  # fmt: skip


def _about_threads(results: Tree) -> list[str]:
    told, cores = at(results, "conditions", "threads"), at(results, "noise", "cores")
    threads = max([count for count in (told.values() if isinstance(told, dict) else [told]) if count], default=0)
    if cores is None or threads <= cores:
        return []
    return [f"latency and throughput were timed with {threads} threads on {cores} cores, where threads wait for one "
            f"another: set bench.threads to {cores} at most"]  # fmt: skip


def ann_caveats(ann: Tree) -> list[str]:
    """Warnings about what ``bench.ann`` measured."""
    threads, cores = ann.get("threads"), ann.get("cores")
    if threads is None or cores is None or threads <= cores:
        return []
    return [f"approximate indexes were built and searched with {threads} threads on {cores} cores, where threads wait "
            f"for one another: set bench.ann.threads to {cores} at most"]  # fmt: skip


def _about_exported(results: Tree, headline: str) -> list[str]:
    deployed, told = results["exported"], results["candidate"]
    if None in (deployed, told) or deployed == told:
        return []
    missing = headline not in results["quality"].get(deployed, {})
    cures = [f"set export.system to {told}"] if told != STUDENTS[0] else []  # what was not trained is not exported
    if STUDENTS.index(told) > STUDENTS.index(deployed):
        cures.append(f"evaluate {deployed} and no student after it" if missing
                     else f"evaluate no student after {deployed}")  # fmt: skip
    elif missing:
        cures.insert(0, f"add {deployed} to evaluate.systems")
    unseen = f" and was not evaluated on {headline}" if missing else ""
    return [f"{deployed} is what is deployed{unseen}, and bars and claims are about {told}: {', or '.join(cures)}"]


def _about_sets(results: Tree, headline: str) -> list[str]:
    found = []
    if headline == "select":
        found.append("only the set that checkpoints were selected on was evaluated: its numbers are too good")
    found += [f"{told}: numbers of this set are too good" for told in overlap_warnings(results["sets"])]
    found += lost_warnings(results["sets"])
    return found + [
        f"teachers read {told['contexts']:,} of {told['queries']:,} queries of {name} with a context (teacher.context) "
        "that no student sees: what they find with it, a student is not shown"
        for name, told in results["sets"].items() if "contexts" in told
    ]  # fmt: skip


def _about_teacher(results: Tree, headline: str, warn_teacher_gain: float) -> list[str]:
    found = []
    read = at(results, "sets", headline, "contexts")
    misled = ", or misled by the contexts that it reads (teacher.context)" if read else ""
    metric = headline_metric(results, headline)
    for system, by_set in results["recovery"].items():
        kept = at(by_set, headline, "macro", metric) or {}
        value, low, high = (kept.get(key) for key in ("value", "low", "high"))
        if system in STUDENTS and results["reference"] == "teacher" and value is not None and value > 1:
            verb, was = ("is", "was") if low is not None and low > 1 else ("may be", "may have been")
            interval = f"{value:.3f}" + (f" [{low:.3f}, {high:.3f}]" if None not in (low, high) else "")
            found.append(
                f"{system} {verb} above its teacher on {headline} (macro recovery of {metric} {interval}): "
                f"the teacher {was} undertrained{misled}"
            )
    gain = at(results, "training", "teacher", "last_quarter_gain")
    if gain is not None and gain > warn_teacher_gain:
        metric = results["training"]["teacher"]["curve"][-1]["metric"]
        found.append(
            f"the teacher still gained {gain:.3f} of {metric} over its last quarter of steps (more than "
            f"{warn_teacher_gain:g}): train it longer"
        )
    return found


def _about_languages(results: Tree, headline: str) -> list[str]:
    rows = next(by_set[headline] for by_set in results["quality"].values() if headline in by_set)
    small = [f"{language} ({row['queries']})" for language, row in rows.items()
             if language not in RESERVED and row["queries"] < FEW_QUERIES]  # fmt: skip
    few = f"fewer than {FEW_QUERIES} queries on {headline}, too few to tell much: {', '.join(small)}"
    return [few] if small else []
