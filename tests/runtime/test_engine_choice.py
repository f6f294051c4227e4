"""``auto`` on machines with a GPU, and with less than it takes."""

from __future__ import annotations

import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest

from bksdm.engines import registry
from bksdm.engines.errors import EngineError
from bksdm.engines.nvidia_driver import DriverRecord, GpuRecord
from bksdm.runtime import engine_choice
from bksdm.runtime.engine_choice import engine_for

GPUS = (GpuRecord("a", "9.0", 80 * 10**9),)


def nothing_lacks():
    pass


def libraries_lack():
    warnings.warn("unless the system has them, it lacks nvidia-cudnn-cu13", stacklevel=2)


def package_lacks():
    raise EngineError("ONNX Runtime has no CUDA provider here")


def no_gpu(driver, management):
    raise EngineError("the NVIDIA driver shows no GPU")


@pytest.fixture
def machine(monkeypatch):
    def set_up(
        check=nothing_lacks, driver=True, describe=lambda *_: DriverRecord("", "13.0", GPUS)
    ):
        found = {
            name: replace(engine, check=check) if engine.open_on_device else engine
            for name, engine in registry.backends().items()
        }
        monkeypatch.setattr(engine_choice, "backends", lambda: found)
        monkeypatch.setattr(
            engine_choice, "load_driver", lambda: SimpleNamespace() if driver else None
        )
        monkeypatch.setattr(engine_choice, "describe_driver", describe)

    return set_up


@pytest.fixture
def bundles(monkeypatch):
    """Bundles of a type each."""

    def read(dtype):
        return SimpleNamespace(inputs={"sample": SimpleNamespace(dtype=dtype)})

    monkeypatch.setattr(engine_choice.GraphFile, "read", read)
    return {
        dtype: SimpleNamespace(model=lambda network, dtype=dtype: dtype)
        for dtype in ("float16", "float32")
    }


def test_a_gpu_that_can_be_used_is(machine, bundles):
    machine()
    assert engine_for(bundles["float16"], "auto") == "onnxruntime-cuda"
    assert engine_for(bundles["float32"], "auto") == "auto"
    assert engine_for(bundles["float16"], "openvino") == "openvino"


@pytest.mark.parametrize(
    "lacking",
    [
        {"check": libraries_lack},
        {"check": package_lacks},
        {"driver": False},
        {"describe": no_gpu},
        {"describe": lambda *_: DriverRecord("", "13.0", ())},
    ],
)
def test_with_less_it_is_the_cpu(machine, bundles, lacking):
    machine(**lacking)
    assert engine_for(bundles["float16"], "auto") == "auto"
