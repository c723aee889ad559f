from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from builders.vectors import CountingEncode, toy_encode, toy_rows, toy_space

from harness.runtime.errors import InputError, StaleArtefactError
from harness.vectors import writer
from harness.vectors.index import VectorIndex
from harness.vectors.store import VectorStore
from harness.vectors.writer import stage_update, update_store, write_store

IDS, TEXTS = toy_rows(10)


def test_the_same_content_is_returned_without_encoding_and_anything_else_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    first = write_store(folder, IDS, TEXTS, toy_encode, toy_space(), shard_rows=4)

    def again(**changes: object) -> tuple[VectorStore, int]:
        encode = CountingEncode()
        given = {"ids": IDS, "texts": TEXTS, "space": toy_space(), "shard_rows": 4, **changes}
        return write_store(folder, encode=encode, **given), len(encode.seen)  # type: ignore[arg-type]

    assert (again()[0].sha256, again()[1]) == (first.sha256, 0)
    assert again(shard_rows=3)[1] == 0  # the same rows, however they are sharded
    changes = [{"texts": ["new", *TEXTS[1:]]}, {"space": toy_space("another")}, {"dtype": "float16"}, {"key": "long"}]
    for change in changes:
        store, encoded = again(**change)
        assert encoded == 10 and store.sha256 != first.sha256
        assert VectorStore.open(folder, verify=True).sha256 == store.sha256
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_damaged_store_is_written_anew_and_not_reused(tmp_path: Path) -> None:
    """Of the right size and time, found only by reading it: what claims to be done may not be trusted."""
    ids, texts = toy_rows(20)
    store = write_store(tmp_path / "store", ids, texts, toy_encode, toy_space(), shard_rows=8)
    expected_ND, path = store.vectors(), tmp_path / "store" / "shard-00001.npy"
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = write_store(tmp_path / "store", ids, texts, toy_encode, toy_space(), shard_rows=8)
    np.testing.assert_array_equal(again.vectors(), expected_ND)
    VectorStore.open(tmp_path / "store", verify=True)


def test_encode_sees_windows_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "WINDOW", 3)
    sizes = []

    def encode(texts: list[str]) -> np.ndarray:
        sizes.append(len(texts))
        return toy_encode(texts)

    store = write_store(tmp_path / "store", IDS, TEXTS, encode, toy_space(), shard_rows=8)
    assert sizes == [3, 3, 2, 2]
    np.testing.assert_array_equal(store.vectors(), toy_encode(TEXTS))


def test_finished_shards_are_used_again_after_a_kill_and_only_if_nothing_changed(tmp_path: Path) -> None:
    folder, begun = tmp_path / "store", tmp_path / "store.partial"
    with pytest.raises(KeyboardInterrupt):
        write_store(folder, IDS, TEXTS, CountingEncode("text 9"), toy_space(), shard_rows=4)
    assert not folder.exists() and not (begun / "manifest.json").exists()
    flipped = bytearray((begun / "shard-00001.npy").read_bytes())
    flipped[-1] ^= 1
    (begun / "shard-00001.npy").write_bytes(bytes(flipped))  # the disk lost a bit meanwhile
    (begun / "shard-00007.npy").write_bytes(b"of a longer corpus")
    (begun / ".shard-00002.npy.1.tmp").write_bytes(b"of the killed process")
    encode = CountingEncode()
    store = write_store(folder, IDS, TEXTS, encode, toy_space(), shard_rows=4)
    assert encode.seen == TEXTS[4:]
    assert not begun.exists() and len(list(folder.iterdir())) == 3 * 4 + 1
    np.testing.assert_array_equal(VectorStore.open(folder, verify=True).vectors(), toy_encode(TEXTS))
    for changes in ({"space": toy_space("another")}, {"key": "long"}, {"dtype": "float16"}):
        given = {"space": toy_space(), **changes}
        with pytest.raises(KeyboardInterrupt):
            write_store(folder, IDS, TEXTS, CountingEncode("text 9"), shard_rows=4, **given)  # type: ignore[arg-type]
        assert VectorStore.open(folder).sha256 == store.sha256  # the old one stays until the new one is whole
    encode = CountingEncode()
    write_store(folder, IDS, [text + "!" for text in TEXTS], encode, toy_space(), shard_rows=4)
    assert len(encode.seen) == 10


