"""Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598), also rescaled or for a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GUIDANCE_INPUT = "timestep_cond"
"""The input of a UNet into which guidance was distilled: the embedding of its scale."""


@dataclass(frozen=True)
class Guidance:
    """How two noise predictions become one.

    Attributes
    ----------
    scale
        s of :func:`guide`.
    rescale
        φ of :func:`rescale_deviation`; 0 leaves ε as it is.
    start, end
        Parts of the evaluations, 0 to 1, between which there is guidance; elsewhere the conditional
        prediction stands alone and the other is not computed (Kynkäänniemi et al. 2024, arXiv
        2404.07724).
    """

    scale: float
    rescale: float = 0.0
    start: float = 0.0
    end: float = 1.0

    def where_on(self) -> Guidance | None:
        """Return itself, or None where its scale turns guidance off."""
        return self if self.scale > 1 else None

    def at(self, index: int, total: int) -> bool:
        """Return whether evaluation ``index`` of ``total`` has guidance."""
        return self.start <= index / total < self.end


def guidance_embedding(scale: float, width: int) -> NDArray[np.float32]:
    """Return sines, then cosines, of 1000 (s − 1) at rates from 1 down to 1/10000.

    As diffusers' ``get_guidance_scale_embedding``, in float32 from the first operation on: its
    angles are so large that rounding them differently would be seen.

    Parameters
    ----------
    scale : float
        Guidance scale s.
    width : int
        Of the embedding; an odd one ends with 0.

    Returns
    -------
    ndarray, float32, shape [width]
    """
    half = width // 2
    step = np.log(np.float32(10000)) / np.float32(half - 1)
    rates = np.exp(-step * np.arange(half, dtype=np.float32))
    angles = np.float32(scale - 1) * np.float32(1000) * rates
    found = np.concatenate([np.sin(angles), np.cos(angles), np.zeros(width % 2, np.float32)])
    return found.astype(np.float32, copy=False)


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


def rescale_deviation(
    out: NDArray[np.float32], conditional: NDArray[np.float32], amount: float
) -> None:
    """Bring the deviation of guided predictions nearer to that of the conditional ones, in place.

    ε' = φ ε std(ε_cond) / std(ε) + (1 − φ) ε, image by image: section 3.4 of Lin et al. 2023 (arXiv
    2305.08891), as diffusers' ``rescale_noise_cfg``.

    Parameters
    ----------
    out, conditional : ndarray, float32, shape [batch, …]
        Guided and conditional noise predictions.
    amount : float
        φ, 0 to 1.
    """
    axes = tuple(range(1, out.ndim))
    wanted = conditional.std(axes, ddof=1, keepdims=True, dtype=np.float64)
    ratio = wanted / out.std(axes, ddof=1, keepdims=True, dtype=np.float64)
    out *= (amount * ratio + (1 - amount)).astype(np.float32)
