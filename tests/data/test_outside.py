"""Sets from elsewhere: BEIR folders as they are in the wild, and tasks of ``mteb`` whose data lies in memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from builders.outside import SPLIT, mteb_task, outside_lines, write_outside
from builders.tiny_data import write_beir

from harness.data import outside
from harness.data.outside import PREVIEW, OutsideData, outside_files, preview_outside, read_outside
from harness.recipe import OutsideSet
from harness.runtime.errors import InputError


def _graded(data: OutsideData) -> dict[str, dict[str, float]]:
    return {record.id: {**record.positives, **dict.fromkeys(record.negatives, 0.0)} for record in data.records}


def _wanted() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for query, document, grade in outside_lines()[2]:
        found.setdefault(query, {})[document] = float(grade)
    return found


# ----------------------------------------------------------------------------------------------------- BEIR folders


def test_a_folder_is_read_with_its_grades_and_what_is_no_use_is_counted(tmp_path: Path) -> None:
    given = OutsideSet(name="far", beir=str(write_outside(tmp_path / "far")), split=SPLIT)
    preview_outside(given)
    data = read_outside(given)
    assert _graded(data) == _wanted() and len(data.documents) == 40 and data.ignores_own_id
    assert data.dropped == {"no text": 1, "unknown corpus-id": 1, "unknown query-id": 1,
                            "queries without a relevant document": 1}  # fmt: skip
    assert data.source == f"BEIR folder far, {SPLIT}", "no path of this machine"
    titled = next(line for line in outside_lines()[0] if line["title"])
    assert data.documents.texts[data.documents.row[titled["_id"]]] == f"{titled['title']}\n{titled['text']}"
    assert [path.name for path in outside_files(given)] == ["corpus.jsonl", "queries.jsonl.gz", f"{SPLIT}.tsv"]
    kept = OutsideSet(name="far", beir=given.beir, split=SPLIT, ignore_identical_ids=False)
    assert not read_outside(kept).ignores_own_id


def test_a_query_is_its_own_group_unless_it_has_one(tmp_path: Path) -> None:
    lines = [{"_id": "a", "text": "x", "group": "g", "lang": "de"}, {"_id": "b", "text": "y", "lang": "en"}]
    write_beir(tmp_path, [{"_id": "d", "text": "z"}], lines, test=[("a", "d", 1), ("b", "d", 1)])
    records = read_outside(OutsideSet(name="x", beir=str(tmp_path))).records
    assert [(record.group, record.language) for record in records] == [("g", "de"), ("b", "en")]
    lines[0] |= {"parallel_id": "p"}
    lines[1] |= {"group": "h", "parallel_id": "p"}
    write_beir(tmp_path, [{"_id": "d", "text": "z"}], lines, test=[("a", "d", 1), ("b", "d", 1)])
    records = read_outside(OutsideSet(name="x", beir=str(tmp_path))).records
    assert [record.group for record in records] == ["g", "g"], "joined by what they are parallel in"
    lines[0] = {"_id": "a", "text": "x"}
    lines[1] = {"_id": "b", "text": "y", "group": "a"}
    write_beir(tmp_path, [{"_id": "d", "text": "z"}], lines, test=[("a", "d", 1), ("b", "d", 1)])
    records = read_outside(OutsideSet(name="x", beir=str(tmp_path))).records
    assert [record.group for record in records] == ["id a", "a"], "an id is no other query's group"


@pytest.mark.parametrize("read", [read_outside, preview_outside])
def test_what_is_missing_is_told_with_what_is_there(tmp_path: Path, read: Any) -> None:
    folder = write_outside(tmp_path / "far")
    with pytest.raises(InputError, match=rf"evaluate\.outside: far(.|\n)*qrels/test\.tsv(.|\n)*{SPLIT} or train"):
        read(OutsideSet(name="far", beir=str(folder)))
    (folder / "corpus.jsonl").unlink()
    shutil.rmtree(folder / "qrels")
    with pytest.raises(InputError) as caught:
        read(OutsideSet(name="far", beir=str(folder), split=SPLIT))
    told = [problem.what for problem in caught.value.problems]
    assert told == ["corpus.jsonl is missing", f"qrels/{SPLIT}.tsv is missing"]
    with pytest.raises(InputError, match="no such folder"):
        read(OutsideSet(name="far", beir=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("read", [read_outside, preview_outside])
def test_what_can_t_be_read_is_refused(tmp_path: Path, read: Any) -> None:
    folder = write_outside(tmp_path / "far")
    with (folder / "corpus.jsonl").open("a") as stream:
        stream.write('{"_id": 7, "text": "a number for an id"}\nnot JSON\n')
    with pytest.raises(InputError) as caught:
        read(OutsideSet(name="far", beir=str(folder), split=SPLIT))
    told = str(caught.value)
    assert "the id is not a string" in told and "not JSON" in told and "on_error" not in told


@pytest.mark.parametrize("read", [read_outside, preview_outside])
@pytest.mark.parametrize("judged", [("a", "d", 0), ("who", "d", 1), ("a", "what", 1), ("a", "blank", 1)])
def test_a_set_without_answers_is_refused(
    tmp_path: Path, read: Any, judged: tuple[str, str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [*({"_id": f"d{n}", "text": "z"} for n in range(4)), {"_id": "blank", "text": ""}]
    write_beir(tmp_path, [*documents, {"_id": "d", "text": "z"}], [{"_id": "a", "text": "x"}], test=[judged])
    for lines in (PREVIEW, 2):  # also where more than the heads has to be looked at
        monkeypatch.setattr(outside, "PREVIEW", lines)
        with pytest.raises(InputError, match=r"evaluate\.outside: x(.|\n)*0 answerable queries") as caught:
            read(OutsideSet(name="x", beir=str(tmp_path)))
        assert "nothing to search for" in str(caught.value)


def test_an_answer_may_stand_further_down_than_the_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "PREVIEW", 2)
    documents, queries = ([{"_id": f"{kind}{n}", "text": "x"} for n in range(4)] for kind in "dq")
    write_beir(tmp_path, documents, queries, test=[*((f"q{n}", "d0", 0) for n in range(3)), ("q3", "d3", 1)])
    preview_outside(OutsideSet(name="x", beir=str(tmp_path)))


@pytest.mark.parametrize("read", [read_outside, preview_outside])
def test_a_language_with_the_name_of_a_summary_is_refused_where_it_is_read(tmp_path: Path, read: Any) -> None:
    queries = [{"_id": "a", "text": "x", "lang": "macro"}]
    write_beir(tmp_path, [{"_id": "d", "text": "z"}], queries, test=[("a", "d", 1)])
    with pytest.raises(InputError, match=r"evaluate\.outside: far: .*summary row(.|\n)*got: macro"):
        read(OutsideSet(name="far", beir=str(tmp_path)))


# ---------------------------------------------------------------------------------------------------- tasks of mteb


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``mteb.get_task`` knows one more task, whose data lies in memory."""
    mteb = pytest.importorskip("mteb")
    ours = mteb.get_task

    def know(**subsets: Any) -> Any:
        task = mteb_task(**subsets)

        def get_task(name: str, eval_splits: Any = None, hf_subsets: Any = None) -> Any:
            if name != "InMemoryRetrieval":
                return ours(name, eval_splits=eval_splits, hf_subsets=hf_subsets)
            task.filter_eval_splits(eval_splits)
            return task.filter_languages(None, None, hf_subsets=hf_subsets)

        monkeypatch.setattr(mteb, "get_task", get_task)
        return task

    return know


