"""Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def guide(both: NDArray[np.float32], scale: float, out: NDArray[np.float32]) -> None:
    """Combine the halves of a batch: ε = ε_uncond + s · (ε_cond − ε_uncond).

    Parameters
    ----------
    both : ndarray, float32, shape [2 · batch, …]
        Unconditional noise predictions, then conditional ones.
    scale : float
        Guidance scale s.
    out : ndarray, float32, shape [batch, …]
        Where ε is written.
    """
    half = len(both) // 2
    np.subtract(both[half:], both[:half], out=out)
    out *= np.float32(scale)
    out += both[:half]
