"""Every option of a picture, written once, for Python, the command line, PNGs and the docs."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any, cast

import numpy as np

from bksdm.engines.backend import Capabilities
from bksdm.engines.errors import RequestError
from bksdm.runtime.bundle import DECODERS, FULL, Bundle
from bksdm.runtime.control_options import (
    one_or_several_names,
    one_or_several_numbers,
    one_or_several_parts,
    require_ascending,
    resolved_control,
)
from bksdm.runtime.lora.use import LoraUse, lora_uses
from bksdm.runtime.noise import CPU, seeded_stream, validate_seed, validate_seeds
from bksdm.runtime.prompt_weights import parse_weights
from bksdm.runtime.samplers.config import MAX_TRAIN_TIMESTEPS
from bksdm.runtime.samplers.names import sampler_name
from bksdm.runtime.validation import (
    MAX_SIDE,
    flag,
    interval,
    number,
    part,
    plain,
    several,
    shown,
    side,
    texts,
    whole,
)

MAX_IMAGES = 1024
STRENGTH, STRENGTH_WITH_MASK = 0.8, 1.0
MAX_SKIPPED_LAYERS = 1024


@dataclass(frozen=True)
class FastLevel:
    """The meaning of one level of ``fast``.

    Attributes
    ----------
    cache_interval : int
        The whole UNet runs in every n-th evaluation; 1 is always.
    guided_until : float
        Part of the evaluations that have guidance, from the first on.
    """

    cache_interval: int
    guided_until: float


FAST_LEVELS = (FastLevel(1, 1.0), FastLevel(2, 1.0), FastLevel(4, 1.0), FastLevel(5, 0.6))
"""By the number that is asked for; 0 is the exact picture."""

Validate = Callable[[str, Any], Any]
"""Takes an option's name and value; returns the value as Python has it, or raises RequestError."""


@dataclass(frozen=True)
class Option:
    """One option's flag, range, help and check; name, type and default are the field's.

    Attributes
    ----------
    flag : str
        On the command line; empty for what has no flag. The field's own name is a flag too.
    values : str
        Its range, in words.
    help : str
        One line.
    validate : callable
        Not asked about None where that is the default.
    also : tuple of str
        Further flags, as other programs spell it.
    """

    flag: str
    values: str
    help: str
    validate: Validate
    also: tuple[str, ...] = ()


def _option(
    default: Any, flag: str, values: str, help: str, validate: Validate, also: tuple[str, ...] = ()
) -> Any:
    return field(default=default, metadata={"option": Option(flag, values, help, validate, also)})


def _one_or_several(name: str, value: Any) -> str | tuple[str, ...]:
    found = texts(name, value)
    return found[0] if several(value) is None else found


def _seeds(name: str, value: Any) -> int | tuple[int, ...]:
    found = several(value)
    return validate_seed(value) if found is None else tuple(map(validate_seed, found))


def _noise(name: str, value: Any) -> str:
    found = plain(value)
    if not isinstance(found, str):
        raise RequestError(f"{name} must be cpu, cuda or cuda:THREADS, not {shown(value)}")
    seeded_stream(found)
    return str(found)


def _sampler(name: str, value: Any) -> str:
    found = plain(value)
    if not isinstance(found, str):
        raise RequestError(f"{name} must be a name, not {shown(value)}")
    return sampler_name(str(found))


def _decoder(name: str, value: Any) -> str:
    found = plain(value)
    if not isinstance(found, str) or found not in DECODERS:
        raise RequestError(f"{name} must be {' or '.join(DECODERS)}, not {shown(value)}")
    return found


def _strength(name: str, value: Any) -> float:
    found = part(name, value)
    narrow = getattr(value, "dtype", None) is not None
    # In its own precision: 10 · 0.7 is 7 in float32 as well, as it is for diffusers.
    return cast(float, np.asarray(value)[()]) if narrow else found


def _as_float(strength: float, steps: int) -> float:
    """Return a strength of any precision as a float that leaves as many of the steps.

    100 · 0.29 is 29 in float32 and 28.999… here, so that what was recorded would draw another.
    """
    with np.errstate(over="ignore"):
        left = strength * steps
    shortest = float(str(strength))
    if math.isinf(left) or int(steps * shortest) == min(int(left), steps):
        return shortest
    return math.nextafter(min(int(left), steps) / steps, 1.0)


