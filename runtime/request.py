"""A request: options that a bundle can fulfil, with the pictures that it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.backend import Capabilities
from bksdm.engines.errors import RequestError
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.control import Control, ControlPictures
from bksdm.runtime.generation_config import FAST_LEVELS, GenerationConfig
from bksdm.runtime.generator import Stream, streams
from bksdm.runtime.guidance import Guidance, guidance_embedding
from bksdm.runtime.init_image import InitImage
from bksdm.runtime.loaded_configuration import Start, scheduler_fields
from bksdm.runtime.lora.factors import PLAIN, Adaptation
from bksdm.runtime.lora.loaded import Loras
from bksdm.runtime.noise import CPU
from bksdm.runtime.prompt_encoder import PromptOptions
from bksdm.runtime.samplers import StepTable, step_table
from bksdm.runtime.validation import floats, several


@dataclass(frozen=True)
class Request:
    """Options and inputs of one call, validated against a bundle, with the defaults filled in.

    Attributes
    ----------
    config : GenerationConfig
        Every option as it is carried out; ``seed`` is None where no noise is drawn, and where
        it is drawn from a generator that has drawn before.
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
    prompt_embeds, negative_prompt_embeds : ndarray, float32, shape [prompts, tokens, width]
        Embeddings in place of the prompts' own; optional.
    generators : tuple of Stream
        One for the batch, or one per image, in place of the seed; empty without.
    each_draws : bool
        Whether each image draws its own noise.
    guidance_width : int, optional
        Of the embedding of the guidance scale, where the UNet takes it instead of two halves.
    controls : tuple of Control
        What each ControlNet does.
    loras : Adaptation
        What LoRAs change of the networks, as they were loaded when the request was made.
    """

    config: GenerationConfig
    shape: tuple[int, int, int, int]
    table: StepTable
    first_step: int = 0
    image: InitImage | None = None
    latents: NDArray[np.float32] | None = None
    prompt_embeds: NDArray[np.float32] | None = None
    negative_prompt_embeds: NDArray[np.float32] | None = None
    generators: tuple[Stream, ...] = ()
    each_draws: bool = False
    guidance_width: int | None = None
    controls: tuple[Control, ...] = ()
    loras: Adaptation = PLAIN

    @classmethod
    def resolve(
        cls,
        bundle: Bundle,
        engine: Capabilities,
        config: GenerationConfig,
        image: Any = None,
        mask: Any = None,
        latents: Any = None,
        prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
        generator: Any = None,
        control_image: Any = None,
        loras: Loras | None = None,
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
        image, mask, latents, prompt_embeds, negative_prompt_embeds, generator, control_image
            As of :meth:`bksdm.runtime.pipeline.TextToImage.__call__`.
        loras : Loras, optional
            Those that are loaded.

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
        if config.seed is not None and generator is not None:
            raise RequestError("seed and generator exclude each other; give one of them")
        if config.noise != CPU and generator is not None:
            raise RequestError("noise is the generator's own where there is one; give one of them")
        control = None if control_image is None else ControlPictures.of(control_image)
        control_size = None if control is None else control.size(bundle.vae_scale)
        config = config.resolve(bundle, engine, size, mask is not None, control_size)
        loras = Loras(bundle, engine) if loras is None else loras
        adaptation, uses = loras.adapt(config.loras)
        config = replace(config, loras=uses)
        if init is not None and config.images % len(init):
            raise RequestError(
                f"image has {len(init)} entries, but {config.images} pictures are asked for"
            )
        scheduler = {
            **scheduler_fields(bundle.scheduler, start, config.sampler),
            "eta": config.eta,
            "timesteps": config.timesteps,
            "sigmas": config.sigmas,
        }
        steps, first = config.num_inference_steps, 0
        if config.strength is not None:
            # diffusers takes the evaluations of stated timesteps for the number of steps.
            stated = config.timesteps or config.sigmas
            first = first_step(
                config, len(step_table(scheduler, steps, config.sampler)) if stated else None
            )
        table = step_table(scheduler, steps, config.sampler, first)
        assert config.height is not None
        assert config.width is not None
        height, width = config.height // bundle.vae_scale, config.width // bundle.vae_scale
        shape = (config.images, bundle.latent_channels, height, width)
        noise = None if latents is None else floats("latents", latents, shape)
        drawing: tuple[Stream, ...] = ()
        if noise is not None and init is None and not table.draws:
            config = replace(config, seed=None)
        elif generator is not None:
            drawing = streams(generator, config.images)
            seed = _seed(drawing, several(generator) is not None)
            config = replace(config, seed=seed, noise=_noise(drawing))
        each = isinstance(config.seed, tuple) or several(generator) is not None
        text = len(config.prompts), None, bundle.cross_attention_dim
        return cls(
            config,
            shape,
            table,
            first,
            init,
            noise,
            None if prompt_embeds is None else floats("prompt_embeds", prompt_embeds, text),
            None
            if negative_prompt_embeds is None
            else floats("negative_prompt_embeds", negative_prompt_embeds, text),
            drawing,
            each,
            bundle.guidance_width,
            () if control is None else control.controls(config),
            adaptation,
        )

    @property
    def stated_guidance(self) -> Guidance:
        """How the UNet's halves are combined where its batch has both."""
        config = self.config
        assert config.guidance_interval is not None
        return Guidance(config.guidance_scale, config.guidance_rescale, *config.guidance_interval)

    @property
    def guidance(self) -> Guidance | None:
        """The same; None where there is only one half."""
        return None if self.guidance_width is not None else self.stated_guidance.where_on()

    @property
    def guidance_embedding(self) -> NDArray[np.float32] | None:
        """What the UNet takes of the scale; None where it guides by two halves."""
        if self.guidance_width is None:
            return None
        return guidance_embedding(self.config.guidance_scale, self.guidance_width)

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


def first_step(config: GenerationConfig, steps: int | None = None) -> int:
    """Return how many of N steps an image to start from leaves out: N − ⌊N · strength⌋."""
    steps, strength = steps or config.num_inference_steps, config.strength
    assert strength is not None
    left = min(int(steps * strength), steps)
    if left == 0 and strength > 0:
        raise RequestError(
            f"strength {strength:g} leaves none of {steps} steps; take more steps or a higher one"
        )
    return steps - left


def _seed(drawing: Sequence[Stream], each: bool) -> int | tuple[int, ...] | None:
    """Return the seed that draws the same noise; None where a generator has drawn before."""
    if not all(stream.fresh for stream in drawing):
        return None
    seeds = tuple(stream.initial_seed() for stream in drawing)
    return seeds if each else seeds[0]


def _noise(drawing: Sequence[Stream]) -> str:
    """Return whose noise generators draw."""
    kinds = {stream.noise for stream in drawing}
    if len(kinds) > 1:
        raise RequestError("generator must be a list of such on one device, not on several")
    return kinds.pop()
