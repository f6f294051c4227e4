"""Compiled samplers in a file, for programs in other languages.

All numbers are little-endian, and every array begins at a multiple of eight bytes:

=========  ======================================================================================
bytes      content
=========  ======================================================================================
8          ``bksdmtbl``
4          version of the format, :data:`VERSION`
4          ``0x01020304``, which a reader of another byte order sees as something else
8          bytes of the whole file
4          CRC-32 of everything from byte 40 on
4          number of tables
4          bytes of the description
4          zero
…          description: a JSON object in UTF-8, followed by spaces
=========  ======================================================================================

Each table: what it may start from (1 noise, 2 an image, 4 an image with a mask, added up), how many
steps it leaves out, its evaluations N and draws D, four bytes each; then float64,
``init_noise_sigma`` and the arrays of :class:`~bksdm.runtime.samplers.table.StepTable` in the order
of its attributes, whose shapes follow from N and D.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bksdm.runtime.samplers.table import StepTable

MAGIC, VERSION, ORDER = b"bksdmtbl", 1, 0x01020304
SUFFIX = ".table"
NOISE, IMAGE, MASKED_IMAGE = 1, 2, 4
"""What a table may start from."""
_HEAD = struct.Struct("<8sIIQIIII")
_TABLE = struct.Struct("<IIIId")


@dataclass(frozen=True)
class StoredTable:
    """A table of a file.

    Attributes
    ----------
    starts : int
        Sum of :data:`NOISE`, :data:`IMAGE` and :data:`MASKED_IMAGE`.
    first_step : int
        How many steps it leaves out.
    table : StepTable
        The compiled sampler.
    """

    starts: int
    first_step: int
    table: StepTable


def table_file(description: Mapping[str, object], tables: Sequence[StoredTable]) -> bytes:
    """Return the content of a file.

    Parameters
    ----------
    description : mapping
        What a program has to know about the sampler and its model, as JSON.
    tables : sequence of StoredTable
        Of one sampler and number of steps.
    """
    text = json.dumps(description, ensure_ascii=False, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    content = text + b"".join(map(_packed, tables))
    head = (ORDER, _HEAD.size + len(content), zlib.crc32(content), len(tables), len(text), 0)
    return _HEAD.pack(MAGIC, VERSION, *head) + content


def _packed(stored: StoredTable) -> bytes:
    table = stored.table
    head = (stored.starts, stored.first_step, len(table), table.draws, table.init_noise_sigma)
    return _TABLE.pack(*head) + b"".join(np.asarray(a, "<f8").tobytes() for a in table.arrays)
