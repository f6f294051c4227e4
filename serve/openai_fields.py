"""Fields of OpenAI's image API as an order."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from PIL import Image, ImageOps

from bksdm.runtime.generation_config import OPTIONS
from bksdm.serve.errors import FieldError
from bksdm.serve.order import Order, config_of, count_of, output_of, timeout_of
from bksdm.serve.service import Service
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
    if service.settings.one_of_several and fields.get("response_format") == "url":
        told = "response_format is b64_json here: the link might lead to another server"
        raise FieldError("response_format", told)
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


def edit_fields(parts: list[tuple[str, str | bytes]], service: Service) -> dict[str, Any]:
    """Return the parts of a form as the fields of a JSON object, and pictures where they belong.

    Raises
    ------
    FieldError
        A part is missing, given twice, or cannot be read.
    """
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
