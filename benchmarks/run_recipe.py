"""Run a recipe afresh, on an otherwise idle machine, and print what it measured as Markdown; write it as JSON.

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

METRICS = ("P@1", "P@10", "nDCG@10", "MRR@10", "Recall@100")


def interval(entry: dict[str, Any] | None) -> str:
    """value [low, high]."""
    if not entry or entry["value"] is None:
        return "-"
    between = "" if entry["low"] is None else f" [{entry['low']:.3f}, {entry['high']:.3f}]"
    return f"{entry['value']:.3f}{between}"


def headline(results: dict[str, Any]) -> str:
    """The set that tables use."""
    return next(name for name in ("test", "report", "select") if name in results["sets"])


def systems_table(results: dict[str, Any], name: str) -> list[str]:
    """Macro quality, recovery, agreement and cost of every system."""
    reference = results["reference"]
    lines = [
        f"| system | parameters | {' | '.join(f'{m}' for m in METRICS)} | recovery of P@1 against {reference} | overlap@10 | p50 ms | p99 ms | queries/s |",
        "|---|" + "---|" * (len(METRICS) + 6),
    ]
    for system, sets in results["quality"].items():
        macro = sets[name]["macro"]
        recovery = results["recovery"].get(system, {}).get(name, {}).get("macro", {}).get("P@1")
        agreement = results["agreement"].get(system, {}).get(name, {}).get("all", {})
        latency = results["latency"].get(system, {}).get("torch", {}).get("all", {})
        throughput = results["throughput"].get(system, {}).get("torch", {})
        cells = [system, f"{results['systems'][system].get('parameters', 0) / 1e6:.1f} M", *(f"{macro[m]:.3f}" for m in METRICS)]
        cells.append(interval(recovery))
        cells.append(f"{agreement['overlap@10']:.3f}" if "overlap@10" in agreement else "-")
        cells += [f"{latency[k]:.2f}" if k in latency else "-" for k in ("p50_ms", "p99_ms")]
        cells.append(f"{throughput['queries_per_second']:,.0f}" if throughput else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def languages_table(results: dict[str, Any], name: str) -> list[str]:
    """P@1 per language of every system, and the refined student's recovery."""
    systems = list(results["quality"])
    student = systems[-1]
    languages = [lang for lang in results["quality"][student][name] if lang not in ("macro", "all")]
    lines = [f"| language | queries | {' | '.join(systems)} | recovery of {student} |", "|---|---|" + "---|" * (len(systems) + 1)]
    for language in [*languages, "macro"]:
        rows = [results["quality"][system][name][language] for system in systems]
        recovery = results["recovery"].get(student, {}).get(name, {}).get(language, {}).get("P@1")
        count = results["quality"][student][name]["all" if language == "macro" else language]["queries"]
        lines.append(f"| {language} | {count:,} | {' | '.join(f'{row["P@1"]:.3f}' for row in rows)} | {interval(recovery)} |")
    worst = results["recovery"].get(student, {}).get(name, {}).get("worst", {}).get("P@1")
    lines.append(f"| worst | | {' | '.join('' for _ in systems)} | {interval(worst)} |")
    return lines


def markdown(results: dict[str, Any], command: str, seconds: float | None) -> str:
    """Everything, ready for RESULTS.md."""
    name, told = headline(results), results["provenance"]
    hardware, versions, conditions = told["hardware"], told["versions"], results["conditions"]
    kept = ("device", "threads", "dtype", "max_length", "warmup", "repeats")
    lines = [
        f"`{command}`",
        "",
        f"Commit {told['commit']}; {told['started'][:10]}; {hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']:.0f} GiB; "
        f"Python {versions['python']}, torch {versions['torch']}, transformers {versions['transformers']}. "
        + "Latency and throughput: " + ", ".join(f"{k} {conditions[k]}" for k in kept if k in conditions) + ".",
        f"Set `{name}`: {results['sets'][name]['queries']:,} queries, {results['sets'][name]['documents']:,} documents; macro = mean over languages; "
        "intervals: 95 %, paired bootstrap over groups.",
        "",
        *systems_table(results, name),
        "",
        *languages_table(results, name),
        "",
        "Stages (after - before, macro): "
        + "; ".join(
            f"{t['systems'][0]} - {t['systems'][1]} {t['metric']} {t['difference']:+.3f} [{t['low']:+.3f}, {t['high']:+.3f}] {t['verdict']}"
            for t in results["tests"] if t["set"] == name and t["metric"] == "P@1"
        ) + ".",
        "Bars: " + ("; ".join(f"{b['name']} {b['value']:.3f} (bar {b['bar']}): {'reached' if b['passed'] else 'not reached' if b['passed'] is False else 'undecided'}"
                    for b in results["bars"] if b["value"] is not None) or "none") + ".",
        f"Seconds: {', '.join(f'{step} {s:.0f}' for step, s in told['steps'].items())}"
        + (f"; the whole command {seconds:.0f}" if seconds is not None else "") + ".",
    ]  # fmt: skip
    if results["warnings"]:
        lines += ["", *(f"- warning: {warning}" for warning in results["warnings"])]
    return "\n".join(lines)


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
        subprocess.run([sys.executable, "-m", "harness", "run", str(options.recipe), *overrides, "--output", str(output)], check=True)
        seconds = time.monotonic() - started
        (output / "seconds.json").write_text(json.dumps({"whole_command": seconds}))
    elif (output / "seconds.json").exists():
        seconds = json.loads((output / "seconds.json").read_text())["whole_command"]
    shown = " ".join(["--set data.path=DIR" if o.startswith("data.path=") else f"--set {o}" for o in options.set])
    command = f"python benchmarks/run_recipe.py {options.recipe} {shown}".strip()
    print(markdown(json.loads((output / "results.json").read_text()), command, seconds))


if __name__ == "__main__":
    main()
