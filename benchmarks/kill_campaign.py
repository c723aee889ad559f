"""Kill tiny whole-pipeline runs at random, go on with the same command, and compare the end with an uninterrupted run.

    python benchmarks/kill_campaign.py --kills 100

Each run is killed (SIGKILL) one to four times: half of the times at a random moment, half inside a write, before or
after a rename, or while a folder is being removed. After every kill each artefact that has its final name is opened
and verified; at the end every byte of the two folders is compared, times apart. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

from builders.killed import Ended, Fault, Zygote, kind_of  # noqa: E402
from builders.tiny_run import tiniest_tree, write_recipe  # noqa: E402
from builders.whole import differences, partial_artefacts  # noqa: E402
from provenance import provenance, write  # noqa: E402

EVENTS = ("write", "write", "fsync", "save", "replace", "replaced", "rmtree")  # a write is worth two


@dataclass
class Kill:
    """One kill: where it struck, whether everything under a final name was whole, what it cost."""

    run: int
    step: str
    event: str
    artefact: str
    partial: list[str]
    recovered: bool = False
    seconds_lost: float = 0.0


def step_of(log: str) -> str:
    """The step that a run was in when its log ended."""
    started = re.findall(r"^> (\S+)", log, re.MULTILINE)
    done = re.findall(r"^  (\S+) done in", log, re.MULTILINE)
    return "between steps" if not started or started[-1] in done else started[-1]


def draw(random_: random.Random, seconds: float) -> Fault:
    """A random moment of the rest of a run, or a random write, rename or removal."""
    if random_.random() < 0.5:
        return Fault("any", "time", seconds=random_.uniform(0.1, seconds))
    event = random_.choice(EVENTS)
    most = {"write": 150, "fsync": 60, "save": 12, "replace": 60, "replaced": 60, "rmtree": 12}[event]
    return Fault("any", event, random_.randint(1, most))


def artefact(ended: Ended, fault: Fault, out: Path) -> str:
    """What was being written when the fault struck; told by time, by the temporary names that it left."""
    if ended.struck:
        return kind_of(out / ended.struck, out) or "folder"
    left = sorted(kind_of(path, out) or "" for path in out.rglob(".*.tmp"))
    return left[-1] if left else "between writes"


def attack(zygote: Zygote, recipe: Path, out: Path, faults: list[Fault]) -> tuple[list[Kill], float, Ended]:
    """One run with these kills, and its seconds in all."""
    command, kills, seconds = ["run", str(recipe), "--output", str(out)], [], 0.0
    for fault in faults:
        ended = zygote.run(command, out, fault)
        seconds += ended.seconds
        if ended.code != -signal.SIGKILL:
            return kills, seconds, ended  # it came to its end before the fault
        kills.append(Kill(0, step_of(ended.log), fault.event, artefact(ended, fault, out), partial_artefacts(out)))
    ended = zygote.run(command, out)
    return kills, seconds + ended.seconds, ended


def campaign(wanted: int, seed: int) -> dict[str, Any]:
    """Run until so many kills are done."""
    random_, kills, runs = random.Random(seed), [], 0
    with tempfile.TemporaryDirectory(prefix="harness-kills-") as name, Zygote() as zygote:
        root = Path(name)
        recipe = write_recipe(root, tiniest_tree(root))
        whole = root / "whole"
        command = ["run", str(recipe), "--output", str(whole)]
        took = []
        for number in range(4):
            shutil.rmtree(whole, ignore_errors=True)
            ended = zygote.run(command, whole)
            assert ended.code == 0, ended.log
            took += [ended.seconds] if number else []  # the first one also pays for caches
        alone = statistics.median(took)
        while len(kills) < wanted:
            runs += 1
            out = root / f"run{runs}"
            faults = [draw(random_, alone) for _ in range(min(random_.randint(1, 4), wanted - len(kills)))]
            found, seconds, ended = attack(zygote, recipe, out, faults)
            wrong = differences(whole, out) if ended.code == 0 else [f"exit code {ended.code}: {ended.log[-500:]}"]
            for kill in found:
                kill.run, kill.recovered = runs, not wrong and not kill.partial
                kill.seconds_lost = (seconds - alone) / len(found)
            if wrong:
                print(f"run {runs}: {wrong}", file=sys.stderr)
            kills += found
            shutil.rmtree(out)
            print(f"\r{len(kills)} kills in {runs} runs", end="", file=sys.stderr)
    print(file=sys.stderr)
    return {"seconds_uninterrupted": round(alone, 2), "runs": runs, "kills": [asdict(kill) for kill in kills]}


def table(told: dict[str, Any]) -> list[str]:
    """A line for each step, and one for all."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for kill in told["kills"]:
        groups[kill["step"]].append(kill)
    lines = ["| killed in step | kills | while writing | partial artefacts | recovered | seconds lost, median (most) |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for step, kills in [*sorted(groups.items(), key=lambda item: -len(item[1])), ("all", told["kills"])]:
        lost = [kill["seconds_lost"] for kill in kills]
        names = sorted({kill["artefact"] for kill in kills} - {"between writes"})
        partial, recovered = sum(bool(kill["partial"]) for kill in kills), sum(kill["recovered"] for kill in kills)
        cells = [step, len(kills), ", ".join(names) if step != "all" else "", partial, recovered,
                 f"{statistics.median(lost):.1f} ({max(lost):.1f})"]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("outputs/measured/kill_campaign.json"))
    options = parser.parse_args()
    made, started = provenance(seed=options.seed), time.monotonic()
    told = campaign(options.kills, options.seed)
    told["provenance"] = {**made, "seconds": round(time.monotonic() - started, 1)}
    write(options.output, told)
    timed = sum(kill["event"] == "time" for kill in told["kills"])
    where = made["hardware"]
    print(f"""`python benchmarks/kill_campaign.py --kills {options.kills} --seed {options.seed}`

Commit {made["commit"]}; {where["cpu"]}, {where["cores"]} cores, load {made["load"]:.1f} at the start;
{told["provenance"]["seconds"]:.0f} s in all. {len(told["kills"])} kills in {told["runs"]} runs, {timed} of them at
random moments, the others inside writes, renames and removals; a run alone takes {told["seconds_uninterrupted"]:.1f} s.
Lost: a run's seconds beyond that, shared by its kills.
""")
    print("\n".join(table(told)))
    sys.exit(not all(kill["recovered"] for kill in told["kills"]))


if __name__ == "__main__":
    main()
