"""What the steps ``evaluate``, ``bench`` and ``report`` do."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.records import in_context
from harness.engines.deployed import onnx_precisions
from harness.evaluation.bench import bench
from harness.evaluation.per_query import PerQuery, described, load_query_vectors
from harness.evaluation.report import write_report
from harness.evaluation.results import build_results
from harness.evaluation.searching import agreement, judge
from harness.pipeline.checks import evaluated_sets
from harness.pipeline.context import Run
from harness.pipeline.folder import Manifest, commit, hardware, recipe_sha256, versions
from harness.pipeline.work_export import do_card, with_exports
from harness.pipeline.work_pairs import asked_in_streams
from harness.runtime.distributed import on_main
from harness.runtime.errors import InputError, Problem, StaleArtefactError
from harness.runtime.process import fingerprint, folder_sha256, logger, read_json, write_json
from harness.vectors.index import VectorIndex
from harness.vectors.space import require_same_space

if TYPE_CHECKING:
    from harness.encoders.encoder import Encoder
    from harness.engines.protocol import Engine
    from harness.recipe import BenchSettings


# ---------------------------------------------------------------------------------------------------- evaluation


def system_folder(run: Run, system: str) -> Path | None:
    """The encoder of a system; None for the teacher before its training, which the recipe describes."""
    states = {"student-untrained": "cut", "student-aligned": "aligned", "student-refined": "refined"}
    if system in states:
        return run.folder.student(states[system])
    return {"teacher": run.folder.teacher, "teacher-more": run.folder.teacher_more}.get(system)


def open_system(run: Run, system: str) -> Encoder:
    """The encoder of a system, on the device."""
    folder = system_folder(run, system)
    return run.load(run.recipe.teacher) if folder is None else run.open(folder)


def index_of_system(run: Run, system: str) -> VectorIndex:
    """The index that a system searches: the teacher's frozen one, but for other teachers their own.

    Raises:
        StaleArtefactError: the system's space is not the index's.
    """
    if system == "teacher-base":
        return run.index_of(run.store("base-documents"))
    if system == "teacher-more":
        return run.index_of(run.store("more-documents"))
    folder = system_folder(run, system)
    assert folder is not None
    require_same_space(run.space(folder), run.store("documents").space, system, "the document vectors")
    return run.frozen_index()


def query_vectors(run: Run, system: str, names: list[str]) -> dict[str, np.ndarray]:
    """The system's vectors of every set's queries, fp32; only a teacher's have contexts (``teacher.context``)."""
    splits = run.dataset.splits
    if system == "teacher" and run.recipe.teacher.model is None:
        store = run.store("queries")
        return {n: store.vectors(np.array([store.row[f"query:{r.id}"] for r in splits[n]])) for n in names}
    encoder, tokens, template = open_system(run, system), run.recipe.embed.batch_tokens, context_of(run, system)
    return {
        name: encoder.encode(
            [in_context(record.text, record.context, template) for record in splits[name]],
            side="query", batch_tokens=tokens, what=f"{system} {name}", shared=True,
        )
        for name in names
    }  # fmt: skip


def context_of(run: Run, system: str) -> str | None:
    """How a system's queries get their contexts: as ``teacher.context`` says for teachers, for students not at all."""
    return run.recipe.teacher.context if system.startswith("teacher") else None


