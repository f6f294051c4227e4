"""A driver to run the loop on where there is none: one made of host memory."""

from __future__ import annotations

import ctypes
import re
import subprocess
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from bksdm.runtime.cuda.compile import LOOP, STEPS, source

SOURCES = Path(__file__).parent / "fake_driver"
# Of the driver of Linux, and of the Windows below WSL.
DEVICES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
MEMORY = 16 << 30
ALIGNMENTS = {
    "Control": 8,
    "double": 8,
    "long long": 8,
    "float": 4,
    "unsigned short": 2,
    "unsigned char": 1,
}


def has_gpu():
    """Whether the machine has a driver with a GPU."""
    return any(path.exists() for path in DEVICES)


def kernel_arguments(source):
    """Return every kernel of a CUDA source as a row of C++: its name, and how arguments align."""
    found = re.findall(r'extern "C" __global__ void (\w+)\(([^)]*)\)', source)
    rows = []
    for name, parameters in found:
        kinds = [re.match(r"\s*(?:const )?(.*?)(\*?) \w+$", p) for p in parameters.split(",")]
        aligned = [ALIGNMENTS[kind[1]] if kind[2] else 0 for kind in kinds]
        rows.append(f'{{"{name}", {{{", ".join(map(str, aligned))}}}}},')
    return "\n".join(rows)


def absent_functions():
    """Return C++ for every function of the driver that cuda-bindings knows."""
    declared = files("cuda.bindings") / "cydriver.pxd"
    names = re.findall(r"^cdef CUresult (cu\w+)\(", declared.read_text(), re.MULTILINE)
    assert "cuStreamSynchronize" in names
    return "\n".join(f'Result absent_{name}() {{ return absent("{name}"); }}' for name in names)


def compile_driver(folder):
    """Compile fake_driver/, and the kernels for the host, into a folder; return the library."""
    kernels = folder / "kernels.cpp"
    folder.mkdir(parents=True)
    kernels.write_text("\n".join(map(source, (STEPS, LOOP))))
    (folder / "kernel_arguments.inc").write_text(kernel_arguments(kernels.read_text()))
    (folder / "absent_functions.inc").write_text(absent_functions())
    library = folder / "libcuda.so.1"
    command = ["g++", "-std=c++17", "-O2", "-shared", "-fPIC", "-pthread", "-Wall", "-Werror"]
    # Every product is rounded, as numpy does.
    command += ["-ffp-contract=off", f"-I{folder}", f"-Wl,-soname,{library.name}"]
    driver, on_host = folder / "driver.o", folder / "kernels.o"
    shim = ["-include", str(SOURCES / "shim.h")]
    subprocess.run([*command, "-c", str(SOURCES / "driver.cpp"), "-o", str(driver)], check=True)
    subprocess.run([*command, "-c", *shim, str(kernels), "-o", str(on_host)], check=True)
    subprocess.run([*command, str(driver), str(on_host), "-o", str(library), "-ldl"], check=True)
    return library


class FakeDriver:
    """The driver of host memory; whoever asks for libcuda.so.1 in this process gets it.

    It has no GPU but inside of a ``with`` block.
    """

    def __init__(self, library):
        self._library = ctypes.CDLL(str(library))
        self._library.fake_in_use.restype = ctypes.c_size_t

    def __enter__(self):
        self._library.fake_set_present(1)
        return self

    def __exit__(self, *error):
        self._library.fake_set_present(0)

    @property
    def in_use(self):
        """Bytes of memory that are allocated."""
        return self._library.fake_in_use()

    @property
    def recordings(self):
        """How many are under way."""
        return self._library.fake_recordings()

    @contextmanager
    def strict(self):
        """Refuse host functions in loops of graphs inside of a ``with`` block, as CUDA's does."""
        self._library.fake_set_strict_loops(1)
        try:
            yield
        finally:
            self._library.fake_set_strict_loops(0)

    @contextmanager
    def limited(self, size):
        """Let there be no more than some bytes of memory inside of a ``with`` block."""
        self._library.fake_set_limit(ctypes.c_size_t(size))
        try:
            yield
        finally:
            self._library.fake_set_limit(ctypes.c_size_t(MEMORY))
