"""The VAE encoder on the GPU, for pictures to start from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bksdm.engines.device import Binding, BoundNetwork, DeviceNetwork
from bksdm.engines.protocol import Array, validate_feeds
from bksdm.runtime.cuda.device import Device, HostMemory, Memory, as_array
from bksdm.storage.graph_file import GraphFile

NAME = "vae_encoder"


@dataclass(frozen=True)
class _Place:
    """A tensor in device memory, and page-locked memory to copy it from or to."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    memory: Memory
    staging: HostMemory

    @classmethod
    def of(cls, device: Device, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> _Place:
        size = int(np.prod(shape)) * dtype.itemsize
        return cls(shape, dtype, device.allocate(size), device.allocate_host(size))

    @property
    def staged(self) -> Array:
        return as_array(self.staging, self.dtype, self.shape)


@dataclass(frozen=True)
class _Sized:
    """The encoder of one size."""

    source: _Place
    target: _Place
    bound: BoundNetwork


class DeviceVaeEncoder:
    """Encodes pictures; implements :class:`~bksdm.engines.protocol.Engine`.

    It keeps the memory of the last size.

    Parameters
    ----------
    device : Device
        The GPU.
    graph : GraphFile
        What the plans were built from.
    load : callable
        From height and width in pixels to a plan that takes them, and scratch for it.
    vae_scale : int
        Pixels per latent pixel.
    """

    def __init__(
        self,
        device: Device,
        graph: GraphFile,
        load: Callable[[int, int], tuple[DeviceNetwork, Memory]],
        vae_scale: int,
    ) -> None:
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self._device, self._load, self._vae_scale = device, load, vae_scale
        self._sized: _Sized | None = None

    def __call__(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Encode pictures, [images, 3, height, width], and wait for them.

        Raises
        ------
        EngineError
            No plan takes this size.
        """
        validate_feeds(NAME, self.inputs, feeds)
        ((source, pictures),) = feeds.items()
        (target,) = self.outputs
        images, _, height, width = pictures.shape
        with self._device.alone():
            plan, scratch = self._load(height, width)
            # A plan for several pictures takes no fewer; the first stands in for the others.
            rows = max(images, plan.least_rows(source))
            shape = (rows, *pictures.shape[1:])
            if self._sized is None or self._sized.source.shape != shape:
                self._sized = self._size(plan, scratch, source, target, shape)
            sized = self._sized
            sized.source.staged[:images], sized.source.staged[images:] = pictures, pictures[0]
            self._device.copy(sized.source.memory, sized.source.staging, sized.source.memory.size)
            sized.bound.enqueue(self._device.stream)
            self._device.copy(sized.target.staging, sized.target.memory, sized.target.memory.size)
            self._device.synchronize()
            plan.keep_kernels()
            return {target: sized.target.staged[:images].copy()}

    def _size(
        self,
        plan: DeviceNetwork,
        scratch: Memory,
        source: str,
        target: str,
        shape: tuple[int, ...],
    ) -> _Sized:
        rows, _, height, width = shape
        side = (height // self._vae_scale, width // self._vae_scale)
        encoded, taken = plan.tensors[target], plan.tensors[source]
        place = _Place.of(self._device, shape, taken.dtype)
        goal = _Place.of(self._device, (rows, int(encoded.shape[1]), *side), encoded.dtype)
        bindings = {
            source: Binding(place.memory.address, place.shape),
            target: Binding(goal.memory.address, goal.shape),
        }
        return _Sized(place, goal, plan.bind(bindings, scratch.address))
