"""Progress: a bar on a terminal, and a few plain lines where standard error is a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

FIRST_SECONDS = 10.0
"""Until the first line."""
PARTS = 10
"""Lines at most, of work whose extent is known."""


class Progress(Protocol):
    """Counts units of work that are done; ``total`` may become known later."""

    total: float | None

    def update(self, n: float = 1, /) -> object:
        """Count ``n`` more."""

    def clear(self) -> object:
        """Make room for a line on standard output."""

    def __enter__(self) -> Progress: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> object: ...


def progress(desc: str, unit: str, total: float | None = None, delay: float = 0.5) -> Progress:
    """Return a bar that vanishes in the end, or what writes lines instead.

    Parameters
    ----------
    desc : str
        What is being done.
    unit : str
        What is counted.
    total : float, optional
        How many there are.
    delay : float
        Seconds until a bar appears, so that quick work and a request that is refused show none.
    """
    if not sys.stderr.isatty():
        return PlainProgress(desc, unit, total)
    from tqdm import tqdm

    bar: Progress = tqdm(desc=desc or None, unit=unit, total=total, leave=False, delay=delay)
    return bar


def counted(bar: Progress) -> Callable[[int, int], None]:
    """Return what is told how many steps of a picture are done, and counts them."""
    before = 0

    def tell(done: int, total: int) -> None:
        nonlocal before
        bar.update(done - before)
        before = done

    return tell


class PlainProgress:
    """Writes a line after some time, and then for every further part of the work.

    The time between two lines is at least :data:`FIRST_SECONDS`, so that quick work writes none.
    """

    def __init__(self, desc: str, unit: str, total: float | None) -> None:
        self.total = total
        self._name = f"{desc}: " if desc else ""
        self._unit = unit
        self._done = 0.0
        self._told_at, self._told = time.monotonic(), 0.0

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def clear(self) -> None:
        """Do nothing: lines are no bar."""

    def update(self, n: float = 1, /) -> None:
        """Count ``n`` more, and write a line if it is time to."""
        self._done += n
        now = time.monotonic()
        # Without a known end, each line takes twice as much work as the last.
        part = self._told if self.total is None else self.total / PARTS
        if now - self._told_at < FIRST_SECONDS or self._done < self._told + part:
            return
        self._told_at, self._told = now, self._done
        of = "" if self.total is None else f" of {self.total:g}"
        print(f"{self._name}{self._done:g}{of} {self._unit}s", file=sys.stderr, flush=True)
