"""diffusers' pipelines, whose pictures ours are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bksdm.engines.errors import ExportError
from bksdm.export.quiet import quiet
from bksdm.runtime.samplers import sampler_name
from bksdm.runtime.samplers.names import meaning


def open_pipeline(checkpoint: Path) -> Any:
    """Return diffusers' ``StableDiffusionPipeline`` of a checkpoint, in float32.

    Raises
    ------
    ExportError
        diffusers cannot open it.
    """
    with quiet():
        from diffusers import StableDiffusionPipeline

        try:
            pipeline = StableDiffusionPipeline.from_pretrained(
                checkpoint, safety_checker=None, torch_dtype=torch.float32
            )
        except (OSError, ValueError) as error:
            raise ExportError(f"{checkpoint}: diffusers cannot open it ({error})") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, prompt: str, seed: int, steps: int, **arguments: Any) -> NDArray[np.uint8]:
    """Return a pipeline's pictures, uint8 [images, height, width, 3]."""
    with quiet():
        generator = torch.Generator("cpu").manual_seed(seed)
        images = pipeline(
            prompt, num_inference_steps=steps, generator=generator, output_type="np", **arguments
        ).images
    return np.asarray((images * 255).round(), np.uint8)


def scheduler_of(config: dict[str, Any], sampler: str) -> Any:
    """Return diffusers' scheduler for one of our samplers.

    Parameters
    ----------
    config : dict
        Of the checkpoint's own scheduler.
    sampler : str
        What :func:`bksdm.runtime.samplers.sampler_name` knows.

    Raises
    ------
    SamplerError
        There is no sampler of that name.
    """
    import diffusers

    class_name, fields = meaning(sampler_name(sampler))
    with quiet():
        return getattr(diffusers, class_name).from_config(config, **fields)
