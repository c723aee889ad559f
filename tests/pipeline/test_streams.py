"""Streams in a run: the alignment reads logs, is killed and goes on, and refuses what is not what it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from builders.killed import Fault, Zygote
from builders.tiny_run import tiniest_tree, write_recipe
from builders.tiny_streams import CLICKS, SEARCHES, with_streams
from builders.whole import differences, partial_artefacts

from harness.data.shards import Shard
from harness.data.token_cache import TokenCache
from harness.encoders.folder import open_encoder
from harness.pipeline.folder import RunFolder
from harness.pipeline.manifest import Manifest
from harness.pipeline.plan import keys
from harness.pipeline.streams import advice, estimated_rows, vector_bytes
from harness.recipe import Recipe, load_recipe
from harness.runtime.process import read_json
from harness.vectors.stream_store import StreamVectors


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiniest recipe, aligned on two streams and on texts in memory."""
    root = tmp_path_factory.mktemp("streams")
    tree = with_streams(root, tiniest_tree(root), texts=["queries"])
    tree["evaluate"] = {"systems": ["teacher", "student-aligned"], "resamples": 100}
    tree |= {"refine": None, "mine": {}, "export": None}
    return write_recipe(root, tree)


def command(recipe: Path, out: Path, *more: str) -> list[str]:
    return ["run", str(recipe), "--output", str(out), *more]


@pytest.fixture(scope="module")
def whole(zygote: Zygote, recipe: Path) -> Path:
    """The folder of a run from beginning to end; not to be changed."""
    out = recipe.parent / "out"
    ended = zygote.run(command(recipe, out), out)
    assert ended.code == 0, ended.log
    assert f"clicks: {CLICKS} rows (aa 45, bb 45); left out: 0 unusable, 10 duplicates" in ended.log
    assert f"searches: {SEARCHES} rows (cc {SEARCHES}); left out: 0 unusable, 0 duplicates" in ended.log
    assert partial_artefacts(out) == []
    return out


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


# ------------------------------------------------------------------------------------------------------ what is made


def test_vectors_are_in_step_with_tokens_and_with_the_log(whole: Path) -> None:
    """Row by row from the source: read there, encoded anew, compared with what the alignment would look up."""
    cache = TokenCache(whole / "streams/align/clicks", read_json(whole / "streams/align/clicks/manifest.json"))
    stored = StreamVectors.open(whole / "vectors/streams/clicks", verify=True)
    assert stored.dtype == "float16" and len(stored) == len(cache) == CLICKS
    row_C = np.arange(len(cache))
    texts, logs = [], {}
    for file, row in cache.sources(row_C):
        if file not in logs:
            shard = Shard.open(Path(cache.shards[file].source))
            blocks = [shard.read(at, ["asked"]) for at in range(len(shard.sizes))]
            logs[file] = [text for block in blocks for text in block.column("asked")]
        texts.append(logs[file][row])
    assert len(set(texts)) == CLICKS
    expected = open_encoder(whole / "teacher").encode(texts, side="query")
    np.testing.assert_allclose(stored.vectors(*cache.places(row_C)), expected, atol=1e-3)
    tokens = open_encoder(whole / "student/cut").collator("query").tokens(texts)
    assert cache.tokens(row_C, "asked") == tokens


