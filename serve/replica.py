"""One engine thread: in every turn, all its pictures make one step, and one picture is decoded."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bksdm.engines.errors import BksdmError, EngineError, NonFiniteError
from bksdm.runtime.inpainting import Latents
from bksdm.runtime.pipeline import TextToImage
from bksdm.serve.drawing import Drawing, host_executor
from bksdm.serve.errors import EngineFailed, TooLate
from bksdm.serve.ticket import Ticket

if TYPE_CHECKING:
    from bksdm.serve.scheduler import Scheduler

LOG = logging.getLogger("bksdm.serve")


class Replica(threading.Thread):
    """Drives the pictures of a scheduler that it has places for.

    A turn drops what nobody wants any more, begins what the scheduler admits, makes one step of
    everything in as few UNet calls as possible, and decodes one finished picture.

    Parameters
    ----------
    scheduler : Scheduler
        Decides who gets a place.
    model : TextToImage
        Its engine; others may share it.
    name : str
        Of the thread.

    Attributes
    ----------
    tickets : list of Ticket
        That have a place; changed under the scheduler's lock only.
    beat : float or None
        ``time.monotonic()`` of the turn that runs; None while there is nothing to do.
    """

    def __init__(self, scheduler: Scheduler, model: TextToImage, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.model = model
        self.tickets: list[Ticket] = []
        self.beat: float | None = None
        self._scheduler = scheduler

    @property
    def places(self) -> int:
        """Pictures that are under way, the finished ones that are not decoded yet included."""
        return sum(ticket.plan.images for ticket in self.tickets)

    @property
    def drawings(self) -> list[Drawing]:
        """What is under way."""
        return [ticket.drawing for ticket in self.tickets if ticket.drawing is not None]

    def run(self) -> None:
        """Take turns until the scheduler ends."""
        try:
            self._take_turns()
        except Exception as error:
            # Nobody may wait for a thread that is gone.
            LOG.exception("engine thread ended")
            self._end_all()
            self._scheduler.fail(error)

    def _take_turns(self) -> None:
        while (admitted := self._scheduler.admit(self)) is not None:
            try:
                self._turn(admitted)
            except Exception as error:
                # Whatever it is, its clients hear of it, and the thread goes on with a new engine.
                LOG.exception("engine failed")
                self._end_all()
                self._scheduler.recover(self, error)

    def _turn(self, admitted: Sequence[Ticket]) -> None:
        start, before = time.perf_counter(), self._left()
        for ticket in admitted:
            self._begin(ticket)
        self._drop()
        running = [drawing for drawing in self.drawings if not drawing.denoising.done]
        if running:
            self._step(running)
        done = next((drawing for drawing in self.drawings if drawing.denoising.done), None)
        if done is not None:
            self._decode(done)
        self._scheduler.worked(before - self._left(), time.perf_counter() - start)

    def _left(self) -> float:
        """Return the seconds of work that are left of what has a place."""
        return sum(map(self._scheduler.left, self.tickets))

    def _begin(self, ticket: Ticket) -> None:
        if ticket.drawing is None:
            ticket.encode()
            try:
                ticket.drawing = Drawing(ticket, self.model)
            except EngineError:
                raise
            except BksdmError as error:
                self._end(ticket, error)
                return
        ticket.drawing.turns = 0
        ticket.begin()

    def _drop(self) -> None:
        """Let go of what nobody wants any more."""
        now = time.monotonic()
        for ticket in list(self.tickets):
            if ticket.withdrawn is not None:
                self._end(ticket, ticket.withdrawn)
            elif ticket.late(now):
                told = f"not ready in time; {ticket.step} of {ticket.plan.evaluations} steps ran"
                self._end(ticket, TooLate(told))

    def _step(self, running: list[Drawing]) -> None:
        rows: Counter[tuple[int, bool]] = Counter()
        for drawing in running:
            plan = drawing.ticket.plan
            whole, count = plan.rows(drawing.denoising.index)
            rows[plan.area, whole] += count
        start = time.perf_counter()
        told = self._predict(running)
        seconds = time.perf_counter() - start
        self._scheduler.costs.ran(rows, seconds)
        self._scheduler.observer.called(sum(d.ticket.plan.images for d in running), seconds)
        for drawing, prediction in told:
            drawing.seconds["unet"] = drawing.seconds.get("unet", 0.0) + seconds
            drawing.turns += 1
            drawing.denoising.advance(prediction)

    def _predict(self, running: Sequence[Drawing]) -> list[tuple[Drawing, Latents]]:
        """Return the noise predictions; a picture of NaN ends for itself, not for the others."""
        predict = host_executor(self.model).predict
        try:
            together = predict([drawing.denoising for drawing in running], {})
            return list(zip(running, together, strict=True))
        except NonFiniteError:
            pass
        told = []
        for drawing in running:
            try:
                (alone,) = predict([drawing.denoising], {})
                told.append((drawing, alone))
            except NonFiniteError as error:
                self._end(drawing.ticket, error)
        return told

    def _decode(self, drawing: Drawing) -> None:
        try:
            seconds = drawing.decode_one(self.model)
        except NonFiniteError as error:
            self._end(drawing.ticket, error)
            return
        self._scheduler.costs.decoded(drawing.ticket.plan.area, seconds)
        self._scheduler.observer.decoded(seconds)
        if drawing.ticket.ended:
            self._end(drawing.ticket)

    def _end_all(self) -> None:
        told = "the engine failed while these pictures were made; send it again"
        for ticket in list(self.tickets):
            self._end(ticket, EngineFailed(told))

    def _end(self, ticket: Ticket, error: Exception | None = None) -> None:
        self._scheduler.leave(self, ticket)
        self._scheduler.end(ticket, error)
