"""What one call made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bksdm.runtime.generation_config import GenerationConfig
from bksdm.runtime.images import to_pil
from bksdm.storage.precision import FLOAT32

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(kw_only=True)
class Result:
    """The pictures of one call.

    Attributes
    ----------
    pixels : ndarray, uint8, shape [images, height, width, 3]
        Prompt-major: all images of the first prompt come first. Without any of them where latents
        were asked for.
    config : GenerationConfig
        The options as they were carried out: with the size, seed and strength that were chosen.
        Prompts that embeddings stood in for are empty.
    steps : int
        Number of UNet evaluations.
    nsfw_content_detected : list of bool or None
        Of each image, whether the safety checker found it unfit; such an image is black, as in
        diffusers. None where nothing was checked: the bundle has no checker, or it is off, or
        latents were asked for.
    seconds : dict
        Wall time by stage that ran: tokenize, text_encoder, unet, loop (between UNet calls),
        vae_decoder, to_uint8; vae_encoder where a picture is started from, and safety_checker.
    engines : dict
        The engine that ran each network.
    precision : str
        What the UNet and the VAE computed in.
    array : ndarray, float32, optional
        What ``output_type`` asked for in place of pictures.
    """

    pixels: NDArray[np.uint8]
    config: GenerationConfig
    steps: int
    nsfw_content_detected: list[bool] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    engines: dict[str, str] = field(default_factory=dict)
    precision: str = FLOAT32.name
    array: NDArray[np.float32] | None = None

    @property
    def seed(self) -> int | list[int] | None:
        """The seed of the noise, chosen at random where none was given.

        None where no noise was drawn, or by a generator that had drawn before.
        """
        seed = self.config.seed
        return list(seed) if isinstance(seed, tuple) else seed

    @property
    def images(self) -> list[Image] | NDArray[np.float32]:
        """The images as PIL pictures, or the array that ``output_type`` asked for."""
        return to_pil(self.pixels) if self.array is None else self.array

    def to_tuple(self) -> tuple[Any, ...]:
        """Return images and ``nsfw_content_detected``, as with ``return_dict=False``."""
        return self.images, self.nsfw_content_detected

    def __getitem__(self, key: int | slice | str) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]
