"""A request on its way through a server: what its client may ask, and what it is told."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bksdm.runtime.request import Request
from bksdm.runtime.result import Result
from bksdm.serve.errors import ServeError
from bksdm.serve.plan import Plan

if TYPE_CHECKING:
    from bksdm.serve.drawing import Drawing

State = Literal["waiting", "running", "done", "failed"]
_numbers = itertools.count()


class StepPicture(NamedTuple):
    """How pictures look on the way: after ``step`` evaluations, pixels [images, h, w, 3]."""

    step: int
    pixels: NDArray[np.uint8]


class Ticket:
    """A request in a scheduler. Threads may share it; only the scheduler changes its state.

    Parameters
    ----------
    request : Request
        Resolved for the model that draws it.
    priority : int
        A higher one goes first.
    timeout : float, optional
        Seconds from now after which nobody wants the pictures any more.
    previews : frozenset of int
        After which evaluations, counted from 1, it is shown how the pictures look.

    Attributes
    ----------
    plan : Plan
        Its work.
    state : str
        ``waiting``, ``running``, ``done`` or ``failed``.
    step : int
        Evaluations that are done.
    previews : list of StepPicture
        Those so far.
    result : Result or None
        Where it is done.
    error : Exception or None
        Where it failed.
    withdrawn : ServeError or None
        Why it has to end before the next step.
    queued : float
        Seconds from arrival to the first evaluation; so far, while it waits.
    """

    def __init__(
        self,
        request: Request,
        priority: int = 0,
        timeout: float | None = None,
        previews: frozenset[int] = frozenset(),
    ) -> None:
        self.request, self.plan = request, Plan.of(request)
        self.priority, self.shown_after = priority, previews
        self.arrived = time.monotonic()
        self.deadline = None if timeout is None else self.arrived + timeout
        self.state: State = "waiting"
        self.step = 0
        self.previews: list[StepPicture] = []
        self.result: Result | None = None
        self.error: Exception | None = None
        self.withdrawn: ServeError | None = None
        self.interrupted = False
        self.drawing: Drawing | None = None
        self.order = (-priority, next(_numbers))
        self._encoded: float | None = None
        self._begun: float | None = None
        self._stepped: float | None = None
        self._ended: float | None = None
        self._listeners: list[Callable[[], object]] = []
        self._finished = threading.Event()

    @property
    def ended(self) -> bool:
        """Whether it is done or failed."""
        return self._finished.is_set()

    @property
    def queued(self) -> float:
        """Seconds that it waited for its first evaluation."""
        until = self._begun or self._ended or time.monotonic()
        return until - self.arrived

    @property
    def stages(self) -> list[tuple[str, float, float]]:
        """Each stage that it has been in, and by ``time.monotonic()`` its begin and end.

        They are what a client waits for: others may have been drawn meanwhile.
        """
        now = self._ended or time.monotonic()
        moments = (self.arrived, self._encoded, self._begun, self._stepped, now)
        begun = [moment for moment in moments[:4] if moment is not None]
        names = ("queue", "encode", "denoise", "decode")
        if self._stepped is not None and self.step < self.plan.evaluations and not self.interrupted:
            # It ended on the way.
            begun.pop()
        return list(zip(names, begun, [*begun[1:], now], strict=False))

    @property
    def seconds(self) -> float:
        """Seconds since it arrived, or until it ended."""
        return (self._ended or time.monotonic()) - self.arrived

    def late(self, now: float) -> bool:
        """Return whether its time is over."""
        return self.deadline is not None and now > self.deadline

    def interrupt(self) -> None:
        """Make the latents so far the result, as diffusers' ``_interrupt`` does."""
        self.interrupted = True

    def listen(self, listener: Callable[[], object]) -> Callable[[], None]:
        """Have a function called at every change, in the thread that makes it; it must not wait.

        Returns
        -------
        callable
            Ends that.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def wait(self, timeout: float | None = None) -> Result:
        """Return the result when it is there.

        Raises
        ------
        TimeoutError
            It is not there in time.
        BksdmError
            It failed.
        """
        if not self._finished.wait(timeout):
            raise TimeoutError("the pictures are not ready")
        if self.result is None:
            assert self.error is not None
            raise self.error
        return self.result

    def encode(self) -> None:
        """Take note that its prompts, and the picture to start from, are being encoded."""
        self._encoded = time.monotonic()

    def begin(self) -> None:
        """Take note that it has a place."""
        self.state = "running"
        self._begun = self._begun or time.monotonic()
        self._tell()

    def pause(self) -> None:
        """Take note that it has given its place to a shorter one."""
        self.state = "waiting"
        self._tell()

    def stepped(self, step: int, pixels: NDArray[np.uint8] | None) -> None:
        """Take note of an evaluation, and of how the pictures look."""
        self.step, self._stepped = step, time.monotonic()
        if pixels is not None:
            self.previews.append(StepPicture(step, pixels))
        self._tell()

    def finish(self, result: Result) -> None:
        """Take the result."""
        self.result = result
        self._end("done")

    def fail(self, error: Exception) -> None:
        """Take the reason why there is none."""
        self.error = error
        self._end("failed")

    def _end(self, state: State) -> None:
        self.state, self.drawing = state, None
        self._ended = time.monotonic()
        self._finished.set()
        self._tell()

    def _tell(self) -> None:
        for listener in list(self._listeners):
            listener()
