"""What one picture of a batch has on the GPU beside its latents."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bksdm.runtime.cuda.device import Device, HostMemory, Memory, Part, as_array
from bksdm.runtime.job import DenoisingJob
from bksdm.runtime.samplers import StepTable

FIRST_CAPACITY = 64
"""UNet evaluations and drawn noises that there is room for from the start."""

# Mirrors struct Control of kernels.cu.
CONTROL = np.dtype(
    [
        (name, np.int64)
        for name in (
            "step",
            "next",
            "total",
            "draws",
            "guided_from",
            "guided_until",
            "first_bad_step",
            "bad_embeddings",
            "bad_pixels",
        )
    ]
    + [("rescale", np.float64), ("guidance", np.float32), ("scaling_factor", np.float32)]
    + [
        (name, np.uint64)
        for name in (
            "timesteps",
            "input_scale",
            "rows",
            "levels",
            "history",
            "pictures",
            "mask",
            "done",
        )
    ]
)


class Slot:
    """One place of a batch: mask, compiled sampler and history, in one allocation.

    They lie in this order, so that one copy uploads them. More evaluations than there was room for
    reallocate once. The history is [x_T, z_0 … z_{d-1}, ε_0 …], and the columns of the rows are put
    in that order, so that a step is one dot product for stochastic samplers too.

    Parameters
    ----------
    device : Device
        The GPU.
    shape : sequence of int
        Of the picture's latents, [channels, height / 8, width / 8].
    """

    def __init__(self, device: Device, shape: Sequence[int]) -> None:
        self._device, self._shape = device, tuple(shape)
        self._size = math.prod(shape)
        # x_0 and ε in float32 and a byte for each value, before what is aligned as floats are.
        self._table = -(-9 * self._size // 4) * 4
        self._capacity = self._columns = 0
        self._memory: Memory
        self._staging: HostMemory
        self._reserve(FIRST_CAPACITY, 1)
        self._masked = False
        self._offsets = [self._table] * 5
        self._uploaded = 0

    def _reserve(self, capacity: int, columns: int) -> None:
        """Make room for so many evaluations and draws, and for columns that are uploaded."""
        # However evaluations and draws share the capacity, the rows fit into its square.
        before = self._table + 4 * (2 * capacity + (capacity + 1) ** 2 + 2 * (capacity + 1))
        staging = self._device.allocate_host(before + 4 * columns * self._size)
        if capacity > self._capacity:
            self._memory = self._device.allocate(before + 4 * (capacity + 1) * self._size)
        self._staging, self._capacity, self._columns = staging, capacity, columns
        self._holds: StepTable | None = None

    def stage(self, job: DenoisingJob, image: int) -> None:
        """Write what the next upload takes of a job's picture; no upload may be under way."""
        table = job.table
        columns, needed = 1 + table.draws, len(table) + table.draws
        if needed > self._capacity or columns > self._columns:
            if columns > self._columns:
                columns = 1 + max(table.draws, FIRST_CAPACITY)
            self._reserve(max(needed, self._capacity), max(columns, self._columns))
        if table is not self._holds:
            rows = np.hstack([table.rows[:, :1], table.noise, table.rows[:, 1:]])
            parts = [
                part.ravel() for part in (table.timesteps, table.input_scale, rows, table.levels)
            ]
            ends = np.cumsum([4 * part.size for part in parts])
            self._offsets = [self._table, *(self._table + ends).tolist()]
            self._staged(self._table, sum(part.size for part in parts), np.float32)[:] = (
                np.concatenate(parts)
            )
            self._holds = table
        history = self._offsets[-1]
        self._uploaded = history + 4 * (1 + table.draws) * self._size
        staged = self._staged(history, (1 + table.draws) * self._size, np.float32)
        staged = staged.reshape(-1, *self._shape)
        staged[0], staged[1:] = job.latents[image], job.noises[:, image]
        self._masked = job.inpainting is not None
        if job.inpainting is not None:
            known = self._staged(0, 2 * self._size, np.float32).reshape(2, *self._shape)
            known[0], known[1] = job.inpainting.latents[image], job.inpainting.noise[image]
            mask = self._staged(8 * self._size, self._size, np.uint8).reshape(self._shape)
            mask[:] = job.inpainting.mask[image]

    def _staged(self, offset: int, count: int, dtype: type) -> NDArray[np.generic]:
        return as_array(self._staging, np.uint8, (self._staging.size,))[offset:].view(dtype)[:count]

    def upload(self) -> None:
        """Enqueue what was staged."""
        first = 0 if self._masked else self._table
        size = self._uploaded - first
        self._device.copy(
            Part(self._memory.address + first, size),
            Part(self._staging.address + first, size),
            size,
        )

    @property
    def addresses(self) -> tuple[int, ...]:
        """Of the table's parts, history, pictures and mask, as the control block has them."""
        first = self._memory.address
        known = (first, first + 8 * self._size) if self._masked else (0, 0)
        return *(first + offset for offset in self._offsets), *known

    @property
    def start(self) -> Part:
        """Where x_T is."""
        return self._column(0)

    def output(self, index: int) -> Part:
        """Return where the noise prediction of a step is kept."""
        assert self._holds is not None
        return self._column(1 + self._holds.draws + index)

    def _column(self, index: int) -> Part:
        size = 4 * self._size
        return Part(self._memory.address + self._offsets[-1] + index * size, size)
