"""A bundle with plans, and a driver to run them on."""

from __future__ import annotations

import shutil
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest

from bksdm.engines.nvidia_driver import describe_driver, load_driver, load_management
from bksdm.engines.profile import Profile
from bksdm.engines.protocol import TensorSpec
from bksdm.engines.registry import open_engine
from bksdm.engines.tensorrt import BUILD_FLAGS
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.cuda.built_plans import BuiltPlans
from bksdm.runtime.cuda.compile import source_digest
from bksdm.runtime.cuda.evaluation import Pieces
from bksdm.runtime.cuda.executor import CudaExecutor
from bksdm.runtime.host import HostExecutor
from bksdm.runtime.loading import open_text_encoder
from bksdm.runtime.noise_predictor import NoisePredictor
from bksdm.runtime.pipeline import TextToImage
from bksdm.runtime.prompt_encoder import PromptEncoder
from bksdm.runtime.tokenizer import Tokenizer
from bksdm.runtime.vae_encoder import VaeEncoder
from bksdm.storage.digest import model_digest
from bksdm.storage.plans import Recipe, staged, write_plan, write_record

from .driver import FakeDriver, compile_driver, has_gpu
from .simulated import TARGET, CountingGpu, Engine, machine_code, simulated_tensorrt

HERE = Path(__file__).parent
VERSION = "9.9.9"
PROFILE = Profile.parse("1:1:3", "64x64:64x64:96x96")
RECIPES = {
    flavour: Recipe(flavour, VERSION, (TARGET,), "float16", PROFILE, BUILD_FLAGS[flavour])
    for flavour in ("tensorrt-rtx", "tensorrt")
}
RECIPE = RECIPES["tensorrt-rtx"]


def runs_on_a_gpu(item):
    """Whether a test here runs on the GPU where there is one."""
    inside = HERE in item.path.parents
    return inside and "device" in item.fixturenames and "driver" not in item.fixturenames


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Select tests of the loop by ``-m gpu``, too, where there is a GPU."""
    if has_gpu():
        for item in filter(runs_on_a_gpu, items):
            item.add_marker(pytest.mark.gpu)


def pytest_report_collectionfinish(items):
    """Say what the tests of the loop run on."""
    if not any(runs_on_a_gpu(item) or item.get_closest_marker("gpu") for item in items):
        return ""
    if not has_gpu():
        return "there is no GPU: the loop runs on a driver of host memory"
    found = describe_driver(load_driver(), load_management())
    gpus = ", ".join(f"{gpu.name} ({gpu.capability})" for gpu in found.gpus)
    return f"the loop runs on {gpus}, driver {found.version}, CUDA {found.cuda}"


@pytest.fixture(scope="session")
def built(nano_bundle_fp16, tmp_path_factory):
    """The bundle, with a folder of plans whose content is only their name."""
    return with_plans(nano_bundle_fp16, tmp_path_factory.mktemp("built") / "nano")


def with_plans(bundle, folder):
    """Copy a bundle, and add plans to it."""
    shutil.copytree(bundle, folder)
    for recipe in RECIPES.values():
        with staged(folder / "engines" / recipe.name) as beside:
            plans = {
                name: {
                    "model": model_digest(folder / name / "model.onnx", folder / "engines"),
                    **write_plan(beside, name, name.encode()),
                }
                for name in Bundle.open(folder).components
            }
            kernels = write_plan(beside, "kernels-sm89", machine_code(TARGET), ".cubin")
            plans["kernels-sm89"] = {"model": source_digest(), **kernels}
            write_record(beside, recipe, plans)
    return folder


@pytest.fixture(scope="session")
def library(shared):
    """The driver of host memory; None where there is a GPU, which the tests then run on."""
    if has_gpu():
        return None
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("there is no GPU, and a driver is made of host memory by g++ on Linux only")
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    return FakeDriver(shared("driver", compile_driver) / "libcuda.so.1")


@pytest.fixture
def driver(library):
    """The driver of host memory, with its GPU."""
    if library is None:
        pytest.skip("only the driver of host memory")
    with library:
        yield library


@pytest.fixture
def device(library):
    with library or nullcontext():
        yield CountingGpu()


@pytest.fixture
def load(device, monkeypatch):
    """Open a bundle on the simulated GPU; ``change`` alters what networks return."""

    def open_on_device(folder, change=None, flavour="tensorrt-rtx", in_loops=False):
        bundle = Bundle.open(folder)
        engines = {
            name.encode(): Engine(device, bundle.model(name), PROFILE, name, change, flavour)
            for name in bundle.components
        }
        module = simulated_tensorrt(VERSION, engines, flavour)
        for user in ("bksdm.engines.tensorrt_context", "bksdm.runtime.cuda.built_plans"):
            monkeypatch.setattr(f"{user}.load_module", lambda flavour: module)
        device.engines = engines
        executor = CudaExecutor(
            bundle, _encode(bundle), BuiltPlans(bundle, flavour, device), device, in_loops
        )
        return TextToImage(bundle, executor, _encoder(bundle, executor.vae_encoder))

    return open_on_device


@pytest.fixture
def unet_rows():
    """The rows of every call of the UNet, and the ``change`` for ``load`` that notes them."""
    rows = []

    def note(name, values):
        if name == "unet":
            rows.append(len(values["out_sample"]))
        return values

    return rows, note


@pytest.fixture(scope="session")
def same_on_host(built):
    """The bundle with the loop on the host, around the networks of the simulated GPU."""
    bundle = Bundle.open(built)
    networks = (_called(bundle, name) for name in ("unet", "vae_decoder"))
    executor = HostExecutor(
        _encode(bundle), NoisePredictor(next(networks)), next(networks), bundle.scaling_factor
    )
    encoder = _encoder(bundle, lambda: _called(bundle, "vae_encoder"))
    return TextToImage(bundle, executor, encoder)


class _Called:
    """A simulated plan as an engine of the host."""

    def __init__(self, engine):
        self._run = engine.run
        self.inputs = {
            name: TensorSpec(engine.dtype(name), tuple(node.shape))
            for name, node in engine.inputs.items()
        }
        self.outputs = engine.outputs

    def __call__(self, feeds):
        return self._run(feeds)


_on_host = partial(open_engine, "onnxruntime", threads=None, cache=None, side=8)


def _called(bundle, name):
    return _Called(Engine(None, bundle.model(name), PROFILE, name))


def _encode(bundle):
    load = partial(open_text_encoder, _on_host, bundle)
    return PromptEncoder(
        Tokenizer.load(bundle.path / "tokenizer"),
        lambda skipped: load(skipped) if skipped else _called(bundle, "text_encoder"),
    )


def _encoder(bundle, load):
    return VaeEncoder(load, bundle.scaling_factor, bundle.latent_channels, bundle.encodes_exactly)


def unrecorded(evaluations):
    """Return what stands in for recorded steps: the same work, enqueued piece by piece."""
    return lambda form: Pieces(partial(evaluations.enqueue, form))
