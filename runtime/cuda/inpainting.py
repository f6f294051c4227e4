"""What of a picture stays as it was, on the GPU."""

from __future__ import annotations

import numpy as np

from bksdm.runtime.cuda.device import Device, HostMemory, Memory, as_array
from bksdm.runtime.sampling import Known


class DeviceKnown:
    """A :class:`~bksdm.runtime.sampling.Known` on the device; no memory before the first mask.

    Parameters
    ----------
    device : Device
        The GPU.
    size : int
        Values of the latents.
    """

    def __init__(self, device: Device, size: int) -> None:
        self._device, self._size = device, size
        self._memory: tuple[Memory, HostMemory] | None = None
        self._staged: tuple[Memory, HostMemory] | None = None

    def stage(self, known: Known | None) -> None:
        """Write what the next upload takes, if there is a mask; nothing may be under way."""
        self._staged = None
        if known is None:
            return
        if self._memory is None:
            # x_0 and ε in float32, then a byte for each value.
            size = 9 * self._size
            self._memory = self._device.allocate(size), self._device.allocate_host(size)
        self._staged = self._memory
        _, staging = self._staged
        values = as_array(staging, np.float32, (2, *known.latents.shape))
        values[0], values[1] = known.latents, known.noise
        painted = as_array(staging, np.uint8, (9, *known.latents.shape))[8]
        painted[:] = known.painted

    def upload(self) -> None:
        """Enqueue what was staged."""
        if self._staged is not None:
            memory, staging = self._staged
            self._device.copy(memory, staging, memory.size)

    @property
    def addresses(self) -> tuple[int, int]:
        """Of the known values and of where is painted, as the control block has them."""
        if self._staged is None:
            return 0, 0
        address = self._staged[0].address
        return address, address + 8 * self._size
