"""Blank out a library's machine code for other GPUs than some, so that it compresses well.

CUDA puts code for every architecture into containers inside of the library: a header of 16 bytes
(magic number, version 1, its size, the size of what follows), then entries, each with a header that
has its own size, the size of the code, and at byte 28 the architecture as a number such as 90.
The layout is not documented; it was read off libraries of CUDA 12 and 13, and what does not fit it
is left as it is.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from typing import NamedTuple

MAGIC = struct.pack("<I", 0xBA55ED50)
_CONTAINER, _ENTRY = struct.Struct("<IHHQ"), struct.Struct("<HHIQ")
_ARCHITECTURE = 28
_LEAST_HEADER, _LARGEST_HEADER = 32, 4096


class Code(NamedTuple):
    """Code for one architecture: where it lies, and how many bytes it has."""

    start: int
    size: int
    architecture: int


def codes(library: bytes | bytearray) -> Iterator[Code]:
    """Yield all code for GPUs in a library."""
    at = library.find(MAGIC)
    while at >= 0:
        end = at + len(MAGIC)
        if at + _CONTAINER.size <= len(library):
            _, version, head, size = _CONTAINER.unpack_from(library, at)
            if version == 1 and head == _CONTAINER.size and at + head + size <= len(library):
                end = at + head + size
                yield from _entries(library, at + head, end)
        at = library.find(MAGIC, end)


def _entries(library: bytes | bytearray, at: int, end: int) -> Iterator[Code]:
    while at + _LEAST_HEADER <= end:
        _, _, head, size = _ENTRY.unpack_from(library, at)
        if not _LEAST_HEADER <= head <= _LARGEST_HEADER or at + head + size > end:
            return
        (architecture,) = struct.unpack_from("<I", library, at + _ARCHITECTURE)
        yield Code(at + head, size, architecture)
        at += head + size


def keep_only(library: bytearray, architectures: Collection[int]) -> int:
    """Overwrite the code for other architectures with zeros; return how many bytes.

    Raises
    ------
    ValueError
        There is no code for one of those to keep.
    """
    found = list(codes(library))
    missing = set(architectures) - {code.architecture for code in found}
    if missing:
        raise ValueError(f"the library has no code for {sorted(missing)}")
    others = [code for code in found if code.architecture not in architectures]
    for code in others:
        library[code.start : code.start + code.size] = bytes(code.size)
    return sum(code.size for code in others)
