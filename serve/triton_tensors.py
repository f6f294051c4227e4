"""Arrays to and from Triton's tensors, by DLPack.

Triton's Python backend may be built against numpy 1. With numpy 2, ``as_numpy`` then returns the
first number of a tensor over and over, and a tensor of texts ends the process: so does Triton 2.51.
DLPack does not depend on how numpy lays out its objects. Texts are UTF-8 in tensors of bytes.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import triton_python_backend_utils as backend
from numpy.typing import NDArray

USED = b"used_dltensor"
"""DLPack's name for a capsule that has been taken, by which numpy leaves it alone."""
_set_name = ctypes.PyDLL(None).PyCapsule_SetName
_set_name.argtypes = (ctypes.py_object, ctypes.c_char_p)


def bytes_of(request: Any, name: str) -> bytes | None:
    """Return what an input of bytes holds; None where it is not given."""
    tensor = backend.get_input_tensor_by_name(request, name)
    return None if tensor is None else np.from_dlpack(tensor).tobytes()


def tensor_of(name: str, array: NDArray[Any]) -> Any:
    """Return an output that shares an array's memory."""
    # A capsule of DLPack says nothing of arrays that may not be written, so there are none.
    capsule = np.require(array, requirements=("C", "W")).__dlpack__()
    tensor = backend.Tensor.from_dlpack(name, capsule)
    # Triton calls it otherwise, and numpy would take it for one that nobody has taken.
    _set_name(capsule, USED)
    return tensor


def text_tensor(name: str, text: str) -> Any:
    """Return an output of a text's bytes."""
    return tensor_of(name, np.frombuffer(bytearray(text.encode()), np.uint8))
