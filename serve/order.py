"""What a client asks for, whichever API it speaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from bksdm.engines.errors import RequestError, SamplerError
from bksdm.runtime.generation_config import INPUTS, OPTIONS, GenerationConfig
from bksdm.runtime.picture_formats import PictureFormat
from bksdm.serve.errors import FieldError
from bksdm.serve.settings import Limits

FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
"""Pillow's names, by those that clients use."""
MAX_TIMEOUT = 86400.0
MAX_PREVIEWS = 100


@dataclass(frozen=True)
class Order:
    """Pictures to draw.

    Attributes
    ----------
    config : GenerationConfig
        The options.
    model : str, optional
        By default the server's first.
    image, mask : Image, optional
        What is started from.
    control_images : tuple of Image
        What ControlNets are shown.
    output : PictureFormat
        What files the pictures become.
    timeout : float, optional
        Seconds after which nobody wants them any more.
    previews : int
        How often it is shown on the way how they look.
    """

    config: GenerationConfig
    model: str | None = None
    image: Image.Image | None = None
    mask: Image.Image | None = None
    output: PictureFormat = field(default_factory=PictureFormat)
    timeout: float | None = None
    previews: int = 0
    control_images: tuple[Image.Image, ...] = ()


def field_error(error: RequestError | SamplerError) -> FieldError:
    """Return an error of the runtime with the field that its message begins with."""
    first = str(error).partition(" ")[0].rstrip(":")
    named = first if first in OPTIONS or first in INPUTS else ""
    if not named and isinstance(error, SamplerError):
        named = "sampler"
    return FieldError(named, str(error))


def config_of(options: Mapping[str, Any], limits: Limits) -> GenerationConfig:
    """Return the options of a picture, within the limits of a request.

    Parameters
    ----------
    options : mapping
        By the names of :data:`~bksdm.runtime.generation_config.OPTIONS`; None stands for the
        default.
    limits : Limits
        The most that may be asked for.

    Raises
    ------
    FieldError
        Names the option, and what it must be.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if "prompt" not in given:
        raise FieldError("prompt", "prompt is missing")
    try:
        config = GenerationConfig(**given)
    except (RequestError, SamplerError) as error:
        raise field_error(error) from error
    for name, texts in (("prompt", config.prompts), ("negative_prompt", config.negative_prompts)):
        if max(map(len, texts)) > limits.prompt_characters:
            most = limits.prompt_characters
            raise FieldError(name, f"{name} may have {most} characters here")
    if config.images > limits.images:
        raise FieldError(
            "num_images_per_prompt",
            f"num_images_per_prompt: {limits.images} pictures may be asked for at a time here",
        )
    if config.num_inference_steps > limits.steps:
        raise FieldError(
            "num_inference_steps", f"num_inference_steps may be {limits.steps} here, at most"
        )
    check_size(config.width, config.height, limits)
    return config


def check_size(width: int | None, height: int | None, limits: Limits) -> None:
    """Check that a picture is not larger than the server draws.

    Raises
    ------
    FieldError
        It is.
    """
    if width is not None and height is not None and width * height > limits.pixels:
        raise FieldError(
            "width", f"width times height may be {limits.pixels} pixels here, not {width}x{height}"
        )


def timeout_of(value: Any) -> float | None:
    """Return a timeout in seconds.

    Raises
    ------
    FieldError
        It is no such number.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise FieldError("timeout", "timeout must be a number of seconds")
    if not 0 < value <= MAX_TIMEOUT:
        raise FieldError("timeout", f"timeout must be above 0 and at most {MAX_TIMEOUT:g} seconds")
    return float(value)


def count_of(name: str, value: Any, lowest: int, highest: int) -> int:
    """Return a whole number of a field.

    Raises
    ------
    FieldError
        It is none, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise FieldError(name, f"{name} must be a whole number from {lowest} to {highest}")
    return value


def output_of(name: Any, quality: Any, field: str = "quality") -> PictureFormat:
    """Return the format of files.

    Parameters
    ----------
    name
        ``png``, ``jpeg`` or ``webp``; None is PNG.
    quality
        1 to 100, of JPEG and WebP, or None.
    field : str
        What the quality is called.

    Raises
    ------
    FieldError
        There is no such format, or it has no quality.
    """
    if name is not None and (not isinstance(name, str) or name not in FORMATS):
        raise FieldError("output_format", f"output_format must be one of {', '.join(FORMATS)}")
    chosen = FORMATS[name or "png"]
    if quality is None:
        return PictureFormat(chosen)
    if chosen == "PNG":
        raise FieldError(field, f"{field} is for jpeg and webp; a PNG loses nothing")
    return PictureFormat(chosen, count_of(field, quality, 1, 100))


def refuse_unknown(given: Mapping[str, Any], known: Mapping[str, Any] | set[str]) -> None:
    """Check that there are no fields that would be ignored.

    Raises
    ------
    FieldError
        Names the first.
    """
    for name in given:
        if name not in known:
            raise FieldError(str(name), f"{str(name)!r:.60} is not a field of this request")
