"""A checkpoint of its own for every test that spoils one."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture
def checkpoint(nano_checkpoint, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(nano_checkpoint, folder)
    return folder
