"""OpenAI's image API: ``/v1/images/generations``, ``/v1/images/edits`` and ``/v1/models``.

Every option of a picture may be given as a further field of its own name.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bksdm.runtime.picture_formats import encode_picture
from bksdm.runtime.picture_record import PictureRecord
from bksdm.serve.answers import error_body, error_of
from bksdm.serve.bodies import form_parts, json_object
from bksdm.serve.errors import Withdrawn
from bksdm.serve.events import EventStream, changes, ended_or_gone, event
from bksdm.serve.openai_fields import COMMON, edit_fields, order_of
from bksdm.serve.order import refuse_unknown
from bksdm.serve.service import Draft, Service


def routes(service: Service) -> list[Route]:
    """Return the routes of this API."""

    async def generations(request: Request) -> Response:
        fields = await json_object(request)
        refuse_unknown(fields, COMMON)
        return await _answer(service, request, fields, "image_generation")

    async def edits(request: Request) -> Response:
        parts = await form_parts(request, service.settings.limits.body_bytes)
        fields = await asyncio.to_thread(edit_fields, parts, service)
        refuse_unknown(fields, {*COMMON, "image", "mask"})
        return await _answer(service, request, fields, "image_edit")

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(n) for n in service.models.bundles]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in service.models.bundles:
            await service.models.get(name)
        return JSONResponse(_model(name))

    return [
        Route("/v1/images/generations", generations, methods=["POST"]),
        Route("/v1/images/edits", edits, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
    ]


async def _answer(
    service: Service, request: Request, fields: Mapping[str, Any], kind: str
) -> Response:
    order = order_of(fields, service)
    draft = await service.begin(order, request.state.caller)
    request.state.told["model"] = draft.model
    if service.settings.log_prompts:
        request.state.told["prompt"] = order.config.prompt
    if fields.get("stream"):
        path = request.url.path
        # Starlette asks for nothing but that it can be called.
        return EventStream(_events(draft, kind, path), draft.cancel)  # type: ignore[return-value]
    try:
        if not await ended_or_gone(draft.ticket, request.receive):
            raise Withdrawn("the client is gone")
    finally:
        # Some servers cancel what a client has left.
        draft.cancel()
    draft.ticket.wait(0)
    files = await draft.files()
    if fields.get("response_format") == "url":
        base = str(request.base_url).rstrip("/")
        data = [{"url": base + service.kept.keep(f.content, f.media_type)} for f in files]
    else:
        data = [{"b64_json": _text(file.content)} for file in files]
    return JSONResponse({**_about(draft), "created": int(time.time()), "data": data})


async def _events(draft: Draft, kind: str, path: str) -> AsyncGenerator[bytes]:
    """Yield partial images as they come, then each finished one."""
    ticket, sent = draft.ticket, 0
    with changes(ticket) as changed:
        while True:
            await changed.wait()
            changed.clear()
            ended = ticket.ended
            for shown in ticket.previews[sent:]:
                picture = await asyncio.to_thread(_partial, shown.pixels[0], draft)
                yield event(
                    f"{kind}.partial_image",
                    {
                        **_told(draft, f"{kind}.partial_image", picture),
                        "partial_image_index": sent,
                    },
                )
                sent += 1
            if ended:
                break
    try:
        ticket.wait(0)
        files = await draft.files()
    except Exception as error:
        yield event("error", {"type": "error", **error_body(path, error_of(error))})
        return
    for file in files:
        told = _told(draft, f"{kind}.completed", file.content)
        yield event(f"{kind}.completed", {**told, "usage": _usage()})


def _told(draft: Draft, name: str, content: bytes) -> dict[str, Any]:
    return {
        "type": name,
        "b64_json": _text(content),
        "created_at": int(time.time()),
        "quality": "auto",
        **{"background": "opaque", **_about(draft)},
    }


def _about(draft: Draft) -> dict[str, Any]:
    config = draft.ticket.request.config
    return {
        "size": f"{config.width}x{config.height}",
        "output_format": draft.order.output.name.lower(),
        "background": "opaque",
        "seed": list(config.seed) if isinstance(config.seed, tuple) else config.seed,
    }


def _usage() -> dict[str, Any]:
    """Return what OpenAI's clients require: there are no tokens to pay for here."""
    details = {"image_tokens": 0, "text_tokens": 0}
    counted = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    return {**counted, "input_tokens_details": details}


def _partial(pixels: Any, draft: Draft) -> bytes:
    """Return a preview as a file, of the size of the picture."""
    config = draft.ticket.request.config
    assert config.width is not None
    assert config.height is not None
    large = Image.fromarray(pixels).resize((config.width, config.height))
    return encode_picture(large, PictureRecord(), draft.order.output)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "bksdm-runtime"}


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
