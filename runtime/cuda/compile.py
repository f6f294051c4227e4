"""Compile the CUDA kernels; needs NVRTC but no GPU.

It happens when plans are built, or when an engine that needs none is first used on a GPU.
"""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path

from bksdm.engines.backend import missing
from bksdm.engines.errors import EngineError
from bksdm.runtime.cuda.device import Device, Kernel
from bksdm.storage.files import read_regular, write_file

STEPS, LOOP = "kernels.cu", "loop.cu"
"""Files of kernels: those that every picture takes, and those that repeat its steps in a graph."""
LOOP_KERNELS = ("set_steps", "repeat")
DIGEST_BYTES = hashlib.sha256().digest_size


def source(name: str = STEPS) -> str:
    """Return the CUDA source of kernels, by default of all that every picture takes."""
    return (files("bksdm.runtime.cuda") / name).read_text(encoding="utf-8")


def source_digest() -> str:
    """Return the SHA-256 of the source, by which stale machine code is told."""
    return hashlib.sha256(source().encode()).hexdigest()


def compile_kernels(target: str, name: str = STEPS) -> bytes:
    """Return the machine code (cubin) of kernels for a compute capability such as ``sm89``.

    Raises
    ------
    EngineError
        cuda-core is not installed, or NVRTC does not know the target.
    """
    try:
        from cuda.core import Program, ProgramOptions
    except ImportError as error:
        raise EngineError(missing("cuda-core", "tensorrt-rtx")) from error
    if "tensorrt_rtx" in sys.modules:
        return _compile_apart(target, name)
    options = ProgramOptions(arch=target.replace("sm", "sm_"), std="c++17")
    try:
        code = Program(source(name), "c++", options=options).compile("cubin").code
    except Exception as error:  # NVRTC's errors share no base with their messages
        reason = str(error).strip().splitlines()[0]
        raise EngineError(f"kernels cannot be compiled for {target} ({reason[:200]})") from error
    return bytes(code)


def _compile_apart(target: str, name: str) -> bytes:
    """Compile in another process: NVRTC aborts one in which TensorRT RTX has built an engine."""
    code = (
        "import sys; from bksdm.runtime.cuda.compile import compile_kernels; "
        "sys.stdout.buffer.write(compile_kernels(*sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, target, name], capture_output=True)
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason was given"]
        raise EngineError(told[-1].partition("EngineError: ")[2] or told[-1])
    return done.stdout


def stored_kernels(target: str, folder: Path) -> bytes:
    """Return the machine code that lies in a folder; what is missing or damaged is made anew.

    Raises
    ------
    EngineError
        As :func:`compile_kernels`.
    """
    file = folder / f"kernels-{target}-{source_digest()[:12]}.cubin"
    with contextlib.suppress(OSError):
        content = read_regular(file)
        digest, code = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if hashlib.sha256(code).digest() == digest:
            return code
    code = compile_kernels(target)
    # A read-only or full disk costs only the faster next start.
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        write_file(file, hashlib.sha256(code).digest() + code)
    return code


def loader(device: Device, code: bytes) -> Callable[[str], Kernel]:
    """Return what loads a kernel by its name, once.

    Parameters
    ----------
    device : Device
        The GPU.
    code : bytes
        Of :data:`STEPS`; :data:`LOOP` is compiled when it is first asked for.
    """
    loop = cache(lambda: compile_kernels(device.target, LOOP))
    return cache(lambda name: device.load(loop() if name in LOOP_KERNELS else code, name))
