"""A real GPU, through cuda.core."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import EngineError
from bksdm.runtime.cuda.device import Graph, HostMemory, Kernel, Memory

THREADS = 256


@dataclass
class _Buffer:
    """An allocation of cuda.core."""

    buffer: Any
    address: int
    size: int

    @cached_property
    def array(self) -> NDArray[np.uint8]:
        """The bytes of host memory."""
        bytes_at = (ctypes.c_uint8 * self.size).from_address(self.address)
        return np.ctypeslib.as_array(bytes_at)


class Gpu:
    """One NVIDIA GPU with one stream; implements :class:`~bksdm.runtime.cuda.device.Device`.

    Parameters
    ----------
    index : int
        Which one.

    Raises
    ------
    EngineError
        cuda-core is not installed, or there is no GPU or driver.
    """

    def __init__(self, index: int = 0) -> None:
        try:
            import cuda.core as core
        except ImportError as error:
            raise EngineError(
                "cuda-core is not installed; run: pip install 'bksdm-runtime[tensorrt-rtx]'"
            ) from error
        self._core = core
        try:
            device = core.Device(index)
            device.set_current()
            self._stream = device.create_stream()
            major, minor = device.compute_capability
        except Exception as error:  # cuda.core passes on whatever the driver's loader raises
            reason = str(error).strip().splitlines()[0]
            raise EngineError(f"no NVIDIA GPU or driver was found ({reason[:200]})") from error
        self._device = device
        self._host = core.LegacyPinnedMemoryResource()
        self.target = f"sm{major}{minor}"
        self.stream = int(self._stream.handle)

    def activate(self) -> None:
        """Let the calling thread use the GPU: which one is current is a setting of each thread."""
        self._device.set_current()

    def allocate(self, size: int) -> Memory:
        """Allocate device memory."""
        return self._wrap(self._device.allocate(size, stream=self._stream), size)

    def allocate_host(self, size: int) -> HostMemory:
        """Allocate page-locked host memory."""
        return self._wrap(self._host.allocate(size), size)

    def copy(self, target: Memory, source: Memory, size: int) -> None:
        """Enqueue a copy."""
        view = self._core.Buffer.from_handle
        view(target.address, size).copy_from(view(source.address, size), stream=self._stream)

    def load(self, code: bytes, name: str) -> Kernel:
        """Load a kernel."""
        kernel = self._core.ObjectCode.from_cubin(code).get_kernel(name)

        def enqueue(count: int, *arguments: int) -> None:
            config = self._core.LaunchConfig(grid=-(-count // THREADS), block=THREADS)
            self._core.launch(self._stream, config, kernel, *arguments)

        return enqueue

    def record(self, work: Callable[[], None]) -> Graph:
        """Record what ``work`` enqueues."""
        builder = self._stream.create_graph_builder()
        builder.begin_building()
        work()
        graph = builder.end_building().complete()
        return _Graph(graph, self._stream)

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._stream.sync()

    @staticmethod
    def _wrap(buffer: Any, size: int) -> _Buffer:
        return _Buffer(buffer, int(buffer.handle), size)


@dataclass(frozen=True)
class _Graph:
    graph: Any
    stream: Any

    def launch(self) -> None:
        """Enqueue the graph."""
        self.graph.launch(self.stream)
