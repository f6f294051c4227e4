"""Freed tensors go back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Large blocks between small ones that stay; then the large ones are freed.
PROGRAM = """
import sys
import numpy as np
from bksdm.engines.heap import return_freed_memory

if sys.argv[1] == "on":
    return_freed_memory()

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

for size in range(1, 31):
    np.ones(size << 20, np.uint8)
before = resident()
large, small = [], []
for _ in range(40):
    large.append(np.ones(8 << 20, np.uint8))
    small.append(np.ones(60_000, np.uint8))
del large
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is on Linux")
def test_freed_blocks_between_others_are_returned():
    kept = {
        mode: int(subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True,
                                 text=True, check=True).stdout)
        for mode in ("off", "on")
    }  # fmt: skip
    assert kept["on"] < 20e6
    # What this is for; a C library without the effect would not need it.
    assert kept["off"] > kept["on"]
