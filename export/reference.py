"""Run diffusers' pipelines, to compare our pictures with theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bksdm.export.library_errors import library_errors
from bksdm.export.pretrained import load
from bksdm.export.quiet import quiet
from bksdm.runtime.samplers import sampler_name
from bksdm.runtime.samplers.names import meaning


def open_pipeline(checkpoint: Path, variant: str | None = None) -> Any:
    """Return diffusers' ``StableDiffusionPipeline`` of a checkpoint, in float32.

    Parameters
    ----------
    checkpoint : Path
        A folder that `bksdm.export.source.resolve` accepted.
    variant : str, optional
        Of the weight files.

    Raises
    ------
    ExportError
        diffusers cannot open it, or weights are missing.
    """
    with quiet(), library_errors(f"{checkpoint}: diffusers cannot open it"):
        from diffusers import StableDiffusionPipeline

        # By themselves they would fill up what is missing with random numbers.
        networks = {
            name: load(name, checkpoint, variant) for name in ("text_encoder", "unet", "vae")
        }
        pipeline = StableDiffusionPipeline.from_pretrained(
            checkpoint, safety_checker=None, **networks
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def open_controlled(pipeline: Any, checkpoint: Path, component: str) -> Any:
    """Return diffusers' ``StableDiffusionControlNetPipeline`` of a pipeline's networks.

    Parameters
    ----------
    pipeline
        As `open_pipeline` returns it.
    checkpoint : Path
        Its folder.
    component : str
        The ControlNet's folder in it.
    """
    with quiet(), library_errors(f"{checkpoint / component}: diffusers cannot open it"):
        from diffusers import StableDiffusionControlNetPipeline

        parts = {**pipeline.components, "controlnet": load(component, checkpoint)}
        controlled = StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    controlled.set_progress_bar_config(disable=True)
    return controlled


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
        Of the checkpoint's own scheduler, as a pipeline has loaded it.
    sampler : str
        Name that :func:`bksdm.runtime.samplers.sampler_name` accepts.

    Raises
    ------
    SamplerError
        There is no sampler of that name.
    """
    import diffusers

    class_name, fields = meaning(sampler_name(sampler))
    with quiet():
        return getattr(diffusers, class_name).from_config(config, **fields)
