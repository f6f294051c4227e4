"""Image to image and inpainting against diffusers' pipelines with the same seed."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

from bksdm.engines.errors import RequestError
from bksdm.runtime.generation_config import GenerationConfig
from bksdm.runtime.init_image import InitImage
from bksdm.runtime.pipeline import TextToImage
from bksdm.runtime.request import first_step
from bksdm.runtime.samplers import NAMED

from .pictures import assert_same_pictures, pictures
from .test_samplers_draw import NAMES


@pytest.fixture(scope="module", params=["nano", pytest.param("emoji", marks=pytest.mark.slow)])
def pair(request):
    """Diffusers' pipelines and ours, of a model with random weights and of a trained one."""
    if request.param == "emoji":
        checkpoint = bundle = Path(__file__).parents[2] / "models" / "emoji"
    else:
        checkpoint = request.getfixturevalue("nano_checkpoint")
        bundle = request.getfixturevalue("nano_bundle")
    base = StableDiffusionPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
    changing = StableDiffusionImg2ImgPipeline(**base.components, requires_safety_checker=False)
    painting = StableDiffusionInpaintPipeline(**base.components, requires_safety_checker=False)
    for pipeline in (changing, painting):
        pipeline.set_progress_bar_config(disable=True)
    return changing, painting, TextToImage.load(bundle)


