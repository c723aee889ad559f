"""Is everything in a run's folder whole, and do two runs' folders hold the same?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.data.folder import load_dataset
from harness.data.token_cache import TokenCache
from harness.encoders.chain import safetensors_shapes, weights_sha256
from harness.evaluation.per_query import PerQuery, load_query_vectors
from harness.pipeline.folder import RunFolder, refuse_edited_recipe
from harness.pipeline.manifest import Manifest
from harness.recipe import load_recipe
from harness.runtime.process import file_sha256, fingerprint, read_json
from harness.vectors.index import VectorIndex
from harness.vectors.mining import read_tables
from harness.vectors.space import Space
from harness.vectors.store import VectorStore
from harness.vectors.stream_store import StreamVectors

TIMES = {"started", "finished", "seconds", "wall_seconds", "commit", "throughput", "latency", "noise"}


def _check_model(folder: Path) -> None:
    """A model folder: its weights are those that it names, and everything else can be read."""
    from tokenizers import Tokenizer

    told = read_json(folder / "harness.json")
    assert told["weights_sha256"] == weights_sha256(folder) and "space" in told
    for path in folder.rglob("*.json"):
        read_json(path)
    Tokenizer.from_file(str(folder / "tokenizer.json"))


def _check_index(folder: Path) -> None:
    told = read_json(folder / "manifest.json")
    VectorIndex.load(folder, Space.from_json(told["space"]))
    for entry in told["parts"]:
        assert file_sha256(folder / entry["file"]) == entry["sha256"], entry["file"]


def _check_tokens(manifest: Path) -> None:
    TokenCache(manifest.parent, read_json(manifest)).verify()


def _check_mined(folder: Path) -> None:
    assert sum(table.num_rows for _, table in read_tables(folder)) == read_json(folder / "audit.json")["queries"]


def _check_checkpoint(folder: Path) -> None:
    told = read_json(folder / "state.json")
    assert told.pop("sha256") == fingerprint(told), "state.json"
    for name, entry in told["files"].items():
        assert file_sha256(folder / name) == entry["sha256"], name
        safetensors_shapes(folder / name)


def _check_evaluation(folder: Path) -> None:
    found = PerQuery.load(folder)
    if "vectors_sha256" in read_json(folder / "manifest.json"):
        assert len(load_query_vectors(folder)) == len(found)


def _check_log(path: Path) -> None:
    """One JSON object a line; the last may be broken off, for a log grows under its final name."""
    lines = path.read_bytes().split(b"\n")
    for line in lines[:-1]:
        json.loads(line)


def _check_text(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.rstrip().endswith("</html>") if path.suffix == ".html" else text.endswith("\n")


def _artefacts(out: Path) -> Iterator[tuple[Path, Callable[[Path], Any]]]:
    """Each artefact that is there under its final name, with what opens it whole."""
    folder = RunFolder(out)
    patterns: list[tuple[str, Callable[[Path], Any]]] = [
        ("data", load_dataset), ("teacher", _check_model), ("teacher-more", _check_model), ("student/*", _check_model),
        ("export/student", _check_model), ("vectors/[!s]*", lambda path: VectorStore.open(path, verify=True)),
        ("vectors/streams/*/manifest.json", lambda path: StreamVectors.open(path.parent, verify=True)),
        ("streams/*/*/manifest.json", _check_tokens), ("streams/*.json", read_json),
        ("index", _check_index), ("mined/*", _check_mined), ("checkpoints/*/*", _check_checkpoint),
        ("evaluations/*/*", _check_evaluation), ("logs/*.jsonl", _check_log), ("logs/*.json", read_json),
        ("manifest.json", lambda path: Manifest(folder)), ("bench.json", read_json), ("results.json", read_json),
        ("report.*", _check_text), ("recipe.resolved.yaml", load_recipe),
        ("recipe.resolved.yaml", lambda path: refuse_edited_recipe(folder)),
    ]  # fmt: skip
    for pattern, check in patterns:
        for path in sorted(out.glob(pattern)):
            if not path.name.startswith(".") and path.suffix != ".partial":
                yield path, check


def partial_artefacts(out: Path) -> list[str]:
    """The artefacts of a run that have their final name and are not whole."""
    found = []
    for path, check in _artefacts(out):
        try:
            check(path)
        except Exception as error:
            found.append(f"{path.relative_to(out)}: {type(error).__name__}: {error}")
    return found


def count_artefacts(out: Path) -> int:
    """How many artefacts ``partial_artefacts`` looks at: a check of nothing would prove nothing."""
    return sum(1 for _ in _artefacts(out))


def _timeless(value: Any) -> Any:
    """JSON without times and what is computed from them."""
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in TIMES}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _told(path: Path) -> Any:
    """What a file of a run tells besides times."""
    told = _timeless(read_json(path))
    if path.name == "manifest.json":
        return {name: (step["key"], step["inputs"], sorted(step["outputs"])) for name, step in told["steps"].items()}
    if path.name == "results.json":
        told["provenance"]["steps"] = sorted(told["provenance"]["steps"])
        told["warnings"] = [text for text in told["warnings"] if "was not quiet while" not in text]
    return told


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two runs' folders: every byte counts, but for times.

    Reports are left out (they show times), and of ``manifest.json``, ``results.json`` and the stages' summaries times.
    """
    names = [
        {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file() and path.name[-5:] != ".lock"}
        for root in (one, other)
    ]
    found = [f"only in one: {name}" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]):
        if name in ("report.md", "report.html", "bench.json"):
            continue
        if name in ("manifest.json", "results.json") or (name.startswith("logs/") and name.endswith(".json")):
            same = _told(one / name) == _told(other / name)
        else:
            same = file_sha256(one / name) == file_sha256(other / name)
        if not same:
            found.append(name)
    return found
