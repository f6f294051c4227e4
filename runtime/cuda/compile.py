"""Compile the CUDA kernels; needs NVRTC but no GPU, and happens when engines are built."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from bksdm.engines.errors import EngineError


def source() -> str:
    """Return the CUDA source of all kernels."""
    return (files("bksdm.runtime.cuda") / "kernels.cu").read_text(encoding="utf-8")


def source_digest() -> str:
    """Return the SHA-256 of the source, by which stale machine code is told."""
    return hashlib.sha256(source().encode()).hexdigest()


def compile_kernels(target: str) -> bytes:
    """Return the machine code (cubin) of all kernels for a compute capability such as ``sm89``.

    Raises
    ------
    EngineError
        cuda-core is not installed, or NVRTC does not know the target.
    """
    try:
        from cuda.core import Program, ProgramOptions
    except ImportError as error:
        raise EngineError(
            "cuda-core is not installed; run: pip install 'bksdm-runtime[tensorrt-rtx]'"
        ) from error
    options = ProgramOptions(arch=target.replace("sm", "sm_"), std="c++17")
    try:
        code = Program(source(), "c++", options=options).compile("cubin").code
    except Exception as error:  # NVRTC's errors share no base with their messages
        reason = str(error).strip().splitlines()[0]
        raise EngineError(f"kernels cannot be compiled for {target} ({reason[:200]})") from error
    return bytes(code)
