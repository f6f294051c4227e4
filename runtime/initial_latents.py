"""Where the loop starts: noise, or a picture with noise; all of it in the order torch draws it."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from bksdm.runtime.inpainting import Inpainting
from bksdm.runtime.job import DenoisingJob
from bksdm.runtime.noise import BatchNoise, RandomSource, Seeded, StreamNoise
from bksdm.runtime.request import Request
from bksdm.runtime.vae_encoder import VaeEncoder


def begin(
    request: Request, encoder: VaeEncoder | None, noise: Seeded | None = None
) -> DenoisingJob:
    """Draw all the noise of a request, and encode the picture that it starts from.

    Parameters
    ----------
    request : Request
        What is asked for.
    encoder : VaeEncoder, optional
        For requests that start from a picture.
    noise : callable, optional
        Returns the source of noise for a seed; by default that of the request's options.
    """
    noise = partial(BatchNoise, noise=request.config.noise) if noise is None else noise
    if request.image is None:
        latents, noises, inpainting = *_noise(request, noise), None
    else:
        assert encoder is not None
        latents, noises, inpainting = _noised_image(request, encoder, noise)
    config = request.config
    return DenoisingJob(
        prompts=config.prompts,
        negative_prompts=config.negative_prompts,
        guidance=request.guidance,
        guidance_embedding=request.guidance_embedding,
        table=request.table,
        latents=latents,
        noises=noises,
        inpainting=inpainting,
        prompt_options=request.prompt_options,
        cache_interval=request.cache_interval,
        vae=config.vae,
        prompt_embeds=request.prompt_embeds,
        negative_prompt_embeds=request.negative_prompt_embeds,
        controls=request.controls,
        guess_mode=config.guess_mode,
        loras=request.loras,
    )


def _noise(request: Request, seeded: Seeded) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return unit noise, drawn or the request's own, scaled as the sampler wants it."""
    table, shape, latents = request.table, request.shape, request.latents
    noises = np.empty((table.draws, *shape), np.float32)
    source = _source(request, seeded)
    if source is not None:
        latents = source.draw(shape[1:]) if latents is None else latents
        for noise in noises:
            noise[:] = source.draw(shape[1:])
    assert latents is not None
    return latents * np.float32(table.init_noise_sigma), noises


def _noised_image(
    request: Request, encoder: VaeEncoder, seeded: Seeded
) -> tuple[NDArray[np.float32], NDArray[np.float32], Inpainting | None]:
    """Return pictures brought to the first evaluation's noise level: x = α x_0 + σ z.

    x_0 is drawn from the encoder's distribution, as diffusers' image-to-image and inpainting
    pipelines do, where it has one; images repeat until there is one for each of the batch.
    Inpainting with all steps starts from noise alone.
    """
    table, image, source = request.table, request.image, _source(request, seeded)
    assert image is not None
    assert source is not None
    batch, *inner = request.shape
    mean, deviation = encoder.distribution(image.sample)
    # Each image to image of a list of seeds draws for itself; a picture to inpaint is drawn once.
    drawn = batch if image.mask is None and request.each_draws else len(image)
    clean = mean
    if deviation is not None:
        unit = source.draw(inner, drawn)
        clean = _tiled(mean, drawn) + _tiled(deviation, drawn) * unit
    clean = _tiled(clean, batch)
    noise = source.draw(inner)
    if image.mask is not None and deviation is not None:
        # diffusers encodes what the mask leaves as well, for UNets that are shown it.
        source.draw(inner, len(image))
    noises = np.empty((table.draws, *request.shape), np.float32)
    for added in noises:
        added[:] = source.draw(inner)
    noise = noise if request.latents is None else request.latents
    if image.mask is not None and request.first_step == 0:
        mixed = noise * np.float32(table.init_noise_sigma)
    else:
        alpha, sigma = table.levels[0].astype(np.float32)
        mixed = alpha * clean + sigma * noise
    if image.mask is None:
        return mixed, noises, None
    repeats = batch // len(image)
    return mixed, noises, Inpainting(clean, noise, np.tile(image.mask, (repeats, 1, 1, 1)))


def _source(request: Request, seeded: Seeded) -> RandomSource | None:
    """Return where the noise of a request comes from; None where none is drawn."""
    images, seed = request.shape[0], request.config.seed
    if request.generators:
        return StreamNoise(request.generators, images, request.each_draws)
    return None if seed is None else seeded(seed, images)


def _tiled(array: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Repeat [images, channels, h, w] as a whole until there are ``count``."""
    return np.tile(array, (count // len(array), 1, 1, 1))
