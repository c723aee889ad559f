from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.encoders import bulk, tokenising
from harness.encoders.bulk import BulkEncoder, batches_of, sensible_workers
from harness.encoders.encoder import Encoder
from harness.encoders.folder import open_encoder
from harness.encoders.tokenising import TokenWorkers, backend_of, tokenise
from harness.runtime.errors import RunError

MANY = ["", "cat", "a grinning face " * 60, "ein Hund", "grüße, 猫と犬!", "  ", "dog [SEP] cat", "a b c d", "ß" * 300]
WINDOWS = [MANY, MANY[::-1], ["cat dog"], MANY[3:]]


@pytest.fixture(params=["tiny_bert", "tiny_qwen3"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return open_encoder(request.getfixturevalue(request.param))


@pytest.fixture
def two_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[TokenWorkers]:
    """All workers that were started; any window is worth some."""
    found: list[TokenWorkers] = []

    class Watched(TokenWorkers):
        def __init__(self, *options: object) -> None:
            super().__init__(*options)  # type: ignore[arg-type]
            found.append(self)

    monkeypatch.setattr(bulk, "TokenWorkers", Watched)
    monkeypatch.setattr(bulk, "WORTH_WORKERS", 1)
    return found


def simple(encoder: Encoder, texts: list[str], side: str = "query") -> np.ndarray:
    """One text after the other, tokenised by transformers and never padded."""
    vectors = []
    for text in texts:
        prompted, limit = encoder.prompts[side] + text, encoder.max_length
        ids = encoder.tokenizer(prompted, truncation=True, max_length=limit)["input_ids"]
        id_BT = torch.tensor([ids or [encoder.tokenizer.pad_token_id]])
        with torch.no_grad():
            vectors.append(encoder.eval()(input_ids=id_BT, attention_mask=torch.ones_like(id_BT)))
    return torch.cat(vectors).numpy()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_windows_equal_the_simple_path_and_workers_change_no_bit(
    encoder: Encoder, workers: int, started: list[TokenWorkers]
) -> None:
    encoder.prompts = {"query": "find: ", "document": ""}
    told: list[int] = []
    found = list(BulkEncoder(encoder, "query", batch_tokens=64, workers=workers).windows(WINDOWS, told.append))
    assert len(started) == (workers > 0) and all(not left_of(one) for one in started)
    assert sum(told) == sum(map(len, WINDOWS))
    plain = list(BulkEncoder(encoder, "query", batch_tokens=64, workers=0).windows(WINDOWS))
    for texts, vector_ND, plain_ND in zip(WINDOWS, found, plain, strict=True):
        assert vector_ND.dtype == np.float32
        np.testing.assert_array_equal(vector_ND, plain_ND)
        np.testing.assert_allclose(vector_ND, simple(encoder, texts), atol=1e-5)


def left_of(workers: TokenWorkers) -> list[int]:
    """The processes that are still there."""
    return [process.pid for process in workers._processes if process.poll() is None]


def test_texts_without_any_token_among_others(tiny_qwen3: Path, started: list[TokenWorkers]) -> None:
    encoder = open_encoder(tiny_qwen3)
    encoder.tokenizer.backend_tokenizer.post_processor = None
    texts = ["", "cat", "", "", "a dog", ""]
    for vector_ND in BulkEncoder(encoder, "document", workers=1).windows([texts, texts]):
        np.testing.assert_allclose(vector_ND, simple(encoder, texts, "document"), atol=1e-5)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(max_size=40), min_size=1, max_size=6), length=st.integers(2, 12))
def test_tokens_are_those_of_transformers(tiny_bert: Path, texts: list[str], length: int) -> None:
    tokenizer = open_encoder(tiny_bert).tokenizer
    tokens = tokenise(backend_of(tokenizer, length), texts)
    expected = tokenizer(texts, truncation=True, max_length=length)["input_ids"]
    parts = np.split(tokens.token_T, np.cumsum(tokens.length_N)[:-1])
    assert [part.tolist() for part in parts] == expected


# ------------------------------------------------------------------------------------------------------------- cores


