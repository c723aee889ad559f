"""Oracle context: the teacher's query side reads it wherever it encodes, and no student ever does."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders.tiny_data import write_jsonl
from builders.tiny_run import tiniest_tree, write_recipe

from harness.data.collator import Collator, PairCollator
from harness.data.prepare import load_dataset
from harness.data.records import in_context
from harness.encoders.encoder import Encoder
from harness.encoders.folder import open_encoder
from harness.engines.torch_eager import TorchEngine
from harness.pipeline.controller import run_recipe
from harness.pipeline.plan import keys
from harness.pipeline.work_vectors import EncodeSide
from harness.recipe import Recipe, load_recipe
from harness.runtime.process import file_sha256, read_json
from harness.vectors.store import VectorStore

TEMPLATE = "{query} | {context}"
TEACHERS = ["teacher", "teacher-base", "teacher-more"]


def write_contexts(data: Path) -> None:
    """Half of all queries get a context: the text of their document, and the word "oracle"."""
    texts = {line["_id"]: line["text"] for line in map(json.loads, (data / "corpus.jsonl").open(encoding="utf-8"))}
    lines = [json.loads(line) for line in (data / "queries.jsonl").open(encoding="utf-8")]
    for line in lines[::2]:
        line["context"] = "oracle " + texts["-".join(line["_id"].split("-")[1:3])]
    write_jsonl(data / "queries.jsonl", lines)


def small_tree(root: Path) -> dict[str, Any]:
    tree = tiniest_tree(root)
    tree["teacher"]["hard_negatives"] = 2
    tree["mine"] = {"base": {"top_k": 10, "keep": 3}, "refine": {"top_k": 10, "keep": 3}}
    tree["evaluate"]["systems"] = [*TEACHERS, "student-untrained", "student-aligned", "student-refined"]
    return tree | {"bench": {"queries_per_language": 2, "warmup": 1, "repeats": 1, "batch_sizes": [4]}}


class Reader:
    """Notes which texts an encoder of how many layers reads, on which side, and what for."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.read: dict[tuple[Any, ...], list[str]] = defaultdict(list)
        encode, tokens, pairs, timed = Encoder.encode, Collator.tokens, PairCollator.__call__, TorchEngine.encode
        stored = EncodeSide.windows

        def spy_encode(encoder: Encoder, texts: Sequence[str], **given: Any) -> np.ndarray:
            self.read[encoder.layer_count, given["side"], given.get("what") or "alone"] += texts
            return encode(encoder, texts, **given)

        def spy_tokens(collator: Collator, texts: Sequence[str]) -> list[list[int]]:
            self.read["collator"] += texts
            return tokens(collator, texts)

        def spy_pairs(collator: PairCollator, queries: Sequence[str], documents: Sequence[str]) -> Any:
            self.read["teacher's queries"] += queries
            self.read["teacher's documents"] += documents
            before = len(self.read["collator"])
            made = pairs(collator, queries, documents)
            del self.read["collator"][before:]  # the pairs' own; what is left are students' batches
            return made

        def spy_windows(side: EncodeSide, windows: Iterable[Sequence[str]]) -> Iterator[np.ndarray]:
            noted = self.read[side.encoder.layer_count, side.side, side.what]
            return stored(side, (noted.extend(window) or window for window in windows))  # type: ignore[func-returns-value]

        def spy_engine(engine: TorchEngine, texts: Sequence[str]) -> np.ndarray:
            self.read["bench"] += texts
            return timed(engine, texts)

        patch.setattr(Encoder, "encode", spy_encode)
        patch.setattr(EncodeSide, "windows", spy_windows)
        patch.setattr(TorchEngine, "encode", spy_engine)
        patch.setattr(Collator, "tokens", spy_tokens)
        patch.setattr(PairCollator, "__call__", spy_pairs)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Recipe, Path, Reader]]:
    root = tmp_path_factory.mktemp("oracle")
    tree = small_tree(root)
    write_contexts(root / "data")
    tree["teacher"]["context"] = TEMPLATE
    recipe = load_recipe(write_recipe(root, tree))
    with pytest.MonkeyPatch.context() as patch:
        reader = Reader(patch)
        run_recipe(recipe, root / "out")
    yield recipe, root / "out", reader


