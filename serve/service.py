"""Take orders, draw them, and make files of the pictures: what all APIs share."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bksdm.runtime.images import to_pil
from bksdm.runtime.picture_formats import encode_picture
from bksdm.runtime.picture_record import PictureRecord
from bksdm.runtime.recorded import Recorder
from bksdm.runtime.result import Result
from bksdm.serve.admission import ticket_of
from bksdm.serve.callers import Caller, Keys
from bksdm.serve.errors import ServeError
from bksdm.serve.kept import KeptPictures
from bksdm.serve.metrics import Metrics
from bksdm.serve.models import Models, Served
from bksdm.serve.order import Order
from bksdm.serve.settings import Settings
from bksdm.serve.ticket import Ticket

MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


class Unfit(ServeError):
    """The safety checker withheld every picture."""

    status, code = 400, "content_filter"


@dataclass(frozen=True)
class File:
    """A finished picture.

    Attributes
    ----------
    content : bytes
        Of the file.
    media_type : str
        As in ``Content-Type``.
    record : PictureRecord
        What the file says of how it was made.
    unfit : bool
        Whether the safety checker made it black.
    """

    content: bytes
    media_type: str
    record: PictureRecord
    unfit: bool


class Draft:
    """An order that is being drawn.

    Attributes
    ----------
    ticket : Ticket
        Its way through the scheduler.
    model : str
        The name of the model.
    served : Served
        The model.
    order : Order
        What is drawn.
    """

    def __init__(self, ticket: Ticket, model: str, served: Served, order: Order) -> None:
        self.ticket, self.model, self.served, self.order = ticket, model, served, order

    @property
    def position(self) -> int:
        """How many go first."""
        return self.served.scheduler.position(self.ticket)

    def cancel(self) -> None:
        """Let go of it, if it has not ended."""
        if not self.ticket.ended:
            self.served.scheduler.cancel(self.ticket)

    @cached_property
    def _recorder(self) -> Recorder:
        order = self.order
        sent: dict[str, Any] = {"image": order.image, "mask": order.mask}
        paths: dict[str, Any] = {n: None if p is None else Path(n) for n, p in sent.items()}
        sent["control_image"] = order.control_images
        paths["control_image"] = [Path("control_image")] * len(order.control_images)
        return Recorder(self.served.bundle, paths, sent, self.order.output, self.served.digest)

    async def files(self) -> list[File]:
        """Return the finished pictures as files.

        Raises
        ------
        Unfit
            The safety checker withheld all of them.
        """
        assert self.ticket.result is not None
        return await asyncio.to_thread(self._files, self.ticket.result)

    def _files(self, result: Result) -> list[File]:
        unfit = result.nsfw_content_detected or [False] * len(result.pixels)
        if all(unfit):
            raise Unfit("the safety checker withheld every picture; take another prompt or seed")
        files, output = [], self.order.output
        for index, image in enumerate(to_pil(result.pixels)):
            record = self._recorder.record(result.config, index, result)
            content = encode_picture(image, record, output)
            files.append(File(content, MEDIA_TYPES[output.name], record, unfit[index]))
        return files


class Service:
    """A server without its HTTP.

    Parameters
    ----------
    bundles : mapping
        Folders of models by the names that clients ask for.
    settings : Settings
        How it runs.
    keys : Keys, optional
        Who may use it.

    Attributes
    ----------
    kept : KeptPictures
        Pictures that links lead to.
    chosen : str
        The model that A1111's clients have chosen.
    stopping : bool
        Whether it takes no more orders.
    """

    def __init__(
        self, bundles: Mapping[str, Path], settings: Settings, keys: Keys | None = None
    ) -> None:
        self.settings = settings
        self.keys = Keys() if keys is None else keys
        self.metrics = Metrics()
        self.models = Models(bundles, settings, self.metrics.observer)
        self.metrics.watch(self.models)
        self.kept = KeptPictures(settings.kept_seconds, settings.kept_bytes)
        self.chosen = self.models.default
        self.stopping = False

    async def begin(self, order: Order, caller: Caller) -> Draft:
        """Let an order wait for its turn.

        Raises
        ------
        ServeError, BundleError, EngineError
            It cannot be drawn, or not now.
        """
        name = order.model or self.models.default
        served = await self.models.get(name)
        limits, priority = self.settings.limits, caller.priority
        ticket = await asyncio.to_thread(ticket_of, served.scheduler, order, limits, priority)
        if self.models.loaded.get(name) is not served:
            # Let go of meanwhile, for another model.
            served = await self.models.get(name)
        if traced():
            from bksdm.serve.traces import follow

            follow(ticket, name)
        served.scheduler.submit(ticket)
        return Draft(ticket, name, served, order)

    @property
    def ready(self) -> bool:
        """Whether it takes orders."""
        return bool(self.models.loaded) and not self.stopping and self.models.failure is None

    async def stop(self) -> bool:
        """Take no more orders, and return whether those that were there ended in time."""
        self.stopping = True
        return await self.models.stop(self.settings.grace_seconds)


@cache
def traced() -> bool:
    """Return whether OpenTelemetry is there, which knows whether anybody wants spans."""
    return find_spec("opentelemetry") is not None and find_spec("opentelemetry.trace") is not None
