"""On a real GPU: plans built here draw what the CPU draws, again and again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bksdm.cli import main
from bksdm.engines.errors import EngineError
from bksdm.runtime.cuda.gpu import Gpu
from bksdm.runtime.pipeline import TextToImage
from bksdm.storage.plans import list_plans, read_record

from .conftest import unrecorded

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def target():
    try:
        return Gpu().target
    except EngineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def engine(target, nano_bundle_fp16, tmp_path_factory):
    """The bundle with plans for this GPU, and the engine that they are for."""
    folder = tmp_path_factory.mktemp("gpu") / "nano"
    shutil.copytree(nano_bundle_fp16, folder)
    for flavour, aim in (("tensorrt-rtx", ["--target", target]), ("tensorrt", [])):
        command = [
            "build",
            str(folder),
            "--engine",
            flavour,
            *aim,
            "--batch",
            "1:1:3",
            "--size",
            "64x64:64x64:96x96",
        ]
        if main(command) == 0:
            return folder, flavour
    pytest.skip(f"no TensorRT here builds for {target}")


@pytest.fixture(scope="module")
def model(engine):
    return TextToImage.load(engine[0], engine[1])


def assert_drawn_alike(model, folder, **arguments):
    expected = TextToImage.load(folder)("a lighthouse", **arguments).pixels.astype(float)
    for _ in range(2):
        found = model("a lighthouse", **arguments).pixels
        error = np.mean((found - expected) ** 2)
        # Float16 arithmetic in another order: what the float16 bundle keeps to float32 as well.
        assert 10 * np.log10(255**2 / max(error, 1e-9)) > 40


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


def test_the_graph_draws_what_its_parts_draw(model):
    arguments = {"num_inference_steps": 10, "seed": 4}
    recorded = model("a lighthouse", **arguments).pixels
    session = list(model._executor._sessions.values())[-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session._evaluations, "steps", unrecorded(session._evaluations))
        assert (model("a lighthouse", **arguments).pixels == recorded).all()


def test_memory_of_a_picture_is_buffers_and_scratch(engine, record_property):
    """What one more size takes must not hold another copy of the weights."""
    from cuda.bindings import driver

    model = TextToImage.load(*engine)
    model("a", num_inference_steps=2, seed=0)
    before = driver.cuMemGetInfo()[1]
    model("a", num_inference_steps=2, seed=0, width=96, height=96)
    taken = before - driver.cuMemGetInfo()[1]
    record_property("bytes of a second size", taken)
    print(f"\n{taken / 1e6:.1f} MB for a second size")
    plans = (Path(engine[0]) / "engines").rglob("unet.plan")
    # Allocations come in blocks of 2 MB.
    assert taken < max(path.stat().st_size for path in plans) + 2**22


def test_a_given_bundle_draws_what_the_cpu_draws(target, request):
    folder = request.config.getoption("--bundle")
    if folder is None:
        pytest.skip("no bundle was given with --bundle")
    backends = {
        read_record(folder / "engines" / name)["backend"] for name in list_plans(folder / "engines")
    }
    assert backends, f"nothing is built in {folder}; run `bksdm build`"
    expected = TextToImage.load(folder)("a lighthouse", num_inference_steps=2, seed=1).pixels
    for backend in backends:
        found = TextToImage.load(folder, backend)("a lighthouse", num_inference_steps=2, seed=1)
        error = np.mean((found.pixels.astype(float) - expected) ** 2)
        print(f"\n{backend}: PSNR {10 * np.log10(255**2 / max(error, 1e-9)):.1f} dB")
        assert 10 * np.log10(255**2 / max(error, 1e-9)) > 40
