"""What the step ``report`` does: joins what the other steps stored into results.json and its renderings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.data.dropped import dropped_of_set
from harness.data.records import Dataset, Record
from harness.evaluation.report import write_report
from harness.evaluation.results import build_results
from harness.pipeline.checks import evaluated_sets
from harness.pipeline.context import Run
from harness.pipeline.hits import read_evaluations
from harness.pipeline.int8_system import evaluated_systems, why_left_out
from harness.pipeline.labels import judged_records, labels_told
from harness.pipeline.manifest import Manifest
from harness.pipeline.provenance import commit, hardware, recipe_sha256, versions
from harness.pipeline.work_ann import with_ann
from harness.pipeline.work_bench import read_bench
from harness.pipeline.work_evaluation import system_folder
from harness.pipeline.work_export import do_card, with_exports
from harness.pipeline.work_outside import outside_results
from harness.pipeline.work_pairs import asked_in_streams
from harness.pipeline.work_slices import slice_queries, slice_sections
from harness.runtime.errors import Problem, StaleArtefactError
from harness.runtime.process import read_json, write_json


def do_report(run: Run) -> list[Path]:
    """Join evaluations, bench and exports into results.json, report.md, report.html and the card of the deployed."""
    results = collect_results(run)
    write_json(run.folder.results, results)
    write_report(results, run.folder.root)
    return [run.folder.results, run.folder.root / "report.md", run.folder.root / "report.html", *do_card(run, results)]


def _describe_systems(run: Run) -> dict[str, dict[str, Any]]:
    from harness.encoders.folder import describe_folder
    from harness.encoders.sources import resolve_model

    described: dict[str, dict[str, Any]] = {}
    for system in dict.fromkeys(
        [*evaluated_systems(run), *(run.recipe.bench.systems if run.recipe.bench else [])]
    ):
        folder = system_folder(run, system)
        if folder is None:
            folder = resolve_model(run.recipe.teacher.model or "", run.recipe.teacher.revision)
            space = run.store("base-documents").space.fingerprint
        else:
            space = run.space(folder).fingerprint
        if (folder / "config.json").exists():
            told = describe_folder(folder)
            names = {"parameters": "parameters", "parameters_without_embeddings": "parameters_without_embeddings",
                     "layers": "layers", "dimensions": "dimension"}  # fmt: skip
            described[system] = {ours: told[theirs] for ours, theirs in names.items()} | {"space": space}
        else:
            described[system] = {"space": space}
    return described


def _training(run: Run) -> dict[str, Any]:
    """Each stage's curve on ``select`` and its losses (thinned to 200 points)."""
    metric = run.recipe.evaluate.select_metric
    found = {}
    manifest = Manifest(run.folder)
    for step, stage in {
        "teacher": "teacher",
        "align": "align",
        "refine": "refine",
        "teacher.more": "teacher-more",
    }.items():
        summary = run.folder.root / "logs" / f"{stage}.json"
        if not manifest.current(step) or not summary.exists():
            continue
        told = read_json(summary)
        losses = _losses(run.folder.log(stage))
        found[stage] = {
            "curve": [{"step": p["step"], "metric": metric, "value": p[metric]} for p in told["curve"]],
            "loss": losses[:: max(1, len(losses) // 200)],
            "seconds": told["seconds"],
            "kept_step": told["kept_step"],
        }
    return found


def _losses(log: Path) -> list[dict[str, Any]]:
    """The losses of a stage's log; none where it was deleted.

    Raises:
        StaleArtefactError: the log is damaged.
    """
    try:
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
        return [{"step": line["step"], "loss": line["loss"]} for line in lines if "loss" in line]
    except (ValueError, KeyError, TypeError) as error:
        raise StaleArtefactError(
            Problem("the log is damaged", where=str(log), got=str(error),
                    next="restore it, or delete it: the report then shows no losses of this stage")
        ) from None  # fmt: skip


def _sets(run: Run, judged: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, Any]]:
    dataset, told = run.dataset, read_json(run.folder.data / "data.json")
    splits = told["splits"]
    in_streams, sha256 = asked_in_streams(run), set_hashes(dataset, judged)
    bare = set_hashes(dataset, {name: dataset.splits[name] for name in judged}) if run.labels.labels else {}
    return {
        name: {
            "split": "test" if name == "test" else "dev",
            "queries": len(dataset.splits[name]),
            "documents": len(dataset.documents.ids),
            "languages": sorted({record.language for record in dataset.splits[name]}),
            "sha256": sha256[name],
            **({"sha256_without_labels": bare[name]} if bare else {}),
            "selected_on": name == "select",
            "shared_with_train": splits[name].get("shared_with_train", {})
            | ({"streams": in_streams[name]} if name in in_streams else {}),
            **({"contexts": splits[name].get("contexts", 0)} if run.recipe.teacher.context else {}),
            **dropped_of_set(told, name),
        }
        for name in judged
    }


def set_hashes(dataset: Dataset, judged: Mapping[str, Sequence[Record]]) -> dict[str, str]:
    """What a set asks, of which documents, and what is judged relevant or not: runs are compared where it is the same.

    Args:
        judged: set -> its queries, with the labels that judge them, too. Where each is searched in its language alone,
            it counts that it is so, and which language each document has.
    """
    of_documents, documents, found = hashlib.sha256(), dataset.documents, {}
    for id_, text in zip(documents.ids, documents.texts, strict=True):
        of_documents.update(f"{id_}\0{text}\0".encode(errors="surrogatepass"))
    searched = json.dumps(["searched in", documents.languages if dataset.search_within else None]).encode()
    for name, records in judged.items():
        digest = of_documents.copy()
        for record in records:
            grades = [sorted(record.positives.items()), sorted(record.negatives)]
            digest.update(json.dumps([record.id, record.language, record.text, *grades]).encode())
        digest.update(searched)
        found[name] = digest.hexdigest()
    return found


def _seconds(steps: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """How long each step took; what was evaluated when another step ended counts as evaluation."""
    seconds = {name: float(step["seconds"]) for name, step in steps.items()}
    early = sum(step.get("evaluation_seconds", 0.0) for step in steps.values())
    return {name: round(took + early, 1) if name == "evaluate" else took for name, took in seconds.items()}


def collect_results(run: Run) -> dict[str, Any]:
    """results.json of a run, from what its steps stored."""
    settings, names = run.recipe.evaluate, evaluated_sets(run.recipe, run.dataset)
    judged = {name: judged_records(run, name) for name in names}
    evaluations, hit_sections = read_evaluations(run, judged)
    manifest = Manifest(run.folder)
    steps = {name: step for name, step in manifest.steps.items() if name != "report"}  # that would be an earlier one
    seconds = _seconds(steps)
    provenance = {
        "commit": commit(), "recipe_sha256": recipe_sha256(run.recipe), "seed": run.recipe.seed, "versions": versions(),
        "hardware": hardware(), "started": min(step["started"] for step in steps.values()),
        "wall_seconds": round(sum(seconds.values()), 1),
        "steps": seconds,
    }  # fmt: skip
    if manifest.updates:  # documents came and went after the models were trained
        provenance["updates"] = manifest.updates
    told, sliced = read_bench(run), slice_queries(run, names)
    results = build_results(
        name=run.recipe.name,
        evaluations=evaluations,
        reference=settings.reference,
        systems=_describe_systems(run),
        sets=_sets(run, judged),
        provenance=provenance,
        conditions=told["conditions"] if told else {},
        bench=told,
        training=_training(run),
        report=run.recipe.report,
        resamples=settings.resamples,
        confidence=settings.confidence,
        seed=run.recipe.seed,
        slices=sliced.slices,
        exported=run.recipe.export.system if run.recipe.export else None,
    )
    results["warnings"] += filter(None, [why_left_out(run)])
    results |= slice_sections(run, evaluations, sliced, results["recovery"])
    results |= {**hit_sections, **outside_results(run), **labels_told(run, judged)}
    return with_exports(run, with_ann(run, results))
