"""Describe the machine and the versions to which a figure belongs."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import psutil

from bksdm.engines.packages import installed_version
from bksdm.storage.processor import processor_name

PACKAGES = (
    "bksdm-runtime",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "cuda-core",
    "cuda-bindings",
    "nvidia-cudnn-cu13",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "torch",
    "diffusers",
    "openvino",
)


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, memory, GPUs, system and versions of installed packages.

    Where there is a GPU, ``driver`` is the version of NVIDIA's driver.
    """
    gpus = _nvidia_smi("gpu", "name,driver_version")
    return {
        "processor": processor_name(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpus": [name for name, _ in gpus],
        **({"driver": gpus[0][1]} if gpus else {}),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": _versions(),
    }


def peak_memory() -> int:
    """Return the peak resident memory of this process, in bytes."""
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):
        return int(info.peak_wset)
    status = Path("/proc/self/status")
    if status.is_file():
        # The system's other figure starts from that of the process that started this one.
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) * 1024
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_memory() -> int | None:
    """Return the bytes of GPU memory that this process holds, by nvidia-smi; None without one."""
    rows = _nvidia_smi("compute-apps", "pid,used_memory")
    own = [int(used) * 2**20 for pid, used in rows if int(pid) == psutil.Process().pid]
    return sum(own) if own else None


def _nvidia_smi(what: str, fields: str) -> list[list[str]]:
    """Return rows of nvidia-smi's output; none if the command or the driver is missing."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    done = subprocess.run(
        [command, f"--query-{what}={fields}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return [[field.strip() for field in line.split(",")] for line in lines if line.strip()]


def _versions() -> dict[str, str]:
    found = ((name, installed_version(name)) for name in PACKAGES)
    return {name: version for name, version in found if version is not None}
