"""Documents change: only what changed is encoded, nothing is trained, and the result equals a rebuild."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders.killed import Fault, Zygote
from builders.tiny_data import write_jsonl
from builders.tiny_run import tiny_tree, write_recipe
from builders.whole import partial_artefacts
from typer.testing import CliRunner

from harness.cli import app
from harness.data.prepare import load_dataset, prepare_data
from harness.encoders.chain import weights_sha256
from harness.encoders.folder import open_encoder
from harness.evaluation.per_query import PerQuery
from harness.pipeline.check import check_recipe
from harness.pipeline.controller import run_recipe, run_verb
from harness.pipeline.folder import RunFolder
from harness.pipeline.manifest import Manifest
from harness.pipeline.search import search_run
from harness.pipeline.update import update_documents
from harness.recipe import DataSettings, Recipe, load_recipe
from harness.runtime.errors import InputError, StaleArtefactError
from harness.runtime.process import folder_sha256, read_json
from harness.vectors.index import VectorIndex
from harness.vectors.space import Space
from harness.vectors.store import VectorStore

Line = dict[str, Any]
SHORT = {"steps": 3, "batch_size": 8, "learning_rate": 1e-3, "precision": "fp32", "chunks": 1}


def _lines(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Corpus:
    """A BEIR folder's documents, to be changed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "corpus.jsonl"

    def change(self, change: Callable[[list[Line]], list[Line]]) -> None:
        write_jsonl(self.path, change(_lines(self.path)))


def turn_over(lines: list[Line]) -> list[Line]:
    """Six documents leave (queries ask for them), two change, three come; and the order is another."""
    kept = lines[6:]
    kept[3]["text"], kept[40]["text"] = "zebra quagga okapi", "a changed text " + kept[40]["text"]
    new = [{**lines[0], "_id": f"new-{n}", "text": text} for n, text in enumerate(["zum zum", "zo za zi", "d d d d"])]
    return [*kept[50:], *new, *kept[:50]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a finished run: ``recipe.yaml``, ``data/``, ``model/``, ``out/``."""
    root = tmp_path_factory.mktemp("update")
    tree = tiny_tree(root)
    tree["teacher"]["training"] |= {"steps": 20, "evaluate_every": 0}
    tree["align"]["training"] |= {"steps": 30}
    tree["mine"] = {"refine": {"top_k": 10, "keep": 4}}
    tree["refine"] |= {"mined": 2, "candidates": "sampled", "sampled": 16}
    tree["refine"]["training"] |= {"steps": 5}
    tree["evaluate"]["systems"] = ["teacher", "teacher-base", "teacher-more", "student-refined"]
    tree["embed"] = {"shard_rows": 50, "dtype": "bfloat16"}
    tree["export"] = {"index": ["npy"]}
    recipe = load_recipe(write_recipe(root, tree))
    run_recipe(recipe, root / "out")
    return root


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the finished run's folder; the data is as it was again afterwards."""
    shutil.copytree(whole / "data", tmp_path / "data")
    out = shutil.copytree(whole / "out", tmp_path / "out")
    run_recipe(load_recipe(whole / "recipe.yaml"), out)  # which notes that files were copied
    yield out
    shutil.rmtree(whole / "data")
    shutil.copytree(tmp_path / "data", whole / "data")


@pytest.fixture
def recipe(whole: Path) -> Recipe:
    return load_recipe(whole / "recipe.yaml")


@pytest.fixture
def corpus(whole: Path) -> Corpus:
    return Corpus(whole / "data")


def _models(out: Path) -> list[str]:
    deployed = weights_sha256(out / "export" / "student")  # the card beside them tells of the new documents
    return [deployed, *(folder_sha256(out / name) for name in ("teacher", "teacher-more", "student", "mined"))]


COSINE = {"float32": 1e-6, "float16": 1e-5, "bfloat16": 1e-5, "int8": 2e-4}  # that storing may cost
SCORE = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 2e-3, "int8": 5e-3}