def _timesteps(name: str, value: Any) -> tuple[int, ...]:
    found = [whole(name, entry, 0, MAX_TRAIN_TIMESTEPS - 1) for entry in several(value) or ()]
    if not found or found != sorted(set(found), reverse=True):
        raise RequestError(f"{name} must be descending whole numbers, not {shown(value)}")
    return tuple(found)


def _sigmas(name: str, value: Any) -> tuple[float, ...]:
    found = [number(name, entry) for entry in several(value) or ()]
    if len(found) < 2 or found != sorted(set(found), reverse=True) or found[-1] < 0:
        raise RequestError(
            f"{name} must be two or more descending numbers, none below 0, not {shown(value)}"
        )
    return tuple(found)


_SIDES = f"8 to {MAX_SIDE}, a multiple of 8; default: the model's, or the image's"
_side = partial(whole, lowest=8, highest=MAX_SIDE)
_fast = partial(whole, lowest=0, highest=len(FAST_LEVELS) - 1)


@dataclass(frozen=True)
class GenerationConfig:
    """The options of a picture that are text and numbers; checked when it is made.

    Each is described by the :class:`Option` in :data:`OPTIONS`; None leaves it to the model.

    Raises
    ------
    RequestError, SamplerError
        Names the option and what it must be.
    """

    prompt: str | tuple[str, ...] = _option(
        MISSING,
        "",
        "text, or several",
        help="what to draw; several prompts are drawn in one batch",
        validate=_one_or_several,
        also=("-p", "--prompt"),
    )
    negative_prompt: str | tuple[str, ...] | None = _option(
        None,
        "--negative",
        "one text, or in Python one per prompt",
        "what to keep out of the picture",
        _one_or_several,
    )
    height: int | None = _option(
        None,
        "--height",
        _SIDES,
        help="height in pixels",
        validate=_side,
        also=("-H",),
    )
    width: int | None = _option(
        None,
        "--width",
        _SIDES,
        help="width in pixels",
        validate=_side,
        also=("-W",),
    )
    num_inference_steps: int = _option(
        50,
        "--steps",
        f"1 to {MAX_TRAIN_TIMESTEPS}",
        help="denoising steps",
        validate=partial(whole, lowest=1, highest=MAX_TRAIN_TIMESTEPS),
        also=("-s",),
    )
    timesteps: tuple[int, ...] | None = _option(
        None,
        "--timesteps",
        "whole numbers, descending; default: spaced by the sampler",
        "timesteps to visit, in place of a number of steps",
        _timesteps,
    )
    sigmas: tuple[float, ...] | None = _option(
        None,
        "--sigmas",
        "numbers, descending, the last one where it ends; default: the sampler's",
        "noise levels to visit, in place of a number of steps; for euler",
        _sigmas,
    )
    guidance_scale: float = _option(
        7.5,
        "--guidance",
        "a number; 1 or less turns guidance off",
        help="how closely to follow the prompt",
        validate=number,
        also=("--cfg-scale",),
    )
    num_images_per_prompt: int = _option(
        1,
        "--count",
        f"1 to {MAX_IMAGES}",
        help="images per prompt",
        validate=partial(whole, lowest=1, highest=MAX_IMAGES),
        also=("-n",),
    )
    seed: int | tuple[int, ...] | None = _option(
        None,
        "--seed",
        "-2^63 to 2^64-1, one for the batch or one per image; default: random",
        "seed of the noise; gives the same noise as torch.Generator",
        _seeds,
    )
    noise: str = _option(
        CPU,
        "--noise",
        "cpu, cuda or cuda:THREADS",
        "whose noise a seed means: that of torch.Generator on the CPU or on a GPU; THREADS is how "
        "many a GPU holds at once, which counts for large batches",
        _noise,
    )
    sampler: str | None = _option(
        None,
        "--sampler",
        "see `bksdm samplers`; default: the model's own",
        "how noise is removed from step to step",
        _sampler,
    )
    eta: float = _option(
        0.0, "--eta", "0 to 1", "how much new noise ddim and tcd add in every step", part
    )
    guidance_rescale: float = _option(
        0.0,
        "--guidance-rescale",
        "0 to 1",
        "how far to undo the growth in standard deviation that guidance causes",
        part,
    )
    guidance_interval: tuple[float, float] | None = _option(
        None,
        "--guidance-interval",
        "two ascending numbers from 0 to 1; default: all steps",
        "guide only this part of the steps; the others take half the time",
        interval,
    )
    strength: float | None = _option(
        None,
        "--strength",
        "0 to 1; default: 0.8, or 1 with a mask",
        help="how much of the image to change",
        validate=_strength,
        also=("--denoising-strength",),
    )
    controlnet: str | tuple[str, ...] | None = _option(
        None,
        "--controlnet",
        "a name, or several as canny,depth; default: the model's only one",
        help="which ControlNets of the model are shown the control images",
        validate=one_or_several_names,
    )
    controlnet_conditioning_scale: float | tuple[float, ...] | None = _option(
        None,
        "--controlnet-scale",
        "a number, or one per ControlNet; default: 1, 0.8 with an image, 0.5 with a mask",
        help="how much a ControlNet adds",
        validate=one_or_several_numbers,
    )
    guess_mode: bool = _option(
        False,
        "--guess-mode",
        "True or False",
        "let ControlNets act beside the prompt alone, not the negative one, and less on details",
        flag,
    )
    control_guidance_start: float | tuple[float, ...] = _option(
        0.0,
        "--control-start",
        "0 to 1, or one per ControlNet",
        "part of the steps after which ControlNets begin to act",
        one_or_several_parts,
    )
    control_guidance_end: float | tuple[float, ...] = _option(
        1.0,
        "--control-end",
        "0 to 1, or one per ControlNet",
        "part of the steps after which they cease to",
        one_or_several_parts,
    )
    prompt_weights: bool = _option(
        False,
        "--prompt-weights",
        "True or False",
        "read (text:1.3), (text) and [text] in prompts as weights",
        flag,
    )
    long_prompt: bool = _option(
        False,
        "--long-prompt",
        "True or False",
        "encode prompts beyond 77 tokens instead of cutting them off",
        flag,
    )
    clip_skip: int | None = _option(
        None,
        "--clip-skip",
        "0 to one less than the text encoder has layers; default: 0",
        "last layers of the text encoder to skip; the negative prompt uses them all",
        partial(whole, lowest=0, highest=MAX_SKIPPED_LAYERS),
    )
    fast: int = _option(
        0,
        "--fast",
        f"0 to {len(FAST_LEVELS) - 1}",
        "nearly the same picture in less time: 1, 2 and 3 run the whole UNet in only every second, "
        "fourth and fifth step, and 3 guides only the first 0.6 of the steps",
        _fast,
    )

    vae: str = _option(
        FULL,
        "--vae",
        " or ".join(DECODERS),
        "which decoder makes the pixels: the model's own, or the tiny one that was exported beside "
        "it, with less detail in a fraction of the time",
        _decoder,
    )
    loras: tuple[LoraUse, ...] | None = _option(
        None,
        "--lora",
        "in Python names of loaded LoRAs with their scales, as {'style': 0.8}; default: those that "
        "are active",
        "LoRAs to draw with, which change the networks while they run",
        lora_uses,
    )

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            value = getattr(self, name)
            if value is not None or DEFAULTS[name] is not None:
                object.__setattr__(self, name, option.validate(name, value))
        # Each says how many steps there are.
        if self.timesteps is not None:
            object.__setattr__(self, "num_inference_steps", len(self.timesteps))
        elif self.sigmas is not None:
            object.__setattr__(self, "num_inference_steps", len(self.sigmas) - 1)
        if self.strength is not None:
            strength = _as_float(self.strength, self.num_inference_steps)
            object.__setattr__(self, "strength", strength)
        negatives = len(self.negative_prompts)
        if negatives != len(self.prompts):
            raise RequestError(
                f"negative_prompt has {negatives} entries, but prompt has {len(self.prompts)}"
            )
        if self.seed is not None:
            validate_seeds(self.seed, self.images)
        require_ascending(self.control_guidance_start, self.control_guidance_end)
        if self.prompt_weights:
            for text in (*self.prompts, *self.negative_prompts):
                parse_weights(text)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts, at least one."""
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt

    @property
    def negative_prompts(self) -> tuple[str, ...]:
        """One for each prompt; without any, empty ones."""
        given = self.negative_prompt or ""
        negatives = (given,) if isinstance(given, str) else given
        return negatives * len(self.prompts) if len(negatives) == 1 else negatives

    @property
    def images(self) -> int:
        """Number of images of all prompts."""
        return len(self.prompts) * self.num_images_per_prompt

    def resolve(
        self,
        bundle: Bundle,
        engine: Capabilities,
        image_size: tuple[int, int] | None = None,
        masked: bool = False,
        control_size: tuple[int, int] | None = None,
    ) -> GenerationConfig:
        """Return what a bundle and an engine make of it: every default filled in.

        What stays None: the sampler that is the model's own, and a strength without an image.

        Parameters
        ----------
        bundle : Bundle
            The model.
        engine : Capabilities
            What the engine that it runs on can do.
        image_size : (int, int), optional
            Height and width in pixels of the image that it starts from.
        masked : bool
            Whether there is an inpainting mask.
        control_size : (int, int), optional
            The size of the picture that the first ControlNet is shown.

        Raises
        ------
        RequestError
            The bundle or the engine cannot do it; names the option.
        """
        if self.strength is not None and image_size is None:
            raise RequestError("strength needs an image to start from")
        if self.timesteps is not None and self.sigmas is not None:
            raise RequestError("timesteps and sigmas exclude each other; give one of them")
        if self.fast and not engine.feature_reuse:
            raise RequestError(f"fast is not for the engine {engine.name}; use onnxruntime")
        if self.loras and not engine.loras:
            raise RequestError(f"loras is not for the engine {engine.name}; use onnxruntime")
        if self.vae not in bundle.decoders:
            raise RequestError(
                f"vae {self.vae} is not in {bundle.path}; export it with `bksdm export --tiny-vae "
                "FOLDER`"
            )
        if self.clip_skip and self.clip_skip >= bundle.text_layers:
            raise RequestError(
                f"clip_skip must be below the text encoder's {bundle.text_layers} layers, "
                f"not {self.clip_skip}"
            )
        height, width = image_size or control_size or bundle.default_size
        beside = "masked image" if masked else "noise" if image_size is None else "image"
        strength = self.strength
        if strength is None and image_size is not None:
            strength = STRENGTH_WITH_MASK if masked else STRENGTH
        return replace(
            self,
            negative_prompt=self.negative_prompt or "",
            height=side("height", self.height or height, bundle.vae_scale),
            width=side("width", self.width or width, bundle.vae_scale),
            seed=secrets.randbits(32) if self.seed is None else self.seed,
            guidance_interval=self.guidance_interval or (0.0, FAST_LEVELS[self.fast].guided_until),
            strength=strength,
            clip_skip=self.clip_skip or 0,
            **resolved_control(self, bundle, engine, None if control_size is None else beside),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the options by name, as JSON has them."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> GenerationConfig:
        """Return what :meth:`to_dict` described; what is left out has its default.

        Raises
        ------
        RequestError, SamplerError
            An option is unknown or has a wrong value; names it.
        """
        if unknown := [name for name in options if name not in OPTIONS]:
            raise RequestError(f"unknown option {shown(unknown[0])}; known: {', '.join(OPTIONS)}")
        return cls(**options)


def _given(name: str, value: Any) -> Any:
    return value


OPTIONS: dict[str, Option] = {f.name: f.metadata["option"] for f in fields(GenerationConfig)}
"""By name, in the order of Python's arguments."""
DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(GenerationConfig)}
INPUTS: dict[str, Option] = {
    "image": Option(
        "--image", "a picture, or several", "picture to start from (image to image)", _given
    ),
    "mask": Option(
        "--mask",
        "a picture, or one per image",
        "inpainting mask for the image: white is redrawn, black is kept",
        _given,
    ),
    "control_image": Option(
        "--control-image",
        "a picture, or one per ControlNet",
        "picture that a ControlNet is shown: edges, depth … as it was trained with",
        _given,
    ),
    "generator": Option(
        "",
        "torch.Generator or bksdm.Generator, on the CPU, or one per image",
        "noise that goes on from call to call, instead of a seed",
        _given,
    ),
    "prompt_embeds": Option(
        "", "floats [prompts, tokens, width]", "embeddings in place of the prompt", _given
    ),
    "negative_prompt_embeds": Option(
        "", "floats, of the same shape", "embeddings in place of the negative prompt", _given
    ),
    "latents": Option(
        "",
        "float32 [images, channels, height / 8, width / 8]",
        "unit noise to start from, instead of drawing it by seed",
        _given,
    ),
}
"""Inputs that are neither text nor numbers, and are not recorded; None by default."""
