"""What a teacher gains from training, mined and judged negatives, on real judged data.

    python benchmarks/teacher_quality.py --product-offers DIR --osm-presets DIR

One row a training, from the same weights, with the same steps, batches, rate and seed; each is a run of a recipe of
``recipes/`` up to its teacher, in a folder of its own, and finished ones are not run again. Checkpoints are chosen on
dev's half ``select``; the tables are of the half ``report``, over all documents, and nothing else was chosen on either:
steps and rates are near those of the recipes for these sets, the filter's share of 0.95 is NV-Retriever's (arXiv
2407.15831). Intervals: bootstrap over groups of queries, paired for differences; they say nothing of other seeds.
With several ``--seeds`` a query's numbers are means over them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provenance import provenance, write

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
METRICS = ("P@1", "nDCG@10", "P@10", "Recall@100")
MINED = ("mine.base={top_k: 100, share: 0.95, keep: 16}", "teacher.hard_negatives=1")
JUDGED = ("teacher.hard_negatives=1",)
QWEN3 = ("teacher.loss={kind: qwen3}",)
ZERO_SHOT = "zero-shot"


@dataclass(frozen=True)
class Row:
    """One training. ``judged``: whether the train split keeps what was judged irrelevant; ``above``: compared with."""

    name: str
    settings: Sequence[str]
    above: str
    judged: bool = False


@dataclass(frozen=True)
class Task:
    """A data set, its recipe and its rows, the most wanted first."""

    name: str
    recipe: str
    rows: Sequence[Row]


IN_BATCH, WITH_MINED, WITH_JUDGED = "in-batch negatives", "+ mined", "+ judged"
TASKS = (
    Task("product_offers", "teacher-product-offers.yaml", (
        Row(IN_BATCH, (), ZERO_SHOT),
        Row(WITH_MINED, MINED, IN_BATCH),
        Row(WITH_JUDGED, JUDGED, IN_BATCH, judged=True),
        Row("+ mined and judged", MINED, WITH_MINED, judged=True),
        Row("in-batch, qwen3 loss", QWEN3, IN_BATCH),
    )),
    Task("osm_presets", "teacher-osm-presets.yaml", (
        Row(IN_BATCH, (), ZERO_SHOT),
        Row(WITH_MINED, MINED, IN_BATCH),
        Row("in-batch, qwen3 loss", QWEN3, IN_BATCH),
    )),
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------ running


def data_folder(source: Path, folder: Path, judged: bool) -> Path:
    """The data set as it is, or a copy whose train split knows nothing of what was judged irrelevant."""
    lines = (source / "qrels" / "train.tsv").read_text(encoding="utf-8").splitlines()
    kept = [lines[0], *(line for line in lines[1:] if float(line.split("\t")[2]) > 0)]
    if judged or len(kept) == len(lines):
        return source
    if not folder.exists():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        (partial / "qrels" / "train.tsv").write_text("\n".join(kept) + "\n", encoding="utf-8")
        partial.rename(folder)
    return folder


def slug(name: str) -> str:
    """A row's name as a folder's."""
    return "-".join("".join(c if c.isalnum() else " " for c in name).split())


def overrides(row: Row, seed: int, data: Path) -> list[str]:
    """What a row's recipe sets beside its file."""
    return [f"data.path={data}", f"seed={seed}", *row.settings]


def embedded(task: Task, seed: int, source: Path, folder: Path, *, judged: bool) -> Path:
    """A run with vectors of the teacher before its training and negatives mined with it, shared by what mines.

    Judgments change no text, so with them the vectors are those without, and ``embed`` finds them in the copy.
    """
    root = folder / ("embedded-judged" if judged else "embedded")
    if judged and not root.exists():
        copy_run(embedded(task, seed, source, folder, judged=False), root)
    data = data_folder(source, folder / "data-without-judged", judged)
    recipe = ROOT / "benchmarks" / "recipes" / task.recipe
    command(recipe, [f"data.path={data}", f"seed={seed}", *MINED], root, "mine.base")
    return root


