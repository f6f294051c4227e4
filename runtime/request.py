"""A checked generation request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import RequestError
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.checks import (
    flag,
    is_part,
    number,
    part,
    plain,
    several,
    shown,
    side,
    texts,
    whole,
)
from bksdm.runtime.feature_reuse import LEVELS
from bksdm.runtime.guidance import Guidance
from bksdm.runtime.init_image import InitImage
from bksdm.runtime.loaded_configuration import Start, scheduler_fields
from bksdm.runtime.noise import check_seeds
from bksdm.runtime.prompt_encoder import Wording
from bksdm.runtime.prompt_weights import parse_weights
from bksdm.runtime.samplers import StepTable, step_table
from bksdm.runtime.samplers.config import MAX_TRAIN_TIMESTEPS

MAX_IMAGES = 1024
STRENGTH, STRENGTH_WITH_MASK = 0.8, 1.0


@dataclass(frozen=True)
class Request:
    """Arguments of one call, checked and with the defaults filled in.

    Attributes
    ----------
    prompts, negative_prompts
        As many of each.
    images_per_prompt
        Images for each prompt.
    shape
        Of the latents: images, channels, height, width.
    guidance
        How the UNet's halves are combined; None where it has only one.
    table
        The compiled sampler, from the first step that is run.
    seed
        One for the batch or one per image; None for a random one.
    latents
        Unit noise to start from, float32, of ``shape``; None where it is drawn.
    image
        What is started from; None for noise.
    complete
        Whether no step is left out.
    wording
        How the prompts are read.
    reuse
        The whole UNet runs in every n-th evaluation.
    """

    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    images_per_prompt: int
    shape: tuple[int, int, int, int]
    guidance: Guidance | None
    table: StepTable
    seed: int | Sequence[int] | None
    latents: NDArray[np.float32] | None
    image: InitImage | None
    complete: bool
    wording: Wording
    reuse: int

    @classmethod
    def check(
        cls,
        bundle: Bundle,
        prompt: Any,
        *,
        negative_prompt: Any = None,
        height: Any = None,
        width: Any = None,
        num_inference_steps: Any = 50,
        guidance_scale: Any = 7.5,
        num_images_per_prompt: Any = 1,
        seed: Any = None,
        latents: Any = None,
        sampler: Any = None,
        eta: Any = 0.0,
        guidance_rescale: Any = 0.0,
        guidance_interval: Any = (0.0, 1.0),
        image: Any = None,
        strength: Any = None,
        mask: Any = None,
        prompt_weights: Any = False,
        long_prompt: Any = False,
        clip_skip: Any = None,
        fast: Any = 0,
    ) -> Request:
        """Check the arguments of :meth:`TextToImage.__call__` against a bundle.

        Raises
        ------
        RequestError, SamplerError
            Names the argument and what it must be.
        """
        prompts = texts("prompt", prompt)
        negatives = texts("negative_prompt", "" if negative_prompt is None else negative_prompt)
        if len(negatives) == 1:
            negatives *= len(prompts)
        if len(negatives) != len(prompts):
            raise RequestError(
                f"negative_prompt has {len(negatives)} entries, but prompt has {len(prompts)}"
            )
        weighted = flag("prompt_weights", prompt_weights)
        if weighted:
            for text in (*prompts, *negatives):
                parse_weights(text)
        per_prompt = whole("num_images_per_prompt", num_images_per_prompt, 1, MAX_IMAGES)
        steps = whole("num_inference_steps", num_inference_steps, 1, MAX_TRAIN_TIMESTEPS)
        sampler = _sampler(sampler)
        init, first = None, 0
        started_from: Start = "noise"
        if image is not None:
            started_from = "image" if mask is None else "masked image"
            init = _init_image(bundle, image, mask, height, width)
            height, width = init.sample.shape[2:]
            usual = STRENGTH if mask is None else STRENGTH_WITH_MASK
            first = _first_step(steps, usual if strength is None else strength)
        elif mask is not None or strength is not None:
            given, other = ("mask", "strength") if strength is None else ("strength", "mask")
            raise RequestError(f"{given} and {other} go with an image")
        tall, wide = bundle.default_size
        tall = side("height", tall if height is None else height, bundle.vae_scale)
        wide = side("width", wide if width is None else width, bundle.vae_scale)
        count = len(prompts) * per_prompt
        if init is not None and count % len(init):
            raise RequestError(f"image has {len(init)} entries, but {count} pictures are asked for")
        level = LEVELS[whole("fast", fast, 0, len(LEVELS) - 1)]
        scheduler = scheduler_fields(bundle.scheduler, started_from, sampler)
        shape = (count, bundle.latent_channels, tall // bundle.vae_scale, wide // bundle.vae_scale)
        return cls(
            prompts,
            negatives,
            per_prompt,
            shape,
            _guidance(guidance_scale, guidance_rescale, guidance_interval, level.guided),
            step_table({**scheduler, "eta": part("eta", eta)}, steps, sampler, first),
            None if seed is None else check_seeds(seed, count),
            None if latents is None else _latents(latents, shape),
            init,
            first == 0,
            Wording(weighted, flag("long_prompt", long_prompt), _clip_skip(bundle, clip_skip)),
            level.every,
        )

    @property
    def texts(self) -> list[str]:
        """One text per row of the UNet's batch: negative prompts first, if there is guidance."""
        halves = (self.negative_prompts, self.prompts) if self.guidance else (self.prompts,)
        return [text for half in halves for text in half for _ in range(self.images_per_prompt)]


