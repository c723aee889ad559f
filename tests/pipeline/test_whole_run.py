"""A whole recipe on a tiny model and a tiny data set: what is written, what is learnt, what is not done twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from builders.tiny_run import tiny_tree, write_recipe

from harness.evaluation.per_query import PerQuery
from harness.pipeline.controller import run_recipe, run_verb
from harness.pipeline.search import search_run
from harness.recipe import Recipe, load_recipe
from harness.runtime.errors import InputError, StaleArtefactError
from harness.runtime.process import folder_lock, read_json

STEPS = [
    "data",
    "embed.base",
    "teacher",
    "embed",
    "student",
    "align",
    "refine",
    "export",
    "evaluate",
    "bench",
    "report",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(recipe, output folder) of a finished run."""
    root = tmp_path_factory.mktemp("whole")
    recipe = write_recipe(root, tiny_tree(root))
    _, ran = run_recipe(load_recipe(recipe), root / "out")
    assert ran == STEPS
    return recipe, root / "out"


def test_the_artefacts_have_their_names(whole: tuple[Path, Path]) -> None:
    _, out = whole
    for name in (
        "recipe.resolved.yaml", "manifest.json", "teacher/modules.json", "student/cut/modules.json",
        "student/aligned/modules.json", "student/refined/modules.json", "vectors/documents/manifest.json",
        "vectors/queries/manifest.json",
        "index/manifest.json",
        "export/student/modules.json", "evaluations/student-refined/test/per_query.parquet", "bench.json",
        "results.json",
        "report.md", "report.html", "logs/align.jsonl",
    ):  # fmt: skip
        assert (out / name).exists(), name
    assert not list(out.rglob(".*.tmp")), "temporary files are left"


def test_results_keep_the_contract(whole: tuple[Path, Path]) -> None:
    results = read_json(whole[1] / "results.json")
    assert results["schema"] == 1 and results["reference"] == "teacher"
    assert {"commit", "recipe_sha256", "seed", "versions", "hardware", "started", "wall_seconds"} <= set(
        results["provenance"]
    )
    assert set(results["quality"]["teacher"]["test"]) == {"aa", "bb", "cc", "macro", "all"}
    assert set(results["recovery"]["student-refined"]["test"]["macro"]["P@1"]) >= {"value", "low", "high"}
    assert results["latency"]["teacher"]["torch"]["all"]["batch"] == 1
    assert results["sets"]["select"]["selected_on"] and not results["sets"]["test"]["selected_on"]
    assert results["ann"]["verdict"] == "not measured"
    assert {"Hit@10", "judged@10"} <= set(results["quality"]["student-refined"]["test"]["macro"])
    assert "Hit@10" in results["recovery"]["student-refined"]["test"]["macro"]
    assert "judged@10" not in results["recovery"]["student-refined"]["test"]["macro"], "nothing of it is kept or lost"
    near = {name: results["agreement"][name]["test"]["all"]["rbo@100"] for name in ("teacher", "student-refined")}
    assert near["teacher"] == pytest.approx(1) and 0.5 < near["student-refined"] < 1
    spaces = {system["space"] for name, system in results["systems"].items() if name != "teacher-base"}
    assert len(spaces) == 1, "teacher and students share one space"


def test_each_stage_learns_by_searching_the_frozen_index(whole: tuple[Path, Path]) -> None:
    quality = read_json(whole[1] / "results.json")["quality"]
    macro = {name: sets["test"]["macro"]["P@1"] for name, sets in quality.items()}
    assert macro["teacher"] > macro["teacher-base"] + 0.3
    assert macro["student-refined"] > 0.85 * macro["teacher"]


