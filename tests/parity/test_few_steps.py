"""Models of one step with a tiny VAE, and those that guidance was distilled into."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import (
    LatentConsistencyModelPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    TCDScheduler,
)

from bksdm.cli import main
from bksdm.engines.errors import RequestError
from bksdm.runtime.guidance import guidance_embedding
from bksdm.runtime.pipeline import TextToImage

from .pictures import assert_same_pictures, pictures
from .test_init_image import hole, picture

NAMES = [pytest.param("nano-sdxs", marks=pytest.mark.slow), "nano-lcm"]
SIZE = {"height": 64, "width": 64}


def opened(kind, checkpoint, **components):
    pipeline = kind.from_pretrained(checkpoint, **components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module", params=NAMES)
def pair(request, dummy_of):
    """A checkpoint, and the model that its export makes."""
    checkpoint, bundle = dummy_of(request.param)
    return checkpoint, TextToImage.load(bundle)


@pytest.fixture(scope="module")
def lcm(dummy_of):
    checkpoint, bundle = dummy_of("nano-lcm")
    return checkpoint, TextToImage.load(bundle)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 7.5])
@pytest.mark.parametrize("steps", [1, 4])
def test_text_to_image(pair, steps, guidance):
    checkpoint, ours = pair
    arguments = {"seed": 3, "num_inference_steps": steps, "guidance_scale": guidance}
    reference = opened(StableDiffusionPipeline, checkpoint)
    expected = pictures(reference, "a red apple", **arguments)
    assert_same_pictures(ours("a red apple", **arguments).pixels, expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [3, [3, 8]], ids=["one seed", "two seeds"])
@pytest.mark.parametrize("masked", [False, True], ids=["image", "mask"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_from_a_picture(pair, seed, masked, strength):
    """A tiny VAE draws no latents, so that the noise after them is the seed's first."""
    checkpoint, ours = pair
    arguments = {
        "num_inference_steps": 4,
        "num_images_per_prompt": 2,
        "strength": strength,
        "image": picture(),
    }
    if masked:
        reference = opened(StableDiffusionInpaintPipeline, checkpoint)
        expected = pictures(reference, "a cat", seed, mask_image=hole(), **SIZE, **arguments)
        found = ours("a cat", seed=seed, mask=hole(), **arguments)
    else:
        reference = opened(StableDiffusionImg2ImgPipeline, checkpoint)
        expected = pictures(reference, "a cat", seed, **arguments)
        found = ours("a cat", seed=seed, **arguments)
    assert_same_pictures(found.pixels, expected)


def test_latent_consistency_pipeline(lcm):
    checkpoint, ours = lcm
    arguments = {"seed": 5, "num_inference_steps": 4, "guidance_scale": 8.5}
    reference = opened(LatentConsistencyModelPipeline, checkpoint)
    expected = pictures(reference, ["a cat", "a dog"], **arguments)
    found = ours(["a cat", "a dog"], negative_prompt="has no say", **arguments).pixels
    assert_same_pictures(found, expected)
    other = ours(["a cat", "a dog"], **{**arguments, "guidance_scale": 2.0}).pixels
    assert (other != found).any()


@pytest.mark.filterwarnings("ignore")
def test_tcd(lcm):
    checkpoint, ours = lcm
    reference = opened(StableDiffusionPipeline, checkpoint)
    reference.scheduler = TCDScheduler.from_config(reference.scheduler.config)
    arguments = {"seed": 5, "num_inference_steps": 4, "guidance_scale": 3.0, "eta": 0.3}
    expected = pictures(reference, "a cat", **arguments)
    assert_same_pictures(ours("a cat", sampler="tcd", **arguments).pixels, expected)


def test_a_callback_changes_no_embedded_guidance(lcm):
    """Diffusers makes the embedding before the first step, and there is no second half."""
    checkpoint, ours = lcm
    seen = []

    def change(pipeline, index, timestep, tensors):
        seen.append(pipeline.do_classifier_free_guidance)
        pipeline._guidance_scale = 1.5
        return {}

    arguments = {"seed": 5, "num_inference_steps": 3, "guidance_scale": 4.0}
    reference = opened(StableDiffusionPipeline, checkpoint)
    expected = pictures(reference, "a cat", callback_on_step_end=change, **arguments)
    found = ours("a cat", callback_on_step_end=change, **arguments).pixels
    assert_same_pictures(found, expected)
    assert not any(seen)


def test_a_negative_prompt_is_told_to_do_nothing(lcm, tmp_path, capsys):
    _, ours = lcm
    command = ["generate", "a cat", "--model", str(ours.bundle.path), "--steps", "1"]
    assert main([*command, "--negative", "a dog", "-o", str(tmp_path / "cat.png")]) == 0
    assert "--negative does nothing with this model" in capsys.readouterr().err


def test_a_unet_that_does_not_take_the_scale_is_refused(nano_bundle, tmp_path):
    bundle = shutil.copytree(nano_bundle, tmp_path / "bundle")
    path = bundle / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "time_cond_proj_dim": 32}))
    ours = TextToImage.load(bundle)
    with pytest.raises(RequestError, match="UNet takes no timestep_cond"):
        ours("a cat", num_inference_steps=1)


@pytest.mark.parametrize("width", [32, 33, 256])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1.75, 7.5, 12.3])
def test_embedding(scale, width):
    found = guidance_embedding(scale, width)
    expected = LatentConsistencyModelPipeline.get_guidance_scale_embedding(
        None, torch.tensor(scale - 1).repeat(1), embedding_dim=width
    )[0].numpy()
    assert found.dtype == np.float32
    # The last bit of an angle, which is up to 1000 (s − 1); torch's exponential may differ in it.
    rounding = 1000 * abs(scale - 1) * 2.0**-22
    np.testing.assert_allclose(found, expected, rtol=0, atol=rounding + 1e-6)