def _init_image(bundle: Bundle, image: Any, mask: Any, height: Any, width: Any) -> InitImage:
    if "vae_encoder" not in bundle.components:
        raise RequestError(
            f"{bundle.path} has no vae_encoder, which an image needs; export it with `bksdm export`"
        )
    if mask is not None and bundle.latent_channels != 4:
        raise RequestError(
            f"mask needs a model of 4 latent channels, as in diffusers; {bundle.path} has "
            f"{bundle.latent_channels}"
        )
    return InitImage.check(image, mask, height, width, bundle.vae_scale)


def _first_step(steps: int, strength: Any) -> int:
    """Return how many steps an image to start from leaves out: N − ⌊N · strength⌋."""
    wanted = part("strength", strength)
    # In the strength's own precision: 10 · 0.7 is 7 in float32 as well, as it is for diffusers.
    left = min(int(steps * strength), steps)
    if left == 0 and wanted > 0:
        raise RequestError(
            f"strength {wanted:g} leaves none of {steps} steps; take more steps or a higher one"
        )
    return steps - left


def _sampler(value: Any) -> str | None:
    found = plain(value)
    if found is not None and not isinstance(found, str):
        raise RequestError(f"sampler must be a name, not {shown(value)}")
    return None if found is None else str(found)


def _clip_skip(bundle: Bundle, value: Any) -> int:
    skipped = 0 if value is None else whole("clip_skip", value, 0, 1024)
    if skipped and skipped >= bundle.text_layers:
        raise RequestError(
            f"clip_skip must be below the text encoder's {bundle.text_layers} layers, not {skipped}"
        )
    return skipped


def _guidance(scale: Any, rescale: Any, interval: Any, guided: float) -> Guidance | None:
    scale = number("guidance_scale", scale)
    rescale = part("guidance_rescale", rescale)
    pair = several(interval)
    if pair is None or len(pair) != 2 or not all(map(is_part, pair)) or not pair[0] < pair[1]:
        raise RequestError(
            f"guidance_interval must be two numbers from 0 to 1, ascending, not {shown(interval)}"
        )
    start, end = (float(plain(bound)) for bound in pair)
    if (start, end) == (0, 1):
        end = guided
    return Guidance(scale, rescale, start, end) if scale > 1 else None


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
