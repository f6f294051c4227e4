"""NVIDIA's driver and the GPUs that it shows, asked without any package.

Sources: CUDA Driver API, "Device Management"; NVML API reference, "System Queries".
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

from bksdm.engines.errors import EngineError

WINDOWS = sys.platform == "win32"
LIBRARY = "nvcuda.dll" if WINDOWS else "libcuda.so.1"
MANAGEMENT_LIBRARY = "nvml.dll" if WINDOWS else "libnvidia-ml.so.1"
NO_DRIVER = f"no NVIDIA driver ({LIBRARY}) was found"
# CUdevice_attribute.
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
LONGEST = 256


@dataclass(frozen=True)
class GpuRecord:
    """A GPU.

    Attributes
    ----------
    name : str
        As the driver has it.
    capability : str
        Its compute capability, as ``8.9``.
    memory : int
        Bytes.
    """

    name: str
    capability: str
    memory: int


@dataclass(frozen=True)
class DriverRecord:
    """The driver and its GPUs.

    Attributes
    ----------
    version : str
        Of the driver; empty where NVML is not there to say it.
    cuda : str
        The newest CUDA that it runs, as ``13.0``.
    gpus : tuple of GpuRecord
        In its order; ``CUDA_VISIBLE_DEVICES`` chooses.
    """

    version: str
    cuda: str
    gpus: tuple[GpuRecord, ...]


def load_driver() -> Any:
    """Return the driver's library; None where there is none."""
    return _load(LIBRARY)


def describe_driver(cuda: Any, management: Any) -> DriverRecord:
    """Ask the driver.

    Parameters
    ----------
    cuda
        Of :func:`load_driver`.
    management
        Of :func:`load_management`; may be None.

    Raises
    ------
    EngineError
        A call failed, as ``cuInit`` does without a GPU.
    """
    count, version = ctypes.c_int(), ctypes.c_int()
    _call(cuda, "cuInit", 0)
    _call(cuda, "cuDriverGetVersion", ctypes.byref(version))
    _call(cuda, "cuDeviceGetCount", ctypes.byref(count))
    return DriverRecord(
        _driver_version(management),
        f"{version.value // 1000}.{version.value % 1000 // 10}",
        tuple(_describe(cuda, index) for index in range(count.value)),
    )


def load_management() -> Any:
    """Return NVML; None where it is not there."""
    return _load(MANAGEMENT_LIBRARY)


def _load(library: str) -> Any:
    try:
        return ctypes.CDLL(library)
    except OSError:
        return None


def _describe(cuda: Any, index: int) -> GpuRecord:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    memory, name = ctypes.c_size_t(), ctypes.create_string_buffer(LONGEST)
    _call(cuda, "cuDeviceGet", ctypes.byref(device), index)
    _call(cuda, "cuDeviceGetName", name, LONGEST, device)
    _call(cuda, "cuDeviceGetAttribute", ctypes.byref(major), CAPABILITY_MAJOR, device)
    _call(cuda, "cuDeviceGetAttribute", ctypes.byref(minor), CAPABILITY_MINOR, device)
    _call(cuda, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    told = name.value.decode(errors="replace")
    return GpuRecord(told, f"{major.value}.{minor.value}", memory.value)


def _call(cuda: Any, function: str, *arguments: Any) -> None:
    status = getattr(cuda, function)(*arguments)
    if status:
        text = ctypes.c_char_p()
        cuda.cuGetErrorName(status, ctypes.byref(text))
        reason = (text.value or b"").decode(errors="replace") or f"error {status}"
        raise EngineError(f"the NVIDIA driver shows no GPU ({function}: {reason})")


def _driver_version(management: Any) -> str:
    if management is None or management.nvmlInit_v2():
        return ""
    text = ctypes.create_string_buffer(LONGEST)
    failed = management.nvmlSystemGetDriverVersion(text, LONGEST)
    management.nvmlShutdown()
    return "" if failed else text.value.decode(errors="replace")
