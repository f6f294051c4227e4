"""A compiled sampler on the GPU, and the history that its rows are multiplied with."""

from __future__ import annotations

import numpy as np

from bksdm.runtime.cuda.device import Device, Part, as_array
from bksdm.runtime.inpainting import Latents
from bksdm.runtime.samplers import StepTable

FIRST_CAPACITY = 64
"""UNet evaluations and drawn noises that there is room for from the start."""


class DeviceTable:
    """A table and a history on the device; more than there was room for reallocates once.

    The history is [x_T, z_0 … z_{d-1}, ε_0 …], and the columns of the rows are put in that order,
    so that a step is one dot product for stochastic samplers too.

    Parameters
    ----------
    device : Device
        The GPU.
    size : int
        Values of the latents.
    """

    def __init__(self, device: Device, size: int) -> None:
        self._device, self._size = device, size
        self._start = device.allocate_host(4 * size)
        self._offsets, self._uploaded = [0], 0
        self._make_room(FIRST_CAPACITY)

    def _make_room(self, capacity: int) -> None:
        # However evaluations and draws share the capacity, the rows fit into its square.
        floats = 2 * capacity + (capacity + 1) ** 2 + 2 * (capacity + 1)
        memory = self._device.allocate(4 * floats)
        staging = self._device.allocate_host(4 * floats)
        history = self._device.allocate(4 * (capacity + 1) * self._size)
        # All of it or, where there is no memory for it, none.
        self._capacity, self._memory, self._staging, self.history = (
            capacity,
            memory,
            staging,
            history,
        )
        self._holds: StepTable | None = None

    def stage(self, table: StepTable, start: Latents, noises: Latents) -> None:
        """Write what the next upload takes; nothing may be under way.

        Parameters
        ----------
        table : StepTable
            The compiled sampler.
        start : ndarray, float32, shape [images, channels, height / 8, width / 8]
            x_T.
        noises : ndarray, float32, shape [table.draws, *start.shape]
            Unit noise that it adds.
        """
        if len(table) + table.draws > self._capacity:
            self._make_room(len(table) + table.draws)
        if table is not self._holds:
            rows = np.hstack([table.rows[:, :1], table.noise, table.rows[:, 1:]])
            parts = [
                part.ravel() for part in (table.timesteps, table.input_scale, rows, table.levels)
            ]
            self._offsets = [0, *np.cumsum([4 * part.size for part in parts]).tolist()]
            values = np.concatenate(parts).astype(np.float32)
            as_array(self._staging, np.float32, values.shape)[:] = values
            self._holds = table
        columns = 1 + table.draws
        if 4 * columns * self._size > self._start.size:
            room = 1 + max(table.draws, FIRST_CAPACITY)
            self._start = self._device.allocate_host(4 * room * self._size)
        self._uploaded = 4 * columns * self._size
        staged = as_array(self._start, np.float32, (columns, *start.shape))
        staged[0], staged[1:] = start, noises

    def upload(self) -> None:
        """Enqueue what was staged."""
        self._device.copy(self._memory, self._staging, self._offsets[-1])
        self._device.copy(self.history, self._start, self._uploaded)

    @property
    def addresses(self) -> tuple[int, ...]:
        """Of timesteps, input_scale, rows, levels and history, as the control block has them."""
        first = self._memory.address
        return *(first + offset for offset in self._offsets[:-1]), self.history.address

    def output(self, index: int) -> Part:
        """Return where the noise prediction of a step is kept."""
        assert self._holds is not None
        size = 4 * self._size
        return Part(self.history.address + (1 + self._holds.draws + index) * size, size)
