"""What the benchmarks of the GPU measure of ONNX Runtime, on a driver of host memory."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

from bksdm.benchmarks.gpu import provider as measured
from bksdm.benchmarks.gpu.provider import Settings, measure_pictures, measure_settings, roofline
from bksdm.engines.onnxruntime_cuda import preparation
from bksdm.engines.onnxruntime_session import CPU_PROVIDER
from bksdm.optimize.rules import Rules
from bksdm.runtime.bundle import Bundle

from .test_onnxruntime_cuda import bundle, opened, provider  # noqa: F401

SETTINGS = Settings(steps=2, repeat=2)


@pytest.mark.parametrize("recorder", measured.RECORDERS)
def test_pictures_are_timed_counted_and_compared(request, monkeypatch, device, recorder):
    request.getfixturevalue("provider")()
    folder = request.getfixturevalue("bundle")
    monkeypatch.setattr(measured, "CountedGpu", lambda: device)
    monkeypatch.setattr(measured, "_free_memory", lambda: 0)
    expected = np.zeros((1, 64, 64, 3), np.uint8)
    found = measure_pictures(Bundle.open(folder), recorder, SETTINGS, expected)
    assert set(found["stages"]) == {"tokenize", "enqueue", "wait", "picture"}
    assert found["stages"]["picture"]["n"] == 2
    assert found["counts"]["synchronisations"] == 1
    assert "allocations" not in found["counts"]
    # PNDM evaluates once more.
    assert found["counts"].get("graph launches", 0) == (3 if recorder == "loop" else 0)
    assert {name: entry["n"] for name, entry in found["networks"].items()} == {
        "text_encoder": 2,
        "unet": 2,
        "vae_decoder": 2,
    }
    assert found["distance"]["psnr"] < 99
    assert found["same_again"]


def test_nodes_are_counted_by_provider(nano_bundle_fp16, tmp_path, monkeypatch):
    folder = tmp_path / "nano"
    shutil.copytree(nano_bundle_fp16, folder, ignore=shutil.ignore_patterns("engines"))
    model = folder / "unet" / "model.onnx"
    # The CPU has no kernels for what the CUDA provider's graph is made of.
    plain = dataclasses.replace(preparation(model), rules=Rules(attention=True))
    monkeypatch.setattr(measured, "preparation", lambda model: plain)
    found = measure_settings(model, {}, (8, 8), 2, CPU_PROVIDER)
    assert found["seconds"]["n"] == 2
    assert set(found["nodes"]) == {CPU_PROVIDER}
    assert sum(n for kind, n in found["nodes"][CPU_PROVIDER].items() if "Conv" in kind) > 10


def test_the_bound_is_that_of_the_gpus_datasheet(nano_bundle_fp16):
    model = Bundle.open(nano_bundle_fp16)
    h100, h200 = (roofline(model, name, (8, 8)) for name in ("NVIDIA H100 80GB", "NVIDIA H200"))
    assert h200["peak"]["name"] == "H200 SXM"
    assert h100["unet_bound_seconds"] >= h200["unet_bound_seconds"] > 0
    assert roofline(model, "Abacus 9000", (8, 8)) == {}


def test_a_part_that_fails_is_a_reason(nano_bundle_fp16, tmp_path, monkeypatch):
    """The real command, without a GPU."""
    monkeypatch.setattr(measured, "RECORDERS", ("nobody",))
    monkeypatch.setattr(measured, "CHOICES", {})
    monkeypatch.setattr(measured, "COMPONENTS", ())
    picture, said = tmp_path / "cpu.png", []
    settings = dataclasses.replace(SETTINGS, steps=1)
    record = measured.measure_provider(nano_bundle_fp16, settings, picture, 300, said.append)
    assert picture.exists()
    assert said[0] == "the CPU's picture"
    assert record["kind"] == "gpu-provider"
    (reason,) = (part["reason"] for part in record["parts"].values())
    assert "EngineError: no NVIDIA GPU or driver was found" in reason
