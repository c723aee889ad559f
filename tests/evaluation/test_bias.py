"""Cross-lingual bias on a few queries whose numbers can be told by hand, and the table of languages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from builders.evaluations import per_query

from harness.data.records import Documents, Record
from harness.evaluation.bias import FEW_PARALLEL, NO_ENGLISH, ONLY_ENGLISH, bias, is_english
from harness.evaluation.languages import language_table, script_of, training_shares
from harness.evaluation.per_query import PerQuery

POOL = Documents(ids=["e1", "e2", "e3", "d1"], texts=[""] * 4, languages=["en", "en", "en", "de"], keys=[""] * 4)


def asked(language: str, group: str, *relevant: str) -> Record:
    return Record(f"{language}-{group}", "", language, group, dict.fromkeys(relevant, 1.0))


def answered(records: list[Record], hits: list[list[str]]) -> PerQuery:
    made = per_query([record.language for record in records], [record.group for record in records], [0.0] * len(hits))
    return replace(made, hits=hits)


def test_shares_of_the_top_of_the_relevant_and_of_the_pool() -> None:
    records = [asked("de", "1", "d1"), asked("fr", "2", "e1", "d1"), asked("en", "3", "e2")]
    teacher = answered(records, [["d1", "e1"], ["e1", "d1"], ["e2", "e3"]])
    student = answered(records, [["e1", "e2"], ["e1", "e2"], ["e2", "d1"]])
    found = bias({"student": student, "teacher": teacher}, "teacher", records, POOL)
    assert found is not None and set(found) == {"teacher", "student"}
    assert found["teacher"]["documents"]["de"] == pytest.approx(
        {"share_of_top": 1 / 3, "share_of_relevant": 0.5, "share_of_pool": 0.25}
    )
    assert found["student"]["documents"]["en"]["share_of_top"] == pytest.approx(2.5 / 3)
    assert found["teacher"]["english"]["inclination"] == pytest.approx(0.5 - 0.25)
    added = {key: found["student"][key].pop("added") for key in ("english", "own_language")}
    assert added["english"] == {"value": pytest.approx(0.5), "low": None, "high": None}, "too few groups to tell more"
    assert found["student"]["english"] == pytest.approx(
        {"queries": 2, "share_of_top": 1.0, "share_of_relevant": 0.25, "inclination": 0.75, "reference": 0.25}
    )
    assert found["student"]["own_language"] == pytest.approx(
        {"queries": 2, "share_of_top": 0.25, "share_of_relevant": 1.0, "inclination": -0.75, "reference": -0.25}
    )
    assert found["student"]["rank_variance"] is None, "nothing is asked for in two languages"


def test_english_of_every_region_is_english() -> None:
    pool = replace(POOL, languages=["en-US", "EN_gb", "eng", "de"])
    records = [asked("de", "1", "d1"), asked("EN", "2", "e1")]
    teacher = answered(records, [["e1", "e2", "e3", "d1"], ["e1"]])
    found = bias({"teacher": teacher}, "teacher", records, pool)
    assert found is not None and "note" not in found["teacher"]
    assert found["teacher"]["english"] == {"queries": 1, "share_of_top": 0.75, "share_of_relevant": 0.0,
                                           "inclination": 0.75}  # fmt: skip
    assert [is_english(name) for name in ("english", "enm", "en", "En-GB", "ENG", "fr")] == [
        False, False, True, True, True, False
    ]  # fmt: skip


def test_why_nothing_is_told_of_english() -> None:
    records = [asked("de", "1", "d1"), asked("fr", "2", "e1")]
    teacher = {"teacher": answered(records, [["d1"], ["e1"]])}
    found = bias(teacher, "teacher", records, replace(POOL, languages=["english", "enm", "fr", "de"]))
    assert found is not None and found["teacher"]["english"] is None and found["teacher"]["note"] == NO_ENGLISH
    records = [asked("en", "1", "d1"), asked("en-GB", "2", "e1")]
    found = bias(teacher, "teacher", records, POOL)
    assert found is not None and found["teacher"]["english"] is None and found["teacher"]["note"] == ONLY_ENGLISH


def test_what_a_student_adds_has_an_interval_over_groups() -> None:
    """As wide as that of the groups' means, however often a group asks."""
    once = [asked("de", str(number), "d1") for number in range(40)]
    teacher, student = [["d1", "e1"]] * 40, [["e1", "e2"] if number % 4 == 0 else ["d1", "e1"] for number in range(40)]
    for times in (1, 3):
        hits = {"teacher": teacher * times, "student": student * times}
        systems = {name: answered(once * times, answers) for name, answers in hits.items()}
        found = bias(systems, "teacher", once * times, POOL)
        assert found is not None and "added" not in found["teacher"]["english"]
        added = found["student"]["english"]["added"]
        half = 1.959964 * np.std([0.5] * 10 + [0.0] * 30, ddof=1) / np.sqrt(40)
        assert added == pytest.approx({"value": 0.125, "low": 0.125 - half, "high": 0.125 + half})


