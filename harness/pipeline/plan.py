"""A recipe as a chain of steps: which ones, from what, with which settings, and so under which key.

A step's key hashes its inputs' keys, its settings and a version that rises when its code changes meaning. Launch and
tracking settings stay out. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.recipe import Recipe
from harness.runtime.process import fingerprint


@dataclass(frozen=True)
class Step:
    """One step of a run.

    ``settings`` names the recipe's keys that decide its result; ``trains`` marks the stages; ``gpu`` what a GPU speeds
    up; ``shared`` what several processes divide among them; ``along`` what the plain verb runs, too.
    """

    name: str
    version: int
    inputs: tuple[str, ...]
    settings: tuple[str, ...]
    wanted: Callable[[Recipe], bool] = lambda recipe: True
    trains: bool = False
    gpu: bool = True
    shared: bool = False
    along: bool = False

    @property
    def verb(self) -> str:
        """The command that runs it."""
        return self.name.split(".")[0]


def _wants(system: str) -> Callable[[Recipe], bool]:
    def wanted(recipe: Recipe) -> bool:
        return system in [*recipe.evaluate.systems, *(recipe.bench.systems if recipe.bench else [])]

    return wanted


def _aligns_on_streams(recipe: Recipe) -> bool:
    return recipe.align is not None and bool(recipe.align.streams)


def _embeds_base(recipe: Recipe) -> bool:
    return recipe.mine.base is not None or _wants("teacher-base")(recipe)


def _exports(artefact: str) -> Callable[[Recipe], bool]:
    def wanted(recipe: Recipe) -> bool:
        return recipe.export is not None and bool(getattr(recipe.export, artefact))

    return wanted


SAMPLING = ("seed", "data.language_temperature", "evaluate.select_metric")  # what every training also depends on

SEARCHED = tuple(f"evaluate.{key}" for key in ("systems", "reference", "sets", "searcher", "metrics", "depth"))

# What artefacts are held against the student by.
GATE = ("export.parity", "evaluate.resamples", "evaluate.confidence", "seed")

# In running order; an input that a recipe does not want is left out of the key.
STEPS = (
    Step("data", 1, (), ("data", "prepared anew"), gpu=False),
    Step("data.slices", 1, ("data",), ("evaluate.slices",), lambda r: bool(r.evaluate.slices), gpu=False, along=True),
    Step("embed.base", 1, ("data",), ("teacher.model", "teacher.encoder", "embed"), _embeds_base, shared=True),
    Step("mine.base", 1, ("embed.base",), ("mine.base", "teacher.hard_negatives"), lambda r: r.mine.base is not None,
         shared=True),
    Step("teacher.streams", 1, ("data",), ("paired streams", "teacher.encoder"), lambda r: bool(r.teacher.streams),
         gpu=False, shared=True, along=True),
    Step("teacher", 1, ("data", "mine.base", "teacher.streams"), ("teacher", "mixed pairs", *SAMPLING), trains=True,
         shared=True),
    Step("embed", 1, ("data", "teacher"), ("documents", "embed", "embedded kinds"), shared=True),
    Step("student", 1, ("teacher", "embed"), ("student", "seed")),
    Step("embed.streams", 1, ("teacher", "student"), ("encoded streams",), _aligns_on_streams, shared=True),
    Step("align", 1, ("embed", "student", "embed.streams"), ("align", "mixed streams", *SAMPLING),
         lambda r: r.align is not None, trains=True, shared=True),
    Step("mine.refine", 1, ("embed",), ("mine.refine",), lambda r: r.mine.refine is not None, shared=True),
    Step("refine", 1, ("align", "embed", "mine.refine"),
         ("refine", *SAMPLING), lambda r: r.refine is not None, trains=True, shared=True),
    Step("teacher.more", 1, ("teacher",), ("teacher", "refine.training.steps", "mixed pairs", *SAMPLING),
         _wants("teacher-more"), trains=True, shared=True),
    Step("embed.more", 1, ("data", "teacher.more"), ("embed",), _wants("teacher-more"), shared=True),
    Step("embed.outside", 3, ("teacher",), ("embed", "evaluate.outside"), lambda r: bool(r.evaluate.outside),
         shared=True, along=True),
    Step("export", 3, ("data", "embed", "align", "refine"), ("export", *GATE), lambda r: r.export is not None,
         gpu=False),
    Step("export.pair", 3, ("data", "embed", "teacher", "align", "refine"), ("export.system", *GATE), _exports("pair"),
         gpu=False, along=True),
    Step("export.index", 1, ("data", "embed", "align", "refine"), ("export.system", "export.index", "seed"),
         _exports("index"), gpu=False, along=True),
    Step("export.onnx", 3, ("data", "embed", "export"), ("export.onnx", "export.triton", *GATE), _exports("onnx"),
         gpu=False, along=True),
    Step("bench.ann", 2, ("data", "embed", "student", "align", "refine"),
         ("bench.ann", "export.system", *(f"evaluate.{key}" for key in ("searcher", "select_metric", "confidence")),
          "seed"),
         lambda r: r.bench is not None and r.bench.ann is not None, along=True),
    Step("evaluate", 2, ("export.onnx", "bench.ann", "embed.base", "embed", "student", "align", "refine",
         "embed.more"), SEARCHED, shared=True),
    Step("evaluate.outside", 1, ("embed.outside", "student", "align", "refine"),
         tuple(f"evaluate.{key}" for key in ("outside", "systems", "searcher", "metrics", "depth")),
         lambda r: bool(r.evaluate.outside), shared=True, along=True),
    Step("bench", 3, ("data", "embed.base", "embed", "student", "align", "refine", "teacher.more", "embed.more",
         "export.onnx"), ("bench", "bench searcher"), lambda r: r.bench is not None),
    Step("report", 5, ("data.slices", "evaluate", "evaluate.outside", "bench", "bench.ann", "export", "export.pair",
         "export.index", "export.onnx"), ("report", "bench price", "evaluate", "name"), gpu=False),
)  # fmt: skip
VERBS = tuple(dict.fromkeys(step.verb for step in STEPS))


def plan(recipe: Recipe) -> list[Step]:
    """The steps that this recipe wants, in running order, each with the inputs that it really reads."""
    return [_as_read(step, recipe) for step in STEPS if step.wanted(recipe)]


def _as_read(step: Step, recipe: Recipe) -> Step:
    """``bench`` opens ONNX files only for engines that run them, ``evaluate`` them and approximate indexes for a system
    each."""
    if step.name == "evaluate":
        of = {"export.onnx": "student-int8", "bench.ann": "student-ann"}
        systems = recipe.evaluate.systems
        return replace(step, inputs=tuple(name for name in step.inputs if of.get(name, systems[0]) in systems))
    engines = recipe.bench.engines if recipe.bench else []
    if step.name != "bench" or any(engine.startswith("onnx") for engine in engines):
        return step
    return replace(step, inputs=tuple(name for name in step.inputs if name != "export.onnx"))


def embedded_kinds(recipe: Recipe) -> list[str]:
    """Which texts the teacher encodes as queries: those of the alignment, and training queries for the anchor."""
    kinds = set(recipe.align.texts if recipe.align else ["queries"])
    if recipe.align and recipe.align.targets == "online":
        kinds = set()
    if recipe.refine or recipe.mine.refine:
        kinds.add("queries")
    return sorted(kinds)


def encoded_streams(recipe: Recipe) -> Any:
    """What tokens and vectors of the aligned streams depend on."""
    assert recipe.align is not None
    streams = {name: recipe.data.streams[name].model_dump(mode="json") for name in recipe.align.streams}
    for stream in streams.values():
        del stream["weight"], stream["positive"], stream["prompts"]["document"]
    return {"streams": streams, "targets": recipe.align.targets, "dtype": recipe.embed.stream_dtype,
            "precision": recipe.embed.precision, "context": recipe.teacher.context}  # fmt: skip


def prepared_anew(recipe: Recipe) -> str | None:
    """What of the data step came to mean something else, where it can show: version 3 of the step for such recipes.

    What shares a group or a parallel id is one group, and no id is a group; unlabelled texts that an evaluation asks in
    another Unicode form are left out.
    """
    data = recipe.data
    columns = data.columns.group if data.source in ("pairs", "huggingface") else "group"
    joined = data.source != "emoji" and data.group in (None, "group") and columns == "group"
    return "3" if joined or data.unlabelled else None


def paired_streams(recipe: Recipe) -> Any:
    """What the tokens of the teacher's pairs depend on."""
    streams = {name: recipe.data.streams[name].model_dump(mode="json") for name in recipe.teacher.streams}
    return {name: {key: value for key, value in stream.items() if key != "weight"} for name, stream in streams.items()}


