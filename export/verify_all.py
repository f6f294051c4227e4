"""Compare pictures of every sampler from text, image and mask with those of diffusers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bksdm.engines.errors import SamplerError
from bksdm.engines.registry import DEFAULT, version_of
from bksdm.export.quiet import quiet
from bksdm.export.reference import draw, open_pipeline, scheduler_of
from bksdm.runtime.generation_config import INPUTS, GenerationConfig
from bksdm.runtime.pipeline import TextToImage
from bksdm.runtime.samplers import NAMED

PROMPT = "a red apple"
SEED = 0
STRENGTH = 0.6
STEPS = (2, 5, 20)
LARGEST = 1
TASKS = ("text to image", "image to image", "inpainting")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One picture of ours beside diffusers'.

    Attributes
    ----------
    model, sampler, task : str
        What was drawn, and how.
    steps : int
        Inference steps.
    largest : int or None
        Largest difference of any pixel and channel, in levels of 255; None where one of the two
        has no picture.
    reason : str
        Why not.
    same_noise : int or None
        The same with torch's values in place of our noise, measured where ``largest`` is above 1:
        ours are within 1e-6 of torch's, whose vectorised logarithm and cosine are not rounded
        exactly, and a few samplers that add noise enlarge that.
    """

    model: str
    sampler: str
    task: str
    steps: int
    largest: int | None
    reason: str = ""
    same_noise: int | None = None


def measure(
    models: dict[str, tuple[Path, Path]],
    samplers: Sequence[str] = tuple(NAMED),
    steps: Sequence[int] = STEPS,
) -> Iterator[Cell]:
    """Draw every picture twice, ours and diffusers', from the same seed.

    Parameters
    ----------
    models : dict
        Checkpoint and bundle by name.
    samplers : sequence of str
        Names of :data:`bksdm.runtime.samplers.NAMED`.
    steps : sequence of int
        Inference steps.
    """
    for name, (checkpoint, bundle) in models.items():
        ours = TextToImage.load(bundle)
        pipelines = _pipelines(checkpoint)
        own = {task: dict(pipeline.scheduler.config) for task, pipeline in pipelines.items()}
        side = ours.bundle.sample_size * ours.bundle.vae_scale
        for sampler, task, count in product(samplers, TASKS, steps):
            mine, theirs = _arguments(task, side)
            pipeline = pipelines[task]
            try:
                arguments = {**mine, "num_inference_steps": count, "sampler": sampler, "seed": SEED}
                found = ours(PROMPT, **arguments).pixels
                pipeline.scheduler = scheduler_of(own[task], sampler)
                expected = draw(pipeline, PROMPT, SEED, count, **theirs)
            except (SamplerError, ValueError, IndexError) as error:
                yield Cell(
                    model=name,
                    sampler=sampler,
                    task=task,
                    steps=count,
                    largest=None,
                    reason=str(error),
                )
                continue
            largest, same_noise = _apart(found, expected), None
            if largest > LARGEST:
                same_noise = _apart(_drawn_with_torchs_noise(ours, arguments), expected)
            yield Cell(
                model=name,
                sampler=sampler,
                task=task,
                steps=count,
                largest=largest,
                same_noise=same_noise,
            )


def total(models: int) -> int:
    """Return the number of cells for a number of models."""
    return models * len(NAMED) * len(TASKS) * len(STEPS)


