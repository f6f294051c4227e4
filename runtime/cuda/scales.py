"""The embeddings of guidance scales on the GPU, for UNets that take them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.device import Binding
from bksdm.runtime.cuda.device import Device, Part, as_array
from bksdm.storage.precision import FLOAT16


class DeviceScales:
    """A row for each slot, float16 [images, width].

    Parameters
    ----------
    device : Device
        The GPU.
    images, width : int
        Slots, and the length of an embedding.

    Attributes
    ----------
    binding : Binding
        Of the UNet; zeros where no job was yet.
    """

    def __init__(self, device: Device, images: int, width: int) -> None:
        size = FLOAT16.itemsize * images * width
        self._device, self._row = device, FLOAT16.itemsize * width
        self._memory, self._staging = device.allocate(size), device.allocate_host(size)
        device.clear(self._memory)
        self.binding = Binding(self._memory.address, (images, width))

    def stage(self, embedding: NDArray[np.float32], slots: range) -> None:
        """Write what the next upload takes; none of the same slots may be under way."""
        as_array(self._staging, np.float16, self.binding.shape)[slots.start : slots.stop] = (
            embedding
        )

    def enqueue(self, slots: range) -> None:
        """Enqueue the upload of some slots."""
        offset, size = self._row * slots.start, self._row * len(slots)
        self._device.copy(
            Part(self._memory.address + offset, size),
            Part(self._staging.address + offset, size),
            size,
        )
