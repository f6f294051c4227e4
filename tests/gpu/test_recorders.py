"""ONNX Runtime on a GPU: whoever records its kernels, the picture is the same."""

from __future__ import annotations

from functools import partial

import pytest

from bksdm.benchmarks.gpu.counted import CountedGpu
from bksdm.benchmarks.gpu.drawing import opened_model
from bksdm.engines.onnxruntime_cuda import CudaNetwork
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.cuda.opened_networks import OpenedNetworks

pytestmark = pytest.mark.gpu
ARGUMENTS = {"num_inference_steps": 6, "guidance_interval": (0.0, 0.5), "seed": 5}


@pytest.fixture
def draw(cuda_provider, nano_bundle_fp16):
    """A model by the name of who records, and its GPU."""

    def load(recorder):
        bundle, device = Bundle.open(nano_bundle_fp16), CountedGpu()
        open_network = partial(CudaNetwork, recorder=recorder)
        networks = OpenedNetworks(bundle, open_network, device, 0, bundle.path / "engines")
        return opened_model(bundle, networks, device), device

    return load


@pytest.mark.parametrize("recorder", ["loop", "onnxruntime"])
def test_a_recording_draws_what_its_kernels_draw(draw, recorder):
    plain, _ = draw("nobody")
    expected = plain("a", **ARGUMENTS).pixels
    model, device = draw(recorder)
    # The second one comes from recordings alone.
    for _ in range(2):
        device.counts.clear()
        assert (model("a", **ARGUMENTS).pixels == expected).all()
    assert device.counts["synchronisations"] == 1
    assert device.counts["allocations"] == 0
    assert (device.counts["graph launches"] > 0) == (recorder == "loop")