def require_equal_to_a_rebuild(out: Path, recipe: Recipe, scratch: Path) -> None:
    """Data, vectors and answers of the index are those that the files give from scratch."""
    folder = RunFolder(out)
    prepare_data(recipe.data, scratch, earlier=folder.data)
    assert folder_sha256(scratch / "qrels") == folder_sha256(folder.data / "qrels")
    dataset = load_dataset(folder.data)
    assert load_dataset(scratch).documents == dataset.documents
    encoder = open_encoder(folder.teacher)
    for name, ids, texts, side in (
        ("documents", dataset.documents.ids, dataset.documents.texts, "document"),
        ("queries", [f"query:{r.id}" for r in dataset.splits["train"]], [r.text for r in dataset.splits["train"]],
         "query"),
    ):  # fmt: skip
        store = VectorStore.open(folder.vectors / name, verify=True)
        got_ND, want_ND = store.vectors(store.rows_of(ids)), encoder.encode(texts, side=side)  # type: ignore[arg-type]
        cosine_N = (got_ND * want_ND).sum(axis=1) / np.linalg.norm(got_ND, axis=1) / np.linalg.norm(want_ND, axis=1)
        assert cosine_N.min() > 1 - COSINE[store.dtype], name
        if name == "documents":
            assert sorted(store.ids) == sorted(ids)
            partition = dataset.documents.languages if dataset.search_within else None
            fresh = VectorIndex.build(want_ND, ids, partition_N=partition)
            index = VectorIndex.load(folder.index, store.space, ids, store_sha256=store.sha256)
    asked = dataset.splits["report"]
    query_QD = encoder.encode([record.text for record in asked], side="query")
    partition = [record.language for record in asked] if dataset.search_within else None
    (got_QK, row_QK), (want_QK, want_row_QK) = (one.search(query_QD, 10, partition) for one in (index, fresh))
    tolerance = SCORE[store.dtype]
    np.testing.assert_allclose(got_QK, want_QK, atol=tolerance)
    gap_QK = np.abs(np.diff(want_QK, axis=1, append=want_QK[:, -1:] - 1))
    clear_QK = (gap_QK > 2 * tolerance) & (np.roll(gap_QK, 1, axis=1) > 2 * tolerance)
    clear_QK[:, -1] = False  # the next one is not seen
    assert clear_QK.any() and (row_QK == want_row_QK)[clear_QK].all()


def test_an_update_equals_a_rebuild_and_trains_nothing(
    out: Path, recipe: Recipe, corpus: Corpus, tmp_path: Path
) -> None:
    models, old = _models(out), VectorStore.open(out / "vectors" / "documents")
    corpus.change(turn_over)
    told = update_documents(recipe, out)
    assert told is not None
    assert told["documents"] == told["base-documents"] == told["more-documents"]
    assert told["documents"] == {"stay": 112, "encoded": 5, "leave": 8}
    assert told["queries"]["encoded"] == 5, "as texts of the alignment"
    assert _models(out) == models
    require_equal_to_a_rebuild(out, recipe, tmp_path / "again")
    store = VectorStore.open(out / "vectors" / "documents", verify=True)
    assert store.dtype == "bfloat16" and [shard.number for shard in store.manifest.shards] == [0, 1, 2, 3]
    stay = [name for name in store.ids if name in old.row and name not in ("d4-1", "d23-0")]
    np.testing.assert_array_equal(store.vectors(store.rows_of(stay)), old.vectors(old.rows_of(stay)))
    assert not partial_artefacts(out) and not list(out.rglob("*.tmp"))
    assert run_recipe(recipe, out)[1] == ["export", "export.index", "evaluate", "report"]
    assert np.load(out / "export" / "index" / "vectors.npy").shape == (117, 32), "handed over anew"
    assert _models(out) == models and run_recipe(recipe, out)[1] == []
    results = read_json(out / "results.json")
    assert {name: told["documents"] for name, told in results["sets"].items()} == dict.fromkeys(results["sets"], 117)
    assert [update["stores"] for update in results["provenance"]["updates"]] == [told]


def test_the_student_finds_new_documents_and_no_removed_ones(out: Path, recipe: Recipe, corpus: Corpus) -> None:
    gone = _lines(corpus.path)[0]
    found = search_run(out, gone["text"], 5)[0]
    assert found.system == "student-refined" and gone["_id"] in [hit[0] for hit in found.hits]
    corpus.change(turn_over)
    update_documents(recipe, out)
    student, teacher = search_run(out, "zum zum", 5)
    assert student.system == "student-refined" and teacher.system == "teacher"
    for answer in (student, teacher):
        assert ("new-0", "zum zum") in [hit[:2] for hit in answer.hits]
    assert gone["_id"] not in [hit[0] for hit in search_run(out, gone["text"], 1000)[0].hits]
    run_verb(recipe, out, "evaluate")  # alone: its inputs are done
    run_verb(recipe, out, "export")
    run_verb(recipe, out, "report")


