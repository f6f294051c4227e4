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
        images = pictures_of("image", image)
        own = default_sides("image", images[0], multiple)
        for name, length, asked in zip(("width", "height"), own, (width, height), strict=True):
            if asked is None and length > MAX_SIDE:
                raise RequestError(
                    f"image has a {name} of {length} pixels; ask for a size up to {MAX_SIDE}"
                )
        wide = side("width", own[0] if width is None else width, multiple)
        tall = side("height", own[1] if height is None else height, multiple)
        size = (wide, tall)
        pixels = np.stack([resized("image", p, size, "RGB", before="RGB") for p in images])
        sample = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2) * np.float32(2) - np.float32(1))
        if mask is None:
            return cls(sample, None)
        masks = pictures_of("mask", mask)
        if len(masks) not in (1, len(images)):
            raise RequestError(f"mask has {len(masks)} entries, but image has {len(images)}")
        # diffusers resizes a mask before it makes it grey, and takes every eighth pixel of it.
        grey = np.stack([resized("mask", m, size, "L") for m in masks])[:, None]
        white = grey[:, :, ::multiple, ::multiple] >= 0.5
        return cls(sample, np.repeat(white, len(images) // len(masks), axis=0))

    def __len__(self) -> int:
        return len(self.sample)


def pictures_of(name: str, value: Any) -> list[Image.Image]:
    """Return one picture or several as a list.

    Raises
    ------
    RequestError
        There are none, or something else among them.
    """
    pictures = value if isinstance(value, Sequence) else [value]
    if not pictures or not all(isinstance(picture, Image.Image) for picture in pictures):
        raise RequestError(f"{name} must be a PIL image or a list of them, not {shown(value)}")
    return list(pictures)


def default_sides(name: str, picture: Image.Image, multiple: int) -> tuple[int, int]:
    """Return width and height of a picture, rounded down to a multiple.

    Raises
    ------
    RequestError
        It is too small.
    """
    width, height = (pixels - pixels % multiple for pixels in picture.size)
    if not (width and height):
        raise RequestError(f"{name} must have at least {multiple} pixels along each side")
    return width, height


def resized(
    name: str, picture: Image.Image, size: tuple[int, int], mode: str, before: str | None = None
) -> NDArray[np.float32]:
    """Return the values of a picture in 0 … 1, resized by Lanczos' filter, float32.

    Parameters
    ----------
    name : str
        Of the argument.
    picture : Image
        Of any mode.
    size : (int, int)
        Width and height.
    mode : str
        That it becomes: ``RGB`` or ``L``.
    before : str, optional
        A mode that it becomes before it is resized.

    Raises
    ------
    RequestError
        It cannot be read.
    """
    try:
        whole = picture if before is None else picture.convert(before)
        result = whole.resize(size, Image.Resampling.LANCZOS).convert(mode)
    except UNREADABLE as error:
        raise RequestError(f"{name} cannot be read ({error})") from error
    values: NDArray[np.float32] = np.asarray(result, np.float32) / np.float32(255)
    return values
