"""Inputs and outputs of a call that the loop on the GPU takes and gives as the one on the host."""

from __future__ import annotations

import numpy as np
import pytest

from bksdm import Generator, RequestError

COMMON = {"num_inference_steps": 4, "num_images_per_prompt": 2}


def near(found, expected):
    """Float16 of sums in another order: what tests/cuda/test_session.py allows, in the end."""
    return np.abs(found - expected).max() <= 2e-3 * np.abs(expected).max()


def test_embeddings_take_the_place_of_texts(load, built, same_on_host):
    model, width = load(built), same_on_host.bundle.cross_attention_dim
    embeds = np.random.default_rng(0).standard_normal((1, 77, width), np.float32)
    for arguments in (
        {"prompt_embeds": embeds, "negative_prompt_embeds": -embeds},
        {"prompt_embeds": embeds, "negative_prompt": "fog"},
        {"prompt": "a cat", "negative_prompt_embeds": embeds},
        {"prompt_embeds": embeds, "guidance_scale": 1.0},
    ):
        found, expected = (
            m(seed=3, output_type="latent", **COMMON, **arguments).images
            for m in (model, same_on_host)
        )
        assert near(found, expected)
    long = np.tile(embeds, (1, 2, 1))
    with pytest.raises(RequestError, match="the plans take 77 tokens, not the 154"):
        model(prompt_embeds=long, negative_prompt_embeds=long, **COMMON)


def test_every_kind_of_output(load, built, same_on_host):
    model, last = load(built), []
    picture = model("a", seed=1, on_step=lambda step: last.append(step.latents), **COMMON)
    latents = model("a", seed=1, output_type="latent", **COMMON)
    assert near(latents.images, last[-1])
    assert latents.pixels.shape == (0, 64, 64, 3)
    exact = model("a", seed=1, output_type="np", **COMMON)
    np.testing.assert_array_equal((exact.images * 255).round(), picture.pixels)
    np.testing.assert_array_equal(exact.pixels, picture.pixels)
    on_host = same_on_host("a", seed=1, output_type="np", **COMMON).images
    assert np.abs(exact.images - on_host).max() <= 1 / 255
    # The second picture of each kind comes from the recorded steps alone.
    again = model("a", seed=1, output_type="latent", **COMMON).images
    np.testing.assert_array_equal(again, latents.images)


def test_a_generator_goes_on(load, built, same_on_host):
    drawn = []
    for model in (load(built), same_on_host):
        generator = Generator().manual_seed(4)
        drawn.append(
            [
                model(
                    "a", generator=generator, output_type="latent", sampler="euler-a", **COMMON
                ).images
                for _ in range(2)
            ]
        )
    for found, expected in zip(*drawn, strict=True):
        assert near(found, expected)
    assert not near(*drawn[0])


def test_an_interrupted_loop_returns_where_it_stands(load, built):
    model, seen = load(built), []

    def stop(step):
        seen.append(step.latents)
        model._interrupt = step.index == 1

    found = model("a", seed=1, on_step=stop, **COMMON)
    assert found.steps == len(seen) == 2
    np.testing.assert_array_equal(found.pixels, model.decode(seen[-1]))
    assert model("a", seed=1, **COMMON).steps == 5