def test_losses_are_logged_for_every_step(whole: tuple[Path, Path]) -> None:
    recipe = load_recipe(whole[0])
    assert recipe.align is not None
    lines = [json.loads(line) for line in (whole[1] / "logs" / "align.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, recipe.align.training.steps + 1))


def test_the_same_recipe_again_does_nothing(whole: tuple[Path, Path]) -> None:
    assert run_recipe(load_recipe(whole[0]), whole[1])[1] == []


def test_launch_settings_change_no_key(whole: tuple[Path, Path]) -> None:
    assert run_recipe(load_recipe(whole[0], ["launch.threads=1"]), whole[1])[1] == []


def test_a_changed_refinement_reruns_only_what_depends_on_it(whole: tuple[Path, Path], tmp_path: Path) -> None:
    import shutil

    out = shutil.copytree(whole[1], tmp_path / "out")
    teacher = out / "evaluations" / "teacher" / "test" / "per_query.parquet"
    before = teacher.stat().st_mtime_ns
    recipe = load_recipe(whole[0], ["refine.training.steps=5"])
    assert run_recipe(recipe, out)[1] == ["refine", "export", "evaluate", "bench", "report"]
    assert teacher.stat().st_mtime_ns == before, "the teacher was evaluated again"


def test_from_and_to(whole: tuple[Path, Path], tmp_path: Path) -> None:
    import shutil

    out = shutil.copytree(whole[1], tmp_path / "out")
    recipe = load_recipe(whole[0])
    assert run_recipe(recipe, out, first="align", last="align")[1] == ["align"]
    # the forced step gave the same result, so what follows it is still whole
    assert run_recipe(recipe, out, last="refine")[1] == []
    with pytest.raises(InputError, match="--to stands before --from"):
        run_recipe(recipe, out, first="evaluate", last="data")
    with pytest.raises(InputError, match="no step 'mine'"):
        run_recipe(recipe, out, first="mine")


def test_a_verb_alone_needs_its_inputs(whole: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs embed, student"):
        run_verb(load_recipe(whole[0]), tmp_path / "empty", "align")


def test_one_run_per_folder(whole: tuple[Path, Path]) -> None:
    holder = "import sys, time; from pathlib import Path; from harness.runtime.process import folder_lock\n"
    holder += "with folder_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", holder, str(whole[1])], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"another run.*\n.*process {process.pid}"):
            run_recipe(load_recipe(whole[0]), whole[1])
        process.kill()
    with folder_lock(whole[1]):
        pass


@pytest.mark.parametrize(
    "edited", ["teacher/1_Pooling/config.json", "student/aligned/model.safetensors", "data/queries.jsonl"]
)
def test_an_edited_artefact_is_refused_by_name(whole: tuple[Path, Path], tmp_path: Path, edited: str) -> None:
    import shutil

    out = shutil.copytree(whole[1], tmp_path / "out")
    content = (out / edited).read_bytes()
    (out / edited).write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    with pytest.raises(StaleArtefactError, match=edited):
        run_recipe(load_recipe(whole[0]), out)


def test_a_deleted_artefact_is_made_again(whole: tuple[Path, Path], tmp_path: Path) -> None:
    import shutil

    out = shutil.copytree(whole[1], tmp_path / "out")
    old = read_json(out / "student" / "refined" / "harness.json")
    shutil.rmtree(out / "student" / "refined")
    assert run_recipe(load_recipe(whole[0]), out, last="refine")[1] == ["refine"]
    assert read_json(out / "student" / "refined" / "harness.json") == old, "the same weights from the checkpoint"


def test_the_exported_student_is_the_one_evaluated(whole: tuple[Path, Path]) -> None:
    import numpy as np

    from harness.encoders.folder import open_encoder

    texts = ["baba", "", "bido rock"]
    vectors = [
        open_encoder(whole[1] / path).encode(texts, side="query") for path in ("student/refined", "export/student")
    ]
    np.testing.assert_array_equal(*vectors)


def test_search_answers_with_student_and_teacher(whole: tuple[Path, Path]) -> None:
    line = json.loads((whole[1] / "data" / "corpus.jsonl").open(encoding="utf-8").readline())
    answers = search_run(whole[1], line["text"], 5)
    assert [answer.system for answer in answers] == ["student-refined", "teacher"]
    assert all(len(answer.hits) == 5 and answer.encode_ms > 0 and answer.search_ms > 0 for answer in answers)
    assert all(line["_id"] in [hit[0] for hit in answer.hits] for answer in answers)
    with pytest.raises(InputError, match="not the folder of a run"):
        search_run(whole[0].parent, "x", 5)
    with pytest.raises(InputError, match="blank"):
        search_run(whole[1], "  ", 5)


def test_a_foreign_student_is_refused(whole: tuple[Path, Path], tmp_path: Path) -> None:
    """Equal dimension is not enough: the space must be the index's, also where the manifest was made to agree."""
    import shutil

    from harness.pipeline.folder import RunFolder
    from harness.pipeline.manifest import Manifest, signature
    from harness.runtime.process import write_json

    out = Path(shutil.copytree(whole[1], tmp_path / "out"))
    path = out / "student" / "refined" / "harness.json"
    told = read_json(path)
    told["space"]["query_prompt"] = "query: "
    write_json(path, told)
    with pytest.raises(StaleArtefactError, match="harness.json"):
        search_run(out, "baba", 3)
    manifest = Manifest(RunFolder(out))
    manifest.steps["refine"]["outputs"] = signature([path.parent], out)
    manifest.write()
    with pytest.raises(StaleArtefactError, match="query_prompt"):
        search_run(out, "baba", 3)


def test_an_evaluation_is_of_the_weights_that_lie_there(whole: tuple[Path, Path], tmp_path: Path) -> None:
    """A stage that is forced to run again keeps its key and may get other weights (another device, more processes)."""
    import shutil

    from harness.pipeline.folder import RunFolder
    from harness.pipeline.manifest import Manifest, signature

    out = Path(shutil.copytree(whole[1], tmp_path / "out"))
    told = {name: PerQuery.load(out / "evaluations" / name / "test") for name in ("student-aligned", "student-refined")}
    student = out / "student" / "refined"
    shutil.copy(out / "student" / "aligned" / "model.safetensors", student)
    manifest = Manifest(RunFolder(out))
    manifest.steps["refine"]["outputs"] = signature([student], out)
    manifest.write()
    _, ran = run_recipe(load_recipe(whole[0]), out, first="evaluate")
    assert ran == ["evaluate", "report"]
    found = PerQuery.load(out / "evaluations" / "student-refined" / "test")
    assert found.hits == told["student-aligned"].hits != told["student-refined"].hits


def test_the_metrics_that_a_recipe_names_are_measured(whole: tuple[Path, Path], tmp_path: Path) -> None:
    import shutil

    out = Path(shutil.copytree(whole[1], tmp_path / "out"))
    _, ran = run_recipe(load_recipe(whole[0], ["evaluate.metrics=[nDCG@7, Hit@3, judged@100]"]), out)
    assert ran == ["evaluate", "report"]
    found = PerQuery.load(out / "evaluations" / "student-refined" / "test")
    assert list(found.metrics) == ["nDCG@7", "Hit@3", "judged@100"]
    results = read_json(out / "results.json")
    assert set(results["quality"]["teacher"]["test"]["aa"]) == {"queries", "nDCG@7", "Hit@3", "judged@100"}
    assert set(results["recovery"]["student-refined"]["test"]["macro"]) == {"nDCG@7", "Hit@3"}
    assert "nDCG@7" in (out / "report.md").read_text()


def test_a_damaged_evaluation_is_made_again_when_asked_for(whole: tuple[Path, Path], tmp_path: Path) -> None:
    import shutil

    out = Path(shutil.copytree(whole[1], tmp_path / "out"))
    table = out / "evaluations" / "student-refined" / "test" / "per_query.parquet"
    vectors = out / "evaluations" / "teacher" / "test" / "query_vectors.npy"
    before = table.read_bytes(), vectors.read_bytes()
    for path, content in zip((table, vectors), before, strict=True):
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(StaleArtefactError, match=r"per_query\.parquet(.|\n)*--from evaluate"):
        run_recipe(load_recipe(whole[0]), out)
    run_recipe(load_recipe(whole[0]), out, first="evaluate")
    assert (table.read_bytes(), vectors.read_bytes()) == before


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness", *arguments], capture_output=True, text=True,
        env={**os.environ, "COLUMNS": "120"}, timeout=120,
    )  # fmt: skip