def test_the_teacher_alone_reads_contexts_and_a_stream_s_own_prompt(
    zygote: Zygote, recipe: Path, whole: Path, copy: Path
) -> None:
    settings = ["data.streams.clicks.context=found", "data.streams.clicks.positive=null",
                "teacher.context='{context} {query}'", "data.streams.clicks.prompts.query='bo '"]  # fmt: skip
    flags = [word for setting in settings for word in ("--set", setting)]
    ended = zygote.run(command(recipe, copy, *flags, "--to", "embed.streams"), copy)
    assert ended.code == 0, ended.log
    cache = TokenCache(copy / "streams/align/clicks", read_json(copy / "streams/align/clicks/manifest.json"))
    rows = [parquet.read_table(shard.source).to_pylist() for shard in cache.shards]
    found = [rows[file][row] for file, row in cache.sources(np.arange(len(cache)))]
    teacher = open_encoder(copy / "teacher")
    student_reads = open_encoder(copy / "student/cut").collator("query").tokens([row["asked"] for row in found])
    assert cache.tokens(np.arange(len(cache)), "asked") == student_reads
    expected = teacher.encode([f"bo {row['found']} {row['asked']}" for row in found], side="document")
    assert not teacher.prompts["query"] and not teacher.prompts["document"]
    stored = StreamVectors.open(copy / "vectors/streams/clicks")
    np.testing.assert_allclose(stored.vectors(*cache.places(np.arange(len(cache)))), expected, atol=1e-3)
    plain = teacher.encode([row["asked"] for row in found], side="query")
    assert np.abs(plain - expected).max() > 0.01


def test_the_whole_run_again_does_nothing(zygote: Zygote, recipe: Path, whole: Path, copy: Path) -> None:
    ended = zygote.run(command(recipe, copy), copy)
    assert ended.code == 0 and "\n> " not in ended.log


def test_check_tells_rows_by_stream_and_language(zygote: Zygote, recipe: Path, whole: Path) -> None:
    ended = zygote.run(["check", str(recipe), "--output", str(whole)], whole)
    assert ended.code == 0, ended.log
    for words in (("clicks", "all", "100"), ("searches", "all", "60"), ("embed.streams",)):
        assert any(all(word in line for word in words) for line in ended.log.splitlines()), words


# ------------------------------------------------------------------------------------------------- killed and stopped

KILLS = (
    Fault("streams", "write", name="*files.json*"),
    Fault("streams", "replace", 2, name="key-*"),  # while the files are looked through
    Fault("streams", "write", 3, name="*shard-*"),
    Fault("streams", "replace", name="manifest.json"),
    Fault("shard", "write", 2, name="*shard-0*.npy*"),
    Fault("shard", "replaced", name="shard-00001.npy"),  # whole, but its own entry is not there
    Fault("shard", "replace", name="manifest.json"),
    Fault("checkpoint", "replaced", 2, name="step-*"),
)


