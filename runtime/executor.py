"""The interface between the pipeline and whatever runs a bundle's networks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bksdm.runtime.bundle import FULL
from bksdm.runtime.inpainting import Latents
from bksdm.runtime.job import DenoisingJob
from bksdm.runtime.lora.factors import Adaptation
from bksdm.runtime.sampling import Watch


class Executor(Protocol):
    """Runs a bundle's networks. Threads may share it."""

    def validate_size(self, height: int, width: int, images: int) -> None:
        """Refuse a size in pixels or a number of images that cannot be run.

        Raises
        ------
        RequestError
            Says what can be.
        """
        ...

    def load_adapted(self, loras: Adaptation) -> None:
        """Load the networks that take the factors of LoRAs, where the engine can.

        Raises
        ------
        EngineError
            They cannot be loaded.
        """
        ...

    def keep_adapted(self, scopes: Mapping[str, Collection[str]]) -> None:
        """Let go of networks for LoRAs, but for those of some scopes, by component."""
        ...

    def __call__(
        self, job: DenoisingJob, watch: Watch, seconds: dict[str, float]
    ) -> NDArray[np.uint8]:
        """Return pixels [images, height, width, 3] and add the wall time of each stage.

        Raises
        ------
        NonFiniteError
            A network produced NaN or infinity.
        Cancelled
            The callback returned False.
        """
        ...

    def denoise(self, job: DenoisingJob, watch: Watch, seconds: dict[str, float]) -> Latents:
        """Return x_0, float32, instead of pixels; otherwise the same."""
        ...

    def decode(
        self, latents: Latents, seconds: dict[str, float], vae: str = FULL
    ) -> NDArray[np.uint8]:
        """Return pixels [images, height, width, 3] of latents, which may be any step's.

        ``vae`` says by which decoder.

        Raises
        ------
        NonFiniteError
            The VAE decoder produced NaN or infinity.
        """
        ...

    def decode_exactly(
        self, latents: Latents, seconds: dict[str, float], vae: str = FULL
    ) -> NDArray[np.float32]:
        """Return the same in 0 … 1, as exactly as the engine has them."""
        ...
