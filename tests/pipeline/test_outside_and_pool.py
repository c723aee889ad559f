"""One run, and what users do beside it: sets from elsewhere, TREC files, pools and labels, disagreements."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytrec_eval
from builders.outside import SPLIT, outside_lines, read_jsonl, write_outside
from builders.tiny_run import tiniest_tree, write_recipe
from typer.testing import CliRunner

from harness.cli import app
from harness.encoders.folder import open_encoder
from harness.evaluation.per_query import PerQuery
from harness.pipeline.compute import operations
from harness.pipeline.context import Run
from harness.pipeline.controller import run_recipe
from harness.pipeline.folder import RunFolder
from harness.pipeline.labels import kept_labels, label_sources
from harness.pipeline.needs import needs
from harness.pipeline.pool import label_run, pool_run
from harness.pipeline.sizes import counts_of, models_of
from harness.pipeline.trec import write_trec
from harness.pipeline.work_ann import _sampled
from harness.pipeline.work_report import collect_results
from harness.recipe import Recipe, load_recipe
from harness.runtime.errors import InputError, StaleArtefactError
from harness.runtime.process import file_sha256, read_json

THEIRS = {"nDCG@10": "ndcg_cut_10", "P@1": "P_1", "Recall@100": "recall_100"}
SYSTEMS = ["teacher", "student-aligned", "student-refined"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(recipe, output folder) of a finished run with an outside set."""
    root = tmp_path_factory.mktemp("outside")
    tree = tiniest_tree(root)
    tree["teacher"]["prompts"] = {"query": "ask ", "document": "text "}
    tree["evaluate"]["outside"] = [
        {"name": "far.v1", "beir": str(write_outside(root / "far")), "split": SPLIT},
        {"name": "with-own", "beir": str(root / "far"), "split": SPLIT, "ignore_identical_ids": False},
    ]
    recipe = write_recipe(root, tree)
    _, ran = run_recipe(load_recipe(recipe), root / "out")
    assert ran[-3:] == ["evaluate", "evaluate.outside", "report"] and "embed.outside" in ran
    return recipe, root / "out"


@pytest.fixture
def copy(whole: tuple[Path, Path], tmp_path: Path) -> tuple[Recipe, Path]:
    """The recipe, and a copy of the run that may be changed."""
    return load_recipe(whole[0]), Path(shutil.copytree(whole[1], tmp_path / "out"))


# ---------------------------------------------------------------------------------------------------- outside sets


def _expected(out: Path, system: str, *, own: bool) -> dict[str, dict[str, float]]:
    """Each query's documents with the scores that a plain matrix product gives them, best first."""
    corpus, queries, _ = outside_lines()
    folder = {"teacher": "teacher", "student-aligned": "student/aligned", "student-refined": "student/refined"}[system]
    texts = [f"{line['title']}\n{line['text']}".strip() for line in corpus]
    document_ND = open_encoder(out / "teacher").encode(texts, side="document")
    query_QD = open_encoder(out / folder).encode([line["text"] for line in queries], side="query")
    found = {}
    for query, score_N in zip(queries, query_QD @ document_ND.T, strict=True):
        scores = {line["_id"]: float(score) for line, score in zip(corpus, score_N, strict=True)}
        kept = {id_: score for id_, score in scores.items() if own or id_ != query["_id"]}
        found[query["_id"]] = dict(sorted(kept.items(), key=lambda item: -item[1]))
    return found


@pytest.mark.parametrize("system", SYSTEMS)
def test_students_ask_and_the_teacher_s_documents_answer(whole: tuple[Path, Path], system: str) -> None:
    for name, own in (("far.v1", False), ("with-own", True)):
        stored = PerQuery.load(whole[1] / "outside" / name / system)
        expected = _expected(whole[1], system, own=own)
        assert stored.ids == list(expected) and {len(hits) for hits in stored.hits} == ({40} if own else {39, 40})
        for id_, hits, score_K in zip(stored.ids, stored.hits, stored.scores, strict=True):
            assert sorted(hits) == sorted(expected[id_]), "no other documents; its own only where that is wanted"
            own_scores = [expected[id_][hit] for hit in hits]
            np.testing.assert_allclose(own_scores, list(expected[id_].values()), atol=1e-5, err_msg="near ties aside")
            np.testing.assert_allclose(score_K[: len(hits)], own_scores, atol=1e-5, err_msg="prompts of both sides")