def test_the_command_line_shows_the_report_and_its_paths(whole: tuple[Path, Path]) -> None:
    done = _command("run", str(whole[0]), "--output", str(whole[1]))
    assert done.returncode == 0, done.stderr
    for text in ("nothing ran", "student-refined", "Recovery", "p50", "report.html", "report.md", "results.json"):
        assert text in done.stdout, text
    shown = _command("search", str(whole[1]), "ba<script>", "--k", "2")
    assert shown.returncode == 0 and "teacher" in shown.stdout


def test_print_shows_a_command_for_every_step(whole: tuple[Path, Path]) -> None:
    done = _command("run", str(whole[0]), "--output", str(whole[1]), "--print")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == len(STEPS)


def _tree_with(root: Path, **changes: Any) -> Recipe:
    short = {"steps": 3, "batch_size": 8, "learning_rate": 1e-3, "precision": "fp32", "chunks": 1}
    tree = tiny_tree(root)
    for stage in ("teacher", "align", "refine"):
        tree[stage]["training"] = dict(short)
    tree["bench"] = None
    tree["evaluate"] = {"systems": ["teacher", "student-refined"], "resamples": 100}
    for section, values in changes.items():
        tree[section] = {**(tree.get(section) or {}), **values}
    return load_recipe(write_recipe(root, tree))


