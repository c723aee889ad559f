"""The teacher trained on logs of pairs: a whole run, what makes which step run again, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from builders.pair_logs import write_run_logs
from builders.tiny_run import tiniest_tree, tiny_tree, write_recipe

from harness.data.records import in_context
from harness.data.token_cache import TokenCache
from harness.encoders.folder import load_encoder, load_reader
from harness.pipeline.check import check_recipe
from harness.pipeline.controller import run_recipe, run_verb
from harness.pipeline.launch import check_launch
from harness.pipeline.plan import keys
from harness.pipeline.update import update_documents
from harness.recipe import EncoderSettings, Recipe, load_recipe
from harness.runtime.errors import InputError, StaleArtefactError
from harness.runtime.process import read_json

TEMPLATE = "{query} | {context}"


def stream_tree(root: Path, *, leaked: int = 0) -> dict[str, Any]:
    """The tiny recipe with its teacher on two logs, contexts included."""
    tree = tiny_tree(root)
    tree["data"]["streams"] = write_run_logs(root, leaked=leaked)
    tree["teacher"] |= {"streams": ["clicks", "orders"], "context": TEMPLATE}
    return tree


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pairs")
    tree = stream_tree(root, leaked=5)
    tree["align"]["training"]["steps"] = tree["refine"]["training"]["steps"] = 5
    tree["evaluate"]["systems"] = ["teacher", "teacher-base", "teacher-more", "student-refined"]
    recipe = write_recipe(root, tree)
    _, ran = run_recipe(load_recipe(recipe), root / "out")
    assert ran[:4] == ["data", "embed.base", "teacher.streams", "teacher"] and ran[-1] == "report"
    return recipe, root / "out"


def open_cache(out: Path, name: str) -> TokenCache:
    folder = out / "streams/teacher" / name
    return TokenCache(folder, read_json(folder / "manifest.json"))


def test_the_teacher_learns_from_its_logs(whole: tuple[Path, Path]) -> None:
    recipe, out = whole
    results = read_json(out / "results.json")
    found = {system: results["quality"][system]["test"]["macro"]["P@1"] for system in ("teacher", "teacher-base")}
    assert found["teacher"] > found["teacher-base"] + 0.3
    lines = [json.loads(line) for line in (out / "logs/teacher.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 40 and losses[-1] < 0.7 * losses[0]
    assert (out / "teacher-more/modules.json").exists(), "trained on from the same logs"
    assert run_recipe(load_recipe(recipe), out)[1] == []


def test_tokens_are_of_the_query_with_its_context_after_the_prompts_of_the_log(whole: tuple[Path, Path]) -> None:
    recipe, out = whole
    reader, root = load_reader(load_recipe(recipe).teacher), recipe.parent
    rows = [json.loads(line) for line in (root / "logs/orders.jsonl").open(encoding="utf-8")]
    cache = open_cache(out, "orders")
    assert cache.fields == ("asked", "found") and len(cache) == len(rows)
    everything = np.arange(len(cache))
    tokens = [cache.tokens(everything, field) for field in cache.fields]
    for at, (_, row) in enumerate(cache.sources(everything)):
        asked = in_context(rows[row]["asked"], rows[row]["expansion"] or "", TEMPLATE)
        for found, text in zip(tokens, (asked, rows[row]["found"]), strict=True):
            assert found[at] == reader.tokenizer(text, truncation=True, max_length=reader.max_length)["input_ids"]
    clicks = open_cache(out, "clicks")
    word = reader.tokenizer("luki", add_special_tokens=False)["input_ids"]
    first = clicks.tokens(np.arange(len(clicks)), "asked")
    assert all(tokens[1 : 1 + len(word)] == word for tokens in first), "this log's own prompt"
    assert sum(shard.left_out["duplicates"] for shard in clicks.shards) == 1


def test_queries_of_evaluations_that_the_logs_ask_are_told_of(whole: tuple[Path, Path]) -> None:
    results = read_json(whole[1] / "results.json")
    assert {name: told["shared_with_train"]["streams"] for name, told in results["sets"].items()} == {
        "select": 0, "report": 0, "test": 5
    }  # fmt: skip
    assert results["leakage"]["test"]["seen"]["streams"] == 5 and results["leakage"]["report"]["seen"]["streams"] == 0
    assert any("5 of 144 queries of test (3.5%) are asked, word for word, in the teacher's streams too" in text
               for text in results["warnings"]), results["warnings"]  # fmt: skip
    assert "in the teacher's streams too" in (whole[1] / "report.md").read_text()


def test_what_is_read_without_weights_is_what_the_encoder_reads_with(whole: tuple[Path, Path]) -> None:
    settings = load_recipe(whole[0]).teacher
    for changes in ({}, {"max_length": 16, "prompts": {"query": "q: "}}):
        changed = EncoderSettings(model=settings.model, **changes)
        reader, encoder = load_reader(changed), load_encoder(changed)
        assert (reader.prompts, reader.max_length) == (encoder.prompts, encoder.max_length)
        assert reader.tokenizer("a b").input_ids == encoder.tokenizer("a b").input_ids


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return stream_tree(tmp_path_factory.mktemp("tree"))


def recipe_of(tmp_path: Path, tree: dict[str, Any], *overrides: str) -> Recipe:
    return load_recipe(write_recipe(tmp_path, tree), overrides)


@pytest.mark.parametrize(
    ("override", "tokens", "training"),
    [
        ("data.streams.clicks.weight=3.0", False, True),
        ("data.one_stream_per_batch=true", False, True),
        ("data.streams.clicks.prompts.document='d: '", True, True),
        ("data.streams.clicks.deduplicate=false", True, True),
        ("teacher.context='{context} {query}'", True, True),
        ("teacher.streams=[orders, clicks]", False, True),
        ("teacher.temperature=0.1", False, True),
        ("align.training.steps=3", False, False),
    ],
)
def test_what_changes_the_tokens_and_what_the_training_alone(
    tmp_path: Path, tree: dict[str, Any], override: str, tokens: bool, training: bool
) -> None:
    before, after = keys(recipe_of(tmp_path, tree), {}), keys(recipe_of(tmp_path, tree, override), {})
    assert before["data"] == after["data"]
    assert (before["teacher"] != after["teacher"]) == training
    assert tokens == (before["teacher.streams"] != after["teacher.streams"])


def test_another_model_has_another_tokenizer(tmp_path: Path, tree: dict[str, Any]) -> None:
    recipe = recipe_of(tmp_path, tree)
    assert keys(recipe, {"teacher": 1})["teacher.streams"] != keys(recipe, {"teacher": 2})["teacher.streams"]


def test_batches_need_as_many_pairs(tmp_path: Path, tree: dict[str, Any]) -> None:
    recipe = recipe_of(tmp_path, tree, "teacher.training.batch_size=600")
    with pytest.raises(InputError, match=r"a batch is larger than all there is to train on in clicks, orders"):
        run_recipe(recipe, tmp_path / "out", last="teacher")
    recipe = recipe_of(tmp_path, tree, "teacher.training.batch_size=300", "data.one_stream_per_batch=true")
    with pytest.raises(InputError, match=r"in clicks\n(.|\n)*in orders\n"):
        run_recipe(recipe, tmp_path / "out", last="teacher")


def test_rows_without_a_positive_are_told_before_any_work(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, stream_tree(tmp_path))
    log = tmp_path / "logs/orders.jsonl"
    lines = log.read_text().splitlines()
    lines[2] = json.dumps({**json.loads(lines[2]), "found": None})
    log.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"orders\.jsonl:3: no found"):
        check_recipe(recipe, output=tmp_path / "out")
    with pytest.raises(InputError, match=r"orders\.jsonl:3: no found"):
        run_recipe(recipe, tmp_path / "out")
    assert not (tmp_path / "out/vectors").exists()
    check_recipe(load_recipe(tmp_path / "recipe.yaml", ["data.streams.orders.skip_bad=true"]), output=tmp_path / "out")


def test_data_without_a_train_split_will_do(tmp_path: Path) -> None:
    tree = stream_tree(tmp_path)
    (tmp_path / "data/qrels/train.tsv").unlink()
    tree |= {"refine": None, "export": None, "bench": None}
    tree["evaluate"]["systems"] = ["teacher"]
    tree["teacher"]["training"] |= {"steps": 2, "evaluate_every": 0}
    tree["teacher"]["lora"] = {"rank": 2}
    recipe, out = recipe_of(tmp_path, tree), tmp_path / "out"
    run_recipe(recipe, out, last="data")
    run_verb(recipe, out, "teacher")  # the tokens, too
    assert (out / "teacher/modules.json").exists() and len(open_cache(out, "clicks")) > 100


def test_documents_are_updated_and_changed_logs_are_refused(tmp_path: Path) -> None:
    tree = tiniest_tree(tmp_path)
    tree["data"]["streams"] = write_run_logs(tmp_path)
    tree["teacher"] |= {"streams": ["clicks"], "context": TEMPLATE}
    del tree["data"]["streams"]["orders"]
    recipe, out = recipe_of(tmp_path, tree), tmp_path / "out"
    run_recipe(recipe, out)
    corpus = tmp_path / "data/corpus.jsonl"
    corpus.write_text(corpus.read_text() + json.dumps({"_id": "new", "text": "luki dabo", "lang": "aa"}) + "\n")
    told = update_documents(recipe, out)
    assert told is not None and told["documents"]["encoded"] == 1
    assert run_recipe(recipe, out)[1] == ["export", "evaluate", "report"], "teacher and tokens stay"
    log = Path(tree["data"]["streams"]["clicks"]["path"])
    parquet.write_table(parquet.read_table(log).slice(0, 100), log)
    with pytest.raises(StaleArtefactError, match="--from teacher.streams"):
        run_recipe(recipe, out)
    assert run_recipe(recipe, out, first="teacher.streams", last="teacher")[1][:2] == ["teacher.streams", "teacher"]
    assert len(open_cache(out, "clicks")) == 100


def test_teacher_more_is_launched_as_strictly_as_the_teacher(tmp_path: Path, tree: dict[str, Any]) -> None:
    recipe = recipe_of(
        tmp_path, tree, "evaluate.systems=[teacher, teacher-more, student-refined]", "bench=null",
        "launch.processes={teacher.more: 3}",
    )  # fmt: skip
    with pytest.raises(InputError, match=r"32 for accumulate 1 x 3 processes"):
        check_launch(recipe)
    file = tmp_path / "zero.yaml"
    file.write_text("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 2}\n")
    recipe = recipe_of(
        tmp_path, tree, "evaluate.systems=[teacher, teacher-more, student-refined]", "bench=null",
        "launch.processes={teacher.more: 2}", f"launch.accelerate={{teacher.more: {file}}}",
        "teacher.training.cached=true",
    )  # fmt: skip
    with pytest.raises(InputError, match=r"DEEPSPEED for step 'teacher.more'"):
        check_launch(recipe)
    check_launch(recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"systems": ["teacher"]})}))
