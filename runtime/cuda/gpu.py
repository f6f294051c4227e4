"""A real GPU, through cuda.core."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.backend import missing
from bksdm.engines.errors import EngineError
from bksdm.runtime.cuda.device import Graph, HostMemory, Kernel, Memory

THREADS = 256
NO_MEMORY = ("CUDA_ERROR_OUT_OF_MEMORY", "Failed to allocate memory from pool")
"""How errors of cuda.core begin that say so, from 1.2 on and before."""


@dataclass
class _Buffer:
    """An allocation of cuda.core."""

    gpu: Gpu
    buffer: Any
    address: int
    size: int

    @cached_property
    def array(self) -> NDArray[np.uint8]:
        """The bytes of host memory."""
        bytes_at = (ctypes.c_uint8 * self.size).from_address(self.address)
        return np.ctypeslib.as_array(bytes_at)

    def __del__(self) -> None:
        # A buffer of cuda.core that frees itself loses the error that is on its way, if one is, and
        # one of page-locked memory does so only in a thread whose GPU is current.
        with self.gpu._current():
            self.buffer.close()


class Gpu:
    """One NVIDIA GPU with one stream; implements :class:`~bksdm.runtime.cuda.device.Device`.

    Parameters
    ----------
    index : int
        Which one.

    Raises
    ------
    EngineError
        cuda-core is not installed, there is no GPU or driver, or not so many GPUs.
    """

    def __init__(self, index: int = 0) -> None:
        try:
            import cuda.core as core
            from cuda.bindings import driver
        except ImportError as error:
            raise EngineError(missing("cuda-core", "tensorrt-rtx")) from error
        self._core, self._driver = core, driver
        try:
            device = core.Device(index)
            device.set_current()
            self._stream = device.create_stream()
            major, minor = device.compute_capability
        except ValueError as error:
            raise EngineError(f"there is no GPU {index} ({_first_line(error)})") from error
        except Exception as error:  # cuda.core passes on whatever the driver's loader raises
            raise EngineError(
                f"no NVIDIA GPU or driver was found ({_first_line(error)})"
            ) from error
        self._device, self._index = device, index
        self._host = core.LegacyPinnedMemoryResource()
        # A callback, which runs while a picture is made, may decode latents.
        self._in_use = threading.RLock()
        self.target = f"sm{major}{minor}"

    @property
    def stream(self) -> int:
        """Handle of the stream that work is enqueued in."""
        return int(self._stream.handle)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let the calling thread, and no other, use the GPU."""
        with self._in_use, self._current():
            yield

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Make this GPU the calling thread's, which may have another one before and after."""
        _, before = self._driver.cuCtxGetCurrent()
        # cuda.core has an object of the GPU for each thread, and asks that each be told.
        self._core.Device(self._index).set_current()
        try:
            yield
        finally:
            self._driver.cuCtxSetCurrent(before)

    def allocate(self, size: int) -> Memory:
        """Allocate device memory."""
        return self._wrap(lambda: self._device.allocate(size, stream=self._stream), size)

    def allocate_host(self, size: int) -> HostMemory:
        """Allocate page-locked host memory."""
        return self._wrap(lambda: self._host.allocate(size), size)

    def clear(self, memory: Memory) -> None:
        """Enqueue zeros."""
        view = self._core.Buffer.from_handle
        try:
            view(memory.address, memory.size).fill(0, stream=self._stream)
        except Exception as error:
            _raise_named(f"{memory.size} bytes cannot be cleared", error)

    def copy(self, target: Memory, source: Memory, size: int) -> None:
        """Enqueue a copy."""
        view = self._core.Buffer.from_handle
        try:
            view(target.address, size).copy_from(view(source.address, size), stream=self._stream)
        except Exception as error:
            _raise_named(f"{size} bytes cannot be copied", error)

    def load(self, code: bytes, name: str) -> Kernel:
        """Load a kernel."""
        try:
            kernel = self._core.ObjectCode.from_cubin(code).get_kernel(name)
        except Exception as error:
            _raise_named(f"kernel {name} cannot be loaded", error)

        def enqueue(count: int, *arguments: int) -> None:
            config = self._core.LaunchConfig(grid=-(-count // THREADS), block=THREADS)
            try:
                self._core.launch(self._stream, config, kernel, *arguments)
            except Exception as error:
                _raise_named(f"kernel {name} cannot run", error)

        return enqueue

    def record(self, work: Callable[[], None]) -> Graph:
        """Record what ``work`` enqueues.

        It does so in a stream of its own: what a garbage collection frees meanwhile is not part of
        the recording, and after one that fails the other stream is as it was.
        """
        return self._record(lambda _: work())

    def record_loop(self, body: Callable[[int], None], after: Callable[[], None]) -> Graph:
        """Record a WHILE node around what ``body`` enqueues, and what ``after`` does."""

        def work(builder: Any) -> None:
            try:
                condition = builder.create_condition(default_value=1)
                loop = builder.while_loop(condition)
            except Exception as error:  # of the driver, or that cuda.core knows it is too old
                raise EngineError(f"there is no loop ({_first_line(error)})") from error
            self._build(loop, lambda _: body(int(condition.handle)))
            after()

        return self._record(work)

    def _record(self, work: Callable[[Any], None]) -> Graph:
        builder = self._device.create_graph_builder()
        self._build(builder, work)
        try:
            return _Graph(builder.complete(), self._stream)
        except Exception as error:
            raise EngineError(f"recording failed ({_first_line(error)})") from error

    def _build(self, builder: Any, work: Callable[[Any], None]) -> None:
        """Record in a builder's stream what ``work`` enqueues."""
        stream = self._stream
        self._stream = builder.stream
        try:
            builder.begin_building()
            work(builder)
            try:
                builder.end_building()
            except Exception as error:  # of the driver, or that the recording was lost
                raise EngineError(f"recording failed ({_first_line(error)})") from error
        except Exception:
            # It ends the recording, and says once more that it failed.
            with suppress(Exception):
                builder.close()
            raise
        finally:
            self._stream = stream

    def synchronize(self) -> None:
        """Wait for the stream."""
        try:
            self._stream.sync()
        except Exception as error:
            _raise_named("the GPU failed", error)

    def _wrap(self, allocate: Callable[[], Any], size: int) -> _Buffer:
        try:
            buffer = allocate()
        except Exception as error:
            if not str(error).startswith(NO_MEMORY):
                raise
            raise EngineError(
                f"the GPU has no {_megabytes(size)} left ({self._free_memory()}); make fewer or "
                "smaller pictures at once, or end what else uses it"
            ) from error
        return _Buffer(self, buffer, int(buffer.handle), size)

    def _free_memory(self) -> str:
        _, free, total = self._driver.cuMemGetInfo()
        return f"{_megabytes(free)} of {_megabytes(total)} are free"


@dataclass(frozen=True)
class _Graph:
    graph: Any
    stream: Any

    def launch(self) -> None:
        """Enqueue the graph."""
        try:
            self.graph.launch(self.stream)
        except Exception as error:
            _raise_named("a recorded step cannot run", error)


def _raise_named(what: str, error: Exception) -> NoReturn:
    """Raise an error of the driver as one of the project's, and any other as it is.

    cuda.core's have no public class; they begin with the driver's name for them.
    """
    if not str(error).startswith("CUDA_ERROR_"):
        raise error
    raise EngineError(f"{what} ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    """Return an error's first sentence, for cuda.core's explain themselves at length."""
    return str(error).strip().partition("\n")[0].partition(". ")[0][:200]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
