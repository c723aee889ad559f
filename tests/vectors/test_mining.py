"""Mining against the plain definition in float64, resumed, shared, and read again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders.vectors import unit_vectors

from harness.data.records import Documents, Record
from harness.recipe import MineSettings
from harness.runtime.errors import InputError, StaleArtefactError, StoppedError
from harness.runtime.process import folder_sha256, read_json
from harness.vectors.index import VectorIndex
from harness.vectors.mining import Ground, load_mined, mine, read_tables

MODULE = "harness.vectors.mining.blocks"
LANGUAGES = ("de", "en")
DOCUMENTS, QUERIES = 60, 41


def ground_of(
    documents: Documents, records: list[Record], document_ND: np.ndarray, query_QD: np.ndarray, *,
    within: bool = False, kind: Any = "exact",
) -> Ground:  # fmt: skip
    partition = documents.languages if within else None
    index = VectorIndex.build(document_ND, documents.ids, kind=kind, partition_N=partition)
    return Ground(
        documents, records, index, query_vectors=lambda query_B: query_QD[query_B],
        document_vectors=lambda row_B: document_ND[row_B], within_language=within, made_from={"test": 1},
    )  # fmt: skip


def built(within: bool = False, kind: Any = "exact", queries: int = QUERIES) -> tuple[Ground, np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    documents = Documents(
        ids=[f"d{number:02d}" for number in range(DOCUMENTS)],
        texts=[f"text {number % 50}" for number in range(DOCUMENTS)],  # ten documents have an equal text
        languages=[LANGUAGES[number % 2] for number in range(DOCUMENTS)],
        keys=["shared" if number in (20, 31) else "" for number in range(DOCUMENTS)],
    )
    records = [
        Record(f"q{number}", f"query {number % 39}", LANGUAGES[number % 2], f"g{number}",
               {f"d{2 * int(row) + number % 2:02d}": 1.0 for row in random.choice(30, size=2, replace=False)})
        for number in range(queries)
    ]  # fmt: skip
    document_ND, query_QD = unit_vectors(DOCUMENTS, 8), unit_vectors(queries, 8, seed=1)
    return ground_of(documents, records, document_ND, query_QD, within=within, kind=kind), document_ND, query_QD


def same(documents: Documents, one: int, other: int) -> bool:
    """Equal in text or key, over at most two steps, which is enough for these documents."""

    def near(a: int, b: int) -> bool:
        return documents.texts[a] == documents.texts[b] or documents.keys[a] == documents.keys[b] != ""

    return any(near(one, step) and near(step, other) for step in range(len(documents)))


def plain(
    ground: Ground, document_ND: np.ndarray, query_QD: np.ndarray, settings: MineSettings, within: bool
) -> list[list[tuple[str, float]]]:
    """What passes all filters, query by query, best first; loops and float64."""
    documents, found = ground.documents, []
    known = [
        {d for other in ground.records
         if other.text == record.text and not (within and other.language != record.language)
         for p in other.positives for d in range(len(documents)) if same(documents, documents.row[p], d)}
        for record in ground.records
    ]  # fmt: skip
    for record, relevant, query_D in zip(ground.records, known, query_QD.astype(np.float64), strict=True):
        score_N = document_ND.astype(np.float64) @ query_D
        seen = [d for d in range(len(documents)) if not within or documents.languages[d] == record.language]
        hits = sorted(seen, key=lambda d: (-score_N[d], documents.ids[d]))[: settings.top_k]
        positives = [score_N[documents.row[p]] for p in record.positives]
        positive = min(positives) if settings.positive == "lowest" else max(positives)
        passing, rank = [], -1
        for d in hits:
            if d in relevant:
                continue
            rank += 1
            s = score_N[d]
            good = settings.skip <= rank and (settings.until is None or rank < settings.until)
            good &= settings.min_score is None or s >= settings.min_score
            good &= settings.max_score is None or s <= settings.max_score
            good &= settings.margin is None or s < positive - settings.margin
            good &= settings.share is None or s < positive - abs(positive) * (1 - settings.share)
            if good:
                passing.append((documents.ids[d], s))
        found.append(passing)
    return found


def mined(folder: Path) -> dict[str, list[tuple[str, float]]]:
    return {
        row["query_id"]: list(zip(row["document_ids"], row["scores"], strict=True))
        for _, table in read_tables(folder) for row in table.to_pylist()
    }  # fmt: skip


CASES: list[dict[str, Any]] = [
    {"top_k": 10, "keep": 4}, {"top_k": 12, "skip": 3, "keep": 5}, {"top_k": 5, "skip": 2, "keep": 8},
    {"top_k": 100, "keep": 70}, {"top_k": 2, "skip": 5, "keep": 3}, {"top_k": 30, "skip": 2, "until": 7},
    {"top_k": 60, "min_score": -0.1, "max_score": 0.4}, {"top_k": 60, "margin": 0.2}, {"top_k": 60, "share": 0.9},
    {"top_k": 60, "margin": 0.1, "positive": "best"}, {"top_k": 60, "share": 0.5, "positive": "best", "skip": 1},
    {"top_k": 40, "skip": 1, "until": 30, "min_score": -0.3, "max_score": 0.7, "margin": 0.05, "share": 0.95},
]  # fmt: skip


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("kind", ["exact", "faiss"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_mining_equals_the_plain_definition(
    case: dict[str, Any], kind: str, within: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{MODULE}.SEARCHED", 16)
    monkeypatch.setattr(f"{MODULE}.TABLE", 500)
    ground, document_ND, query_QD = built(within, kind)
    settings = MineSettings(**{"keep": 60, **case})
    mine(tmp_path / "mined", ground, settings)
    found = mined(tmp_path / "mined")
    expected = plain(ground, document_ND, query_QD, settings, within)
    assert list(found) == [record.id for record in ground.records]
    assert sum(map(len, expected)) > 0 or case["top_k"] == 2
    for ours, theirs in zip(found.values(), expected, strict=True):
        assert [name for name, _ in ours] == [name for name, _ in theirs[: settings.keep]]
        np.testing.assert_allclose([s for _, s in ours], [s for _, s in theirs[: settings.keep]], atol=1e-6)
    audit = read_json(tmp_path / "mined" / "audit.json")
    assert audit["fell_to"]["kept"] == sum(len(some[: settings.keep]) for some in expected) == audit["negatives"]
    assert audit["fell_to"]["not_picked"] == sum(len(some[settings.keep :]) for some in expected)
    assert sum(audit["fell_to"].values()) == audit["hits"] == QUERIES * min(settings.top_k, 30 if within else 60)
    assert audit["queries_without_negatives"] == sum(not some for some in expected)


def test_a_random_sample_is_one_of_what_passes(tmp_path: Path) -> None:
    ground, document_ND, query_QD = built(queries=200)
    base = {"top_k": 60, "margin": 0.05, "keep": 5}
    passing = plain(ground, document_ND, query_QD, MineSettings(**base), within=False)
    drawn = {}
    for name, extra in {"a": {"seed": 1}, "again": {"seed": 1, "part_queries": 7}, "other": {"seed": 2}}.items():
        mine(tmp_path / name, ground, MineSettings(**base, pick="random", **extra))
        drawn[name] = mined(tmp_path / name)
    names = {name: {query: [hit for hit, _ in hits] for query, hits in some.items()} for name, some in drawn.items()}
    assert names["a"] == names["again"], "parts play no part in it (but in the last bit of a score)"
    assert names["a"] != names["other"]
    places = []
    for ours, theirs in zip(drawn["a"].values(), passing, strict=True):
        whole = [name for name, _ in theirs]
        at = [whole.index(name) for name, _ in ours]
        assert at == sorted(set(at)) and len(at) == min(5, len(whole)), "distinct, and best first"
        places += [place / (len(whole) - 1) for place in at if len(whole) > 20]
    assert 0.45 < np.mean(places) < 0.55, "the top is not preferred"


@pytest.mark.parametrize("kind", ["exact", "faiss"])
def test_no_limit_on_hits(kind: str, tmp_path: Path) -> None:
    """More than 2,048 hits, and more than there are documents."""
    count = 3000
    ids = [f"d{n:04d}" for n in range(count)]
    documents = Documents(ids, ids, ["en"] * count, [""] * count)
    records = [Record(f"q{n}", f"a{n}", "en", "", {f"d{n:04d}": 1.0}) for n in range(3)]
    document_ND, query_QD = unit_vectors(count, 8), unit_vectors(3, 8, seed=1)
    ground = ground_of(documents, records, document_ND, query_QD, kind=kind)
    for top_k in (2500, 5000):
        mine(tmp_path / str(top_k), ground, MineSettings(top_k=top_k, keep=5000))
        for number, found in enumerate(mined(tmp_path / str(top_k)).values()):
            score_N = document_ND.astype(np.float64) @ query_QD[number]
            expected = [documents.ids[row] for row in np.argsort(-score_N)[:top_k] if row != number]
            assert len(found) == len(expected) >= min(top_k, count) - 1
            assert sum(a != b for (a, _), b in zip(found, expected, strict=True)) <= 4, "but for near ties"


def test_blocks_stay_small_however_many_hits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{MODULE}.HITS", 100)
    ground, _, _ = built()
    search, sizes = ground.index.search, []

    def watched(query_QD: np.ndarray, k: int, partition_Q: Any = None) -> Any:
        sizes.append(len(query_QD) * k)
        return search(query_QD, k, partition_Q)

    monkeypatch.setattr(ground.index, "search", watched)
    mine(tmp_path / "mined", ground, MineSettings(top_k=9))
    assert max(sizes) == 99 and sum(sizes) == QUERIES * 9


# ------------------------------------------------------------------------------------- resumed, shared, read again


class StopAt:
    """Asked before every block; says yes the n-th time."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