def test_mining_may_be_added_to_a_run_that_embedded_the_untrained_teacher(tmp_path: Path) -> None:
    tree = tiny_tree(tmp_path, align=None, refine=None, bench=None, evaluate={"systems": ["teacher", "teacher-base"]})
    del tree["export"]
    path, out = write_recipe(tmp_path, tree), tmp_path / "out"
    assert run_recipe(load_recipe(path), out, last="embed.base")[1] == ["data", "embed.base"]
    before = (out / "vectors/base-documents/manifest.json").stat().st_mtime_ns
    mining = load_recipe(path, ["mine.base={top_k: 5, keep: 2}"])
    assert run_recipe(mining, out, last="mine.base")[1] == ["embed.base", "mine.base"]
    assert (out / "vectors/base-documents/manifest.json").stat().st_mtime_ns == before, "found again"
    assert run_recipe(mining, out, last="mine.base")[1] == []
    assert run_recipe(load_recipe(path), out, last="embed.base")[1] == []


def test_mined_negatives_reach_both_trainings(tmp_path: Path) -> None:
    recipe = _tree_with(
        tmp_path,
        mine={"base": {"top_k": 10, "keep": 4}, "refine": {"top_k": 10, "keep": 4}},
        teacher={"model": str(tmp_path / "model"), "hard_negatives": 2},
        refine={"candidates": "sampled", "sampled": 16, "mined": 3},
    )
    recipe = recipe.model_copy(
        update={"teacher": recipe.teacher.model_copy(update={"training": recipe.align.training})}
    )  # type: ignore[union-attr]
    _, ran = run_recipe(recipe, tmp_path / "out")
    assert "mine.base" in ran and "mine.refine" in ran and ran.index("mine.base") < ran.index("teacher")
    audit = read_json(tmp_path / "out" / "mined" / "refine" / "audit.json")
    assert audit["negatives"] > 0 and audit["queries_without_negatives"] == 0


