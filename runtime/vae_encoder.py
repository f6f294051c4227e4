"""Pictures to latents."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import BundleError, NonFiniteError
from bksdm.engines.once import once
from bksdm.engines.protocol import Engine


class VaeEncoder:
    """A bundle's VAE encoder, loaded with the first picture.

    Parameters
    ----------
    load : callable
        Returns the engine.
    scaling_factor : float
        Latents are multiplied by it after the encoder.
    latent_channels : int
        Of a picture's latents.
    exact : bool
        Whether the network makes latents, and not a distribution to draw them from.
    """

    def __init__(
        self,
        load: Callable[[], Engine],
        scaling_factor: float,
        latent_channels: int,
        exact: bool = False,
    ) -> None:
        self._channels = latent_channels
        self._exact = exact
        self._engine = once(load)
        self._scaling_factor = np.float32(scaling_factor)

    def distribution(
        self, sample: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return mean and standard deviation of the scaled latents, [images, channels, h, w] each.

        The network's output is the mean and log σ², which is clipped to −30 … 20 (diffusers'
        ``DiagonalGaussianDistribution``); or the latents, of which there is no deviation.

        Parameters
        ----------
        sample : ndarray, float32, shape [images, 3, height, width]
            Pixels in −1 … 1; encoded one by one, for activations fill memory, not weights.

        Raises
        ------
        BundleError
            The network has no such output.
        NonFiniteError
            The network produced NaN or infinity.
        """
        engine = self._engine()
        dtype = engine.inputs["sample"].dtype
        outputs = [
            engine({"sample": sample[i : i + 1].astype(dtype, copy=False)})
            for i in range(len(sample))
        ]
        # Optimum has called it latent_sample, too.
        (name, *others) = engine.outputs
        parameters = np.concatenate([output[name] for output in outputs]).astype(np.float32)
        if others or parameters.shape[1] != self._channels * (1 if self._exact else 2):
            wanted = "" if self._exact else "a mean and a variance for each of "
            raise BundleError(
                f"vae_encoder: {name} has {parameters.shape[1]} channels in place of {wanted}"
                f"{self._channels}; export it with `bksdm export`"
            )
        if not np.isfinite(parameters).all():
            raise NonFiniteError("latents of the VAE encoder: NaN or infinity")
        if self._exact:
            return parameters * self._scaling_factor, None
        mean, log_variance = np.split(parameters, 2, axis=1)
        deviation = np.exp(np.clip(log_variance, -30, 20) * np.float32(0.5))
        return mean * self._scaling_factor, deviation * self._scaling_factor
