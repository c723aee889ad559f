"""Run a recipe afresh, on an otherwise idle machine, and print what it measured as Markdown.

    python benchmarks/run_recipe.py recipes/quickstart.yaml --output outputs/measured/quickstart
    python benchmarks/run_recipe.py benchmarks/recipes/product-offers.yaml --set data.path=DIR

The numbers are those of the run's own results.json; this script adds the time of the whole command.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from provenance import write

METRICS = ("P@1", "P@10", "nDCG@10", "MRR@10", "Recall@100")


def interval(entry: dict[str, Any] | None) -> str:
    """value [low, high]."""
    if not entry or entry["value"] is None:
        return "-"
    between = "" if entry["low"] is None else f" [{entry['low']:.3f}, {entry['high']:.3f}]"
    return f"{entry['value']:.3f}{between}"


STUDENTS = ("student-refined", "student-aligned", "student-untrained")  # the first that there is, is the outcome


def headline(results: dict[str, Any]) -> str:
    """The set that tables use."""
    return next(name for name in ("test", "report", "select") if name in results["sets"])


def row(cells: list[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def systems_table(results: dict[str, Any], name: str) -> list[str]:
    """Macro quality, recovery and agreement of every system."""
    recovery_of = f"recovery of P@1 against {results['reference']}"
    header = ["system", "parameters", *METRICS, recovery_of, "overlap@10"]
    lines = [row(header), "|---" * len(header) + "|"]
    for system, sets in results["quality"].items():
        agreement = results["agreement"].get(system, {}).get(name, {}).get("all", {})
        parameters = results["systems"].get(system, {}).get("parameters")
        size = "-" if parameters is None else f"{parameters / 1e6:.1f} M"
        cells = [system, size, *(f"{sets[name]['macro'][metric]:.3f}" for metric in METRICS)]
        cells.append(interval(recovery(results, system, name, "macro")))
        cells.append(f"{agreement['overlap@10']:.3f}" if "overlap@10" in agreement else "-")
        lines.append(row(cells))
    return lines


def cost_table(results: dict[str, Any]) -> list[str]:
    """Latency of encoder and whole path, and throughput, of every system in every engine."""
    keys = ("p50_ms", "p99_ms", "whole_p50_ms", "whole_p99_ms")
    header = ["system", "engine", "encoder p50 ms", "p99 ms", "whole path p50 ms", "p99 ms", "queries/s", "at batch"]
    lines = [row(header), "|---" * len(header) + "|"]
    for system, engines in results["latency"].items():
        for engine, rows in engines.items():
            rate = results["throughput"].get(system, {}).get(engine, {})
            times = [f"{rows['all'][key]:.2f}" if rows["all"].get(key) is not None else "-" for key in keys]
            rates = [f"{rate['queries_per_second']:,.0f}", str(rate["batch"])] if rate else ["-", "-"]
            lines.append(row([system, engine, *times, *rates]))
    return lines


def recovery(results: dict[str, Any], system: str, name: str, scope: str) -> dict[str, Any] | None:
    """Recovery of P@1."""
    return results["recovery"].get(system, {}).get(name, {}).get(scope, {}).get("P@1")


def languages_table(results: dict[str, Any], name: str) -> list[str]:
    """P@1 per language of every system, and the last student's recovery."""
    systems = list(results["quality"])
    student = next((name for name in STUDENTS if name in systems), systems[-1])
    header = ["language", "queries", *systems, f"recovery of {student}"]
    lines = [row(header), "|---" * len(header) + "|"]
    languages = [language for language in results["quality"][student][name] if language not in ("macro", "all")]
    for language in [*languages, "macro"]:
        values = [f"{results['quality'][system][name][language]['P@1']:.3f}" for system in systems]
        count = results["quality"][student][name]["all" if language == "macro" else language]["queries"]
        lines.append(row([language, f"{count:,}", *values, interval(recovery(results, student, name, language))]))
    worst = interval(recovery(results, student, name, "worst"))
    return [*lines, row(["worst", *("" for _ in range(len(systems) + 1)), worst])]


