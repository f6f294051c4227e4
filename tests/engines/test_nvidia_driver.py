"""What the driver is asked, on a stand-in with its calls; only a GPU tells more."""

from __future__ import annotations

import ctypes

import pytest

from bksdm.engines.errors import EngineError
from bksdm.engines.nvidia_driver import DriverRecord, GpuRecord, describe_driver


def put(target, value):
    """Write to what a call was given by reference."""
    target._obj.value = value
    return 0


class Driver:
    """``libcuda`` with two GPUs; a call fails that is named."""

    fails = None
    GPUS = (("NVIDIA L4", (8, 9), 23 * 2**30), ("NVIDIA H100", (9, 0), 80 * 2**30))

    def __getattribute__(self, name):
        found = object.__getattribute__(self, name)
        return (lambda *arguments: 100) if name == object.__getattribute__(self, "fails") else found

    def cuInit(self, flags):
        return 0

    def cuDriverGetVersion(self, version):
        return put(version, 13010)

    def cuDeviceGetCount(self, count):
        return put(count, len(self.GPUS))

    def cuDeviceGet(self, device, index):
        return put(device, index)

    def cuDeviceGetName(self, name, size, device):
        name.value = self.GPUS[device.value][0].encode()
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h.
        return put(value, self.GPUS[device.value][1][{75: 0, 76: 1}[attribute]])

    def cuDeviceTotalMem_v2(self, size, device):
        return put(size, self.GPUS[device.value][2])

    def cuGetErrorName(self, status, text):
        return put(text, b"CUDA_ERROR_NO_DEVICE" if status == 100 else None)


class Management:
    """NVML."""

    closed = False

    def nvmlInit_v2(self):
        return 0

    def nvmlSystemGetDriverVersion(self, text, size):
        text.value = b"580.65.06"
        return 0

    def nvmlShutdown(self):
        self.closed = True
        return 0


def test_driver_and_gpus_are_described():
    management = Management()
    assert describe_driver(Driver(), management) == DriverRecord(
        "580.65.06",
        "13.1",
        (
            GpuRecord("NVIDIA L4", "8.9", 23 * 2**30),
            GpuRecord("NVIDIA H100", "9.0", 80 * 2**30),
        ),
    )
    assert management.closed
    assert describe_driver(Driver(), None).version == ""


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGetName"])
def test_a_call_that_fails_is_named(call):
    driver = Driver()
    driver.fails = call
    with pytest.raises(EngineError, match=rf"{call}: CUDA_ERROR_NO_DEVICE"):
        describe_driver(driver, None)


def test_the_attributes_are_those_of_the_driver():
    """As NVIDIA's own binding has them."""
    driver = pytest.importorskip("cuda.bindings.driver")
    names = driver.CUdevice_attribute
    assert names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR == 75
    assert names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR == 76
    assert ctypes.sizeof(ctypes.c_int) == 4
