"""Write an EXIF block, with the types that the standard gives to its entries.

Pillow writes UserComment as bytes where the standard has it undefined, and readers such as piexif,
which A1111's WebUI reads by, then take it for a list of numbers.
"""

from __future__ import annotations

import struct

HEADER = b"Exif\0\0"
# Tags, and their types in TIFF: text, a 32-bit number, and whatever the tag says.
IMAGE_DESCRIPTION, EXIF_FOLDER, EXIF_VERSION, USER_COMMENT = 0x010E, 0x8769, 0x9000, 0x9286
ASCII, LONG, UNDEFINED = 2, 4, 7
UNICODE = b"UNICODE\0"
"""Begins a UserComment in UTF-16."""

Entry = tuple[int, int, bytes]
"""Tag, type and content."""


def exif_block(description: str, comment: str) -> bytes:
    """Return an EXIF block with a description in ASCII and a comment in any letters.

    It is big-endian, for readers take a comment for that, by the order of the whole or without
    looking.

    Parameters
    ----------
    description, comment : str
        What is empty is left out.
    """
    first: list[Entry] = []
    if description:
        first.append((IMAGE_DESCRIPTION, ASCII, description.encode("ascii") + b"\0"))
    start = 8
    if comment:
        pointer = (EXIF_FOLDER, LONG, bytes(4))
        after = start + len(_folder([*first, pointer], start))
        first.append((EXIF_FOLDER, LONG, struct.pack(">I", after)))
    block = struct.pack(">2sHI", b"MM", 42, start) + _folder(first, start)
    if comment:
        text = UNICODE + comment.encode("utf-16-be")
        entries = [(EXIF_VERSION, UNDEFINED, b"0232"), (USER_COMMENT, UNDEFINED, text)]
        block += _folder(entries, len(block))
    return HEADER + block


def _folder(entries: list[Entry], start: int) -> bytes:
    """Return an image file directory that begins at an offset, and the contents behind it."""
    table = struct.pack(">H", len(entries))
    contents = b""
    behind = start + 2 + 12 * len(entries) + 4
    for tag, kind, content in entries:
        count = len(content) // 4 if kind == LONG else len(content)
        placed = content.ljust(4, b"\0")
        if len(content) > 4:
            placed = struct.pack(">I", behind + len(contents))
            # Contents begin at even offsets.
            contents += content + bytes(len(content) % 2)
        table += struct.pack(">HHI", tag, kind, count) + placed
    return table + bytes(4) + contents