def test_results_tell_metrics_recovery_and_where_it_is_from(whole: tuple[Path, Path]) -> None:
    told = read_json(whole[1] / "results.json")["outside"]
    assert list(told) == ["far.v1", "with-own"]
    for name, row in told.items():
        assert (row["queries"], row["documents"]) == (20, 40)
        assert row["source"] == (f"BEIR folder far, {SPLIT}; left out: no text (1), unknown corpus-id (1), unknown "
                                 "query-id (1), queries without a relevant document (1)")  # fmt: skip
        stored = {system: PerQuery.load(whole[1] / "outside" / name / system) for system in SYSTEMS}
        assert set(row["recovery"]) == {"student-aligned", "student-refined"}
        for system, answers in stored.items():
            assert row[system]["nDCG@10"] == pytest.approx(answers.metrics["nDCG@10"].mean())
        ours = row["recovery"]["student-refined"]["nDCG@10"]
        ratio = row["student-refined"]["nDCG@10"] / row["teacher"]["nDCG@10"]
        assert ours["value"] == pytest.approx(ratio) and ours["low"] <= ours["value"] <= ours["high"]
    first = [told[name]["teacher"]["P@1"] for name in ("with-own", "far.v1")]
    assert first[0] > first[1], "queries that are documents find themselves"


def test_nothing_outside_is_done_twice(copy: tuple[Recipe, Path], caplog: pytest.LogCaptureFixture) -> None:
    recipe, out = copy
    assert run_recipe(recipe, out)[1] == []
    store = out / "outside" / "far.v1" / "documents" / "shard-00000.npy"
    before = store.stat().st_mtime_ns
    changed = load_recipe(_recipe_of(out), ["refine.training.steps=5"])
    ran = run_recipe(changed, out)[1]
    assert "evaluate.outside" in ran and "embed.outside" not in ran
    one = changed.evaluate.outside[:1]
    fewer = changed.model_copy(update={"evaluate": changed.evaluate.model_copy(update={"outside": one})})
    assert run_recipe(fewer, out)[1] == ["embed.outside", "evaluate.outside", "report"]
    assert store.stat().st_mtime_ns == before, "vectors that lie there are not made again"
    assert list(read_json(out / "results.json")["outside"]) == ["far.v1"]


def _recipe_of(out: Path) -> Path:
    return out / "recipe.resolved.yaml"


def test_changed_files_of_an_outside_set_are_read_again(
    copy: tuple[Recipe, Path], tmp_path: Path, whole: tuple[Path, Path]
) -> None:
    recipe, out = copy
    folder = Path(shutil.copytree(whole[0].parent / "far", tmp_path / "far"))
    moved = [given.model_copy(update={"beir": str(folder)}) for given in recipe.evaluate.outside[:1]]
    recipe = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"outside": moved})})
    run_recipe(recipe, out, last="evaluate.outside")
    with (folder / "qrels" / f"{SPLIT}.tsv").open("a") as stream:
        stream.write("query 0\td9\t3\n")
    assert run_recipe(recipe, out)[1] == ["embed.outside", "evaluate.outside", "report"]
    (folder / "notes.txt").write_text("not part of the set")
    assert run_recipe(recipe, out)[1] == []


def test_outside_documents_count_before_they_are_encoded(whole: tuple[Path, Path]) -> None:
    recipe = load_recipe(whole[0])
    counts, models = counts_of(recipe, None), models_of(recipe)
    assert len(counts.outside) == 2 and all(20 < count <= 41 for count in counts.outside), "surely so many of each"
    told = needs(recipe, models, counts)
    assert told["embed.outside"].disk["vectors"] == 4 * models["teacher"].dimension * sum(counts.outside)
    assert told["evaluate.outside"].memory["index in memory"] == 4 * models["teacher"].dimension * max(counts.outside)
    assert operations(recipe, counts_of(recipe, whole[1] / "data"), models)["embed.outside"] > 0


# ------------------------------------------------------------------------------------------------------ TREC files


