"""How a run is asked to stop: SIGTERM, Ctrl-C, or its controller's word."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from harness.pipeline.launch import told_to_stop
from harness.runtime.errors import StoppedError
from harness.runtime.process import launched_processes, logger


class StopNow(BaseException):
    """Raised by a signal: not an ``Exception``, for libraries catch those and go on, or name another cause."""


class StopRequest:
    """SIGTERM, Ctrl-C and a controller's word: a training polls it and saves; anything else is interrupted at once."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.requested = False
        self.patient = False

    def __call__(self) -> bool:
        """Polled by a training between steps."""
        return self.requested or told_to_stop(self.output)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Around an evaluation within a training: a stop, also one asked for before, does not wait for its end.

        Several processes do wait: they can't stop in the middle of what they do together.
        """
        patient = self.patient
        if patient and launched_processes() == 1:
            if self():
                raise StopNow("stopped before an evaluation; the same command goes on from there")
            self.patient = False
        try:
            yield
        finally:
            self.patient = patient

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Ask a training to stop; the second signal, or one outside a training, stops at once."""
        if self.patient and not self.requested:
            self.requested = True
            logger.info("stopping after this step; a checkpoint is being saved")
        elif not (self.patient and launched_processes() > 1):  # launchers pass on a signal that we got already
            _stop_now(number, frame)


@contextlib.contextmanager
def until_the_end() -> Iterator[None]:
    """Around a whole command: SIGTERM and Ctrl-C end what is not in a run's own hands (``signals``), too.

    When the block has ended the first of them changes nothing any more: the process is ending, its exit code settled.

    Raises:
        StopNow: at once, where one of them came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        for number in _SIGNALS:
            signal.signal(number, _stop_now)
        yield
    finally:
        for number in _SIGNALS:
            signal.signal(number, _too_late)


_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def _stop_now(number: int, frame: FrameType | None) -> None:
    raise StopNow(f"stopped by {signal.Signals(number).name}; the same command goes on from the last finished part")


def _too_late(number: int, frame: FrameType | None) -> None:
    """The process is ending; should it hang, a second signal ends it."""
    signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def signals(output: Path) -> Iterator[StopRequest]:
    """Listen to SIGTERM and Ctrl-C for a run in ``output``.

    Raises:
        StoppedError: one of them came outside a training, or came twice.
    """
    request = StopRequest(output)
    previous = {number: signal.signal(number, request.handle) for number in _SIGNALS}
    try:
        yield request
    except StopNow as stop:
        raise StoppedError(str(stop)) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
