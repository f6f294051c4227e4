"""Weights in files, mapped to memory."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


def map_file(file: Path) -> mmap.mmap:
    """Map a file's bytes to memory that may be written, without an effect on the file.

    Raises
    ------
    OSError, ValueError
        It is missing, cannot be read or is empty.
    """
    with file.open("rb") as opened:
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)


def drop_pages(mapped: mmap.mmap) -> None:
    """Take what was read of a file out of the process's memory; what is asked for is read again.

    It must not have been written to. Nothing happens where the system has no such call.
    """
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def tensor_at(
    mapped: mmap.mmap, dtype: DTypeLike, shape: Sequence[int], offset: int
) -> NDArray[Any]:
    """Return the tensor that lies at an offset in a mapped file.

    Raises
    ------
    ValueError
        The file is too short.
    """
    count = math.prod(shape)
    flat = np.frombuffer(mapped, dtype, count, offset) if count else np.empty(0, dtype)
    return flat.reshape(tuple(shape))
