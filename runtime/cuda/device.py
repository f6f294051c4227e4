"""The GPU as the loop sees it. All work goes into one stream, in order, without waiting."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Memory(Protocol):
    """An allocation; freed with the object."""

    @property
    def address(self) -> int:
        """First byte, as a device pointer."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...


@dataclass(frozen=True)
class Part:
    """Bytes inside of an allocation, which has to outlive them."""

    address: int
    size: int


class HostMemory(Memory, Protocol):
    """Page-locked host memory, from and to which the GPU copies by itself."""

    @property
    def array(self) -> NDArray[np.uint8]:
        """The bytes, [size]; valid to touch while no copy of them is under way."""
        ...


class Kernel(Protocol):
    """A compiled kernel."""

    def __call__(self, count: int, *arguments: int) -> None:
        """Enqueue one thread for each of ``count`` elements; arguments are 64 bits wide."""
        ...


class Graph(Protocol):
    """Recorded work."""

    def launch(self) -> None:
        """Enqueue all of it at once."""
        ...


class Device(Protocol):
    """One GPU with one stream."""

    @property
    def target(self) -> str:
        """Compute capability such as ``sm89``."""
        ...

    @property
    def stream(self) -> int:
        """Handle of the stream, for TensorRT; another one while work is recorded."""
        ...

    def alone(self) -> AbstractContextManager[None]:
        """Let the calling thread, and no other, use the GPU; a block may lie within another."""
        ...

    def allocate(self, size: int) -> Memory:
        """Allocate device memory; its content is undefined.

        Raises
        ------
        EngineError
            There is not so much left.
        """
        ...

    def allocate_host(self, size: int) -> HostMemory:
        """Allocate page-locked host memory; raises as :meth:`allocate`."""
        ...

    def clear(self, memory: Memory) -> None:
        """Enqueue that all of its bytes become zero."""
        ...

    def copy(self, target: Memory, source: Memory, size: int) -> None:
        """Enqueue a copy of the first ``size`` bytes."""
        ...

    def load(self, code: bytes, name: str) -> Kernel:
        """Load a kernel of a cubin."""
        ...

    def record(self, work: Callable[[], None]) -> Graph:
        """Run ``work`` and record what it enqueues in place of enqueuing it.

        Raises
        ------
        EngineError
            It cannot be recorded. What was enqueued before goes on.
        """
        ...

    def record_loop(self, body: Callable[[int], None], after: Callable[[], None]) -> Graph:
        """Record what ``body`` enqueues, as a loop, and what ``after`` does.

        ``body`` is given the handle that a kernel in it sets, by ``cudaGraphSetConditional``, to
        whether there is another turn; there is always a first one.

        Raises
        ------
        EngineError
            It cannot be recorded, or not in a loop. What was enqueued before goes on.
        """
        ...

    def synchronize(self) -> None:
        """Wait for everything that was enqueued.

        Raises
        ------
        EngineError
            Some of it failed.
        """
        ...


def as_array(memory: HostMemory, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """View the start of page-locked memory as an array."""
    count = math.prod(shape) * np.dtype(dtype).itemsize
    view: NDArray[Any] = memory.array[:count].view(dtype).reshape(shape)
    return view
