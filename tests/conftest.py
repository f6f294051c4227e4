"""Checkpoints and bundles that several tests share; a trace of one network takes a while."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Before torch is imported: its threads wait for each other by spinning, which on networks as small
# as these takes most of the time, and on a busy machine twenty times as much as the work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
WORKER = "PYTEST_XDIST_WORKER"


def pytest_addoption(parser):
    parser.addoption("--bundle", type=Path, help="float16 bundle with engines, for -m gpu")


def pytest_configure(config):
    """Let the workers of a session share a user's cache that is nobody's."""
    if WORKER not in os.environ:
        config.user_cache = tempfile.mkdtemp(prefix="bksdm-tests-")
        os.environ["XDG_CACHE_HOME"] = config.user_cache
    else:
        _take_one_thread()


def _take_one_thread():
    """Let ONNX Runtime compute with one thread where nobody says how many.

    Workers draw side by side. With threads for the whole machine in each, they take a quarter more
    of the processors' time, in which they wait for one another.
    """
    from bksdm.engines import onnxruntime

    usual = onnxruntime._options
    onnxruntime._options = lambda threads, profile: usual(threads or 1, profile)


def pytest_collection_finish():
    """Leave what imports made out of garbage collections, of which every export makes eight."""
    gc.freeze()


def pytest_unconfigure(config):
    if WORKER not in os.environ:
        shutil.rmtree(config.user_cache, ignore_errors=True)


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """Return a folder by its name, made by the first worker of the session that asks for it."""
    from bksdm.storage.files import alone

    root = tmp_path_factory.getbasetemp()
    root = root.parent if WORKER in os.environ else root

    def folder(name, make):
        place = root / "shared" / name
        place.mkdir(parents=True, exist_ok=True)
        with alone(place):
            if not (place / "nano").exists():
                make(place / "nano")
        return place / "nano"

    return folder


@pytest.fixture(scope="session")
def nano_checkpoint(shared):
    from bksdm.export.dummy import create_dummy

    return shared("checkpoints", lambda folder: create_dummy("nano", folder))


@pytest.fixture(scope="session")
def nano_bundle(nano_checkpoint, shared):
    from bksdm.export.exporter import export

    return shared("bundles", lambda folder: export(nano_checkpoint, folder, "float32"))


@pytest.fixture(scope="session")
def dummy_of(shared):
    """Return checkpoint and bundle of a dummy model by its name."""
    from bksdm.export.dummy import create_dummy
    from bksdm.export.exporter import export

    def pair(name):
        checkpoint = shared(f"checkpoints-{name}", lambda folder: create_dummy(name, folder))
        return checkpoint, shared(f"bundles-{name}", lambda folder: export(checkpoint, folder))

    return pair


@pytest.fixture(scope="session")
def short_checkpoint(shared):
    """Nano with a UNet of two blocks: half as long to trace, and of the same parts."""
    from bksdm.export import dummy

    def make(folder):
        unet = {
            **dummy.unet_config("nano"),
            "block_out_channels": (16, 32),
            "attention_head_dim": (1, 2),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dummy, "unet_config", lambda name: unet)
            dummy.create_dummy("nano", folder)

    return shared("short-checkpoints", make)


@pytest.fixture(scope="session")
def nano_bundle_fp16(short_checkpoint, shared):
    from bksdm.export.exporter import export

    return shared("bundles-fp16", lambda folder: export(short_checkpoint, folder, "float16"))


@pytest.fixture(scope="session")
def controlled(shared):
    """Checkpoint, ControlNets by name, and bundle: two blocks of Stable Diffusion's kind.

    ``canny`` and ``depth`` are of the same kind; ``shuffle`` has one value per channel, as
    lllyasviel's ControlNet of that name, and takes colours in another order.
    """
    import json

    from bksdm.export import dummy
    from bksdm.export.exporter import export
    from bksdm.export.prepared import Parts

    def make(folder):
        unet = {
            **dummy.unet_config("nano-base"),
            "layers_per_block": 2,
            "block_out_channels": (16, 32),
            "attention_head_dim": (1, 2),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dummy, "unet_config", lambda name: unet)
            dummy.create_dummy("nano-base", folder, controlnet=True)
            for seed, name in enumerate(("depth", "shuffle"), 1):
                other = folder.parent / f"other-{name}"
                dummy.create_dummy("nano-base", other, seed, controlnet=True)
                shutil.move(other / "controlnet", folder.parent / name)
                shutil.rmtree(other)
        config = folder.parent / "shuffle" / "config.json"
        fields = json.loads(config.read_text())
        fields |= {"global_pool_conditions": True, "controlnet_conditioning_channel_order": "bgr"}
        config.write_text(json.dumps(fields))

    checkpoint = shared("controlled-checkpoints", make)
    nets = {
        "canny": checkpoint / "controlnet",
        "depth": checkpoint.parent / "depth",
        "shuffle": checkpoint.parent / "shuffle",
    }
    parts = Parts(controlnets={name: str(folder) for name, folder in nets.items()})
    bundle = shared("controlled-bundles", lambda folder: export(checkpoint, folder, parts=parts))
    return checkpoint, nets, bundle
