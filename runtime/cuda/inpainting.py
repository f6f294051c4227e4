"""The pictures and masks of inpainting, on the GPU."""

from __future__ import annotations

import numpy as np

from bksdm.runtime.cuda.device import Device, HostMemory, Memory, as_array
from bksdm.runtime.inpainting import Inpainting


class DeviceInpainting:
    """An :class:`~bksdm.runtime.inpainting.Inpainting` on the device.

    It takes no memory before the first mask.

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

    def stage(self, inpainting: Inpainting | None) -> None:
        """Write what the next upload takes, if there is a mask; nothing may be under way."""
        self._staged = None
        if inpainting is None:
            return
        if self._memory is None:
            # x_0 and ε in float32, then a byte for each value.
            size = 9 * self._size
            self._memory = self._device.allocate(size), self._device.allocate_host(size)
        self._staged = self._memory
        _, staging = self._staged
        values = as_array(staging, np.float32, (2, *inpainting.latents.shape))
        values[0], values[1] = inpainting.latents, inpainting.noise
        mask = as_array(staging, np.uint8, (9, *inpainting.latents.shape))[8]
        mask[:] = inpainting.mask

    def upload(self) -> None:
        """Enqueue what was staged."""
        if self._staged is not None:
            memory, staging = self._staged
            self._device.copy(memory, staging, memory.size)

    @property
    def addresses(self) -> tuple[int, int]:
        """Of the pictures and of the mask, as the control block has them."""
        if self._staged is None:
            return 0, 0
        address = self._staged[0].address
        return address, address + 8 * self._size
