"""Atomic writes, hashes and locks: what a reader finds after an exception, a kill, or beside another process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.runtime.errors import DiskError, InputError, Problem
from harness.runtime.process import (
    atomic_file,
    atomic_folder,
    file_sha256,
    fingerprint,
    folder_lock,
    folder_sha256,
    is_main_process,
    launched_processes,
    progress,
    read_json,
    refuse_file_in_the_way,
    remove_folder,
    remove_leftovers,
    write_json,
)

ROOT = Path(__file__).parents[2]


@contextmanager
def child(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Another process that runs ``code`` and prints a line when it is where the test wants it; killed in the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------------- atomic writes


def test_a_file_in_the_way_is_told_and_not_masked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a", tmp_path / "file" / "b" / "c"):
        with pytest.raises(OSError, match="file") as caught, atomic_file(path):
            pass
        assert caught.value.__context__ is None and ".tmp" not in str(caught.value), "the first error, not a later one"
        with pytest.raises(InputError, match=r"--trec(.|\n)*got: .*file\n"):
            refuse_file_in_the_way(path, "--trec")
    refuse_file_in_the_way(tmp_path / "new" / "deeper", "--trec")
    refuse_file_in_the_way(Path("."), "--trec")


def test_a_file_appears_whole_with_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    with atomic_file(path, "w") as stream:
        stream.write("grün")
        assert not path.exists()
    assert path.read_bytes() == "grün".encode()
    assert names(path.parent) == ["b.txt"]


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as stream:
        stream.write(b"new, but not the end of it")
        stream.flush()
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_an_exception_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "student"
    with atomic_folder(path) as folder:
        (folder / "config.json").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_folder(path) as folder:
        (folder / "config.json").write_text("new")
        raise ZeroDivisionError
    assert (path / "config.json").read_text() == "old"
    assert names(tmp_path) == ["student"]


def test_a_folder_replaces_the_old_one_entirely(tmp_path: Path) -> None:
    path = tmp_path / "vectors" / "documents"
    for name in ("first", "second"):
        with atomic_folder(path) as folder:
            (folder / name).touch()
    assert names(path) == ["second"]
    assert names(path.parent) == ["documents"]
    assert path.stat().st_mode & 0o777 == 0o755


def test_a_kill_leaves_the_old_content_and_leftovers_can_be_removed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    code = (
        "import sys, time\nfrom harness.runtime.process import atomic_file, atomic_folder\n"
        "with atomic_file(sys.argv[1] + '/a.txt', 'w') as stream, atomic_folder(sys.argv[1] + '/b') as folder:\n"
        "    stream.write('new'); stream.flush(); (folder / 'part').touch()\n"
        "    print('ready', flush=True); time.sleep(60)"
    )
    with child(code, tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert not (tmp_path / "b").exists()
    assert len(names(tmp_path)) == 3  # the test would be empty if nothing had been left
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["a.txt"]


def test_what_was_only_moved_aside_gets_its_name_back(tmp_path: Path) -> None:
    """A kill between the two renames of a folder that takes another's place."""
    for name in ("best", ".best.77.old.tmp", ".other.78.old.tmp", ".gone.79.gone.tmp"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "content").write_text(name)
    remove_leftovers(tmp_path)
    assert names(tmp_path / "run") == ["best", "other"]
    assert (tmp_path / "run" / "best" / "content").read_text() == "best"


def test_a_folder_leaves_its_name_before_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-1" / "weights").touch()
    monkeypatch.setattr("shutil.rmtree", lambda path, **options: None)  # killed before the first file is gone
    remove_folder(tmp_path / "step-1")
    remove_folder(tmp_path / "absent")
    assert [name.startswith(".step-1.") for name in names(tmp_path)] == [True]


# ---------------------------------------------------------------------------------------------------- a full disk

REFUSED = """
import resource, shutil, sys
from pathlib import Path
import faiss, numpy as np, pyarrow as pa, pyarrow.parquet as parquet, torch
from safetensors.torch import save_file
from harness.runtime.errors import DiskError
from harness.runtime.process import atomic_file, atomic_folder, write_json

root = Path(sys.argv[1])
big = np.random.default_rng(0).random(200_000)
(root / "source").mkdir()
(root / "source" / "file").write_bytes(big.tobytes())

def through_faiss(folder):
    index = faiss.IndexFlatIP(100)
    index.add(big.reshape(-1, 100).astype(np.float32))
    with atomic_file(folder / "index") as stream:
        faiss.write_index(index, faiss.PyCallbackIOWriter(stream.write))

def through_numpy(folder):
    with atomic_file(folder / "array.npy") as stream:
        np.save(stream, big)

def through_text(folder):
    with atomic_file(folder / "text", "w") as stream:
        stream.write("x" * 1_000_000)

ways = {
    "faiss": through_faiss, "numpy": through_numpy, "text": through_text,
    "json": lambda folder: write_json(folder / "a.json", "x" * 1_000_000),
    "safetensors": lambda folder: save_file({"a": torch.from_numpy(big)}, folder / "model.safetensors"),
    "arrow": lambda folder: parquet.write_table(pa.table({"a": big}), folder / "table.parquet"),
    "copytree": lambda folder: shutil.copytree(root / "source", folder, dirs_exist_ok=True),
}
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for name, write in ways.items():
    (root / name).mkdir()
    (root / name / "old").touch()
    try:
        with atomic_folder(root / name, size=1_600_000) as folder:
            write(folder)
    except DiskError as error:
        told = str(error)
        whole = all(word in told for word in (str(root / name), "File too large", "needed: 1,600,000 bytes", "free: "))
        print(name, "told" if whole else told, sorted(path.name for path in (root / name).iterdir()))
print(sorted(path.name for path in root.iterdir()))
"""


