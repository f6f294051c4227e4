"""Every engine of the GPU draws what the CPU draws, again and again."""

from __future__ import annotations

import pytest
from PIL import Image

from bksdm.runtime.bundle import Bundle
from bksdm.runtime.pipeline import TextToImage
from bksdm.storage.plans import list_plans, read_record

from .conftest import LEAST_PSNR, psnr

pytestmark = pytest.mark.gpu


def assert_drawn_alike(model, folder, **arguments):
    expected = TextToImage.load(folder)("a lighthouse", **arguments).pixels
    for _ in range(2):
        assert psnr(model("a lighthouse", **arguments).pixels, expected) > LEAST_PSNR


@pytest.mark.parametrize("steps", [1, 4, 25, 70])
@pytest.mark.parametrize(("images", "width"), [(1, 64), (3, 96)])
def test_pictures_are_those_of_the_cpu(model, nano_bundle_fp16, steps, images, width):
    assert_drawn_alike(
        model,
        nano_bundle_fp16,
        num_inference_steps=steps,
        num_images_per_prompt=images,
        width=width,
        seed=1,
    )


MASK = {"image": Image.new("RGB", (64, 64), "teal"), "mask": Image.radial_gradient("L")}


@pytest.mark.parametrize(
    "arguments",
    [
        {"sampler": "euler-a"},
        {"sampler": "euler-a", "num_inference_steps": 70},
        MASK,
        {**MASK, "sampler": "ddpm", "strength": 0.6},
        {**MASK, "strength": 0.0},
        {"guidance_rescale": 0.7, "num_images_per_prompt": 3},
        {"guidance_interval": (0.2, 0.6), "num_images_per_prompt": 3},
    ],
)
def test_noise_masks_and_guidance_are_those_of_the_cpu(model, nano_bundle_fp16, arguments):
    plain = model("a", num_inference_steps=4, seed=0).pixels
    assert_drawn_alike(
        model, nano_bundle_fp16, **{"num_inference_steps": 10, "seed": 1, **arguments}
    )
    assert (model("a", num_inference_steps=4, seed=0).pixels == plain).all()


def test_two_hundred_pictures_take_no_more_memory_than_one(model):
    from cuda.bindings import driver

    arguments = {"num_inference_steps": 4, "guidance_scale": 5.0}
    first = model("a", seed=0, **arguments).pixels
    _, free, _ = driver.cuMemGetInfo()
    for seed in range(1, 200):
        model("a", seed=seed, **arguments)
    assert driver.cuMemGetInfo()[1] >= free
    assert (model("a", seed=0, **arguments).pixels == first).all()


def test_a_given_bundle_draws_what_the_cpu_draws(target, request, record_property):
    """On the engines that it has plans for, or else on ONNX Runtime."""
    folder = request.config.getoption("--bundle")
    if folder is None:
        pytest.skip("no bundle was given with --bundle")
    engines = folder / "engines"
    backends = {read_record(engines / name)["backend"] for name in list_plans(engines)}
    if not backends:
        request.getfixturevalue("cuda_provider")
        backends = {"onnxruntime-cuda"}
    arguments = {"num_inference_steps": 2, "seed": 1}
    expected = TextToImage.load(folder)("a lighthouse", **arguments).pixels
    for backend in backends:
        found = psnr(
            TextToImage.load(folder, backend)("a lighthouse", **arguments).pixels, expected
        )
        record_property(f"PSNR of {backend}", found)
        print(f"\n{Bundle.open(folder).path.name} on {backend}: {found:.1f} dB from the CPU's")
        assert found > LEAST_PSNR
