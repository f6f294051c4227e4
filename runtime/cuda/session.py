"""Everything one batch and size needs on the GPU: buffers, bound plans, the recorded steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.device import Binding, DeviceNetwork
from bksdm.engines.errors import EngineError, NonFiniteError, RequestError
from bksdm.engines.protocol import TensorSpec
from bksdm.runtime.cuda.device import Device, Kernel, Memory, as_array
from bksdm.runtime.cuda.evaluation import Evaluations, StepForm, step_forms
from bksdm.runtime.cuda.inpainting import DeviceInpainting
from bksdm.runtime.cuda.table import DeviceTable
from bksdm.runtime.cuda.text import DeviceText
from bksdm.runtime.inpainting import Latents
from bksdm.runtime.job import DenoisingJob
from bksdm.storage.precision import FLOAT16

# Mirrors struct Control of kernels.cu.
CONTROL = np.dtype(
    [
        (name, np.int64)
        for name in (
            "step",
            "next",
            "total",
            "draws",
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


@dataclass(frozen=True)
class Shape:
    """Batch and size of a session; different ones share only plans and scratch."""

    images: int
    guided: bool
    height: int
    width: int

    @property
    def rows(self) -> int:
        """Batch of the UNet and the text encoder."""
        return self.images * (2 if self.guided else 1)


class Session:
    """One batch and size on the GPU. The second picture allocates nothing.

    While a job is under way it is its :class:`~bksdm.runtime.sampling.Trajectory`.

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
        plans: Mapping[str, DeviceNetwork],
        kernel: Callable[[str], Kernel],
        scratch: Memory,
        shape: Shape,
        vae_scale: int,
        scaling_factor: float,
    ) -> None:
        self._device = device
        self._shape = shape
        self._scaling_factor = scaling_factor
        self._finish, self._check, self._pixels = (
            kernel(name) for name in ("finish", "check_embeddings", "to_pixels")
        )
        self._plans = plans
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
        self._size = images * channels * side[0] * side[1]
        self._start_shape = (images, channels, *side)

        allocate, host = device.allocate, device.allocate_host
        self._control = allocate(CONTROL.itemsize)
        self._control_in, self._control_out = host(CONTROL.itemsize), host(CONTROL.itemsize)
        self._done = host(np.dtype(np.int64).itemsize)
        self._latents = allocate(4 * self._size)
        self._latents_host = host(self._latents.size)
        self._vae_input = allocate(FLOAT16.itemsize * self._size)
        area = shape.height * shape.width
        self._decoded = allocate(FLOAT16.itemsize * images * 3 * area)
        self._pixels_device = allocate(images * area * 3)
        self._pixels_host = host(self._pixels_device.size)
        self._table = DeviceTable(device, self._size)
        self._inpainting = DeviceInpainting(device, self._size)

        self._text = DeviceText(device, plans["text_encoder"], scratch.address, rows, images)
        self._evaluations = Evaluations(
            device,
            plans["unet"],
            kernel,
            scratch=scratch.address,
            control=self._control.address,
            latents=Binding(self._latents.address, self._start_shape),
            embeddings=self._text.embeddings,
        )
        self._vae_decoder = plans["vae_decoder"].bind(
            {
                "latent_sample": Binding(self._vae_input.address, self._start_shape),
                "sample": Binding(self._decoded.address, (images, 3, shape.height, shape.width)),
            },
            scratch.address,
        )
        self._previous: Memory | None = None
        self._keeps_previous = False
        self._forms: list[StepForm] = []
        # Counts begun pictures and made steps, so that it tells when latents are overwritten.
        self._moves = 0
        self._ran_first = True

    @property
    def done(self) -> int:
        """How many evaluations the GPU has made of a counted job; asks nothing of it."""
        return int(as_array(self._done, np.int64, (1,))[0])

    def begin(
        self, text: NDArray[np.generic], job: DenoisingJob, watched: bool, counted: bool
    ) -> None:
        """Enqueue the uploads and the text encoder; nothing else may be under way.

        Parameters
        ----------
        text : ndarray, int, shape [rows, 77], or float32, shape [rows, 77, width]
            Token ids of the UNet's batch, or embeddings that stand in for the text encoder.
        job : DenoisingJob
            Of this session's shape; its prompts are left alone.
        watched : bool
            Whether somebody may ask for the latents of steps.
        counted : bool
            Whether somebody may ask how many are :attr:`done`.

        Raises
        ------
        RequestError
            The embeddings are of more tokens than the plans were built for.
        EngineError
            TensorRT cannot run a form of step that is new here.
        """
        self._text.stage(text)
        steps, guidance = len(job.table), job.guidance
        self._table.stage(job.table, job.latents, job.noises)
        self._inpainting.stage(job.inpainting)
        # The recorded steps find these through the control block, so they serve any picture.
        block = as_array(self._control_in, CONTROL, (1,))
        block[0] = (
            0,
            0,
            steps,
            job.table.draws,
            steps,
            0,
            0,
            guidance.rescale if guidance else 0.0,
            guidance.scale if guidance else 1.0,
            self._scaling_factor,
            *self._table.addresses,
            *self._inpainting.addresses,
            self._done.address if counted else 0,
        )
        as_array(self._done, np.int64, (1,))[0] = 0
        self._keeps_previous = watched
        if watched and self._previous is None:
            self._previous = self._device.allocate(self._latents.size)
        self._moves += 1
        self._forms = step_forms(job)
        for form in dict.fromkeys(self._forms):
            if self._evaluations.prepare(form):
                self._enqueue_start()
                self._evaluations.record(form)
                self._ran_first = True
        self._enqueue_start()

    def advance(self, index: int, told: None) -> DeviceMoved:
        """Enqueue a step, the UNet included; there is nothing to tell."""
        if self._keeps_previous:
            assert self._previous is not None
            self._device.copy(self._previous, self._latents, self._latents.size)
        self._evaluations.graph(self._forms[index]).launch()
        self._moves += 1
        return DeviceMoved(self, index, self._moves)

    def latents(self) -> Latents:
        """Wait, and return the latents where the last step left them."""
        return self._fetched(self._latents)

    def _fetched(self, source: Memory) -> Latents:
        self._device.copy(self._latents_host, source, source.size)
        self._device.synchronize()
        fetched: Latents = as_array(self._latents_host, np.float32, self._start_shape).copy()
        return fetched

    def decode(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Wait, and return pixels [images, height, width, 3] of latents, which may be any step's.

        What the loop works on is left as it is.

        Raises
        ------
        NonFiniteError
            The VAE decoder produced NaN or infinity.
        """
        device = self._device
        # Of its own: uploading the loop's would begin it again.
        control = device.allocate(CONTROL.itemsize)
        as_array(self._control_out, CONTROL, (1,))[0] = 0
        device.copy(control, self._control_out, CONTROL.itemsize)
        staged = as_array(self._latents_host, np.float16, self._start_shape)
        staged[:] = latents / np.float32(self._scaling_factor)
        device.copy(self._vae_input, self._latents_host, staged.nbytes)
        return self._pixels_of(control)

    def end(self) -> NDArray[np.uint8]:
        """Enqueue the VAE decoder, wait once, and return pixels [images, height, width, 3].

        Raises
        ------
        NonFiniteError
            A network produced NaN or infinity; names the first.
        """
        self._finish(
            self._size,
            self._control.address,
            self._latents.address,
            self._vae_input.address,
            self._size,
        )
        return self._pixels_of(self._control)

    def _pixels_of(self, control: Memory) -> NDArray[np.uint8]:
        """Run the VAE decoder, wait once, and return its pixels unless a control block objects."""
        device, shape = self._device, self._shape
        self._vae_decoder.enqueue(device.stream)
        area = shape.height * shape.width
        self._pixels(
            shape.images * area,
            control.address,
            self._decoded.address,
            self._pixels_device.address,
            area,
            shape.images,
        )
        device.copy(self._pixels_host, self._pixels_device, self._pixels_host.size)
        device.copy(self._control_out, control, CONTROL.itemsize)
        device.synchronize()
        flags = as_array(self._control_out, CONTROL, (1,))[0]
        if flags["bad_embeddings"]:
            raise NonFiniteError("embeddings of the text encoder: NaN or infinity")
        if flags["first_bad_step"] < flags["total"]:
            step = int(flags["first_bad_step"]) + 1
            raise NonFiniteError(f"noise prediction of step {step}: NaN or infinity")
        if flags["bad_pixels"]:
            raise NonFiniteError("pixels of the VAE decoder: NaN or infinity")
        size = (shape.images, shape.height, shape.width, 3)
        pixels: NDArray[np.uint8] = as_array(self._pixels_host, np.uint8, size).copy()
        return pixels

    def keep_kernels(self) -> None:
        """Write what TensorRT compiled, if anything ran for the first time."""
        if self._ran_first:
            for plan in self._plans.values():
                plan.keep_kernels()
            self._ran_first = False

    def _enqueue_start(self) -> None:
        device = self._device
        device.copy(self._control, self._control_in, CONTROL.itemsize)
        self._table.upload()
        self._inpainting.upload()
        device.copy(self._latents, self._table.history, self._latents.size)
        self._text.enqueue()
        self._check(
            self._text.size,
            self._control.address,
            self._text.embeddings.address,
            self._text.size,
        )
        self._evaluations.enqueue_embeddings(self._forms)


class DeviceMoved:
    """Latents around a step on the GPU; implements :class:`~bksdm.runtime.sampling.Moved`.

    Each waits for the GPU, and raises :class:`~bksdm.engines.errors.RequestError` once the next
    step, or another picture, was enqueued. Any thread may ask.
    """

    def __init__(self, session: Session, index: int, move: int) -> None:
        self._session, self._index, self._move = session, index, move

    @property
    def previous(self) -> Latents:
        """x_k, float32."""
        assert self._session._previous is not None
        return self._fetched(self._session._previous)

    @property
    def noise_prediction(self) -> Latents:
        """ε_k, guided, float32."""
        return self._fetched(self._session._table.output(self._index))

    @property
    def latents(self) -> Latents:
        """x_{k+1}, float32."""
        return self._fetched(self._session._latents)

    def _fetched(self, source: Memory) -> Latents:
        with self._session._device.alone():
            if self._move != self._session._moves:
                raise RequestError(
                    f"the latents of step {self._index + 1} have been overwritten on the GPU; ask "
                    "for them in the callback of that step"
                )
            return self._session._fetched(source)


def _require(tensors: Mapping[str, TensorSpec], name: str, dtype: type) -> None:
    found = tensors[name].dtype if name in tensors else None
    if found != np.dtype(dtype):
        raise EngineError(
            f"plans: tensor {name} is {found}, but the loop on the GPU needs {np.dtype(dtype)}; "
            "export the bundle with --dtype float16"
        )