def test_wrong_rows_are_refused_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError) as caught:
        write_store(tmp_path / "mine", ["a", "a"], ["x"], toy_encode, toy_space())
    message = str(caught.value)
    assert len(caught.value.problems) == 3
    assert "2 ids, 1 texts" in message and "'a'" in message and "no vector store" in message
    assert (tmp_path / "mine" / "thesis.txt").exists()
    with pytest.raises(InputError, match="nothing to embed"):
        write_store(tmp_path / "store", [], [], toy_encode, toy_space())


@pytest.mark.parametrize(("value", "dtype", "says"), [
    (np.nan, "float32", "1 vectors are not finite"), (np.inf, "float32", "1 vectors are not finite"),
    (1e6, "float16", r"not finite in float16[\s\S]*embed.dtype: float32"),
    (np.nan, "bfloat16", "1 vectors are not finite"), (-np.inf, "bfloat16", "1 vectors are not finite"),
    (3.4e38, "bfloat16", r"not finite in bfloat16[\s\S]*embed.dtype: float32"),
    (np.nan, "int8", "1 vectors are not finite"), (np.inf, "int8", "1 vectors are not finite"),
    (3.4028235e38, "int8", r"not finite in int8[\s\S]*embed.dtype: float32"),
])  # fmt: skip
def test_vectors_that_are_not_finite_are_refused_naming_ids(
    tmp_path: Path, value: float, dtype: str, says: str
) -> None:
    def encode(texts: list[str]) -> np.ndarray:
        vector_ND = toy_encode(texts)
        vector_ND[[text == "text 6" for text in texts], 2] = value
        return vector_ND

    with pytest.raises(InputError, match=says) as caught:
        write_store(tmp_path / "store", IDS, TEXTS, encode, toy_space(), dtype=dtype, shard_rows=4)
    assert "'d6'" in str(caught.value) and not (tmp_path / "store").exists()


def test_vectors_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\(10, 6\)[\s\S]*\(10, 7\)"):
        write_store(tmp_path / "store", IDS, TEXTS, toy_encode, toy_space(dimension=7))


# ------------------------------------------------------------------------------------------------------------ updates

NEW_IDS = ["d11", "d1", "d2", "d3", "d5", "d8", "d9", "d10"]  # d0 d4 d6 d7 are gone, d10 d11 new
NEW_TEXTS = ["text 11", "text 1", "changed", "text 3", "text 5", "text 8", "changed too", "text 10"]