def copy_run(source: Path, target: Path) -> None:
    """A copy of a run's folder, whole or not there."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    partial.rename(target)


def run_row(task: Task, row: Row, seed: int, source: Path, folder: Path) -> Path:
    """Train a row's teacher, if that was not done before; its run's folder."""
    root = folder / f"seed-{seed}" / slug(row.name)
    if any(setting.startswith("mine.") for setting in row.settings) and not root.exists():
        copy_run(embedded(task, seed, source, folder, judged=row.judged), root)
    data = data_folder(source, folder / "data-without-judged", row.judged)
    command(ROOT / "benchmarks" / "recipes" / task.recipe, overrides(row, seed, data), root, "teacher")
    return root


def command(recipe: Path, settings: Sequence[str], output: Path, last: str) -> None:
    """``harness run`` up to a step, of this checkout."""
    words = [word for setting in settings for word in ("--set", setting)]
    arguments = ["run", str(recipe), *words, "--output", str(output), "--to", last]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "harness", *arguments], check=True, env=environment, stdout=sys.stderr)


def evaluate(root: Path, recipe: Path, settings: Sequence[str], *, trained: bool) -> Any:
    """``PerQuery`` of ``report`` over all documents: by the run's teacher, or by what it was trained from."""
    from harness.evaluation.per_query import PerQuery
    from harness.evaluation.searching import judge
    from harness.pipeline.context import Run
    from harness.pipeline.folder import RunFolder
    from harness.recipe import load_recipe
    from harness.runtime.process import folder_sha256

    run = Run(load_recipe(recipe, list(settings)), RunFolder(root), {})
    told = folder_sha256(run.folder.teacher) if trained else run.store("base-documents").sha256
    stored = root / "judged"
    if (stored / "manifest.json").exists() and json.loads((stored / "manifest.json").read_text())["key"] == told:
        return PerQuery.load(stored, hits=False)
    encoder = run.open(run.folder.teacher) if trained else run.load(run.recipe.teacher)
    records, within = run.dataset.splits["report"], run.dataset.search_within
    query_QD = encoder.encode([record.text for record in records], side="query", what="queries")
    index = (
        run.index_over(encoder.encode(run.dataset.documents.texts, side="document", what="documents"))
        if trained else run.index_of(run.store("base-documents"))
    )  # fmt: skip
    judge(index, query_QD, records, run.dataset.documents, depth=100, within=within).save(stored, {"key": told})
    return PerQuery.load(stored, hits=False)


def measured(task: Task, source: Path, folder: Path, seeds: Sequence[int], wanted: int) -> Iterator[dict[str, Any]]:
    """The first rows of a task, one after the other: name, per-query numbers, and how they came about."""
    recipe, plain = ROOT / "benchmarks" / "recipes" / task.recipe, folder / "data-without-judged"
    root = embedded(task, seeds[0], source, folder, judged=False)
    settings = [f"data.path={data_folder(source, plain, False)}", *MINED]
    yield {"name": ZERO_SHOT, "above": None, "per_query": evaluate(root, recipe, settings, trained=False), "runs": [],
           **described(root)}  # fmt: skip
    for row in task.rows[:wanted]:
        results, runs = [], []
        for seed in seeds:
            root = run_row(task, row, seed, source, folder)
            settings = overrides(row, seed, data_folder(source, plain, row.judged))
            results.append(evaluate(root, recipe, settings, trained=True))
            runs.append(training_of(root, seed))
        mean = {metric: sum(r.metrics[metric] for r in results) / len(results) for metric in results[0].metrics}
        yield {"name": row.name, "above": row.above, "settings": list(row.settings),
               "per_query": dataclasses.replace(results[0], metrics=mean), "runs": runs}  # fmt: skip


def described(root: Path) -> dict[str, Any]:
    """How much there is of a run's data."""
    told = json.loads((root / "data" / "data.json").read_text())
    return {"data": {"documents": told["documents"], "splits": told["splits"]}}


def training_of(root: Path, seed: int) -> dict[str, Any]:
    """Of one training: seed, the checkpoint kept, its score on ``select``, seconds."""
    told = json.loads((root / "logs" / "teacher.json").read_text())
    return {"seed": seed, **{key: told[key] for key in ("kept_step", "score", "seconds", "curve")}}


# -------------------------------------------------------------------------------------------------------- numbers


