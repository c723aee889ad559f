"""What each process of a launch does: ``python -m builders.every_step RECIPE ONE TWO``.

Each step of the finished run ONE is done again, from ONE's own inputs, in a copy of its folder: ``TWO/STEP``. One
launch serves all steps, since a launch costs seconds.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import harness.runtime.distributed as distributed
from harness.evaluation import per_query
from harness.pipeline.controller import run_verb
from harness.pipeline.folder import RunFolder
from harness.pipeline.manifest import Manifest
from harness.pipeline.plan import plan
from harness.recipe import load_recipe
from harness.runtime.errors import InputError, RunError, StoppedError
from harness.runtime.process import configure_logging, is_main_process
from harness.vectors import exact
from harness.vectors.index import VectorIndex

JUDGED = ("nDCG@7", "Hit@3")  # what ``judge_again`` measures


def copy_without(step: str, one: Path, copy: Path) -> None:
    """The run's folder as it was before ``step``."""
    shutil.copytree(one, copy)
    manifest = Manifest(RunFolder(copy))
    for name in manifest.steps[step]["outputs"]:
        (copy / name).unlink()
    shutil.rmtree(copy / "checkpoints" / step.replace(".", "-"), ignore_errors=True)
    others = [name for other, entry in manifest.steps.items() if other != step for name in entry["outputs"]]
    for place in {Path(name).parent.as_posix() for name in manifest.steps[step]["outputs"]} - {"."}:
        if not any(name.startswith(f"{place}/") for name in others):  # a step may write beside what another wrote
            shutil.rmtree(copy / place, ignore_errors=True)
    manifest.forget([step])


def fail() -> None:
    raise RunError("told by the main process")


def searched() -> dict[str, Any]:
    """Hits of exact indexes of 41 small blocks, whole and in partitions; of floats, and of whole numbers that tie.

    Alone it is one process's answer, and in a launch that of all.
    """
    random, found = np.random.default_rng(0), {}
    ids = [f"d{number}" for number in random.permutation(2600)]
    plain, exact.BLOCK_DOCUMENTS = exact.BLOCK_DOCUMENTS, 64
    for name in ("floats", "ties"):
        vector_ND, query_QD = (random.standard_normal((count, 24)).astype(np.float32) for count in (2600, 70))
        if name == "ties":
            vector_ND, query_QD = np.rint(vector_ND), np.rint(query_QD) * (np.arange(24) < 2)
        for parts in (None, ["de", "en", "fr", "de"] * 650):
            asked = None if parts is None else ["de", "en", "fr", "none", "de", "en", "fr"] * 10
            index = VectorIndex.build(vector_ND, ids, kind="exact", partition_N=parts)
            score_QK, row_QK = index.search_shared(query_QD.astype(np.float32), 30, asked)
            found[f"{name}, {'parts' if parts else 'whole'}"] = [score_QK.astype(str).tolist(), row_QK.tolist()]
    exact.BLOCK_DOCUMENTS = plain
    return found


def refused() -> str:
    """What all processes say of queries of which only the last one's are broken; none waits for another."""
    query_QD = np.ones((4, 2), dtype=np.float32)
    query_QD[3, 0] = np.nan
    try:
        VectorIndex.build(np.ones((3, 2)), list("abc"), kind="exact").search_shared(query_QD, 2)
    except InputError as error:
        return str(error)
    return ""


def together() -> dict[str, Any]:
    """What this process gets from the calls that all make together."""
    try:
        distributed.on_main(fail)
    except (RunError, StoppedError) as error:
        failed = type(error).__name__
    joined = {}
    for count in (0, 1, 2, 5):
        rows = np.arange(count * 3, dtype=np.float16).reshape(count, 3)
        joined[count] = distributed.join_rows(rows[distributed.share(count)], count).tolist()
    return {
        "failed": failed,
        "joined": joined,
        "broadcast": distributed.broadcast({"é": [1, None]} if distributed.rank() == 0 else {}),
        "on_main": distributed.on_main(lambda: distributed.rank()),
        "searched": searched(),
        "refused": refused(),
        "sum": distributed.sum_over_processes(np.full((2, 2), 1.0 + distributed.rank(), dtype=np.float32)).tolist(),
    }


def judge_again(recipe_path: Path, two: Path) -> None:
    """``evaluate`` once more, for other metrics, in a copy: the second process reads so slowly what lies there that the
    main one has replaced it meanwhile."""
    if is_main_process():
        shutil.copytree(two / "evaluate", two / ".judged")
        (two / ".judged").rename(two / "judged")
    else:
        real = per_query.file_sha256
        per_query.file_sha256 = lambda path: (time.sleep(0.3), real(path))[1]
    distributed.wait_for_all()
    other = load_recipe(recipe_path, ["launch.processes=2", f"evaluate.metrics=[{', '.join(JUDGED)}]"])
    run_verb(other, two / "judged", "evaluate", only="evaluate")


def main() -> None:
    configure_logging()
    recipe_path, one, two = map(Path, sys.argv[1:4])
    recipe = load_recipe(recipe_path, ["launch.processes=2"])
    # The launcher's processes meet once; between two verbs they stay together.
    leave, distributed.leave_processes = distributed.leave_processes, distributed.wait_for_all
    for step in plan(recipe):
        if is_main_process():
            copy_without(step.name, one, two / f".{step.name}")
            (two / f".{step.name}").rename(two / step.name)
        distributed.join_processes(distributed.pick_device("cpu"))
        distributed.wait_for_all()
        run_verb(recipe, two / step.name, step.verb, only=step.name)
    judge_again(recipe_path, two)
    (two / f"together-{distributed.rank()}.json").write_text(json.dumps(together()))
    leave()


if __name__ == "__main__":
    main()
