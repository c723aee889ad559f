"""The model card of what is deployed, in the Hugging Face form, written from results.json: nothing is typed in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from harness.engines.deployed import MODEL_FILES
from harness.evaluation.report.markdown import escaped
from harness.evaluation.report.values import Interval, branch, clean, count, decimals, dig, number

UNKNOWN = "unknown: ask whoever made it"
_LANGUAGE = re.compile(r"^[a-z]{2,3}(-[A-Za-z0-9]+)*$")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_TAGS = ["sentence-transformers", "feature-extraction", "sentence-similarity", "retrieval", "query-encoder"]
# Our metrics as sentence-transformers names them in model-index.
_METRICS = {"P@1": "accuracy_at_1", "P@10": "precision_at_10", "nDCG@10": "ndcg_at_10", "MRR@10": "mrr_at_10",
            "Recall@100": "recall_at_100"}  # fmt: skip


@dataclass(frozen=True)
class Base:
    """A model that the student was made from: its name, what it was here, and its licence, None where nobody says."""

    name: str
    role: str
    license: str | None = None


@dataclass(frozen=True)
class Deployed:
    """What lies in the exported folder, and what it was made from.

    Attributes:
        system: the deployed student's name in results.json.
        bases: the models that it was made from.
        query_prompt, max_length, dimension: of the student.
        data: lines about the training data.
        onnx: precision -> file name; pair: whether there is one; index: its manifest (``export_index``), or None.
    """

    system: str
    bases: Sequence[Base]
    query_prompt: str
    max_length: int
    dimension: int
    data: Sequence[str] = ()
    onnx: Mapping[str, str] = field(default_factory=dict)
    pair: bool = False
    index: Mapping[str, Any] | None = None


def license_of(model: str, folder: Path) -> str | None:
    """What a model's card says of its licence, else what the package says that carries it; None: neither does."""
    card = folder / "README.md"
    if card.is_file():
        found = re.match(r"---\s*\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        try:
            told = yaml.safe_load(found[1]) if found else None
        except yaml.YAMLError:
            told = None
        if isinstance(told, dict) and isinstance(told.get("license"), str):
            return str(told["license"])
    if model.startswith("package:"):
        try:
            about = metadata.metadata(model.removeprefix("package:").strip())
        except metadata.PackageNotFoundError:
            return None
        lines = [about[name] for name in ("License-Expression", "License") if name in about]
        return lines[0].splitlines()[0].strip().lower() if lines and lines[0].strip() else None
    return None


def model_card(results: Mapping[str, Any], deployed: Deployed) -> str:
    """The card's text: YAML for machines, then Markdown in which no text of the data can become markup.

    Args:
        results: the content of results.json; any part may be missing.
        deployed: what is exported.
    """
    head = yaml.safe_dump(_front_matter(results, deployed), sort_keys=False, allow_unicode=True, width=120)
    parts = [_title(results, deployed), _quality(results, deployed), _latency(results, deployed),
             _artefacts(results, deployed), _use(deployed), _training(deployed), _licences(deployed)]  # fmt: skip
    return f"---\n{head}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


# ------------------------------------------------------------------------------------------------------ for machines


def _front_matter(results: Mapping[str, Any], deployed: Deployed) -> dict[str, Any]:
    set_name, languages = _shown(results, deployed.system)
    codes = [language for language in languages if _LANGUAGE.match(language)]
    hub = list(dict.fromkeys(base.name for base in deployed.bases if _HUB_ID.match(base.name)))
    licences = {clean(base.license) if base.license else None for base in deployed.bases}  # one line each, as all here
    run = clean(results.get("name", "run"))
    told: dict[str, Any] = {
        **({"language": codes} if codes else {}),
        "license": "unknown" if None in licences or not licences else licences.pop() if len(licences) == 1 else "other",
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": _TAGS,
        **({"base_model": hub, "base_model_relation": "finetune"} if hub else {}),
    }
    metrics = [
        {"type": _METRICS[metric], "name": metric, "value": value}
        for metric, value in branch(results, "quality", deployed.system, set_name, "macro").items()
        if metric in _METRICS and number(value) is not None
    ]
    if metrics:
        task = {"type": "information-retrieval", "name": "Information Retrieval"}
        data = {"type": "private", "name": f"{run}, set {set_name}, macro over languages"}
        found = [{"task": task, "dataset": data, "metrics": metrics}]
        told["model-index"] = [{"name": run, "results": found}]
    return told


def _shown(results: Mapping[str, Any], system: str) -> tuple[str, list[str]]:
    """The set that is shown, as the report chooses it, and its languages."""
    sets = branch(results, "quality", system)
    name = next((name for name in ("test", "report", "select") if name in sets), "")
    return name, [language for language in branch(sets, name) if language not in ("macro", "all", "micro", "worst")]


# -------------------------------------------------------------------------------------------------------- for people


def _title(results: Mapping[str, Any], deployed: Deployed) -> str:
    teacher = next((base.name for base in deployed.bases if base.role == "teacher"), "its teacher")
    size = number(dig(results, "systems", deployed.system, "parameters"))
    made_of = f"{_size(size)} parameters, " if size is not None else ""
    layers = number(dig(results, "systems", deployed.system, "layers"))
    made_of += f"{layers:.0f} layers, " if layers is not None else ""
    return (
        f"# {escaped(str(results.get('name', 'run')))}: a query encoder\n\n"
        f"It encodes **queries only** ({made_of}{deployed.dimension} dimensions), into the space of "
        f"{escaped(_named(teacher))}, and searches that model's own, unchanged document vectors. Documents are not "
        "encoded with it: use the teacher, or the pair where it is exported."
    )


def _size(parameters: float) -> str:
    if parameters >= 1e6:
        return f"{parameters / 1e6:.1f} M"
    return f"{parameters / 1e3:.0f} thousand" if parameters >= 1e3 else count(parameters)


def _named(model: str) -> str:
    """A model's name; of a folder the last part, for where it lay is no reader's business."""
    apart = model.replace("\\", "/").rstrip("/")
    is_path = apart.startswith(("/", ".", "~")) or apart.count("/") > 1 or "\\" in model
    return apart.rpartition("/")[2] if is_path and "\n" not in model else model


def _quality(results: Mapping[str, Any], deployed: Deployed) -> str:
    set_name, languages = _shown(results, deployed.system)
    if not set_name:
        return ""
    reference = str(results.get("reference") or "teacher")
    metrics = [metric for metric in ("P@1", "nDCG@10")
               if metric in branch(results, "quality", deployed.system, set_name, "macro")]  # fmt: skip
    rows = []
    for language in ("macro", *languages):
        row = branch(results, "quality", deployed.system, set_name, language)
        cells = [count(row.get("queries"))]
        for metric in metrics:
            told = branch(results, "recovery", deployed.system, set_name, language, metric)
            kept = Interval(*(number(told.get(key)) for key in ("value", "low", "high")))
            cells += [decimals(row.get(metric)), kept.text()]
        rows.append(" | ".join([escaped(language), *cells]))
    header = ["language", "queries", *(text for metric in metrics for text in (metric, f"recovery of {metric}"))]
    about = branch(results, "sets", set_name)
    flattered = " Checkpoints were chosen on this set: its numbers flatter." if about.get("selected_on") else ""
    return (
        "## What it keeps\n\n"
        f"*Recovery* is the share of what `{escaped(reference)}` finds on the same {count(about.get('documents'))} "
        f"documents, with paired bootstrap intervals over groups of queries. Set: {escaped(set_name)}.{flattered}\n\n"
        f"| {' | '.join(header)} |\n|:--|{'--:|' * (len(header) - 1)}\n" + "\n".join(f"| {row} |" for row in rows)
    )


def _latency(results: Mapping[str, Any], deployed: Deployed) -> str:
    engines = branch(results, "latency", deployed.system)
    rows = [
        f"| {escaped(engine)} | {decimals(row.get('total_p50_ms'), 2)} | {decimals(row.get('p50_ms'), 2)} | "
        f"{decimals(row.get('p99_ms'), 2)} |"
        for engine, told in engines.items() if (row := branch(told, "all"))
    ]  # fmt: skip
    if not rows:
        return ""
    conditions = {**branch(results, "conditions"), "cpu": dig(results, "provenance", "hardware", "cpu")}
    found = {key: _of_system(conditions.get(key), deployed.system)
             for key in ("device", "cpu", "threads", "dtype", "max_length")}  # fmt: skip
    told = ", ".join(f"{key.replace('_', ' ')} {escaped(value)}" for key, value in found.items() if value)
    return (
        "## How fast it is\n\n"
        f"One query at a time, in ms; the encoder is timed from token ids to the vector. Measured on: "
        f"{told or 'unknown'}.\n\n"
        "| engine | with tokenising, median | encoder, median | encoder, 99th percentile |\n|:--|--:|--:|--:|\n"
        + "\n".join(rows)
    )


def _of_system(value: object, system: str) -> str:
    """A condition in words; of one that differs by system and engine, what holds for this system, with its engines."""
    if not isinstance(value, Mapping):
        return str(value) if value else ""
    engines: dict[str, list[str]] = {}
    for name, told in value.items():
        of, _, engine = str(name).partition(" in ")
        if of == system:
            engines.setdefault(str(told), []).append(engine or "torch")
    return " and ".join(f"{told} ({', '.join(names)})" for told, names in engines.items())


def _artefacts(results: Mapping[str, Any], deployed: Deployed) -> str:
    lines = []
    for precision, told in branch(results, "parity").items():
        row = branch(told, "languages", "all")
        if precision == "pair documents" and dig(told, "passed") is True:  # vectors, but no hits
            continue
        fate = "exported" if dig(told, "passed") is True else "**not exported**"
        name = "ONNX " + precision if precision in MODEL_FILES else str(told.get("artefact", precision))
        lines.append(f"- {escaped(name)}: {fate}; cosine to the student {decimals(row.get('min_cosine'), 5)} "
                     f"at least, {decimals(row.get('mean_cosine'), 5)} on average; overlap@10 "
                     f"{decimals(row.get('overlap@10'))}, over {count(row.get('queries'))} queries")  # fmt: skip
    for name, cost in branch(deployed.index or {}, "cost").items():
        lines.append(f"- index {escaped(name)}: finds {decimals(cost.get('recall@10'))} of the exact first ten, "
                     f"{count(cost.get('bytes_per_vector'))} bytes a vector")  # fmt: skip
    return "## What was held against the student\n\n" + "\n".join(lines) if lines else ""


def _use(deployed: Deployed) -> str:
    query, prompt = "[\"your query\"]", repr(deployed.query_prompt + "your query")
    ways = [("sentence-transformers", f"""from sentence_transformers import SentenceTransformer
student = SentenceTransformer("student")
vectors = student.encode_query({query})""")]
    if deployed.pair:
        ways.append(("Both towers, with sentence-transformers 5 or newer", f"""import sentence_transformers
pair = sentence_transformers.SentenceTransformer("pair")
queries, documents = pair.encode_query({query}), pair.encode_document(["a document"])
scores = pair.similarity(queries, documents)"""))
    rounded = [precision for precision in deployed.onnx if precision.startswith("int8")]
    is_it = "may be" if len(rounded) < len(deployed.onnx) else "is, on a CPU,"
    note = f"; that {is_it} int8, which is approximate (`exact=True` leaves it out)" if rounded else ""
    ways.append((f"harness, the fastest engine on this machine{note}", f"""import harness
student = harness.load("student")
vectors = student.encode({query})"""))
    if deployed.onnx:
        file = deployed.onnx.get("int8") or next(iter(deployed.onnx.values()))
        note = f" ({file}: int8, which is approximate)" if rounded else ""
        ways.append((f"onnxruntime alone{note}", f"""import numpy, onnxruntime, tokenizers
tokenizer = tokenizers.Tokenizer.from_file("student/tokenizer.json")
tokenizer.enable_truncation({deployed.max_length})
ids = numpy.array([tokenizer.encode({prompt}).ids])
session = onnxruntime.InferenceSession("student/onnx/{file}")
vectors = session.run(["sentence_embedding"], {{"input_ids": ids, "attention_mask": numpy.ones_like(ids)}})[0]"""))
    files = branch(deployed.index or {}, "files")
    indexes = [name for name in ("faiss", "faiss-int8", "faiss-pq") if name in files]
    if indexes:
        ways.append(("FAISS, with vectors from any way above", f"""import faiss
index = faiss.read_index("index/{files[indexes[0]]["file"]}")
ids = open("index/ids.txt", encoding="utf-8").read().split("\\n")
scores, rows = index.search(vectors, min(10, index.ntotal))
found = [ids[row] for row in rows[0]]"""))
    blocks = [f"{title}:\n\n```python\n{code}\n```" for title, code in ways]
    return "## Use\n\nPaths are from the exported folder, which holds `student/`.\n\n" + "\n\n".join(blocks)


def _training(deployed: Deployed) -> str:
    return "## Training data\n\n" + "\n".join(f"- {escaped(line)}" for line in deployed.data) if deployed.data else ""


def _licences(deployed: Deployed) -> str:
    lines = [f"- {escaped(base.role)}: {escaped(_named(base.name))}, licence: {escaped(base.license or UNKNOWN)}"
             for base in deployed.bases]  # fmt: skip
    return "## Made from\n\n" + "\n".join(lines) if lines else ""
