"""Put work of one CUDA stream between that of another."""

from __future__ import annotations

from typing import Any

from bksdm.engines.errors import EngineError


class Fork:
    """A block whose work in one stream follows what lies in another, which then waits for it.

    So work that a library enqueues in its own stream becomes part of a recording in another
    (CUDA C++ Programming Guide, "Cross-stream Dependencies and Events").

    Parameters
    ----------
    outer, inner : int
        Handles of the streams; nothing is done if they are one.
    """

    def __init__(self, outer: int, inner: int) -> None:
        self._outer, self._inner = outer, inner

    def __enter__(self) -> None:
        self._follow(self._inner, self._outer)

    def __exit__(self, *raised: object) -> None:
        self._follow(self._outer, self._inner)

    def _follow(self, later: int, earlier: int) -> None:
        if self._outer == self._inner:
            return
        from cuda.bindings import driver

        timing_off = driver.CUevent_flags.CU_EVENT_DISABLE_TIMING
        (event,) = _accepted(driver.cuEventCreate(timing_off))
        try:
            _accepted(driver.cuEventRecord(event, earlier))
            _accepted(driver.cuStreamWaitEvent(later, event, 0))
        finally:
            # The driver keeps it until nothing waits for it any more.
            _accepted(driver.cuEventDestroy(event))


def _accepted(result: tuple[Any, ...]) -> tuple[Any, ...]:
    error, *values = result
    if int(error):
        raise EngineError(f"a stream cannot follow another ({error.name})")
    return tuple(values)
