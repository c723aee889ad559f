"""What each artefact of a trained student costs in quality, and what smaller forms of its index find.

    python benchmarks/artefacts.py outputs/quickstart                  # a finished run; it stays as it is
    python benchmarks/artefacts.py outputs/quickstart --per-language 1000 --set test

The run's deployed student becomes ONNX files in every precision, in a scratch folder, and its frozen vectors become
FAISS indexes in 8 bits and PQ. Each file answers the run's own queries over the frozen index, beside the student in
memory: cosine, overlap of the first ten, recovery with a plain paired bootstrap over groups. No bound decides here;
what the bounds of ``export.parity`` would say is told. Queries are encoded in batches of 64, as the gate does, and int8
also one by one, as a service does: its ranges are taken from what is encoded together.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance, write

PRECISIONS = ("fp32", "fp16", "int8", "int8-static")
INDEXES = ("faiss", "faiss-int8", "faiss-pq")


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, as plain data."""
    from harness.engines.onnx_runtime import OnnxEngine
    from harness.export.index import export_index
    from harness.export.onnx import export_onnx
    from harness.export.onnx.files import size_of
    from harness.export.parity import Questions, bounds_of, measure_parity, some_of_each
    from harness.export.student import export_student
    from harness.pipeline.context import Run
    from harness.pipeline.folder import RunFolder
    from harness.pipeline.work_export import CALIBRATION, deployed
    from harness.recipe import ParitySettings, load_recipe
    from harness.runtime.process import read_json

    folder = RunFolder(options.run)
    run = Run(load_recipe(folder.recipe), folder, {})
    dataset, settings = run.dataset, run.recipe.export.parity if run.recipe.export else ParitySettings()
    name = options.set or next(name for name in ("test", "report", "select") if dataset.splits.get(name))
    records = some_of_each(dataset.splits[name], options.per_language, run.recipe.seed)
    questions = Questions(records, dataset.documents, run.frozen_index(), dataset.search_within)
    calibration = [r.text for r in some_of_each(dataset.splits["train"], CALIBRATION, run.recipe.seed)]
    encoder = run.open(deployed(run))
    student_QD = encoder.encode(questions.texts, side="query")
    told: dict[str, Any] = {"set": name, "languages": len({r.language for r in records}), "queries": len(records),
                            "documents": len(dataset.documents), "system": deployed(run).name, "onnx": {},
                            "run": {"commit": read_json(folder.manifest).get("commit")}}  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place) / "student"
        export_student(deployed(run), scratch)
        files = export_onnx(run.open(scratch), scratch, PRECISIONS, calibration=calibration)
        for precision in PRECISIONS:
            engine = OnnxEngine(scratch, precision=precision, threads=options.threads)
            ways = {precision: engine.encode}
            if precision.startswith("int8"):
                ways[f"{precision}, one by one"] = lambda texts, engine=engine: np.concatenate(
                    [engine.encode([text]) for text in texts]
                )
            for way, encode in ways.items():
                parity = measure_parity(encode, student_QD, questions, bounds_of(precision, settings),
                                        resamples=options.resamples, seed=run.recipe.seed)  # fmt: skip
                told["onnx"][way] = {"bytes": size_of(files[precision]), **parity}
        manifest = export_index(run.store("documents"), Path(place) / "index", INDEXES, student_QD)
    told["index"] = {"bytes": {form: file["bytes"] for form, file in manifest["files"].items()},
                     "cost": manifest["cost"], "dimension": manifest["dimension"]}  # fmt: skip
    return told


def change(row: dict[str, Any]) -> str:
    """How much more or less is found than by the student, in percent, with its interval."""
    if row["value"] is None:
        return "-"
    value, low, high = (None if row[key] is None else 100 * (row[key] - 1) for key in ("value", "low", "high"))
    return f"{value:+.2f} %" if low is None or high is None else f"{value:+.2f} % [{low:+.2f}, {high:+.2f}]"


def tables(told: dict[str, Any]) -> list[str]:
    """Two Markdown tables."""
    lines = [f"{told['queries']:,} queries of `{told['set']}` in {told['languages']} languages, "
             f"{told['documents']:,} documents; changes: macro over languages, 95 %, "
             "plain paired bootstrap over groups", "",
             "| ONNX | MB | least cosine | mean cosine | overlap@10 | P@1 | nDCG@10 | at the bounds |",
             "|---|---:|---:|---:|---:|---:|---:|---|"]  # fmt: skip
    for name, row in told["onnx"].items():
        every = row["languages"].get("all", {})
        found = [change(row["recovery"][metric]["macro"]) for metric in ("P@1", "nDCG@10")] if every else ["-", "-"]
        cells = [name, f"{row['bytes'] / 1e6:.1f}", *(f"{every.get(key, float('nan')):.5f}" for key in
                 ("min_cosine", "mean_cosine")), f"{every.get('overlap@10', float('nan')):.4f}", *found,
                 "passes" if row["passed"] else f"fails: {row['reasons'][0]}"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| index | MB | bytes a vector | exact first 10 in its first 10 | in its first 100 |",
              "|---|---:|---:|---:|---:|"]  # fmt: skip
    for name, size in told["index"]["bytes"].items():
        cost = told["index"]["cost"].get(name)
        found = ["1", "1"] if cost is None else [f"{cost['recall@10']:.4f}", f"{cost['recall@10_of_100']:.4f}"]
        each = 4 * told["index"]["dimension"] if cost is None else cost["bytes_per_vector"]
        lines.append(f"| {name} | {size / 1e6:.2f} | {each:,} | {' | '.join(found)} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("--set", choices=("select", "report", "test"), help="else test, or report where there is none")
    parser.add_argument("--per-language", type=int, default=1_000, help="queries of each language at most")
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--output", type=Path, default=Path("outputs/measured/artefacts.json"))
    options = parser.parse_args(arguments)
    started, since = provenance(), time.monotonic()
    told = measured(options)
    content = {"provenance": {**started, "seconds": round(time.monotonic() - since, 1)}, **told}
    write(options.output, content)
    sys.stdout.write("\n".join(tables(told)) + "\n")


if __name__ == "__main__":
    main()