def test_nothing_changed_and_nothing_there(out: Path, recipe: Recipe, whole: Path, tmp_path: Path) -> None:
    before = folder_sha256(out)
    done = CliRunner().invoke(app, ["embed", str(whole / "recipe.yaml"), "--output", str(out), "--update"])
    assert done.exit_code == 0 and "nothing to update" in done.output
    assert folder_sha256(out) == before
    with pytest.raises(InputError, match="nothing is embedded yet"):
        update_documents(recipe, tmp_path / "empty")


def test_the_command_shows_the_counts(out: Path, corpus: Corpus, whole: Path) -> None:
    corpus.change(lambda lines: [*lines[1:], {**lines[0], "_id": "x", "text": "ba ba"}])
    done = CliRunner().invoke(app, ["embed", str(whole / "recipe.yaml"), "--output", str(out), "--update"])
    assert done.exit_code == 0, done.output
    assert "documents: 119 stay, 1 encoded, 1 leave" in done.output


def test_changed_settings_are_refused_by_name(out: Path, whole: Path, corpus: Corpus) -> None:
    before = folder_sha256(out)
    corpus.change(turn_over)
    changed = load_recipe(whole / "recipe.yaml", ["teacher.max_length=16", "data.hold_out=0.3"])
    with pytest.raises(InputError, match="more than the documents changed") as caught:
        update_documents(changed, out)
    assert "data.hold_out: 0.1 -> 0.3; teacher.max_length: None -> 16" in str(caught.value)
    assert folder_sha256(out) == before


def test_changed_files_don_t_throw_a_training_away(out: Path, recipe: Recipe, whole: Path, corpus: Corpus) -> None:
    before = folder_sha256(out)
    corpus.change(turn_over)
    said = []
    for run in (lambda: run_recipe(recipe, out), lambda: run_verb(recipe, out, "data"),
                lambda: check_recipe(recipe, output=out)):  # fmt: skip
        with pytest.raises(InputError, match=r"embed RECIPE --update[\s\S]*--from data") as caught:
            run()
        said.append(caught.value.problems[0])
    assert len(set(said)) == 1, "in the same words"
    assert folder_sha256(out) == before
    lenient = load_recipe(whole / "recipe.yaml", ["data.on_error=skip"])  # a changed recipe is a wish, as ever
    assert run_recipe(lenient, out, last="embed.base")[1] == ["data", "embed.base"]
    with pytest.raises(InputError, match="unknown corpus-id"):
        run_recipe(recipe, out, first="data", last="data")


def test_a_stage_trained_after_an_update_uses_the_new_documents(
    out: Path, recipe: Recipe, whole: Path, corpus: Corpus
) -> None:
    corpus.change(turn_over)
    update_documents(recipe, out)
    changed = load_recipe(whole / "recipe.yaml", ["refine.temperature=0.1"])
    ran = run_recipe(changed, out)[1]
    assert ran == ["mine.refine", "refine", "export", "export.index", "evaluate", "bench", "report"]
    negatives = (out / "mined" / "refine" / "part-00000.parquet").read_bytes()
    assert b"new-" in negatives and run_recipe(changed, out)[1] == []


def test_an_unfinished_training_is_finished_or_given_up_before_an_update(
    out: Path, recipe: Recipe, corpus: Corpus
) -> None:
    manifest = Manifest(RunFolder(out))
    manifest.forget([step for step in manifest.steps if step in ("align", "refine", "export", "evaluate", "report")])
    before = folder_sha256(out)
    corpus.change(turn_over)
    with pytest.raises(InputError, match=r"the training of step 'align' is unfinished[\s\S]*--to align") as caught:
        update_documents(recipe, out)
    assert folder_sha256(out) == before
    for problem in caught.value.problems:  # given up, as it says
        assert f"delete {problem.where}" in str(problem.next)
        shutil.rmtree(problem.where or "")
    assert update_documents(recipe, out)
    assert {"align", "refine"} <= set(run_recipe(recipe, out)[1])


