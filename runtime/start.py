"""Where the loop starts: noise, or a picture with noise; all of it in the order torch draws it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bksdm.runtime.init_image import InitImage
from bksdm.runtime.noise import BatchNoise
from bksdm.runtime.request import Request
from bksdm.runtime.sampling import Known
from bksdm.runtime.vae_encoder import VaeEncoder

Seed = int | Sequence[int]


@dataclass(frozen=True)
class Start:
    """What the loop is given.

    Attributes
    ----------
    latents : ndarray, float32, shape [images, channels, height / 8, width / 8]
        x_T, at the noise level of the first evaluation.
    noises : ndarray, float32, shape [table.draws, *latents.shape]
        Unit noise that a stochastic sampler adds.
    known : Known, optional
        What of a picture stays as it was.
    seed : int, sequence of int or None
        What the noise was drawn with; None where none was drawn.
    """

    latents: NDArray[np.float32]
    noises: NDArray[np.float32]
    known: Known | None
    seed: Seed | None


def start_from_noise(request: Request) -> Start:
    """Return unit noise, drawn or the request's own, scaled as the sampler wants it."""
    table, shape, seed, latents = request.table, request.shape, request.seed, request.latents
    noises = np.empty((table.draws, *shape), np.float32)
    if latents is not None and not table.draws:
        seed = None
    else:
        seed = secrets.randbits(32) if seed is None else seed
        source = BatchNoise(seed, shape[0])
        latents = source.draw(shape[1:]) if latents is None else latents
        for noise in noises:
            noise[:] = source.draw(shape[1:])
    return Start(latents * np.float32(table.init_noise_sigma), noises, None, seed)


def start_from_image(request: Request, image: InitImage, encoder: VaeEncoder) -> Start:
    """Return pictures brought to the first evaluation's noise level: x = α x_0 + σ z.

    x_0 is drawn from the encoder's distribution, as diffusers' image-to-image and inpainting
    pipelines do; images repeat until there is one for each of the batch. Where a mask is painted
    with all steps, it starts from noise alone.
    """
    table, seed = request.table, request.seed
    batch, *inner = request.shape
    seed = secrets.randbits(32) if seed is None else seed
    source = BatchNoise(seed, batch)
    mean, deviation = encoder.distribution(image.sample)
    # Each image to image of a list of seeds draws for itself; a picture to inpaint is drawn once.
    drawn = batch if image.painted is None and isinstance(seed, Sequence) else len(image)
    unit = source.draw(inner, drawn)
    clean = _tiled(mean, drawn) + _tiled(deviation, drawn) * unit
    clean = _tiled(clean, batch)
    noise = source.draw(inner)
    if image.painted is not None:
        # diffusers encodes what the mask leaves as well, for UNets that are shown it.
        source.draw(inner, len(image))
    noises = np.empty((table.draws, *request.shape), np.float32)
    for added in noises:
        added[:] = source.draw(inner)
    noise = noise if request.latents is None else request.latents
    if image.painted is not None and request.complete:
        mixed = noise * np.float32(table.init_noise_sigma)
    else:
        alpha, sigma = table.levels[0].astype(np.float32)
        mixed = alpha * clean + sigma * noise
    known = None
    if image.painted is not None:
        repeats = batch // len(image)
        known = Known(clean, noise, np.tile(image.painted, (repeats, 1, 1, 1)))
    return Start(mixed, noises, known, seed)


def _tiled(array: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Repeat [images, channels, h, w] as a whole until there are ``count``."""
    return np.tile(array, (count // len(array), 1, 1, 1))
