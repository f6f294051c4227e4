"""Do once what several threads may ask for at the same time."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable
from typing import TypeVar

Value = TypeVar("Value")


def once(function: Callable[..., Value]) -> Callable[..., Value]:
    """Return a function that keeps its results by arguments, as :func:`functools.cache` does.

    That one calls ``function`` once per thread where several come at the same time; this one lets
    the others wait.
    """
    lock = threading.Lock()
    cached = functools.cache(function)

    def called(*arguments: Hashable) -> Value:
        with lock:
            return cached(*arguments)

    return called