def test_updates_follow_one_another(out: Path, recipe: Recipe, corpus: Corpus, tmp_path: Path) -> None:
    corpus.change(turn_over)
    update_documents(recipe, out)
    for turn in range(3):
        corpus.change(lambda lines, n=turn: [{**lines[0], "_id": f"n{n}", "text": f"zum {n}"}, *lines[25:]])  # type: ignore[misc]
        update_documents(recipe, out)
    require_equal_to_a_rebuild(out, recipe, tmp_path / "again")
    store = VectorStore.open(out / "vectors" / "documents")
    assert sum(shard.rows for shard in store.manifest.shards) <= 2 * len(store), "tombstones are cleared away"
    assert len(Manifest(RunFolder(out)).updates) == 4
    assert run_recipe(recipe, out)[1] == ["export", "export.index", "evaluate", "report"]


# -------------------------------------------------------------------------------------------------------------- kills

BEFORE = [  # nothing visible has changed yet
    Fault("data", "replace", 1), Fault("shard", "write", 3), Fault("shard", "replaced", 4),
    Fault("manifest", "replace", 1),
]  # fmt: skip
WITHIN = [
    Fault("manifest", "replaced", 1), Fault("data", "replaced", 1, name=".data*.old.tmp"),
    Fault("shard", "replaced", 1, name="manifest.json"), Fault("shard", "replaced", 3, name="manifest.json"),
    Fault("index", "replaced", 1, name=".index*.old.tmp"), Fault("manifest", "replace", 2),
]  # fmt: skip


@pytest.mark.parametrize("fault", [*BEFORE, *WITHIN], ids=str)
def test_a_killed_update_leaves_the_old_run_or_is_named_and_goes_on(
    fault: Fault, out: Path, recipe: Recipe, whole: Path, corpus: Corpus, zygote: Zygote, tmp_path: Path
) -> None:
    before = Manifest(RunFolder(out)).steps
    corpus.change(turn_over)
    command = ["embed", str(whole / "recipe.yaml"), "--output", str(out), "--update"]
    died = zygote.run(command, out, fault)
    assert died.code == -9, f"{fault} met nothing: {died.log}"
    manifest = Manifest(RunFolder(out))
    assert not partial_artefacts(out)
    if fault in BEFORE:
        assert not manifest.updating and manifest.steps == before
        assert len(search_run(out, "ba", 200)[0].hits) == 120, "the old index"
    else:
        for use in (lambda: run_recipe(recipe, out), lambda: run_verb(recipe, out, "evaluate"),
                    lambda: search_run(out, "ba", 5)):  # fmt: skip
            with pytest.raises(StaleArtefactError, match=r"interrupted[\s\S]*embed RECIPE --update"):
                use()
    ended = zygote.run(command, out)
    assert ended.code == 0, ended.log
    assert not Manifest(RunFolder(out)).updating and not partial_artefacts(out)
    require_equal_to_a_rebuild(out, recipe, tmp_path / "again")


# ------------------------------------------------------------------------------------- other kinds of data and vectors


def _short(root: Path, **changes: Any) -> Recipe:
    """A recipe with an untrained teacher and trainings of three steps."""
    tree = tiny_tree(root)
    tree |= {
        "teacher": {"model": str(root / "model"), "train": False}, "align": {"texts": ["queries"], "training": SHORT},
        "refine": {"training": SHORT}, "bench": None,
        "evaluate": {"systems": ["teacher", "student-refined"], "resamples": 100},
    }  # fmt: skip
    return load_recipe(write_recipe(root, {**tree, **changes}))


def test_each_language_has_its_own_part_of_the_index(tmp_path: Path) -> None:
    data = tmp_path / "languages"
    documents, queries, qrels = [], [], {"train": [], "dev": []}  # type: ignore[var-annotated]
    for number in range(40):
        for language in ("xx", "yy"):
            key = f"{language}{number}"
            documents.append({"_id": f"d{key}", "text": f"{language} thing {number}", "lang": language})
            queries.append({"_id": f"q{key}", "text": f"{language} ask {number}", "lang": language})
            qrels["train" if number < 20 else "dev"].append((f"q{key}", f"d{key}", 1))
    from builders.tiny_data import write_beir

    write_beir(data, documents, queries, **qrels)
    settings = {"source": "beir", "path": str(data), "search_within": "lang", "max_unknown_share": 1.0}
    recipe = _short(tmp_path, data=settings, embed={"shard_rows": 30})
    run_recipe(recipe, tmp_path / "out")
    moved = {**documents[0], "lang": "yy"}  # the same text, in the other part of the index
    write_jsonl(data / "corpus.jsonl", [moved, *documents[3:], {"_id": "new", "text": "xx new", "lang": "xx"}])
    assert (update_documents(recipe, tmp_path / "out") or {})["documents"] == {"stay": 78, "encoded": 1, "leave": 2}
    require_equal_to_a_rebuild(tmp_path / "out", recipe, tmp_path / "again")
    found = {hit[0] for hit in search_run(tmp_path / "out", "xx new", 100, "xx")[0].hits}
    assert found == {"new", *(line["_id"] for line in documents[3:] if line["lang"] == "xx")}
    assert run_recipe(recipe, tmp_path / "out")[1] == ["export", "evaluate", "report"]


