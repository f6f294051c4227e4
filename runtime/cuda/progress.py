"""How far the GPU is, told while the host waits for it once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERVAL = 0.05
"""Seconds between two looks."""


@contextmanager
def told(
    progress: Callable[[int, int], object] | None, done: Callable[[], int], total: int
) -> Iterator[None]:
    """Tell how many evaluations are done while a block enqueues them and waits for them.

    Parameters
    ----------
    progress : callable, optional
        Called with the evaluations that are done and with ``total``, from a thread of its own.
    done : callable
        Returns how many are; costs nothing.
    total : int
        How many there are.
    """
    if progress is None:
        yield
        return
    over, last = threading.Event(), 0

    def tell() -> None:
        nonlocal last
        now = done()
        if now > last:
            last = now
            progress(now, total)

    def look() -> None:
        while not over.wait(INTERVAL):
            tell()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    tell()
