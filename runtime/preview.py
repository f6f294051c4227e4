"""How latents look, roughly and at once: a linear map to colours instead of the VAE decoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import BundleError, RequestError
from bksdm.runtime.bundle import read_json
from bksdm.runtime.validation import shown

PREVIEW_FILE = "preview.json"
"""In the VAE decoder's folder; ``bksdm export`` fits and writes it."""


@dataclass(frozen=True)
class Preview:
    """RGB in −1 … 1 = ``weights`` · latents + ``bias``, for each latent pixel.

    Attributes
    ----------
    weights : ndarray, float32, shape [3, channels]
    bias : ndarray, float32, shape [3]
    rms_error : float
        Root mean square of the differences from the decoder, as measured when it was fitted; in
        levels of 255.
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    rms_error: float

    @classmethod
    def read(cls, bundle: Path, channels: int) -> Preview:
        """Read the map of a bundle.

        Raises
        ------
        BundleError
            There is none, or it is damaged.
        """
        path = bundle / "vae_decoder" / PREVIEW_FILE
        if not path.is_file():
            raise BundleError(
                f"{path}: missing; export the bundle anew with `bksdm export`, or decode the steps"
            )
        fields = read_json(path)
        try:
            weights = np.array(fields["weights"], np.float64).reshape(3, channels)
            bias = np.array(fields["bias"], np.float64).reshape(3)
            error = float(fields["rms_error"])
        except (KeyError, TypeError, ValueError, OverflowError) as problem:
            raise BundleError(f"{path}: damaged ({problem!r}); export the bundle anew") from problem
        # Beyond any map to colours; in float32 far larger numbers would be infinite.
        largest = np.max([np.abs(weights).max(), np.abs(bias).max(), error])
        if not largest < 1e6:
            raise BundleError(f"{path}: damaged (NaN or infinity); export the bundle anew")
        return cls(weights.astype(np.float32), bias.astype(np.float32), error)

    def __call__(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return pixels [images, h, w, 3] of latents [images, channels, h, w], one for each.

        Raises
        ------
        RequestError
            The latents are no array, or of another shape.
        """
        channels = self.weights.shape[1]
        if not isinstance(latents, np.ndarray):
            raise RequestError(f"latents must be a numpy array of floats, not {shown(latents)}")
        if latents.ndim != 4 or latents.shape[1] != channels:
            raise RequestError(
                f"latents must be [images, {channels}, height, width], not {list(latents.shape)}"
            )
        colours = np.einsum("kc,nchw->nhwk", self.weights, latents) + self.bias
        return np.asarray((colours.clip(-1, 1) * 127.5 + 127.5).round(), np.uint8)