def _write_vectors(root: Path, ids: Sequence[str], texts: Sequence[str], *, wrong: bool = False) -> None:
    encoder = open_encoder(root / "model")
    vector_ND = encoder.encode(list(texts), side="document")
    np.save(root / "given.npy", vector_ND[:, ::-1] if wrong else vector_ND)
    (root / "given.txt").write_text("".join(f"{name}\n" for name in ids), encoding="utf-8")


def _given(root: Path) -> dict[str, str]:
    return {"format": "npy", "path": str(root / "given.npy"), "ids": str(root / "given.txt")}


def test_given_vectors_are_read_anew_and_proved(tmp_path: Path) -> None:
    settings = {"vectors": _given(tmp_path), "sample": 10}
    recipe = _short(tmp_path, documents=settings, embed={"dtype": "int8", "workers": 2})
    lines = _lines(tmp_path / "data" / "corpus.jsonl")
    _write_vectors(tmp_path, [line["_id"] for line in lines], [line["text"] for line in lines])
    run_recipe(recipe, tmp_path / "out")
    before = folder_sha256(tmp_path / "out" / "vectors")
    lines = write_and_read(tmp_path / "data" / "corpus.jsonl", turn_over(lines))
    with pytest.raises(InputError, match="5 of 117 ids have no vector|3 of 117 ids have no vector"):
        update_documents(recipe, tmp_path / "out")
    _write_vectors(tmp_path, [line["_id"] for line in lines], [line["text"] for line in lines], wrong=True)
    with pytest.raises(InputError, match="not made by this encoder"):
        update_documents(recipe, tmp_path / "out")
    assert folder_sha256(tmp_path / "out" / "vectors") == before
    _write_vectors(tmp_path, [line["_id"] for line in lines], [line["text"] for line in lines])
    with pytest.raises(StaleArtefactError, match="data files changed.*\n.*data and given vectors"):
        run_recipe(recipe, tmp_path / "out")
    assert (update_documents(recipe, tmp_path / "out") or {})["documents"] == {"stay": 114, "new": 3, "leave": 6}
    require_equal_to_a_rebuild(tmp_path / "out", recipe, tmp_path / "again")
    assert run_recipe(recipe, tmp_path / "out")[1] == ["export", "evaluate", "report"]


def write_and_read(path: Path, lines: list[Line]) -> list[Line]:
    write_jsonl(path, lines)
    return _lines(path)


def test_vectors_that_found_their_space_can_lose_documents_but_not_change(tmp_path: Path) -> None:
    queries = {"format": "npy", "path": str(tmp_path / "q.npy"), "ids": str(tmp_path / "q.txt")}
    recipe = _short(
        tmp_path, teacher={"train": False, "query_vectors": queries}, documents={"vectors": _given(tmp_path)},
        student={"model": str(tmp_path / "model"), "layers": [1, 4]},
    )  # fmt: skip
    lines, asked = (_lines(tmp_path / "data" / f"{name}.jsonl") for name in ("corpus", "queries"))
    _write_vectors(tmp_path, [line["_id"] for line in lines], [line["text"] for line in lines])
    np.save(tmp_path / "q.npy", open_encoder(tmp_path / "model").encode([x["text"] for x in asked], side="query"))
    (tmp_path / "q.txt").write_text("".join(x["_id"] + "\n" for x in asked))
    run_recipe(recipe, tmp_path / "out")
    write_jsonl(tmp_path / "data" / "corpus.jsonl", lines[4:])
    assert (update_documents(recipe, tmp_path / "out") or {})["documents"] == {"stay": 116, "new": 0, "leave": 4}
    assert run_recipe(recipe, tmp_path / "out")[1] == ["export", "evaluate", "report"]
    _write_vectors(tmp_path, [line["_id"] for line in lines], [line["text"] + "!" for line in lines])
    with pytest.raises(InputError, match="changed ones are another space"):
        update_documents(recipe, tmp_path / "out")


