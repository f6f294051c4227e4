"""Inpainting with an ordinary UNet: what the mask leaves follows the noise levels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Latents = NDArray[np.float32]


@dataclass(frozen=True)
class Inpainting:
    """Pictures of which only the masked part is made anew.

    Every sampler works value by value, so replacing some values in every step changes no other.

    Attributes
    ----------
    latents, noise : ndarray, float32, shape [batch, channels, height, width]
        x_0 of the pictures, and the unit noise ε that it is noised with.
    mask : ndarray of bool, shape [batch, 1, height, width]
        True where the pictures are made anew.
    """

    latents: Latents
    noise: Latents
    mask: NDArray[np.bool_]

    def restored(self, x: Latents, alpha: np.float32, sigma: np.float32) -> Latents:
        """Return x with α x_0 + σ ε where the mask is False."""
        return np.where(self.mask, x, alpha * self.latents + sigma * self.noise)
