"""What can't be exported, evaluated, timed or held to a bar, each with its reason and what to do."""

from __future__ import annotations

from harness.recipe.settings import Recipe


def impossible_evaluation(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Combinations after the trainings that can't work, as (key, reason, what to do)."""
    found = [*_impossible_export(recipe), *_impossible_outside(recipe), *_impossible_ann(recipe)]
    found += [*_impossible_metrics(recipe), *_impossible_bench(recipe)]
    for name in sorted({"length", "frequency", "seen"} & set(recipe.evaluate.slices)):
        found.append(("evaluate.slices", f"the report has slices of its own by {name}", "rename the column"))
    return found


def _impossible_export(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Artefacts that lack what they are made of, and engines that lack their artefact."""
    export, found = recipe.export, []
    if export and export.pair and recipe.teacher.model is None:
        found.append(("export.pair", "a teacher without weights can't encode documents", "set export.pair: false"))
    if export and export.triton and not export.onnx:
        found.append(("export.triton", "a Triton model repository holds ONNX files, and export.onnx names none",
                      "set export.onnx: [fp32], or export.triton: false"))  # fmt: skip
    if export and (parity := export.parity).min_cosine > parity.mean_cosine:
        least, mean = parity.min_cosine, parity.mean_cosine
        told = {name: "" if name in parity.model_fields_set else ", the default"
                for name in ("min_cosine", "mean_cosine")}  # fmt: skip
        what = (f"a mean below the least is not possible: mean_cosine is {mean:g}{told['mean_cosine']}, "
                f"min_cosine {least:g}{told['min_cosine']}")  # fmt: skip
        found.append(("export.parity.mean_cosine", what, f"set it to at least {least:g}, or min_cosine to at most "
                      f"{mean:g}, too") if told["min_cosine"] else
                     ("export.parity.min_cosine", what, f"set it to at most {mean:g}, or mean_cosine to at least "
                      f"{least:g}"))  # fmt: skip
    files = {"onnx": "fp32", "onnx-fp16": "fp16", "onnx-int8": "int8", "onnx-int8-static": "int8-static"}
    made = export.onnx if export else []
    for engine in recipe.bench.engines if recipe.bench else []:
        if engine in files and files[engine] not in made:
            found.append(("bench.engines", f"{engine} runs a file that is not exported",
                          f"add {files[engine]} to export.onnx, or take {engine} out"))  # fmt: skip
    if "student-int8" in recipe.evaluate.systems and "int8" not in made:
        found.append(("evaluate.systems", "student-int8 is the deployed int8 file, and export.onnx makes none",
                      "add int8 to export.onnx, or take student-int8 out"))  # fmt: skip
    if recipe.bench and "student-int8" in recipe.bench.systems:
        found.append(("bench.systems", "student-int8 is the deployed student in the engine onnx-int8",
                      "take it out, and add onnx-int8 to bench.engines"))  # fmt: skip
    if recipe.bench and recipe.bench.engines and export and export.system not in recipe.bench.systems:
        found.append(("bench.engines", f"{export.system} is deployed, and is not among bench.systems",
                      f"add {export.system} to bench.systems, or take the engines out"))  # fmt: skip
    return found


def _impossible_outside(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Outside sets without a source or with two, of one name, or without a teacher that encodes them."""
    found: list[tuple[str, str, str]] = []
    sets = recipe.evaluate.outside
    for at, given in enumerate(sets):
        key = f"evaluate.outside.{at}"
        if (given.beir is None) == (given.mteb is None):
            found.append((key, "one of beir and mteb says where the set comes from", "name one of the two"))
        if given.subset is not None and given.mteb is None:
            found.append((f"{key}.subset", "only tasks of mteb have subsets", "remove it"))
        if given.name.casefold() in [other.name.casefold() for other in sets[:at]]:
            found.append((f"{key}.name", f"another outside set is called {given.name}", "give each its own name"))
    if sets and recipe.teacher.model is None:
        found.append(("evaluate.outside", "a teacher without weights can't encode other documents", "remove it"))
    return found


def _impossible_ann(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Efforts that are measured nowhere, and a system without the index that it searches."""
    found, ann = [], recipe.bench.ann if recipe.bench else None
    if ann is None and "student-ann" in recipe.evaluate.systems:
        found.append(("evaluate.systems", "student-ann searches an approximate index, and bench.ann builds none",
                      "add bench.ann, or take student-ann out"))  # fmt: skip
    if recipe.bench and "student-ann" in recipe.bench.systems:
        found.append(("bench.systems", "student-ann has the encoder of the deployed student, and bench.ann times it",
                      "take it out of bench.systems"))  # fmt: skip
    if ann is None:
        return found
    found += [
        (f"bench.ann.efforts.{kind}", f"{kind} is not among bench.ann.indexes", "add it there, or remove its efforts")
        for kind in ann.efforts if kind not in ann.indexes
    ]  # fmt: skip
    asked = {f"bench.ann.efforts.{kind}": (kind, max(efforts)) for kind, efforts in ann.efforts.items()}
    asked |= {"bench.ann.effort": (ann.indexes[0], ann.effort)} if ann.effort else {}
    for key, (kind, effort) in asked.items():
        lists = ann.parameters(kind).get("lists")
        if lists is not None and effort > lists:
            found.append((key, f"{effort:,} lists can't be searched: there are {lists:,}", f"ask for at most {lists}"))
    return found


def _impossible_metrics(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Metrics that look deeper than is searched, that compare nothing, or that bars ask for and nobody measures."""
    evaluate, bars = recipe.evaluate, recipe.report.bars
    found, deepest = [], max(evaluate.metrics, key=lambda metric: int(metric.split("@")[1]))
    if int(deepest.split("@")[1]) > evaluate.depth:
        found.append(("evaluate.metrics", f"{deepest} looks deeper than evaluate.depth, which is {evaluate.depth}",
                      f"set evaluate.depth: {deepest.split('@')[1]}, or take {deepest} out"))  # fmt: skip
    if all(metric.startswith("judged@") for metric in evaluate.metrics):
        found.append(("evaluate.metrics", "judged@k tells how much is known of the hits, and not how good they are",
                      "add a quality such as P@1"))  # fmt: skip
    found += [
        (f"report.bars.{name}.{metric}", f"{metric} is not among evaluate.metrics", "add it there, or remove the bar")
        for name in ("teacher", "recovery", "worst") for metric in getattr(bars, name) if metric not in evaluate.metrics
    ]  # fmt: skip
    return found


def _impossible_bench(recipe: Recipe) -> list[tuple[str, str, str]]:
    """A bar of what is not timed, and a currency of no price."""
    bench, bars, found = recipe.bench, recipe.report.bars, []
    if bench and bench.currency is not None and bench.price_per_hour is None:
        found.append(("bench.currency", "there is no price that it would stand beside", "add bench.price_per_hour"))
    if bars.latency_ratio is not None and recipe.teacher.model is None:
        found.append(("report.bars.latency_ratio", "a teacher without weights can't be timed", "remove it"))
    elif bars.latency_ratio is not None and (why := _untimed(recipe, "teacher")):
        found.append(("report.bars.latency_ratio", *why))
    if bars.latency_ms is not None and (why := _untimed(recipe)):
        found.append(("report.bars.latency_ms", *why))
    return found


def _untimed(recipe: Recipe, *others: str) -> tuple[str, str] | None:
    """Why the latency of the student that bars are about (over that of ``others``) is not measured, and what to do."""
    evaluate = recipe.evaluate
    students = [name for name in ("student-refined", "student-aligned", "student-untrained")
                if name in evaluate.systems and name != evaluate.reference]  # fmt: skip
    if recipe.bench is None:
        return "nothing is timed", "add the section bench, or remove it"
    if not students:
        return "it is of the last student that is evaluated, and none is", "add one to evaluate.systems, or remove it"
    wanted = (students[0], *others)
    missing = " and ".join(system for system in wanted if system not in recipe.bench.systems)
    if not missing:
        return None
    what = f"it is of {' over '.join(wanted)}, and {missing} is not timed"
    return what, f"add {missing} to bench.systems, or remove it"
