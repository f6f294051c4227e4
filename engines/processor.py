"""What a processor is called, and what it can do."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path


def processor_name() -> str:
    """Return the processor's name."""
    return _from_cpuinfo(("model name",)) or platform.processor() or platform.machine()


def vector_extensions() -> str:
    """Return what decides how weights are laid out: the processor's vector extensions."""
    found = _from_cpuinfo(("flags", "Features"))
    return found or f"{platform.machine()} {platform.processor()}"


def _from_cpuinfo(fields: tuple[str, ...]) -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(fields):
                return line.partition(":")[2].strip()
    return ""
