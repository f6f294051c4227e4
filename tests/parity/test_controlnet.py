"""Pictures with ControlNets beside those of diffusers' three ControlNet pipelines."""

from __future__ import annotations

import numpy as np
import pytest

from bksdm import RequestError, TextToImage
from tests.parity.controlnet_table import (
    PAGE,
    ROWS,
    SAMPLERS,
    SEED,
    TASKS,
    Pipelines,
    draw,
    figures,
    smooth,
)

pytestmark = pytest.mark.filterwarnings("ignore")

SLOW = ("euler-a", "heun")
NEAR = 0.02
"""Levels of 255 that may lie between unrounded pixels: the largest seen was 0.0012. Both sides
compute in float32 with sums in another order."""


@pytest.fixture(scope="module")
def pipelines(controlled):
    checkpoint, folders, _ = controlled
    return Pipelines(checkpoint, folders)


@pytest.fixture(scope="module")
def ours(controlled):
    return TextToImage.load(controlled[2])


def assert_same(drawn):
    assert drawn.expected.shape == drawn.found.shape
    assert np.abs(drawn.expected - drawn.found).max() < NEAR
    assert np.abs(drawn.expected - drawn.plain).max() > 1, "the ControlNet makes no difference"


def test_the_figures_of_the_page_are_as_small():
    found = figures(PAGE.read_text(encoding="utf-8"))
    assert np.shape(found) == (len(ROWS), len(TASKS) * len(SAMPLERS))
    assert np.max(found) < NEAR


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "sampler", ["pndm", "dpm++2m", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)]
)
@pytest.mark.parametrize("names", [("canny",), ("canny", "depth")])
def test_pictures_are_diffusers_own(pipelines, ours, names, sampler, task):
    assert_same(draw(pipelines, ours, names, task, sampler))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("names", [("canny",), ("depth", "canny")])
@pytest.mark.parametrize(
    "interval",
    [(0.2, 0.7), *(pytest.param(i, marks=pytest.mark.slow) for i in ((0.0, 1.0), (0.5, 1.0)))],
)
def test_guess_mode_and_intervals(pipelines, ours, names, interval, task):
    options = {"control_guidance_start": interval[0], "control_guidance_end": interval[1]}
    for guess in (False, True):
        assert_same(draw(pipelines, ours, names, task, "pndm", guess_mode=guess, **options))


def test_scales_and_intervals_of_each(pipelines, ours):
    options = {
        "controlnet_conditioning_scale": [0.4, 1.6],
        "control_guidance_start": [0.0, 0.3],
        "control_guidance_end": [0.6, 1.0],
        "strength": 0.7,
    }
    for guess in (False, True):
        assert_same(
            draw(pipelines, ours, ("canny", "depth"), "image", "heun", guess_mode=guess, **options)
        )


@pytest.mark.parametrize("guess", [False, True])
@pytest.mark.parametrize("names", [("shuffle",), ("canny", "shuffle")])
def test_one_value_per_channel_and_another_order_of_colours(pipelines, ours, names, guess):
    assert_same(draw(pipelines, ours, names, guess_mode=guess))


def test_where_the_first_pools_all_are_in_guess_mode(pipelines, ours):
    """So it is in diffusers, which then fails to add up what has one value and what has many."""
    images = [smooth(10), smooth(11)]
    options = {"num_inference_steps": 5, "seed": SEED, "output_type": "np"}
    expected = draw(pipelines, ours, ("canny", "shuffle"), images=images, guess_mode=True).expected
    found = ours("a cat", control_image=images[::-1], controlnet=["shuffle", "canny"], **options)
    assert found.config.guess_mode
    assert np.abs(found.array * 255 - expected).max() < NEAR


def test_the_same_one_twice(pipelines, ours):
    assert_same(draw(pipelines, ours, ("canny", "canny")))


def test_without_guidance(pipelines, ours):
    for guess in (False, True):
        assert_same(draw(pipelines, ours, ("canny",), guess_mode=guess, guidance_scale=1.0))


def test_a_scale_of_nothing(pipelines, ours):
    drawn = draw(pipelines, ours, ("canny",), controlnet_conditioning_scale=0.0)
    assert np.abs(drawn.expected - drawn.found).max() < NEAR
    assert np.array_equal(drawn.found, drawn.plain)


@pytest.mark.parametrize("guess", [False, True])
def test_a_picture_for_each_prompt(pipelines, ours, guess):
    options = {"prompt": ["a cat", "a dog"], "num_images_per_prompt": 2, "guess_mode": guess}
    one = [[smooth(3), smooth(4)]]
    assert_same(draw(pipelines, ours, ("canny",), images=one, **options))
    for_both = [smooth(3)]
    assert_same(draw(pipelines, ours, ("canny",), images=for_both, **options))
    nested = [[smooth(3), smooth(4)], [smooth(5), smooth(6)]]
    assert_same(draw(pipelines, ours, ("canny", "depth"), images=nested, **options))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
@pytest.mark.parametrize("size", [{}, {"height": 72}, {"width": 80, "height": 64}])
def test_control_images_of_any_kind_and_size(pipelines, ours, mode, size):
    image = smooth(7, (93, 75), mode)
    if mode == "RGBA":
        image.putalpha(smooth(8, (93, 75), "L"))
    assert_same(draw(pipelines, ours, ("canny",), images=[image], **size))