def test_an_update_encodes_only_what_changed_and_equals_a_rebuild(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    old = write_store(folder, IDS, TEXTS, toy_encode, toy_space(), shard_rows=4, dtype="float16")
    encode = CountingEncode()
    store = update_store(folder, NEW_IDS, NEW_TEXTS, encode, toy_space(), shard_rows=2)
    assert encode.seen == ["text 11", "changed", "changed too", "text 10"]
    assert store.ids == ["d1", "d3", "d11", "d2", "d5", "d8", "d9", "d10"]
    # of the second shard one row lived, and the third was small: their rows were copied to the new shards
    assert [(shard.number, shard.dead) for shard in store.manifest.shards] == [(0, (0, 2)), (3, ()), (4, ()), (5, ())]
    assert {path.name for path in folder.glob("shard-*.npy")} == {f"shard-0000{n}.npy" for n in (0, 3, 4, 5)}
    assert old.vectors().shape == (10, 6)  # who had the old store open still reads it
    rebuilt = write_store(tmp_path / "new", NEW_IDS, NEW_TEXTS, toy_encode, toy_space(), dtype="float16")
    np.testing.assert_array_equal(store.vectors(store.rows_of(NEW_IDS)), rebuilt.vectors())
    text_of = dict(zip(NEW_IDS, NEW_TEXTS, strict=True))
    texts = [text_of[name] for name in store.ids]
    again = write_store(tmp_path / "again", store.ids, texts, toy_encode, toy_space(), dtype="float16")
    assert store.sha256 == again.sha256 != rebuilt.sha256  # equal rows in equal order, however they came there
    assert len(list(VectorStore.open(folder, verify=True).blocks(3))) == 3
    hits = [VectorIndex.build(one.vectors(), one.ids, kind="exact") for one in (store, rebuilt)]
    names = [[[index.ids[row] for row in rows] for rows in index.search(toy_encode(TEXTS), 8)[1]] for index in hits]
    assert names[0] == names[1]


def test_updates_follow_one_another_and_an_empty_one_touches_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    write_store(folder, IDS, TEXTS, toy_encode, toy_space(), shard_rows=4)
    before = (folder / "manifest.json").stat().st_mtime_ns
    update_store(folder, IDS[::-1], TEXTS[::-1], CountingEncode("text 0"), toy_space())
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    update_store(folder, NEW_IDS, NEW_TEXTS, toy_encode, toy_space())
    encode = CountingEncode()
    store = update_store(folder, IDS, TEXTS, encode, toy_space())
    assert sorted(encode.seen) == sorted(f"text {n}" for n in (0, 2, 4, 6, 7, 9))
    np.testing.assert_array_equal(store.vectors(store.rows_of(IDS)), toy_encode(TEXTS))
    store = update_store(folder, ["d3"], ["text 3"], CountingEncode(), toy_space())  # nothing new: tombstones alone
    assert VectorStore.open(folder, verify=True).ids == store.ids == ["d3"]


def test_an_interrupted_update_leaves_the_old_store_and_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    old = write_store(folder, IDS, TEXTS, toy_encode, toy_space(), shard_rows=4)
    with pytest.raises(KeyboardInterrupt):
        update_store(folder, NEW_IDS, NEW_TEXTS, CountingEncode("text 10"), toy_space(), shard_rows=3)
    assert VectorStore.open(folder, verify=True).sha256 == old.sha256
    encode = CountingEncode()
    update_store(folder, NEW_IDS, NEW_TEXTS, encode, toy_space(), shard_rows=3)
    assert encode.seen == ["changed too", "text 10"]  # the shard that was not finished
    with pytest.raises(KeyboardInterrupt):
        update_store(folder, IDS, TEXTS, CountingEncode("text 9"), toy_space(), shard_rows=1)
    update_store(folder, [*NEW_IDS, "e"], [*NEW_TEXTS, "another"], toy_encode, toy_space(), shard_rows=1)
    assert len(list(folder.iterdir())) == 4 * 4 + 1  # shards of the update that was given up are gone


def test_many_updates_leave_few_dead_rows_and_few_shards(tmp_path: Path) -> None:
    """And copy what they move, to the bit: nothing that stays is ever encoded again."""
    folder, count, random = tmp_path / "store", 64, np.random.default_rng(0)
    texts = {f"d{number}": f"text {number}" for number in range(count)}
    write_store(folder, list(texts), list(texts.values()), toy_encode, toy_space(), shard_rows=16)
    for turn in range(40):
        changed = [f"d{number}" for number in random.choice(count, size=3, replace=False)]
        texts |= {name: f"text {name} {turn}" for name in changed}
        encode = CountingEncode()
        store = update_store(folder, list(texts), list(texts.values()), encode, toy_space(), shard_rows=16)
        assert sorted(encode.seen) == sorted(texts[name] for name in changed)
        shards = store.manifest.shards
        assert sum(shard.rows for shard in shards) <= 2 * len(store) and len(shards) <= 4 + 8 + 4
    np.testing.assert_array_equal(store.vectors(store.rows_of(list(texts))), toy_encode(list(texts.values())))
    assert VectorStore.open(folder, verify=True).sha256 == store.sha256
    assert len(list(folder.iterdir())) == 4 * len(shards) + 1


def test_a_staged_update_is_read_before_it_is_visible(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    old = write_store(folder, IDS, TEXTS, toy_encode, toy_space(), shard_rows=4)
    staged = stage_update(folder, NEW_IDS, NEW_TEXTS, toy_encode, toy_space(), shard_rows=4)
    assert (staged.stay, staged.encoded, staged.leave) == (4, 4, 6)
    assert VectorStore.open(folder, verify=True).sha256 == old.sha256
    found = staged.store()
    np.testing.assert_array_equal(found.vectors(found.rows_of(NEW_IDS)), toy_encode(NEW_TEXTS))
    assert staged.commit().sha256 == found.sha256 == VectorStore.open(folder, verify=True).sha256


def test_an_update_of_another_space_or_key_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    write_store(folder, IDS, TEXTS, toy_encode, toy_space(), key="max_length 8")
    with pytest.raises(StaleArtefactError, match="teacher: 'teacher' in"):
        update_store(folder, IDS, TEXTS, toy_encode, toy_space("another"), key="max_length 8")
    with pytest.raises(StaleArtefactError, match="max_length 8[\\s\\S]*max_length 9"):
        update_store(folder, IDS, TEXTS, toy_encode, toy_space(), key="max_length 9")
    with pytest.raises(InputError, match="no vector store"):
        update_store(tmp_path / "none", IDS, TEXTS, toy_encode, toy_space())


# -------------------------------------------------------------------------------------------------------------- kills


@pytest.fixture
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process, unlike a power cut, loses nothing that was written: these tests needn't wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def _killed_at(moment: int, work: Callable[[], object]) -> bool:
    """Run ``work`` in a child process that dies at its ``moment``-th look at the disk; whether it died."""
    child = os.fork()
    if child == 0:
        left = moment

        def dying(call: Callable[..., object]) -> Callable[..., object]:
            def wrapped(*args: object, **options: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(9)
                return call(*args, **options)

            return wrapped

        for name in ("replace", "fsync", "mkdir", "unlink", "rmdir"):
            setattr(os, name, dying(getattr(os, name)))
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9), "the work failed without being killed"
    return status == 9


@pytest.mark.usefixtures("_no_fsync")
def test_killed_anywhere_a_write_shows_a_whole_store_or_none_and_can_go_on(tmp_path: Path) -> None:
    new_ids, new_texts = toy_rows(4)

    def write(folder: Path) -> VectorStore:
        return write_store(folder, new_ids, new_texts, toy_encode, toy_space(), shard_rows=2)

    moments = 0
    while True:
        folder = tmp_path / f"at-{moments}" / "store"
        old = write_store(folder, ["a"], ["b"], toy_encode, toy_space())
        killed = _killed_at(moments, partial(write, folder))
        if folder.exists():
            found = VectorStore.open(folder, verify=True)
            assert found.ids in (old.ids, new_ids)
        else:  # only between the two renames, when the new store is whole beside it
            assert VectorStore.open(folder.with_name("store.partial"), verify=True).ids == new_ids
        np.testing.assert_array_equal(write(folder).vectors(), toy_encode(new_texts))
        assert not folder.with_name("store.partial").exists()
        if not killed:
            break
        moments += 1
    assert moments > 20


@pytest.mark.usefixtures("_no_fsync")
def test_killed_anywhere_an_update_shows_the_old_or_the_new_store_and_can_go_on(tmp_path: Path) -> None:
    def update(folder: Path) -> VectorStore:
        return update_store(folder, NEW_IDS, NEW_TEXTS, toy_encode, toy_space(), shard_rows=2)

    moments = 0
    while True:
        folder = tmp_path / f"at-{moments}"
        write_store(folder, IDS, TEXTS, toy_encode, toy_space(), shard_rows=4)
        killed = _killed_at(moments, partial(update, folder))
        found = VectorStore.open(folder, verify=True).ids
        assert found == IDS or sorted(found) == sorted(NEW_IDS)
        store = update(folder)
        np.testing.assert_array_equal(store.vectors(store.rows_of(NEW_IDS)), toy_encode(NEW_TEXTS))
        if not killed:
            break
        moments += 1
    assert moments > 20