def test_a_refusal_is_told_whatever_library_met_it(tmp_path: Path) -> None:
    """Each puts it in words of its own; the old content stays, and nothing of the new."""
    done = subprocess.run([sys.executable, "-c", REFUSED, tmp_path], capture_output=True, text=True, cwd=ROOT)
    ways = ["faiss", "numpy", "text", "json", "safetensors", "arrow", "copytree"]
    assert done.stdout.splitlines() == [*(f"{name} told ['old']" for name in ways), str(sorted([*ways, "source"]))]


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    for error in (FileNotFoundError(2, "No such file"), ValueError("step 28"), InputError(Problem("wrong"))):
        with pytest.raises(type(error)), atomic_file(tmp_path / "a"):
            raise error


def test_a_refusal_without_a_known_size_tells_what_was_begun(tmp_path: Path) -> None:
    told = r"a: can't be written.*\n.*more than the 3 bytes written so far\n.*free: "
    with pytest.raises(DiskError, match=told) as got, atomic_file(tmp_path / "a") as stream:
        stream.write(b"abc")
        stream.flush()
        raise OSError(28, "No space left on device")
    assert got.value.number == 28 and names(tmp_path) == []


# ---------------------------------------------------------------------------------------------------------- JSON


def test_json_comes_back_equal_and_is_readable_by_people(tmp_path: Path) -> None:
    value = {"name": "ein lachendes Gesicht", "rows": [1, 2.5, None, True]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert "lachendes" in (tmp_path / "a.json").read_text()


def test_nan_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", [0.5, float("nan")])
    assert names(tmp_path) == ["a.json"]
    assert read_json(tmp_path / "a.json") == 1


@pytest.mark.parametrize("content", [b'{"rows": 12', b"", b"\xff\xfe\x00", b"{'a': 1}"])
def test_a_damaged_json_file_is_an_input_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not readable as JSON") as caught:
        read_json(path)
    assert caught.value.problems[0].where == str(path)


def test_a_missing_json_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "manifest.json")


# -------------------------------------------------------------------------------------------------- fingerprints


def test_a_fingerprint_depends_on_content_and_not_on_order_or_process() -> None:
    value = {"b": [1, 2.5, None], "a": {"ü": True}}
    assert fingerprint(value) == fingerprint({"a": {"ü": True}, "b": [1, 2.5, None]})
    # the sha256 of the canonical text, so any other program gets the same one
    assert fingerprint({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
    different = [
        value,
        {"b": [1, 2.5]},
        {"b": [2.5, 1, None], "a": {"ü": True}},
        {"a": "1"},
        {"a": 1},
        [],
        {},
        None,
        "",
    ]
    assert len({fingerprint(each) for each in different}) == len(different)
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint(float("nan"))


def test_file_sha256_is_the_published_one(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_folders_hash_sees_names_and_contents_and_no_hidden_file(tmp_path: Path) -> None:
    def build(name: str, files: dict[str, str]) -> str:
        for file, text in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(text)
        return folder_sha256(tmp_path / name)

    plain = build("plain", {"a": "1", "b/c": "2"})
    assert plain == build("same", {"b/c": "2", "a": "1", ".lock": "123"})
    others = [{"a": "1", "b/c": "3"}, {"a": "1", "b/d": "2"}, {"a": "1", "c": "2"}, {"a": "1"}, {"a": "2", "b/c": "1"}]
    assert len({plain, *(build(f"other{i}", files) for i, files in enumerate(others))}) == len(others) + 1


# ---------------------------------------------------------------------------------------------------------- locks

HOLDER = """
import sys, time, pathlib
from harness.runtime.process import folder_lock
with folder_lock(pathlib.Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_one_processs_at_a_time_and_free_after_a_kill(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with child(HOLDER, folder) as process:
        with pytest.raises(InputError, match="another run works in this folder") as caught, folder_lock(folder):
            pytest.fail("the lock was given twice")
        assert caught.value.problems[0].got == f"process {process.pid}"
        process.kill()
        process.wait()
        with folder_lock(folder):
            assert (folder / ".lock").read_text() == str(os.getpid())
    with folder_lock(folder):
        pass


def test_an_exception_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), folder_lock(tmp_path):
        raise ZeroDivisionError
    with folder_lock(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't be written"), folder_lock(tmp_path / "file" / "run"):
        pass


# ------------------------------------------------------------------------------------------------------- progress


def test_progress_yields_everything_and_is_silent_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress([1, 2, 3], what="encode")) == [1, 2, 3]
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def _launch(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "processes", "main"),
    [
        ({}, 1, True),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, 2, True),
        ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, 2, False),
        ({"RANK": "1", "WORLD_SIZE": "2"}, 1, True),  # a scheduler's pod: no launcher started us
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "abc"}, 1, True),
    ],
)
def test_what_a_launcher_started(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], processes: int, main: bool
) -> None:
    _launch(monkeypatch, **variables)
    assert (launched_processes(), is_main_process()) == (processes, main)


def test_progress_is_silent_on_other_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    _launch(monkeypatch, RANK="1", LOCAL_RANK="1", WORLD_SIZE="2")
    assert progress([1], what="encode").disable is True
    monkeypatch.setenv("RANK", "0")
    assert not progress([1], what="encode").disable
