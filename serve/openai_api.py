"""OpenAI's image API: ``/v1/images/generations``, ``/v1/images/edits`` and ``/v1/models``.

Every option of a picture may be given as a further field of its own name.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from PIL import Image, ImageOps
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bksdm.runtime.generation_config import OPTIONS
from bksdm.runtime.picture_formats import encode_picture
from bksdm.runtime.picture_record import PictureRecord
from bksdm.serve.answers import error_body, error_of
from bksdm.serve.bodies import form_parts, json_object
from bksdm.serve.errors import FieldError, Withdrawn
from bksdm.serve.events import EventStream, changes, ended_or_gone, event
from bksdm.serve.order import Order, config_of, count_of, output_of, refuse_unknown, timeout_of
from bksdm.serve.service import Draft, Service
from bksdm.serve.uploads import picture

MOST_PARTIAL_IMAGES = 3
OWN = tuple(name for name in OPTIONS if name != "prompt")
"""Options of a picture beside the fields of OpenAI."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "background": ("auto", "opaque"),
    "quality": ("auto",),
    "moderation": ("auto",),
}
"""Fields that can only be what is done anyway."""
COMMON = {
    "prompt",
    "model",
    "n",
    "size",
    "response_format",
    "output_format",
    "output_compression",
    "stream",
    "partial_images",
    # It names the end user, and does not change the picture.
    "user",
    "safety_identifier",
    "timeout",
    *NEUTRAL,
    *OWN,
}
FLAGS = ("prompt_weights", "long_prompt", "stream")
TEXTS = {
    "prompt",
    "negative_prompt",
    "model",
    "size",
    "response_format",
    "output_format",
    "user",
    "safety_identifier",
    "sampler",
    "noise",
    *NEUTRAL,
}


def routes(service: Service) -> list[Route]:
    """Return the routes of this API."""

    async def generations(request: Request) -> Response:
        fields = await json_object(request)
        refuse_unknown(fields, COMMON)
        return await _answer(service, request, fields, "image_generation")

    async def edits(request: Request) -> Response:
        parts = await form_parts(request, service.settings.limits.body_bytes)
        fields = await asyncio.to_thread(_edit_fields, parts, service)
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


def order_of(fields: Mapping[str, Any], service: Service) -> Order:
    """Return what the fields of a request ask for.

    Raises
    ------
    FieldError
        A field is wrong, or cannot be honoured.
    """
    for name, allowed in NEUTRAL.items():
        if fields.get(name) is not None and fields[name] not in allowed:
            raise FieldError(name, f"{name} can only be {' or '.join(allowed)} here")
    options = {name: fields.get(name) for name in ("prompt", *OWN)}
    if not isinstance(options["prompt"], (str, type(None))):
        raise FieldError("prompt", "prompt must be a text")
    if fields.get("n") is not None:
        if options["num_images_per_prompt"] is not None:
            raise FieldError("n", "n and num_images_per_prompt are one field; give one of them")
        options["num_images_per_prompt"] = count_of("n", fields["n"], 1, _most_images(service))
    size = fields.get("size")
    if size is not None and size != "auto":
        found = (
            re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", size) if isinstance(size, str) else None
        )
        if found is None:
            raise FieldError("size", "size must look like 512x512, or be auto")
        if options["width"] is not None or options["height"] is not None:
            raise FieldError("size", "size says width and height; give one or the other")
        options["width"], options["height"] = int(found[1]), int(found[2])
    if fields.get("response_format") not in (None, "b64_json", "url"):
        raise FieldError("response_format", "response_format must be b64_json or url")
    model = fields.get("model")
    if not isinstance(model, (str, type(None))):
        raise FieldError("model", "model must be a text")
    previews = fields.get("partial_images")
    if previews is not None:
        previews = count_of("partial_images", previews, 0, MOST_PARTIAL_IMAGES)
    stream = fields.get("stream")
    if not isinstance(stream, (bool, type(None))):
        raise FieldError("stream", "stream must be true or false")
    if previews and not stream:
        raise FieldError("partial_images", "partial_images needs stream")
    if stream and fields.get("response_format") == "url":
        raise FieldError("response_format", "response_format is b64_json where stream is set")
    return Order(
        config_of(options, service.settings.limits),
        model or None,
        fields.get("image"),
        fields.get("mask"),
        output_of(
            fields.get("output_format"), fields.get("output_compression"), "output_compression"
        ),
        timeout_of(fields.get("timeout")),
        previews or 0,
    )


def _most_images(service: Service) -> int:
    return service.settings.limits.images


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
    if not await ended_or_gone(draft.ticket, request.receive):
        draft.cancel()
        raise Withdrawn("the client is gone")
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


def _edit_fields(parts: list[tuple[str, str | bytes]], service: Service) -> dict[str, Any]:
    """Return the parts of a form as the fields of a JSON object, and pictures where they belong."""
    fields: dict[str, Any] = {}
    most = service.settings.limits.sent_pixels
    for part, value in parts:
        name = part.removesuffix("[]")
        if name in fields:
            raise FieldError(name, f"{name} is given twice; this model takes one")
        if name in ("image", "mask"):
            if isinstance(value, str):
                raise FieldError(name, f"{name} must be a file")
            fields[name] = picture(name, value, most)
        elif isinstance(value, bytes):
            raise FieldError(name, f"{name} must be a text, not a file")
        else:
            fields[name] = value if name in TEXTS else _value(name, value)
    if "image" not in fields:
        raise FieldError("image", "image is missing")
    if "mask" in fields:
        fields["mask"] = _redrawn(fields["mask"])
    fields["image"] = fields["image"].convert("RGB")
    return fields


def _value(name: str, text: str) -> Any:
    """Return what a form's text stands for: a number, a list, true or false."""
    try:
        return json.loads(text.lower() if name in FLAGS else text)
    except (ValueError, RecursionError) as error:
        raise FieldError(name, f"{name} cannot be read") from error


def _redrawn(mask: Image.Image) -> Image.Image:
    """Return a mask that is white where OpenAI's is transparent."""
    if "A" not in mask.getbands():
        raise FieldError("mask", "mask must be transparent where the image is made anew")
    return ImageOps.invert(mask.getchannel("A"))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "bksdm-runtime"}


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
