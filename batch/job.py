"""A line of a file of prompts, as it will be carried out."""

from __future__ import annotations

from dataclasses import dataclass

from bksdm.runtime.generation_config import GenerationConfig


@dataclass(frozen=True)
class Job:
    """A line, checked.

    Attributes
    ----------
    line : int
        Its number.
    config : GenerationConfig
        With every default filled in.
    shape : (int, int, int, int)
        Of the latents: images, channels, height, width.
    steps : int
        Evaluations of the UNet.
    controlnets : tuple of str
        Names of those that are run.
    """

    line: int
    config: GenerationConfig
    shape: tuple[int, int, int, int]
    steps: int
    controlnets: tuple[str, ...] = ()
