"""Which GPU a model runs on, by torch's name for it."""

from __future__ import annotations

import re
from typing import Any

from bksdm.engines.backend import Capabilities
from bksdm.engines.errors import RequestError
from bksdm.runtime.validation import shown

FIRST = 0


def gpu_index(device: Any, engine: Capabilities) -> int:
    """Return the number of the GPU that ``cuda``, ``cuda:0``, ``cuda:1`` … means.

    Parameters
    ----------
    device : str or None
        None is the first one.
    engine : Capabilities
        The engine that is to run there.

    Raises
    ------
    RequestError
        It is none of these, or the engine has no choice.
    """
    if device is None:
        return FIRST
    found = re.fullmatch(r"cuda(?::(\d{1,3}))?", device) if isinstance(device, str) else None
    if found is None:
        raise RequestError(f"device must be cuda or cuda:N, such as cuda:1, not {shown(device)}")
    if not engine.on_device:
        raise RequestError(
            f"device chooses a GPU for a loop on it; the engine {engine.name} has no choice, "
            "unlike onnxruntime-cuda and TensorRT's"
        )
    return int(found[1] or FIRST)
