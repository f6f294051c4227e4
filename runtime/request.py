"""A request: options that a bundle can fulfil, with the pictures that it starts from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.backend import Capabilities
from bksdm.engines.errors import RequestError
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.generation_config import FAST_LEVELS, GenerationConfig
from bksdm.runtime.guidance import Guidance
from bksdm.runtime.init_image import InitImage
from bksdm.runtime.loaded_configuration import Start, scheduler_fields
from bksdm.runtime.prompt_encoder import PromptOptions
from bksdm.runtime.samplers import StepTable, step_table
from bksdm.runtime.validation import shown


@dataclass(frozen=True)
class Request:
    """Options and inputs of one call, validated against a bundle, with the defaults filled in.

    Attributes
    ----------
    config : GenerationConfig
        Every option as it is carried out; ``seed`` is None where no noise is drawn.
    shape : (int, int, int, int)
        Of the latents: images, channels, height, width.
    table : StepTable
        The compiled sampler, from the first step that is run.
    first_step : int
        How many steps an image to start from leaves out.
    image : InitImage, optional
        What is started from; None for noise.
    latents : ndarray, float32, of ``shape``, optional
        Unit noise to start from, in place of what the seed draws.
    """

    config: GenerationConfig
    shape: tuple[int, int, int, int]
    table: StepTable
    first_step: int = 0
    image: InitImage | None = None
    latents: NDArray[np.float32] | None = None

    @classmethod
    def resolve(
        cls,
        bundle: Bundle,
        engine: Capabilities,
        config: GenerationConfig,
        image: Any = None,
        mask: Any = None,
        latents: Any = None,
    ) -> Request:
        """Return the request; nothing is loaded for it.

        Parameters
        ----------
        bundle : Bundle
            The model.
        engine : Capabilities
            What the engine that it runs on can do.
        config : GenerationConfig
            The options.
        image, mask, latents
            As of :meth:`bksdm.runtime.pipeline.TextToImage.__call__`.

        Raises
        ------
        RequestError, SamplerError
            Names the option, and what it must be.
        """
        start: Start = "noise"
        init, size = None, None
        if image is not None:
            start = "image" if mask is None else "masked image"
            init = _init_image(bundle, image, mask, config)
            size = init.sample.shape[2], init.sample.shape[3]
        elif mask is not None:
            raise RequestError("mask needs an image to start from")
        config = config.resolve(bundle, engine, size, mask is not None)
        if init is not None and config.images % len(init):
            raise RequestError(
                f"image has {len(init)} entries, but {config.images} pictures are asked for"
            )
        first = 0 if config.strength is None else first_step(config)
        scheduler = scheduler_fields(bundle.scheduler, start, config.sampler)
        table = step_table(
            {**scheduler, "eta": config.eta}, config.num_inference_steps, config.sampler, first
        )
        assert config.height is not None
        assert config.width is not None
        height, width = config.height // bundle.vae_scale, config.width // bundle.vae_scale
        shape = (config.images, bundle.latent_channels, height, width)
        noise = None if latents is None else _latents(latents, shape)
        if noise is not None and init is None and not table.draws:
            config = replace(config, seed=None)
        return cls(config, shape, table, first, init, noise)

    @property
    def guidance(self) -> Guidance | None:
        """How the UNet's halves are combined; None where it has only one."""
        config = self.config
        assert config.guidance_interval is not None
        guided = Guidance(config.guidance_scale, config.guidance_rescale, *config.guidance_interval)
        return guided if config.guidance_scale > 1 else None

    @property
    def prompt_options(self) -> PromptOptions:
        """How the prompts are read."""
        config = self.config
        return PromptOptions(config.prompt_weights, config.long_prompt, config.clip_skip or 0)

    @property
    def cache_interval(self) -> int:
        """The whole UNet runs in every n-th evaluation."""
        return FAST_LEVELS[self.config.fast].cache_interval


def _init_image(bundle: Bundle, image: Any, mask: Any, config: GenerationConfig) -> InitImage:
    if "vae_encoder" not in bundle.components:
        raise RequestError(
            f"{bundle.path} has no vae_encoder, which an image needs; export it with `bksdm export`"
        )
    if mask is not None and bundle.latent_channels != 4:
        raise RequestError(
            f"mask needs a model of 4 latent channels, as in diffusers; {bundle.path} has "
            f"{bundle.latent_channels}"
        )
    return InitImage.read(image, mask, config.height, config.width, bundle.vae_scale)


def first_step(config: GenerationConfig) -> int:
    """Return how many steps an image to start from leaves out: N − ⌊N · strength⌋."""
    steps, strength = config.num_inference_steps, config.strength
    assert strength is not None
    left = min(int(steps * strength), steps)
    if left == 0 and strength > 0:
        raise RequestError(
            f"strength {strength:g} leaves none of {steps} steps; take more steps or a higher one"
        )
    return steps - left


def _latents(latents: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if not isinstance(latents, np.ndarray) or not np.issubdtype(latents.dtype, np.floating):
        raise RequestError(f"latents must be a numpy array of floats, not {shown(latents)}")
    if latents.shape != shape:
        raise RequestError(f"latents must have shape {shape}, not {latents.shape}")
    with np.errstate(over="ignore"):
        single = latents.astype(np.float32)
    if not np.isfinite(single).all():
        raise RequestError("latents hold NaN or infinity")
    return single
