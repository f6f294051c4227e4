"""Whole pictures against diffusers' StableDiffusionPipeline with the same seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline

from bksdm.runtime.pipeline import TextToImage
from bksdm.runtime.samplers import NAMED

from .pictures import assert_same_pictures, pictures


@pytest.fixture(scope="module", params=["nano", pytest.param("emoji", marks=pytest.mark.slow)])
def folders(request):
    """Checkpoint and bundle: one with random weights, one that was trained."""
    if request.param == "emoji":
        checkpoint = Path(__file__).parents[2] / "models" / "emoji"
        return checkpoint, checkpoint
    return request.getfixturevalue("nano_checkpoint"), request.getfixturevalue("nano_bundle")


@pytest.fixture(scope="module")
def reference(folders):
    pipeline = StableDiffusionPipeline.from_pretrained(folders[0], torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def ours(folders):
    return TextToImage.load(folders[1])


@pytest.mark.parametrize(
    ("steps", "count"), [(1, 1), (4, 3), (25, 1), pytest.param(50, 1, marks=pytest.mark.slow)]
)
def test_pndm_equals_diffusers(reference, ours, steps, count):
    arguments = {"num_inference_steps": steps, "num_images_per_prompt": count}
    expected = pictures(reference, "a red apple", seed=7, **arguments)
    assert_same_pictures(ours("a red apple", seed=7, **arguments).pixels, expected)


@pytest.mark.parametrize("guidance", [0, 1, 7.5])
@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_guidance_and_size_equal_diffusers(reference, ours, guidance, size):
    arguments = {
        "num_inference_steps": 4,
        "guidance_scale": guidance,
        "height": size[0],
        "width": size[1],
        "negative_prompt": "blurry, dark",
    }
    expected = pictures(reference, "a house", seed=0, **arguments)
    assert_same_pictures(ours("a house", seed=0, **arguments).pixels, expected)


def test_height_or_width_alone(reference, ours):
    """Diffusers ignores it; ours takes it, beside the model's own size along the other side."""
    usual = {"num_inference_steps": 2, "seed": 0}
    height, width = ours.bundle.default_size
    for alone, both in (({"height": 72}, (72, width)), ({"width": 72}, (height, 72))):
        ignored = pictures(reference, "a house", **usual, **alone)
        assert ignored.shape[1:3] == (height, width)
        expected = pictures(reference, "a house", **usual, height=both[0], width=both[1])
        assert_same_pictures(ours("a house", **usual, **alone).pixels, expected)


@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_rescaled_guidance_equals_diffusers(reference, ours, rescale):
    arguments = {"num_inference_steps": 4, "guidance_rescale": rescale, "num_images_per_prompt": 2}
    expected = pictures(reference, "a house", seed=2, **arguments)
    assert_same_pictures(ours("a house", seed=2, **arguments).pixels, expected)


def test_guidance_for_a_time_equals_a_pipeline_that_stops_it(reference, ours):
    """Diffusers has no such argument: its callback drops the unconditional half after two steps."""

    def stop(pipeline, index, timestep, tensors):
        if index == 1:
            pipeline._guidance_scale = 1.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
        return tensors

    arguments = {"num_inference_steps": 4}
    reference.scheduler = DDIMScheduler.from_config(reference.scheduler.config)
    expected = pictures(
        reference,
        "a house",
        seed=2,
        callback_on_step_end=stop,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        **arguments,
    )
    found = ours("a house", seed=2, sampler="ddim", guidance_interval=(0, 0.5), **arguments)
    assert_same_pictures(found.pixels, expected)
    whole = ours("a house", seed=2, sampler="ddim", **arguments)
    assert (found.pixels != whole.pixels).any()
    reference.scheduler = PNDMScheduler.from_config(reference.scheduler.config)


def test_two_prompts_at_once_equal_diffusers(reference, ours):
    prompts, negatives = ["a dog", "a cat on a mat"], ["a cat", "a dog"]
    arguments = {"num_inference_steps": 4, "negative_prompt": negatives}
    expected = pictures(reference, prompts, seed=3, **arguments)
    assert_same_pictures(ours(prompts, seed=3, **arguments).pixels, expected)


def test_a_seed_for_each_image_equals_a_list_of_generators(reference, ours):
    arguments = {"num_inference_steps": 2, "num_images_per_prompt": 3}
    expected = pictures(reference, "a dog", seed=[5, 0, 9], **arguments)
    assert_same_pictures(ours("a dog", seed=[5, 0, 9], **arguments).pixels, expected)


def test_own_latents_equal_diffusers(reference, ours):
    side = ours.bundle.sample_size
    latents = np.random.default_rng(0).standard_normal((1, 4, side, side)).astype(np.float32)
    expected = pictures(reference, "x", num_inference_steps=2, latents=torch.from_numpy(latents))
    assert_same_pictures(ours("x", num_inference_steps=2, latents=latents).pixels, expected)


def test_negative_prompt_and_seed_change_the_picture(ours):
    plain = ours("a dog", num_inference_steps=2, seed=0).pixels
    assert (plain != ours("a dog", num_inference_steps=2, seed=1).pixels).any()
    other = ours("a dog", num_inference_steps=2, seed=0, negative_prompt="a cat").pixels
    assert (plain != other).any()


def test_float16_bundle_is_near_float32(short_checkpoint, nano_bundle_fp16):
    single = StableDiffusionPipeline.from_pretrained(short_checkpoint, torch_dtype=torch.float32)
    single.set_progress_bar_config(disable=True)
    half = TextToImage.load(nano_bundle_fp16)
    arguments = {"num_inference_steps": 10, "seed": 1}
    a = pictures(single, "a dog", **arguments).astype(float)
    b = half("a dog", **arguments).pixels.astype(float)
    psnr = 10 * np.log10(255**2 / np.mean((a - b) ** 2))
    print(f"float16 against float32: {psnr:.1f} dB")
    # Half precision carries 11 bits: ten steps of rounding errors of 2^-11 stay above 40 dB.
    assert psnr > 40


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_as_many_steps_as_training_steps(nano_checkpoint, nano_bundle, name):
    """A thousand evaluations, of the least picture that there is."""
    class_name, fields = NAMED[name]
    reference = StableDiffusionPipeline.from_pretrained(nano_checkpoint, torch_dtype=torch.float32)
    reference.set_progress_bar_config(disable=True)
    config = {**reference.scheduler.config, "steps_offset": 0}
    reference.scheduler = getattr(diffusers, class_name).from_config({**config, **fields})
    ours = TextToImage.load(nano_bundle)
    ours.bundle = replace(ours.bundle, scheduler={**ours.bundle.scheduler, "steps_offset": 0})
    size = {"height": 8, "width": 8, "num_inference_steps": 1000, "guidance_scale": 1.0}
    found = ours("a red apple", seed=1, sampler=name, **size)
    assert found.steps == 1000
    assert_same_pictures(found.pixels, pictures(reference, "a red apple", seed=1, **size))
