"""The least time a machine could take for a network's work (Williams et al. 2009, roofline)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bksdm.benchmarks.work import NetworkWork

PROBE_SIDE = 2048
PROBE_BYTES = 2**28
PROBE_ROUNDS = 5


@dataclass(frozen=True)
class Peak:
    """What a machine can do at most.

    Attributes
    ----------
    name
        Of the machine.
    flops_per_second, bytes_per_second
        Arithmetic and memory.
    source
        ``measured``, or the document that states it.
    """

    name: str
    flops_per_second: float
    bytes_per_second: float
    source: str


# Dense float16 tensor-core products summed in float32, without sparsity, and memory bandwidth.
GPUS = {
    "a100": Peak("A100 80GB SXM", 312e12, 2039e9, "NVIDIA A100 datasheet (June 2021)"),
    "h100": Peak("H100 SXM", 989.4e12, 3350e9, "NVIDIA H100 datasheet, half of its sparse figure"),
    "rtx4090": Peak("GeForce RTX 4090", 165.2e12, 1008e9, "NVIDIA Ada architecture whitepaper"),
}


def measure_peak(threads: int) -> Peak:
    """Measure float32 matrix products and copies in numpy; the best of several rounds.

    Parameters
    ----------
    threads : int
        Stated in the name; numpy's BLAS takes its own default, one per core.
    """
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal((PROBE_SIDE,) * 2).astype(np.float32) for _ in range(2))
    product = np.empty_like(a)
    source = np.zeros(PROBE_BYTES, np.uint8)
    target = np.zeros_like(source)
    flops = 2 * PROBE_SIDE**3 / _best(lambda: np.matmul(a, b, out=product))
    # A copy reads and writes.
    moved = 2 * PROBE_BYTES / _best(lambda: np.copyto(target, source))
    return Peak(f"this machine, {threads} threads", flops, moved, "measured")


def lower_bound(work: NetworkWork, peak: Peak) -> float:
    """Return seconds: max(operations / peak, bytes / bandwidth), convolutions taken as direct.

    Weights and the operands of products count once; normalisations and the like not at all.
    """
    arithmetic = sum(work.flops.values()) / peak.flops_per_second
    memory = (work.weight_bytes + work.activation_bytes) / peak.bytes_per_second
    return max(arithmetic, memory)


def _best(run: Callable[[], object]) -> float:
    times = []
    for _ in range(PROBE_ROUNDS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
