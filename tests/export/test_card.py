"""The card as Hugging Face and sentence-transformers read it; text of the data stays text."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders.results import LANGUAGES, example_results

from harness.evaluation.report.values import clean
from harness.export.card import UNKNOWN, Base, Deployed, license_of, model_card

TEACHER = Base("sentence-transformers/all-MiniLM-L6-v2", "teacher", "apache-2.0")
PARITY = {
    "fp32": {"passed": True, "reasons": [], "languages": {"all": {
        "queries": 2000, "min_cosine": 0.9999991, "mean_cosine": 0.9999999, "overlap@10": 1.0}}},
    "int8": {"passed": False, "reasons": ["de: too far"], "languages": {"all": {
        "queries": 2000, "min_cosine": 0.93, "mean_cosine": 0.985, "overlap@10": 0.88}}},
}  # fmt: skip
INDEX = {
    "files": {"npy": {"file": "vectors.npy"}, "faiss-int8": {"file": "index-int8.faiss"}},
    "cost": {"faiss-int8": {"recall@10": 0.987, "recall@10_of_100": 1.0, "bytes_per_vector": 384, "queries": 2000}},
}  # fmt: skip


def deployed(**changes: Any) -> Deployed:
    known: dict[str, Any] = {
        "system": "student-refined", "bases": [TEACHER], "query_prompt": "find: ", "max_length": 64, "dimension": 384,
        "data": ["emoji: 12,000 queries"], "onnx": {"fp32": "model.onnx"}, "pair": True, "index": INDEX,
    }  # fmt: skip
    return Deployed(**{**known, **changes})


def head_of(card: str) -> dict[str, Any]:
    told = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(told, dict)
    return told


def test_the_front_matter_has_what_the_hub_reads() -> None:
    results = example_results()
    told = head_of(model_card(results, deployed()))
    assert told["language"] == list(LANGUAGES) and told["license"] == "apache-2.0"
    assert told["library_name"] == "sentence-transformers" and told["pipeline_tag"] == "sentence-similarity"
    assert told["base_model"] == [TEACHER.name] and "sentence-transformers" in told["tags"]
    (entry,) = told["model-index"][0]["results"]
    found = {metric["name"]: metric["value"] for metric in entry["metrics"]}
    assert found["P@1"] == results["quality"]["student-refined"]["test"]["macro"]["P@1"]


def test_the_hub_s_own_reader_understands_it() -> None:
    hub: Any = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard(model_card(example_results(), deployed())).data
    assert data.license == "apache-2.0" and data.model_name == "quickstart"
    assert {result.metric_type for result in data.eval_results} >= {"accuracy_at_1", "ndcg_at_10"}


def test_recovery_with_its_interval_and_its_reference_per_language() -> None:
    results, card = example_results(), model_card(example_results(), deployed())
    for language in ("macro", *LANGUAGES):
        told = results["recovery"]["student-refined"]["test"][language]["P@1"]
        row = next(line for line in card.splitlines() if line.startswith(f"| {language} |"))
        assert f"{told['value']:.3f} [{told['low']:.3f}, {told['high']:.3f}]" in row
    assert "what `teacher` finds" in card


def test_latency_stands_with_its_conditions() -> None:
    card = model_card(example_results(), deployed())
    assert "## How fast it is" in card and "threads 2" in card and "cpu 2 cores" in card
    results = example_results()
    results["latency"] = {}
    assert "## How fast it is" not in model_card(results, deployed())


def test_a_path_of_this_machine_is_not_told() -> None:
    for name in ("/home/me/secret/model", "../secret/model/", "~/secret/model", "C:\\secret\\model"):
        card = model_card(example_results(), deployed(bases=[Base(name, "teacher", "mit")]))
        assert "secret" not in card and "the space of model," in card and "teacher: model, licence: mit" in card
    assert f"the space of {TEACHER.name}" in model_card(example_results(), deployed()).replace("\\", "")


def test_conditions_are_those_of_the_deployed_student_in_words() -> None:
    results = example_results()
    engines = {"": "float32", " in onnx": "float32", " in onnx-int8": "int8"}
    own = {f"student-refined{engine}": dtype for engine, dtype in engines.items()}
    results["conditions"]["dtype"] = {"teacher": "bfloat16", **own}
    card = model_card(results, deployed()).replace("\\", "")
    assert "dtype float32 (torch, onnx) and int8 (onnx-int8)" in card and "bfloat16" not in card


@pytest.mark.parametrize(("parameters", "told"), [(15_467_520, "15.5 M"), (25_312, "25 thousand"), (640, "640")])
def test_small_models_have_a_size_too(parameters: int, told: str) -> None:
    results = example_results()
    results["systems"]["student-refined"]["parameters"] = parameters
    assert f"({told} parameters, " in model_card(results, deployed())


def test_int8_is_called_approximate() -> None:
    both = model_card(example_results(), deployed(onnx={"fp32": "model.onnx", "int8": "model_int8.onnx"}))
    assert "that may be int8, which is approximate" in both and "(model_int8.onnx: int8, which is approximate)" in both
    only = model_card(example_results(), deployed(onnx={"int8": "model_int8.onnx"}))
    assert "that is, on a CPU, int8, which is approximate" in only
    assert "approximate" not in model_card(example_results(), deployed(index=None))


def test_what_failed_is_told_and_what_an_index_costs() -> None:
    card = model_card({**example_results(), "parity": PARITY}, deployed())
    assert "ONNX fp32: exported; cosine to the student 1.00000 at least" in card
    assert "ONNX int8: **not exported**; cosine to the student 0.93000 at least" in card
    assert "index faiss-int8: finds 0.987 of the exact first ten, 384 bytes a vector" in card


def test_each_way_of_use_that_there_is_and_no_other() -> None:
    whole = model_card(example_results(), deployed())
    assert whole.count("```python") == 5 and 'harness.load("student")' in whole and "model.onnx" in whole
    assert "index/index-int8.faiss" in whole, "the exact one was not handed over"
    plain = model_card(example_results(), deployed(onnx={}, pair=False, index=None))
    assert plain.count("```python") == 2 and "onnx" not in plain and "pair" not in plain.split("## Use")[1]


@pytest.mark.parametrize(
    ("licences", "told"), [(["mit"], "mit"), (["mit", "mit"], "mit"), (["mit", "gemma"], "other"),
                           (["mit", None], "unknown"), ([None], "unknown"), ([], "unknown")],
)  # fmt: skip
def test_the_licence_is_that_of_all_bases(licences: list[str | None], told: str) -> None:
    bases = [Base(f"owner/model-{number}", "teacher", licence) for number, licence in enumerate(licences)]
    card = model_card(example_results(), deployed(bases=bases))
    assert head_of(card)["license"] == told
    assert (UNKNOWN in card) == (None in licences)


def test_names_and_languages_that_are_no_codes_stay_out_of_the_head() -> None:
    results = example_results(["de", "Deutsch (AT)", "a: b"])
    card = model_card(results, deployed(bases=[Base("/home/me/secret/model", "teacher", "mit")]))
    assert head_of(card)["language"] == ["de"] and "base_model" not in head_of(card)


HOSTILE = "]](javascript:alert(1)) <script>x</script> | `code` **bold**\n---\nlicense: none\u202e"


def test_no_text_becomes_markup() -> None:
    results = copy.deepcopy(example_results())
    results["name"] = HOSTILE
    bases = [Base(HOSTILE, "teacher", HOSTILE)]
    card = model_card(results, deployed(bases=bases, data=[HOSTILE], query_prompt=HOSTILE))
    head, body = card.split("---\n", 2)[1:]
    told = yaml.safe_load(head)
    assert told["license"] == told["model-index"][0]["name"] == clean(HOSTILE), "one line: a --- would end the head"
    text = "".join(part for number, part in enumerate(body.split("```")) if number % 2 == 0)
    assert "<script>" not in text and "](javascript" not in text and "\u202e" not in body
    assert "\nlicense: none" not in body


def test_results_that_lack_parts_still_make_a_card() -> None:
    card = model_card({}, deployed(bases=[], data=[], onnx={}, pair=False, index=None))
    assert head_of(card)["license"] == "unknown" and "## Use" in card and "None" not in card


@pytest.mark.parametrize(
    ("text", "expected"),
    [("---\nlicense: mit\ntags: [a]\n---\n# x", "mit"), ("---\nlicense: [mit, gpl]\n---\n", None), ("# no head", None),
     ("---\nlicense: [broken\n---\n", None), ("---\n- a\n---\n", None), ("", None)],
)  # fmt: skip
def test_the_licence_is_read_from_the_model_s_card(text: str, expected: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    assert license_of("owner/model", tmp_path) == expected


def test_or_from_the_package_that_carries_it(tmp_path: Path) -> None:
    assert license_of("package:pytest", tmp_path) == "mit"
    assert license_of("package:no-such-package-here", tmp_path) is None
    assert license_of("owner/model", tmp_path) is None
