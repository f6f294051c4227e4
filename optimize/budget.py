"""A time that measuring may take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Budget:
    """Seconds from now on.

    Parameters
    ----------
    seconds : float, optional
        By default there is no end.
    clock : callable
        Returns seconds.
    """

    def __init__(
        self, seconds: float | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock = clock
        self._end = math.inf if seconds is None else clock() + seconds

    @property
    def over(self) -> bool:
        """Whether it is spent."""
        return self._clock() >= self._end

    def share(self, part: float) -> Budget:
        """Return a part, 0 to 1, of what is left, from now on."""
        left = max(0.0, self._end - self._clock())
        return Budget(None if math.isinf(left) else part * left, self._clock)
