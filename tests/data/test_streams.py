"""Logs as recipes name them: which files, which columns, and what the first rows promise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
from builders.tiny_data import write_jsonl

from harness.data.shards import Shard, find_shards
from harness.data.streams import check_stream, preview
from harness.data.token_cache import CacheSettings, Tokenise
from harness.data.token_writer import build_token_cache
from harness.recipe import StreamSettings
from harness.runtime.errors import InputError

ROWS = [{"query": f"word {number}", "lang": "de" if number % 3 else "en"} for number in range(30)]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=7)
    return path


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    write_parquet(tmp_path / "logs" / "b" / "2.parquet", ROWS[:20])
    write_jsonl(tmp_path / "logs" / "1.jsonl", ROWS[20:])
    (tmp_path / "logs" / "notes.txt").write_text("no log")
    return tmp_path / "logs"


def test_a_folder_a_glob_a_file_and_a_list_name_files(logs: Path) -> None:
    one, two = logs / "1.jsonl", logs / "b" / "2.parquet"
    assert find_shards(str(logs), "w") == [one, two]
    assert find_shards(f"{logs}/**/*.parquet", "w") == [two]
    assert find_shards([str(two), str(one)], "w") == [two, one]


@pytest.mark.parametrize(
    ("name", "what"),
    [("nothing", "no such file or folder"), ("*.csv", "no such file or folder"),
     ("empty", r"no \.parquet or \.jsonl file below this folder"),
     ("notes.txt", "not a kind of file that can be read")],
)  # fmt: skip
def test_a_name_that_is_no_log_is_refused(logs: Path, name: str, what: str) -> None:
    (logs / "empty").mkdir()
    with pytest.raises(InputError, match=what):
        find_shards(f"{logs}/{name}", "data.streams.a.path")


def test_everything_that_is_missing_is_told_at_once(logs: Path) -> None:
    with pytest.raises(InputError) as caught:
        find_shards([f"{logs}/x", f"{logs}/y", f"{logs}/1.jsonl", f"{logs}/*.jsonl"], "w")
    assert [problem.what for problem in caught.value.problems] == ["no such file or folder"] * 2 + [
        "the file is named twice"
    ]


def test_columns_that_a_file_lacks_are_named(logs: Path) -> None:
    settings = StreamSettings(path=str(logs), query="asked", positive="found", language="market")
    with pytest.raises(InputError) as caught:
        check_stream("clicks", settings)
    assert len(caught.value.problems) == 6, "three columns of two files"
    assert {problem.next for problem in caught.value.problems} == {
        f"set data.streams.clicks.{key} to the name that it has" for key in ("query", "positive", "language")
    }
    assert all(problem.got == "lang, query" for problem in caught.value.problems)


def test_a_usual_column_of_languages_may_be_absent(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"query": "x"}])
    assert check_stream("a", StreamSettings(path=str(path))) == [path]


@pytest.mark.parametrize("write", [write_parquet, write_jsonl])
def test_a_stream_without_rows_is_refused(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = tmp_path / f"a.{'parquet' if write is write_parquet else 'jsonl'}"
    if write is write_parquet:
        parquet.write_table(pyarrow.table({"query": pyarrow.array([], pyarrow.string())}), path)
    else:
        path.write_text("")
    with pytest.raises(InputError, match="the stream has no row"):
        check_stream("a", StreamSettings(path=str(path)))


def test_a_preview_counts_rows_by_language(logs: Path) -> None:
    settings = StreamSettings(path=str(logs))
    told = preview("a", settings, find_shards(str(logs), "w"))
    assert (told.rows, told.complete, told.bad) == (30, True, 0)
    assert told.languages == {"de": 20, "en": 10}


def test_a_preview_reads_no_more_than_its_limit_and_says_so(tmp_path: Path) -> None:
    files = [write_jsonl(tmp_path / "a.jsonl", [{"query": f"{number:04}"} for number in range(1000)]),
             write_parquet(tmp_path / "b.parquet", [{"query": "x"}] * 500)]  # fmt: skip
    told = preview("a", StreamSettings(path="unused"), files, limit=100)
    assert not told.complete and sum(told.languages.values()) == 200
    assert told.rows == pytest.approx(1500, rel=0.2)


def test_rows_that_cannot_be_used_are_an_error_unless_they_may_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"query": "one"}\nnot json\n{"query": 3}\n{"query": "two"}\n')
    settings = StreamSettings(path=str(path))
    with pytest.raises(InputError) as caught:
        preview("clicks", settings, [path])
    assert sorted(problem.where for problem in caught.value.problems) == [f"{path}:2", f"{path}:3"]
    assert "data.streams.clicks.skip_bad: true" in caught.value.problems[0].next
    told = preview("clicks", settings.model_copy(update={"skip_bad": True}), [path])
    assert (told.rows, told.bad) == (2, 2)


@pytest.mark.parametrize(
    ("rest", "what", "of_pairs"),
    [({"title": None}, "no title", True), ({"title": "  "}, "no title", True), ({}, "no title", True),
     ({"title": 7}, "the title is not a string", True),
     ({"title": "t", "seen": {"a": 1}}, "the seen is not a string", False)],
)  # fmt: skip
def test_positives_and_contexts_are_judged_as_when_tokens_are_made(
    tmp_path: Path, rest: dict[str, Any], what: str, of_pairs: bool
) -> None:
    good = {"query": "word", "title": "t", "seen": "s", "lang": "de"}
    path = write_jsonl(tmp_path / "a.jsonl", [good, {"query": "bad", "lang": "de", **rest}, good])
    settings = StreamSettings(path=str(path), positive="title", context="seen")
    texts = dict.fromkeys(("query", "title"), Tokenise(lambda texts: [[1]] * len(texts), "words", 2))
    with pytest.raises(InputError) as early:
        preview("a", settings, [path], pairs=True)
    with pytest.raises(InputError) as late:
        build_token_cache(tmp_path / "cache", [path], CacheSettings(texts, apart=("seen",)))
    for told in (early.value, late.value):
        assert [(problem.what.split(" (")[0], problem.where) for problem in told.problems] == [(what, f"{path}:2")]
    left = preview("a", settings.model_copy(update={"skip_bad": True}), [path], pairs=True)
    assert (left.rows, left.bad) == (2, 1)
    if of_pairs:
        assert preview("a", settings, [path]).rows == 3, "queries alone need no positive"


@pytest.mark.parametrize("write", [write_parquet, write_jsonl])
def test_the_lines_without_a_language_are_named_and_all_are_counted(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    rows = [{"query": f"w{number}", "lang": "de" if number < 40 else None} for number in range(50)]
    path = write(tmp_path / f"a.{'parquet' if write is write_parquet else 'jsonl'}", rows)
    with pytest.raises(InputError) as caught:
        preview("a", StreamSettings(path=str(path)), [path])
    (problem,) = caught.value.problems
    assert problem.what == "no lang, which other lines of the file have (10 lines)"
    assert problem.where == f"{path}:41" and problem.got.startswith("line 41; line 42") and problem.got.endswith("...")
    left = preview("a", StreamSettings(path=str(path), skip_bad=True), [path])
    assert (left.rows, left.bad) == (40, 10)


def test_nothing_but_rows_that_cannot_be_used_is_an_error_all_the_same(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"query": 1}, {"query": None}])
    with pytest.raises(InputError):
        preview("a", StreamSettings(path=str(path), skip_bad=True), [path])


def test_chosen_rows_come_with_the_blocks_that_hold_them(tmp_path: Path) -> None:
    import numpy as np

    shard = Shard.open(write_parquet(tmp_path / "a.parquet", ROWS))
    wanted = np.array([0, 6, 7, 20, 29])
    found = [(block.columns["query"][row]) for block, rows in shard.chosen(wanted, ["query"]) for row in rows]
    assert found == [ROWS[row]["query"] for row in wanted]
    assert len(list(shard.chosen(wanted, ["query"]))) == 4, "a block without a chosen row is not read"