def test_killed_in_every_write_of_streams_it_ends_the_same(
    zygote: Zygote, recipe: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert zygote.run(command(recipe, out, "--to", "student"), out).code == 0
    (out / "streams/files.json").unlink()
    for fault in KILLS:
        ended = zygote.run(command(recipe, out), out, fault)
        assert ended.code == -signal.SIGKILL, f"{fault} was not met:\n{ended.log}"
        assert partial_artefacts(out) == [], f"{fault} at {ended.struck}"
    ended = zygote.run(command(recipe, out), out)
    assert ended.code == 0, ended.log
    assert "align: goes on from step" in ended.log
    assert differences(whole, out) == []


def test_stopped_inside_the_alignment_it_goes_on_from_that_step(
    zygote: Zygote, recipe: Path, whole: Path, copy: Path
) -> None:
    shutil.rmtree(copy / "checkpoints/align")
    manifest = Manifest(RunFolder(copy))
    manifest.forget(["align", "evaluate", "report"])
    stopped = zygote.run(command(recipe, copy), copy, Fault("log", "write", 3, act="TERM", name="align.jsonl"))
    assert stopped.code == 1 and "the same command goes on" in stopped.log, stopped.log
    ended = zygote.run(command(recipe, copy), copy)
    assert "align: goes on from step" in ended.log
    assert differences(whole, copy) == []


# --------------------------------------------------------------------------------------------------- what has changed


def test_a_log_that_changed_is_refused_and_forced_encodes_what_is_new(
    zygote: Zygote, recipe: Path, whole: Path, tmp_path: Path
) -> None:
    logs, out = recipe.parent / "logs", tmp_path / "out"
    shutil.copytree(whole, out)
    path, before = logs / "searches-1.jsonl", (logs / "searches-1.jsonl").read_bytes()
    stat = path.stat()
    try:
        path.write_bytes(before + b'{"query": "another one"}\n')
        refused = zygote.run(command(recipe, out), out)
        assert refused.code == 2 and "other streams than align, embed.streams had" in refused.log.replace(
            "embed.streams, align", "align, embed.streams"
        ), refused.log
        assert "--from embed.streams" in refused.log
        checked = zygote.run(["check", *command(recipe, out)[1:]], out)
        assert checked.code == 2 and "data files changed since this run read them" in checked.log, checked.log
        assert differences(whole, out) == [], "nothing was touched"
        ended = zygote.run(command(recipe, out, "--from", "embed.streams"), out)
        assert ended.code == 0 and f"searches: {SEARCHES + 1} rows" in ended.log, ended.log
        assert "> embed\n" not in ended.log and "> teacher\n" not in ended.log
        same = [name for name in ("clicks/shard-00000.npy", "clicks/shard-00001.npy", "searches/shard-00000.npy")
                if (out / "vectors/streams" / name).stat().st_mtime_ns
                == (whole / "vectors/streams" / name).stat().st_mtime_ns]  # fmt: skip
        assert len(same) == 3, "what had not changed was not encoded again"
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_touched_log_is_read_once_and_is_still_the_same(
    zygote: Zygote, recipe: Path, whole: Path, copy: Path
) -> None:
    path = recipe.parent / "logs/searches-0.jsonl"
    stat = path.stat()
    try:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
        ended = zygote.run(command(recipe, copy), copy)
        assert ended.code == 0 and "\n> " not in ended.log
        assert read_json(copy / "streams/files.json")[str(path)]["changed_ns"] == stat.st_mtime_ns + 10**9
    finally:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("name", ["vectors/streams/clicks/shard-00001.npy", "streams/align/searches/manifest.json"])
def test_edited_vectors_and_tokens_are_refused_by_name(zygote: Zygote, recipe: Path, copy: Path, name: str) -> None:
    path = copy / name
    path.write_bytes(path.read_bytes()[:-1] + b"~")
    ended = zygote.run(command(recipe, copy), copy)
    assert ended.code == 2 and str(path) in ended.log and "--from embed.streams" in ended.log


def test_another_length_makes_other_tokens_and_keeps_the_vectors(
    zygote: Zygote, recipe: Path, whole: Path, copy: Path
) -> None:
    """The student's tokenizer and length decide its tokens; the teacher's vectors are as they were."""
    ended = zygote.run(command(recipe, copy, "--set", "student.max_length=5"), copy)
    assert ended.code == 0, ended.log
    for name in ("clicks", "searches"):
        one, two = (read_json(folder / "streams/align" / name / "manifest.json") for folder in (whole, copy))
        assert one["made"] != two["made"]
        stored = [(folder / "vectors/streams" / name / "shard-00000.npy").stat() for folder in (whole, copy)]
        assert stored[0].st_mtime_ns == stored[1].st_mtime_ns


def test_an_update_of_the_documents_leaves_the_streams_alone(
    zygote: Zygote, recipe: Path, whole: Path, copy: Path
) -> None:
    corpus = recipe.parent / "data/corpus.jsonl"
    before = corpus.read_bytes()
    try:
        corpus.write_bytes(before + b'{"_id": "new", "title": "", "text": "one more", "lang": "aa"}\n')
        assert zygote.run(["embed", str(recipe), "--output", str(copy), "--update"], copy).code == 0
        ended = zygote.run(command(recipe, copy), copy)
        begun = [line[2:] for line in ended.log.splitlines() if line.startswith("> ")]
        assert ended.code == 0 and begun == ["evaluate", "report"], ended.log
    finally:
        corpus.write_bytes(before)


# ------------------------------------------------------------------------------------------------------------- online


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in map(json.loads, (folder / "logs/align.jsonl").read_text().splitlines())
            if "loss" in line]  # fmt: skip


