"""Spans of OpenTelemetry; without an SDK that a program has set up, its API drops them."""

from __future__ import annotations

import time
from functools import partial

from opentelemetry import context, propagate, trace
from opentelemetry.context import Context
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from bksdm.serve.errors import ServeError
from bksdm.serve.ticket import Ticket

TRACER = "bksdm.serve"


class Traced:
    """Lets spans of a request be children of the one that its client names, as W3C has it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        # Where something has begun a span of its own for it, that is the parent.
        if scope["type"] != "http" or trace.get_current_span().get_span_context().is_valid:
            await self._app(scope, receive, send)
            return
        token = context.attach(propagate.extract(Headers(scope=scope)))
        try:
            await self._app(scope, receive, send)
        finally:
            context.detach(token)


def follow(ticket: Ticket, model: str) -> None:
    """Tell of a ticket when it has ended: a span, and one for each stage in it."""
    ticket.listen(partial(_tell, ticket, model, context.get_current()))


def _tell(ticket: Ticket, model: str, parent: Context) -> None:
    if not ticket.ended:
        return
    config, now, clock = ticket.request.config, time.time_ns(), time.monotonic()

    def at(moment: float) -> int:
        return now - int((clock - moment) * 1e9)

    tracer = trace.get_tracer(TRACER)
    seconds = {} if ticket.result is None else ticket.result.seconds
    attributes: dict[str, str | int | float] = {
        "bksdm.model": model,
        "bksdm.images": config.images,
        "bksdm.width": config.width or 0,
        "bksdm.height": config.height or 0,
        "bksdm.steps": ticket.step,
        **{f"bksdm.seconds.{stage}": spent for stage, spent in seconds.items()},
    }
    whole = tracer.start_span("draw", parent, attributes=attributes, start_time=at(ticket.arrived))
    if ticket.error is not None:
        code = ticket.error.code if isinstance(ticket.error, ServeError) else "error"
        whole.set_attribute("error.type", code)
        whole.set_status(trace.StatusCode.ERROR, str(ticket.error))
    inside = trace.set_span_in_context(whole, parent)
    for stage, begun, ended in ticket.stages:
        tracer.start_span(stage, inside, start_time=at(begun)).end(at(ended))
    whole.end(now)
