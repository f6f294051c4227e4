"""Memory that a picture needs is told beforehand, and too much of it is refused."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from bksdm.engines.errors import RequestError
from bksdm.models import EMOJI
from bksdm.runtime import memory
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.memory import free_bytes, needed_bytes, require_memory, total_bytes

PROGRAM = """
import sys
from pathlib import Path
from bksdm.runtime.pipeline import TextToImage
side = int(sys.argv[1])
TextToImage.load()("a", height=side, width=side, num_inference_steps=1, seed=0)
status = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("side", [128, pytest.param(1024, marks=pytest.mark.slow)])
def test_the_estimate_is_near_the_peak(side):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(side)], capture_output=True, text=True, check=True
    )
    peak = int(done.stdout) * 1024
    needed = needed_bytes(Bundle.open(EMOJI), (1, 4, side // 8, side // 8), True)
    # What the libraries take is a guess, and the greater part of a small picture.
    assert 0.7 < needed / peak < 1.5


def test_more_of_anything_needs_more():
    bundle = Bundle.open(EMOJI)
    base = needed_bytes(bundle, (4, 4, 64, 64), True)
    assert needed_bytes(bundle, (4, 4, 128, 64), True) > base
    assert needed_bytes(bundle, (8, 4, 64, 64), True) > base
    assert needed_bytes(bundle, (4, 4, 64, 64), False) < base


def test_too_much_is_refused_with_both_figures(monkeypatch):
    bundle = Bundle.open(EMOJI)
    monkeypatch.setattr(memory, "free_bytes", lambda: 3 * 10**9)
    require_memory(bundle, (1, 4, 16, 16), True, "onnxruntime")
    with pytest.raises(
        RequestError, match=r"would take about \d+\.\d GB of memory, and 3\.0 GB are"
    ):
        require_memory(bundle, (1, 4, 1024, 1024), True, "onnxruntime")
    monkeypatch.setattr(memory, "free_bytes", lambda: None)
    require_memory(bundle, (1, 4, 1024, 1024), True, "onnxruntime")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_free_memory_is_what_can_be_taken():
    free, usable = free_bytes(), total_bytes()
    assert free is not None
    assert usable is not None
    pages = resource.getpagesize()
    with open("/proc/meminfo") as lines:
        total = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal"))
    assert pages < free <= usable <= total
