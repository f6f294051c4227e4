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
