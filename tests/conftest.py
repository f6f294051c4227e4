"""Checkpoints and bundles that several tests share; a trace of one network takes a while."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported: its threads wait for each other by spinning, which on networks as small
# as these takes most of the time, and on a busy machine twenty times as much as the work.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser):
    parser.addoption("--bundle", type=Path, help="float16 bundle with engines, for -m gpu")


@pytest.fixture(scope="session")
def nano_checkpoint(tmp_path_factory):
    from bksdm.export.dummy import create_dummy

    folder = tmp_path_factory.mktemp("checkpoints") / "nano"
    create_dummy("nano", folder)
    return folder


@pytest.fixture(scope="session")
def nano_bundle(nano_checkpoint, tmp_path_factory):
    from bksdm.export.exporter import export

    folder = tmp_path_factory.mktemp("bundles") / "nano"
    export(nano_checkpoint, folder, "float32")
    return folder


@pytest.fixture(scope="session")
def nano_bundle_fp16(nano_checkpoint, tmp_path_factory):
    from bksdm.export.exporter import export

    folder = tmp_path_factory.mktemp("bundles") / "nano-fp16"
    export(nano_checkpoint, folder, "float16")
    return folder
