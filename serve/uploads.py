"""Pictures that clients send: base64, data URLs or parts of a form, decoded within limits."""

from __future__ import annotations

import base64
import binascii

from PIL import Image

from bksdm.engines.errors import RequestError
from bksdm.runtime.images import opened, upright
from bksdm.runtime.picture_record import PictureRecord, record_of
from bksdm.serve.errors import FieldError

FORMATS = ("PNG", "JPEG", "WEBP")
"""Those that Pillow decodes here: its readers of the others need not be reachable from outside."""


def from_base64(field: str, value: object) -> bytes:
    """Return the bytes of a text in base64, or of a data URL.

    Raises
    ------
    FieldError
        It is neither.
    """
    if not isinstance(value, str):
        raise FieldError(field, f"{field} must be a picture in base64, or a data URL")
    text = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise FieldError(field, f"{field} is not in base64") from error


def picture(field: str, content: bytes, most_pixels: int) -> Image.Image:
    """Return a picture, decoded and upright; its size is looked at before its pixels are.

    Raises
    ------
    FieldError
        It is no PNG, JPEG or WebP, is damaged, or has too many pixels.
    """
    try:
        with opened(content, field, most_pixels, FORMATS) as image:
            image.load()
            return upright(image)
    except RequestError as error:
        raise FieldError(field, str(error)) from error


def record(field: str, content: bytes, most_pixels: int) -> PictureRecord:
    """Return what a picture says of how it was made.

    Raises
    ------
    FieldError
        As of :func:`picture`.
    """
    try:
        with opened(content, field, most_pixels, FORMATS) as image:
            # A PNG may tell it behind its pixels.
            image.load()
            return record_of(image)
    except RequestError as error:
        raise FieldError(field, str(error)) from error
