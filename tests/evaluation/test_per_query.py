"""What one evaluation looks like on disk, and what happens when it is damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from builders.evaluations import per_query

from harness.evaluation.per_query import MANIFEST, TABLE, VECTORS, PerQuery, load_query_vectors
from harness.runtime.errors import InputError, StaleArtefactError
from harness.runtime.process import read_json, write_json


def example() -> PerQuery:
    stored = per_query(["de", "zh", "de"], ["😀", "b\n", ""], {"P@1": [1, 0, 0.5], "nDCG@10": [0.25, 1, 0]})
    stored.ids[1] = "q\t✓"
    stored.hits[:] = [["d1", "d2"], ["d2"], []]
    stored.scores = np.array([[0.5, 0.25], [0.5, -np.inf], [-np.inf, -np.inf]], np.float32)
    stored.weights = np.array([1.0, 2.5, 0.0])
    return stored


def test_query_vectors_come_with_the_table(tmp_path: Path) -> None:
    query_QD = np.arange(6, dtype=np.float32).reshape(3, 2)
    example().save(tmp_path / "a", {}, query_QD)
    np.testing.assert_array_equal(load_query_vectors(tmp_path / "a"), query_QD)
    example().save(tmp_path / "b", {})
    with pytest.raises(InputError, match=r"query_vectors\.npy: no such file"):
        load_query_vectors(tmp_path / "b")
    content = bytearray((tmp_path / "a" / VECTORS).read_bytes())
    content[-1] ^= 1
    (tmp_path / "a" / VECTORS).write_bytes(content)
    with pytest.raises(StaleArtefactError, match="not the one that its manifest describes"):
        load_query_vectors(tmp_path / "a")


def test_round_trip(tmp_path: Path) -> None:
    folder = tmp_path / "teacher" / "test"
    stored = example()
    stored.save(folder, {"space": "abc"})
    loaded = PerQuery.load(folder)
    for name in ("ids", "languages", "groups", "hits"):
        assert getattr(loaded, name) == getattr(stored, name)
    np.testing.assert_array_equal(loaded.scores, stored.scores)
    np.testing.assert_array_equal(loaded.weights, stored.weights)
    assert loaded.scores.dtype == np.float32
    for mine, theirs in ((stored.metrics, loaded.metrics), (stored.agreement, loaded.agreement)):
        assert list(mine) == list(theirs)
        for name in mine:
            np.testing.assert_array_equal(mine[name], theirs[name])
    manifest = read_json(folder / MANIFEST)
    assert manifest["space"] == "abc" and manifest["queries"] == 3 and manifest["metrics"] == ["P@1", "nDCG@10"]
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, TABLE]


def test_the_table_is_plain_parquet(tmp_path: Path) -> None:
    example().save(tmp_path / "set", {})
    rows = parquet.read_table(tmp_path / "set" / TABLE).to_pylist()
    assert rows[1]["id"] == "q\t✓" and rows[1]["lang"] == "zh" and rows[1]["hits"] == ["d2"] and rows[0]["P@1"] == 1.0


def test_numbers_alone(tmp_path: Path) -> None:
    example().save(tmp_path / "set", {})
    loaded = PerQuery.load(tmp_path / "set", hits=False)
    assert loaded.hits == [[], [], []] and loaded.scores.shape == (3, 0)
    assert loaded.metrics["P@1"].tolist() == [1, 0, 0.5]


def test_saved_twice_is_replaced(tmp_path: Path) -> None:
    example().save(tmp_path / "set", {})
    replace(example(), agreement={}).save(tmp_path / "set", {})
    assert PerQuery.load(tmp_path / "set").agreement == {}
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("damage", ["bytes", "manifest", "no table", "nothing"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "set"
    if damage != "nothing":
        example().save(folder, {})
    if damage == "bytes":
        content = bytearray((folder / TABLE).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / TABLE).write_bytes(content)
    elif damage == "manifest":
        write_json(folder / MANIFEST, {})
    elif damage == "no table":
        (folder / TABLE).unlink()
    with pytest.raises(InputError, match=str(folder)):
        PerQuery.load(folder)


def test_columns_of_unequal_length_are_our_mistake() -> None:
    with pytest.raises(AssertionError, match="3 queries, but groups has 2"):
        replace(example(), groups=["a", "b"])