def test_a_teacher_beside_the_student_gives_the_targets_that_are_stored(
    zygote: Zygote, recipe: Path, whole: Path, copy: Path
) -> None:
    """Streams and texts in memory; with cached gradients and in two parts, too."""
    training = ["--set", "align.training.cached=true", "--set", "align.training.accumulate=2",
                "--set", "align.training.chunk_tokens=16"]  # fmt: skip
    for more in ([], training):
        ended = zygote.run(command(recipe, copy, "--set", "align.targets=online", *more), copy)
        assert ended.code == 0, ended.log
        np.testing.assert_allclose(losses(copy), losses(whole), rtol=2e-3)  # float16 on the disk
    assert "vectors/streams" not in "".join(Manifest(RunFolder(copy)).steps["embed.streams"]["outputs"])


def test_online_without_streams_equals_stored_and_stores_no_queries(
    zygote: Zygote, recipe: Path, tmp_path: Path
) -> None:
    plain = ["--set", "align.streams=[]", "--set", "data.streams={}", "--set", "align.texts=[queries, documents]",
             "--set", "evaluate.systems=[teacher]"]  # fmt: skip
    one, two = tmp_path / "stored", tmp_path / "online"
    for out, targets in ((one, "stored"), (two, "online")):
        ended = zygote.run(command(recipe, out, "--to", "align", *plain, "--set", f"align.targets={targets}"), out)
        assert ended.code == 0, ended.log
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)
    assert (one / "vectors/queries").exists() and not (two / "vectors/queries").exists()


def test_one_stream_a_batch_and_weights_change_the_alignment_alone(recipe: Path) -> None:
    def changed(*overrides: str) -> set[str]:
        before, after = keys(load_recipe(recipe), {}), keys(load_recipe(recipe, overrides), {})
        return {name for name in before if before[name] != after[name]}

    after_alignment = {"align", "evaluate", "report"}
    assert changed("data.one_stream_per_batch=true") >= after_alignment
    assert "embed.streams" not in changed("data.one_stream_per_batch=true")
    assert changed("data.streams.clicks.weight=3") - {"bench"} == after_alignment
    assert "embed" not in changed("embed.stream_dtype=int8") and "embed.streams" in changed("embed.stream_dtype=int8")


# ------------------------------------------------------------------------------------------------------- how much room


def test_two_billion_queries_of_4096_dimensions_take_16_terabytes() -> None:
    assert vector_bytes(2e9, 4096, "float16") == pytest.approx(16.4e12, rel=0.01)


def _advised(recipe: Path, *overrides: str, rows: float = 2e9, free: float = 100e12) -> str | None:
    loaded: Recipe = load_recipe(recipe, list(overrides))
    return advice(loaded, rows, 4096, free)


def test_large_vectors_come_with_advice_and_its_numbers(recipe: Path) -> None:
    told = _advised(recipe) or ""
    assert "16 TB: 2,000,000,000 queries x 4,096 dimensions x float16" in told
    assert "teacher.dimension: 1024 (4.1 TB), 512 (2.0 TB), 256 (1.0 TB)" in told and "align.targets: online" in told
    assert _advised(recipe, "align.targets=online") is None
    assert _advised(recipe, rows=1e6) is None
    assert _advised(recipe, rows=1e6, free=10e9) is not None, "more than half of what is free"
    assert "4.1 TB" in (_advised(recipe, "embed.stream_dtype=int8", rows=1e9) or "")


def test_rows_are_estimated_without_reading_the_files(recipe: Path) -> None:
    rows = estimated_rows(load_recipe(recipe), ["clicks", "searches"])
    assert rows["clicks"] == 100, "Parquet tells"
    assert rows["searches"] == pytest.approx(SEARCHES, rel=0.2)