def test_what_was_trained_on_never_becomes_a_test(tmp_path: Path) -> None:
    """Pairs are split by groups of queries that share a document; a new pair may join two groups."""
    lines = [{"query": f"ask {n}", "positive": f"thing {n}"} for n in range(60)]
    settings = DataSettings(source="pairs", path=str(write_jsonl(tmp_path / "pairs.jsonl", lines)), hold_out=0.4)
    prepare_data(settings, tmp_path / "old")
    old = load_dataset(tmp_path / "old").splits
    ids = {record.text: record.id for records in old.values() for record in records}
    joined = [{"query": f"ask {n}", "positive": f"thing {(n * 7) % 60}"} for n in range(60) if n % 3 == 0]
    write_jsonl(tmp_path / "pairs.jsonl", [*lines[5:], *joined])
    plain = prepare_data(settings, tmp_path / "plain")
    kept = prepare_data(settings, tmp_path / "kept", earlier=tmp_path / "old")
    trained = {record.id for record in old["train"]}
    tested = {name: {r.id for n in ("select", "report") for r in load_dataset(tmp_path / name).splits[n]}
              for name in ("plain", "kept")}  # fmt: skip
    assert trained & tested["plain"], "or this proves nothing"
    assert not trained & tested["kept"] and kept["kept_in_split"] > 0 == plain["kept_in_split"]
    assert not {r.id for r in old["select"]} & {r.id for r in load_dataset(tmp_path / "kept").splits["report"]}
    everything = {r.id for records in load_dataset(tmp_path / "kept").splits.values() for r in records}
    assert everything == set(ids.values()) - {ids[f"ask {n}"] for n in range(5) if n % 3}


def test_a_query_trained_on_before_two_updates_is_no_test_and_its_text_is_told_of(tmp_path: Path) -> None:
    recipe, out = _short(tmp_path), tmp_path / "out"
    run_recipe(recipe, out, last="embed")
    train, test = (tmp_path / "data" / "qrels" / f"{name}.tsv" for name in ("train", "test"))
    lines = train.read_text().splitlines(keepends=True)
    query = lines[1].split("\t")[0]
    own = [line for line in lines if line.startswith(f"{query}\t")]
    train.write_text("".join(line for line in lines if line not in own))
    assert update_documents(recipe, out)
    asked = tmp_path / "data" / "queries.jsonl"
    (text,) = (line["text"] for line in _lines(asked) if line["_id"] == query)
    write_jsonl(asked, [*_lines(asked), {"_id": "again", "text": text, "lang": "aa", "group": "g-again"}])
    with test.open("a") as stream:
        stream.writelines([*own, own[0].replace(query, "again")])
    assert update_documents(recipe, out)
    assert query not in (out / "data" / "qrels" / "test.tsv").read_text()
    run_recipe(recipe, out)
    results = read_json(out / "results.json")
    count = results["sets"]["test"]["queries"]
    assert results["sets"]["test"]["shared_with_train"] == {"texts": 1, "groups": 0}
    assert any(warning.startswith(f"1 of {count} queries of test") for warning in results["warnings"])
    assert "are asked, word for word, in training too" in (out / "report.md").read_text()


def test_a_depth_beyond_all_documents_gives_all_of_them(tmp_path: Path) -> None:
    evaluate = {"systems": ["teacher"], "resamples": 100, "depth": 100_000_000}
    recipe = _short(tmp_path, refine=None, export=None, evaluate=evaluate)
    run_recipe(recipe, tmp_path / "out", last="evaluate")
    found = PerQuery.load(tmp_path / "out" / "evaluations" / "teacher" / "report")
    assert {len(hits) for hits in found.hits} == {120}


def test_a_space_is_kept(out: Path, recipe: Recipe, corpus: Corpus) -> None:
    space = read_json(out / "index" / "manifest.json")["space"]
    corpus.change(turn_over)
    update_documents(recipe, out)
    assert read_json(out / "index" / "manifest.json")["space"] == space
    assert Space.from_json(space) == VectorStore.open(out / "vectors" / "documents").space
