"""A server in this process, on a socket, for clients as they are."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from pathlib import Path

from bksdm.models import EMOJI
from bksdm.serve.callers import Keys
from bksdm.serve.measure import Wanted
from bksdm.serve.server import Server, listen, run_server
from bksdm.serve.service import Service
from bksdm.serve.settings import Settings

WANTED = Wanted(replicas=1, threads=1, batch=4)


class Running:
    """A server in a thread.

    Parameters
    ----------
    settings : Settings
        How it runs.
    keys : str
        Lines of keys.
    bundles : mapping, optional
        Folders of models; by default the built-in one, as ``emoji``.
    """

    def __init__(self, settings=None, keys="", bundles=None):
        settings = Settings(wanted=WANTED) if settings is None else settings
        self.url = None
        self._begun = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(settings, keys, bundles or {"emoji": EMOJI}), daemon=True
        )
        self._thread.start()
        assert self._begun.wait(60)

    def _run(self, settings, keys, bundles):
        async def main():
            self.service = Service({k: Path(v) for k, v in bundles.items()}, settings, Keys(keys))
            self.server = Server(self.service, listen("127.0.0.1", 0))
            await run_server(self.server, self._listening)

        asyncio.run(main())

    def _listening(self, address):
        self.url = address
        self._begun.set()

    @property
    def port(self):
        return int(self.url.rpartition(":")[2])

    def connect(self):
        """Return a socket to it."""
        return socket.create_connection(("127.0.0.1", self.port), 10)

    def until_idle(self, seconds=20):
        """Wait until nothing waits or runs."""
        end = time.monotonic() + seconds
        scheduler = self.service.models.loaded["emoji"].scheduler
        while not scheduler.idle:
            assert time.monotonic() < end
            time.sleep(0.005)
        return scheduler

    def stop(self):
        """End it as SIGTERM would."""
        self.server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()