def test_only_the_plain_query_is_read_without_a_template_or_a_context() -> None:
    assert in_context("q", "c", None) == in_context("q", "", TEMPLATE) == "q"
    assert in_context("a {context}", "b {query}", "{context}: {query}!") == "b {query}: a {context}!"


def test_the_teacher_reads_contexts_wherever_its_query_side_encodes(runs: tuple[Recipe, Path, Reader]) -> None:
    read, sets = runs[2].read, ("select", "report", "test")
    wanted = {("teacher's queries",), *((4, "query", f"{system} {name}") for system in TEACHERS for name in sets)}
    wanted |= {(4, "query", f"embed {name}") for name in ("queries", "base-queries")} | {(4, "query", "select queries")}
    for key in wanted:
        texts = read[key[0] if len(key) == 1 else key]
        with_context = [text for text in texts if " | oracle " in text]
        assert 0 < len(with_context) < len(texts), key  # half of the queries have none
        assert all(" | " not in text for text in set(texts) - set(with_context))


def test_no_student_ever_does_nor_the_document_side(runs: tuple[Recipe, Path, Reader]) -> None:
    reader = runs[2]
    students = [key for key in reader.read if key[0] == 2]
    assert {key[2] for key in students} >= {"select queries", "student-aligned test", "student-refined test"}
    documents = [key for key in reader.read if key[1] == "document"]
    for key in [*students, *documents, "collator", "teacher's documents", "bench"]:  # the bench times teachers, too
        assert reader.read[key] and not any("oracle" in text for text in reader.read[key]), key


def test_the_report_says_that_the_reference_saw_more(runs: tuple[Recipe, Path, Reader]) -> None:
    _, out, _ = runs
    results = read_json(out / "results.json")
    told = results["sets"]["test"]
    assert told["contexts"] == read_json(out / "data/data.json")["splits"]["test"]["contexts"] == told["queries"] / 2
    (warning,) = [text for text in results["warnings"] if "of test with a context" in text]
    assert "no student sees" in warning and warning.split(":")[0] in (out / "report.md").read_text()


def test_another_template_writes_query_vectors_anew_and_no_others(
    runs: tuple[Recipe, Path, Reader], tmp_path: Path
) -> None:
    tree = tiniest_tree(tmp_path)
    write_contexts(tmp_path / "data")
    tree["teacher"] = {"model": tree["teacher"]["model"], "train": False, "context": TEMPLATE}
    path, out = write_recipe(tmp_path, tree), tmp_path / "out"
    run_recipe(load_recipe(path), out, last="embed")
    queries, documents = out / "vectors/queries", out / "vectors/documents"
    before, same = VectorStore.open(queries), {file.name: file.stat().st_mtime_ns for file in documents.iterdir()}
    run_recipe(load_recipe(path, ["teacher.context='{context} {query}'"]), out, last="embed")
    after = VectorStore.open(queries)
    rows = np.arange(len(after))
    different = np.abs(before.vectors(rows) - after.vectors(rows)).max(axis=1) > 1e-6
    records = load_dataset(out / "data").splits["train"]
    has_context = {f"query:{record.id}": bool(record.context) for record in records}
    assert [bool(value) for value in different] == [has_context.get(name, False) for name in after.ids]
    assert {file.name: file.stat().st_mtime_ns for file in documents.iterdir()} == same


def test_without_the_setting_contexts_change_nothing(tmp_path: Path) -> None:
    weights = []
    for name in ("plain", "told"):
        tree = tiniest_tree(tmp_path / name)
        if name == "told":
            write_contexts(tmp_path / name / "data")
        run_recipe(load_recipe(write_recipe(tmp_path / name, tree)), tmp_path / name / "out", last="refine")
        out = tmp_path / name / "out"
        weights.append([file_sha256(out / f"{folder}/model.safetensors") for folder in ("teacher", "student/refined")])
    assert weights[0] == weights[1]
    assert open_encoder(tmp_path / "told/out/teacher").layer_count == 4


def test_the_template_is_part_of_what_depends_on_the_teachers_queries(runs: tuple[Recipe, Path, Reader]) -> None:
    recipe = runs[0]
    plain = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"context": None})})
    before, after = keys(plain, {}), keys(recipe, {})
    assert {name for name in before if before[name] == after[name]} == {"data"}
    assert "context" not in plain.keyed()["teacher"]
