"""One query at a time, and many: full-size Qwen3 shapes, plain torch beside CUDA graphs. Speed only.

    python benchmarks/gpu/latency.py
    python benchmarks/gpu/latency.py --tiny             # on any machine, in seconds: does the script still run?

Weights and texts are random (words that are one token each, so tokenising is cheaper than it will be; the forward pass
is told apart from it). What measures is harness' own ``bench``: engines take turns in short blocks, first calls left
out, the clock stops when the vector is on the host. All shapes are on the device together, in bf16. Beside it stand the
ratios that HARNESS-LM (arXiv 2605.23572) reports on an A100: 27 times lower latency and 20 times the throughput of the
8B teacher for its student of 190 M.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from encoding import sentences
from shapes import SHAPES, Texts, build, peak_gib, provenance, table, write

PAPER = {"latency": 27.0, "throughput": 20.0}  # of the 190 M student against the 8B teacher, on an A100


def engines_of(names: list[str], device: torch.device, longest: int) -> dict[str, Any]:
    """``SHAPE`` in plain torch and, on a GPU, ``SHAPE, graphs``: both run the same weights."""
    from harness.engines.cuda_graphs import CudaGraphsEngine
    from harness.engines.torch_eager import TorchEngine

    found: dict[str, Any] = {}
    for name in names:
        encoder = build(SHAPES[name], device, torch.bfloat16 if device.type == "cuda" else torch.float32, longest)
        found[name] = TorchEngine(encoder)
        if device.type == "cuda":
            found[f"{name}, graphs"] = CudaGraphsEngine(encoder, device=device)
    return found


def measure(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """``bench`` over all engines, on the same queries."""
    from harness.evaluation.bench import bench

    lengths = Texts(options.median, options.median, options.sigma, options.longest)
    random, vocabulary = np.random.default_rng(5), min(SHAPES[name].vocabulary for name in options.shapes)
    queries = sentences(lengths.lengths("query", options.queries, random), vocabulary)
    engines = engines_of(options.shapes, device, options.longest)
    answer = bench(engines, {"random": queries}, warmup=options.warmup, repeats=options.repeats,
                   batch_sizes=options.batch_sizes)  # fmt: skip
    return {**answer, "peak_gib": peak_gib(device)}


def rows_of(found: dict[str, Any], reference: str) -> list[list[str]]:
    """A row for each engine, with its ratios to the reference in plain torch."""
    latency = {name: next(iter(values.values()))["all"] for name, values in found["latency"].items()}
    rate = {name: next(iter(values.values())) for name, values in found["throughput"].items()}
    rows = []
    for name, times in latency.items():
        fast, p50 = rate[name]["queries_per_second"], times["p50_ms"]
        rows.append([
            name, f"{p50:.2f}", f"{times['p99_ms']:.2f}", f"{latency[reference]['p50_ms'] / p50:.1f}",
            f"{fast:,.0f}", str(rate[name]["batch"]), f"{fast / rate[reference]['queries_per_second']:.1f}",
        ])  # fmt: skip
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["8b", "4b", "0.6b", "190m"])
    parser.add_argument("--tiny", action="store_true", help="a tiny shape and few queries, on any machine")
    parser.add_argument("--queries", type=int, default=128)
    parser.add_argument("--median", type=int, default=24, help="tokens of a query, its instruction included")
    parser.add_argument("--sigma", type=float, default=0.5, help="of the lengths' logarithms")
    parser.add_argument("--longest", type=int, default=128)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--output", type=Path, default=Path("outputs/measured/gpu-latency.json"))
    options = parser.parse_args(arguments)
    if options.tiny:
        vars(options).update(shapes=["tiny"], queries=8, median=8, longest=32, warmup=1, repeats=1, batch_sizes=[1, 4])
    from harness.runtime.distributed import pick_device

    device = pick_device("auto")
    if device.type == "cpu" and not options.tiny:
        raise SystemExit("no GPU is visible; --tiny runs the script on a CPU and measures nothing of interest")
    found, reference = measure(options, device), options.shapes[0]
    told = provenance(device)
    write(options.output, vars(options), told, found)
    columns = ["shape", "p50 ms", "p99 ms", f"{reference} / p50", "queries/s", "at batch", f"of {reference}"]
    print(table(columns, rows_of(found, reference)))
    print(f"\nReported for 190 M against 8B on an A100: {PAPER['latency']:.0f} and {PAPER['throughput']:.0f} times.")
    print(f"{told.get('gpu', told['hardware']['cpu'])}. Commit {told['commit']}; torch {told['versions']['torch']}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
