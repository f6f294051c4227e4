"""The types that networks compute in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """A floating-point type.

    Attributes
    ----------
    name : str
        In numpy, in torch, and as ``--dtype``.
    itemsize : int
        Bytes of a value.
    tolerance : float
        Relative L2 error that an exported network may have against torch in float32.
    """

    name: str
    itemsize: int
    tolerance: float


FLOAT32 = Precision("float32", 4, 5e-5)
FLOAT16 = Precision("float16", 2, 2.5e-2)
PRECISIONS = {precision.name: precision for precision in (FLOAT32, FLOAT16)}
"""Those that a bundle can be exported in."""
BFLOAT16, INT8, FP8 = "bfloat16", "int8", "fp8"
QUANTIZED = (INT8, FP8)
"""Those that ``bksdm quantize`` makes: fp8 is E4M3, for GPUs alone."""
LOWER = (BFLOAT16, INT8)
"""Those that engines on the CPU compute in, too: the first from a bundle in float32."""
