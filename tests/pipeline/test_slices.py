"""Slices in a run: columns that a recipe names are read without training anything anew, and all sections are there."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders.tiny_data import write_jsonl
from builders.tiny_run import tiniest_tree, write_recipe

from harness.data.folder import load_dataset, read_lines
from harness.evaluation.leakage import Flags, seen_among
from harness.evaluation.per_query import PerQuery
from harness.pipeline.check import check_recipe
from harness.pipeline.context import Run
from harness.pipeline.controller import run_recipe, run_verb
from harness.pipeline.folder import RunFolder
from harness.pipeline.hits import read_evaluations
from harness.pipeline.labels import judged_records
from harness.pipeline.pool import label_run, pool_run
from harness.pipeline.update import update_documents
from harness.pipeline.work_slices import slice_queries
from harness.recipe import Recipe, load_recipe
from harness.runtime.errors import InputError
from harness.runtime.process import read_json

SLICED = "evaluate.slices=[form, number]"


def tree(root: Path) -> dict[str, Any]:
    """Every query says its ``form``; some documents are in another language; aligned on documents and other texts."""
    made = tiniest_tree(root)
    data = Path(made["data"]["path"])
    queries = [line | {"metadata": {"form": line["_id"].split("-")[-1]}, "number": number}
               for number, line in enumerate(read_lines(data / "queries.jsonl"))]  # fmt: skip
    write_jsonl(data / "queries.jsonl", queries)
    documents = [line | {"lang": "bb" if number % 3 == 0 else "aa"}
                 for number, line in enumerate(read_lines(data / "corpus.jsonl"))]  # fmt: skip
    seen = next(query["text"] for query in queries if query["_id"].startswith("bb-d8-"))  # of the test set
    documents.append({"_id": "same", "title": "", "text": f" {seen.upper()}", "lang": "aa", "group": "same"})
    write_jsonl(data / "corpus.jsonl", documents)
    made["mine"], made["refine"] = {}, {"training": made["refine"]["training"], "candidates": "all"}
    made["align"]["texts"] = ["documents"]
    made["evaluate"]["systems"] = ["teacher", "student-aligned"]
    return made | {"export": None}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(recipe, folder) of a finished run without columns."""
    root = tmp_path_factory.mktemp("slices")
    recipe = write_recipe(root, tree(root))
    run_recipe(load_recipe(recipe), root / "out")
    return recipe, root / "out"


def test_what_is_refused_leaves_the_recipe_of_the_run(run: tuple[Path, Path], tmp_path: Path) -> None:
    """Whatever refuses it: a check, a step that runs first, or what a verb needs done before it."""
    out = Path(shutil.copytree(run[1], tmp_path / "out"))
    resolved = out / "recipe.resolved.yaml"
    told = lambda: {name: step["key"] for name, step in read_json(out / "manifest.json")["steps"].items()}  # noqa: E731
    before = resolved.read_bytes(), told()
    refused = load_recipe(run[0], ["evaluate.slices=[nonsense]"])
    with pytest.raises(InputError, match="no query has this column"):
        run_recipe(refused, out)
    assert (resolved.read_bytes(), told()) == before
    with pytest.raises(InputError, match="no query has this column"):
        run_verb(refused, out, "data")
    with pytest.raises(InputError, match="align, refine, not done under this recipe"):
        run_verb(load_recipe(run[0], ["align.training.steps=3"]), out, "evaluate")
    bad = Path(shutil.copytree(tree_path(run[0]), tmp_path / "bad"))
    with (bad / "queries.jsonl").open("a") as stream:
        stream.write("no JSON\n")
    for attempt in (run_recipe, lambda recipe, folder: run_verb(recipe, folder, "data")):
        with pytest.raises(InputError, match="not JSON"):
            attempt(load_recipe(run[0], [f"data.path={bad}"]), out)
    assert resolved.read_bytes() == before[0]
    assert run_recipe(load_recipe(resolved), out)[1] == []


def tree_path(recipe: Path) -> str:
    """Where a recipe's data lies."""
    path = load_recipe(recipe).data.path
    assert isinstance(path, str)
    return path


