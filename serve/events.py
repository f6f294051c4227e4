"""Server-sent events: a stream that ends with its client, and never waits for a slow one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from bksdm.serve.ticket import Ticket

HEARTBEAT_SECONDS = 15.0
"""Between comments that find out whether the client is there."""
STALLED_SECONDS = 60.0
"""For which a client may read nothing."""


@contextmanager
def changes(ticket: Ticket) -> Iterator[asyncio.Event]:
    """Return an event that is set at every change of a ticket, and to begin with."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    changed.set()

    def tell() -> None:
        # The engine's thread does not care whether the loop has ended meanwhile.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(changed.set)

    stop = ticket.listen(tell)
    try:
        yield changed
    finally:
        stop()


async def until_ended(ticket: Ticket) -> None:
    """Wait until a ticket is done or failed."""
    with changes(ticket) as changed:
        while not ticket.ended:
            await changed.wait()
            changed.clear()


async def until_gone(receive: Receive) -> None:
    """Wait until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def ended_or_gone(ticket: Ticket, receive: Receive) -> bool:
    """Wait for the end of a ticket or for its client to leave, and return whether it ended."""
    tasks = [asyncio.ensure_future(until_ended(ticket)), asyncio.ensure_future(until_gone(receive))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return ticket.ended


def event(name: str, data: Mapping[str, Any], number: int | None = None) -> bytes:
    """Return one event as it is sent."""
    told = "" if number is None else f"id: {number}\n"
    return f"{told}event: {name}\ndata: {json.dumps(data)}\n\n".encode()


class EventStream:
    """An answer of events.

    Parameters
    ----------
    events : async generator of bytes
        What is sent.
    end : callable
        Called at the end, also where the client has left.
    """

    def __init__(
        self, events: AsyncGenerator[bytes], end: Callable[[], object] = lambda: None
    ) -> None:
        self._events, self._end = events, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        gone = asyncio.ensure_future(until_gone(receive))
        following = asyncio.ensure_future(anext(self._events, None))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while not gone.done():
                await asyncio.wait(
                    (gone, following),
                    timeout=HEARTBEAT_SECONDS,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                content = following.result() if following.done() else b": still there\n\n"
                if content is None:
                    await send({"type": "http.response.body", "body": b""})
                    break
                if following.done():
                    following = asyncio.ensure_future(anext(self._events, None))
                body: Message = {"type": "http.response.body", "body": content, "more_body": True}
                try:
                    await asyncio.wait_for(send(body), STALLED_SECONDS)
                except TimeoutError:
                    break
        finally:
            gone.cancel()
            following.cancel()
            await asyncio.gather(gone, following, return_exceptions=True)
            await self._events.aclose()
            self._end()