def numbers(rows: list[dict[str, Any]], resamples: int) -> list[dict[str, Any]]:
    """Values and differences with intervals, all from the same draws of groups; macro over languages."""
    from harness.evaluation.statistics import paired_difference_of, resample

    systems = {row["name"]: row.pop("per_query") for row in rows}
    first = systems[ZERO_SHOT]
    nothing = dataclasses.replace(first, metrics={name: 0 * column for name, column in first.metrics.items()})
    samples = resample({"nothing": nothing, **systems}, metrics=METRICS, resamples=resamples, seed=0)

    def difference(a: str, b: str) -> dict[str, Any]:
        return {metric: paired_difference_of(samples, a, b, metric, confidence=0.95) for metric in METRICS}

    for row in rows:
        name, above = row["name"], row["above"]
        row["values"] = {metric: {key: told[key] for key in ("difference", "low", "high")}
                         for metric, told in difference(name, "nothing").items()}  # fmt: skip
        row["over_above"] = difference(name, above) if above else None
        row["over_zero_shot"] = difference(name, ZERO_SHOT) if above else None
    rows[0] |= {"queries": len(first), "groups": samples.groups, "languages": samples.languages}
    return rows


def told(estimate: dict[str, Any], sign: str = "") -> str:
    """value [low, high]."""
    value, low, high = (estimate[key] for key in ("difference", "low", "high"))
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def table(rows: list[dict[str, Any]]) -> str:
    """Values of every row, then differences."""
    lines = ["| teacher | " + " | ".join(METRICS) + " | kept step | training s |", "|---" * (len(METRICS) + 3) + "|"]
    for row in rows:
        kept = ", ".join(str(run["kept_step"]) for run in row["runs"]) or "-"
        seconds = ", ".join(f"{run['seconds']:.0f}" for run in row["runs"]) or "-"
        cells = [row["name"], *(told(row["values"][metric]) for metric in METRICS), kept, seconds]
        lines.append("| " + " | ".join(cells) + " |")
    shown = ("P@1", "nDCG@10", "Recall@100")
    lines += ["", "| difference | " + " | ".join(f"{metric} | " for metric in shown) + " |", "|---" * 7 + "|"]
    for row in rows[1:]:
        for key, other in (("over_above", row["above"]), ("over_zero_shot", ZERO_SHOT)):
            if key == "over_zero_shot" and row["above"] == ZERO_SHOT:
                continue
            cells = [f"{told(row[key][metric], '+')} | {row[key][metric]['verdict']}" for metric in shown]
            lines.append("| " + " | ".join([f"{row['name']} less {other}", *cells]) + " |")
    return "\n".join(lines)


def conditions(task: Task, rows: list[dict[str, Any]], seeds: Sequence[int]) -> str:
    """What was searched by what."""
    from harness.recipe import load_recipe

    recipe = load_recipe(ROOT / "benchmarks" / "recipes" / task.recipe, ["data.path=DIR"])
    training, first = recipe.teacher.training, rows[0]
    assert training is not None
    within = ", each searching the documents of its language" if recipe.data.search_within else ""
    return (
        f"{first['queries']:,} queries of `report` in {first['groups']:,} groups; languages: "
        f"{', '.join(first['languages'])}{within}. {training.steps} steps of {training.batch_size}, rate "
        f"{training.learning_rate:g}, temperature {recipe.teacher.temperature:g}, seeds {', '.join(map(str, seeds))}; "
        f"checkpoints by {recipe.evaluate.select_metric} on `select` every {training.evaluate_every} steps; macro over "
        "languages; 95 % intervals."
    )  # fmt: skip


def main() -> None:
    """Train, evaluate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for task in TASKS:
        parser.add_argument(f"--{task.name.replace('_', '-')}", type=Path, metavar="DIR", help="its BEIR folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7])
    parser.add_argument("--rows", type=int, default=99, help="only the first rows of each set")
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, default=Path("outputs/teacher-quality"), help="where the runs go")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/teacher_quality.json"))
    options = parser.parse_args()
    sources = {task: getattr(options, task.name) for task in TASKS if getattr(options, task.name)}
    if not sources:
        parser.error("give at least one data set's folder")
    record = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    for task, source in sources.items():
        told, folder = provenance(), options.folder.resolve() / task.name
        folder.mkdir(parents=True, exist_ok=True)
        rows = numbers(list(measured(task, source.resolve(), folder, options.seeds, options.rows)), options.resamples)
        record[task.name] = {**told, "rows": rows}
        print(f"### {task.name}\n\n{conditions(task, rows, options.seeds)}\n\n{table(rows)}\n", flush=True)
        write(options.output, record)


if __name__ == "__main__":
    main()