def test_bias_is_told_by_the_judgments_that_labels_add(
    run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[Any] = []
    monkeypatch.setattr("harness.pipeline.hits.bias", lambda *arguments: given.append(arguments[2]))
    root = Path(shutil.copytree(run[1], tmp_path / "out"))
    path = pool_run(root, tmp_path / "pool.jsonl").path
    lines = list(read_lines(path))
    write_jsonl(path, [{**line, "grade": 1} for line in lines])
    label_run(root, path)
    told = Run(load_recipe(run[0]), RunFolder(root), {})
    read_evaluations(told, {"test": judged_records(told, "test")})
    (records,) = given
    more = sum(len(record.positives) for record in records)
    assert more == len(lines) + sum(len(record.positives) for record in told.dataset.splits["test"])


def copied(run: tuple[Path, Path], root: Path) -> tuple[Recipe, Path]:
    shutil.copytree(run[1], root / "out")
    return load_recipe(run[0], [SLICED]), root / "out"


def test_every_run_has_the_sections(run: tuple[Path, Path]) -> None:
    results = read_json(run[1] / "results.json")
    assert results["exported"] is None and not any("deployed" in told for told in results["warnings"])
    assert set(results["slices"]) == set(results["alike"]) == {"student-aligned"}
    cuts = results["slices"]["student-aligned"]["test"]
    assert set(cuts) == {"length", "seen"} and not (run[1] / "slices.json").exists()
    assert sum(row["queries"] for row in cuts["length"].values()) == results["sets"]["test"]["queries"]
    assert set(cuts["seen"]["no"]) == {"queries", "groups", "reference", "system", "recovery", "undecided"}
    assert "tokens" in results["slice_sources"]["test"]["length"]
    leaked = results["leakage"]["test"]
    dataset = load_dataset(run[1] / "data")
    texts = {" ".join(text.lower().split()) for text in dataset.documents.texts}
    same = [record.language for record in dataset.splits["test"] if record.text in texts]
    assert "bb" in same, "the document that equals a query, but for case"
    assert leaked["seen"]["align"] == leaked["seen"]["any"] == cuts["seen"]["yes"]["queries"] == len(same)
    assert set(leaked["seen"]) == {"train", "select", "align", "any"}
    assert set(results["alike"]["student-aligned"]["test"]["P@1"]) >= {"permutation", "sd_recovery", "verdict", "note"}
    row = results["languages"]["test"]["bb"]
    assert row["script"] == "Latin" and row["train_share"] == pytest.approx(1 / 3) and row["tokens_per_query"] > 1
    assert row["cosine"]["student-aligned"] > 0 and set(row["recovery"]) == {"student-aligned"}
    assert set(results["bias"]) == {"teacher", "student-aligned"}
    assert results["bias"]["teacher"]["test"]["documents"]["bb"]["share_of_pool"] == pytest.approx(40 / 121)


def test_a_column_is_read_and_nothing_is_trained_for_it(run: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, out = copied(run, tmp_path)
    _, ran = run_recipe(recipe, out)
    assert ran == ["data.slices", "report"]
    cuts = read_json(out / "results.json")["slices"]["student-aligned"]["test"]
    evaluated = PerQuery.load(out / "evaluations" / "teacher" / "test", hits=False)
    forms = [id_.split("-")[-1] for id_ in evaluated.ids]
    assert {value: row["queries"] for value, row in cuts["form"].items()} == {"all": forms.count("all"),
                                                                             "some": forms.count("some")}  # fmt: skip
    assert len(cuts["number"]) == 4, "numbers in quarters"
    assert run_recipe(recipe, out)[1] == []
    sliced = slice_queries(Run(recipe, RunFolder(out), {}), ["report", "test"])
    assert sliced.values("test")["form"] == forms, "in the order of the evaluations"
    assert set(sliced.values("report")) == {"length", "form", "number"}


def test_what_was_trained_on_is_read_once_for_all_sets(
    run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told, looked = Run(load_recipe(run[0]), RunFolder(run[1]), {}), []

    def counted(queries: Sequence[str], texts: Iterable[str]) -> Flags:
        looked.append(len(queries))
        return seen_among(queries, texts)

    monkeypatch.setattr("harness.pipeline.work_slices.seen_among", counted)
    both = slice_queries(told, ["select", "report", "test"])
    assert looked == [sum(len(told.dataset.splits[name]) for name in both.slices)] * 3, "train, select, align"
    for name in ("select", "report", "test"):
        alone = slice_queries(told, [name])
        assert list(both.seen[name]) == list(alone.seen[name]) and ("select" in both.seen[name]) == (name != "select")
        assert all(np.array_equal(both.seen[name][key], alone.seen[name][key]) for key in both.seen[name])
        assert all(np.array_equal(*pair) for pair in zip(both.tokens[name], alone.tokens[name], strict=True))
        assert both.slices[name].get("frequency") == alone.slices[name].get("frequency")
    assert len({sum(map(np.sum, seen.values())) for seen in both.seen.values()}) > 1, "not the same of each"


def test_a_recipe_may_measure_another_metric(
    run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """None of those that systems are compared by as a rule."""
    monkeypatch.setattr("harness.evaluation.alike.FEW_GROUPS", 2)
    out = Path(shutil.copytree(run[1], tmp_path / "out"))
    run_recipe(load_recipe(run[0], ["evaluate.metrics=[judged@10, MRR@10, Hit@10]"]), out)
    results = read_json(out / "results.json")
    assert list(results["alike"]["student-aligned"]["test"]) == ["MRR@10"]
    assert results["alike"]["student-aligned"]["test"]["MRR@10"]["permutation"]["p"] > 0
    rows = [row for values in results["slices"]["student-aligned"]["test"].values() for row in values.values()]
    assert rows and all(set(row["recovery"]) == set(row["reference"]) == {"MRR@10"} for row in rows)
    assert {row["metric"] for row in results["ledger"]} == {"MRR@10"}


def test_a_column_that_no_query_has(run: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = copied(run, tmp_path)
    recipe = load_recipe(run[0], ["evaluate.slices=[from]"])
    for refused in (lambda: run_recipe(recipe, out), lambda: check_recipe(recipe)):
        with pytest.raises(InputError) as error:
            refused()
        (problem,) = error.value.problems
        assert problem.got == "from" and "form" in problem.allowed and problem.where == "evaluate.slices"


@pytest.mark.parametrize(("names", "what"), [("[seen]", "of its own"), ("[form, form]", "twice")])
def test_impossible_slices(run: tuple[Path, Path], names: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        load_recipe(run[0], [f"evaluate.slices={names}"])


def test_an_update_reads_the_columns_again(run: tuple[Path, Path], tmp_path: Path) -> None:
    """Queries may have changed along with the documents."""
    recipe, out = copied(run, tmp_path)
    run_recipe(recipe, out)
    path = Path(str(recipe.data.path)) / "queries.jsonl"
    before = path.read_bytes()
    write_jsonl(path, [line | {"metadata": {"form": "new"}} for line in read_lines(path)])
    try:
        update_documents(recipe, out)
        _, ran = run_recipe(recipe, out)
    finally:
        path.write_bytes(before)
    assert "data.slices" in ran and "teacher" not in ran
    assert set(read_json(out / "slices.json")["columns"]["form"].values()) == {"new"}
