"""The recipe: what is refused, in which words, and what comes back unchanged."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.recipe import Recipe, apply_overrides, dump_recipe, load_recipe, parse_yaml, validate_recipe
from harness.runtime.errors import InputError, Problem

TRAINING = {"steps": 3, "batch_size": 4, "learning_rate": 0.1}
WHOLE: dict[str, Any] = {
    "name": "whole",
    "data": {"source": "emoji"},
    "teacher": {"model": "some/teacher", "training": TRAINING},
    "student": {"layers": [1, 2]},
    "align": {"training": TRAINING},
    "refine": {"training": TRAINING},
}


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def changed(*overrides: str) -> Recipe:
    return validate_recipe(apply_overrides(WHOLE, overrides), "r")


def refused(*overrides: str) -> dict[str, Problem]:
    """The problems of the whole recipe with these changes, by key."""
    with pytest.raises(InputError) as caught:
        changed(*overrides)
    return {problem.where.removeprefix("r: "): problem for problem in caught.value.problems}


def test_the_recipe_that_the_other_tests_change_is_valid() -> None:
    assert changed().student.layers == [1, 2]


# ------------------------------------------------------------------------------------------------- single values


@pytest.mark.parametrize(
    ("override", "key", "next_step"),
    [
        ("teacher.temprature=1", "teacher.temprature", "did you mean 'temperature'?"),
        ("studnet={}", "studnet", "did you mean 'student'?"),
        ("align.training.learning_rat=1", "align.training.learning_rat", "did you mean 'learning_rate'?"),
        ("student.layers={rul: first, rule: first, count: 1}", "student.layers.rul", "did you mean 'rule'?"),
        ("data.unlabelled=[{path: x, langage: de}]", "data.unlabelled.0.langage", "did you mean 'language'?"),
        ("data.streams={a: {path: x, qery: q}}", "data.streams.a.qery", "did you mean 'query'?"),
        ("teacher.qqq=1", "teacher.qqq", "remove it"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(override: str, key: str, next_step: str) -> None:
    problems = refused(override)
    assert list(problems) == [key]
    assert problems[key].what == f"unknown key {key.split('.')[-1]!r}"
    assert problems[key].next == next_step
    assert problems[key].allowed


@pytest.mark.parametrize(
    ("override", "key", "got", "allowed", "next_step"),
    [
        ("teacher.training.steps='3'", "teacher.training.steps", "'3'", "a whole number",
         "write the number without quotes"),
        ("teacher.training.steps=3.0", "teacher.training.steps", "3.0", "a whole number", ""),
        ("teacher.training.learning_rate='2e-4'", "teacher.training.learning_rate", "'2e-4'", "a number",
         "write the number without quotes"),
        ("teacher.training.learning_rate=-1e-4", "teacher.training.learning_rate", "-0.0001", "greater than 0", ""),
        ("teacher.temperature=.nan", "teacher.temperature", "nan", "a finite number", ""),
        ("data.hold_out=1.5", "data.hold_out", "1.5", "less than or equal to 1", ""),
        ("seed=true", "seed", "True", "a whole number", ""),
        ("teacher.train='true'", "teacher.train", "'true'", "true or false", ""),
        ("data.languages=[no]", "data.languages.0", "False", "text", "put it in quotes"),
        ("data.languages=de", "data.languages", "'de'", "a list", ""),
        ("export={onnx: fp16}", "export.onnx", "'fp16'", "a list of fp32, fp16, int8, int8-static",
         "write [fp16], for example, or [] for none"),
        ("export={onnx: true}", "export.onnx", "True", "a list of fp32, fp16, int8, int8-static",
         "write [fp32], for example, or [] for none"),
        ("export={index: faiss}", "export.index", "'faiss'", "a list of faiss, npy, parquet, faiss-int8, faiss-pq",
         "write [faiss], for example, or [] for none"),
        ("data.languages=[]", "data.languages", "[]", "at least 1 item", ""),
        ("name=a b", "name", "'a b'", "pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$'", ""),
        ("align=on", "align", "True", "a section with streams, targets, texts, training", ""),
        ("bench.systems=[student-refine]", "bench.systems.0", "'student-refine'",
         "'teacher', 'teacher-base', 'teacher-more', 'student-untrained', 'student-aligned', 'student-refined', "
         "'student-int8' or 'student-ann'",
         "did you mean 'student-refined'?"),
        # unions: the key has none of pydantic's own names in it, and only the alternative that was meant speaks
        ("student.layers=[0, 1]", "student.layers.0", "0", "greater than or equal to 1", ""),
        ("student.layers=first", "student.layers", "'first'", "a list or a section with count, rule", ""),
        ("student.layers={rule: first, count: 0}", "student.layers.count", "0", "greater than or equal to 1", ""),
        ("launch.processes=0", "launch.processes", "0", "greater than or equal to 1 or 'auto' or a section", ""),
        ("launch.processes=two", "launch.processes", "'two'", "a whole number or 'auto' or a section", ""),
        ("data.path=3", "data.path", "3", "text or a list", "put it in quotes"),
        ("data.path=[a, 3]", "data.path.1", "3", "text", "put it in quotes"),
        ("data.streams={Clicks: {path: x}}", "data.streams.Clicks", "'Clicks'", "pattern '^[a-z0-9-]+$'", ""),
        ("data.streams={a: {path: x, weight: 0}}", "data.streams.a.weight", "0", "greater than 0", ""),
        ("data.streams={a: x}", "data.streams.a", "'x'",
         "a section with context, deduplicate, default_language, language, path, positive, prompts, query, skip_bad, "
         "weight", ""),
        # keys of a free map
        ("report.bars.recovery={Precision@2: 0.9}", "report.bars.recovery.Precision@2", "'Precision@2'",
         "one of P@k, nDCG@k, MRR@k, Recall@k, Hit@k; k: how many hits", ""),
        ("evaluate.metrics=[P@1, P@0]", "evaluate.metrics.1", "'P@0'",
         "one of P@k, nDCG@k, MRR@k, Recall@k, Hit@k, judged@k; k: how many hits", ""),
        ("evaluate.select_metric=judged@10", "evaluate.select_metric", "'judged@10'",
         "one of P@k, nDCG@k, MRR@k, Recall@k, Hit@k; k: how many hits", ""),
        ("report.bars.recovery={P@1: 97}", "report.bars.recovery.P@1", "97", "less than or equal to 10",
         "97 % is 0.97"),
        ("report.bars.worst={P@1: 90}", "report.bars.worst.P@1", "90", "less than or equal to 10", "90 % is 0.9"),
        ("report.bars.latency_ratio=50", "report.bars.latency_ratio", "50", "less than or equal to 1.5",
         "50 % is 0.5"),
        ("launch.accelerate={1: a.yaml}", "launch.accelerate.1", "1", "text", "put it in quotes"),
    ],
)  # fmt: skip
def test_a_value_is_refused_and_the_message_says_what_would_do(
    override: str, key: str, got: str, allowed: str, next_step: str
) -> None:
    problems = refused(override)
    assert list(problems) == [key]
    assert problems[key] == Problem("value refused", f"r: {key}", got, allowed, next_step)


def test_a_missing_key_is_named_once() -> None:
    assert list(refused("refine.training={steps: 3, batch_size: 4}")) == ["refine.training.learning_rate"]
    assert refused("student.layers={rule: last}")["student.layers.count"].what == "the key 'count' is missing"


def test_a_huge_value_is_shown_shortened() -> None:
    problem = refused(f"name={'a' * 5000} b")["name"]
    assert len(problem.got) < 130


def test_all_problems_are_listed_at_once() -> None:
    problems = refused(
        "student.lyers=3", "teacher.training.steps=0", "data.source=csv", "refine.training.batch_size='8'", "seed=-1"
    )
    assert set(problems) == {
        "student.lyers", "teacher.training.steps", "data.source", "refine.training.batch_size", "seed"
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------- combinations


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["data.source=beir"], "data.path"),
        (["data.source=beir", "data.path=[a, b]"], "data.path"),
        (["data.source=huggingface"], "data.dataset"),
        (["data.source=pairs", "data.path=p.jsonl", "data.hold_out=0"], "data.hold_out"),
        (["data.languages=[de, en, de]"], "data.languages"),
        (["teacher.training="], "teacher.training"),
        (["documents.vectors={format: npy, path: v.npy}"], "documents.vectors"),
        (["teacher.query_vectors={format: npy, path: q.npy}"], "teacher.query_vectors"),
        (["teacher.model="], "teacher.train"),
        (["teacher.train=false", "teacher.model=", "student.model=s"], "teacher.model"),
        (["teacher.train=false", "teacher.model="], "student.model"),
        (["teacher.train=false", "teacher.model=", "student.model=s"], "bench.systems"),
        (["student.layers=[2, 1]"], "student.layers"),
        (["student.layers=[1, 1]"], "student.layers"),
        (["student.prompts.document=x"], "student.prompts.document"),
        (["teacher.hard_negatives=2"], "teacher.hard_negatives"),
        (["mine.base={}", "teacher.train=false"], "mine.base"),
        (["refine="], "evaluate.systems"),
        (["refine="], "bench.systems"),
        (["refine=", "export={}", "evaluate.systems=[teacher]", "bench="], "export.system"),
        (["teacher.train=false", "evaluate.systems=[teacher, teacher-base]"], "evaluate.systems"),
        (["evaluate.systems=[teacher, teacher]"], "evaluate.systems"),
        (["evaluate.reference=teacher-base"], "evaluate.reference"),
        (["align="], "refine"),
        (["refine.mined=4"], "refine.mined"),
        (["mine.refine={skip: 5, until: 5}"], "mine.refine.until"),
        (["mine.refine={top_k: 5, until: 6}"], "mine.refine.until"),
        (["mine.base={min_score: 0.5, max_score: 0.4}"], "mine.base.min_score"),
        (["align.texts=[queries, unlabelled]"], "align.texts"),
        (["align.training.accumulate=3"], "align.training.accumulate"),
        (["refine.training.chunk_tokens=512"], "refine.training.chunk_tokens"),
        (["refine.training.unpadded=true", "refine.training.attention=sdpa"], "refine.training.unpadded"),
        (["teacher.loss={kind: kl, same_tower: true, positives: 2}"], "teacher.loss.same_tower"),
        (["teacher.loss={kind: kl, mask_margin: 0.1, positives: 2}"], "teacher.loss.mask_margin"),
        (["teacher.loss={kind: margin_mse, margin: 0.1, positives: 2}"], "teacher.loss.margin"),
        (["teacher.loss={kind: margin_mse, learned_temperature: true}"], "teacher.loss.learned_temperature"),
        (["teacher.loss={kind: kl, positives: 2}"], "teacher.loss.kind"),
        (["data={source: beir, path: d}", "teacher.loss={kind: kl}"], "teacher.loss.kind"),
        (["data={source: beir, path: d}", "teacher.loss={kind: kl}", "teacher.hard_negatives=2", "mine.base={}"],
         "teacher.loss.kind"),
        (["teacher.loss={score_temperature: 2.0}"], "teacher.loss.score_temperature"),
        (["teacher.loss={matryoshka: [64, 32], matryoshka_weights: [1.0]}"], "teacher.loss.matryoshka_weights"),
        (["teacher.loss={matryoshka: [64, 64]}"], "teacher.loss.matryoshka"),
        (["teacher.loss={matryoshka: [128]}", "teacher.dimension=64"], "teacher.loss.matryoshka"),
        (["teacher.loss={learned_temperature: true}", "teacher.temperature=2.0"], "teacher.temperature"),
        (["teacher.loss={kind: qwen3}", "teacher.train=false"], "teacher.loss"),
        (["align.streams=[a]"], "align.streams"),
        (["align.streams=[a, a]", "data.streams={a: {path: x}}"], "align.streams"),
        (["data.streams={a: {path: x}}"], "data.streams.a"),
        (["align.texts=[]"], "align.texts"),
        (["align.streams=[a]", "data.streams={a: {path: [x, x]}}"], "data.streams.a.path"),
        (["align.streams=[a]", "data.streams={a: {path: x, query: q, positive: q}}"], "data.streams.a"),
        (["teacher.streams=[b]"], "teacher.streams"),
        (["teacher.streams=[a]", "data.streams={a: {path: x}}"], "data.streams.a.positive"),
        (["teacher.streams=[a]", "data.streams={a: {path: x, positive: p}}", "teacher.train=false"],
         "teacher.streams"),
        (["data.one_stream_per_batch=true"], "data.one_stream_per_batch"),
        (["teacher.context='{query} {context}'"], "teacher.context"),
        (["teacher.context='{query}'", "align.streams=[a]", "data.streams={a: {path: x, context: c}}"],
         "teacher.context"),
        (["align.streams=[a]", "data.streams={a: {path: x, context: c}}"], "data.streams.a.context"),
        (["teacher.train=false", "teacher.model=", "student.model=s", "align.streams=[a]",
          "data.streams={a: {path: x}}"], "align.streams"),
        (["teacher.train=false", "teacher.query_vectors={format: npy, path: q.npy}", "align.texts=[queries]",
          "align.targets=online"], "align.targets"),
        (["export={triton: true}"], "export.triton"),
        (["evaluate.metrics=[P@1, Recall@200]"], "evaluate.metrics"),
        (["evaluate.metrics=[P@1, P@1]"], "evaluate.metrics"),
        (["evaluate.metrics=[judged@5]"], "evaluate.metrics"),
        (["report.bars.recovery={P@3: 0.9}"], "report.bars.recovery.P@3"),
        (["evaluate.metrics=[P@10]", "report.bars.teacher={P@1: 0.9}"], "report.bars.teacher.P@1"),
        (["export={onnx: [fp32, fp32]}"], "export.onnx"),
        (["export={index: [npy, npy]}"], "export.index"),
        (["export={parity: {min_cosine: 0.99, mean_cosine: 0.9}}"], "export.parity.min_cosine"),
        (["export={parity: {mean_cosine: 0.5}}"], "export.parity.mean_cosine"),
        (["teacher.train=false", "teacher.model=", "student.model=s", "export={pair: true}"], "export.pair"),
        (["bench={engines: [onnx]}", "export={onnx: [int8]}"], "bench.engines"),
        (["bench={engines: [onnx]}"], "bench.engines"),
        (["bench=", "report={bars: {latency_ms: 20}}"], "report.bars.latency_ms"),
        (["bench.systems=[teacher]", "report={bars: {latency_ms: 20}}"], "report.bars.latency_ms"),
        (["bench=", "report={bars: {latency_ratio: 0.5}}"], "report.bars.latency_ratio"),
        (["bench.systems=[student-refined]", "report={bars: {latency_ratio: 0.5}}"], "report.bars.latency_ratio"),
        (["evaluate.systems=[teacher, student-aligned]", "report={bars: {latency_ratio: 0.5}}"],
         "report.bars.latency_ratio"),
        (["evaluate.systems=[teacher]", "report={bars: {latency_ratio: 0.5}}"], "report.bars.latency_ratio"),
        (["teacher.train=false", "teacher.model=", "student.model=s", "report={bars: {latency_ratio: 0.5}}"],
         "report.bars.latency_ratio"),
        (["bench={ann: {indexes: [ivf], ivf: {lists: 101}, efforts: {ivf: [1, 102]}}}"], "bench.ann.efforts.ivf"),
        (["bench={ann: {indexes: [ivf-pq], ivf_pq: {lists: 8}, effort: 9}}"], "bench.ann.effort"),
        (["report={bars: {worst: {P@3: 0.9}}}"], "report.bars.worst.P@3"),
        (["bench={currency: EUR}"], "bench.currency"),
        (["bench={engines: [cuda-graphs], systems: [teacher]}", "export={}"], "bench.engines"),
    ],
)
def test_what_cannot_work_together_is_refused_with_the_reason(overrides: list[str], key: str) -> None:
    problem = refused(*overrides)[key]
    assert problem.what
    assert problem.next


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.source=beir", "data.path=folder"],
        ["mine.base={}", "teacher.hard_negatives=2"],
        ["evaluate.metrics=[nDCG@150, judged@3]", "evaluate.depth=150", "report.bars.recovery={nDCG@150: 0.9}"],
        ["mine.refine={}", "refine.mined=4"],
        ["teacher.train=false", "teacher.training=", "documents.vectors={format: npy, path: v, ids: i}"],
        ["data.unlabelled=[{path: q.txt, language: de}]", "align.texts=[unlabelled]"],
        ["align.training.accumulate=2"],
        ["report={bars: {latency_ratio: 0.5, latency_ms: 20}}"],
        ["evaluate.systems=[teacher, student-aligned]", "bench.systems=[student-aligned]",
         "report={bars: {latency_ms: 20}}"],
        ["bench={ann: {indexes: [ivf, hnsw], ivf: {lists: 101}, efforts: {ivf: [1, 101], hnsw: [500]}}}"],
        ["refine=", "evaluate.systems=[teacher, student-aligned]", "bench=", "export.system=student-aligned"],
    ],
)
def test_what_can_work_together_is_accepted(overrides: list[str]) -> None:
    changed(*overrides)


# --------------------------------------------------------------------------------------------------------- YAML


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/object/new:os.system", "!shell"])
def test_yaml_cannot_run_code(tmp_path: Path, tag: str) -> None:
    mark = tmp_path / "was-run"
    path = write(tmp_path, f"name: x\ndata: {tag} ['touch {mark}']\n")
    with pytest.raises(InputError, match=r"recipe\.yaml:2:7: not a plain YAML file") as caught:
        load_recipe(path)
    assert tag.removeprefix("!!") in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nseed: 1\nname: b\n", "r:3:1: .*\n.*the key 'name' stands twice"),
        ("data:\n  source: a\n  source: b\n", "r:3:3: .*\n.*the key 'source' stands twice"),
        ("a: [1, 2\n", "r:2:1: not a plain YAML file"),
        ("a: 1\n\tb: 2\n", "r:2:1: not a plain YAML file"),
        ("a: 1\n---\nb: 2\n", "r:2:1: .*\n.*another document"),
        ("a: 0b_\n", "r: not a plain YAML file"),
        ("a: \0\n", "r: not a plain YAML file"),
        ("[" * 5000, "r: not a plain YAML file"),
    ],
)
def test_damaged_yaml_is_named_by_line_and_column(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_yaml(text, "r")


@pytest.mark.parametrize(
    ("text", "value"),
    [("2e-4", 2e-4), ("3E5", 3e5), ("+1.5e-3", 1.5e-3), ("-2e4", -2e4), ("1.0e-4", 1e-4), ("12", 12), ("1e", "1e"),
     ("e5", "e5"), ("2026-01-01", "2026-01-01"), ("2026-13-45", "2026-13-45"), ("'2e-4'", "2e-4")],
)  # fmt: skip
def test_numbers_are_read_as_people_write_them(text: str, value: Any) -> None:
    read = parse_yaml(text, "r")
    assert read == value
    assert type(read) is type(value)


def test_anchors_and_merges_work_and_may_be_overridden() -> None:
    text = "base: &base {steps: 1, batch_size: 2}\na: &a {<<: *base, steps: 5}\nb: {<<: *a, batch_size: 8}\n"
    tree = parse_yaml(text, "r")
    assert tree["a"] == {"steps": 5, "batch_size": 2}
    assert tree["b"] == {"steps": 5, "batch_size": 8}


@pytest.mark.parametrize("content", [b"- a\n- b\n", b"", b"just text", b"name: \xff\xfe\n"])
def test_a_file_that_is_no_recipe_is_an_input_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        load_recipe(path)


def test_a_missing_recipe_names_the_nearest_file(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\n")
    with pytest.raises(InputError, match=f"did you mean {path}"):
        load_recipe(tmp_path / "recip.yaml")
    with pytest.raises(InputError, match="no such recipe"):
        load_recipe(tmp_path / "nowhere" / "recipe.yaml")


# -------------------------------------------------------------------------------------------------------- --set


def test_set_reads_yaml_creates_sections_and_wins_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, yaml.safe_dump(WHOLE))
    recipe = load_recipe(
        path,
        ["refine.training.learning_rate=2e-4", "mine.refine.top_k=7", "name=other", "student.layers=[3, 5]", "bench="],
    )
    assert recipe.refine is not None
    assert recipe.mine.refine is not None
    assert recipe.refine.training.learning_rate == 2e-4
    assert (recipe.mine.refine.top_k, recipe.name, recipe.student.layers, recipe.bench) == (7, "other", [3, 5], None)


def test_set_changes_one_section_even_if_an_anchor_is_shared() -> None:
    tree = parse_yaml("align: {training: &t {steps: 1}}\nrefine: {training: *t}\n", "r")
    assert apply_overrides(tree, ["refine.training.steps=9"]) == {
        "align": {"training": {"steps": 1}}, "refine": {"training": {"steps": 9}}
    }  # fmt: skip
    assert tree["refine"] == {"training": {"steps": 1}}


def test_wrong_assignments_are_listed_together() -> None:
    with pytest.raises(InputError) as caught:
        changed("no-equals", ".a=1", "name.first=x", "student.layers.0=3", "seed=[1")
    assert [problem.where for problem in caught.value.problems] == [
        "--set no-equals", "--set .a=1", "--set name.first=x", "--set student.layers.0=3", "--set seed=[1:1:3",
    ]  # fmt: skip


# --------------------------------------------------------------------------------------------------- there and back

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
TRICKY = st.sampled_from(
    ["12e4567", "1e5", "no", "null", "~", "0x1f", "1:30", "2026-01-01", "- a", "#", "<<", "=", " x ", "a\rb\n", "\x85"]
)
NUMBER = st.floats(min_value=1e-300, max_value=1e300)


@settings(max_examples=60, deadline=None)
@given(
    prompt=st.none() | TEXT | TRICKY, revision=TEXT | TRICKY, rate=NUMBER, steps=st.integers(1, 10**9),
    layers=st.none() | st.sets(st.integers(1, 99), min_size=1).map(sorted)
    | st.builds(lambda count: {"rule": "middle-skip", "count": count}, st.integers(1, 99)),
    path=TEXT | TRICKY | st.lists(TEXT | TRICKY, max_size=3),
    bars=st.dictionaries(st.sampled_from(["P@1", "MRR@10"]), st.floats(min_value=1e-300, max_value=10)),
)  # fmt: skip
def test_a_written_recipe_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    prompt: Any,
    revision: Any,
    rate: float,
    steps: int,
    layers: Any,
    path: Any,
    bars: Any,
) -> None:
    tree = copy.deepcopy(WHOLE)
    tree["teacher"] |= {"revision": revision, "prompts": {"query": prompt}}
    tree["align"] = {"training": TRAINING | {"learning_rate": rate, "steps": steps}}
    tree["student"] = {"layers": layers}
    tree["data"] |= {"path": path}
    tree["report"] = {"bars": {"recovery": bars}}
    recipe = validate_recipe(tree, "r")
    file = tmp_path_factory.mktemp("dumped") / "recipe.resolved.yaml"
    dump_recipe(recipe, file)
    again = load_recipe(file)
    assert again == recipe
    assert json.dumps(again.model_dump(mode="json")) == json.dumps(recipe.model_dump(mode="json"))


def shipped() -> list[Path]:
    root = Path(__file__).resolve().parents[1]
    return [*sorted(root.glob("recipes/*.yaml")), *sorted(root.glob("benchmarks/recipes/*.yaml"))]


def test_recipes_are_shipped() -> None:
    assert any(path.name == "quickstart.yaml" for path in shipped())


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.stem)
def test_every_shipped_recipe_validates_and_reads_back_equal(path: Path, tmp_path: Path) -> None:
    # A benchmark's data lie outside the repository; the command line gives their path.
    recipe = load_recipe(path, ["data.path=DIR"] if path.parents[1].name == "benchmarks" else [])
    assert recipe.name == path.stem
    dump_recipe(recipe, tmp_path / "again.yaml")
    assert load_recipe(tmp_path / "again.yaml") == recipe


def test_a_wrong_recipe_answers_without_torch(tmp_path: Path) -> None:
    path = write(tmp_path, "nmae: x\n")
    code = (
        "import sys\nfrom harness.recipe import load_recipe\nfrom harness.runtime.errors import InputError\n"
        "try: load_recipe(sys.argv[1])\nexcept InputError as error: print(error)\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
        env=os.environ,
    )
    assert "did you mean 'name'?" in done.stdout
