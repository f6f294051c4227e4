"""VAE output to 8-bit pixels, and PNG files that carry the parameters they were made with."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin

from bksdm.engines.errors import BksdmError, RequestError

# What Pillow raises for files of every kind of damage.
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def to_uint8(sample: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Convert VAE output to pixels exactly as diffusers' ``VaeImageProcessor`` does.

    p = round(255 · clip(y / 2 + 0.5, 0, 1)), rounding half to even, in float32.

    Parameters
    ----------
    sample : ndarray, float, shape [batch, 3, height, width]
        Nominally in −1 … 1.

    Returns
    -------
    ndarray, uint8, shape [batch, height, width, 3]
    """
    unit = np.clip(sample.astype(np.float32) * np.float32(0.5) + np.float32(0.5), 0.0, 1.0)
    return np.asarray((unit.transpose(0, 2, 3, 1) * np.float32(255)).round(), np.uint8)


def to_pil(pixels: NDArray[np.uint8]) -> list[Image.Image]:
    """Convert ``[batch, height, width, 3]`` pixels to RGB images."""
    return [Image.fromarray(picture) for picture in pixels]


def save_png(image: Image.Image, path: Path, parameters: Mapping[str, str]) -> None:
    """Write ``image`` with ``parameters`` as text chunks; beside the target first, then renamed.

    Raises
    ------
    RequestError
        The file cannot be written.
    """
    chunks = PngImagePlugin.PngInfo()
    for key, value in parameters.items():
        chunks.add_itxt(f"bksdm:{key}", value)
    partial = path.with_name(f".{path.name}.partial")
    try:
        image.save(partial, format="PNG", pnginfo=chunks)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RequestError(f"cannot write {path}: {error.strerror or error}") from error


def open_picture(path: Path) -> Image.Image:
    """Read a picture, turned upright and in RGB, as diffusers' ``load_image`` does.

    Raises
    ------
    RequestError
        The file is no readable picture, is cut off, or would need memory out of all proportion.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return ImageOps.exif_transpose(image).convert("RGB")
    except UNREADABLE as error:
        raise RequestError(f"{path}: not a readable picture ({error})") from error


def read_parameters(path: Path) -> dict[str, str]:
    """Return the parameters that :func:`save_png` wrote; empty for any other picture.

    Raises
    ------
    BksdmError
        The file is no readable picture.
    """
    try:
        with Image.open(path) as image:
            image.load()
            text = {str(k): str(v) for k, v in image.info.items() if str(k).startswith("bksdm:")}
    except UNREADABLE as error:
        raise BksdmError(f"{path}: not a readable picture ({error})") from error
    return {key.removeprefix("bksdm:"): value for key, value in text.items()}