def mixed_streams(recipe: Recipe, names: Sequence[str]) -> Any:
    """How a training's batches are drawn from streams; None where it has none."""
    if not names:
        return None
    weights = {name: recipe.data.streams[name].weight for name in names}
    return {"weights": weights, "one_stream_per_batch": recipe.data.one_stream_per_batch}


def _setting(recipe: Recipe, path: str) -> Any:
    """A part of the recipe as plain data; ``teacher.encoder`` is the teacher without its training.

    What stages read of streams is no part of ``data`` and ``embed``: another weight leaves documents and teacher alone.
    """
    if path == "embedded kinds":
        return embedded_kinds(recipe)
    if path == "export":  # the student's folder; what else is exported has steps of its own
        return recipe.export and {"system": recipe.export.system}
    if path == "bench":  # bench.ann is a step of its own, and the report multiplies by the price
        others = ("ann", "price_per_hour", "currency")
        return recipe.bench and {key: value for key, value in recipe.bench.keyed().items() if key not in others}
    if path == "bench price":
        price = recipe.bench.price_per_hour if recipe.bench else None
        return [price, recipe.bench.currency] if recipe.bench and price is not None else None
    if path == "bench searcher":  # embed freezes an index of one kind, so its key does not say with what is searched
        return None if recipe.evaluate.searcher == "auto" else recipe.evaluate.searcher
    if path == "prepared anew":
        return prepared_anew(recipe)
    if path == "encoded streams":
        return encoded_streams(recipe)
    if path == "mixed streams":
        return mixed_streams(recipe, recipe.align.streams if recipe.align else [])
    if path == "paired streams":
        return paired_streams(recipe)
    if path == "mixed pairs":
        return mixed_streams(recipe, recipe.teacher.streams)
    tree = recipe.keyed()
    for section, name in (("data", "streams"), ("data", "one_stream_per_batch"), ("embed", "stream_dtype")):
        tree[section].pop(name, None)
    if path == "teacher.encoder":
        names = ("model", "sha256", "revision", "trust_remote_code", "prompts", "pooling", "max_length", "dimension")
        context = {name: tree["teacher"][name] for name in ("context",) if name in tree["teacher"]}  # added later
        return {name: tree["teacher"][name] for name in names} | context
    node: Any = tree
    for key in path.split("."):
        if node is None:
            return None
        node = node.get(key)  # a setting that came later and is at its default has no key
    return node


