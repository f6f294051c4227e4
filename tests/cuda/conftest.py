"""A bundle with plans, and a simulated GPU to run them on."""

from __future__ import annotations

import shutil
from functools import partial
from types import SimpleNamespace

import pytest

from bksdm.engines.profile import Profile
from bksdm.engines.protocol import TensorSpec
from bksdm.engines.registry import open_engine
from bksdm.runtime.bundle import COMPONENTS, Bundle
from bksdm.runtime.cuda.compile import compile_kernels, source_digest
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

from .simulated import Engine, SimulatedDevice, simulated_tensorrt

VERSION = "9.9.9"
RECIPE = Recipe(
    "tensorrt-rtx", VERSION, ("sm89",), "float16", Profile.parse("1:1:3", "64x64:64x64:96x96")
)


@pytest.fixture(scope="session")
def built(nano_bundle_fp16, tmp_path_factory):
    """The bundle, with a folder of plans whose content is only their name."""
    folder = tmp_path_factory.mktemp("built") / "nano"
    shutil.copytree(nano_bundle_fp16, folder)
    with staged(folder / "engines" / RECIPE.name) as beside:
        plans = {
            name: {
                "model": model_digest(folder / name / "model.onnx", folder / "engines"),
                **write_plan(beside, name, name.encode()),
            }
            for name in COMPONENTS
        }
        kernels = write_plan(beside, "kernels-sm89", compile_kernels("sm89"), ".cubin")
        plans["kernels-sm89"] = {"model": source_digest(), **kernels}
        write_record(beside, RECIPE, plans)
    return folder


@pytest.fixture(scope="session")
def library_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def device(library_folder):
    return SimulatedDevice(library_folder)


@pytest.fixture
def load(device, monkeypatch):
    """Open a bundle on the simulated GPU; ``change`` alters what networks return."""

    def open_on_device(folder, change=None):
        bundle = Bundle.open(folder)
        engines = {
            name.encode(): Engine(device, bundle.model(name), RECIPE.profile, name, change)
            for name in COMPONENTS
        }
        module = simulated_tensorrt(device, VERSION, engines)
        for user in ("bksdm.engines.tensorrt_context", "bksdm.runtime.cuda.executor"):
            monkeypatch.setattr(f"{user}.load_module", lambda flavour: module)
        device.engines = engines
        executor = CudaExecutor(bundle, _encode(bundle), "tensorrt-rtx", device)
        return TextToImage(bundle, executor, _encoder(bundle))

    return open_on_device


@pytest.fixture(scope="session")
def same_on_host(built):
    """The bundle with the loop on the host, around the networks of the simulated GPU."""
    bundle = Bundle.open(built)
    networks = (_called(bundle, name) for name in ("unet", "vae_decoder"))
    executor = HostExecutor(
        _encode(bundle), NoisePredictor(next(networks)), next(networks), bundle.scaling_factor
    )
    return TextToImage(bundle, executor, _encoder(bundle))


class _Called:
    """A simulated plan as an engine of the host."""

    def __init__(self, engine):
        self._run = engine.run
        self.inputs = {
            name: TensorSpec(engine.dtype(name), tuple(node.shape))
            for name, node in engine.inputs.items()
        }

    def __call__(self, feeds):
        return self._run(feeds)


_on_host = partial(open_engine, "onnxruntime", threads=None, cache=None, side=8)


def _called(bundle, name):
    return _Called(Engine(None, bundle.model(name), RECIPE.profile, name))


def _encode(bundle):
    load = partial(open_text_encoder, _on_host, bundle)
    return PromptEncoder(
        Tokenizer.load(bundle.path / "tokenizer"),
        lambda skipped: load(skipped) if skipped else _called(bundle, "text_encoder"),
    )


def _encoder(bundle):
    side = bundle.sample_size * bundle.vae_scale
    load = partial(open_engine, "onnxruntime", bundle.model("vae_encoder"), None, None, side)
    return VaeEncoder(load, bundle.scaling_factor, bundle.latent_channels)


def unrecorded(evaluations):
    """Return what stands in for recorded steps: the same work, enqueued piece by piece."""
    return lambda kind: SimpleNamespace(launch=partial(evaluations.enqueue, kind))
