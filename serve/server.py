"""Run the application: load the model, listen, and stop without losing what is under way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn

from bksdm.engines.errors import RequestError
from bksdm.serve.app import make_app
from bksdm.serve.service import Service

LOG = logging.getLogger("bksdm.serve")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
BACKLOG = 2048
"""Connections that wait to be taken."""
KEEP_ALIVE_SECONDS = 75
"""Longer than clients and proxies keep idle connections: who closes first loses no request."""
CLOSING_SECONDS = 5
"""For answers that are being sent when everything is drawn."""


class Server(uvicorn.Server):
    """uvicorn's server, which at SIGTERM or SIGINT first finishes what is under way.

    Meanwhile it is not ready, and tells who comes that it is stopping. A second signal ends it at
    once.

    Parameters
    ----------
    service : Service
        What it serves.
    listening : socket
        Where it listens, as of :func:`listen`.
    """

    def __init__(self, service: Service, listening: socket.socket) -> None:
        self.service, self.listening = service, listening
        super().__init__(
            uvicorn.Config(
                make_app(service),
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=CLOSING_SECONDS,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
            )
        )

    @property
    def address(self) -> str:
        """Where it listens."""
        host, port, *_ = self.listening.getsockname()
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at a signal; the loop's own handlers leave alone who else listens for signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in STOP_SIGNALS:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Begin to stop; the second time at once."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what is under way, then close."""
        stopping = asyncio.ensure_future(self.service.stop())
        while not stopping.done() and not self.force_exit:
            await asyncio.wait([stopping], timeout=0.1)
        if not (stopping.done() and stopping.result()):
            LOG.warning("stopped before everything was drawn")
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 takes a free one.

    Raises
    ------
    RequestError
        The address is in use, or not this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as error:
        told = error.strerror or error
        raise RequestError(f"cannot listen on {host}, port {port}: {told}") from error


async def run_server(server: Server, listening: Callable[[str], object]) -> None:
    """Load the first model, listen until told to stop, and end.

    Parameters
    ----------
    server : Server
        The server.
    listening : callable
        Told the address when requests are taken.

    Raises
    ------
    BundleError, EngineError
        The model cannot be loaded.
    """
    await server.service.models.get()
    told = asyncio.ensure_future(_tell(server, listening))
    try:
        await server.serve([server.listening])
    finally:
        told.cancel()
        await server.service.models.close()


async def _tell(server: Server, listening: Callable[[str], object]) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    listening(server.address)