def render(cells: Sequence[Cell]) -> str:
    """Return a page of Markdown: a table per model, a row per sampler."""
    lines = [
        "# Parity with diffusers",
        "",
        "Written by `bksdm verify --all`; no number here was typed. Each is the largest difference",
        "of any pixel and channel, in levels of 255, between our picture and that of diffusers",
        f"{version('diffusers')} (torch {torch.__version__}, onnxruntime {version_of(DEFAULT)}, "
        "float32, on the CPU),",
        f"from the same checkpoint and seed, with guidance; strength {STRENGTH} where a picture is "
        "started from. In parentheses the same with torch's values in place of our noise, which "
        "is within 1e-6",
        "of them; measured where the difference is above 1.",
        "`nano` is Stable Diffusion's architecture in small with random weights, `emoji` the "
        "built-in model.",
    ]
    steps = sorted({cell.steps for cell in cells})
    for model in dict.fromkeys(cell.model for cell in cells):
        heads = [f"{task}, {n}" for task in TASKS for n in steps]
        lines += ["", f"## {model}", "", "| sampler, steps | " + " | ".join(heads) + " |"]
        lines.append("| --- |" + " ---: |" * len(heads))
        of_model = [cell for cell in cells if cell.model == model]
        for sampler in dict.fromkeys(cell.sampler for cell in of_model):
            row = {(c.task, c.steps): c for c in of_model if c.sampler == sampler}
            shown = [_shown(row[task, n]) for task in TASKS for n in steps]
            lines.append(f"| {sampler} | " + " | ".join(shown) + " |")
    reasons = sorted({f"{c.sampler}, {c.steps} steps: {c.reason}" for c in cells if c.reason})
    lines += ["", *(f"- {reason}" for reason in reasons)] if reasons else []
    return "\n".join(lines) + "\n"


def passed(cells: Sequence[Cell]) -> bool:
    """Return whether every picture is within ``LARGEST`` levels, from the same noise."""
    found = (c.largest if c.same_noise is None else c.same_noise for c in cells)
    return all(largest is None or largest <= LARGEST for largest in found)


def _drawn_with_torchs_noise(ours: TextToImage, arguments: dict[str, Any]) -> NDArray[np.uint8]:
    inputs = {name: arguments[name] for name in INPUTS if name in arguments}
    options = {name: value for name, value in arguments.items() if name not in inputs}
    request = ours.request(GenerationConfig(PROMPT, **options), **inputs)
    return ours.generate(request, noise=_TorchNoise).pixels


class _TorchNoise:
    """torch's own noise of one seed, as :class:`~bksdm.runtime.noise.RandomSource`."""

    def __init__(self, seed: int | Sequence[int], batch: int) -> None:
        assert isinstance(seed, int)
        self._generator, self._batch = torch.Generator("cpu").manual_seed(seed), batch

    def draw(self, shape: Sequence[int], count: int | None = None) -> NDArray[np.float32]:
        rows = self._batch if count is None else count
        drawn: NDArray[np.float32] = torch.randn((rows, *shape), generator=self._generator).numpy()
        return drawn


def _apart(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> int:
    return int(np.abs(found.astype(int) - expected.astype(int)).max())


def _shown(cell: Cell) -> str:
    if cell.largest is None:
        return "–"
    return str(cell.largest) + ("" if cell.same_noise is None else f" ({cell.same_noise})")


def _pipelines(checkpoint: Path) -> dict[str, Any]:
    base = open_pipeline(checkpoint)
    with quiet():
        from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline

        rest = (StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline)
        # Each loads the scheduler, whose configuration its constructor mends in its own way.
        networks = {name: getattr(base, name) for name in ("vae", "text_encoder", "unet")}
        other = [kind.from_pretrained(checkpoint, safety_checker=None, **networks) for kind in rest]
    for pipeline in other:
        pipeline.set_progress_bar_config(disable=True)
    return dict(zip(TASKS, (base, *other), strict=True))


def _arguments(task: str, side: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of both pipelines besides prompt, seed and sampler."""
    if task == "text to image":
        return {}, {}
    colours = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    image = Image.fromarray(colours).resize((side, side), Image.Resampling.BICUBIC)
    both = {"image": image, "strength": STRENGTH}
    if task == "image to image":
        return both, both
    mask = Image.new("L", (side, side))
    mask.paste(255, (side // 4, side // 4, side, side // 2))
    return {**both, "mask": mask}, {**both, "mask_image": mask, "height": side, "width": side}
