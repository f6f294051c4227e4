"""Handle the standard streams of the process, and the signals that end it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from bksdm.cli.text import ESCAPED

GRACE_SECONDS = 5.0
"""How long a network may go on running after a signal to end."""


class Stopped(BaseException):
    """Raised at a signal to end, so that unfinished work is cleaned up."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def stop_signals() -> Iterator[None]:
    """Raise :class:`Stopped` at SIGTERM and SIGHUP while the block runs.

    Neither is touched where it is ignored, as under ``nohup``, or handled by who called us. Python
    hears of a signal when a network has run, which can take minutes; after :data:`GRACE_SECONDS`
    the process ends as it is, and what it has left unfinished is removed by the next.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        # A second one would interrupt the cleaning up.
        signal.signal(number, signal.SIG_IGN)
        raise Stopped(number)

    taken: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, stop)
                taken.append(number)
    with _ending_late(taken) if taken else contextlib.nullcontext():
        try:
            yield
        finally:
            for number in taken:
                signal.signal(number, signal.SIG_DFL)


@contextmanager
def _ending_late(numbers: list[signal.Signals]) -> Iterator[None]:
    """End the process some time after one of the signals, if the block has not ended by then."""
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    before = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    ended = threading.Event()

    def watch() -> None:
        while received := os.read(told, 1):
            if received[0] in numbers and not ended.wait(GRACE_SECONDS):
                os._exit(128 + received[0])
        os.close(told)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        os.close(tell)


def open_streams() -> None:
    """Put the null device where a standard stream is closed, and let no character fail.

    Otherwise the next file that is opened would take the stream's place.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=ESCAPED)


def drop_output() -> None:
    """Discard what standard output still holds, which Python would try to write at its end."""
    with contextlib.suppress(OSError, ValueError):  # it may be no file
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