def conditions(results: dict[str, Any], name: str) -> list[str]:
    """Commit, machine, versions, how latency was measured, what was searched."""
    told, measured, data = results["provenance"], results["conditions"], results["sets"][name]
    hardware, versions = told["hardware"], told["versions"]
    kept = ("device", "threads", "dtype", "max_length", "warmup", "repeats")
    return [
        f"Commit {told['commit']}; {told['started'][:10]}; {hardware['cpu']}, {hardware['cores']} cores, "
        f"{hardware['memory_gib']:.0f} GiB; Python {versions['python']}, torch {versions['torch']}, transformers "
        f"{versions['transformers']}. Latency: batch 1, systems interleaved; throughput: the best batch size; "
        + ", ".join(f"{key} {measured[key]}" for key in kept if key in measured) + ".",
        f"Set `{name}`: {data['queries']:,} queries, {data['documents']:,} documents; macro: mean over languages; "
        "intervals: 95 %, paired bootstrap over groups.",
    ]  # fmt: skip


def outcome(results: dict[str, Any], name: str, seconds: float | None) -> list[str]:
    """What each stage won, the bars, the seconds, the warnings."""
    words = {True: "reached", False: "not reached", None: "undecided"}
    tests = [test for test in results["tests"] if test["set"] == name and test["metric"] == "P@1"]
    claims = [
        f"{test['scope']} {test['verdict']}" for test in tests if test.get("kind") == "non-inferiority"
    ]
    margin = next((test["margin"] for test in tests if "margin" in test), None)
    gains = [
        f"{test['systems'][0]} over {test['systems'][1]} {test['difference']:+.3f} "
        f"[{test['low']:+.3f}, {test['high']:+.3f}], {test['verdict']}"
        for test in tests
        if "difference" in test
    ]
    ledger = [
        f"{told['step']} {told['difference']:+.3f} [{told['low']:+.3f}, {told['high']:+.3f}]"
        for told in results["ledger"]
        if (told["set"], told["metric"], told["scope"]) == (name, "P@1", "macro")
    ]
    bars = [
        f"{bar['name']} {bar['value']:.3f}: {words[bar['passed']]}"
        for bar in results["bars"]
        if bar["value"] is not None
    ]
    steps = ", ".join(f"{step} {spent:.0f}" for step, spent in results["provenance"]["steps"].items())
    whole = f"; the whole command {seconds:.0f}" if seconds is not None else ""
    lines = [f"Macro P@1: {'; '.join(gains)}."]
    lines += [f"Ledger (macro P@1, from the teacher on): {'; '.join(ledger)}."] if ledger else []
    lines += [f"Loses less than {margin:.0%} of P@1: {'; '.join(claims)}."] if claims else []
    lines += [f"Bars: {'; '.join(bars) or 'none'}.", f"Seconds: {steps}{whole}."]
    return [*lines, *(f"Warning: {warning}." for warning in results["warnings"])]


def markdown(results: dict[str, Any], command: str, seconds: float | None) -> str:
    """Everything, ready for RESULTS.md."""
    name = headline(results)
    parts = [[f"`{command}`"], conditions(results, name), systems_table(results, name), languages_table(results, name)]
    if results["latency"]:
        parts.append(cost_table(results))
    return "\n\n".join("\n".join(part) for part in [*parts, outcome(results, name, seconds)])


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    parser.add_argument("--output", type=Path, help="the run's folder (default outputs/measured/NAME); must be new")
    parser.add_argument("--only-print", action="store_true", help="print an existing run, run nothing")
    options = parser.parse_args()
    output = options.output or Path("outputs/measured") / options.recipe.stem
    overrides = [word for assignment in options.set for word in ("--set", assignment)]
    seconds = None
    if not options.only_print:
        if output.exists():
            parser.error(f"{output} exists: a measurement starts afresh; give another --output, or --only-print")
        started = time.monotonic()
        arguments = ["run", str(options.recipe), *overrides, "--output", str(output)]
        subprocess.run([sys.executable, "-m", "harness", *arguments], check=True)
        seconds = time.monotonic() - started
        write(output / "seconds.json", {"whole_command": seconds})
    elif (output / "seconds.json").exists():
        seconds = json.loads((output / "seconds.json").read_text())["whole_command"]
    shown = " ".join(["--set data.path=DIR" if o.startswith("data.path=") else f"--set {o}" for o in options.set])
    command = f"python benchmarks/run_recipe.py {options.recipe} {shown}".strip()
    print(markdown(json.loads((output / "results.json").read_text()), command, seconds))


if __name__ == "__main__":
    main()
