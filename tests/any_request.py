"""Requests of any kind, by chance: for what has to hold of all."""

from __future__ import annotations

import numpy as np
from PIL import Image

from bksdm.runtime.generation_config import GenerationConfig


def any_request(generator, samplers, steps, fast, prompts=("",), negative_prompts=("",)):
    """Return a request's options, its image and its mask.

    Steps, sampler, guidance, image, mask, number of images and reuse of features are by chance.

    Parameters
    ----------
    generator : numpy Generator
    samplers : sequence of str
    steps : (int, int)
        The least, and one more than the most.
    fast : sequence of int
    prompts, negative_prompts : sequence of str
    """
    pick = lambda *values: values[generator.integers(len(values))]  # noqa: E731
    side = int(pick(64, 64, 64, 72))
    image, mask = None, None
    if generator.random() < 0.5:
        pixels = generator.integers(0, 256, (4, 4, 3), np.uint8)
        image = Image.fromarray(pixels).resize((side, side))
        if generator.random() < 0.5:
            mask = Image.fromarray(np.tri(side, dtype=np.uint8) * 255)
    config = GenerationConfig(
        str(pick(*prompts)),
        str(pick(*negative_prompts)),
        height=side,
        width=side,
        seed=int(generator.integers(1000)),
        num_inference_steps=int(generator.integers(*steps)),
        sampler=str(pick(*samplers)),
        guidance_scale=pick(1.0, 3.0, 7.5),
        guidance_rescale=pick(0.0, 0.5),
        guidance_interval=pick(None, (0.0, 0.5), (0.4, 1.0)),
        fast=int(pick(*fast)),
        num_images_per_prompt=int(pick(1, 1, 2)),
        strength=None if image is None else 0.8,
    )
    return config, image, mask
