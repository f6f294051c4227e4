"""Weights in files, mapped to memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


def map_file(file: Path) -> NDArray[np.uint8]:
    """Map a file's bytes to memory that may be written, without an effect on the file.

    Raises
    ------
    OSError, ValueError
        It is missing, cannot be read or is empty.
    """
    return np.memmap(file, np.uint8, "c")


def tensor_at(
    mapped: NDArray[np.uint8], dtype: DTypeLike, shape: Sequence[int], offset: int
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
