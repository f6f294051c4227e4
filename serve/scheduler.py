"""Who gets a place beside the pictures under way, and who is refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from bksdm.runtime.pipeline import TextToImage
from bksdm.serve.costs import WEIGHT, Costs
from bksdm.serve.drawing import host_executor
from bksdm.serve.errors import Refused, TooLate, Unavailable, Withdrawn
from bksdm.serve.observer import Observer
from bksdm.serve.replica import LOG, Replica
from bksdm.serve.ticket import Ticket
from bksdm.serve.waiting import Waiting

MOST_WAITING = 4096
"""Requests, however little work they are: each holds memory."""
STOPPING = "the server is stopping; send it to another one"
STUCK_SECONDS = 300.0
"""Of one turn, after which an engine thread counts as hung."""


@dataclass(frozen=True)
class Layout:
    """How a model's engine is used.

    Attributes
    ----------
    replicas : int
        Engine threads, each with pictures of its own.
    threads : int
        CPU threads of each.
    batch : int
        Most pictures that one of them has under way.
    """

    replicas: int
    threads: int
    batch: int


class Scheduler:
    """Draws tickets with a model. Threads may share it.

    A ticket starts at the next step of a replica that has a place for it. Where all places are
    taken, tickets wait by priority, and by arrival among equals; one that has less work left than
    pictures under way takes the place of these after :data:`~bksdm.serve.waiting.QUANTUM` steps, so
    that no request waits longer for the place of a longer one, and one whose place was taken is the
    first to get the next.

    Parameters
    ----------
    load : callable
        Loads the model; called again after the engine has failed, once.
    layout : Layout
        Replicas and places.
    costs : Costs
        What work takes.
    queue_seconds : float
        Most work that waits, in seconds of all replicas together.
    observer : Observer, optional
        Is told what happens.
    first : TextToImage, optional
        One that is loaded already. All replicas share it, if the engine lets threads do so.
    """

    def __init__(
        self,
        load: Callable[[], TextToImage],
        layout: Layout,
        costs: Costs,
        queue_seconds: float = 300.0,
        observer: Observer | None = None,
        first: TextToImage | None = None,
    ) -> None:
        self.layout, self.costs = layout, costs
        self.observer = Observer() if observer is None else observer
        self._load, self._queue_seconds = load, queue_seconds
        self._changed = threading.Condition(threading.RLock())
        self._loading = threading.Lock()
        self._waiting = Waiting(self.left)
        self._efficiency = 1.0
        self._restarted = self._closed = False
        self._failure: str | None = None
        self.model = load() if first is None else first
        host_executor(self.model)
        shared = self.model.capabilities.concurrent
        self._replicas = [
            Replica(self, self.model if shared or not number else load(), f"bksdm-replica-{number}")
            for number in range(layout.replicas)
        ]
        for replica in self._replicas:
            replica.start()

    def submit(self, ticket: Ticket) -> None:
        """Let a ticket wait for its place.

        Raises
        ------
        Unavailable, Refused, TooLate
            The engine has failed or is ending, the queue is full, or there is not enough time.
        """
        with self._changed:
            try:
                self._require_room(ticket)
            except (Unavailable, Refused, TooLate) as error:
                self.observer.refused(error.code)
                raise
            self._waiting.add(ticket)
            self._changed.notify_all()

    def _require_room(self, ticket: Ticket) -> None:
        if self._closed or self._failure is not None:
            raise Unavailable(self._failure or STOPPING)
        own = self.left(ticket)
        backlog = self._seconds(sum(map(self.left, self._waiting)))
        over = backlog + self._seconds(own) - self._queue_seconds
        if len(self._waiting) and (over > 0 or len(self._waiting) >= MOST_WAITING):
            room = max(over, 0.0)
            raise Refused(f"the queue is full; send it again in {room:.1f} s", room)
        if ticket.deadline is not None:
            needed = self.estimate(ticket)
            late = time.monotonic() + needed - ticket.deadline
            if late > 0:
                # Drawn alone, it would be in time, or never is.
                after = late if own / self._efficiency < needed - late else None
                told = f"it would be ready in {needed:.1f} s, later than timeout allows"
                raise TooLate(told, after)

    def left(self, ticket: Ticket) -> float:
        """Return the seconds of work that are left of a ticket, for one replica."""
        drawing = ticket.drawing
        if drawing is None:
            return self.costs.work(ticket.plan)
        index = ticket.plan.evaluations if drawing.denoising.done else drawing.denoising.index
        return self.costs.work(ticket.plan, index, drawing.decoded)

    def estimate(self, ticket: Ticket) -> float:
        """Return in about how many seconds a ticket will be done."""
        with self._changed:
            waits = ticket.state == "waiting"
            ahead = sum(map(self.left, self._waiting.ahead(ticket.order))) if waits else 0.0
            beside = min(replica.places for replica in self._replicas)
            share = min(self.layout.batch, beside + ticket.plan.images) / ticket.plan.images
            return self._seconds(ahead) + max(1.0, share) * self.left(ticket) / self._efficiency

    def _seconds(self, work: float) -> float:
        """Return how long the replicas take together for seconds of work."""
        return work / (self.layout.replicas * self._efficiency)

    def position(self, ticket: Ticket) -> int:
        """Return how many tickets go first."""
        with self._changed:
            return len(self._waiting.ahead(ticket.order)) if ticket.state == "waiting" else 0

    def cancel(self, ticket: Ticket) -> None:
        """Let go of a ticket: at once if it waits, else before the next step."""
        with self._changed:
            ticket.withdrawn = Withdrawn("cancelled")
            if self._waiting.remove(ticket):
                self.end(ticket, ticket.withdrawn)

    def end(self, ticket: Ticket, error: Exception | None = None) -> None:
        """Tell a ticket why it failed, if it did, and the observer that it ended."""
        if error is not None and not ticket.ended:
            ticket.fail(error)
        self.observer.ended(ticket)
        with self._changed:
            self._changed.notify_all()

    def admit(self, replica: Replica) -> list[Ticket] | None:
        """Return the tickets that a replica begins now, which have their places already.

        Waits while there is nothing to do.

        Returns
        -------
        list of Ticket or None
            None at the end.
        """
        with self._changed:
            while True:
                self._sweep()
                admitted = self._admitted(replica)
                if replica.tickets:
                    replica.beat = time.monotonic()
                    return admitted
                replica.beat = None
                self._changed.notify_all()
                if self._closed or self._failure is not None:
                    return None
                if self.model.capabilities.concurrent:
                    # Another replica may have found that this engine fails.
                    replica.model = self.model
                self._changed.wait()

    def _admitted(self, replica: Replica) -> list[Ticket]:
        admitted: list[Ticket] = []
        taken = replica.places
        # Work is spread: who has more than another leaves it what waits.
        fewest = min(other.places for other in self._replicas if other.is_alive())
        while taken <= fewest:
            ticket = self._waiting.first(self.layout.batch - taken, alone=not taken)
            if ticket is None:
                break
            admitted.append(ticket)
            taken += ticket.plan.images
            replica.tickets.append(ticket)
            if ticket.request.image is not None:
                # To encode a picture takes as long as several steps; the others go on between.
                break
        exchanged = None
        # Where another has room for it, it takes it at its next step.
        if not admitted and fewest and self._waiting.needed > self.layout.batch - fewest:
            exchanged = self._waiting.exchange(replica.drawings, self.layout.batch - taken)
        if exchanged is not None:
            longer, shorter = exchanged
            replica.tickets.remove(longer)
            longer.pause()
            self._waiting.add(longer)
            replica.tickets.append(shorter)
            admitted.append(shorter)
        return admitted

    def leave(self, replica: Replica, ticket: Ticket) -> None:
        """Free the places of a ticket."""
        with self._changed:
            replica.tickets.remove(ticket)

    def _sweep(self) -> None:
        """End tickets whose time is over before they got a place."""
        now = time.monotonic()
        for ticket in self._waiting:
            if ticket.late(now):
                self._waiting.remove(ticket)
                self.end(ticket, TooLate("not begun in time"))

    def worked(self, work: float, seconds: float) -> None:
        """Learn how much estimated work was done in a turn, to know the rate of all together."""
        if work > 0 and seconds > 0:
            with self._changed:
                found = min(max(work / seconds, 0.1), 10.0)
                self._efficiency += 0.1 * WEIGHT * (found - self._efficiency)

    def recover(self, replica: Replica, error: Exception) -> None:
        """Give a replica another engine in place of one that failed; the second time, end all."""
        with self._loading:
            shared = self.model.capabilities.concurrent
            if shared and replica.model is not self.model:
                replica.model = self.model
                return
            if self._restarted:
                self.fail(error)
                return
            self._restarted = True
            self.observer.restarted()
            try:
                replica.model = self._load()
            except Exception as failure:
                # Whatever an engine raises: nobody may wait for one that is gone.
                LOG.exception("engine cannot be loaded again")
                self.fail(failure)
                return
            if shared:
                self.model = replica.model

    def fail(self, error: Exception) -> None:
        """Take no more tickets, and tell those that wait, because there is no engine any more."""
        with self._changed:
            self._failure = f"the engine has failed ({type(error).__name__}); restart the server"
            self._end_waiting(Unavailable(self._failure))

    def _end_waiting(self, error: Exception) -> None:
        for ticket in self._waiting:
            self._waiting.remove(ticket)
            self.end(ticket, error)
        self._changed.notify_all()

    def drain(self, seconds: float) -> bool:
        """Take no more tickets, wait until those that are there have ended, and say if they have.

        Those that have not by then are handed back, for another server.
        """
        until = time.monotonic() + seconds
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while not self.idle and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            done = self.idle
            stopping = Unavailable(STOPPING)
            self._end_waiting(stopping)
            for replica in self._replicas:
                for ticket in replica.tickets:
                    ticket.withdrawn = ticket.withdrawn or stopping
        return done

    def close(self) -> None:
        """End all threads and let go of the model."""
        self.drain(0)
        for replica in self._replicas:
            replica.join()

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs."""
        busy = any(replica.beat is not None for replica in self._replicas)
        return not len(self._waiting) and not busy

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def waiting_seconds(self) -> float:
        """Seconds that the replicas will take for them."""
        with self._changed:
            return self._seconds(sum(map(self.left, self._waiting)))

    @property
    def running(self) -> int:
        """Pictures under way."""
        return sum(replica.places for replica in self._replicas)

    @property
    def failure(self) -> str | None:
        """Why it takes no more tickets."""
        return self._failure

    @property
    def alive(self) -> bool:
        """Whether every engine thread is there, and none has hung in a turn."""
        now = time.monotonic()
        beats = [replica.beat for replica in self._replicas]
        hung = any(beat is not None and now - beat > STUCK_SECONDS for beat in beats)
        return not hung and all(replica.is_alive() for replica in self._replicas)