def test_openvino_draws_the_same(pipelines, controlled):
    with TextToImage.load(controlled[2], engine="openvino") as model:
        for names in (("canny",), ("canny", "shuffle")):
            for guess in (False, True):
                options = {"guess_mode": guess, "control_guidance_end": 0.6}
                assert_same(draw(pipelines, model, names, "image", **options))


def test_a_callback_that_turns_guidance_off(pipelines, ours):
    """As diffusers' own callback does, which halves the embeddings; ControlNets follow."""

    def at_two(pipe, index, timestep, tensors):
        if index == 2:
            embeds = tensors["prompt_embeds"]
            tensors["prompt_embeds"] = embeds[len(embeds) // 2 :]
            pipe._guidance_scale = 0.0
        return tensors

    options = {
        "num_inference_steps": 6,
        "callback_on_step_end": at_two,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }
    control = smooth(10)
    found = ours("a cat", seed=SEED, control_image=control, controlnet="canny", **options).pixels
    guided = {"num_inference_steps": 6, "guidance_interval": (0.0, 0.4)}
    expected = ours("a cat", seed=SEED, control_image=control, controlnet="canny", **guided).pixels
    assert np.array_equal(found, expected)


MISTAKES = [
    ({"controlnet": "canny"}, "controlnet needs a control_image"),
    ({"guess_mode": True}, "guess_mode needs a control_image"),
    ({"control_guidance_end": 0.5}, "control_guidance_end needs a control_image"),
    ({"controlnet_conditioning_scale": 1.0}, "controlnet_conditioning_scale needs a control_image"),
    ({"control_image": smooth(1)}, "controlnet must be named, for .* canny, depth, shuffle"),
    ({"control_image": smooth(1), "controlnet": "pose"}, "controlnet must be of this bundle"),
    ({"control_image": smooth(1), "controlnet": 3}, "controlnet must be a name"),
    ({"control_image": "edges.png", "controlnet": "canny"}, "control_image must be a PIL image"),
    ({"control_image": [], "controlnet": "canny"}, "control_image must be a picture"),
    (
        {"control_image": smooth(1, (7, 64)), "controlnet": "canny"},
        "control_image must have at least 8 pixels",
    ),
    (
        {"control_image": [smooth(1), smooth(2)], "controlnet": "canny"},
        "control_image has 2 entries for a ControlNet",
    ),
    (
        {"control_image": smooth(1), "controlnet": ["canny", "depth"]},
        "control_image has 1 entries, but there are 2 ControlNets",
    ),
    (
        {"control_image": [[smooth(1)]], "controlnet": ["canny", "depth"]},
        "control_image must have 2 pictures for each prompt",
    ),
    (
        {
            "control_image": smooth(1),
            "controlnet": "canny",
            "controlnet_conditioning_scale": [1.0, 0.5],
        },
        "controlnet_conditioning_scale has 2 entries, but there is 1 ControlNet",
    ),
    (
        {"control_image": smooth(1), "controlnet": "canny", "controlnet_conditioning_scale": "1"},
        "controlnet_conditioning_scale must be a number",
    ),
    (
        {"control_image": smooth(1), "controlnet": "canny", "control_guidance_start": 1.5},
        "control_guidance_start must be a number from 0 to 1",
    ),
    (
        {
            "control_image": smooth(1),
            "controlnet": "canny",
            "control_guidance_start": 0.6,
            "control_guidance_end": 0.6,
        },
        "control_guidance_start must be below control_guidance_end",
    ),
    (
        {"control_guidance_start": [0.1, 0.2], "control_guidance_end": [0.5]},
        "control_guidance_start has 2 entries, but control_guidance_end has 1",
    ),
    ({"control_image": smooth(1), "controlnet": "canny", "fast": 1}, "fast does not go with"),
    (
        {"image": smooth(1), "controlnet": "canny"},
        "controlnet needs a control_image, .* diffusers' StableDiffusionControlNetPipeline calls",
    ),
]


@pytest.mark.parametrize(("options", "told"), MISTAKES)
def test_mistakes_are_refused_before_anything_runs(ours, options, told):
    with pytest.raises(RequestError, match=told):
        ours("a cat", num_inference_steps=1, **options)


def test_a_model_without_any_says_how_to_get_one():
    with TextToImage.load() as model, pytest.raises(RequestError, match="export --controlnet"):
        model("a cat", num_inference_steps=1, control_image=smooth(1))


def test_engines_on_a_gpu_refuse_them(controlled):
    from bksdm.engines.registry import capabilities
    from bksdm.runtime.bundle import Bundle
    from bksdm.runtime.generation_config import GenerationConfig
    from bksdm.runtime.request import Request

    config = GenerationConfig("a cat", controlnet="canny", seed=1)
    for engine in ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx"):
        with pytest.raises(RequestError, match=f"not for the engine {engine} yet"):
            Request.resolve(
                Bundle.open(controlled[2]), capabilities(engine), config, control_image=smooth(1)
            )
