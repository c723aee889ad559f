"""Many texts through an encoder: windows sorted by length, batches of so many tokens, and no part waits for another.

The next window is tokenised by worker processes while the device computes. On a GPU vectors are copied out beside the
computing, and a window is handed over once the next one is under way. On a CPU each core computes batches of its own:
a batch shared among cores makes all of them wait for the slowest after every operation.

Axes: N texts of a window, B texts of a batch, T tokens of its longest text, D dimensions.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from threading import Barrier
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from harness.data.collator import cuts_unpadded, join_part
from harness.encoders.tokenising import Tokens, TokenWorkers, backend_of, joined, tokenise

if TYPE_CHECKING:
    from harness.encoders.encoder import Encoder, Side

WORTH_WORKERS = 2_048  # texts of a window: tokenising fewer takes less time than starting a process
MOST_WORKERS = 4  # tokenise faster than any device encodes


def tokens_of_a_batch(device: torch.device) -> int:
    """How many tokens a batch should have: what stays in a core's caches, or keeps a GPU busy."""
    return 1_024 if device.type == "cpu" else 16_384


def sensible_workers(device: torch.device, processes: int) -> int:
    """How many processes should tokenise: none on a CPU, whose cores are the device; else some of the other cores.

    Args:
        device: where the encoder computes.
        processes: how many share this machine's cores.
    """
    if device.type == "cpu":
        return 0
    return max(0, min(MOST_WORKERS, len(os.sched_getaffinity(0)) // processes - 1))


class BulkEncoder:
    """Encodes one side's texts, window by window.

    Args:
        encoder: is put into evaluation mode while it encodes.
        side: whose prompt is put before the texts.
        batch_tokens: of a batch, padding included; None: what the device likes.
        bf16: run the backbone under bfloat16 autocast.
        workers: processes that tokenise windows after the first; None: as many as are sensible.
        share: (this process's number, how many share every window): each encodes its part of the batches and leaves
            zeros for the rest; all run equally many, for a sharded model's forward needs all processes.
    """

    def __init__(
        self,
        encoder: Encoder,
        side: Side,
        *,
        batch_tokens: int | None = None,
        bf16: bool = False,
        workers: int | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self._encoder, self._prompt, self._bf16, self._share = encoder, encoder.prompts[side], bf16, share
        self._device = encoder.device
        self._batch_tokens = batch_tokens or tokens_of_a_batch(self._device)
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self._workers = sensible_workers(self._device, processes) if workers is None else workers
        self._side_stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

    def windows(
        self, windows: Iterable[Sequence[str]], advance: Callable[[int], object] | None = None
    ) -> Generator[np.ndarray]:
        """The vectors of each window of texts, float32_ND, in order.

        Args:
            windows: each is read when the one before it is about to be encoded.
            advance: told how many texts were encoded since it was told last.

        Raises:
            RunError: a process that tokenises died.
        """
        encoder, training = self._encoder, self._encoder.training
        encoder.eval()
        try:
            with closing(self._tokenised(windows)) as tokenised, ExitStack() as ending:
                cores = _Cores(ending) if self._device.type == "cpu" and self._share[1] == 1 else None
                copies: deque[_CopyOut] = deque()
                for tokens in tokenised:
                    copies.append(self._encode(tokens, cores, advance))
                    if len(copies) > 1 or self._device.type != "cuda":
                        yield copies.popleft().result()
                while copies:
                    yield copies.popleft().result()
        finally:
            encoder.train(training)

    # ---------------------------------------------------------------------------------------------------- tokenising

    def _tokenised(self, windows: Iterable[Sequence[str]]) -> Generator[Tokens]:
        """Each window's tokens; while one is encoded, the workers are busy with the next."""
        backend = backend_of(self._encoder.tokenizer, self._encoder.max_length)
        with ExitStack() as ending:
            workers: TokenWorkers | None = None
            ahead: Tokens | list[Future[Tokens]] | None = None
            for number, texts in enumerate(windows):
                prompted = [self._prompt + text for text in texts] if self._prompt else texts
                if number and self._workers and workers is None and len(texts) >= WORTH_WORKERS:
                    workers = TokenWorkers(backend, self._workers)
                    ending.callback(workers.close)
                begun = workers.submit(prompted) if workers else None
                if ahead is not None:
                    yield self._finished(ahead)
                ahead = begun if begun is not None else tokenise(backend, prompted)
            if ahead is not None:
                yield self._finished(ahead)

    def _finished(self, ahead: Tokens | list[Future[Tokens]]) -> Tokens:
        tokens = ahead if isinstance(ahead, Tokens) else joined([part.result() for part in ahead])
        if tokens.length_N.all():
            return tokens
        # A tokenizer without special tokens makes nothing of an empty text; a mask without a token would pool to NaN.
        padding = np.asarray(self._encoder.tokenizer.pad_token_id, dtype=np.int32)
        empty_N = tokens.length_N == 0
        at = np.cumsum(tokens.length_N)[empty_N]
        return Tokens(np.insert(tokens.token_T, at, padding), np.maximum(tokens.length_N, 1))

    # ----------------------------------------------------------------------------------------------------- computing

    def _encode(self, tokens: Tokens, cores: _Cores | None, advance: Callable[[int], object] | None) -> _CopyOut:
        """Run a window's batches; on a GPU some are still under way when this returns."""
        batches = batches_of(tokens.length_N, self._batch_tokens, padded=not self._encoder.unpadded)
        own, processes = self._share
        rounds = [batches[first : first + processes] for first in range(0, len(batches), processes)]
        # In the last round there may be too few: who has none repeats another's, and throws it away.
        mine = [of_round[own % len(of_round)] for of_round in rounds]
        start_N = np.concatenate([[0], np.cumsum(tokens.length_N)])
        run: Callable[..., Iterator[Tensor]] = cores.map if cores and cores.are_fed_by(len(mine)) else map
        found = run(lambda row_B: self._forward(self._batch(tokens, start_N, row_B)), mine)
        copy = _CopyOut(len(tokens.length_N), self._encoder.dimension, self._side_stream)
        for of_round, row_B, vector_BD in zip(rounds, mine, found, strict=True):
            if own < len(of_round):
                copy.add(row_B, vector_BD)
            if advance is not None:
                advance(sum(map(len, of_round)))
        return copy

    @torch.inference_mode()
    def _forward(self, batch: dict[str, Any]) -> Tensor:
        on_device = {
            name: part.to(self._device, non_blocking=True) if isinstance(part, Tensor) else part
            for name, part in batch.items()
        }
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            vector_BD: Tensor = self._encoder(**on_device)
        return vector_BD

    def _batch(self, tokens: Tokens, start_N: np.ndarray, row_B: np.ndarray) -> dict[str, Any]:
        parts = [tokens.token_T[start_N[row] : start_N[row + 1]] for row in row_B.tolist()]
        batch = join_part(parts) if self._encoder.unpadded else self._pad(parts)
        if self._side_stream is None:
            return batch
        return {name: part.pin_memory() if isinstance(part, Tensor) else part for name, part in batch.items()}

    def _pad(self, parts: list[np.ndarray]) -> dict[str, Any]:
        tokenizer, length_B = self._encoder.tokenizer, np.array([len(part) for part in parts])
        width = int(length_B.max())
        step_T = np.arange(width)
        left = tokenizer.padding_side == "left"
        mask_BT = step_T >= width - length_B[:, None] if left else step_T < length_B[:, None]
        token_BT = np.full(mask_BT.shape, tokenizer.pad_token_id, dtype=np.int64)
        token_BT[mask_BT] = np.concatenate(parts)
        return {"input_ids": torch.from_numpy(token_BT), "attention_mask": torch.from_numpy(mask_BT.astype(np.int64))}


def batches_of(length_N: np.ndarray, batch_tokens: int, *, padded: bool = True) -> list[np.ndarray]:
    """The rows of each batch, from the longest: memory runs out at once or never. A longer text is one of its own."""
    order_N, batches, start = np.argsort(-length_N, kind="stable"), [], 0
    if not padded:
        return np.split(order_N, cuts_unpadded(length_N[order_N], batch_tokens))
    while start < len(order_N):
        longest = int(length_N[order_N[start]])
        batches.append(order_N[start : start + max(batch_tokens // longest, 1)])
        start += len(batches[-1])
    return batches


class _Cores:
    """Threads that compute batches side by side, each on a core of its own."""

    def __init__(self, ending: ExitStack) -> None:
        self._count, self._ending = torch.get_num_threads(), ending
        self._pool: ThreadPoolExecutor | None = None

    def are_fed_by(self, batches: int) -> bool:
        """Whether there are enough batches for all cores; few are better computed by all cores together."""
        return 1 < self._count <= batches // 2

    def map(self, work: Callable[[Any], Tensor], items: Sequence[Any]) -> Iterator[Tensor]:
        """``map``, items side by side and results in order."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._count, thread_name_prefix="encode")
            self._ending.callback(self._pool.shutdown, cancel_futures=True)
            ready = Barrier(self._count)

            def take_one_core(_: int) -> None:
                torch.get_num_threads()  # a thread's first question would set its number again
                torch.set_num_threads(1)
                ready.wait()

            list(self._pool.map(take_one_core, range(self._count)))
            torch.set_num_threads(self._count)  # what they said holds for threads to come, too
        return self._pool.map(work, items)


class _CopyOut:
    """The vectors of a window on their way to the host, float32_ND; rows that none was added for are zero.

    Args:
        side_stream: of a GPU: copies wait there for what they copy, and nothing waits for them.
    """

    def __init__(self, rows: int, dimension: int, side_stream: torch.cuda.Stream | None) -> None:
        self._side_stream = side_stream
        self._copied: torch.cuda.Event | None = None
        self._rows: list[np.ndarray] = []
        self._host_ND = torch.empty((rows, dimension), dtype=torch.float32, pin_memory=side_stream is not None)
        self._count = 0

    def add(self, row_B: np.ndarray, vector_BD: Tensor) -> None:
        """Begin to copy the vectors of some rows."""
        target_BD = self._host_ND[self._count : self._count + len(row_B)]
        self._rows.append(row_B)
        self._count += len(row_B)
        if self._side_stream is None:
            target_BD.copy_(vector_BD)
            return
        self._side_stream.wait_stream(torch.cuda.current_stream(vector_BD.device))
        with torch.cuda.stream(self._side_stream):
            target_BD.copy_(vector_BD, non_blocking=True)
        vector_BD.record_stream(self._side_stream)  # its memory is not given away before it is copied
        self._copied = self._side_stream.record_event()

    def result(self) -> np.ndarray:
        """The vectors in the order of the texts, once all are here."""
        if self._copied is not None:
            self._copied.synchronize()
        vector_ND = np.zeros(tuple(self._host_ND.shape), dtype=np.float32)
        if self._rows:
            vector_ND[np.concatenate(self._rows)] = self._host_ND[: self._count].numpy()
        return vector_ND
