"""Checks of single arguments; each returns the value, or says what it must be."""

from __future__ import annotations

from typing import Any

import numpy as np

from bksdm.engines.errors import RequestError

MAX_SIDE = 8192


def texts(name: str, value: Any) -> tuple[str, ...]:
    """Return one text or several as a tuple.

    Raises
    ------
    RequestError
        It is neither, or empty.
    """
    found = (value,) if isinstance(value, str) else value
    if not isinstance(found, (list, tuple)) or not all(isinstance(t, str) for t in found):
        raise RequestError(f"{name} must be a text or a list of texts")
    if not found:
        raise RequestError(f"{name} must not be an empty list")
    return tuple(found)


def flag(name: str, value: Any) -> bool:
    """Return True or False.

    Raises
    ------
    RequestError
        It is neither.
    """
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be True or False, not {value!r}")
    return value


def is_part(value: Any) -> bool:
    """Whether a value is a number from 0 to 1."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value <= 1


def part(name: str, value: Any) -> float:
    """Return a number from 0 to 1.

    Raises
    ------
    RequestError
        It is none.
    """
    if not is_part(value):
        raise RequestError(f"{name} must be a number from 0 to 1, not {value!r}")
    return float(value)


def whole(name: str, value: Any, lowest: int, highest: int) -> int:
    """Return a whole number.

    Raises
    ------
    RequestError
        It is none, or out of range.
    """
    integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not integer or not lowest <= value <= highest:
        wanted = f"to {highest}" if highest < 1000 else "on"
        raise RequestError(f"{name} must be a whole number from {lowest} {wanted}, not {value!r}")
    return int(value)


def side(name: str, value: Any, multiple: int) -> int:
    """Return a height or width in pixels.

    Raises
    ------
    RequestError
        It is no whole number, too large, or no multiple of ``multiple``.
    """
    found = whole(name, value, 1, MAX_SIDE)
    if found % multiple:
        raise RequestError(f"{name} must be a multiple of {multiple}, not {found}")
    return found
