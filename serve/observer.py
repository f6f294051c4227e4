"""What a scheduler tells of its work; :mod:`bksdm.serve.metrics` counts it."""

from __future__ import annotations

from bksdm.serve.ticket import Ticket


class Observer:
    """Is told of events, in the thread in which they happen; this one lets them pass."""

    def called(self, pictures: int, seconds: float) -> None:
        """Take note of one turn of the UNet: the pictures in it, and its wall time."""

    def decoded(self, seconds: float) -> None:
        """Take note of one decoded picture."""

    def refused(self, code: str) -> None:
        """Take note of a request that was not taken."""

    def ended(self, ticket: Ticket) -> None:
        """Take note of a ticket that is done or failed."""

    def restarted(self) -> None:
        """Take note of an engine that failed and is loaded anew."""
