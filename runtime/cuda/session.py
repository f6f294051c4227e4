"""Everything one batch and size needs on the GPU: buffers, bound plans, the recorded step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import EngineError, NonFiniteError
from bksdm.engines.protocol import TensorSpec
from bksdm.engines.tensorrt_context import Binding, LoadedPlan
from bksdm.runtime.cuda.device import Device, Graph, Kernel, Memory, as_array
from bksdm.runtime.samplers import StepTable

# Mirrors struct Control of kernels.cu.
CONTROL = np.dtype(
    [(name, np.int64) for name in ("step", "next", "total", "first_bad_step", "bad_embeddings",
                                   "bad_pixels")]
    + [("guidance", np.float32), ("scaling_factor", np.float32)]
    + [(name, np.uint64) for name in ("timesteps", "input_scale", "rows", "history")]
)  # fmt: skip
FIRST_CAPACITY = 64
"""UNet evaluations that there is room for from the start; more of them reallocate once."""


@dataclass(frozen=True)
class Shape:
    """What a session is made for; two different ones share nothing but plans and scratch."""

    images: int
    guided: bool
    height: int
    width: int

    @property
    def rows(self) -> int:
        """Batch of the UNet and the text encoder."""
        return self.images * (2 if self.guided else 1)


class _Table:
    """A compiled sampler on the device, and room for its history."""

    def __init__(self, device: Device, capacity: int, size: int) -> None:
        floats = 2 * capacity + (capacity + 1) ** 2
        self.capacity = capacity
        self.memory = device.allocate(4 * floats)
        self.staging = device.allocate_host(4 * floats)
        self.history = device.allocate(4 * (capacity + 1) * size)
        self.holds: StepTable | None = None
        self.used = 0

    def stage(self, table: StepTable) -> None:
        """Write a table where the next copy takes it from."""
        if table is not self.holds:
            parts = (table.timesteps, table.input_scale, table.rows)
            values = np.concatenate([part.ravel() for part in parts]).astype(np.float32)
            as_array(self.staging, np.float32, values.shape)[:] = values
            self.holds, self.used = table, values.nbytes


class Session:
    """One batch and size on the GPU. The second picture allocates nothing.

    Parameters
    ----------
    device : Device
        The GPU.
    plans : mapping
        ``text_encoder``, ``unet`` and ``vae_decoder``.
    kernel : callable
        From a kernel's name to the kernel.
    scratch : Memory
        Shared by all plans.
    shape : Shape
        Batch and size in pixels.
    vae_scale : int
        Pixels per latent pixel.
    scaling_factor : float
        Latents are divided by it before the VAE decoder.

    Raises
    ------
    EngineError
        The plans do not take this shape or are not float16.
    """

    def __init__(
        self,
        device: Device,
        plans: Mapping[str, LoadedPlan],
        kernel: Callable[[str], Kernel],
        scratch: Memory,
        shape: Shape,
        vae_scale: int,
        scaling_factor: float,
    ) -> None:
        self._device = device
        self._shape = shape
        self._scaling_factor = scaling_factor
        self._feed, self._step, self._finish, self._check, self._pixels = (
            kernel(n) for n in ("feed", "step", "finish", "check_embeddings", "to_pixels")
        )
        unet, text, vae = (plans[n].tensors for n in ("unet", "text_encoder", "vae_decoder"))
        _require(unet, "sample", np.float16)
        _require(unet, "timestep", np.float32)
        _require(unet, "out_sample", np.float16)
        _require(text, "last_hidden_state", np.float16)
        _require(vae, "latent_sample", np.float16)
        _require(vae, "sample", np.float16)
        rows, images = shape.rows, shape.images
        channels = int(unet["sample"].shape[1])
        side = (shape.height // vae_scale, shape.width // vae_scale)
        tokens, width = (int(n) for n in text["last_hidden_state"].shape[1:])
        self._ids_type = text["input_ids"].dtype
        self._size = images * channels * side[0] * side[1]
        self._embeddings_size = rows * tokens * width
        self._start_shape = (images, channels, *side)
        self._ids_shape = (rows, tokens)

        allocate, host = device.allocate, device.allocate_host
        self._control = allocate(CONTROL.itemsize)
        self._control_in, self._control_out = host(CONTROL.itemsize), host(CONTROL.itemsize)
        self._ids = allocate(rows * tokens * self._ids_type.itemsize)
        self._ids_host = host(self._ids.size)
        self._embeddings = allocate(2 * self._embeddings_size)
        self._latents = allocate(4 * self._size)
        self._latents_host = host(self._latents.size)
        self._sample = allocate(2 * self._size * (rows // images))
        self._timestep = allocate(4 * rows)
        self._prediction = allocate(self._sample.size)
        self._vae_input = allocate(2 * self._size)
        area = shape.height * shape.width
        self._decoded = allocate(2 * images * 3 * area)
        self._pixels_device = allocate(images * area * 3)
        self._pixels_host = host(self._pixels_device.size)
        self._table = _Table(device, FIRST_CAPACITY, self._size)

        embeddings = Binding(self._embeddings.address, (rows, tokens, width))
        sample_shape = (rows, channels, *side)
        self._text_encoder = plans["text_encoder"].bind(
            {
                "input_ids": Binding(self._ids.address, self._ids_shape),
                "last_hidden_state": embeddings,
            },
            scratch.address,
        )
        self._unet = plans["unet"].bind(
            {
                "sample": Binding(self._sample.address, sample_shape),
                "timestep": Binding(self._timestep.address, (rows,)),
                "encoder_hidden_states": embeddings,
                "out_sample": Binding(self._prediction.address, sample_shape),
            },
            scratch.address,
        )
        self._vae_decoder = plans["vae_decoder"].bind(
            {
                "latent_sample": Binding(self._vae_input.address, self._start_shape),
                "sample": Binding(self._decoded.address, (images, 3, shape.height, shape.width)),
            },
            scratch.address,
        )
        self._graph: Graph | None = None

    def begin(
        self, ids: NDArray[np.integer], start: NDArray[np.float32], table: StepTable,
        guidance_scale: float,
    ) -> None:  # fmt: skip
        """Enqueue the uploads and the text encoder; nothing else may be under way.

        Parameters
        ----------
        ids : ndarray, int, shape [rows, 77]
            Token ids of the UNet's batch.
        start : ndarray, float32, shape [images, channels, height / 8, width / 8]
            x_T.
        table : StepTable
            The compiled sampler.
        guidance_scale : float
            Of no effect unless the shape is guided.
        """
        steps = len(table)
        if steps > self._table.capacity:
            self._table = _Table(self._device, steps, self._size)
        # The recorded step finds these through the control block, so it serves any table.
        address = self._table.memory.address
        block = as_array(self._control_in, CONTROL, (1,))
        block[0] = (
            0, 0, steps, steps, 0, 0, guidance_scale, self._scaling_factor,
            address, address + 4 * steps, address + 8 * steps, self._table.history.address,
        )  # fmt: skip
        self._table.stage(table)
        as_array(self._latents_host, np.float32, self._start_shape)[:] = start
        as_array(self._ids_host, self._ids_type, self._ids_shape)[:] = ids
        if self._graph is None:
            self._enqueue_start()
            self._graph = self._record()
        self._enqueue_start()

    def step(self) -> None:
        """Enqueue one step."""
        assert self._graph is not None
        self._graph.launch()

    def latents(self) -> NDArray[np.float32]:
        """Wait, and return the latents of the last step."""
        self._device.copy(self._latents_host, self._latents, self._latents.size)
        self._device.synchronize()
        return as_array(self._latents_host, np.float32, self._start_shape).copy()

    def end(self) -> NDArray[np.uint8]:
        """Enqueue the VAE decoder, wait once, and return pixels [images, height, width, 3].

        Raises
        ------
        NonFiniteError
            A network produced NaN or infinity; names the first.
        """
        device, shape = self._device, self._shape
        self._finish(
            self._size, self._control.address, self._latents.address, self._vae_input.address,
            self._size,
        )  # fmt: skip
        self._vae_decoder.enqueue(device.stream)
        area = shape.height * shape.width
        self._pixels(
            shape.images * area, self._control.address, self._decoded.address,
            self._pixels_device.address, area, shape.images,
        )  # fmt: skip
        device.copy(self._pixels_host, self._pixels_device, self._pixels_host.size)
        device.copy(self._control_out, self._control, CONTROL.itemsize)
        device.synchronize()
        flags = as_array(self._control_out, CONTROL, (1,))[0]
        if flags["bad_embeddings"]:
            raise NonFiniteError("embeddings of the text encoder: NaN or infinity")
        if flags["first_bad_step"] < flags["total"]:
            step = int(flags["first_bad_step"]) + 1
            raise NonFiniteError(f"noise prediction of step {step}: NaN or infinity")
        if flags["bad_pixels"]:
            raise NonFiniteError("pixels of the VAE decoder: NaN or infinity")
        pixels = as_array(self._pixels_host, np.uint8, (shape.images, shape.height, shape.width, 3))
        return pixels.copy()

    def _record(self) -> Graph:
        """Run one step outside of a graph, as TensorRT asks, then record one.

        Raises
        ------
        EngineError
            TensorRT cannot be recorded.
        """
        self._enqueue_step()
        if not self._unet.can_record(self._device.stream):
            raise EngineError("unet: TensorRT cannot run in a CUDA graph; build it again")
        return self._device.record(self._enqueue_step)

    def _enqueue_start(self) -> None:
        device, table = self._device, self._table
        device.copy(self._control, self._control_in, CONTROL.itemsize)
        device.copy(table.memory, table.staging, table.used)
        device.copy(self._latents, self._latents_host, self._latents.size)
        device.copy(table.history, self._latents_host, self._latents.size)
        device.copy(self._ids, self._ids_host, self._ids.size)
        self._text_encoder.enqueue(device.stream)
        self._check(
            self._embeddings_size, self._control.address, self._embeddings.address,
            self._embeddings_size,
        )  # fmt: skip

    def _enqueue_step(self) -> None:
        halves = self._shape.rows // self._shape.images
        self._feed(
            max(self._size, self._shape.rows), self._control.address, self._latents.address,
            self._sample.address, self._timestep.address, self._size, halves, self._shape.images,
        )  # fmt: skip
        self._unet.enqueue(self._device.stream)
        self._step(
            self._size, self._control.address, self._prediction.address, self._latents.address,
            self._size, halves,
        )  # fmt: skip


def _require(tensors: Mapping[str, TensorSpec], name: str, dtype: type) -> None:
    found = tensors[name].dtype if name in tensors else None
    if found != np.dtype(dtype):
        raise EngineError(
            f"plans: tensor {name} is {found}, but the loop on the GPU needs {np.dtype(dtype)}; "
            "export the bundle with --dtype float16"
        )
