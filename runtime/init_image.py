"""Pictures to start from, prepared exactly as diffusers' ``VaeImageProcessor`` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bksdm.engines.errors import RequestError
from bksdm.runtime.images import UNREADABLE
from bksdm.runtime.validation import MAX_SIDE, shown, side


@dataclass(frozen=True)
class InitImage:
    """Validated pictures, and the part of each that is made anew.

    Attributes
    ----------
    sample : ndarray, float32, shape [images, 3, height, width]
        Pixels in −1 … 1, as the VAE encoder takes them.
    mask : ndarray of bool, shape [images, 1, height / 8, width / 8], optional
        True where a mask is white; None makes everything anew.
    """

    sample: NDArray[np.float32]
    mask: NDArray[np.bool_] | None

    @classmethod
    def read(
        cls, image: Any, mask: Any, height: int | None, width: int | None, multiple: int
    ) -> InitImage:
        """Convert and resize pictures, by Lanczos' filter.

        Parameters
        ----------
        image : PIL image or sequence of such
            Of any mode; becomes RGB.
        mask : PIL image, sequence of as many as there are images, or None
            Becomes grey; white, from 128 on, is what is made anew.
        height, width : int, optional
            In pixels; by default the first image's, rounded down to ``multiple``.
        multiple : int
            Pixels per latent pixel along each side.

        Raises
        ------
        RequestError
            Something is no picture, cannot be read or is too small, or images and masks differ in
            number.
        """
        images = _pictures("image", image)
        own = [pixels - pixels % multiple for pixels in images[0].size]
        if not all(own):
            raise RequestError(f"image must have at least {multiple} pixels along each side")
        for name, length, asked in zip(("width", "height"), own, (width, height), strict=True):
            if asked is None and length > MAX_SIDE:
                raise RequestError(
                    f"image has a {name} of {length} pixels; ask for a size up to {MAX_SIDE}"
                )
        wide = side("width", own[0] if width is None else width, multiple)
        tall = side("height", own[1] if height is None else height, multiple)
        size = (wide, tall)
        pixels = np.stack([_resized("image", picture, size, "RGB") for picture in images])
        sample = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2) * np.float32(2) - np.float32(1))
        if mask is None:
            return cls(sample, None)
        masks = _pictures("mask", mask)
        if len(masks) not in (1, len(images)):
            raise RequestError(f"mask has {len(masks)} entries, but image has {len(images)}")
        # diffusers resizes a mask before it makes it grey, and takes every eighth pixel of it.
        grey = np.stack([_resized("mask", m, size, "L") for m in masks])[:, None]
        white = grey[:, :, ::multiple, ::multiple] >= 0.5
        return cls(sample, np.repeat(white, len(images) // len(masks), axis=0))

    def __len__(self) -> int:
        return len(self.sample)


def _pictures(name: str, value: Any) -> list[Image.Image]:
    pictures = value if isinstance(value, Sequence) else [value]
    if not pictures or not all(isinstance(picture, Image.Image) for picture in pictures):
        raise RequestError(f"{name} must be a PIL image or a list of them, not {shown(value)}")
    return list(pictures)


def _resized(
    name: str, picture: Image.Image, size: tuple[int, int], mode: str
) -> NDArray[np.float32]:
    try:
        whole = picture.convert("RGB") if mode == "RGB" else picture
        resized = whole.resize(size, Image.Resampling.LANCZOS).convert(mode)
    except UNREADABLE as error:
        raise RequestError(f"{name} cannot be read ({error})") from error
    values: NDArray[np.float32] = np.asarray(resized, np.float32) / np.float32(255)
    return values
