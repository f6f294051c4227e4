"""The forms in which engines take rounded products."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ml_dtypes import float8_e4m3fn
from numpy.typing import DTypeLike, NDArray

from bksdm.engines.protocol import Array
from bksdm.storage.precision import FLOAT16, FLOAT32, FP8, INT8

LEVELS = 127
"""The largest number in int8; −128 is not used, so that zero stays zero."""
RAW = 255
"""The largest number in uint8."""
LARGEST_FP8 = 448
"""The largest number of E4M3 (Micikevicius et al. 2022, arXiv 2209.05433)."""
LEAST = 1e-12
"""Sizes are at least that, so that none divides by zero."""


@dataclass(frozen=True)
class Rounding:
    """A form of products, of which an engine has kernels.

    Attributes
    ----------
    precision : str
        ``int8`` or ``fp8``.
    stored, taken : dtype
        Of weights, and of what flows in.
    largest : int
        The largest number of a weight.
    symmetric : bool
        Whether zero is the middle of what flows in, as it is of weights.
    operators : tuple of str
        Those that are rounded.
    divides : bool
        Whether channels are made even before: steps of one size are lost on small ones, but those
        of a floating-point number grow with it.
    """

    precision: str
    stored: DTypeLike
    taken: DTypeLike
    largest: int
    symmetric: bool
    operators: tuple[str, ...] = ("Conv", "MatMul", "Gemm")
    divides: bool = True

    def width(self, extremes: NDArray[np.float32]) -> float:
        """Return the width of the range that the levels cover."""
        if self.symmetric:
            return 2 * float(np.abs(extremes).max())
        return float(max(extremes[1].max(), 0) - min(extremes[0].min(), 0))

    def of_taken(
        self, extremes: NDArray[np.float32], dtype: DTypeLike
    ) -> tuple[Array, Array | None]:
        """Return scale and zero of what flows in, the scale in the type of the graph's numbers.

        A zero that is always 0 is None: TensorRT's parser makes numbers in float32 of it.
        """
        levels = 2 * self.largest if self.symmetric else RAW
        scale = _scale(np.array(self.width(extremes) / levels, np.float32), dtype)
        if self.symmetric:
            return scale, None
        zero = np.clip(np.round(-min(extremes[0].min(), 0) / scale), 0, RAW)
        return scale, np.array(zero, self.taken)

    def of_weight(
        self, weight: NDArray[np.float32], axis: int, dtype: DTypeLike
    ) -> tuple[Array, Array]:
        """Return a weight as it is stored, and the scales of its output channels."""
        others = tuple(each for each in range(weight.ndim) if each != axis)
        sizes = np.abs(weight).max(axis=others, keepdims=True)
        scale = _scale(sizes / np.float32(self.largest), dtype)
        numbers = np.clip(weight / scale.astype(np.float32), -self.largest, self.largest)
        whole = np.issubdtype(np.dtype(self.stored), np.integer)
        stored: Array = (np.round(numbers) if whole else numbers).astype(self.stored)
        return stored, scale.reshape(-1)


def _scale(value: NDArray[np.float32], dtype: DTypeLike) -> Array:
    least = max(LEAST, float(np.finfo(np.dtype(dtype)).smallest_subnormal))
    scale: Array = np.maximum(value, np.float32(least)).astype(dtype)
    return scale


ON_CPU = Rounding(INT8, np.int8, np.uint8, LEVELS, symmetric=False)
"""OpenVINO and ONNX Runtime; products of unsigned with signed numbers are their fast ones."""
ON_GPU = Rounding(INT8, np.int8, np.int8, LEVELS, symmetric=True)
"""TensorRT, of which zero is the middle everywhere ("Working with Quantized Types")."""
ON_GPU_FP8 = Rounding(
    FP8,
    float8_e4m3fn,
    float8_e4m3fn,
    LARGEST_FP8,
    symmetric=True,
    operators=("MatMul", "Gemm"),
    divides=False,
)
"""TensorRT from Ada (sm89) on, for matrix products; TensorRT RTX has no others in fp8."""
FORMS = {
    FLOAT32.name: {INT8: ON_CPU},
    FLOAT16.name: {INT8: ON_GPU, FP8: ON_GPU_FP8},
}
"""By what the bundle is in that it is made of, and by what is asked for."""
