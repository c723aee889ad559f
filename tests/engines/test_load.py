"""``harness.load``: the fastest engine of a folder on this machine, remembered; damaged folders are refused by name."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders.deployable import TEXTS, exported, write_deployable

import harness
from harness.encoders.folder import open_encoder
from harness.engines import choice as choice_module
from harness.engines import load as load_module
from harness.engines.choice import Candidate, Choice, choose, race, thread_counts
from harness.engines.deployed import PROBE, read_onnx_manifest, seal
from harness.engines.load import QueryEncoder
from harness.engines.onnx_runtime import OnnxEngine
from harness.engines.torch_eager import TorchEngine
from harness.export.onnx import remove_onnx
from harness.export.student import export_student
from harness.runtime.errors import InputError, StaleArtefactError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As a run exports it: sealed, with ONNX files in fp32 and int8."""
    shutil.copytree(exported("bert").folder, tmp_path / "student", ignore=shutil.ignore_patterns("onnx"))
    export_student(tmp_path / "student", tmp_path / "deployed")
    shutil.copytree(exported("bert").folder / "onnx", tmp_path / "deployed" / "onnx")
    remove_onnx(tmp_path / "deployed", ["fp16", "int8-static"])
    return tmp_path / "deployed"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    import torch

    threads = torch.get_num_threads()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    torch.set_num_threads(threads)


