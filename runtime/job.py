"""A denoising job: everything that a picture needs, ready for any way of running the networks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bksdm.runtime.bundle import FULL
from bksdm.runtime.control import Control
from bksdm.runtime.guidance import Guidance
from bksdm.runtime.inpainting import Inpainting, Latents
from bksdm.runtime.lora.factors import PLAIN, Adaptation
from bksdm.runtime.prompt_encoder import PLAIN_PROMPT, PromptOptions
from bksdm.runtime.samplers import StepTable


@dataclass(frozen=True, kw_only=True)
class DenoisingJob:
    """Pictures to make, in one batch.

    Attributes
    ----------
    prompts, negative_prompts : tuple of str
        As many of each.
    guidance : Guidance or None
        None runs the UNet without its unconditional half.
    guidance_embedding : ndarray, float32, shape [width], optional
        What a UNet into which guidance was distilled takes of its scale.
    table : StepTable
        The compiled sampler, from the first step that is run.
    latents : ndarray, float32, shape [images, channels, height / 8, width / 8]
        x_T, at the noise level of the first evaluation. Prompt-major: all images of the first
        prompt come first.
    noises : ndarray, float32, shape [table.draws, *latents.shape]
        Unit noise that a stochastic sampler adds.
    inpainting : Inpainting, optional
        The pictures of which only a part is made anew.
    prompt_options : PromptOptions
        How prompts are read.
    cache_interval : int
        The whole UNet runs in every n-th evaluation; its deep features serve those between.
    vae : str
        Which decoder makes the pixels, by its key in :data:`bksdm.runtime.bundle.DECODERS`.
    prompt_embeds, negative_prompt_embeds : ndarray, float32, shape [prompts, tokens, width]
        What stands in for the text encoder's output; None encodes the prompts.
    controls : tuple of Control
        What each ControlNet does.
    guess_mode : bool
        Whether ControlNets act in the conditional half alone, and less on details.
    loras : Adaptation
        What LoRAs change of the networks.
    """

    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    guidance: Guidance | None
    table: StepTable
    latents: Latents
    noises: Latents
    guidance_embedding: NDArray[np.float32] | None = None
    inpainting: Inpainting | None = None
    prompt_options: PromptOptions = PLAIN_PROMPT
    cache_interval: int = 1
    vae: str = FULL
    prompt_embeds: NDArray[np.float32] | None = None
    negative_prompt_embeds: NDArray[np.float32] | None = None
    controls: tuple[Control, ...] = ()
    guess_mode: bool = False
    loras: Adaptation = PLAIN

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.latents)

    @property
    def images_per_prompt(self) -> int:
        """Images of each prompt."""
        return len(self.latents) // len(self.prompts)

    @property
    def plain_text(self) -> bool:
        """Whether the prompts' tokens say everything about the embeddings."""
        given = self.prompt_embeds is not None or self.negative_prompt_embeds is not None
        return self.prompt_options == PLAIN_PROMPT and not given

    def controls_at(self, index: int) -> tuple[int, ...]:
        """Return which of the controls act in an evaluation, by their place."""
        total = len(self.table)
        return tuple(k for k, each in enumerate(self.controls) if each.at(index, total))

    @cached_property
    def guided(self) -> tuple[bool, ...]:
        """Whether each evaluation runs both halves of the UNet's batch."""
        total = len(self.table)
        if self.guidance is None:
            return (False,) * total
        return tuple(self.guidance.at(index, total) for index in range(total))
