"""Networks that run one after the other use the same memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.optimize.test_rewrite import small_model

# Two networks with an inner tensor of 96 MiB each; resident memory after one and after both.
PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from bksdm.engines.onnxruntime import OnnxRuntimeEngine

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

engines = [OnnxRuntimeEngine(Path(sys.argv[1])) for _ in range(2)]
x = np.ones((1, 1), np.float32)
before = resident()
for engine in engines:
    assert engine({"x": x})["y"].item() == 1
    print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from Linux's /proc")
def test_networks_share_their_memory(tmp_path):
    wide = numpy_helper.from_array(np.array([3 * 2**23, 1]), "wide")
    nodes = [
        helper.make_node("Expand", ["x", "wide"], ["inner"]),
        helper.make_node("ReduceMax", ["inner"], ["y"]),
    ]
    onnx.save(small_model(nodes, [wide], ["n", 1]), tmp_path / "model.onnx")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "model.onnx")]
    one, both = map(int, subprocess.check_output(command, text=True).split())
    assert one > 96 * 2**20
    assert both < 1.1 * one
