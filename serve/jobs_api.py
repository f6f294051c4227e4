"""Our own API: ``POST /v1/jobs`` and what follows from it, and the files that links lead to."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator
from typing import Any

from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bksdm.runtime.generation_config import OPTIONS
from bksdm.runtime.picture_formats import encode_picture
from bksdm.runtime.picture_record import PictureRecord
from bksdm.serve.bodies import json_object
from bksdm.serve.errors import FieldError
from bksdm.serve.events import EventStream, changes, event
from bksdm.serve.jobs import PATH, Job, Jobs
from bksdm.serve.order import (
    MAX_PREVIEWS,
    Order,
    config_of,
    count_of,
    output_of,
    refuse_unknown,
    timeout_of,
)
from bksdm.serve.service import Service
from bksdm.serve.ticket import Ticket
from bksdm.serve.uploads import from_base64, picture

OTHERS = {
    "model",
    "image",
    "mask",
    "control_image",
    "output_format",
    "quality",
    "timeout",
    "previews",
}
"""Fields beside the options of a picture."""
LONGEST_KEY = 255
MAX_CONTROL_IMAGES = 8


def routes(service: Service, jobs: Jobs) -> list[Route]:
    """Return the routes of this API."""

    async def create(request: Request) -> Response:
        fields = await json_object(request)
        key = request.headers.get("idempotency-key")
        if key is not None and len(key) > LONGEST_KEY:
            raise FieldError("", f"Idempotency-Key may have {LONGEST_KEY} characters")
        order = await asyncio.to_thread(order_of, fields, service)
        job = await jobs.add(order, request.state.caller, key, await request.body())
        request.state.told |= {"model": job.described()["model"], "job": job.name}
        if service.settings.log_prompts:
            request.state.told["prompt"] = order.config.prompt
        return JSONResponse(job.described(), 202, {"location": f"{PATH}/{job.name}"})

    async def show(request: Request) -> Response:
        return JSONResponse(_job(request).described())

    async def cancel(request: Request) -> Response:
        job = _job(request)
        job.cancel()
        return JSONResponse(job.described())

    async def events(request: Request) -> Response:
        # Starlette asks for nothing but that it can be called.
        return EventStream(_events(_job(request)))  # type: ignore[return-value]

    async def fetch(request: Request) -> Response:
        found = service.kept.fetch(request.path_params["name"], request.query_params)
        headers = {"cache-control": "private, max-age=3600, immutable"}
        return Response(found.content, media_type=found.media_type, headers=headers)

    def _job(request: Request) -> Job:
        return jobs.get(request.path_params["job"], request.state.caller)

    return [
        Route(PATH, create, methods=["POST"]),
        Route(f"{PATH}/{{job}}", show, methods=["GET"]),
        Route(f"{PATH}/{{job}}", cancel, methods=["DELETE"]),
        Route(f"{PATH}/{{job}}/events", events, methods=["GET"]),
        Route("/v1/files/{name}", fetch, methods=["GET"]),
    ]


def order_of(fields: dict[str, Any], service: Service) -> Order:
    """Return what the fields of a request ask for.

    Raises
    ------
    FieldError
        A field is wrong, or unknown.
    """
    refuse_unknown(fields, {*OPTIONS, *OTHERS})
    limits = service.settings.limits
    config = config_of({name: fields.get(name) for name in OPTIONS}, limits)
    model = fields.get("model")
    if not isinstance(model, (str, type(None))):
        raise FieldError("model", "model must be a text")
    sent: dict[str, Image.Image] = {}
    for name in ("image", "mask"):
        if fields.get(name) is not None:
            content = from_base64(name, fields[name])
            sent[name] = picture(name, content, limits.sent_pixels)
    if "image" in sent:
        sent["image"] = sent["image"].convert("RGB")
    shown = fields.get("control_image") or []
    listed = shown if isinstance(shown, list) else [shown]
    if len(listed) > MAX_CONTROL_IMAGES:
        raise FieldError("control_image", f"control_image may be {MAX_CONTROL_IMAGES} pictures")
    controls = tuple(
        picture("control_image", from_base64("control_image", each), limits.sent_pixels)
        for each in listed
    )
    previews = fields.get("previews")
    return Order(
        config,
        model,
        sent.get("image"),
        sent.get("mask"),
        output_of(fields.get("output_format"), fields.get("quality")),
        timeout_of(fields.get("timeout")),
        0 if previews is None else count_of("previews", previews, 0, MAX_PREVIEWS),
        controls,
    )


async def _events(job: Job) -> AsyncGenerator[bytes]:
    """Yield what happens: ``state`` at every change, ``preview``, and ``end``; none for slow eyes.

    A client that reads more slowly than the engine draws is told the newest state only.
    """
    number = 0
    if job.draft is not None:
        async for name, told in _progress(job, job.draft.ticket):
            number += 1
            yield event(name, told, number)
    await job.filed.wait()
    yield event("end", job.described(), number + 1)


async def _progress(job: Job, ticket: Ticket) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
    """Yield name and data of events until the last step."""
    seen = 0
    with changes(ticket) as changed:
        while not ticket.ended:
            await changed.wait()
            changed.clear()
            told = job.described()
            yield "state", {name: told[name] for name in ("status", "position", "step", "steps")}
            if len(ticket.previews) > seen:
                seen, shown = len(ticket.previews), ticket.previews[-1]
                pictures = [_data_url(pixels) for pixels in shown.pixels]
                yield "preview", {"step": shown.step, "pictures": pictures}


def _data_url(pixels: Any) -> str:
    content = encode_picture(Image.fromarray(pixels), PictureRecord())
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
