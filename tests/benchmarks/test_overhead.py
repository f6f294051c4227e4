"""The loops without networks run, and are measured."""

from __future__ import annotations

import pytest
import torch

from bksdm.benchmarks.overhead import report


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_all_loops_are_timed(one_thread):
    names = "diffusers", "numpy", "cuda", "in-loops"
    for line, name in zip(report(1).splitlines()[-len(names) :], names, strict=True):
        found, _, whole, ratio = line.split()
        assert found == name
        assert float(whole) > 0
        assert float(ratio) > 0