def picture(width=64, height=64, seed=0, mode="RGB"):
    """Smooth colours, which Lanczos' filter and the VAE have something to do with."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def hole(width=64, height=64):
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 3 :] = 255
    return Image.fromarray(mask)


def use(pipeline, ours, name=None):
    config = dict(ours.bundle.scheduler)
    class_name, fields = NAMED[name or "pndm"]
    pipeline.scheduler = getattr(diffusers, class_name).from_config({**config, **fields})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [None, *NAMES])
@pytest.mark.parametrize("seed", [3, [3, 8]], ids=["one seed", "two seeds"])
def test_image_to_image_by_every_sampler(pair, name, seed):
    reference, _, ours = pair
    use(reference, ours, name)
    arguments = {
        "num_inference_steps": 6,
        "num_images_per_prompt": 2,
        "strength": 0.7,
        "image": picture(),
    }
    expected = pictures(reference, "a red apple", seed=seed, **arguments)
    found = ours("a red apple", seed=seed, sampler=name, **arguments)
    assert_same_pictures(found.pixels, expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [None, *NAMES])
@pytest.mark.parametrize("seed", [3, [3, 8]], ids=["one seed", "two seeds"])
def test_inpainting_by_every_sampler(pair, name, seed):
    _, reference, ours = pair
    use(reference, ours, name)
    arguments = {
        "num_inference_steps": 6,
        "num_images_per_prompt": 2,
        "strength": 0.7,
        "image": picture(),
    }
    size = {"height": 64, "width": 64}
    expected = pictures(reference, "a cat", seed=seed, mask_image=hole(), **size, **arguments)
    found = ours("a cat", seed=seed, sampler=name, mask=hole(), **arguments)
    assert_same_pictures(found.pixels, expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strength", [0.11, 0.5, 1.0])
@pytest.mark.parametrize("steps", [10, 25])
def test_every_strength(pair, strength, steps):
    changing, painting, ours = pair
    arguments = {"num_inference_steps": steps, "strength": strength, "image": picture()}
    use(changing, ours)
    expected = pictures(changing, "a dog", seed=1, **arguments)
    assert_same_pictures(ours("a dog", seed=1, **arguments).pixels, expected)
    use(painting, ours)
    size = {"height": 64, "width": 64}
    expected = pictures(painting, "a dog", seed=1, mask_image=hole(), **size, **arguments)
    assert_same_pictures(ours("a dog", seed=1, mask=hole(), **arguments).pixels, expected)


@pytest.mark.filterwarnings("ignore")
def test_several_images_and_sizes(pair):
    """Images of sizes that are no multiple of 8, two prompts, an image for each."""
    changing, painting, ours = pair
    images = [picture(70, 101, seed=1), picture(70, 101, seed=2)]
    arguments = {"num_inference_steps": 4, "strength": 0.5, "guidance_scale": 1.0}
    use(changing, ours)
    expected = pictures(changing, ["a cat", "a dog"], seed=[4, 5], image=images, **arguments)
    found = ours(["a cat", "a dog"], seed=[4, 5], image=images, **arguments).pixels
    assert found.shape == (2, 96, 64, 3)
    assert_same_pictures(found, expected)

    use(painting, ours)
    mask, size = hole(50, 50), {"height": 64, "width": 96}
    expected = pictures(
        painting, "a cat", seed=6, image=images[0], mask_image=mask, **size, **arguments
    )
    found = ours("a cat", seed=6, image=images[0], mask=mask, **size, **arguments).pixels
    assert_same_pictures(found, expected)


@pytest.mark.filterwarnings("ignore")
def test_height_or_width_alone(pair):
    """Diffusers' image to image takes neither, and its inpainting what lacks from the model."""
    changing, painting, ours = pair
    arguments = {"num_inference_steps": 4, "strength": 0.5, "seed": 6}
    assert not {"height", "width"} & set(inspect.signature(changing.__call__).parameters)
    use(changing, ours)
    image, mask = picture(70, 90), hole(70, 90)
    own = {"height": 88, "width": 64}
    for alone in ({}, {"height": 72}, {"width": 72}):
        size = {**own, **alone}
        resized = image.resize((size["width"], size["height"]), Image.Resampling.LANCZOS)
        expected = pictures(changing, "a cat", image=resized, **arguments)
        assert_same_pictures(ours("a cat", image=image, **alone, **arguments).pixels, expected)
    use(painting, ours)
    usual = ours.bundle.default_size[1]
    painted = {"image": image, **arguments}
    other = pictures(painting, "a cat", mask_image=mask, height=72, **painted)
    assert other.shape[1:3] == (72, usual)
    for alone in ({}, {"height": 72}, {"width": 72}):
        size = {**own, **alone}
        expected = pictures(painting, "a cat", mask_image=mask, **size, **painted)
        assert_same_pictures(ours("a cat", mask=mask, **alone, **painted).pixels, expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
def test_pixels_are_those_of_diffusers_processor(mode):
    from diffusers.image_processor import VaeImageProcessor

    source = picture(75, 53, mode=mode)
    expected = VaeImageProcessor().preprocess(source.convert("RGB"), 56, 72).numpy()
    grey = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    mask = picture(31, 30, seed=4)
    wanted = grey.preprocess(mask, 56, 72).numpy()[:, :, ::8, ::8] == 1
    found = InitImage.read(source, mask, 56, 72, 8)
    np.testing.assert_array_equal(found.sample, expected)
    np.testing.assert_array_equal(found.mask, wanted)


def test_strength_0_leaves_the_picture_as_the_vae_has_it(pair):
    changing, _, ours = pair
    source = picture()
    found = ours("a cat", image=source, strength=0.0, seed=2, num_inference_steps=5)
    assert found.steps == 0
    with torch.no_grad():
        sample = changing.image_processor.preprocess(source)
        drawn = changing.vae.encode(sample).latent_dist.sample(torch.Generator().manual_seed(2))
        decoded = changing.vae.decode(drawn).sample
    expected = changing.image_processor.postprocess(decoded, output_type="np")
    assert_same_pictures(found.pixels, (expected * 255).round().astype(np.uint8))


def test_a_black_mask_leaves_everything_and_a_white_one_nothing(pair):
    *_, ours = pair
    arguments = {"image": picture(), "num_inference_steps": 3, "seed": 5}
    black, white = (Image.new("L", (64, 64), value) for value in (0, 255))
    kept = ours("a cat", mask=black, strength=1.0, **arguments).pixels
    untouched = ours("a cat", strength=0.0, **arguments).pixels
    np.testing.assert_array_equal(kept, untouched)
    # A picture with nothing left of it is one from noise, the second that the seed gives.
    from bksdm.runtime.noise import BatchNoise

    source = BatchNoise(5, 1)
    shape = (ours.bundle.latent_channels, 8, 8)
    source.draw(shape)
    alone = ours("a cat", num_inference_steps=3, latents=source.draw(shape), height=64, width=64)
    painted = ours("a cat", mask=white, strength=1.0, **arguments).pixels
    np.testing.assert_array_equal(painted, alone.pixels)


@pytest.mark.parametrize("size", [8, 16, 24])
def test_small_pictures(pair, size):
    *_, ours = pair
    found = ours("a cat", image=picture(size, size), num_inference_steps=2, seed=0)
    assert found.pixels.shape == (1, size, size, 3)
    assert np.isfinite(found.pixels).all()


def test_as_many_steps_as_training_steps(nano_bundle):
    from bksdm.runtime.samplers import step_table

    config = TextToImage.load(nano_bundle).bundle.scheduler
    assert PNDMScheduler.from_config(dict(config)).config.num_train_timesteps == 1000
    table = step_table({**config, "steps_offset": 0}, 1000, first=999)
    assert len(table) == 2
    assert np.isfinite(table.levels).all()


@pytest.mark.parametrize("kind", [float, np.float32, np.float64, np.array, np.float16])
def test_a_strength_of_any_precision_leaves_as_many_steps_as_in_diffusers(kind):
    """It multiplies and cuts off: 10 · 0.7 is 7 in float32, whose 0.7 is below 0.7."""
    pipeline = SimpleNamespace(scheduler=PNDMScheduler(skip_prk_steps=True))
    pipeline.scheduler.set_timesteps(10)
    for strength in (0.7, 0.29, 0.3, 0.99, 1):
        _, left = StableDiffusionImg2ImgPipeline.get_timesteps(pipeline, 10, kind(strength), "cpu")
        config = GenerationConfig("", num_inference_steps=10, strength=kind(strength))
        assert 10 - first_step(config) == left


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.longdouble])
def test_a_recorded_strength_leaves_as_many_steps_as_the_one_that_was_given(kind):
    """100 · 0.29 is 29 in float32, and 28.999… for who reads 0.29."""
    for steps in (3, 10, 100, 1000, 100_000):
        for strength in kind([0.07, 0.29, 0.57, 0.58, 0.7, 0.99, 1]):
            config = GenerationConfig("", num_inference_steps=steps, strength=strength)
            with np.errstate(over="ignore"):
                left = strength * steps
            if np.isfinite(left) and left >= 1:
                assert steps - first_step(config) == min(int(left), steps)
            again = GenerationConfig.from_dict(json.loads(json.dumps(config.to_dict())))
            assert again == config
            assert type(config.strength) is float


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"strength": 0.5}, "strength needs an image"),
        ({"mask": hole()}, "mask needs an image"),
        ({"image": "apple.png"}, "image must be a PIL image"),
        ({"image": []}, "image must be a PIL image"),
        ({"image": picture(7, 64)}, "at least 8 pixels"),
        ({"image": picture(), "strength": 1.5}, "strength must be a number from 0 to 1"),
        ({"image": picture(), "strength": True}, "strength must be a number from 0 to 1"),
        ({"image": picture(), "strength": 0.01}, "leaves none of 5 steps"),
        ({"image": picture(), "mask": [hole()] * 2}, "mask has 2 entries"),
        ({"image": [picture()] * 2}, "image has 2 entries"),
        ({"image": picture(), "width": 30}, "width must be a multiple of 8"),
    ],
)
def test_what_cannot_be_is_refused(nano_bundle, arguments, named):
    ours = TextToImage.load(nano_bundle)
    with pytest.raises(RequestError, match=named):
        ours("a cat", num_inference_steps=5, **arguments)
