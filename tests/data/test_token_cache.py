"""Cached tokens are what the tokenizer makes of the texts now; builds resume; what is stale is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders.launching import launch, on_cpu
from builders.logs import Rows, batches_of, collator, log, settings, tokenise, write, write_logs

from harness.data import token_cache, token_writer
from harness.data.dedupe import text_hash
from harness.data.records import normal_text
from harness.data.token_cache import CacheSettings, TokenCache, Tokenise
from harness.data.token_writer import build_token_cache
from harness.runtime.errors import InputError, StaleArtefactError


@pytest.fixture(scope="module")
def rows() -> Rows:
    return log(900)


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory, rows: Rows) -> tuple[TokenCache, list[Path]]:
    folder = tmp_path_factory.mktemp("cache")
    paths = write_logs(folder / "logs", rows)
    return build_token_cache(folder / "cache", paths, settings()), paths


def _files(rows: Rows, files: int = 5) -> list[Rows]:
    return [[rows[row] for row in part] for part in np.array_split(np.arange(len(rows)), files)]


def test_tokens_are_those_of_the_tokenizer(cached: tuple[TokenCache, list[Path]], rows: Rows) -> None:
    cache, _ = cached
    files, everything = _files(rows), np.arange(len(cache))
    chosen = [files[file][row] for file, row in cache.sources(everything)]
    assert cache.tokens(everything, "text") == collator().tokens([row["text"] for row in chosen])
    assert cache.languages == {
        name: sum(row["lang"] == name for row in chosen) for name in ("de", "en", "fr")
    }  # fmt: skip
    streams = cache.streams(seed=[1], block=16, window=2)
    for name, stream in streams.items():
        located = stream.locate(np.arange(stream.order.count))
        assert {files[file][row]["lang"] for file, row in cache.sources(located)} == {name}
        assert len(set(located.tolist())) == cache.languages[name]


def test_of_equal_texts_the_first_stays(cached: tuple[TokenCache, list[Path]], rows: Rows) -> None:
    cache, _ = cached
    files = _files(rows)
    first: dict[tuple[str, str], tuple[int, int]] = {}
    for file, lines in enumerate(files):
        for number, row in enumerate(lines):
            first.setdefault((normal_text(row["text"]), row["lang"]), (file, number))
    assert len(first) < len(rows), "the log repeats itself"
    assert set(cache.sources(np.arange(len(cache)))) == set(first.values())
    assert sum(shard.left_out["duplicates"] for shard in cache.shards) == len(rows) - len(first)


def test_the_hashes_of_all_first_texts_come_in_parts(
    cached: tuple[TokenCache, list[Path]], rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, files = cached[0], _files(rows)
    monkeypatch.setattr(token_cache, "KEYS_AT_ONCE", 100)
    parts = list(cache.first_texts())
    assert {len(part) for part in parts[:-1]} == {100} and len(parts) == -(-len(cache) // 100)
    texts = [files[file][row]["text"] for file, row in cache.sources(np.arange(len(cache)))]
    assert np.concatenate(parts).tolist() == [text_hash(text) for text in texts]


def test_bounded_memory_leaves_out_the_same(
    tmp_path: Path, cached: tuple[TokenCache, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, paths = cached
    monkeypatch.setattr(token_writer, "PART_BYTES", 4096)  # some ten parts
    other = build_token_cache(tmp_path / "cache", paths, settings())
    assert other.shards == cache.shards


def test_duplicates_stay_if_wanted_and_pairs_have_both_texts(tmp_path: Path, rows: Rows) -> None:
    paths = write_logs(tmp_path / "logs", rows, 2)
    document = collator("left", prompt="", max_length=5)
    texts = {"text": tokenise(collator()), "positive": tokenise(document, prompt="", max_length=5)}
    cache = build_token_cache(tmp_path / "cache", paths, settings(texts=texts, keys=(), deduplicate=False))
    everything, files = np.arange(len(cache)), _files(rows, 2)
    chosen = [files[file][row] for file, row in cache.sources(everything)]
    assert len(chosen) == len(rows)
    assert cache.tokens(everything, "positive") == document.tokens([row["positive"] for row in chosen])
    assert cache.tokens(everything, "text") == collator().tokens([row["text"] for row in chosen])


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", [{"text": "a"}, {"text": "b"}])
    large = Tokenise(lambda texts: [[70_000, ord(text)] for text in texts], "x", 70_001)
    cache = build_token_cache(tmp_path / "cache", [path], CacheSettings({"text": large}))
    assert cache.tokens(np.arange(2), "text") == [[70_000, 97], [70_000, 98]]
    assert cache.languages == {"und": 2}


# ------------------------------------------------------------------------------------------------- resume and staleness


class Killed(BaseException):
    """As good as SIGKILL: nothing catches it."""


@pytest.mark.parametrize("after", range(0, 26, 3))
def test_a_killed_build_goes_on(
    tmp_path: Path, cached: tuple[TokenCache, list[Path]], after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, paths = cached
    left = iter(range(after))

    def dies(whole: Callable[..., Any]) -> Callable[..., Any]:
        def write_or_die(*arguments: Any, **options: Any) -> Any:
            if next(left, None) is None:
                raise Killed
            return whole(*arguments, **options)

        return write_or_die

    with monkeypatch.context() as patch:
        for name in ("write_json", "atomic_file"):
            patch.setattr(token_writer, name, dies(getattr(token_writer, name)))
        with pytest.raises(Killed):
            build_token_cache(tmp_path / "cache", paths, settings())
    with pytest.raises(InputError):
        TokenCache.open(tmp_path / "cache", settings(), paths)  # nothing half is taken for whole
    (tmp_path / "cache" / ".shard-0.bin.1.tmp").write_text("half")  # which only a real kill leaves
    again = build_token_cache(tmp_path / "cache", paths, settings())
    assert again.shards == cache.shards
    again.verify()
    assert {path.name for path in again.folder.iterdir()} == {
        "manifest.json", *(f"{shard.name}.{end}" for shard in again.shards for end in ("bin", "json"))
    }  # fmt: skip


def test_what_a_killed_build_left_serves_no_other_settings(
    tmp_path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_logs(tmp_path / "logs", rows[:100], 2)

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(token_writer._Builder, "tokenise", killed)
        with pytest.raises(Killed):
            build_token_cache(tmp_path / "cache", paths, settings(keys=("lang",)))
    other = build_token_cache(tmp_path / "cache", paths, settings())
    fresh = build_token_cache(tmp_path / "fresh", paths, settings())
    assert [shard.sha256 for shard in other.shards] == [shard.sha256 for shard in fresh.shards]


def test_what_is_done_is_not_done_again(
    tmp_path: Path, rows: Rows, cached: tuple[TokenCache, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_logs(tmp_path / "logs", rows)
    calls = []
    counting = collator()
    texts = {"text": replace(tokenise(counting), call=lambda texts: calls.append(len(texts)) or counting.tokens(texts))}
    folder = tmp_path / "cache"
    build_token_cache(folder, paths, settings(texts=texts))
    whole = sum(calls)
    calls.clear()
    build_token_cache(folder, paths, settings(texts=texts))
    assert not calls
    paths.append(write(tmp_path / "logs" / "z.jsonl", log(50, seed=9)))  # a day is added to the log
    cache = build_token_cache(folder, paths, settings(texts=texts))
    assert 0 < sum(calls) <= 50 < whole and len(cache.shards) == 6
    os.utime(paths[0], (1, 1))  # touched, not changed
    calls.clear()
    build_token_cache(folder, paths, settings(texts=texts))
    assert not calls


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"texts": {"text": tokenise(collator(prompt="find: "), prompt="find: ")}}, "another tokenizer, prompt"),
        ({"texts": {"text": tokenise(collator(max_length=9), max_length=9)}}, "another tokenizer, prompt"),
        ({"texts": {"text": tokenise(collator("left"))}}, "another tokenizer, prompt"),
        ({"deduplicate": False}, "another tokenizer, prompt"),
        ({"keys": ()}, "another tokenizer, prompt"),
    ],
)
def test_other_settings_are_refused(
    cached: tuple[TokenCache, list[Path]], change: dict[str, Any], told: str
) -> None:
    cache, paths = cached
    with pytest.raises(StaleArtefactError, match=told):
        TokenCache.open(cache.folder, settings(**change), paths)


def test_a_call_of_the_tokenizer_does_not_change_its_fingerprint() -> None:
    made = collator()
    before = tokenise(made)
    made.tokens(["red shoe"])
    assert tokenise(made).fingerprint == before.fingerprint


def test_changed_content_and_files_that_are_not_whole_are_refused(tmp_path: Path, rows: Rows) -> None:
    paths, folder = write_logs(tmp_path / "logs", rows), tmp_path / "cache"
    cache = build_token_cache(folder, paths, settings())
    with pytest.raises(StaleArtefactError, match="other files"):
        TokenCache.open(folder, settings(), paths[:-1])
    path = folder / f"{cache.shards[0].name}.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(StaleArtefactError, match="not whole"):
        TokenCache.open(folder, settings(), paths)
    path.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
    with pytest.raises(StaleArtefactError, match="damaged"):
        TokenCache.open(folder, settings(), paths).verify()
    path.write_bytes(content)
    text = paths[1].read_text()
    paths[1].write_text(text.replace("red", "net"))  # of equal length
    with pytest.raises(StaleArtefactError, match="changed since it was tokenised"):
        TokenCache.open(folder, settings(), paths)
    again = build_token_cache(folder, paths, settings())
    assert again.shards[0] == cache.shards[0] and again.shards[1].made != cache.shards[1].made
    fresh = build_token_cache(tmp_path / "fresh", paths, settings())  # later files' duplicates may have moved, too
    assert [shard.sha256 for shard in again.shards] == [shard.sha256 for shard in fresh.shards]


def test_rows_that_cannot_be_used_are_told_at_once_or_left_out(tmp_path: Path) -> None:
    good, missing = {"text": "red", "lang": "en"}, {"text": "hat", "lang": ""}
    one = write(tmp_path / "1.jsonl", [good, {"text": " ", "lang": "en"}, {"lang": "en"}, missing])
    with one.open("a") as stream:
        stream.write('\n{"text": 3, "lang": "en"}\n[1]\nnot json\n')
    two = write(tmp_path / "2.parquet", [{"text": "blue", "lang": "en"}, {"text": None, "lang": "en"}])
    with pytest.raises(InputError) as found:
        build_token_cache(tmp_path / "cache", [one, two], settings())
    told = str(found.value)
    for part in ("1.jsonl:2: no text (2 rows)", "1.jsonl:4: no lang", "text is not a string", "not a JSON object",
                 "not JSON", "2.parquet:2: no text (1 rows)"):  # fmt: skip
        assert part in told, told
    assert not (tmp_path / "cache" / "manifest.json").exists()
    cache = build_token_cache(tmp_path / "cache", [one, two], settings(skip_bad=True))
    assert cache.sources(np.arange(len(cache))) == [(0, 0), (1, 0)]
    assert [shard.left_out for shard in cache.shards] == [{"bad": 6, "duplicates": 0}, {"bad": 1, "duplicates": 0}]
    with pytest.raises(InputError, match="no text"):
        build_token_cache(tmp_path / "cache", [one, two], settings())


def test_a_column_that_is_no_language_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "1.parquet", [{"text": f"red {n}", "lang": f"x{n}"} for n in range(40)])
    monkeypatch.setattr(token_writer, "MOST_LANGUAGES", 30)
    with pytest.raises(InputError, match="more than 30 languages"):
        build_token_cache(tmp_path / "cache", [path], settings())
    monkeypatch.setattr(token_writer, "MOST_ROWS", 30)
    with pytest.raises(InputError, match="too many rows in one file"):
        build_token_cache(tmp_path / "cache", [path], settings())


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "1.jsonl", [{"text": ""}])
    with pytest.raises(InputError, match="no row is left"):
        build_token_cache(tmp_path / "cache", [path], settings(skip_bad=True))
    with pytest.raises(InputError, match="needs files"):
        build_token_cache(tmp_path / "cache", [], settings())


def test_two_processes_make_the_same_cache_and_share_each_batch(
    tmp_path: Path, rows: Rows, cached: tuple[TokenCache, list[Path]]
) -> None:
    paths = write_logs(tmp_path / "logs", rows)
    launch(on_cpu("cpu2", 2, tmp_path), "builders.logs", tmp_path)
    together = TokenCache.open(tmp_path / "together", settings(), paths)
    together.verify()
    assert [shard.sha256 for shard in together.shards] == [shard.sha256 for shard in cached[0].shards]
    alone = json.loads(json.dumps(batches_of(together, 5)))
    first, second = (json.loads((tmp_path / f"answers-{number}.json").read_text()) for number in range(2))
    for whole, one, two in zip(alone, first, second, strict=True):
        assert whole == [one[part] + two[part] for part in range(3)]
