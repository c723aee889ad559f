"""The data step as a whole: filters, groups, splits, what is counted, what is refused, and reading it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from builders.tiny_data import LANGUAGES, write_beir, write_jsonl, write_tiny_beir
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.dropped import dropped_of_set, dropped_texts, lost_warnings
from harness.data.grouping import GROUP, Name, join_groups, joined_warnings
from harness.data.overlap import overlap_warnings
from harness.data.prepare import load_dataset, prepare_data
from harness.data.records import Dataset
from harness.recipe import DataSettings, QrelsNames, Texts
from harness.runtime.errors import InputError, StaleArtefactError
from harness.runtime.process import read_json


def _prepare(path: Path, **options: Any) -> tuple[Dataset, dict[str, Any]]:
    settings_ = DataSettings(**{"source": "beir", "path": str(path), **options})
    folder = path.parent / "prepared"
    summary = prepare_data(settings_, folder)
    return load_dataset(folder), summary


def _groups(dataset: Dataset, split: str) -> set[str]:
    return {record.group for record in dataset.splits[split]}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_beir(tmp_path_factory.mktemp("tiny") / "source")


def test_the_tiny_set_can_be_learned(tiny: Path, tmp_path: Path) -> None:
    dataset, _ = _prepare(tiny)
    documents = {
        id_: set(text.split()) for id_, text in zip(dataset.documents.ids, dataset.documents.texts, strict=True)
    }
    assert len(documents) == 120 and {record.language for record in dataset.splits["test"]} == set(LANGUAGES)
    for record in dataset.splits["test"] + dataset.splits["train"]:
        before, after = LANGUAGES[record.language]
        words = {word.removeprefix(before).removesuffix(after) for word in record.text.split()}
        shared = {id_: len(words & roots) for id_, roots in documents.items()}
        (positive,) = record.positives
        assert shared[positive] == len(words) == max(shared.values())
    seen = {word for record in dataset.splits["train"] for word in record.text.split()}
    asked = {word for record in dataset.splits["test"] for word in record.text.split()}
    assert len(asked - seen) <= 0.05 * len(asked), "held-out queries are made of known words"
    assert (
        write_tiny_beir(tmp_path / "again").joinpath("queries.jsonl").read_bytes()
        == (tiny / "queries.jsonl").read_bytes()
    )


def test_splits_of_a_beir_folder(tiny: Path) -> None:
    dataset, summary = _prepare(tiny)
    assert set(dataset.splits) == {"train", "select", "report", "test"}
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        name: split["queries"] for name, split in summary["splits"].items()
    }
    assert len(dataset.splits["train"]) == 36 * 2 * 3 * 2 and len(dataset.splits["test"]) == 12 * 2 * 3 * 2
    parts = [_groups(dataset, name) for name in dataset.splits]
    assert len(set().union(*parts)) == sum(map(len, parts)) == 60, "every group is in one split"
    record = dataset.splits["train"][0]
    assert (record.id, record.language, record.group) == ("aa-d0-0-all", "aa", "g0")
    assert record.positives == {"d0-0": 1.0} and record.negatives == ("d0-1",) and record.weight == 1.0
    assert summary["groups_shared_with_train"] == 0 and not dataset.search_within
    assert summary["documents"] == {"count": 120, "languages": {"aa": 120}} and summary["languages"] == [
        "aa",
        "bb",
        "cc",
    ]


def test_the_split_of_dev_is_stable(tiny: Path, tmp_path: Path) -> None:
    dataset, summary = _prepare(tiny)
    shuffled = write_tiny_beir(tmp_path / "source")
    for name in ("corpus.jsonl", "queries.jsonl"):
        path = shuffled / name
        path.write_text("".join(sorted(path.read_text().splitlines(keepends=True))))
    again, summary_again = _prepare(shuffled)
    assert {r.id for r in again.splits["select"]} == {r.id for r in dataset.splits["select"]}
    assert summary_again["sha256"] != summary["sha256"], "another order is another content"
    assert _prepare(tiny)[1]["sha256"] == summary["sha256"] == _prepare(tiny)[0].sha256
    few = _prepare(tiny, select_share=0.2)[0]
    assert _groups(few, "select") < _groups(dataset, "select"), "a smaller share takes a part of the larger one"


def test_what_is_written_is_a_beir_folder(tiny: Path) -> None:
    dataset, _ = _prepare(tiny, unlabelled=[Texts(path=str(tiny / "unlabelled.jsonl"))])
    folder = tiny.parent / "prepared"
    again, _ = _prepare(folder, qrels=QrelsNames(dev="report"))
    assert again.documents == dataset.documents and again.splits["train"] == dataset.splits["train"]
    assert dataset.unlabelled and not list(folder.glob("*.tmp"))


_OWN = [{"_id": f"q{n}", "text": f"query {n}", "lang": "en"} for n in range(8)]
_DOCUMENTS = [{"_id": f"d{n}", "text": f"document {n}", "lang": "en", "maker": f"m{n // 2}"} for n in range(8)]


def test_queries_of_one_parallel_id_stay_in_one_split(tmp_path: Path) -> None:
    """The same question in three languages, each with a document of its own."""
    lines = [{"query": f"{language} asks {n}", "positive": f"{language} answers {n}", "lang": language,
              "parallel_id": n} for n in range(40) for language in LANGUAGES]  # fmt: skip
    write_jsonl(tmp_path / "pairs.jsonl", lines)
    dataset, _ = _prepare(tmp_path / "pairs.jsonl", source="pairs", hold_out=0.4)
    parts = [_groups(dataset, name) for name in ("train", "select", "report")]
    assert all(parts) and sum(map(len, parts)) == 40, "every group is in one split"
    assert all(len(dataset.splits[name]) == 3 * len(part) for name, part in zip(dataset.splits, parts, strict=False))


def test_default_groups_join_queries_that_share_a_positive(tmp_path: Path) -> None:
    dev = [("q0", "d0", 1), ("q1", "d0", 1), ("q1", "d1", 1), ("q2", "d1", 1), ("q3", "d3", 1), ("q3", "d0", 0)]
    write_beir(tmp_path / "s", _DOCUMENTS, _OWN, dev=dev)
    dataset, _ = _prepare(tmp_path / "s")
    records = {r.id: r for name in ("select", "report") for r in dataset.splits[name]}
    assert {id_: r.group for id_, r in records.items()} == {"q0": "d0", "q1": "d0", "q2": "d0", "q3": "d3"}
    assert dataset.splits["train"] == [], "data without training judgments can still be evaluated"


def test_groups_of_the_positives(tmp_path: Path) -> None:
    dev = [("q0", "d0", 1), ("q1", "d1", 1), ("q2", "d2", 1), ("q2", "d4", 1), ("q3", "d5", 1), ("q4", "d6", 1)]
    write_beir(tmp_path / "s", _DOCUMENTS, _OWN, dev=dev, train=[("q5", "d7", 1), ("q6", "d1", 1)])
    dataset, summary = _prepare(tmp_path / "s", group="maker")
    records = [r for name in ("select", "report") for r in dataset.splits[name]]
    assert {r.id: r.group for r in records} == {"q0": "m0", "q1": "m0", "q2": "m1", "q3": "m1", "q4": "m3"}
    assert summary["groups_shared_with_train"] == 2, "m0 through q6, m3 through q5"


def test_a_groups_own_field_comes_first(tmp_path: Path) -> None:
    queries = [{**query, "group": f"g{n // 2}"} if n < 6 else query for n, query in enumerate(_OWN)]
    write_beir(tmp_path / "s", _DOCUMENTS, queries, dev=[(f"q{n}", "d0", 1) for n in range(7)])
    dataset, _ = _prepare(tmp_path / "s")
    found = {r.id: r.group for name in ("select", "report") for r in dataset.splits[name]}
    assert found == {"q0": "g0", "q1": "g0", "q2": "g1", "q3": "g1", "q4": "g2", "q5": "g2", "q6": "d0"}
    with pytest.raises(InputError, match=r"data\.group: no query and no document has this field"):
        _prepare(tmp_path / "s", group="nonsense")
    with pytest.raises(InputError, match=r"data\.equivalent: no document has this field"):
        _prepare(tmp_path / "s", equivalent="nonsense")


def test_what_shares_a_group_or_a_parallel_id_is_one_group(tmp_path: Path) -> None:
    """Groups are of one language each, and parallel ids of no group: only both together say what hangs together."""
    documents = [{"_id": f"d{n}", "text": f"d {n}"} for n in range(12)]
    queries = [{"_id": f"{lang}{n}", "text": f"{lang} {n}", "lang": lang, "group": f"{lang}{n // 2}", "parallel_id": n}
               for n in range(12) for lang in ("de", "en")]  # fmt: skip
    queries.append({"_id": "fr0", "text": "fr 0", "lang": "fr", "parallel_id": 0})
    dev = [(query["_id"], f"d{number // 2 % 12}", 1) for number, query in enumerate(queries)]
    source = write_beir(tmp_path / "s", documents, queries, dev=dev)
    dataset, summary = _prepare(source)
    assert sum(summary["splits"][name]["groups"] for name in ("select", "report")) == 6
    records = {record.id: record.group for name in ("select", "report") for record in dataset.splits[name]}
    assert {record_id for record_id, group in records.items() if group == records["de1"]} == {
        "de0", "de1", "en0", "en1", "fr0"}  # fmt: skip
    _, alone = _prepare(source, group="group")
    assert sum(alone["splits"][name]["groups"] for name in ("select", "report")) == 13, "fr0: its document's id"


def test_one_line_with_both_moves_no_query_that_shares_nothing_with_it(tmp_path: Path) -> None:
    lines = [{"query": f"q{n}", "positive": f"d{n}", "parallel_id": n // 2} for n in range(60)]
    places = []
    for number, group in enumerate(("", "x")):
        path = write_jsonl(tmp_path / f"{number}.jsonl", [lines[0] | {"group": group}, *lines[1:]])
        dataset, _ = _prepare(path, source="pairs", hold_out=0.3)
        places.append({r.text: (name, r.group) for name, split in dataset.splits.items() for r in split})
    assert places[0] == places[1]


def test_dev_of_one_group_can_not_be_split(tmp_path: Path) -> None:
    write_beir(tmp_path / "s", _DOCUMENTS, _OWN, dev=[("q0", "d0", 1), ("q1", "d0", 1)])
    with pytest.raises(InputError, match="dev can't be split into select and report") as error:
        _prepare(tmp_path / "s")
    assert "2 queries in one group, 'd0'" in str(error.value)
    assert not (tmp_path / "prepared").exists()


_LANGUAGES = [{"_id": f"{lang}{n}", "text": f"{lang} Text {n}", "lang": lang, "key": f"k{n}"}
              for lang in ("de", "en", "fr") for n in range(4)]  # fmt: skip
_ASKING = [{**line, "_id": f"q-{line['_id']}"} for line in _LANGUAGES]


def _languages_set(folder: Path) -> Path:
    """Each query finds its document in its own language and the next; French ones only in another."""
    dev = [(f"q-{lang}{n}", f"{lang}{n}", 1) for lang in ("de", "en") for n in range(4)]
    dev += [(f"q-de{n}", f"en{n}", 1) for n in range(4)] + [("q-fr0", "en0", 1), ("q-en0", "fr1", 0)]
    return write_beir(folder, _LANGUAGES, _ASKING, dev=dev)


def test_search_within_a_language(tmp_path: Path) -> None:
    dataset, summary = _prepare(_languages_set(tmp_path / "s"), search_within="lang", equivalent="key")
    records = dataset.splits["select"] + dataset.splits["report"]
    languages = dict(zip(dataset.documents.ids, dataset.documents.languages, strict=True))
    assert len(records) == 8 and dataset.search_within
    assert all(
        languages[id_] == record.language for record in records for id_ in (*record.positives, *record.negatives)
    )
    assert summary["dropped"] == {
        "bad_lines": 0,
        "positives_in_another_language": 5,
        "queries_without_judgments": 3,
        "queries_without_positives": 1,
    }
    assert len(dataset.documents) == 12 and dataset.documents.keys[:2] == ["k0", "k1"]
    assert summary["dropped_queries"] == {"dev": {"fr": 1}, "unjudged": {"fr": 3}}


def test_a_language_that_loses_every_query_is_named(tmp_path: Path) -> None:
    asked = [(lang, n) for lang in ("de", "nr", "un") for n in range(4)]
    queries = [{"_id": f"{lang}{n}", "text": f"{lang} {n}", "lang": lang} for lang, n in asked]
    dev = [*((f"de{n}", f"d{n}", 1) for n in range(3)), ("de3", "d0", 0), *((f"nr{n}", "d0", 0) for n in range(4))]
    source = write_beir(tmp_path / "s", [{"_id": f"d{n}", "text": f"d {n}"} for n in range(3)], queries, dev=dev)
    _, summary = _prepare(source)
    told = {name: dropped_of_set(summary, name) for name in ("select", "report")}
    assert told["select"] == {"dropped": {"de": 1, "nr": 4, "un": 4}, "lost_languages": ["nr", "un"]} == told["report"]
    (warning,) = lost_warnings(told)
    assert warning.startswith("select and report: no query in nr (4), un (4) has a document judged relevant; ")
    assert dropped_texts(summary) == ["4 queries without judgments (unjudged: un 4)",
                                      "5 queries without positives (dev: de 1, nr 4)"]  # fmt: skip
    _, summary = _prepare(source, languages=["de"])
    assert dropped_of_set(summary, "select") == {"dropped": {"de": 1}, "lost_languages": []}
    del summary["dropped_queries"]
    assert dropped_of_set(summary, "select") == {} and lost_warnings({"select": {}}) == []
    assert dropped_texts(summary)[-1] == "5 queries without positives"


def test_a_language_lost_in_the_half_that_dev_is_held_out_of_is_named(tmp_path: Path) -> None:
    pairs = [{"query": f"q {n}", "positive": f"p {n}", "lang": "de"} for n in range(30)]
    pairs += [{"query": f"n {n}", "positive": "p 0", "score": 0, "lang": "nr"} for n in range(2)]
    path = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    _, summary = _prepare(path, source="pairs")
    assert dropped_of_set(summary, "report") == {"dropped": {"nr": 2}, "lost_languages": ["nr"]}


def test_chosen_languages(tmp_path: Path) -> None:
    source = _languages_set(tmp_path / "s")
    dataset, summary = _prepare(source, languages=["de"])
    assert summary["languages"] == ["de"] and len(dataset.documents) == 12
    assert summary["dropped"]["queries_in_other_languages"] == 5
    dataset, _ = _prepare(source, languages=["de", "en"], search_within="lang")
    assert set(dataset.documents.languages) == {"de", "en"} and len(dataset.documents) == 8
    with pytest.raises(InputError) as error:
        _prepare(source, languages=["de", "xx", "fr"], search_within="lang")
    assert "got: xx, fr" in str(error.value) and "allowed: de, en" in str(error.value)


def test_nothing_left_says_why(tmp_path: Path) -> None:
    write_beir(tmp_path / "s", _LANGUAGES, _ASKING, dev=[("q-de0", "en0", 1), ("q-en1", "en0", 0)])
    with pytest.raises(InputError, match="no query is left in dev") as error:
        _prepare(tmp_path / "s", search_within="lang")
    assert "positives_in_another_language: 1" in str(error.value)


def test_a_placeholder_that_joins_most_queries_is_named(tmp_path: Path) -> None:
    def prepare(every: int, field: str = "group", number: int = 200) -> dict[str, Any]:
        lines = [{"query": f"q{n}", "positive": f"d{n}", field: f"g{n}",
                  "parallel_id": f"p{n}" if every and not n % every else "-"} for n in range(number)]  # fmt: skip
        path = write_jsonl(tmp_path / f"{every}.jsonl", lines)
        return _prepare(path, source="pairs", hold_out=0.3, columns={"group": field})[1]

    splits = prepare(10)["splits"]
    joined = splits["train"]["joined_by"]
    assert joined["field"] == "parallel_id" and joined["value"] == "-" and joined["queries"] == 180
    (warning,) = joined_warnings(splits)
    assert warning.startswith(f"parallel_id '-' joins 180 of {splits['train']['queries']} queries of train (9")
    assert not joined_warnings(prepare(1)["splits"]) and "joined_by" not in prepare(1)["splits"]["train"]
    assert not joined_warnings(prepare(10, number=20)["splits"]), "few queries may well be of one group"
    assert not joined_warnings(prepare(0, "cluster")["splits"]), "a parallel id that is not read"
    with pytest.raises(InputError, match="no query is left in dev") as error:
        prepare(0)
    assert "got: 200 queries in one group, '-' (parallel_id '-' joins 200)" in str(error.value)
    queries = [{"_id": f"q{n}", "text": f"t{n}", "group": f"g{n}", "parallel_id": 0} for n in range(30)]
    dev = [(query["_id"], "d", 1) for query in queries]
    write_beir(tmp_path / "s", [{"_id": "d", "text": "z"}], queries, dev=dev)
    with pytest.raises(InputError, match="dev can't be split") as error:
        _prepare(tmp_path / "s")
    assert "30 queries in one group, '0' (parallel_id '0' joins 30)" in str(error.value)


def test_bad_lines_stop_or_are_skipped(tmp_path: Path) -> None:
    source = _languages_set(tmp_path / "s")
    with open(source / "corpus.jsonl", "a", encoding="utf-8") as stream:
        stream.write("{broken\n" * 7)
    with open(source / "qrels" / "dev.tsv", "a", encoding="utf-8") as stream:
        stream.write("q-de0\tnothing\t1\n")
    (tmp_path / "more.jsonl").write_text("[]\n")
    options: dict[str, Any] = {"unlabelled": [Texts(path=str(tmp_path / "more.jsonl"))]}
    with pytest.raises(InputError) as error:
        _prepare(source, **options)
    assert [problem.what for problem in error.value.problems] == [
        "not JSON (7 lines)", "unknown corpus-id (1 line)", "not a JSON object (1 line)"
    ]  # fmt: skip
    assert error.value.problems[0].where == f"{source}/corpus.jsonl:13"
    assert error.value.problems[0].got.startswith("line 13 {broken; line 14 {broken")
    dataset, summary = _prepare(source, on_error="skip", **options)
    assert len(dataset.documents) == 12 and summary["dropped"]["bad_lines"] == 9
    corpus = summary["bad_lines"][f"{source}/corpus.jsonl"]
    assert corpus == {"not JSON": {"count": 7, "first": [13, 14, 15, 16, 17]}}
    assert read_json(tmp_path / "prepared" / "data.json") == summary


def test_an_empty_corpus(tmp_path: Path) -> None:
    write_beir(tmp_path / "s", [], _OWN, dev=[("q0", "d0", 1)])
    for on_error in ("stop", "skip"):
        with pytest.raises(InputError) as error:
            _prepare(tmp_path / "s", on_error=on_error)
        assert [problem.what for problem in error.value.problems] == ["there is no document in it"]


def test_unlabelled_texts_hold_no_evaluation_query(tmp_path: Path) -> None:
    source = _languages_set(tmp_path / "s")
    lines = [{"text": "new", "lang": "de"}, {"text": "new ", "lang": "de"}, {"text": "DE  te\u200bxt 0", "lang": "de"},
             {"text": "neu", "lang": "xx"}]  # fmt: skip
    write_jsonl(tmp_path / "u.jsonl", lines)
    (tmp_path / "u.txt").write_text("unknown\n")
    unlabelled = [Texts(path=str(tmp_path / "u.jsonl")), Texts(path=str(tmp_path / "u.txt"))]
    dataset, summary = _prepare(source, languages=["de", "en"], unlabelled=unlabelled)
    assert dataset.unlabelled == [("new", "de"), ("unknown", "und")]
    assert summary["unlabelled"] == {"count": 2, "languages": {"de": 1, "und": 1}}
    dropped = {name: count for name, count in summary["dropped"].items() if name.startswith("unlabelled")}
    assert dropped == {"unlabelled_in_other_languages": 1, "unlabelled_in_evaluation": 1, "unlabelled_twice": 1}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.sampled_from(["", "g0", "g1", "g2"])), min_size=6),
    st.floats(0.05, 0.9),
)
def test_pairs_are_split_by_group(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[int, int, str]], hold_out: float
) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    path = write_jsonl(folder / "a.jsonl", ({"query": f"q {q}", "positive": f"p {p}", "group": g} for q, p, g in lines))
    names: dict[str, list[str]] = {}
    for query, positive, group in lines:
        names.setdefault(str(query), []).append(group or f"p {positive}")
    for query, _, group in lines:  # a query's own groups, where it has any, count alone
        if group:
            names[str(query)] = [name for name in names[str(query)] if not name.startswith("p ")]
    named = {query: [Name(name, GROUP) for name in found] for query, found in names.items()}
    if len(set(join_groups(named).values())) < 3:
        with pytest.raises(InputError, match=r"dev can't be split|no query is left in dev"):
            _prepare(path, source="pairs", hold_out=hold_out)
        return
    dataset, summary = _prepare(path, source="pairs", hold_out=hold_out)
    assert set(dataset.splits) == {"train", "select", "report"} and all(dataset.splits.values())
    assert summary["groups_shared_with_train"] == 0
    ungrouped = [record for split in dataset.splits.values() for record in split if record.group[0] == "d"]
    owners: dict[str, str] = {}
    for record in ungrouped:
        for document in record.positives:
            assert owners.setdefault(document, record.group) == record.group
    assert sum(map(len, dataset.splits.values())) == len({q for q, _, _ in lines})


def test_weights_and_grades_survive(tmp_path: Path) -> None:
    queries = [{**_OWN[0], "weight": 0.25}, *_OWN[1:]]
    write_beir(
        tmp_path / "s", _DOCUMENTS, queries, dev=[("q0", "d0", 2), ("q0", "d1", 0.5), ("q0", "d2", -1), ("q1", "d3", 1)]
    )
    dataset, _ = _prepare(tmp_path / "s")
    record = next(r for name in ("select", "report") for r in dataset.splits[name] if r.id == "q0")
    assert record.positives == {"d0": 2.0, "d1": 0.5} and record.negatives == ("d2",) and record.weight == 0.25


def test_emoji_source(tmp_path: Path) -> None:
    folder = tmp_path / "prepared"
    summary = prepare_data(DataSettings(source="emoji", languages=["en"]), folder)
    dataset = load_dataset(folder)
    assert summary["languages"] == ["en"] and set(dataset.splits) == {"train", "select", "report", "test"}
    assert set(summary["files"]) == {"corpus.jsonl", "queries.jsonl", "train.tsv", "dev.tsv", "test.tsv"}
    select = len(_groups(dataset, "select"))
    assert 0.3 < select / (select + len(_groups(dataset, "report"))) < 0.7


def test_a_changed_folder_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prepared"
    prepare_data(DataSettings(source="beir", path=str(tiny)), folder)
    line = json.dumps({"_id": "new", "text": "x", "lang": "aa"})
    with open(folder / "corpus.jsonl", "a", encoding="utf-8") as stream:
        stream.write(line + "\n")
    with pytest.raises(StaleArtefactError, match="the prepared data has been changed"):
        load_dataset(folder)
    with pytest.raises(InputError, match="no such file"):
        load_dataset(tmp_path / "nowhere")


# ------------------------------------------------------------------------------- what training and evaluations share


def _split_of(folder: Path) -> dict[str, set[str]]:
    return {name: {record.id for record in records} for name, records in load_dataset(folder).splits.items()}


class Growing:
    """A data set of ten training, ten dev and ten test queries whose qrels change from update to update."""

    def __init__(self, root: Path) -> None:
        self.root, self.turn = root, 0
        self.texts = {f"q{n}": f"ask {n}" for n in range(30)}
        self.asked = {"train": [f"q{n}" for n in range(10)], "dev": [f"q{n}" for n in range(10, 20)],
                      "test": [f"q{n}" for n in range(20, 30)]}  # fmt: skip

    def prepare(self) -> dict[str, Any]:
        """The data as it is now, the data before this as ``earlier``."""
        documents = [{"_id": f"d{n}", "text": f"thing {n}"} for n in range(30)]
        queries = [{"_id": id_, "text": text} for id_, text in self.texts.items()]
        qrels = {name: [(id_, f"d{int(id_[1:]) % 30}", 1) for id_ in ids] for name, ids in self.asked.items()}
        write_beir(self.root / "source", documents, queries, **qrels)
        settings_ = DataSettings(source="beir", path=str(self.root / "source"))
        self.turn += 1
        return prepare_data(settings_, self.folder(), earlier=self.folder(-1) if self.turn > 1 else None)

    def folder(self, before: int = 0) -> Path:
        return self.root / f"prepared-{self.turn + before}"


def test_what_was_trained_on_long_ago_never_becomes_a_test(tmp_path: Path) -> None:
    data = Growing(tmp_path)
    data.prepare()
    assert not (data.folder() / "former.jsonl").exists()
    (chosen, *_), trained = _split_of(data.folder())["select"], "q0"
    data.asked["train"].remove(trained)
    data.asked["dev"].remove(chosen)
    for _ in range(2):  # away for two updates
        assert data.prepare()["kept_in_split"] == 0
        assert {trained, chosen}.isdisjoint(set().union(*_split_of(data.folder()).values()))
    data.asked["test"] += [trained, chosen]
    assert data.prepare()["kept_in_split"] == 2
    splits = _split_of(data.folder())
    assert trained in splits["train"] and chosen in splits["select"]
    assert {trained, chosen}.isdisjoint(splits["test"]) and not (data.folder() / "former.jsonl").exists()
    data.asked["test"] = data.asked["test"][:-2]
    data.prepare()
    (data.folder() / "former.jsonl").write_text("")
    with pytest.raises(StaleArtefactError, match="has been changed"):
        load_dataset(data.folder())


def test_a_text_that_was_trained_on_is_told_of_under_any_id(tmp_path: Path) -> None:
    data = Growing(tmp_path)
    assert data.prepare()["splits"]["test"]["shared_with_train"] == {"texts": 0, "groups": 0}
    data.asked["train"].remove("q0")
    data.prepare()
    data.texts |= {"q100": "  ASK 0 ", "q1": "e\u0301te\u0301", "q101": "\u00c9t\u00e9"}
    data.asked["test"] += ["q100", "q101"]
    told = data.prepare()
    assert told["splits"]["test"]["shared_with_train"] == {"texts": 2, "groups": 0}, "in whatever Unicode form"
    assert told["texts_shared_with_train"] == 2 and told["kept_in_split"] == 0
    (warning,) = overlap_warnings(told["splits"])
    assert warning == "2 of 12 queries of test (16.7%) are asked, word for word, in training too"


def test_a_test_that_is_the_training_is_told_of(tmp_path: Path) -> None:
    data = Growing(tmp_path)
    data.asked["test"] = [*data.asked["train"][:4], "q20"]
    told = data.prepare()
    assert told["splits"]["test"]["shared_with_train"] == {"texts": 4, "groups": 4}
    assert told["splits"]["select"]["shared_with_train"] == {"texts": 0, "groups": 0}
    assert "shared_with_train" not in told["splits"]["train"]
    assert overlap_warnings(told["splits"]) == [
        "4 of 5 queries of test (80.0%) are asked, word for word, in training too",
        "4 of 5 queries of test (80.0%) share a group or document with training queries",
    ]