SETTINGS = MineSettings(top_k=20, keep=4, part_queries=10)


def test_what_was_finished_is_used_again(tmp_path: Path) -> None:
    ground, _, _ = built()
    mine(tmp_path / "whole", ground, SETTINGS)
    folder, partial = tmp_path / "mined", tmp_path / "mined.partial"
    with pytest.raises(StoppedError, match="the same command goes on"):
        mine(folder, ground, SETTINGS, stop=StopAt(4))
    assert sorted(path.name for path in partial.glob("*.parquet")) == [f"part-0000{n}.parquet" for n in range(3)]
    assert not folder.exists()
    before = {path.name: path.stat().st_mtime_ns for path in partial.iterdir()}
    (partial / "part-00003.parquet").write_bytes(b"half")  # killed before its entry was written
    (partial / "part-00001.parquet").write_bytes(b"damaged")
    (partial / ".part-00004.json.77.tmp").write_bytes(b"")
    with pytest.raises(StoppedError):
        mine(folder, ground, SETTINGS, stop=StopAt(2))
    after = {path.name: path.stat().st_mtime_ns for path in partial.iterdir()}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"part-00001.parquet", "part-00001.json"}, "one damaged part is mined again"
    mine(folder, ground, SETTINGS)
    assert folder_sha256(folder) == folder_sha256(tmp_path / "whole") and not partial.exists()
    mine(folder, ground, SETTINGS, stop=lambda: pytest.fail("nothing is left to do"))


