"""On a real GPU: plans built here draw what the CPU draws, again and again."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from bksdm.cli import main
from bksdm.engines.errors import EngineError
from bksdm.runtime.cuda.gpu import Gpu
from bksdm.runtime.pipeline import TextToImage

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
        command = ["build", str(folder), "--engine", flavour, *aim, "--batch", "1:1:3",
                   "--size", "64x64:64x64:96x96"]  # fmt: skip
        if main(command) == 0:
            return folder, flavour
    pytest.skip(f"no TensorRT here builds for {target}")


@pytest.fixture(scope="module")
def model(engine):
    return TextToImage.load(engine[0], engine[1])


@pytest.mark.parametrize("steps", [1, 4, 25, 70])
@pytest.mark.parametrize(("images", "width"), [(1, 64), (3, 96)])
def test_pictures_are_those_of_the_cpu(model, nano_bundle_fp16, steps, images, width):
    arguments = {"num_inference_steps": steps, "num_images_per_prompt": images, "width": width,
                 "seed": 1}  # fmt: skip
    expected = TextToImage.load(nano_bundle_fp16)("a lighthouse", **arguments).pixels.astype(float)
    for _ in range(2):
        found = model("a lighthouse", **arguments).pixels
        error = np.mean((found - expected) ** 2)
        # Float16 arithmetic in another order: what the float16 bundle keeps to float32 as well.
        assert 10 * np.log10(255**2 / max(error, 1e-9)) > 40


def test_two_hundred_pictures_take_no_more_memory_than_one(model):
    from cuda.bindings import driver

    arguments = {"num_inference_steps": 4, "guidance_scale": 5.0}
    first = model("a", seed=0, **arguments).pixels
    _, free, _ = driver.cuMemGetInfo()
    for seed in range(1, 200):
        model("a", seed=seed, **arguments)
    assert driver.cuMemGetInfo()[1] >= free
    assert (model("a", seed=0, **arguments).pixels == first).all()
