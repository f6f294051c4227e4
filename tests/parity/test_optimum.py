"""Optimum opens our bundle, we open Optimum's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline

from bksdm.benchmarks.environments import Runner, environment
from bksdm.runtime.noise import initial_noise
from bksdm.runtime.pipeline import TextToImage

from .pictures import assert_same_pictures, pictures

WORK = Path(__file__).parents[2] / "build" / "peers"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (WORK / "environments" / "optimum").is_dir(),
        reason="no environment with Optimum; `bksdm bench peers` makes it in build/peers",
    ),
]


@pytest.fixture
def optimum():
    with Runner(environment("optimum", WORK), "optimum") as runner:
        yield runner


def test_optimum_draws_the_same_picture_from_our_bundle(nano_bundle, tmp_path, optimum):
    feeds, pixels = tmp_path / "feeds.npz", tmp_path / "pixels.npy"
    arguments = {"prompt": "a red apple", "height": 64, "width": 64, "steps": 4}
    latents = initial_noise((4, 8, 8), 7, 1)
    np.savez(feeds, latents=latents, **{name: np.array(v) for name, v in arguments.items()})
    optimum.ask("load", stage="picture", source="", folder=str(nano_bundle), threads=1)
    optimum.ask("run", feeds=str(feeds), output=str(pixels))
    ours = TextToImage.load(nano_bundle)(
        "a red apple", height=64, width=64, num_inference_steps=4, latents=latents
    )
    assert_same_pictures(ours.pixels, np.load(pixels).astype(np.uint8))


def test_we_draw_the_same_picture_from_optimums_bundle(nano_checkpoint, tmp_path, optimum):
    bundle = tmp_path / "theirs"
    optimum.ask("convert", source=str(nano_checkpoint), folder=str(bundle))
    reference = StableDiffusionPipeline.from_pretrained(nano_checkpoint)
    reference.set_progress_bar_config(disable=True)
    arguments = {
        "num_inference_steps": 4,
        "num_images_per_prompt": 2,
        "negative_prompt": ["dark"] * 2,
    }
    expected = pictures(reference, ["a dog", "a cat"], seed=3, **arguments)
    ours = TextToImage.load(bundle)(["a dog", "a cat"], seed=3, **arguments)
    assert_same_pictures(ours.pixels, expected)