def test_ranks_of_what_is_asked_for_in_several_languages() -> None:
    groups = [str(number) for number in range(FEW_PARALLEL)]
    records = [asked(language, group, "e1") for group in groups for language in ("de", "fr")]
    teacher = answered(records, [["e1", "e2", "d1"], ["e2", "e1", "d1"]] * len(groups))
    student = answered(records, [["e1", "e2", "d1"], ["e2", "d1", "e3"]] * len(groups))
    found = bias({"teacher": teacher, "student": student}, "teacher", records, POOL)
    assert found is not None
    assert found["teacher"]["rank_variance"] == {"value": 0.5, "documents": FEW_PARALLEL, "not_found": 0.0}
    assert found["student"]["rank_variance"] == {
        "value": pytest.approx(np.var([1, 4], ddof=1)), "documents": FEW_PARALLEL, "not_found": 0.5, "reference": 0.5
    }  # fmt: skip


def test_a_pool_of_one_language_has_no_bias() -> None:
    records = [asked("de", "1", "e1")]
    pool = Documents(["e1"], [""], ["en"], [""])
    assert bias({"teacher": answered(records, [["e1"]])}, "teacher", records, pool) is None


# ------------------------------------------------------------------------------------------------ the languages


@pytest.mark.parametrize(
    ("texts", "script"),
    [
        (["Straße 12", "æ"], "Latin"), (["улица"], "Cyrillic"), (["東京タワー", "京都府"], "Han"),
        (["ラーメン"], "Katakana"), (["ひらがな"], "Hiragana"), (["شارع"], "Arabic"), (["서울"], "Hangul"),
        (["ＡＢＣ"], "Latin"), (["12 🙂"], None), ([], None),
    ],
)  # fmt: skip
def test_the_script_of_most_letters(texts: list[str], script: str | None) -> None:
    assert script_of(texts) == script


def test_a_row_for_each_language() -> None:
    student = per_query(["de", "en", "de"], range(3), [1.0, 0.0, 1.0])
    student = replace(student, agreement={"cosine": np.array([0.8, 0.5, 0.6])})
    rows = language_table(
        {"en": ["hat"], "de": ["Hut", "Schuh"]}, {"de": (1.5, 0.25)}, training_shares({"de": 3, "fr": 1}),
        {"student": student, "int8": replace(student, agreement={})}, {"student": {"de": 0.9}},
    )  # fmt: skip
    assert list(rows) == ["de", "en"]
    assert rows["de"] == {
        "script": "Latin", "tokens_per_query": 1.5, "unknown_share": 0.25, "train_share": 0.75,
        "cosine": {"student": pytest.approx(0.7), "int8": None}, "recovery": {"student": 0.9},
    }  # fmt: skip
    assert rows["en"]["tokens_per_query"] is None and rows["en"]["train_share"] == 0.0
    assert rows["en"]["recovery"] == {"student": None}
    assert language_table({"en": ["a"]}, {}, {}, {}, {})["en"]["train_share"] is None
