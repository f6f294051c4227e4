"""Write the table of ``docs/controlnet.md``: pictures with ControlNets beside diffusers'.

``python -m tests.parity.controlnet_table`` exports a small model with two of them, which takes a
minute or two, and draws.
"""

from __future__ import annotations

import re
import tempfile
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
)
from PIL import Image

from bksdm import TextToImage
from bksdm.export.reference import scheduler_of

PAGE = Path(__file__).parents[2] / "docs" / "controlnet.md"
PLACE = re.compile(
    r"(<!-- written by tests/parity/controlnet_table.py -->\n).*?(<!-- end -->)", re.DOTALL
)
SEED = 3
TASKS = {
    "text": StableDiffusionControlNetPipeline,
    "image": StableDiffusionControlNetImg2ImgPipeline,
    "mask": StableDiffusionControlNetInpaintPipeline,
}
SAMPLERS = ("pndm", "dpm++2m", "euler-a")
ROWS = {
    "one": (("canny",), {}),
    "one, guess mode": (("canny",), {"guess_mode": True}),
    "one, from 0.2 to 0.7 of the steps": (
        ("canny",),
        {"control_guidance_start": 0.2, "control_guidance_end": 0.7},
    ),
    "two": (("canny", "depth"), {}),
    "two, guess mode": (("canny", "depth"), {"guess_mode": True}),
    "two, each with its own scale and interval": (
        ("canny", "depth"),
        {
            "controlnet_conditioning_scale": [0.7, 1.3],
            "control_guidance_start": [0.0, 0.2],
            "control_guidance_end": [0.6, 1.0],
        },
    ),
}
"""Names of ControlNets and options, by what the table calls them."""


def smooth(seed, size=(64, 64), mode="RGB"):
    small = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode)


def hole():
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 20, 64, 44))
    return mask


class Pipelines:
    """diffusers' pipelines of a checkpoint with some of its ControlNets."""

    def __init__(self, checkpoint, folders):
        self._nets = {n: ControlNetModel.from_pretrained(folder) for n, folder in folders.items()}
        self._base = StableDiffusionControlNetPipeline.from_pretrained(
            checkpoint, controlnet=next(iter(self._nets.values())), safety_checker=None
        )

    def __call__(self, names, task):
        chosen = [self._nets[name] for name in names]
        parts = {**self._base.components, "controlnet": chosen if len(chosen) > 1 else chosen[0]}
        pipeline = TASKS[task](**parts, requires_safety_checker=False)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


class Drawn(NamedTuple):
    """Unrounded pixels in levels of 255: diffusers', ours, and ours without control."""

    expected: np.ndarray
    found: np.ndarray
    plain: np.ndarray


def draw(pipelines, ours, names, task="text", sampler="pndm", images=None, **options):
    """Draw a picture with both."""
    images = [smooth(10 + k) for k in range(len(names))] if images is None else images
    control = images if len(names) > 1 else images[0]
    options = {"prompt": "a cat", "num_inference_steps": 5, **options}
    start = {} if task == "text" else {"image": smooth(1)}
    if task == "mask":
        start["mask_image"] = hole()
    theirs = {"image": control} if task == "text" else {**start, "control_image": control}
    if task == "mask":
        theirs |= {"height": 64, "width": 64}
    pipeline = pipelines(names, task)
    pipeline.scheduler = scheduler_of(dict(ours.bundle.scheduler), sampler)
    generator = torch.Generator().manual_seed(SEED)
    expected = pipeline(generator=generator, output_type="np", **theirs, **options).images
    mine = {"seed": SEED, "sampler": sampler, "output_type": "np", **start, **options}
    found = ours(control_image=control, controlnet=list(names), **mine).array
    alone = {k: v for k, v in mine.items() if not k.startswith("control") and k != "guess_mode"}
    size = {"height": expected.shape[1], "width": expected.shape[2]}
    plain = ours(**{**size, **alone}).array
    return Drawn(expected * 255, found * 255, plain * 255)


def table(pipelines, ours):
    """Return the lines of the table."""
    heads = [f"{task}, {sampler}" for task, sampler in product(TASKS, SAMPLERS)]
    lines = [
        f"| ControlNets | {' | '.join(heads)} | without control |",
        "|---|" + "---:|" * (len(heads) + 1),
    ]
    for name, (nets, options) in ROWS.items():
        cells, effect = [], []
        for task, sampler in product(TASKS, SAMPLERS):
            drawn = draw(pipelines, ours, nets, task, sampler, **options)
            cells.append(f"{np.abs(drawn.expected - drawn.found).max():.4f}")
            effect.append(np.abs(drawn.expected - drawn.plain).max())
        lines.append(f"| {name} | {' | '.join(cells)} | {min(effect):.0f} to {max(effect):.0f} |")
    return lines


def figures(page):
    """Return the differences that a page states."""
    rows = [line.split("|")[2:-2] for line in PLACE.search(page)[0].split("\n")[3:-1]]
    return [[float(cell) for cell in row] for row in rows]


def main():
    from bksdm.export.dummy import create_dummy
    from bksdm.export.exporter import export
    from bksdm.export.prepared import Parts

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        create_dummy("nano-base", folder / "one", controlnet=True)
        create_dummy("nano-base", folder / "two", 1, controlnet=True)
        nets = {"canny": folder / "one" / "controlnet", "depth": folder / "two" / "controlnet"}
        parts = Parts(controlnets={name: str(net) for name, net in nets.items()})
        export(folder / "one", folder / "bundle", parts=parts)
        pipelines = Pipelines(folder / "one", nets)
        lines = table(pipelines, TextToImage.load(folder / "bundle"))
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(PLACE.sub(lambda found: found[1] + "\n".join(lines) + "\n" + found[2], text))


if __name__ == "__main__":
    main()
