"""The GPU, and a bundle on every engine that runs on it."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from bksdm.cli import main
from bksdm.engines.errors import EngineError
from bksdm.engines.onnxruntime_package import load_cuda_provider
from bksdm.runtime.cuda.gpu import Gpu
from bksdm.runtime.pipeline import TextToImage

from ..cuda.driver import has_gpu

SIZES = ("--batch", "1:1:3", "--size", "64x64:64x64:96x96")
LEAST_PSNR = 40
"""Float16 arithmetic in another order: what the float16 bundle keeps to float32 as well."""


@pytest.fixture(scope="session")
def target():
    """The compute capability of the GPU."""
    try:
        return Gpu().target
    except EngineError as error:
        # Where there is one, that it cannot be used is a failure.
        if has_gpu():
            raise
        pytest.skip(str(error))


@pytest.fixture
def gpu(target):
    """The project's own, uncounted."""
    return Gpu()


@pytest.fixture(scope="session")
def cuda_provider(target):
    """ONNX Runtime with its CUDA provider."""
    try:
        return load_cuda_provider()
    except EngineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def plans(target, nano_bundle_fp16, tmp_path_factory):
    """The bundle with TensorRT's plans for this GPU, and the engine that they are for."""
    folder = tmp_path_factory.mktemp("gpu") / "nano"
    shutil.copytree(nano_bundle_fp16, folder)
    for flavour, aim in (("tensorrt-rtx", ["--target", target]), ("tensorrt", [])):
        if main(["build", str(folder), "--engine", flavour, *aim, *SIZES]) == 0:
            return folder, flavour
    pytest.skip(f"no TensorRT here builds for {target}")


@pytest.fixture(scope="session", params=["plans", "onnxruntime-cuda"])
def model(request, nano_bundle_fp16):
    """The bundle on every engine of the GPU."""
    if request.param == "plans":
        return TextToImage.load(*request.getfixturevalue("plans"))
    request.getfixturevalue("cuda_provider")
    return TextToImage.load(nano_bundle_fp16, request.param)


def psnr(found, expected):
    """Return the peak signal-to-noise ratio of pixels in dB, at most 138."""
    error = np.mean((found.astype(float) - expected) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))
