"""Read safetensors as float32 arrays, of every type of floating point, without torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from bksdm.engines.errors import LoraError

Values = NDArray[np.float32]


def parse_safetensors(path: Path, content: bytes) -> tuple[dict[str, Values], Mapping[str, str]]:
    """Return tensors by name, and the file's ``__metadata__``.

    Parameters
    ----------
    path : Path
        The file, for messages.
    content : bytes
        All of it.

    Raises
    ------
    LoraError
        It is damaged, or holds a type that numbers of float32 cannot stand for.
    """
    try:
        found = deserialize(content)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise LoraError(f"{path}: damaged, or not a safetensors file") from error
    tensors = {}
    # The first layer that does not fit is always the same one.
    for name, tensor in sorted(found, key=lambda entry: str(entry[0])):
        widen = _TYPES.get(tensor["dtype"])
        if widen is None:
            raise LoraError(f"{path}: {name} is of the type {tensor['dtype']}; save it in float16")
        tensors[name] = widen(tensor["data"]).reshape(tensor["shape"])
    # The length of the header stands before it.
    end = 8 + int.from_bytes(content[:8], "little")
    metadata: Mapping[str, str] = json.loads(content[8:end]).get("__metadata__", {})
    return tensors, metadata


def _plain(dtype: str) -> Callable[[Any], Values]:
    return lambda data: np.frombuffer(data, dtype).astype(np.float32)


def _bfloat16(data: Any) -> Values:
    """Widen: bfloat16 is the upper half of a float32."""
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)


def _float8_e5m2(data: Any) -> Values:
    """Widen: it is the upper half of a float16."""
    upper = np.frombuffer(data, np.uint8).astype(np.uint16) << 8
    return upper.view(np.float16).astype(np.float32)


def _float8_e4m3(data: Any) -> Values:
    """Widen: four bits of exponent with a bias of 7, no infinity, and one NaN of either sign."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    size = np.where(exponent == 0, mantissa / 512, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    values = np.where(code & 127 == 127, np.nan, size) * np.where(code & 128, -1, 1)
    return values.astype(np.float32)[np.frombuffer(data, np.uint8)]


_TYPES: Mapping[str, Callable[[Any], Values]] = {
    "F64": _plain("<f8"),
    "F32": _plain("<f4"),
    "F16": _plain("<f2"),
    "BF16": _bfloat16,
    "F8_E5M2": _float8_e5m2,
    "F8_E4M3": _float8_e4m3,
    "I64": _plain("<i8"),
    "I32": _plain("<i4"),
}
