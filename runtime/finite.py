"""No picture is made from NaN or infinity."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import NonFiniteError


def require_finite(array: NDArray[np.float32], stage: str) -> None:
    """Refuse a network's output if it holds NaN or infinity.

    Raises
    ------
    NonFiniteError
        Names the stage.
    """
    # A sum of squares is NaN or infinite if any value is, and is the faster look at all of them.
    if not math.isfinite(np.vdot(array, array)) and not np.isfinite(array).all():
        raise NonFiniteError(f"{stage}: NaN or infinity; a float32 bundle may not overflow")