def test_parts_of_something_else_are_not_used(tmp_path: Path) -> None:
    ground, document_ND, query_QD = built()
    others = [
        (ground, SETTINGS.model_copy(update={"skip": 1})),
        (ground_of(ground.documents, ground.records[::-1], document_ND, query_QD), SETTINGS),
        (Ground(**{**{name: getattr(ground, name) for name in ("documents", "records", "index", "query_vectors",
                   "document_vectors", "within_language")}, "made_from": {"test": 2}}), SETTINGS),
    ]  # fmt: skip
    mine(tmp_path / "expected", ground, SETTINGS)
    for number, (other, settings) in enumerate(others):
        folder = tmp_path / str(number)
        with pytest.raises(StoppedError):
            mine(folder, other, settings, stop=StopAt(5))
        mine(folder, ground, SETTINGS)
        assert folder_sha256(folder) == folder_sha256(tmp_path / "expected")
    mine(folder, ground, SETTINGS.model_copy(update={"skip": 1}))  # and a finished folder is replaced
    assert folder_sha256(folder) != folder_sha256(tmp_path / "expected")


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_processes_share_the_parts(processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here one after the other; tests/pipeline/test_two_processes.py has real ones."""
    ground, _, _ = built()
    mine(tmp_path / "one", ground, SETTINGS)
    monkeypatch.setattr(f"{MODULE}.world_size", lambda: processes)
    monkeypatch.setattr(f"{MODULE}.wait_for_all", lambda: None)
    for number in reversed(range(processes)):
        monkeypatch.setattr(f"{MODULE}.rank", lambda number=number: number)
        mine(tmp_path / "several", ground, SETTINGS)
        if number:
            written = {int(path.stem[-5:]) for path in (tmp_path / "several.partial").glob("*.parquet")}
            assert written == {at for at in range(5) for by in range(number, processes) if at % processes == by}
    assert folder_sha256(tmp_path / "several") == folder_sha256(tmp_path / "one")


def test_what_was_mined_is_read_again(tmp_path: Path) -> None:
    ground, _, _ = built()
    folder = tmp_path / "mined"
    mine(folder, ground, MineSettings(top_k=30, keep=4, margin=0.0, part_queries=10))
    found = mined(folder)
    row = {name: 100 - at for at, name in enumerate(ground.documents.ids)}  # the rows of today
    ids = ["q33", max(found, key=lambda name: len(found[name])), "q40"]
    row_QM, score_QM = load_mined(folder, ids, row)
    longest = max(len(found[name]) for name in ids)
    assert row_QM.shape == score_QM.shape and longest <= row_QM.shape[1] <= 4
    for name, row_M, score_M in zip(ids, row_QM, score_QM, strict=True):
        count = len(found[name])
        assert row_M.tolist() == [row[d] for d, _ in found[name]] + [-1] * (len(row_M) - count)
        np.testing.assert_array_equal(score_M[:count], np.float32([s for _, s in found[name]]))
        assert np.isneginf(score_M[count:]).all()
    told = r"1 queries are not in it[\s\S]*'q9x'[\s\S]*documents in it are unknown"
    with pytest.raises(StaleArtefactError, match=told):
        load_mined(folder, [ids[1], "q9x"], {})
    shutil.copy(folder / "part-00001.parquet", folder / "part-00002.parquet")
    with pytest.raises(StaleArtefactError, match="part-00002"):
        load_mined(folder, ids, row)
    (folder / "part-00002.parquet").unlink()
    with pytest.raises(StaleArtefactError, match="part-00002"):
        load_mined(folder, ids, row)


def test_what_earlier_versions_mined_is_read(tmp_path: Path) -> None:
    lists = {"query_id": ["q1", "q2"], "document_ids": [["a", "b"], []], "scores": [[0.5, 0.25], []]}
    types = {"query_id": pa.string(), "document_ids": pa.list_(pa.string()), "scores": pa.list_(pa.float32())}
    pq.write_table(pa.table(lists, pa.schema(types)), tmp_path / "mined.parquet")
    row_QM, score_QM = load_mined(tmp_path, ["q2", "q1"], {"a": 7, "b": 3})
    assert row_QM.tolist() == [[-1, -1], [7, 3]] and score_QM[1].tolist() == [0.5, 0.25]


def test_nothing_mined_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no mined negatives"):
        load_mined(tmp_path, [], {})
    (tmp_path / "manifest.json").write_text('{"schema": 9}')
    with pytest.raises(StaleArtefactError, match="not the manifest"):
        load_mined(tmp_path, [], {})
    (tmp_path / "mined.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="damaged"):
        load_mined(tmp_path, [], {})


def test_the_table_s_columns(tmp_path: Path) -> None:
    """Names and order are what others read."""
    ground, document_ND, query_QD = built()
    mine(tmp_path / "mined", ground, SETTINGS)
    table = pq.read_table(tmp_path / "mined" / "part-00000.parquet")
    assert table.column_names == ["query_id", "document_ids", "scores", "positive_scores"]
    rows = [ground.documents.row[name] for name in ground.records[0].positives]
    np.testing.assert_allclose(table["positive_scores"][0].as_py(), document_ND[rows] @ query_QD[0], atol=1e-6)
    told = json.loads((tmp_path / "mined" / "manifest.json").read_text())
    assert [part["queries"] for part in told["parts"]] == [10, 10, 10, 10, 1]
