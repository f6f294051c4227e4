"""A checked generation request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import RequestError
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.guidance import Guidance

MAX_SIDE = 8192
MAX_IMAGES = 1024


@dataclass(frozen=True)
class Request:
    """Arguments of one call, checked and with the defaults filled in; sizes are in pixels."""

    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    height: int
    width: int
    steps: int
    guidance_scale: float
    images_per_prompt: int

    @classmethod
    def check(
        cls,
        bundle: Bundle,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None,
        height: int | None,
        width: int | None,
        steps: int,
        guidance_scale: float,
        images_per_prompt: int,
    ) -> Request:
        """Check the arguments against a bundle.

        Raises
        ------
        RequestError
            Names the argument and what it must be.
        """
        prompts = _texts("prompt", prompt)
        negatives = _texts("negative_prompt", "" if negative_prompt is None else negative_prompt)
        if len(negatives) == 1:
            negatives *= len(prompts)
        if len(negatives) != len(prompts):
            raise RequestError(
                f"negative_prompt has {len(negatives)} entries, but prompt has {len(prompts)}"
            )
        default = bundle.sample_size * bundle.vae_scale
        if isinstance(guidance_scale, bool) or not isinstance(guidance_scale, (int, float)):
            raise RequestError(f"guidance_scale must be a number, not {guidance_scale!r}")
        if not math.isfinite(guidance_scale):
            raise RequestError(f"guidance_scale must be finite, not {guidance_scale}")
        images = _integer("num_images_per_prompt", images_per_prompt, 1, MAX_IMAGES)
        return cls(
            prompts,
            negatives,
            check_side("height", default if height is None else height, bundle.vae_scale),
            check_side("width", default if width is None else width, bundle.vae_scale),
            _integer("num_inference_steps", steps, 1, 2**31),
            float(guidance_scale),
            images,
        )

    def guidance(self, rescale: Any, interval: Any) -> Guidance | None:
        """Return how the UNet's halves are combined; None where it has only one.

        Raises
        ------
        RequestError
            ``rescale`` is no number from 0 to 1, or ``interval`` no pair of such, ascending.
        """
        if not _is_part(rescale):
            raise RequestError(f"guidance_rescale must be a number from 0 to 1, not {rescale!r}")
        pair = isinstance(interval, (tuple, list)) and len(interval) == 2
        if not pair or not all(_is_part(p) for p in interval) or not interval[0] < interval[1]:
            raise RequestError(
                f"guidance_interval must be two numbers from 0 to 1, ascending, not {interval!r}"
            )
        if self.guidance_scale <= 1:
            return None
        return Guidance(self.guidance_scale, float(rescale), *(float(p) for p in interval))

    def check_latents(self, latents: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return own latents as float32.

        Raises
        ------
        RequestError
            They are no finite float array of ``shape``.
        """
        if not isinstance(latents, np.ndarray) or not np.issubdtype(latents.dtype, np.floating):
            raise RequestError("latents must be a numpy array of floats")
        if latents.shape != shape:
            raise RequestError(f"latents must have shape {shape}, not {latents.shape}")
        if not np.isfinite(latents).all():
            raise RequestError("latents hold NaN or infinity")
        return latents.astype(np.float32)

    def first_step(self, strength: Any) -> int:
        """Return how many steps an image to start from leaves out: N − ⌊N · strength⌋.

        Raises
        ------
        RequestError
            ``strength`` is no number from 0 to 1, or is too little for a single step.
        """
        if not _is_part(strength):
            raise RequestError(f"strength must be a number from 0 to 1, not {strength!r}")
        left = min(int(self.steps * strength), self.steps)
        if left == 0 and strength > 0:
            raise RequestError(
                f"strength {strength} leaves none of {self.steps} steps; take more steps or a "
                "higher strength"
            )
        return self.steps - left


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(t, str) for t in texts):
        raise RequestError(f"{name} must be a text or a list of texts")
    if not texts:
        raise RequestError(f"{name} must not be an empty list")
    return tuple(texts)


def _is_part(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value <= 1


def _integer(name: str, value: Any, lowest: int, highest: int) -> int:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not lowest <= value <= highest:
        raise RequestError(f"{name} must be a whole number from {lowest} on, not {value!r}")
    return int(value)


def check_side(name: str, value: Any, multiple: int) -> int:
    """Return a height or width in pixels.

    Raises
    ------
    RequestError
        It is no whole number, too large, or no multiple of ``multiple``.
    """
    side = _integer(name, value, 1, MAX_SIDE)
    if side % multiple:
        raise RequestError(f"{name} must be a multiple of {multiple}, not {side}")
    return side