# Left out where they are None, as the keys of earlier versions had none.
_ADDED = ("prepared anew", "mixed streams", "mixed pairs", "bench price", "bench searcher")


def _settings(recipe: Recipe, step: Step) -> dict[str, Any]:
    found = {path: _setting(recipe, path) for path in step.settings}
    return {path: value for path, value in found.items() if value is not None or path not in _ADDED}


def keys(recipe: Recipe, sources: Mapping[str, Any]) -> dict[str, str]:
    """The key of each planned step. ``sources`` holds fingerprints of what lies outside: data files and models.

    ``sources`` maps a step's name to plain data (e.g. content hashes) that goes into that step's key.
    """
    found: dict[str, str] = {}
    for step in plan(recipe):
        found[step.name] = fingerprint(
            {
                "step": step.name,
                "version": step.version,
                "inputs": {name: found[name] for name in step.inputs if name in found},
                "settings": _settings(recipe, step),
                "sources": sources.get(step.name),
                **({"tokenizer": sources.get("teacher")} if step.name == "teacher.streams" else {}),
            }
        )
    return found


def depends_on(changed: str, recipe: Recipe) -> list[str]:
    """``changed`` and every planned step that directly or indirectly takes it as input, in running order."""
    affected = {changed}
    for step in plan(recipe):
        if affected & set(step.inputs):
            affected.add(step.name)
    return [step.name for step in plan(recipe) if step.name in affected]
