"""Requests that wait for a place: in which order, and who may take whose place."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator, Sequence

from bksdm.serve.drawing import Drawing
from bksdm.serve.ticket import Ticket

QUANTUM = 8
"""Evaluations that pictures may make before shorter ones that wait can take their place."""


class Waiting:
    """Tickets by priority, then by arrival; not safe for threads, the scheduler locks.

    Parameters
    ----------
    left : callable
        Returns the seconds of work that are left of a ticket.
    """

    def __init__(self, left: Callable[[Ticket], float]) -> None:
        self._left = left
        self._tickets: list[Ticket] = []

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(list(self._tickets))

    @property
    def needed(self) -> int:
        """Pictures of the first one; 0 where nothing waits."""
        return self._tickets[0].plan.images if self._tickets else 0

    def add(self, ticket: Ticket) -> None:
        """Let a ticket wait, in its place by priority and arrival."""
        insort(self._tickets, ticket, key=lambda other: other.order)

    def remove(self, ticket: Ticket) -> bool:
        """Take a ticket out, and return whether it was there."""
        if ticket not in self._tickets:
            return False
        self._tickets.remove(ticket)
        return True

    def ahead(self, order: tuple[int, int]) -> list[Ticket]:
        """Return those that go first of a ticket of that order."""
        return [ticket for ticket in self._tickets if ticket.order < order]

    def first(self, places: int, alone: bool) -> Ticket | None:
        """Take the first ticket out, if it fits.

        Parameters
        ----------
        places : int
            Pictures that there is room for.
        alone : bool
            Whether nothing else runs there: then any ticket fits.
        """
        if self._tickets and (alone or self._tickets[0].plan.images <= places):
            return self._tickets.pop(0)
        return None

    def exchange(self, drawings: Sequence[Drawing], free: int) -> tuple[Ticket, Ticket] | None:
        """Return pictures that give their place to a ticket, which is taken out.

        Those with the most work left give it, after :data:`QUANTUM` evaluations to a ticket with
        less work left than they have, and at once to one of higher priority.

        Parameters
        ----------
        drawings : sequence of Drawing
            That have places.
        free : int
            Pictures that there is room for beside them.
        """
        running = [drawing for drawing in drawings if not drawing.denoising.done]
        for drawing in sorted(running, key=lambda d: self._left(d.ticket), reverse=True):
            room, left = free + drawing.ticket.plan.images, self._left(drawing.ticket)
            for ticket in self._tickets:
                if ticket.plan.images > room:
                    continue
                shorter = drawing.turns >= QUANTUM and self._left(ticket) < left
                same = ticket.priority == drawing.ticket.priority
                if ticket.priority > drawing.ticket.priority or (same and shorter):
                    self._tickets.remove(ticket)
                    return drawing.ticket, ticket
        return None
