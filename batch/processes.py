"""Draw with several processes of this machine; one that dies is replaced."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from bksdm.batch.drawer import Drawer, Outcome, Setup
from bksdm.batch.job import Job
from bksdm.engines.errors import BksdmError, EngineError


class Worker:
    """A process that draws one line after the other.

    It starts anew, with threads of its own, and inherits nothing of this one.
    """

    def __init__(self, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(setup, theirs), daemon=True)
        with _without_interrupts():
            self._process.start()
        theirs.close()
        self.job: Job | None = None

    def give(self, job: Job) -> None:
        """Let it draw a line."""
        self.job = job
        # That it has died is told by the connection.
        with contextlib.suppress(OSError):
            self.connection.send(job)

    def take(self) -> Outcome | Exception | None:
        """Return what became of its line; None if the process has died."""
        try:
            told: Outcome | Exception = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            return None
        return told

    @property
    def end(self) -> str:
        """How it has ended."""
        code = self._process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def stop(self) -> None:
        """End it, whatever it does."""
        self._process.terminate()
        self._process.join()
        self.connection.close()


def draw_with_processes(setup: Setup, jobs: Sequence[Job], count: int) -> Generator[Outcome]:
    """Draw lines, and return what became of each when it is done.

    Programs that call it need ``if __name__ == "__main__":``, for processes import them.

    Parameters
    ----------
    setup : Setup
        What they are drawn with, and where to.
    jobs : sequence of Job
        The lines.
    count : int
        Processes at a time.

    Raises
    ------
    EngineError
        The process that drew a line has died, and the one that drew it again too.
    BksdmError, OSError
        A line cannot be drawn or written.
    """
    waiting = deque(jobs)
    workers: dict[Any, Worker] = {}
    died: set[int] = set()

    def begin(job: Job) -> None:
        worker = Worker(setup)
        workers[worker.connection] = worker
        worker.give(job)

    try:
        while waiting and len(workers) < count:
            begin(waiting.popleft())
        while workers:
            for connection in wait(list(workers)):
                worker = workers[connection]
                assert worker.job is not None
                told = worker.take()
                if told is None:
                    del workers[connection]
                    _refuse_twice(worker, worker.job.line, died)
                    begin(worker.job)
                    continue
                if isinstance(told, Exception):
                    raise told
                if waiting:
                    worker.give(waiting.popleft())
                else:
                    workers.pop(connection).stop()
                yield told
    finally:
        for worker in workers.values():
            worker.stop()


def _refuse_twice(worker: Worker, line: int, died: set[int]) -> None:
    if line in died:
        raise EngineError(
            f"line {line}: the process that drew it ended by {worker.end}, and so did one before; "
            "where memory runs out, take fewer processes"
        )
    died.add(line)


def _work(setup: Setup, connection: Connection) -> None:
    """Draw what is asked for, until nobody asks any more."""
    drawer = Drawer(setup, f"process {os.getpid()}")
    # Of the connection: who asked is gone.
    with contextlib.suppress(EOFError, OSError):
        while True:
            job = connection.recv()
            try:
                told: Outcome | Exception = drawer.draw(job.line, job.config)
            except (BksdmError, OSError) as error:
                told = error
            connection.send(told)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Keep Ctrl-C, which a terminal sends to all of its processes, from those that begin here."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Which the first process would start otherwise, and then let interrupts through.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
