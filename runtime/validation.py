"""Validation of single arguments: a function returns the value as a Python type, or refuses it."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import RequestError

MAX_SIDE = 8192
MAX_THREADS = 1024
LARGEST = float(np.finfo(np.float32).max)
SHOWN = 60
"""Characters of a refused value that a message repeats."""


def shown(value: Any) -> str:
    """Return a value as a message has it: in one line, with its end left out if it is long."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python refuses to write integers of more than 4300 digits
        text = f"a number of more than {SHOWN} digits"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def plain(value: Any) -> Any:
    """Return what a scalar or an array without axes holds; anything else as it is.

    numpy's scalars and arrays become Python's numbers, texts and truth values; so do those of
    other array libraries, which have ``ndim`` and ``item`` as well.
    """
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def several(value: Any) -> Sequence[Any] | None:
    """Return a sequence, or an array with axes as a list; None for a single value."""
    if isinstance(value, np.ndarray) and value.ndim > 0:
        return list(value.tolist())
    return value if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else None


def texts(name: str, value: Any) -> tuple[str, ...]:
    """Return one text or several as a tuple.

    Raises
    ------
    RequestError
        It is neither, or empty.
    """
    entries = several(value)
    found = [plain(value)] if entries is None else [plain(entry) for entry in entries]
    if not all(isinstance(text, str) for text in found):
        raise RequestError(f"{name} must be a text or a list of texts, not {shown(value)}")
    if not found:
        raise RequestError(f"{name} must not be an empty list")
    if any("\0" in text for text in found):
        # No command line could repeat it.
        raise RequestError(f"{name} must not hold the character NUL")
    return tuple(str(text) for text in found)


def floats(name: str, value: Any, shape: tuple[int | None, ...]) -> NDArray[np.float32]:
    """Return an array of numbers that are finite in float32, of torch's or numpy's.

    Parameters
    ----------
    name : str
        Of the argument.
    value
        The array.
    shape : tuple
        What it must have; None takes any length.

    Raises
    ------
    RequestError
        It is no array of floats, of another shape, or not finite.
    """
    # Tensors of torch know these without torch being imported here.
    found = value.detach().float().cpu().numpy() if hasattr(value, "detach") else value
    if not isinstance(found, np.ndarray) or not np.issubdtype(found.dtype, np.floating):
        raise RequestError(f"{name} must be a numpy array of floats, not {shown(value)}")
    fits = len(found.shape) == len(shape) and all(
        wanted in (None, length) for wanted, length in zip(shape, found.shape, strict=True)
    )
    if not fits or not found.size:
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise RequestError(f"{name} must have shape ({wanted}), not {found.shape}")
    with np.errstate(over="ignore"):
        single = found.astype(np.float32)
    if not np.isfinite(single).all():
        raise RequestError(f"{name} hold NaN or infinity")
    return single


def folder(name: str, value: Any) -> Path:
    """Return a path.

    Raises
    ------
    RequestError
        It is not a path, or empty.
    """
    if not isinstance(value, (str, os.PathLike)) or value == "":
        raise RequestError(f"{name} must be a folder's path, not {shown(value)}")
    return Path(value)


def writable_place(name: str, value: Any) -> Path:
    """Return the path of a folder that is there or can be made.

    Raises
    ------
    RequestError
        It is not a path, empty, or of a file or in one.
    """
    path = folder(name, value)
    there = next((part for part in (path, *path.parents) if os.path.lexists(part)), path)
    if os.path.lexists(there) and not there.is_dir():
        raise RequestError(f"{name} must be a folder's path; {there} is {no_folder(there)}")
    return path


def no_folder(path: Path) -> str:
    """Say in what way a path is no folder."""
    if path.exists():
        return "a file, not a folder"
    return "a link to nothing" if path.is_symlink() else "no such folder"


def flag(name: str, value: Any) -> bool:
    """Return True or False.

    Raises
    ------
    RequestError
        It is neither.
    """
    found = plain(value)
    if not isinstance(found, bool):
        raise RequestError(f"{name} must be True or False, not {shown(value)}")
    return found


def is_false(value: Any) -> bool:
    """Whether a value is False or numpy's; 0, None and what is empty are not."""
    found = plain(value)
    return isinstance(found, bool) and not found


def number(name: str, value: Any) -> float:
    """Return a number that is finite in float32, which the runtime computes in.

    Raises
    ------
    RequestError
        It is not a number, or not finite.
    """
    found = plain(value)
    if isinstance(found, bool) or not isinstance(found, Real):
        raise RequestError(f"{name} must be a number, not {shown(value)}")
    try:
        result = float(found)
    except OverflowError:
        result = math.inf
    if not abs(result) <= LARGEST:
        raise RequestError(f"{name} must be finite in float32, not {shown(found)}")
    return result


def is_part(value: Any) -> bool:
    """Whether a value is a number from 0 to 1."""
    found = plain(value)
    a_number = isinstance(found, Real) and not isinstance(found, bool)
    return a_number and bool(0 <= found <= 1)


def part(name: str, value: Any) -> float:
    """Return a number from 0 to 1.

    Raises
    ------
    RequestError
        It is not a number from 0 to 1.
    """
    if not is_part(value):
        raise RequestError(f"{name} must be a number from 0 to 1, not {shown(value)}")
    return float(plain(value))


def interval(name: str, value: Any) -> tuple[float, float]:
    """Return two numbers from 0 to 1, the first one lower.

    Raises
    ------
    RequestError
        It is something else.
    """
    pair = several(value)
    if pair is None or len(pair) != 2 or not all(map(is_part, pair)) or not pair[0] < pair[1]:
        raise RequestError(f"{name} must be two numbers from 0 to 1, ascending, not {shown(value)}")
    return float(plain(pair[0])), float(plain(pair[1]))


def whole(name: str, value: Any, lowest: int, highest: int) -> int:
    """Return a whole number.

    Raises
    ------
    RequestError
        It is not a whole number, or out of range.
    """
    found = plain(value)
    wanted = f"{name} must be a whole number from {lowest} to {highest}, not {shown(value)}"
    if isinstance(found, bool):
        raise RequestError(wanted)
    try:
        result = operator.index(found)
    except TypeError as error:
        raise RequestError(wanted) from error
    if not lowest <= result <= highest:
        raise RequestError(wanted)
    return result


def side(name: str, value: Any, multiple: int) -> int:
    """Return a height or width in pixels.

    Raises
    ------
    RequestError
        It is no whole number, too large, or no multiple of ``multiple``.
    """
    found = whole(name, value, multiple, MAX_SIDE)
    if found % multiple:
        raise RequestError(f"{name} must be a multiple of {multiple}, not {found}")
    return found
