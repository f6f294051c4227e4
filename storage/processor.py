"""Name and capabilities of the processor."""

from __future__ import annotations

import contextlib
import functools
import platform
from pathlib import Path

EXTENSIONS = (
    *("avx", "f16c", "fma", "avx2", "avx_vnni"),
    *("avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16"),
    *("asimd", "fphp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
"""Names that Linux gives them, of x86 and of ARM."""


def processor_name() -> str:
    """Return the processor's name."""
    return _from_cpuinfo(("model name",)) or platform.processor() or platform.machine()


def vector_extensions() -> str:
    """Return the processor's vector extensions, which decide the layout of weights."""
    found = _from_cpuinfo(("flags", "Features"))
    return found or f"{platform.machine()} {platform.processor()}"


def known_extensions() -> list[str]:
    """Return those of the vector extensions that kernels are written for, in their order here."""
    found = set(vector_extensions().split())
    return [name for name in EXTENSIONS if name in found]


def computes_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16, which others only imitate."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"}.intersection(known_extensions()))


@functools.cache
def is_zen() -> bool:
    """Return whether the processor is AMD's Zen 3, 4 or 5, whose estimates of roots are known."""
    vendor, family = (_from_cpuinfo((field,)) for field in ("vendor_id", "cpu family"))
    return vendor == "AuthenticAMD" and family in ("25", "26")


@functools.cache
def is_intel_avx512() -> bool:
    """Return whether the processor is one of Intel's with AVX-512."""
    vendor, flags = (_from_cpuinfo((field,)) for field in ("vendor_id", "flags"))
    return vendor == "GenuineIntel" and "avx512f" in flags.split()


def _from_cpuinfo(fields: tuple[str, ...]) -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(fields):
                return line.partition(":")[2].strip()
    return ""
