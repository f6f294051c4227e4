"""Pictures by every kind of sampler against diffusers' pipeline with the same seed."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from bksdm.runtime.pipeline import TextToImage
from bksdm.runtime.samplers import NAMED

from .pictures import assert_same_pictures, pictures

# Every class, and of those that differ most by their fields more than one.
NAMES = [
    "ddim",
    "ddpm",
    "euler-karras",
    "euler-a",
    "heun",
    "lms",
    "kdpm2-a",
    "dpm++2m-karras",
    "dpm++2m-sde",
    "dpm++2s",
    "unipc",
    "deis",
    "lcm",
    "tcd",
]


@pytest.fixture(scope="module")
def reference(nano_checkpoint):
    pipeline = StableDiffusionPipeline.from_pretrained(nano_checkpoint, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def ours(nano_bundle):
    return TextToImage.load(nano_bundle)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [3, [3, 8]], ids=["one seed", "two seeds"])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_picture_for_the_same_seed(reference, ours, name, seed):
    class_name, fields = NAMED[name]
    config = dict(ours.bundle.scheduler)
    reference.scheduler = getattr(diffusers, class_name).from_config({**config, **fields})
    arguments = {"num_inference_steps": 6, "num_images_per_prompt": 2}
    expected = pictures(reference, "a red apple", seed=seed, **arguments)
    found = ours("a red apple", seed=seed, sampler=name, **arguments)
    assert_same_pictures(found.pixels, expected)


def test_own_latents_and_a_seed_for_what_is_added(reference, ours):
    side = ours.bundle.sample_size
    latents = np.random.default_rng(0).standard_normal((1, 4, side, side)).astype(np.float32)
    config = dict(ours.bundle.scheduler)
    reference.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(config)
    expected = pictures(
        reference, "x", seed=5, num_inference_steps=3, latents=torch.from_numpy(latents)
    )
    found = ours("x", num_inference_steps=3, latents=latents, seed=5, sampler="euler-a")
    assert_same_pictures(found.pixels, expected)
    assert found.seed == 5


@pytest.mark.parametrize(
    ("name", "class_name"), [("ddim", "DDIMScheduler"), ("tcd", "TCDScheduler")]
)
def test_eta_is_that_of_the_pipeline(reference, ours, name, class_name):
    config = dict(ours.bundle.scheduler)
    reference.scheduler = getattr(diffusers, class_name).from_config(config)
    arguments = {"num_inference_steps": 4, "eta": 0.6}
    expected = pictures(reference, "a dog", seed=1, **arguments)
    found = ours("a dog", seed=1, sampler=name, **arguments)
    assert_same_pictures(found.pixels, expected)
    assert (found.pixels != ours("a dog", num_inference_steps=4, seed=1, sampler=name).pixels).any()
