"""A checkpoint of its own for every test that spoils one."""

from __future__ import annotations

import shutil

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """More of them take ten times the processor for networks that are so small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def checkpoint(nano_checkpoint, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(nano_checkpoint, folder)
    return folder
