"""Name and capabilities of the processor."""

from __future__ import annotations

import contextlib
import functools
import platform
from pathlib import Path


def processor_name() -> str:
    """Return the processor's name."""
    return _from_cpuinfo(("model name",)) or platform.processor() or platform.machine()


def vector_extensions() -> str:
    """Return the processor's vector extensions, which decide the layout of weights."""
    found = _from_cpuinfo(("flags", "Features"))
    return found or f"{platform.machine()} {platform.processor()}"


@functools.cache
def is_zen() -> bool:
    """Return whether the processor is AMD's Zen 3, 4 or 5, whose estimates of roots are known."""
    vendor, family = (_from_cpuinfo((field,)) for field in ("vendor_id", "cpu family"))
    return vendor == "AuthenticAMD" and family in ("25", "26")


def _from_cpuinfo(fields: tuple[str, ...]) -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(fields):
                return line.partition(":")[2].strip()
    return ""