def kept(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.json"))


def test_two_lines_give_the_students_vectors(folder: Path, cache: Path) -> None:
    encoder = harness.load(folder, exact=True)
    vector_ND = encoder.encode(TEXTS)
    assert vector_ND.dtype == np.float32 and vector_ND.shape == (len(TEXTS), encoder.dimension)
    np.testing.assert_allclose(vector_ND, TorchEngine(open_encoder(folder)).encode(TEXTS), atol=1e-5)
    assert encoder.choice.engine == "onnx"
    assert {name.split()[0] for name in encoder.choice.milliseconds} == {"onnx"}, "torch is not opened in vain"
    assert "torch" in encoder.choice.measured["left_out"] and "torch" in encoder.choice.why
    assert encoder.encode([]).shape == (0, encoder.dimension)
    assert len(kept(cache)) == 1


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the race would find on a machine of three cores; who took part in each."""
    times = {"torch": 3.0, "onnx": 2.0, "onnx-int8": 1.0}
    threads = {1: 1.0, 2: 0.5, 3: 0.7, 4: 0.9}
    asked: list[list[str]] = []

    def found(candidates: list[Candidate], texts: list[str]) -> Candidate:
        asked.append([one.label for one in candidates])
        for one in candidates:
            assert one.name == "torch" or one.engine.describe()["threads"] == one.threads
            one.blocks.append(times[one.name] * threads[one.threads])
        return min(candidates, key=lambda one: one.best)

    monkeypatch.setattr(choice_module, "available_cores", lambda: 3)
    monkeypatch.setattr(choice_module, "race", found)
    return asked


def test_the_fastest_is_taken_and_remembered(folder: Path, cache: Path, timed: list[list[str]]) -> None:
    first = harness.load(folder)
    assert (first.choice.engine, first.choice.threads) == ("onnx-int8", 2)
    assert first.engine.name == "onnx-int8" and first.engine.describe()["threads"] == 2
    assert timed == [["onnx 3", "onnx-int8 3"], ["onnx-int8 2", "onnx-int8 3"], ["onnx-int8 1", "onnx-int8 2"]]
    assert harness.load(folder).choice == first.choice and len(timed) == 3, "it was not measured again"
    assert harness.load(folder, exact=True).choice.engine == "onnx"  # another question
    for path, content in zip(kept(cache), ("{broken", '{"schema": 2, "engine": "abacus", "threads": 1}'), strict=True):
        path.write_text(content)
    again = harness.load(folder).choice
    assert (again.engine, again.threads, again.milliseconds) == ("onnx-int8", 2, first.choice.milliseconds)


def test_refresh_measures_again_and_keeps_the_new_choice(
    folder: Path, cache: Path, timed: list[list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="harness"):
        harness.load(folder)
    assert "onnx-int8 with 2 threads: 0.50 ms a query" in caplog.text, "what was chosen, and why"
    assert "onnx 3 1.40" in caplog.text and "torch: on a CPU slower" in caplog.text and "refresh=True" in caplog.text
    (path,) = kept(cache)
    told = json.loads(path.read_text())
    assert told["measured"]["when"] and told["measured"]["seconds"] >= 0 and "unsteady" in told["measured"]
    path.write_text(json.dumps({**told, "engine": "onnx", "threads": 3}))  # as a noisy measurement would have it
    count = len(timed)
    assert harness.load(folder).choice.engine == "onnx" and len(timed) == count
    assert harness.load(folder, refresh=True).choice.engine == "onnx-int8" and len(timed) > count
    assert harness.load(folder).choice.engine == "onnx-int8", "it is kept"


@pytest.mark.parametrize("what", ["versions", "cores", "cpu"])
def test_a_choice_of_another_machine_or_version_does_not_count(
    folder: Path, cache: Path, timed: list[list[str]], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    harness.load(folder)
    count = len(timed)
    if what == "versions":
        monkeypatch.setattr(load_module.metadata, "version", lambda name: "0.0.1")
    elif what == "cores":
        monkeypatch.setattr(load_module, "available_cores", lambda: 64)
    else:
        monkeypatch.setattr(load_module, "cpu_name", lambda: "another processor")
    harness.load(folder)
    assert len(timed) > count and len(kept(cache)) == 2


def test_without_the_exports_vectors_torch_is_asked(folder: Path, timed: list[list[str]]) -> None:
    """As earlier versions exported it."""
    path = folder / "onnx" / "harness.json"
    told = read_onnx_manifest(folder)
    assert told["probe"]["texts"] == list(PROBE)
    path.write_text(json.dumps(seal({name: told[name] for name in told if name not in ("probe", "sealed")})))
    harness.load(folder)
    assert timed[0] == ["torch 3", "onnx 3", "onnx-int8 3"]


def test_another_folder_is_measured_anew(folder: Path, cache: Path, tmp_path: Path) -> None:
    harness.load(folder)
    shutil.copytree(folder, tmp_path / "same")
    harness.load(tmp_path / "same")
    assert len(kept(cache)) == 1, "it is the files that count"
    shutil.rmtree(tmp_path / "same" / "onnx")
    harness.load(tmp_path / "same")
    assert len(kept(cache)) == 2


def test_folder_and_cache_may_be_read_only(folder: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.write_text("a file where the cache would be")  # root writes into read-only folders, too
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    with caplog.at_level(logging.INFO, logger="harness"):
        assert harness.load(folder).encode(["hat"]).shape[0] == 1
    assert "can't be kept" in caplog.text
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before


def test_named_engine_and_threads_measure_nothing(folder: Path, cache: Path) -> None:
    for name in ("torch", "onnx", "onnx-int8"):
        encoder = harness.load(folder, engine=name, threads=1)
        assert encoder.engine.name == name and encoder.engine.describe()["threads"] == 1
    assert not kept(cache)
    with pytest.raises(InputError, match="no such engine for this folder(.|\n)*got: onnx-fp16(.|\n)*onnx-int8"):
        harness.load(folder, engine="onnx-fp16")
    with pytest.raises(InputError, match="no such engine"):
        harness.load(folder, engine="abacus")


@pytest.mark.parametrize("threads", [0, -1, "x", 1.5, True, 100_000, np.int64(0)])
def test_what_is_no_number_of_threads_is_refused(threads: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="number of threads|more threads(.|\n)*a whole number from 1") as caught:
        harness.load(tmp_path / "nowhere", threads=threads)
    assert "no such model folder" in str(caught.value), "all at once"


def test_all_wrong_arguments_are_told_at_once(folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        harness.load(folder, engine="onnx-int8", exact=True, threads=500, queries="red shoes")
    told = [(problem.where, problem.what) for problem in caught.value.problems]
    assert told == [("threads", "more threads than this process may use cores"),
                    ("engine", "contradicts exact=True: this engine is not exact"),
                    ("queries", "not a list of texts")]  # fmt: skip
    assert all(problem.got and problem.allowed and problem.next for problem in caught.value.problems)
    with pytest.raises(InputError, match="no queries to time with"):
        harness.load(folder, queries=[])
    assert harness.load(folder, engine="onnx", exact=True, threads=np.int64(1)).choice.threads == 1


@pytest.mark.parametrize("texts", [None, "hat", b"hat", 3, [["hat"]], [b"hat"], ["hat", None], ["hat \ud800"]])
def test_what_is_no_list_of_texts_is_refused(texts: Any) -> None:
    encoder = QueryEncoder(Slow(), Choice("slow", 1, {}))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="encode: (not a|a text that is no)(.|\n)*a list of texts"):
        encoder.encode(texts)


def test_an_engine_with_wrong_vectors_is_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encode = OnnxEngine.encode

    def wrong(self: OnnxEngine, texts: list[str]) -> np.ndarray:
        vector_ND = encode(self, texts)
        return vector_ND[:, ::-1] if self.name == "onnx" else vector_ND

    monkeypatch.setattr(OnnxEngine, "encode", wrong)
    with caplog.at_level(logging.WARNING, logger="harness"):
        chosen = harness.load(folder, exact=True)
    assert chosen.choice.engine == "torch" and "onnx is left out: its vectors differ" in caplog.text


def test_what_was_chosen_opens_without_torch(folder: Path) -> None:
    """Serving starts in the time that ONNX Runtime takes; and importing the package imports nothing at all."""
    code = (
        "import sys, harness\n"
        "assert not {'numpy', 'torch', 'pydantic'} & set(sys.modules)\n"
        f"harness.load({str(folder)!r}, engine='onnx', threads=1).encode(['hat'])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_onnx_alone_is_enough(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert harness.load(folder).choice.engine.startswith("onnx")
    shutil.rmtree(folder / "onnx")
    with pytest.raises(InputError, match="no safetensors weights"):
        harness.load(folder)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("config_sentence_transformers.json", "config_sentence_transformers.json: not the file that was exported"),
        ("1_Pooling/config.json", "1_Pooling/config.json: not the file that was exported"),
        ("onnx/model_int8.onnx", "model_int8.onnx: not the file that was exported"),
        ("model.safetensors", "not the weights that"),
    ],
)
@pytest.mark.parametrize("onnx", [True, False])
def test_a_folder_edited_by_hand_is_refused(folder: Path, name: str, told: str, onnx: bool) -> None:
    if not onnx:
        shutil.rmtree(folder / "onnx")
        if name.startswith("onnx"):
            pytest.skip("nothing to edit")
        told = f"{name}: not the file that was exported"
    path = folder / name
    if path.suffix == ".json":
        path.write_text(json.dumps({**json.loads(path.read_text()), "prompts": {"query": "edited: "}}))
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
    with pytest.raises(StaleArtefactError, match=told):
        harness.load(folder)


def test_folders_that_cannot_be_deployed_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such model folder"):
        harness.load(tmp_path / "nothing")
    (folder / "tokenizer.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="adapter that is not merged(.|\n)*has no tokenizer"):
        harness.load(folder)


def test_a_run_saved_folder_with_swapped_weights_is_refused(tmp_path: Path) -> None:
    """It was never exported: only the weights' hash is known."""
    write_deployable("bert", tmp_path / "one")
    assert harness.load(tmp_path / "one", engine="torch", threads=1).encode(["hat"]).shape == (1, 24)
    content = bytearray((tmp_path / "one" / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "one" / "model.safetensors").write_bytes(bytes(content))
    with pytest.raises(StaleArtefactError, match="not the weights that were saved here"):
        harness.load(tmp_path / "one")
    (tmp_path / "one" / "harness.json").unlink()  # somebody else's folder: nothing to compare with
    assert harness.load(tmp_path / "one", engine="torch", threads=1).encode(["hat"]).shape == (1, 24)


def test_thread_counts() -> None:
    assert thread_counts(1) == [1] and thread_counts(2) == [1, 2] and thread_counts(6) == [1, 2, 4, 6]
    assert thread_counts(8, 3) == [1, 2, 3, 4, 8]


class Slow:
    name = "slow"

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode(self, texts: list[str]) -> np.ndarray:
        self.texts += texts
        return np.array([[float(len(text))] for text in texts], dtype=np.float32)


def test_order_is_kept_and_batches_are_bounded() -> None:
    engine = Slow()
    encoder = QueryEncoder(engine, Choice("slow", 1, {}))  # type: ignore[arg-type]
    texts = ["x" * (number * 7 % 50) for number in range(100)]
    assert encoder.encode(texts)[:, 0].tolist() == [len(text) for text in texts]
    assert engine.texts[1:] == sorted(texts, key=len)


# ------------------------------------------------------------------------------------------------------- the race


class Ticking:
    """An engine whose calls take what they are told to, on a clock of its own."""

    name = "onnx"
    now = 0.0

    def __init__(self, milliseconds: float, noise: dict[int, float] | None = None) -> None:
        self.milliseconds, self.noise, self.calls = milliseconds, noise or {}, 0

    def encode(self, texts: list[str]) -> np.ndarray:
        assert len(texts) == 1
        Ticking.now += self.milliseconds * self.noise.get(self.calls, 1.0)
        self.calls += 1
        return np.zeros((1, 1), dtype=np.float32)

    def describe(self) -> dict[str, int]:
        return {"threads": 1}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice_module, "perf_counter_ns", lambda: int(Ticking.now * 1e6))


def entered(**engines: Ticking) -> list[Candidate]:
    return [Candidate(name, 1, engine) for name, engine in engines.items()]  # type: ignore[arg-type]


def test_the_fastest_wins_and_who_is_slower_is_asked_no_more(clock: None) -> None:
    hopeless, slow, near, fast = Ticking(50), Ticking(2), Ticking(1.1), Ticking(1)
    assert race(entered(a=hopeless, b=slow, c=near, d=fast), ["x", "y"]).name == "d"
    assert hopeless.calls < 6 < slow.calls < near.calls == fast.calls < 60


def test_a_busy_moment_does_not_decide(clock: None) -> None:
    """Whatever runs beside it makes an engine slow for a while: its best block counts."""
    fast = Ticking(1.0, dict.fromkeys(range(20), 2.5))
    assert race(entered(a=Ticking(1.4), b=fast), ["x"]).name == "b"


def test_of_equals_the_first_is_taken(clock: None) -> None:
    assert race(entered(a=Ticking(1.03), b=Ticking(1.0)), ["x"]).name == "a"
    assert race(entered(a=Ticking(1.1), b=Ticking(1.0)), ["x"]).name == "b"


def test_more_and_fewer_threads_are_tried_as_long_as_they_win(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice_module, "available_cores", lambda: 32)
    for taken, wanted, tried in (
        ({4: 1.0, 2: 0.8, 1: 0.9}, 2, {4, 2, 1}),
        ({4: 1.0, 2: 1.5, 8: 0.7, 16: 0.9}, 8, {4, 2, 8, 16}),
        ({4: 1.0, 2: 1.5, 8: 1.2}, 4, {4, 2, 8}),
        ({4: 1.0, 2: 1.02, 1: 1.03}, 1, {4, 2, 1}),  # no slower with fewer
    ):
        opened: list[int] = []

        def make(name: str, threads: int, taken: dict[int, float] = taken, opened: list[int] = opened) -> Ticking:
            opened.append(threads)
            return Ticking(taken[threads])

        found = choose({"onnx": Ticking(taken[4])}, make, ["x"], None, {})  # type: ignore[dict-item, arg-type]
        assert found.threads == wanted and {*opened, 4} == tried
        assert set(found.milliseconds) == {f"onnx {count}" for count in tried}