def do_evaluate(run: Run) -> list[Path]:
    """Search with every system's queries and store what was found, per query. What is there already is kept."""
    settings, dataset, names = run.recipe.evaluate, run.dataset, evaluated_sets(run.recipe, run.dataset)
    order = [settings.reference, *(s for s in settings.systems if s != settings.reference)]
    reference: dict[str, tuple[np.ndarray, PerQuery]] = {}
    written = []
    for system in order:
        key = on_main(functools.partial(_evaluation_key, run, system))
        folders = {name: run.folder.evaluations / system / name for name in names}
        written += list(folders.values())
        if all(_has_key(folder, key, system == settings.reference) for folder in folders.values()):
            if system == settings.reference:
                reference = {n: (load_query_vectors(f), PerQuery.load(f)) for n, f in folders.items()}
            continue
        index = index_of_system(run, system)
        vectors = query_vectors(run, system, names)
        for name, folder in folders.items():
            result = judge(index, vectors[name], dataset.splits[name], dataset.documents,
                           depth=settings.depth, within=dataset.search_within)  # fmt: skip
            if system == settings.reference:
                reference[name] = (vectors[name], result)
            result.agreement = agreement(vectors[name], result, *reference[name])
            if not run.is_main:
                continue
            kept = vectors[name] if system == settings.reference else None
            result.save(folder, {"key": key, "system": system, "set": name, "reference": settings.reference}, kept)
        logger.info("evaluate: %s done", system)
    return written


def _evaluation_key(run: Run, system: str) -> str:
    """What one system's evaluation was made from: so a changed refinement does not search with the teacher again.

    By content, not by the steps' keys: a stage that is forced to run again keeps its key and may get other weights.
    """
    settings = run.recipe.evaluate
    parts = [settings.reference, settings.depth, settings.searcher, run.keys["data"]]
    return fingerprint([parts, *(_made_of(run, name) for name in (system, settings.reference))])


def _made_of(run: Run, system: str) -> list[str]:
    """Hashes of a system's encoder and of the document vectors that it searches."""
    folder = system_folder(run, system)
    encoder = run.keys["embed.base"] if folder is None else folder_sha256(folder)
    store = run.store({"teacher-base": "base-documents", "teacher-more": "more-documents"}.get(system, "documents"))
    given = run.keys["embed"] if run.recipe.teacher.model is None else ""  # the teacher's query vectors come from files
    read = [template] if (template := context_of(run, system)) else []
    return [system, encoder, given, store.sha256, *(shard.sha256 for shard in store.manifest.shards), *read]


def _has_key(folder: Path, key: str, reference: bool) -> bool:
    """Whether a whole evaluation with this key lies there; a reference has its query vectors beside."""
    try:
        return described(folder, vectors=reference).get("key") == key
    except InputError:
        return False


# --------------------------------------------------------------------------------------------------------- bench


def do_bench(run: Run) -> list[Path]:
    """Latency and throughput of the systems' query encoders, interleaved, in this process."""
    import torch

    settings = run.recipe.bench
    assert settings is not None, "planned only with the section"
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads or threads)
    try:
        engines = _timed(run, settings)
        queries = sample_queries(run, settings.queries_per_language)
        answer = bench({_label(*pair): engine for pair, engine in engines.items()}, queries, warmup=settings.warmup,
                       repeats=settings.repeats, batch_sizes=settings.batch_sizes)  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    for part in ("latency", "throughput"):
        by_system: dict[str, dict[str, Any]] = {}
        for system, name in engines:
            by_system.setdefault(system, {}).update(answer[part][_label(system, name)])
        answer[part] = by_system
    write_json(run.folder.bench, answer)
    return [run.folder.bench]


def _label(system: str, engine: str) -> str:
    """Under what name one system in one engine is timed."""
    return system if engine == "torch" else f"{system} in {engine}"


def _timed(run: Run, settings: BenchSettings) -> dict[tuple[str, str], Engine]:
    """(system, engine) -> the engine: every system in torch and what compiles it, the deployed one in ONNX, too.

    What failed the parity gate is not there to be timed; the report says so.
    """
    import torch

    from harness.engines.torch_eager import TorchEngine

    found: dict[tuple[str, str], Engine] = {(s, "torch"): TorchEngine(open_system(run, s)) for s in settings.systems}
    for name in settings.engines:
        if name.startswith("onnx"):
            from harness.engines.onnx_runtime import OnnxEngine

            precision, folder = name.removeprefix("onnx").lstrip("-") or "fp32", run.folder.export / "student"
            assert run.recipe.export is not None, "refused by the recipe"
            if precision in onnx_precisions(folder):
                engine = OnnxEngine(folder, precision=precision, threads=torch.get_num_threads())  # as all others
                found[run.recipe.export.system, name] = engine
            continue
        for system in settings.systems:
            found[system, name] = _compiled(name, open_system(run, system))
    return found


