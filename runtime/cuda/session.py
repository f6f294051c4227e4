"""Everything one batch and size needs on the GPU: buffers, bound plans, the recorded steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.device import Binding, BoundNetwork, DeviceNetwork
from bksdm.engines.errors import EngineError, NonFiniteError, RequestError
from bksdm.engines.protocol import TensorSpec
from bksdm.runtime.cuda.device import Device, Kernel, Memory, Part, as_array
from bksdm.runtime.cuda.evaluation import Evaluations
from bksdm.runtime.cuda.scales import DeviceScales
from bksdm.runtime.cuda.slot import CONTROL, Slot
from bksdm.runtime.cuda.text import DeviceText
from bksdm.runtime.cuda.trajectory import DeviceTrajectory
from bksdm.runtime.guidance import GUIDANCE_INPUT
from bksdm.runtime.inpainting import Latents
from bksdm.runtime.job import DenoisingJob
from bksdm.storage.precision import FLOAT16


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
    """One batch and size on the GPU. From the second job of a slot on nothing is allocated.

    Its batch has a slot for each picture. A job takes as many as it has pictures, beside each
    other, between two launches; every launch is one step of all jobs that have one left, each with
    a sampler, seed, guidance and number of steps of its own; and a job whose pictures are fetched
    leaves its slots to another one. A whole batch is a job that takes all of them::

        trajectory = session.join(text, job)
        while not trajectory.done:
            session.launch()
        pixels = trajectory.end()
        trajectory.leave()

    A job's pictures depend on none of the others. What is not guided in a step runs beside what is:
    it takes the conditional half of the UNet's batch, and leaves the other half alone.

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
    in_loops : bool
        Whether the GPU goes through the steps of a launch by itself.

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
        in_loops: bool = False,
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
        self._start_shape = (images, channels, *side)
        self._slot_bytes = 4 * channels * side[0] * side[1]

        allocate, host = device.allocate, device.allocate_host
        # Zeros say that no slot has anything to do.
        self._controls, self._idle = (allocate(images * CONTROL.itemsize) for _ in range(2))
        device.clear(self._controls)
        device.clear(self._idle)
        self._controls_in, self._controls_out = host(self._idle.size), host(self._idle.size)
        self._done = host(images * np.dtype(np.int64).itemsize)
        self._latents = allocate(images * self._slot_bytes)
        self._latents_host = host(self._latents.size)
        self._vae_input = allocate(self._latents.size // 4 * FLOAT16.itemsize)
        area = shape.height * shape.width
        self._decoded = allocate(FLOAT16.itemsize * images * 3 * area)
        self._pixels_device = allocate(images * area * 3)
        self._pixels_host = host(self._pixels_device.size)
        self._slots = [Slot(device, self._start_shape[1:]) for _ in range(images)]

        self._text = DeviceText(device, plans["text_encoder"], scratch.address, rows, images)
        self._scales = None
        if GUIDANCE_INPUT in unet:
            self._scales = DeviceScales(device, images, int(unet[GUIDANCE_INPUT].shape[1]))
        self._evaluations = Evaluations(
            device,
            plans["unet"],
            kernel,
            scratch=scratch.address,
            controls=self._controls.address,
            idle=self._idle.address,
            latents=Binding(self._latents.address, self._start_shape),
            embeddings=self._text.embeddings,
            in_loops=in_loops,
            scales=None if self._scales is None else self._scales.binding,
        )
        self._scratch = scratch
        self._decoders: dict[int, BoundNetwork] = {}
        decoder = self._decoder(images)
        if in_loops:
            # Once outside of a graph, as TensorRT asks.
            decoder.enqueue(device.stream)
        self._all = range(images)
        self._previous: Memory | None = None
        self._joined: list[DeviceTrajectory] = []
        self._joins = [0] * images
        self.waits = 0
        # Whether a copy to the host may be under way, which is so for long after an interrupt only.
        self._fetching = False
        self._ran_first = True

    @property
    def free(self) -> list[int]:
        """The slots that a job may take."""
        taken = {slot for trajectory in self._joined for slot in trajectory.slots}
        return [slot for slot in range(self._shape.images) if slot not in taken]

    def room(self, images: int) -> range | None:
        """Return free slots beside each other for so many pictures, if there are any."""
        free = set(self.free)
        starts = (range(slot, slot + images) for slot in sorted(free))
        return next((slots for slots in starts if free.issuperset(slots)), None)

    def join(
        self,
        text: NDArray[np.generic],
        job: DenoisingJob,
        *,
        watched: bool = False,
        counted: bool = False,
    ) -> DeviceTrajectory:
        """Enqueue a job's uploads and the text encoder; its first step is in the next launch.

        Parameters
        ----------
        text : ndarray, int, shape [rows, 77], or float32, shape [rows, 77, width]
            Token ids of the job's rows of the UNet's batch, or embeddings that stand in for the
            text encoder; with guidance the rows of the unconditional half come first.
        job : DenoisingJob
            Of this session's size; its prompts are left alone.
        watched : bool
            Whether somebody may ask for the latents of steps.
        counted : bool
            Whether somebody may ask how many are :attr:`~DeviceTrajectory.evaluated`.

        Raises
        ------
        RequestError
            There are not so many free slots beside each other, the job is guided and the session
            is not, or the embeddings are of more tokens than the plans were built for.
        EngineError
            The engine cannot run a form of step that is new here.
        """
        slots = self.room(job.images)
        if slots is None:
            raise RequestError(f"there are no {job.images} free slots beside each other")
        if job.guidance is not None and not self._shape.guided:
            raise RequestError("a job with guidance needs a session that has room for both halves")
        self._text.stage(text, slots[0], len(slots))
        if self._scales is not None:
            assert job.guidance_embedding is not None
            self._scales.stage(job.guidance_embedding, slots)
        for image, slot in enumerate(slots):
            self._slots[slot].stage(job, image)
            self._joins[slot] += 1
        self._stage_controls(job, slots, counted)
        if watched and self._previous is None:
            self._previous = self._device.allocate(self._latents.size)
        trajectory = DeviceTrajectory(self, job, slots, watched)
        forms = dict.fromkeys(trajectory.forms)
        new = [form for form in forms if self._evaluations.prepare(form)]
        self._joined.append(trajectory)
        try:
            self._enqueue_start(slots)
            self._evaluations.enqueue_embeddings(forms)
            for form in new:
                self._evaluations.record(form, self._recorded_pixels)
                self._ran_first = True
        except BaseException:
            trajectory.leave()
            raise
        return trajectory

    def _stage_controls(self, job: DenoisingJob, slots: range, counted: bool) -> None:
        steps, guidance = len(job.table), job.guidance
        guided_from = job.guided.index(True) if any(job.guided) else 0
        controls = as_array(self._controls_in, CONTROL, (self._shape.images,))
        done = as_array(self._done, np.int64, (self._shape.images,))
        done[slots[0]] = 0
        # The recorded steps find these through the control blocks, so they serve any picture.
        for slot in slots:
            controls[slot] = (
                0,
                0,
                steps,
                job.table.draws,
                guided_from,
                guided_from + sum(job.guided),
                steps,
                0,
                0,
                guidance.rescale if guidance else 0.0,
                guidance.scale if guidance else 1.0,
                self._scaling_factor,
                *self._slots[slot].addresses,
                self._done.address + 8 * slot if counted and slot == slots[0] else 0,
            )

    def _enqueue_start(self, slots: range) -> None:
        device, controls = self._device, self._controls_of(slots)
        for slot in slots:
            self._slots[slot].upload()
            device.copy(
                self.latents_of(range(slot, slot + 1)), self._slots[slot].start, self._slot_bytes
            )
        device.copy(controls, _part(self._controls_in, slots, CONTROL.itemsize), controls.size)
        self._text.enqueue()
        if self._scales is not None:
            self._scales.enqueue(slots)
        size = self._text.size
        self._check(size, controls.address, self._text.encoded.address, size)

    def launch(self, most: int = 1, decode: bool = False) -> int:
        """Enqueue a step of every job that has one left, or several.

        Parameters
        ----------
        most : int
            How many steps, if all of them are of one form and all jobs have so many left.
        decode : bool
            Whether the latents of the only job, which has all slots, are to be decoded after its
            last step, in the same launch where that can be.

        Returns
        -------
        int
            How many steps it is.
        """
        moving = [trajectory for trajectory in self._joined if not trajectory.done]
        if not moving:
            return 0
        for trajectory in moving:
            if trajectory.watched:
                source = self.latents_of(trajectory.slots)
                self._device.copy(self.previous_of(trajectory.slots), source, source.size)
                # There is one place for what is before a step.
                most = 1
        forms = zip(*(trajectory.next_forms(most) for trajectory in moving), strict=False)
        form, run = next(groupby(map(max, forms)))
        steps = sum(1 for _ in run)
        launched, first = self._evaluations.steps(form), moving[0]
        if decode and first.slots == self._all and first.launched + steps == len(first.forms):
            decoding = self._evaluations.decoding(form)
            first.decoded = decoding is not None
            launched = decoding or launched
        launched.launch(steps)
        for trajectory in moving:
            trajectory.count(steps)
        return steps

    def leave(self, trajectory: DeviceTrajectory) -> None:
        """Free a job's slots; see :meth:`DeviceTrajectory.leave`."""
        if trajectory not in self._joined:
            return
        self._joined.remove(trajectory)
        if not trajectory.done:
            controls = self._controls_of(trajectory.slots)
            self._device.copy(controls, self._idle, controls.size)
        if trajectory.under_way or self._fetching:
            # The next job may not touch host memory that work is still under way from or to.
            self._wait()

    def evaluated(self, slot: int) -> int:
        """Return how many evaluations are made of the counted job whose first slot this is."""
        return int(as_array(self._done, np.int64, (self._shape.images,))[slot])

    def joins_of(self, slots: range) -> list[int]:
        """Return how many jobs have joined at each of some slots."""
        return [self._joins[slot] for slot in slots]

    def alone(self) -> AbstractContextManager[None]:
        """Let the calling thread, and no other, use the GPU."""
        return self._device.alone()

    def latents_of(self, slots: range) -> Part:
        """Return where the latents of some slots are."""
        return _part(self._latents, slots, self._slot_bytes)

    def previous_of(self, slots: range) -> Part:
        """Return where those before the last step of watched jobs are."""
        assert self._previous is not None
        return _part(self._previous, slots, self._slot_bytes)

    def output(self, slot: int, index: int) -> Part:
        """Return where a noise prediction is kept."""
        return self._slots[slot].output(index)

    def _controls_of(self, slots: range) -> Part:
        return _part(self._controls, slots, CONTROL.itemsize)

    def fetch(self, parts: Sequence[Part]) -> Latents:
        """Wait, and return latents that lie in some places, one after the other."""
        size, self._fetching = 0, True
        for part in parts:
            self._device.copy(Part(self._latents_host.address + size, part.size), part, part.size)
            size += part.size
        self._wait()
        shape = (size // self._slot_bytes, *self._start_shape[1:])
        fetched: Latents = as_array(self._latents_host, np.float32, shape).copy()
        return fetched

    def _wait(self) -> None:
        self._device.synchronize()
        self.waits += 1
        self._fetching = False

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
        device.clear(control)
        self._fetching = True
        staged = as_array(self._latents_host, np.float16, latents.shape)
        staged[:] = latents / np.float32(self._scaling_factor)
        device.copy(self._vae_input, self._latents_host, staged.nbytes)
        self._enqueue_decoder(len(latents), control)
        return self._pixels_of(len(latents), control, 1)

    def decode_slots(self, slots: range, decoded: bool) -> NDArray[np.uint8]:
        """Wait for pixels of a job's slots; see :meth:`DeviceTrajectory.end`."""
        if not decoded:
            self._enqueue_pixels(slots)
        return self._pixels_of(len(slots), self._controls_of(slots), len(slots))

    def _enqueue_pixels(self, slots: range) -> None:
        """Enqueue what makes pixels of some slots' latents."""
        controls, latents = self._controls_of(slots), self.latents_of(slots)
        size = latents.size // 4
        self._finish(size, controls.address, latents.address, self._vae_input.address, size)
        self._enqueue_decoder(len(slots), controls)

    def _recorded_pixels(self) -> None:
        """Enqueue the same for the whole batch, in a graph."""
        if not self._decoder(self._shape.images).can_record(self._device.stream):
            raise EngineError("TensorRT says so")
        self._enqueue_pixels(self._all)

    def _enqueue_decoder(self, images: int, controls: Memory) -> None:
        self._decoder(images).enqueue(self._device.stream)
        area = self._shape.height * self._shape.width
        self._pixels(
            images * area,
            controls.address,
            self._decoded.address,
            self._pixels_device.address,
            area,
            images,
        )

    def _pixels_of(self, images: int, controls: Memory, count: int) -> NDArray[np.uint8]:
        """Wait once, and return the pixels unless a control block objects."""
        device, shape = self._device, self._shape
        size = (images, shape.height, shape.width, 3)
        self._fetching = True
        device.copy(self._pixels_host, self._pixels_device, math.prod(size))
        device.copy(self._controls_out, controls, count * CONTROL.itemsize)
        self._wait()
        flags = as_array(self._controls_out, CONTROL, (count,))
        # What is noted of all pictures of a job is noted at the first.
        if flags[0]["bad_embeddings"]:
            raise NonFiniteError("embeddings of the text encoder: NaN or infinity")
        first_bad, total = flags["first_bad_step"].min(), flags[0]["total"]
        if first_bad < total:
            raise NonFiniteError(f"noise prediction of step {first_bad + 1}: NaN or infinity")
        if flags[0]["bad_pixels"]:
            raise NonFiniteError("pixels of the VAE decoder: NaN or infinity")
        pixels: NDArray[np.uint8] = as_array(self._pixels_host, np.uint8, size).copy()
        return pixels

    def _decoder(self, images: int) -> BoundNetwork:
        """Return the VAE decoder for the first so many pictures."""
        plan = self._plans["vae_decoder"]
        # Plans may take no fewer; what the others hold does not matter.
        rows = max(images, plan.least_rows("latent_sample"))
        if rows not in self._decoders:
            pixels = (rows, 3, self._shape.height, self._shape.width)
            self._decoders[rows] = plan.bind(
                {
                    "latent_sample": Binding(
                        self._vae_input.address, (rows, *self._start_shape[1:])
                    ),
                    "sample": Binding(self._decoded.address, pixels),
                },
                self._scratch.address,
            )
        return self._decoders[rows]

    def keep_kernels(self) -> None:
        """Write what TensorRT compiled, if anything ran for the first time."""
        if self._ran_first:
            for plan in self._plans.values():
                plan.keep_kernels()
            self._ran_first = False


def _part(memory: Memory, slots: range, size: int) -> Part:
    """Return the part of some slots of memory that has so many bytes for each."""
    return Part(memory.address + slots[0] * size, len(slots) * size)


def _require(tensors: Mapping[str, TensorSpec], name: str, dtype: type) -> None:
    found = tensors[name].dtype if name in tensors else None
    if found != np.dtype(dtype):
        raise EngineError(
            f"plans: tensor {name} is {found}, but the loop on the GPU needs {np.dtype(dtype)}; "
            "export the bundle with --dtype float16"
        )