def test_batches_side_by_side_give_the_same_vectors_and_leave_the_threads_alone(
    encoder: Encoder, two_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[str] = set()
    forward = encoder.forward

    def noted(**batch: torch.Tensor) -> torch.Tensor:
        threads.add(f"{threading.current_thread().name} {torch.get_num_threads()} {torch.is_inference_mode_enabled()}")
        return forward(**batch)

    monkeypatch.setattr(encoder, "forward", noted)
    texts = [f"{text} {number}" for number in range(8) for text in MANY]
    found_ND = encoder.encode(texts, side="document", batch_tokens=64)
    assert threads <= {"encode_0 1 True", "encode_1 1 True"} and threads
    assert torch.get_num_threads() == 2
    seen: list[int] = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [2] and not [thread for thread in threading.enumerate() if thread.name.startswith("encode")]
    np.testing.assert_allclose(found_ND, simple(encoder, texts, "document"), atol=1e-5)
    threads.clear()
    encoder.encode(texts[:2], side="document")  # too few batches for all cores
    assert threads == {"MainThread 2 True"}


def test_what_goes_wrong_in_a_batch_is_raised(
    tiny_bert: Path, two_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = open_encoder(tiny_bert).train()
    forward = encoder.forward

    def failing(**batch: torch.Tensor) -> torch.Tensor:
        if batch["input_ids"].shape[1] < 8:
            raise MemoryError("out of memory")
        return forward(**batch)

    monkeypatch.setattr(encoder, "forward", failing)
    with pytest.raises(MemoryError, match="out of memory"):
        encoder.encode(MANY * 4, side="query", batch_tokens=64)
    assert encoder.training and not [t for t in threading.enumerate() if t.name.startswith("encode")]


def test_two_shares_make_the_whole(encoder: Encoder) -> None:
    parts = []
    for number in range(2):
        bulk_encoder = BulkEncoder(encoder, "query", batch_tokens=64, share=(number, 2))
        parts.append(np.concatenate(list(bulk_encoder.windows(WINDOWS))))
    assert all((part_ND == 0).all(axis=1).any() for part_ND in parts)
    whole_ND = np.concatenate(list(BulkEncoder(encoder, "query", batch_tokens=64).windows(WINDOWS)))
    np.testing.assert_allclose(parts[0] + parts[1], whole_ND, atol=1e-6)


def test_batches_keep_their_budget() -> None:
    length_N = np.array([5, 90, 1, 30, 30, 2, 7])
    batches = batches_of(length_N, 64)
    assert [batch.tolist() for batch in batches] == [[1], [3, 4], [6, 0, 5, 2]]
    assert batches_of(np.array([], dtype=np.int64), 64) == []


# ----------------------------------------------------------------------------------------------------------- workers


def test_little_work_starts_no_process(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(bulk, "TokenWorkers", refuse)
    list(BulkEncoder(encoder, "query", workers=2).windows(WINDOWS))  # small windows
    monkeypatch.setattr(bulk, "WORTH_WORKERS", 1)
    list(BulkEncoder(encoder, "query", workers=2).windows(WINDOWS[:1]))  # one window
    assert list(BulkEncoder(encoder, "query", workers=2).windows([])) == []
    with pytest.raises(AssertionError, match="a process was started"):
        list(BulkEncoder(encoder, "query", workers=2).windows(WINDOWS))


def test_how_many_are_sensible(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert [sensible_workers(gpu, processes) for processes in (1, 2, 4, 8, 16)] == [4, 3, 1, 0, 0]
    assert sensible_workers(cpu, 1) == 0


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ValueError])
def test_no_process_is_left_after_an_exception(
    encoder: Encoder, started: list[TokenWorkers], raised: type[BaseException]
) -> None:
    def interrupt(_: int) -> None:
        if started:
            raise raised

    encoder.train()
    with pytest.raises(raised):
        for _ in BulkEncoder(encoder, "query", workers=2).windows(WINDOWS, interrupt):
            pass
    assert len(started) == 1 and not left_of(started[0]) and encoder.training


def test_no_process_is_left_when_nobody_wants_more(encoder: Encoder, started: list[TokenWorkers]) -> None:
    vectors = BulkEncoder(encoder, "query", workers=2).windows(WINDOWS)
    next(vectors), next(vectors)
    assert len(left_of(started[0])) == 2
    vectors.close()
    assert not left_of(started[0])


def test_a_dead_worker_is_told(encoder: Encoder, started: list[TokenWorkers]) -> None:
    def kill(_: int) -> None:
        for workers in started:
            with contextlib.suppress(ProcessLookupError):  # dead since the window before
                os.kill(workers._processes[-1].pid, signal.SIGKILL)

    with pytest.raises(RunError, match=r"exit code -9[\s\S]*embed.workers: 0"):
        list(BulkEncoder(encoder, "query", workers=2).windows([*WINDOWS, *WINDOWS], kill))
    assert not left_of(started[0])


def test_workers_outlive_signals_to_all_and_end_with_their_input(tiny_bert: Path) -> None:
    tokenizer = open_encoder(tiny_bert).tokenizer
    backend = backend_of(tokenizer, 16)
    workers = TokenWorkers(backend, 1)
    try:
        (process,) = workers._processes
        workers.submit(["cat"])[0].result()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(process.pid, number)
        found = workers.submit(MANY)[0].result()
        expected = tokenise(backend, MANY)
        np.testing.assert_array_equal(found.token_T, expected.token_T)
        np.testing.assert_array_equal(found.length_N, expected.length_N)
        assert process.stdin is not None
        process.stdin.close()  # as when whoever started it is killed
        assert process.wait(timeout=20) == 0
    finally:
        workers.close()


def test_large_blocks_pass_in_both_directions(tiny_bert: Path) -> None:
    """Far more than a pipe holds: who wrote before reading would wait forever."""
    backend = backend_of(open_encoder(tiny_bert).tokenizer, 64)
    workers = TokenWorkers(backend, 2)
    try:
        blocks = [workers.submit(["a cat and a dog"] * 24_000) for _ in range(2)]
        counts = [int(part.result(timeout=120).length_N.sum()) for block in blocks for part in block]
        assert counts == [12_000 * int(tokenise(backend, ["a cat and a dog"]).length_N[0])] * 4
    finally:
        workers.close()


def test_settings_of_the_tokenizer_reach_the_workers(tiny_bert: Path) -> None:
    tokenizer = open_encoder(tiny_bert).tokenizer
    tokenizer.truncation_side = "left"
    backend = backend_of(tokenizer, 5)
    backend.encode_special_tokens = True
    texts = ["cat [SEP] dog and a cat", "dog"]
    workers = TokenWorkers(backend, 1)
    try:
        found = workers.submit(texts)[0].result()
    finally:
        workers.close()
    np.testing.assert_array_equal(found.token_T, tokenise(backend, texts).token_T)
    backend.encode_special_tokens = False
    assert len(tokenise(backend, texts[:1]).token_T) == 5


def test_a_worker_imports_no_torch() -> None:
    code = f"import sys, {tokenising.__name__}; assert not {{'torch', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