def test_search_within_a_language_and_equivalent_documents(tmp_path: Path) -> None:
    """Documents in each query language; the pool of a query is its language's."""
    data = tmp_path / "languages"
    (data / "qrels").mkdir(parents=True)
    corpus, queries, qrels = [], [], {"train": [], "dev": []}
    for number in range(40):
        for language in ("xx", "yy"):
            key = f"{language}{number}"
            corpus.append(
                {"_id": f"d{key}", "text": f"{language} thing {number}", "lang": language, "key": f"k{number % 38}"}
            )
            queries.append({"_id": f"q{key}", "text": f"{language} ask {number}", "lang": language})
            qrels["train" if number < 20 else "dev"].append(f"q{key}\td{key}\t1")
    for name, lines in (("corpus", corpus), ("queries", queries)):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, rows in qrels.items():
        (data / "qrels" / f"{name}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(rows) + "\n")
    recipe = _tree_with(
        tmp_path,
        data={
            "path": str(data),
            "search_within": "lang",
            "equivalent": "key",
            "group": "key",
            "max_unknown_share": 1.0,
        },
    )
    run_recipe(recipe, tmp_path / "out")
    answers = search_run(tmp_path / "out", "xx ask 3", 50, "xx")
    assert all(hit[1].startswith("xx") for answer in answers for hit in answer.hits) and len(answers[0].hits) == 40
    with pytest.raises(InputError, match="within one language"):
        search_run(tmp_path / "out", "xx ask 3", 50)


def test_a_student_of_another_family_is_bridged_and_a_teacher_truncated(tmp_path: Path) -> None:
    from builders.tiny_models import write_tiny_qwen3

    tree = tiny_tree(tmp_path)
    lines = (Path(tree["data"]["path"]) / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    write_tiny_qwen3(tmp_path / "other", texts=texts, hidden=24)
    recipe = _tree_with(
        tmp_path,
        teacher={"model": str(tmp_path / "model"), "train": False, "dimension": 16, "training": None},
        student={"model": str(tmp_path / "other"), "layers": {"rule": "middle-skip", "count": 2}},
    )
    run_recipe(recipe, tmp_path / "out")
    results = read_json(tmp_path / "out" / "results.json")
    assert results["systems"]["teacher"]["dimensions"] == results["systems"]["student-refined"]["dimensions"] == 16
    assert results["systems"]["student-refined"]["layers"] == 2
    modules = [module["type"] for module in read_json(tmp_path / "out" / "student" / "cut" / "modules.json")]
    assert modules[2].endswith("Dense") and modules[3].endswith("Normalize")


def test_a_baseline_teacher_is_trained_on(tmp_path: Path) -> None:
    systems = {"systems": ["teacher", "teacher-more", "student-refined"], "resamples": 100}
    _, ran = run_recipe(_tree_with(tmp_path, evaluate=systems), tmp_path / "out")
    assert {"teacher.more", "embed.more"} <= set(ran)
    assert "teacher-more" in read_json(tmp_path / "out" / "results.json")["quality"]


def test_search_leaves_out_a_student_whose_inputs_were_made_anew(whole: tuple[Path, Path], tmp_path: Path) -> None:
    import shutil

    out = shutil.copytree(whole[1], tmp_path / "out")
    run_recipe(load_recipe(whole[0], ["align.training.steps=2"]), out, last="align")
    assert [answer.system for answer in search_run(out, "baba", 3)] == ["student-aligned", "teacher"]


def test_metrics_reach_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run_recipe(_tree_with(tmp_path, tracking={"trackers": ["tensorboard"]}), tmp_path / "out", last="align")
    assert len(list((tmp_path / "out" / "logs").rglob("events.out.tfevents.*"))) >= 2


def test_bad_lines_stop_a_run_or_are_skipped_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = _tree_with(tmp_path)
    with open(Path(str(recipe.data.path)) / "queries.jsonl", "a", encoding="utf-8") as stream:
        stream.write('{"_id": "broken", "text": \n')
    with pytest.raises(InputError, match=r"queries\.jsonl"):
        run_recipe(recipe, tmp_path / "out", last="data")
    skipping = recipe.model_copy(update={"data": recipe.data.model_copy(update={"on_error": "skip"})})
    caplog.set_level("INFO", logger="harness")
    run_recipe(skipping, tmp_path / "out", last="data")
    assert "1 bad lines" in caplog.text


def test_a_verb_stops_without_the_processes_that_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher started one where two are asked for, or the other way round."""
    recipe = _tree_with(tmp_path)
    two = recipe.model_copy(update={"launch": recipe.launch.model_copy(update={"processes": 2})})
    with pytest.raises(InputError, match=r"does not see the processes(.|\n)*1 running(.|\n)*2"):
        run_verb(two, tmp_path / "out", "teacher")
    monkeypatch.setenv("WORLD_SIZE", "2")  # what a scheduler sets in a pod says nothing of how we were started
    with pytest.raises(InputError, match="needs data"):
        run_verb(recipe, tmp_path / "out", "teacher")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(InputError, match=r"does not see the processes(.|\n)*2 running(.|\n)*1"):
        run_verb(recipe, tmp_path / "out", "teacher")
    with pytest.raises(InputError, match="starts its steps' processes itself"):
        run_recipe(recipe, tmp_path / "out", last="data")
