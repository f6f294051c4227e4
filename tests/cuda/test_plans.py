"""Plans of both TensorRTs, those that cannot be recorded, and those that are refused."""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import pytest

from bksdm.engines.backend import Capabilities
from bksdm.engines.errors import EngineError, RequestError
from bksdm.engines.tensorrt_context import LoadedPlan
from bksdm.runtime.device_name import gpu_index

from .conftest import RECIPE
from .test_session import COMMON, MASK, drawn


@pytest.fixture
def expected(load, built):
    return load(built)(**COMMON).pixels


def test_plans_of_both_kinds_draw_the_same(load, built, device, expected):
    """Tensorrt lacks much of what tensorrt-rtx has; a name that it lacks is an AttributeError."""
    model = load(built, flavour="tensorrt")
    for _ in range(2):
        device.counts.clear()
        result = model(**COMMON)
        np.testing.assert_array_equal(result.pixels, expected)
        assert device.counts["graph launches"] == result.steps


@pytest.mark.parametrize("flavour", ["tensorrt-rtx", "tensorrt"])
def test_a_unet_that_cannot_be_recorded_runs_with_one_warning(
    load, built, device, expected, flavour
):
    model = load(built, flavour=flavour)
    unet = device.engines[b"unet"]
    if flavour == "tensorrt":
        # It does not say so, but breaks a recording.
        unet.waits = True
        reason = "recording failed"
    else:
        unet.recordable = False
        reason = "TensorRT says so"
    with pytest.warns(UserWarning, match=f"^the UNet cannot run in a CUDA graph .{reason}"):
        found = model(**COMMON)
    np.testing.assert_array_equal(found.pixels, expected)
    unet.waits = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Another way to do a step, another size, and the same once more.
        model(**COMMON, guidance_interval=(0.0, 0.5))
        model(**COMMON, width=96)
        device.counts.clear()
        np.testing.assert_array_equal(model(**COMMON).pixels, expected)
    assert device.counts["graph launches"] == 0
    assert device.counts["plans"] == 2 + found.steps
    assert device.counts["synchronisations"] == 1


def test_an_address_that_is_refused_is_an_error(load, built, device):
    model = load(built)
    device.engines[b"vae_decoder"].takes_addresses = False
    with pytest.raises(EngineError, match="vae_decoder: TensorRT does not take the address of"):
        model(**COMMON)


def test_plans_without_the_flag_for_recording_are_stale(load, built, tmp_path):
    folder = tmp_path / "nano"
    shutil.copytree(built, folder)
    file = folder / "engines" / RECIPE.name / "engine.json"
    record = json.loads(file.read_text())
    del record["flags"]
    file.write_text(json.dumps(record))
    with pytest.raises(EngineError, match=r"flags is None, wanted .'REQUIRE_USER"):
        load(folder)


def test_a_plan_for_two_pictures_encodes_one(load, built, monkeypatch):
    model = load(built)
    expected, latents = drawn(model, **MASK)
    least = LoadedPlan.least_rows
    monkeypatch.setattr(
        LoadedPlan,
        "least_rows",
        lambda plan, name: 2 if name == "sample" else least(plan, name),
    )
    pixels, found = drawn(load(built), **MASK)
    np.testing.assert_array_equal(found, latents)
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize(("device_name", "index"), [(None, 0), ("cuda", 0), ("cuda:12", 12)])
def test_a_gpu_has_torchs_name(device_name, index):
    assert gpu_index(device_name, Capabilities("tensorrt", on_device=True)) == index


@pytest.mark.parametrize("device_name", ["cpu", "cuda:", "cuda:-1", "cuda:x", 1, "CUDA:1"])
def test_other_names_are_refused(device_name):
    with pytest.raises(RequestError, match=r"^device must be cuda or cuda:N"):
        gpu_index(device_name, Capabilities("tensorrt", on_device=True))


def test_an_engine_on_the_cpu_has_no_gpu():
    with pytest.raises(RequestError, match="the engine onnxruntime has no choice"):
        gpu_index("cuda:1", Capabilities("onnxruntime"))
