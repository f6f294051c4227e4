"""A GPU that counts what is asked of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from bksdm.runtime.cuda.device import Graph, HostMemory, Kernel, Memory
from bksdm.runtime.cuda.gpu import Gpu


class CountedGpu(Gpu):
    """The GPU of the project; ``counts`` tells what was asked of it outside of recordings.

    Counted are ``allocations``, ``copies``, ``clears``, ``kernels`` (of the loop, not of networks),
    ``graph launches`` and ``synchronisations``.
    """

    def __init__(self, index: int = 0) -> None:
        super().__init__(index)
        self.counts: Counter[str] = Counter()
        self._recording = False

    def count(self, kind: str) -> None:
        """Count something, unless it is only recorded."""
        if not self._recording:
            self.counts[kind] += 1

    def allocate(self, size: int) -> Memory:
        """Allocate device memory."""
        self.counts["allocations"] += 1
        return super().allocate(size)

    def allocate_host(self, size: int) -> HostMemory:
        """Allocate page-locked host memory."""
        self.counts["allocations"] += 1
        return super().allocate_host(size)

    def copy(self, target: Memory, source: Memory, size: int) -> None:
        """Enqueue a copy."""
        self.count("copies")
        super().copy(target, source, size)

    def clear(self, memory: Memory) -> None:
        """Enqueue zeros."""
        self.count("clears")
        super().clear(memory)

    def load(self, code: bytes, name: str) -> Kernel:
        """Load a kernel."""
        kernel = super().load(code, name)

        def counted(count: int, *arguments: int) -> None:
            self.count("kernels")
            kernel(count, *arguments)

        return counted

    def record(self, work: Callable[[], None]) -> Graph:
        """Record what ``work`` enqueues."""
        return self._counted(lambda: super(CountedGpu, self).record(work))

    def record_loop(self, body: Callable[[int], None], after: Callable[[], None]) -> Graph:
        """Record a loop, and what follows it."""
        return self._counted(lambda: super(CountedGpu, self).record_loop(body, after))

    def _counted(self, record: Callable[[], Graph]) -> Graph:
        self._recording = True
        try:
            return _CountedGraph(record(), self.counts)
        finally:
            self._recording = False

    def synchronize(self) -> None:
        """Wait for the stream."""
        self.counts["synchronisations"] += 1
        super().synchronize()


@dataclass(frozen=True)
class _CountedGraph:
    graph: Graph
    counts: Counter[str]

    def launch(self) -> None:
        """Enqueue the graph."""
        self.counts["graph launches"] += 1
        self.graph.launch()