def _compiled(name: str, encoder: Encoder) -> Engine:
    """An engine that records or compiles what the encoder does."""
    if name == "torch-compile":
        from harness.engines.torch_compile import TorchCompileEngine

        return TorchCompileEngine(encoder)
    from harness.engines.cuda_graphs import CudaGraphsEngine

    return CudaGraphsEngine(encoder, device=encoder.device)


def sample_queries(run: Run, per_language: int) -> dict[str, list[str]]:
    """Real query texts of the last set that the data has, some of each language."""
    splits = run.dataset.splits
    records = splits.get("test") or splits["report"]
    by_language: dict[str, list[str]] = {}
    for record in records:
        by_language.setdefault(record.language, []).append(record.text)
    random = np.random.default_rng(run.recipe.seed)
    return {
        language: [texts[i] for i in random.permutation(len(texts))[:per_language]]
        for language, texts in sorted(by_language.items())
    }


# -------------------------------------------------------------------------------------------------------- report


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
        [*run.recipe.evaluate.systems, *(run.recipe.bench.systems if run.recipe.bench else [])]
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


def _sets(run: Run, names: list[str]) -> dict[str, dict[str, Any]]:
    dataset, splits = run.dataset, read_json(run.folder.data / "data.json")["splits"]
    in_streams = asked_in_streams(run)
    return {
        name: {
            "split": "test" if name == "test" else "dev",
            "queries": len(dataset.splits[name]),
            "documents": len(dataset.documents.ids),
            "languages": sorted({record.language for record in dataset.splits[name]}),
            "selected_on": name == "select",
            "shared_with_train": splits[name].get("shared_with_train", {})
            | ({"streams": in_streams[name]} if name in in_streams else {}),
            **({"contexts": splits[name].get("contexts", 0)} if run.recipe.teacher.context else {}),
        }
        for name in names
    }


def collect_results(run: Run) -> dict[str, Any]:
    """results.json of a run, from what its steps stored."""
    settings, names = run.recipe.evaluate, evaluated_sets(run.recipe, run.dataset)
    evaluations: dict[str, dict[str, PerQuery]] = {
        system: {name: PerQuery.load(run.folder.evaluations / system / name, hits=False) for name in names}
        for system in settings.systems
    }
    manifest = Manifest(run.folder)
    steps = {name: step for name, step in manifest.steps.items() if name != "report"}  # that would be an earlier one
    provenance = {
        "commit": commit(), "recipe_sha256": recipe_sha256(run.recipe), "seed": run.recipe.seed, "versions": versions(),
        "hardware": hardware(), "started": min(step["started"] for step in steps.values()),
        "wall_seconds": round(sum(step["seconds"] for step in steps.values()), 1),
        "steps": {name: step["seconds"] for name, step in steps.items()},
    }  # fmt: skip
    if manifest.updates:  # documents came and went after the models were trained
        provenance["updates"] = manifest.updates
    told = read_json(run.folder.bench) if run.recipe.bench else None
    results = build_results(
        name=run.recipe.name,
        evaluations=evaluations,
        reference=settings.reference,
        systems=_describe_systems(run),
        sets=_sets(run, names),
        provenance=provenance,
        conditions=told["conditions"] if told else {},
        bench=told,
        training=_training(run),
        bars=run.recipe.report.bars,
        resamples=settings.resamples,
        confidence=settings.confidence,
        seed=run.recipe.seed,
        warn_teacher_gain=run.recipe.report.warn_teacher_gain,
    )
    return with_exports(run, results)
