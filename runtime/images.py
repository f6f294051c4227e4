"""VAE output to 8-bit pixels, and pictures of every format read from files."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from bksdm.engines.errors import RequestError
from bksdm.runtime.picture_record import PictureRecord, record_of
from bksdm.runtime.user_files import read_input

# What Pillow raises for files of every kind of damage.
UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    SyntaxError,
    TypeError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def to_unit(sample: NDArray[np.floating]) -> NDArray[np.float32]:
    """Convert VAE output to values in 0 … 1, clip(y / 2 + 0.5, 0, 1), in float32.

    Parameters
    ----------
    sample : ndarray, float, shape [batch, 3, height, width]
        Nominally in −1 … 1.

    Returns
    -------
    ndarray, float32, shape [batch, height, width, 3]
    """
    unit = np.clip(sample.astype(np.float32) * np.float32(0.5) + np.float32(0.5), 0.0, 1.0)
    return np.asarray(unit.transpose(0, 2, 3, 1), np.float32)


def psnr(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the peak signal-to-noise ratio of levels 0 … 255, in dB; of equal ones infinite."""
    square = float(np.mean((found.astype(np.float64) - expected) ** 2))
    return float(10 * np.log10(255**2 / square)) if square > 0 else float("inf")


def to_levels(unit: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Round values in 0 … 1 to 256 levels, half to even, as diffusers does."""
    return np.asarray((unit * np.float32(255)).round(), np.uint8)


def to_uint8(sample: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Convert VAE output [batch, 3, h, w] to pixels [batch, h, w, 3].

    Exactly as diffusers' ``VaeImageProcessor`` does.
    """
    return to_levels(to_unit(sample))


def to_pil(pixels: NDArray[np.uint8]) -> list[Image.Image]:
    """Convert ``[batch, height, width, 3]`` pixels to RGB images."""
    return [Image.fromarray(picture) for picture in pixels]


def open_picture(path: Path) -> Image.Image:
    """Read a picture, turned upright and in RGB, as diffusers' ``load_image`` does.

    Parameters
    ----------
    path : Path
        A file, or the system's name for a pipe that this process was given, as ``/dev/stdin``.

    Raises
    ------
    RequestError
        There is no such file, it is no readable picture, is cut off, or would need memory out of
        all proportion.
    """
    with opened(read_input(path), path) as image:
        return upright(image).convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """Return a picture turned as its EXIF says; this decodes it."""
    return ImageOps.exif_transpose(image)


def read_record(path: Path) -> PictureRecord:
    """Return what a picture says of how it was made, by this program or by A1111's.

    Parameters
    ----------
    path : Path
        As of :func:`open_picture`; pixels are not read.

    Raises
    ------
    RequestError
        There is no such file, or it is no picture.
    """
    with opened(read_input(path), path) as image:
        return record_of(image)


def read_parameters(path: Path) -> dict[str, str]:
    """Return our own entries of :func:`read_record`; empty for any other picture."""
    return dict(read_record(path).own)


@contextmanager
def opened(
    content: bytes,
    name: object,
    most_pixels: int | None = None,
    formats: tuple[str, ...] | None = None,
) -> Iterator[Image.Image]:
    """Open a picture of a size that memory holds; what goes wrong with it is a RequestError.

    Parameters
    ----------
    content : bytes
        Of the file.
    name : object
        What errors call it.
    most_pixels : int, optional
        By default as many as Pillow holds for safe.
    formats : tuple of str, optional
        Pillow's names of those that are read; by default all.
    """
    limit = Image.MAX_IMAGE_PIXELS if most_pixels is None else most_pixels
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            # Pillow itself refuses twice as many, and warns of these.
            if limit is not None and image.width * image.height > limit:
                raise ValueError(f"{image.width}x{image.height} pixels are too many")
            yield image
    except UnidentifiedImageError as error:
        raise RequestError(f"{name}: not a readable picture (of no known format)") from error
    except UNREADABLE as error:
        raise RequestError(f"{name}: not a readable picture ({error})") from error
