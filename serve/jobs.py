"""Orders that are drawn while their client does something else, and are asked after by id."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from bksdm.serve.answers import error_body, error_of
from bksdm.serve.callers import Caller
from bksdm.serve.errors import FieldError, NotFound
from bksdm.serve.events import until_ended
from bksdm.serve.order import Order
from bksdm.serve.service import Draft, Service
from bksdm.serve.ticket import Ticket

MOST_JOBS = 10_000
PATH = "/v1/jobs"
STATES = {"waiting": "queued", "running": "running", "done": "done", "failed": "failed"}


@dataclass
class Job:
    """An order with an id.

    Attributes
    ----------
    name : str
        The id.
    caller : Caller
        Whose it is; others do not see it.
    draft : Draft or None
        What is drawn; None when it is filed, for its pixels would fill memory.
    links : list of str
        Of the finished pictures.
    created : float
        Seconds since 1970.
    filed : asyncio.Event
        Set when the links are there, or it has failed.
    error : Exception or None
        Why there are no pictures.
    told : dict
        What a client is told when it is filed.
    """

    name: str
    caller: Caller
    draft: Draft | None
    created: float
    links: list[str] = field(default_factory=list)
    unfit: list[bool] = field(default_factory=list)
    filed: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None
    filing: asyncio.Task[None] | None = None
    told: dict[str, Any] = field(default_factory=dict)

    def _status(self, ticket: Ticket) -> str:
        if self.error is not None:
            return "failed"
        # Between the last step and the files it still runs.
        unfiled = ticket.ended and len(self.links) < ticket.plan.images
        return "running" if unfiled else STATES[ticket.state]

    def cancel(self) -> None:
        """Let go of it, if it has not ended."""
        if self.draft is not None:
            self.draft.cancel()

    def file(self) -> None:
        """Take note that nothing changes any more."""
        self.told = self.described()
        self.draft = None
        self.filed.set()

    def described(self) -> dict[str, Any]:
        """Return what a client is told."""
        if self.draft is None:
            return self.told
        ticket, config = self.draft.ticket, self.draft.ticket.request.config
        path = f"{PATH}/{self.name}"
        told: dict[str, Any] = {
            "id": self.name,
            "status": self._status(ticket),
            "position": self.draft.position,
            "step": ticket.step,
            "steps": ticket.plan.evaluations,
            "created": int(self.created),
            "model": self.draft.model,
            "options": {
                name: value for name, value in config.to_dict().items() if value is not None
            },
            "pictures": list(self.links),
            "links": {"self": path, "events": f"{path}/events"},
        }
        if ticket.result is not None:
            told["seconds"] = {k: round(v, 4) for k, v in ticket.result.seconds.items()}
            told["nsfw_content_detected"] = self.unfit or None
        if self.error is not None:
            told["error"] = error_body(PATH, error_of(self.error))
        return told


class Jobs:
    """The jobs of a server; for one event loop.

    Parameters
    ----------
    service : Service
        Draws them.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._repeated: dict[tuple[str, str], tuple[str, asyncio.Future[str]]] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    async def add(self, order: Order, caller: Caller, key: str | None, body: bytes) -> Job:
        """Begin a job, or return the one that was begun with the same key.

        Parameters
        ----------
        order : Order
            What to draw.
        caller : Caller
            Whose it is.
        key : str, optional
            Of idempotency: with the same one, the same body is drawn once.
        body : bytes
            Of the request.

        Raises
        ------
        FieldError
            The key was used with another body.
        ServeError
            As of :meth:`~bksdm.serve.service.Service.begin`.
        """
        self._forget()
        if key is None:
            return await self._begin(order, caller)
        digest = hashlib.sha256(body).hexdigest()
        known = self._repeated.get((caller.name, key))
        if known is not None:
            if known[0] != digest:
                raise FieldError("", "this Idempotency-Key was used with another body")
            return self.get(await asyncio.shield(known[1]), caller)
        begun: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._repeated[caller.name, key] = digest, begun
        try:
            job = await self._begin(order, caller)
        except BaseException as error:
            # Nothing was begun, so the same key may be sent again.
            del self._repeated[caller.name, key]
            begun.set_exception(error)
            begun.exception()
            raise
        begun.set_result(job.name)
        return job

    async def _begin(self, order: Order, caller: Caller) -> Job:
        draft = await self._service.begin(order, caller)
        job = Job(secrets.token_urlsafe(12), caller, draft, time.time())
        self._jobs[job.name] = job
        job.filing = asyncio.create_task(self._file(job))
        return job

    async def _file(self, job: Job) -> None:
        """Keep the pictures of a job when they are there."""
        assert job.draft is not None
        try:
            await until_ended(job.draft.ticket)
            job.draft.ticket.wait(0)
            for file in await job.draft.files():
                job.links.append(self._service.kept.keep(file.content, file.media_type))
                job.unfit.append(file.unfit)
        except Exception as error:
            job.error = error
        job.file()

    def get(self, name: str, caller: Caller) -> Job:
        """Return a job.

        Raises
        ------
        NotFound
            There is none of that id, or it is somebody else's.
        """
        job = self._jobs.get(name)
        if job is None or job.caller.name != caller.name:
            raise NotFound(f"there is no job {name!r:.40}, or no longer")
        return job

    def _forget(self) -> None:
        """Let go of jobs whose pictures are not kept any more."""
        oldest = time.time() - self._service.settings.kept_seconds
        for name, job in list(self._jobs.items()):
            if job.created > oldest and len(self._jobs) <= MOST_JOBS:
                break
            if job.filed.is_set():
                del self._jobs[name]
        self._repeated = {
            key: (digest, begun)
            for key, (digest, begun) in self._repeated.items()
            if not begun.done() or begun.result() in self._jobs
        }
