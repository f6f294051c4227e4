"""What a picture's file says of how it was made: our own entries, and A1111's line beside them.

A PNG carries both as text chunks. JPEG and WebP carry them in EXIF: A1111's text where its WebUI
writes it, in UserComment, and ours as JSON in ImageDescription.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL import Image, PngImagePlugin

from bksdm.runtime.exif import (
    EXIF_FOLDER,
    IMAGE_DESCRIPTION,
    UNICODE,
    USER_COMMENT,
    exif_block,
)

A1111_CHUNK = "parameters"
"""Name of A1111's text chunk."""
OURS = "bksdm:"
"""Begins the names of our text chunks, and our text in EXIF."""


@dataclass(frozen=True)
class PictureRecord:
    """How a picture was made.

    Attributes
    ----------
    own : mapping
        By name, as :mod:`bksdm.cli.generate` writes it; empty for other programs' pictures.
    a1111 : str
        As A1111's WebUI writes it, see :mod:`bksdm.runtime.a1111`; empty where there is none.
    """

    own: Mapping[str, str] = field(default_factory=dict)
    a1111: str = ""

    def __post_init__(self) -> None:
        own = {key: _encodable(value) for key, value in self.own.items()}
        object.__setattr__(self, "own", own)
        object.__setattr__(self, "a1111", _encodable(self.a1111))


def png_chunks(record: PictureRecord) -> PngImagePlugin.PngInfo:
    """Return the text chunks of a PNG."""
    chunks = PngImagePlugin.PngInfo()
    for key, value in record.own.items():
        chunks.add_itxt(OURS + key, value)
    if record.a1111:
        # A chunk of Latin-1 where that suffices, as the WebUI has it: some readers know no other.
        chunks.add_text(A1111_CHUNK, record.a1111)
    return chunks


def exif_of(record: PictureRecord) -> bytes:
    """Return the EXIF block of a JPEG or WebP; empty where there is nothing to say."""
    if not record.own and not record.a1111:
        return b""
    description = OURS + json.dumps(dict(record.own)) if record.own else ""
    return exif_block(description, record.a1111)


def record_of(image: Image.Image) -> PictureRecord:
    """Return what an opened picture carries; pixels are not read."""
    info = {str(key): str(value) for key, value in image.info.items()}
    own = {key.removeprefix(OURS): value for key, value in info.items() if key.startswith(OURS)}
    exif = image.getexif()
    comment = exif.get_ifd(EXIF_FOLDER).get(USER_COMMENT, b"")
    a1111 = info.get(A1111_CHUNK) or _user_comment(comment)
    return PictureRecord(own or _own_json(exif.get(IMAGE_DESCRIPTION)), a1111)


def _encodable(text: str) -> str:
    """Return a text with what no encoding has, as bytes of a file's name are, as an escape."""
    return text.encode(errors="backslashreplace").decode()


def _own_json(description: object) -> dict[str, str]:
    if not isinstance(description, str) or not description.startswith(OURS):
        return {}
    try:
        found = json.loads(description.removeprefix(OURS))
    except (ValueError, RecursionError):  # somebody else's words
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def _user_comment(comment: object) -> str:
    """Decode EXIF's UserComment, which begins with the name of its encoding."""
    if not isinstance(comment, bytes):
        return comment if isinstance(comment, str) else ""
    name, text = comment[:8], comment[8:]
    if name == UNICODE:
        # A1111 writes the high byte first whatever the order of the rest; others do not. Zeros are
        # the high bytes of Latin letters.
        low_first = text[1::2].count(0) > text[::2].count(0)
        return text.decode("utf-16-le" if low_first else "utf-16-be", errors="ignore")
    named = name in (b"ASCII\0\0\0", bytes(8))
    return (text if named else comment).decode(errors="ignore").rstrip("\0")
