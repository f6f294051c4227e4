"""torch's networks in the loop on the GPU draw, step by step, what diffusers draws."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch

from bksdm.benchmarks.gpu import loop
from bksdm.benchmarks.gpu.loop import (
    Settings,
    around,
    compare,
    loaded_pipeline,
    measure_loop,
    piece_by_piece,
)
from bksdm.benchmarks.gpu.table import gpu_section
from bksdm.benchmarks.gpu.torch_networks import TorchNetworks

from .simulated import HOST_FUNCTION, accepted


class OnHost:
    """torch as host functions in a stream, on a driver whose addresses are the host's."""

    def __init__(self):
        self._functions = []

    def view(self, address, spec, shape):
        size = int(np.prod(shape)) * spec.dtype.itemsize
        bytes_at = (ctypes.c_uint8 * size).from_address(address)
        return torch.from_numpy(np.frombuffer(bytes_at, spec.dtype).reshape(shape))

    def enqueue(self, stream, run):
        from cuda.bindings import driver

        @HOST_FUNCTION
        def compute(_):
            with torch.inference_mode():
                run()

        self._functions.append(compute)
        pointer = ctypes.cast(compute, ctypes.c_void_p).value
        accepted(driver.cuLaunchHostFunc(stream, driver.CUhostFn(pointer), 0))


@pytest.fixture
def model(driver, device, nano_checkpoint):
    pipeline = loaded_pipeline(nano_checkpoint, "cpu", torch.float32)
    networks = TorchNetworks(pipeline, pipeline.unet, device, OnHost())
    return pipeline, around(pipeline, nano_checkpoint, networks, device)


def test_latents_after_every_step_are_those_of_diffusers(model, device):
    work = Settings(side=64, steps=6)
    found = compare(*model, work)
    # Float32 sums in another order; one of 256 values may round to another float16 then.
    assert found["first_step"] < 1e-6
    assert found["worst_step"] < 1e-4
    # The loop rounds to levels, and the reference does not.
    assert found["largest_level"] < 0.6
    assert found["same_again"]
    # PNDM evaluates once more; the second picture is made of recordings alone.
    assert device.counts["graph launches"] == 2 * 7
    with piece_by_piece():
        again = compare(*model, work)
    assert again == found
    assert device.counts["graph launches"] == 2 * 7


def test_programs_take_turns_around_the_same_networks(monkeypatch, model, device, nano_checkpoint):
    """All of the benchmark, but for where torch runs; compiling takes minutes on a CPU."""
    monkeypatch.setattr(loop, "loaded_pipeline", lambda *asked: model[0])
    monkeypatch.setattr(loop, "Gpu", lambda: device)
    monkeypatch.setattr(loop, "OnGpu", OnHost)
    monkeypatch.setattr(torch.cuda, "synchronize", device.synchronize)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1)
    work = Settings(side=64, steps=1, rounds=2)
    record = measure_loop(nano_checkpoint, work)
    programs = {unet: set(entries) for unet, entries in record["turns"].items()}
    assert programs == {"eager": {"diffusers", "loop", "loop, not recorded"}}
    assert record["turns"]["eager"]["loop"]["n"] == 2
    assert set(record["stages"]) == {"tokenize", "enqueue", "wait"}
    assert gpu_section([record]).count("| loop, ") == 2
