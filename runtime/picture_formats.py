"""The formats that pictures are written in, told by the end of a file's name."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, features

from bksdm.engines.errors import RequestError
from bksdm.runtime.picture_record import PictureRecord, exif_of, png_chunks
from bksdm.runtime.user_files import write_output

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Pillow's formats, by the end of a name."""
MOST_EXIF_BYTES = 65533
"""That a JPEG can hold."""


@dataclass(frozen=True)
class PictureFormat:
    """A format with what is to be settled about it; checked when it is made.

    Attributes
    ----------
    name : str
        One of :data:`FORMATS`' values.
    quality : int, optional
        1 to 100, of JPEG and WebP; by default Pillow's own, 75 and 80.
    lossless : bool
        Whether WebP keeps every pixel as it is.

    Raises
    ------
    RequestError
        The format has no such thing, or Pillow cannot write it.
    """

    name: str = "PNG"
    quality: int | None = None
    lossless: bool = False

    def __post_init__(self) -> None:
        if self.quality is not None and self.name == "PNG":
            raise RequestError(
                "quality is for JPEG and WebP, a PNG loses nothing; name a file that ends in .jpg "
                "or .webp"
            )
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise RequestError(f"quality must be a whole number from 1 to 100, not {self.quality}")
        if self.lossless and self.name != "WEBP":
            raise RequestError(
                "lossless is for WebP; name a file that ends in .webp, or in .png, which loses "
                "nothing either"
            )
        if self.lossless and self.quality is not None:
            raise RequestError("lossless and quality exclude each other; leave one out")
        if self.name == "WEBP" and not features.check("webp"):
            raise RequestError("WebP needs a Pillow that was built with it; name a .png instead")


def format_of(path: Path) -> str:
    """Return the format that a file's name ends in.

    Raises
    ------
    RequestError
        It is none that is written here.
    """
    found = FORMATS.get(path.suffix.lower())
    if found is None:
        known = ", ".join(FORMATS)
        raise RequestError(f"{path}: the name of a picture must end in one of {known}")
    return found


def encode_picture(
    image: Image.Image, record: PictureRecord, chosen: PictureFormat = PictureFormat()
) -> bytes:
    """Return a file with a picture and its record.

    Raises
    ------
    RequestError
        The record does not fit into a JPEG.
    """
    told: dict[str, Any] = {}
    if chosen.name == "PNG":
        told["pnginfo"] = png_chunks(record)
    elif exif := exif_of(record):
        if chosen.name == "JPEG" and len(exif) > MOST_EXIF_BYTES:
            raise RequestError(
                "a JPEG holds no more than 64 KiB on how it was made, which these prompts exceed; "
                "name a file that ends in .png or .webp"
            )
        told["exif"] = exif
    if chosen.quality is not None:
        told["quality"] = chosen.quality
    if chosen.lossless:
        told["lossless"] = True
    written = io.BytesIO()
    image.save(written, format=chosen.name, **told)
    return written.getvalue()


def save_picture(
    image: Image.Image,
    path: Path,
    record: PictureRecord,
    chosen: PictureFormat = PictureFormat(),
) -> None:
    """Write a picture with its record, at once.

    Raises
    ------
    RequestError
        The file cannot be written, or the record does not fit.
    """
    write_output(path, encode_picture(image, record, chosen))
