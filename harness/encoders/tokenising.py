"""Texts to token ids, here or in worker processes, while the device computes. Imports no torch: workers start fast.

A worker is this module run as a program. It gets the tokenizer's JSON, then blocks of texts, and answers each with
token ids: lengths and bytes over its standard input and output, nothing that could be executed. It ends when its input
does, and minds no signal that a terminal or a scheduler sends to all: whoever started it ends it.

Axes: N texts, T tokens of all texts.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from harness.runtime.errors import RunError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of N texts, one text after the other: int32_T, and how many each has, int64_N."""

    token_T: np.ndarray
    length_N: np.ndarray


def backend_of(tokenizer: PreTrainedTokenizerBase, max_length: int) -> Tokenizer:
    """The tokenizer inside, set to cut at ``max_length`` as transformers sets it, and not to pad."""
    tokenizer([""], truncation=True, max_length=max_length, padding=False)
    return cast("Tokenizer", tokenizer.backend_tokenizer)


def tokenise(backend: Tokenizer, texts: Sequence[str]) -> Tokens:
    """The token ids of each text, special tokens included."""
    ids = [encoding.ids for encoding in backend.encode_batch_fast(list(texts))]
    length_N = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    return Tokens(np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=int(length_N.sum())), length_N)


def joined(parts: Sequence[Tokens]) -> Tokens:
    """One after the other."""
    return Tokens(np.concatenate([part.token_T for part in parts]), np.concatenate([part.length_N for part in parts]))


class TokenWorkers:
    """So many processes that tokenise; ``close`` ends them, whatever they do.

    Args:
        backend: as ``backend_of`` made it.
        count: at least 1.
    """

    def __init__(self, backend: Tokenizer, count: int) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._threads: list[ThreadPoolExecutor] = []
        try:
            for number in range(count):
                self._processes.append(_start())
                self._threads.append(ThreadPoolExecutor(1, thread_name_prefix=f"tokens-{number}"))
                # A thread for each worker: it writes all, then reads all, so that neither waits for the other forever.
                told = bytes([backend.encode_special_tokens]) + backend.to_str().encode()
                self._threads[number].submit(_ask, self._processes[number], told)
        except BaseException:
            self.close()
            raise

    def submit(self, texts: Sequence[str]) -> list[Future[Tokens]]:
        """Begin to tokenise texts; each worker takes a part of them, in order."""
        cuts = [len(texts) * number // len(self._threads) for number in range(len(self._threads) + 1)]
        parts = [texts[start:end] for start, end in zip(cuts, cuts[1:], strict=False)]
        return [
            thread.submit(_tokenise_there, process, part)
            for thread, process, part in zip(self._threads, self._processes, parts, strict=True)
        ]

    def close(self) -> None:
        """End the processes; what they have not answered is lost."""
        for process in self._processes:
            process.kill()
        for thread in self._threads:
            thread.shutdown(cancel_futures=True)
        for process in self._processes:
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                _close(stream)
            process.wait()


def _start() -> subprocess.Popen[bytes]:
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip


def _close(stream: IO[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError):  # what was not written yet
        stream.close()


def _tokenise_there(process: subprocess.Popen[bytes], texts: Sequence[str]) -> Tokens:
    encoded = [text.encode() for text in texts]
    length_N = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
    answer = _ask(process, np.int64(len(encoded)).tobytes() + length_N.tobytes() + b"".join(encoded))
    count = int(np.frombuffer(answer, dtype=np.int64, count=1)[0])
    return Tokens(
        np.frombuffer(answer, dtype=np.int32, offset=8 * (count + 1)),
        np.frombuffer(answer, dtype=np.int64, offset=8, count=count),
    )


def _ask(process: subprocess.Popen[bytes], told: bytes) -> bytes:
    """Send one block and wait for the answer.

    Raises:
        RunError: the worker is gone.
    """
    assert process.stdin is not None and process.stdout is not None
    try:
        _write(process.stdin, told)
        answer = _read(process.stdout)
    except (BrokenPipeError, ValueError):  # ValueError: closed meanwhile
        answer = None
    if answer is None:
        raise RunError(
            f"a process that tokenises ended before its work was done (exit code {process.wait()})\n"
            "    next: look above for its message and at the machine's memory, or set embed.workers: 0; the same "
            "command goes on from the last finished part"
        )
    return answer


def _write(stream: IO[bytes], block: bytes) -> None:
    stream.write(len(block).to_bytes(8, "little"))
    stream.write(block)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes | None:
    """One block; None where the stream ends."""
    head = stream.read(8)
    size = int.from_bytes(head, "little")
    block = stream.read(size) if len(head) == 8 else b""
    return block if len(head) == 8 and len(block) == size else None


def _texts(block: bytes) -> list[str]:
    count = int(np.frombuffer(block, dtype=np.int64, count=1)[0])
    end_N = 8 * (count + 1) + np.cumsum(np.frombuffer(block, dtype=np.int64, offset=8, count=count))
    starts = [8 * (count + 1), *end_N.tolist()]
    return [block[start:end].decode() for start, end in zip(starts, starts[1:], strict=False)]


def work(source: IO[bytes], target: IO[Any]) -> None:
    """Be a worker until the source ends."""
    from tokenizers import Tokenizer

    told = _read(source)
    if told is None:
        return
    backend = Tokenizer.from_str(told[1:].decode())
    backend.encode_special_tokens = bool(told[0])
    _write(target, b"")
    while (block := _read(source)) is not None:
        tokens = tokenise(backend, _texts(block))
        _write(target, np.int64(len(tokens.length_N)).tobytes() + tokens.length_N.tobytes() + tokens.token_T.tobytes())


if __name__ == "__main__":
    for asked in (signal.SIGINT, signal.SIGTERM):
        signal.signal(asked, signal.SIG_IGN)
    work(sys.stdin.buffer, sys.stdout.buffer)
