"""All that the host's loop does, on the simulated GPU and around the same networks."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from bksdm.engines.errors import NonFiniteError, RequestError


def picture():
    small = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    return Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC)


def hole():
    mask = np.zeros((64, 64), np.uint8)
    mask[16:32, 24:] = 255
    return Image.fromarray(mask)


MASK = {"image": picture(), "mask": hole()}
CASES = {
    "euler-a": {"sampler": "euler-a"},
    "ddpm": {"sampler": "ddpm", "num_images_per_prompt": 3},
    "dpm++2m-sde": {"sampler": "dpm++2m-sde", "guidance_scale": 1.0},
    "lcm": {"sampler": "lcm"},
    "kdpm2-a": {"sampler": "kdpm2-a"},
    "ddim with eta": {"sampler": "ddim", "eta": 0.7},
    "mask": {**MASK, "num_images_per_prompt": 2},
    "mask and noise": {**MASK, "sampler": "euler-a", "strength": 0.7},
    "image": {"image": picture(), "strength": 0.7},
    "rescaled": {"guidance_rescale": 0.7, "num_images_per_prompt": 3},
    "interval": {"guidance_interval": (0.2, 0.6), "num_images_per_prompt": 2},
    "never guided": {"guidance_interval": (0.9, 1.0), "num_inference_steps": 3},
    "weighted": {"prompt": "a (lighthouse:1.5)", "prompt_weights": True},
    "skipped layer": {"clip_skip": 1, "guidance_interval": (0.0, 0.5)},
    "everything": {
        **MASK,
        "sampler": "euler-a",
        "guidance_rescale": 0.7,
        "strength": 0.9,
        "guidance_interval": (0.0, 0.6),
    },
}
COMMON = {"prompt": "a lighthouse", "negative_prompt": "fog", "num_inference_steps": 6, "seed": 5}


def drawn(model, **arguments):
    """Return pixels, and latents of every step."""
    latents = []
    result = model(on_step=lambda step: latents.append(step.latents), **{**COMMON, **arguments})
    return result.pixels.astype(int), np.array(latents)


@pytest.mark.parametrize("case", CASES)
def test_every_step_is_that_of_the_host(load, built, same_on_host, case):
    model = load(built)
    expected_pixels, expected = drawn(same_on_host, **CASES[case])
    for _ in range(2):
        pixels, latents = drawn(model, **CASES[case])
        difference = np.abs(latents - expected).max(axis=(1, 2, 3, 4)) / np.abs(expected).max()
        # Float32 sums in another order.
        assert difference[0] <= 2e-6
        # From then on their last bit may decide which float16 the UNet is given: 6e-4 was seen.
        assert difference.max() <= 2e-3
        assert np.abs(pixels - expected_pixels).max() <= 1


def test_strength_0_decodes_the_picture_at_once(load, built, same_on_host, device):
    model, arguments = load(built), {"image": picture(), "strength": 0.0}
    expected, none = drawn(same_on_host, **arguments)
    for _ in range(2):
        assert np.abs(drawn(model, **arguments)[0] - expected).max() <= 1
    assert len(none) == device.counts["graph launches"] == 0
    assert np.abs(drawn(model)[0] - drawn(same_on_host)[0]).max() <= 1


def test_what_the_model_sees_behind_the_noise(load, built, same_on_host):
    """Decoding it between two steps changes nothing of the steps that follow."""
    model, seen, expected = load(built), [], []
    pixels = drawn(model, sampler="euler-a")[0]

    def look(step):
        seen.append((step.denoised, model.decode(step.denoised)))

    result = model(on_step=look, sampler="euler-a", **COMMON)
    same_on_host(on_step=lambda step: expected.append(step.denoised), sampler="euler-a", **COMMON)
    for (latents, shown), wanted in zip(seen, expected, strict=True):
        # As of the steps themselves, times the guidance scale.
        np.testing.assert_allclose(latents, wanted, atol=2e-2 * np.abs(wanted).max())
        assert np.abs(shown.astype(int) - same_on_host.decode(latents)).max() <= 1
    np.testing.assert_array_equal(result.pixels, pixels)
    # Without a picture under way, and of another number of images.
    three = np.repeat(seen[-1][0], 3, axis=0)
    np.testing.assert_array_equal(load(built).decode(three)[2], seen[-1][1][0])


def test_a_step_fetches_its_latents_only_when_asked(load, built, device):
    model, steps = load(built), []
    model(**COMMON)
    counts = device.counts.copy()
    model(**COMMON)
    quiet = device.counts - counts
    counts = device.counts.copy()
    model(on_step=steps.append, **COMMON)
    watched = device.counts - counts
    # What the model sees behind the noise is made of the latents before the step.
    assert watched["copies"] - quiet["copies"] == len(steps)
    assert watched["synchronisations"] == quiet["synchronisations"] == 1
    assert steps[-1].latents.shape == (1, 4, 8, 8)
    with pytest.raises(RequestError, match="step 2 have been overwritten"):
        _ = steps[1].latents
    with pytest.raises(RequestError, match="step 2 have been overwritten"):
        _ = steps[1].denoised
    # Of the same step of another picture.
    model(**COMMON)
    with pytest.raises(RequestError, match="step 7 have been overwritten"):
        _ = steps[-1].denoised


def test_equal_prompts_are_encoded_once(load, built, device, same_on_host):
    """Three images of one prompt: two rows of the text encoder, six of the UNet."""
    model, shapes = load(built), device.engines[b"text_encoder"].kernels.shapes
    for arguments, rows in (
        ({"num_images_per_prompt": 3}, 2),
        ({"prompt": ["a", "b"]}, 3),
        ({"prompt": ["a", "b", "a"], "negative_prompt": ["c", "d", "e"]}, 5),
        ({"num_images_per_prompt": 2, "guidance_scale": 1.0}, 1),
        ({}, 2),
    ):
        shapes.clear()
        pixels = drawn(model, **arguments)[0]
        (shape,) = shapes
        assert shape.decode().startswith(f"{{'input_ids': ({rows}, 77)")
        expected = drawn(same_on_host, **arguments)[0]
        assert np.abs(pixels - expected).max() <= 1


def test_latents_that_cannot_be_decoded_are_named(load, built):
    model = load(built)
    with pytest.raises(NonFiniteError, match="pixels of the VAE decoder"):
        # Finite in float16, which the decoder's layers then exceed.
        model.decode(np.full((1, 4, 8, 8), 1.1e4, np.float32))
    assert drawn(model)[0].std() > 1
    with pytest.raises(RequestError, match="outside of what was built"):
        model.decode(np.zeros((1, 4, 64, 64), np.float32))


def test_long_prompts_are_refused_by_what_was_built(load, built):
    with pytest.raises(RequestError, match="take 77 tokens, not the 154"):
        drawn(load(built), prompt="a " * 90, long_prompt=True)


def test_no_picture_shows_in_the_next(load, built):
    model, plain = load(built), load(built)(**COMMON).pixels
    special = [
        {"sampler": "euler-a"},
        MASK,
        {**MASK, "sampler": "euler-a"},
        {"image": picture(), "strength": 0.0},
        {"guidance_interval": (0.5, 1.0)},
        {"guidance_rescale": 0.7},
        {"guidance_rescale": 0.7, "guidance_interval": (0.0, 0.5)},
        {"sampler": "euler-a", "num_inference_steps": 40},
        {"sampler": "ddpm", "num_inference_steps": 70},
    ]
    first = [model(**{**COMMON, **arguments}).pixels for arguments in special]
    assert (model(**COMMON).pixels == plain).all()
    for arguments, pixels in reversed(list(zip(special, first, strict=True))):
        assert (pixels != plain).any()
        assert (model(**{**COMMON, **arguments}).pixels == pixels).all()
        assert (model(**COMMON).pixels == plain).all()
    assert len(model.executor._sessions) == 1


def test_the_second_picture_waits_once_and_allocates_nothing(load, built, device):
    model = load(built)
    for case in ("euler-a", "mask and noise", "rescaled", "interval", "everything"):
        arguments = {**COMMON, **CASES[case]}
        model(**arguments)
        device.counts.clear()
        result = model(**{**arguments, "seed": 6})
        assert device.counts["allocations"] == 0
        # Once more for a picture to start from.
        encoded = "image" in arguments
        assert device.counts["synchronisations"] == 1 + encoded
        assert device.counts["graph launches"] == result.steps
        assert device.counts["plans"] == 2 + encoded
        assert device.counts["kernels"] == 3


def test_more_noise_than_there_is_room_for_allocates_once(load, built, device):
    model = load(built)
    model(**COMMON)
    for sampler, steps, allocations in (
        ("euler-a", 32, 1),  # a place to upload from
        ("euler-a", 40, 2),  # table with history, and what it is uploaded from
        ("euler-a", 39, 0),
        ("euler-a", 70, 2),
        ("pndm", 100, 0),
    ):
        device.counts.clear()
        model(**{**COMMON, "sampler": sampler, "num_inference_steps": steps})
        assert device.counts["allocations"] == allocations


def test_a_picture_an_interval_and_rescaling_take_their_memory_when_they_come(load, built, device):
    model = load(built)
    model(**COMMON)
    for arguments, allocations in (
        # The encoder's input and output, and what these are copied from or to.
        (MASK, 4),
        ({"guidance_interval": (0.0, 0.5)}, 1),  # embeddings of the conditional half
        ({"guidance_rescale": 0.7}, 2),  # moments and factors
        ({**MASK, "guidance_interval": (0.5, 1.0), "guidance_rescale": 0.3}, 0),
    ):
        device.counts.clear()
        model(**{**COMMON, **arguments})
        assert device.counts["allocations"] == allocations


def test_half_of_the_batch_runs_where_there_is_no_guidance(load, built, unet_rows):
    rows, note = unet_rows
    model = load(built, note)
    arguments = {"num_inference_steps": 10, "sampler": "ddim", "guidance_interval": (0.2, 0.55)}
    for _ in range(2):
        rows.clear()
        model("a", seed=0, num_images_per_prompt=2, **arguments)
    assert rows == [2, 2, 4, 4, 4, 4, 2, 2, 2, 2]


@pytest.mark.parametrize(
    "arguments",
    [
        {"sampler": "euler-a"},
        {**MASK, "sampler": "ddim"},
        {"sampler": "ddim", "guidance_rescale": 0.7},
        {"sampler": "ddim", "guidance_interval": (0.0, 0.5)},
    ],
)
@pytest.mark.parametrize("call", [1, 4])
def test_the_first_bad_step_is_named(load, built, arguments, call):
    calls = []

    def spoil(name, values):
        if name == "unet":
            calls.append(name)
            if len(calls) == call:
                # The first pixel, which the mask keeps.
                values["out_sample"].reshape(-1)[0] = np.inf
        return values

    model = load(built, spoil)
    calls.extend(["unet"] * 100)
    model(**{**COMMON, **arguments})
    calls.clear()
    with pytest.raises(NonFiniteError, match=f"noise prediction of step {call}:"):
        model(**{**COMMON, **arguments})
    model(**{**COMMON, **arguments})