def test_trec_eval_finds_our_numbers_in_every_file(whole: tuple[Path, Path], tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["evaluate", str(whole[0]), "--output", str(whole[1]), "--trec", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    sets = ["select", "report", "test", "outside.far.v1", "outside.with-own"]
    names = {f"{name}.{end}" for name in sets for end in ["qrels", *(f"{system}.run" for system in SYSTEMS)]}
    assert {path.name for path in tmp_path.iterdir()} == names == {Path(line).name for line in shown.stdout.split()}
    for name in sets:
        outside = name.startswith("outside")
        for system in SYSTEMS:
            place = f"outside/{name[8:]}/{system}" if outside else f"evaluations/{system}/{name}"
            stored = PerQuery.load(whole[1] / place)
            with (tmp_path / f"{name}.qrels").open() as qrels, (tmp_path / f"{name}.{system}.run").open() as run:
                judge = pytrec_eval.RelevanceEvaluator(pytrec_eval.parse_qrel(qrels), set(THEIRS.values()))
                told = judge.evaluate(pytrec_eval.parse_run(run))
            for metric, theirs in THEIRS.items():
                found = [told[id_.replace(" ", "%20")][theirs] for id_ in stored.ids]
                np.testing.assert_allclose(stored.metrics[metric], found, atol=1e-12)


def test_trec_files_need_an_evaluation(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not the folder of a run"):
        write_trec(tmp_path, tmp_path / "trec")


# --------------------------------------------------------------------------------------------------- pool and labels


def _quality(out: Path) -> dict[str, Any]:
    return read_json(out / "results.json")["quality"]["student-refined"]["test"]["all"]


def test_labels_raise_what_is_judged_and_nothing_is_encoded(
    copy: tuple[Recipe, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = copy
    before, data = _quality(out), file_sha256(out / "data" / "data.json")
    vectors = file_sha256(out / "evaluations" / "teacher" / "test" / "query_vectors.npy")
    assert "labels" not in read_json(out / "results.json") and label_sources(RunFolder(out)) == {}
    written = pool_run(out, tmp_path / "pool.jsonl")
    lines = read_jsonl(written.path)
    assert len(lines) == written.pairs > 100 and written.set_name == "test" and written.systems == SYSTEMS
    for line in lines:
        line["grade"] = 1 if line["found"].get("student-refined") == 1 else 0
    written.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert label_run(out, written.path) == (len(lines), 0)
    assert label_run(out, written.path) == (0, 0), "the same again is no news"
    assert pool_run(out, tmp_path / "again.tsv").pairs == 0, "everything is judged"

    monkeypatch.setattr("harness.pipeline.work_evaluation.query_vectors", _never)
    monkeypatch.setattr("harness.pipeline.work_evaluation.index_of_system", _never)
    assert run_recipe(recipe, out)[1] == ["evaluate", "report"]
    after, results = _quality(out), read_json(out / "results.json")
    assert after["P@1"] == 1.0 > before["P@1"], "each first hit was judged relevant"
    assert after["judged@10"] == 1.0 > before["judged@10"]
    told = results["labels"]
    assert told["labels"] == len(lines) and told["used"] == {"select": 0, "report": 0, "test": len(lines)}
    (file,) = told["files"]
    assert (file["name"], file["labels"], file["sha256"]) == ("pool.jsonl", len(lines), file_sha256(written.path))
    assert file_sha256(out / "data" / "data.json") == data, "the data is as it was"
    assert file_sha256(out / "evaluations" / "teacher" / "test" / "query_vectors.npy") == vectors
    assert run_recipe(recipe, out)[1] == []

    RunFolder(out).labels.unlink()
    assert run_recipe(recipe, out)[1] == ["evaluate", "report"]
    assert _quality(out) == before and "labels" not in read_json(out / "results.json")


def test_labels_name_other_data_and_judge_everywhere(copy: tuple[Recipe, Path], tmp_path: Path) -> None:
    """What is compared says that it was judged otherwise; the ANN tax and the bias look at the same judgments."""
    recipe, out = copy
    before = read_json(out / "results.json")["sets"]
    _label_some(out, tmp_path, grade=1)
    run = Run(recipe, RunFolder(out), {})
    unlabelled = {record.id: record.positives for record in run.dataset.splits["test"]}
    name, sampled = _sampled(run, 10_000)
    assert name == "test" and any(record.positives.keys() > unlabelled[record.id].keys() for record in sampled)
    assert set(label_sources(RunFolder(out))) == {"evaluate", "bench.ann"}, "both steps judge anew"
    run_recipe(recipe, out)
    after = read_json(out / "results.json")["sets"]
    assert after["test"]["sha256"] != before["test"]["sha256"]
    assert after["report"]["sha256"] == before["report"]["sha256"], "no label judges it"
    for name, about in after.items():
        assert about["sha256_without_labels"] == before[name]["sha256"] and "sha256_without_labels" not in before[name]


def _never(*_: Any) -> Any:
    raise AssertionError("something was encoded or searched")


def test_labels_are_not_trained_on(copy: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, out = copy
    _label_some(out, tmp_path)
    weights = file_sha256(out / "student" / "refined" / "model.safetensors")
    shutil.rmtree(out / "checkpoints" / "refine")
    assert run_recipe(recipe, out, first="refine", last="refine")[1] == ["refine"]
    assert file_sha256(out / "student" / "refined" / "model.safetensors") == weights


def _label_some(out: Path, tmp_path: Path, grade: int = 0) -> Path:
    path = pool_run(out, tmp_path / "some.jsonl", depth=1).path
    lines = read_jsonl(path)
    for line in lines:
        line["grade"] = grade
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    label_run(out, path)
    return path


def test_two_files_add_up_and_contradictions_are_refused(copy: tuple[Recipe, Path], tmp_path: Path) -> None:
    out = copy[1]
    path = _label_some(out, tmp_path)
    first = kept_labels(RunFolder(out))
    lines = read_jsonl(path)
    lines[0]["grade"] = 1
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match="another grade already"):
        label_run(out, path)
    assert kept_labels(RunFolder(out)) == first, "a refused file leaves nothing"
    shown = CliRunner().invoke(app, ["pool", str(out), "--labels", str(path), "--replace"])
    assert shown.exit_code == 0 and "1 new or corrected labels" in shown.output, shown.output
    corrected = kept_labels(RunFolder(out))
    assert corrected.labels[lines[0]["query_id"]][lines[0]["document_id"]] == 1 and corrected.sha256 != first.sha256
    more = pool_run(out, tmp_path / "more.jsonl")
    rest = read_jsonl(more.path)
    assert not {(line["query_id"], line["document_id"]) for line in rest} & {
        (line["query_id"], line["document_id"]) for line in lines
    }
    rest[0]["grade"] = 2
    more.path.write_text("".join(json.dumps(line) + "\n" for line in rest))
    assert label_run(out, more.path) == (1, len(rest) - 1)
    assert [file["name"] for file in kept_labels(RunFolder(out)).files] == ["some.jsonl", "some.jsonl", "more.jsonl"]


def test_edited_labels_are_refused_by_name(copy: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, out = copy
    _label_some(out, tmp_path)
    path = RunFolder(out).labels
    content = path.read_text()
    path.write_text(content.replace("0.0", "1.0", 1))
    with pytest.raises(StaleArtefactError, match=r"labels\.json"):
        run_recipe(recipe, out)
    path.write_text("[]")
    with pytest.raises(StaleArtefactError, match=r"labels\.json"):
        pool_run(out, tmp_path / "new.jsonl")


def test_a_pool_is_never_overwritten_and_its_place_is_checked(whole: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "pool.jsonl").write_text("grades")
    with pytest.raises(InputError, match="exists"):
        pool_run(whole[1], tmp_path / "pool.jsonl")
    with pytest.raises(InputError, match=r"\.jsonl or \.tsv"):
        pool_run(whole[1], tmp_path / "pool.xlsx")
    with pytest.raises(InputError, match=r"a folder, where a file") as caught:
        pool_run(whole[1], tmp_path)
    assert "grades" not in str(caught.value)
    with pytest.raises(InputError, match=r"a file stands where a folder(.|\n)*got: .*pool\.jsonl\n"):
        pool_run(whole[1], tmp_path / "pool.jsonl" / "deeper" / "p.tsv")
    with pytest.raises(InputError, match=r"more hits than(.|\n)*got: 101(.|\n)*at most 100"):
        pool_run(whole[1], tmp_path / "new.jsonl", depth=101)
    with pytest.raises(InputError, match=r"no such set(.|\n)*select, report, test"):
        pool_run(whole[1], tmp_path / "new.jsonl", set_name="train")
    with pytest.raises(InputError, match="not the folder of a run"):
        pool_run(tmp_path, tmp_path / "new.jsonl")
    with pytest.raises(InputError, match="can't be read"):
        label_run(whole[1], tmp_path / "nowhere.jsonl")
    assert (tmp_path / "pool.jsonl").read_text() == "grades"


def test_the_command_line_writes_pools_and_reads_labels(copy: tuple[Recipe, Path], tmp_path: Path) -> None:
    out, run = copy[1], CliRunner()
    shown = run.invoke(app, ["pool", str(out), "--output", str(tmp_path / "p.tsv"), "--blind", "--depth", "2"])
    assert shown.exit_code == 0 and "pairs of" in shown.output and "student-refined" in shown.output
    assert "student" not in (tmp_path / "p.tsv").read_text()
    shown = run.invoke(app, ["pool", str(out)])
    assert shown.exit_code == 0 and (out / "pool.jsonl").exists()
    path = tmp_path / "labels.tsv"
    header, first, *_ = (tmp_path / "p.tsv").read_text(encoding="utf-8").split("\n")
    cells = first.split("\t")
    cells[2] = "1"
    path.write_text(f"{header}\n" + "\t".join(cells) + "\n", encoding="utf-8")
    shown = run.invoke(app, ["pool", str(out), "--labels", str(path)])
    assert shown.exit_code == 0 and "1 new labels; 0 pairs" in shown.output and "recipe.resolved.yaml" in shown.output
    for more in (["--output", str(tmp_path / "x.tsv")], ["--blind"], ["--depth", "10"]):
        refused = run.invoke(app, ["pool", str(out), "--labels", str(path), *more]).exception
        assert isinstance(refused, InputError) and more[0] in str(refused), "no option is ignored"
    through = ["evaluate", str(out / "recipe.resolved.yaml"), "--output", str(out), "--trec", str(path / "trec")]
    refused = run.invoke(app, through).exception
    assert isinstance(refused, InputError) and "a file stands" in str(refused) and "--trec" in str(refused)


def test_the_report_reads_tables_and_labels_once(
    copy: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe, out = copy
    _label_some(out, tmp_path)
    run_recipe(recipe, out)
    read: list[str] = []
    load, labels = PerQuery.load, kept_labels

    def counted(folder: Path, **settings: Any) -> PerQuery:
        read.append(f"{folder.parent.name}/{folder.name}")
        return load(folder, **settings)

    def told(folder: RunFolder) -> Any:
        read.append("labels")
        return labels(folder)

    monkeypatch.setattr(PerQuery, "load", counted)
    monkeypatch.setattr("harness.pipeline.context.kept_labels", told)
    monkeypatch.setattr("harness.pipeline.labels.kept_labels", told)
    found = collect_results(Run(recipe, RunFolder(out), {}))
    within = [name for name in read if name.split("/")[0] in (*SYSTEMS, "labels") and "." not in name]
    assert sorted(within) == sorted(["labels", *(f"{system}/{name}" for system in SYSTEMS for name in found["sets"])])
    stored = read_json(out / "results.json")
    assert found["disagreements"] == stored["disagreements"] and found["labels"] == stored["labels"]


# --------------------------------------------------------------------------------------------------- disagreements


def test_results_show_where_students_disagree_with_the_teacher(whole: tuple[Path, Path]) -> None:
    told = read_json(whole[1] / "results.json")["disagreements"]
    assert set(told) == {"student-aligned", "student-refined"}
    assert set(told["student-refined"]) == {"select", "report", "test"}
    stored = {name: PerQuery.load(whole[1] / "evaluations" / name / "test") for name in ("teacher", "student-refined")}
    rows = {id_: at for at, id_ in enumerate(stored["teacher"].ids)}
    for shown in told["student-refined"]["test"]:
        at = rows[shown["id"]]
        assert shown["score"] == stored["student-refined"].metrics["nDCG@10"][at]
        assert [hit["id"] for hit in shown["reference_hits"]] == stored["teacher"].hits[at][:5]
        assert [hit["id"] for hit in shown["hits"]] == stored["student-refined"].hits[at][:5]
        ids = [[hit["id"] for hit in shown[side]] for side in ("hits", "reference_hits")]
        assert shown["score"] != shown["reference_score"] or ids[0] != ids[1]
    assert 0 < len(told["student-refined"]["test"]) <= 20
    assert {shown["language"] for shown in told["student-refined"]["test"]} == {"aa", "bb", "cc"}