def _given(**more: Any) -> OutsideSet:
    return OutsideSet(name="task", mteb="InMemoryRetrieval", **more)


def test_a_task_is_read_as_mteb_reads_it(known: Any) -> None:
    from mteb._create_dataloaders import _corpus_to_dict

    corpus, queries, judged = outside_lines()
    task = known(default=(corpus, queries, [*judged, ("query 0", "gone", 1)]))
    data = read_outside(_given())
    assert _graded(data) == _wanted() and not data.ignores_own_id and data.dropped == {"unknown corpus-id": 1}
    assert data.source == "mteb InMemoryRetrieval, test"
    rows = task.dataset["default"]["test"]["corpus"]
    assert data.documents.texts == [_corpus_to_dict(row)["text"] for row in rows], "title and text joined as there"
    task.ignore_identical_ids = True
    assert read_outside(_given()).ignores_own_id and not read_outside(_given(ignore_identical_ids=False)).ignores_own_id


def test_instructions_stand_behind_their_queries(known: Any) -> None:
    corpus, queries, judged = outside_lines()
    known(default=(corpus, [{**query, "instruction": "Find it."} for query in queries], judged))
    texts = {record.id: record.text for record in read_outside(_given()).records}
    assert texts == {query["_id"]: f"{query['text']} Find it." for query in queries}


def test_one_of_several_subsets_is_to_be_named(known: Any) -> None:
    lines = outside_lines()
    known(de=lines, fr=outside_lines(documents=20))
    with pytest.raises(InputError, match=r"several subsets(.|\n)*de, fr"):
        read_outside(_given())
    with pytest.raises(InputError, match=r"no such subset(.|\n)*nl(.|\n)*de, fr"):
        read_outside(_given(subset="nl"))
    with pytest.raises(InputError, match=r"no such split(.|\n)*dev(.|\n)*test"):
        read_outside(_given(subset="de", split="dev"))
    data = read_outside(_given(subset="fr", split="test"))
    assert len(data.documents) == 20 and data.source == "mteb InMemoryRetrieval (fr), test"


def test_what_is_no_text_retrieval_is_refused(known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task = known(default=outside_lines())
    for name, what in (("NoSuchTask", "knows no such task"), ("STSBenchmark", "not a task of text retrieval"),
                       ("SciFat", "SciFact")):  # fmt: skip
        with pytest.raises(InputError, match=what):
            read_outside(OutsideSet(name="task", mteb=name))
    with pytest.raises(InputError, match=r"can't load(.|\n)*where there is a network"):
        read_outside(OutsideSet(name="task", mteb="SciFact"))  # tests are offline
    task.load_data()
    task.dataset["default"]["test"]["top_ranked"] = {"query 0": ["d0"]}
    monkeypatch.setattr(task, "load_data", lambda: None)
    with pytest.raises(InputError, match="reranks given documents"):
        read_outside(_given())
