"""The UNet with the arithmetic around it, recorded once for each way that a step is done."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from bksdm.engines.device import Binding, BoundNetwork, DeviceNetwork
from bksdm.engines.errors import EngineError
from bksdm.runtime.cuda.device import Device, Graph, Kernel, Memory, Part
from bksdm.runtime.guidance import GUIDANCE_INPUT
from bksdm.runtime.job import DenoisingJob
from bksdm.storage.precision import FLOAT16

PARTS = 128
"""Threads that add up the moments of one image, one after the other of 128 values at 512×512."""


class StepForm(NamedTuple):
    """How a step is done: halves of the UNet's batch that run, and whether ε is rescaled.

    The greatest of some does what each of them does: the control block of a slot says whether it is
    guided, and what is not rescaled is multiplied by 1.
    """

    halves: int
    rescaled: bool


def step_forms(job: DenoisingJob) -> list[StepForm]:
    """Return how each step of a job is done."""
    rescaled = job.guidance is not None and job.guidance.rescale != 0
    alone, both = StepForm(1, False), StepForm(2, rescaled)
    return [both if guided else alone for guided in job.guided]


class Steps(Protocol):
    """Steps of one form, ready to be launched."""

    def launch(self, steps: int) -> None:
        """Enqueue so many, one after the other."""
        ...


@dataclass(frozen=True)
class Pieces:
    """A step that is not recorded; implements :class:`Steps`."""

    enqueue: Callable[[], None]

    def launch(self, steps: int) -> None:
        """Enqueue all of them, piece by piece."""
        for _ in range(steps):
            self.enqueue()


@dataclass(frozen=True)
class GraphPerStep:
    """A recorded step; implements :class:`Steps`."""

    graph: Graph

    def launch(self, steps: int) -> None:
        """Launch it so often."""
        for _ in range(steps):
            self.graph.launch()


@dataclass(frozen=True)
class Loop:
    """Steps in a loop that the GPU goes through by itself; implements :class:`Steps`."""

    graph: Graph
    set_steps: Callable[[int], None]

    def launch(self, steps: int) -> None:
        """Launch it once."""
        self.set_steps(steps)
        self.graph.launch()


class Evaluations:
    """Every form of step that was asked for so far; each takes its memory when it first is.

    Parameters
    ----------
    device : Device
        The GPU.
    plan : DeviceNetwork
        The UNet.
    kernel : callable
        From a kernel's name to the kernel.
    scratch, controls, idle : int
        Addresses of the plan's scratch, of the slots' control blocks, and of as many that say that
        nothing is to be done.
    latents : Binding
        x, float32 [images, channels, height / 8, width / 8].
    embeddings : Binding
        What the text encoder writes, float16 [rows, 77, width]; with guidance the rows of the
        unconditional half come first.
    in_loops : bool
        Whether the GPU goes through steps by itself, many for each launch, where it can.
    scales : Binding, optional
        Embeddings of the guidance scale, float16 [images, width], for a UNet that takes them.
    """

    def __init__(
        self,
        device: Device,
        plan: DeviceNetwork,
        kernel: Callable[[str], Kernel],
        scratch: int,
        controls: int,
        idle: int,
        latents: Binding,
        embeddings: Binding,
        in_loops: bool,
        scales: Binding | None = None,
    ) -> None:
        self._scales = scales
        self._device, self._plan, self._kernel, self._scratch = device, plan, kernel, scratch
        self._controls, self._idle = controls, idle
        self._latents, self._embeddings = latents, embeddings
        self._images, self._rows = latents.shape[0], embeddings.shape[0]
        self._count = int(np.prod(latents.shape[1:]))
        self._sample = device.allocate(FLOAT16.itemsize * self._count * self._rows)
        self._timestep = device.allocate(4 * self._rows)
        self._prediction = device.allocate(self._sample.size)
        self._feed, self._step = kernel("feed"), kernel("step")
        self._unets = {self._rows: self._bind(self._rows, embeddings.address)}
        self._conditional: Memory | None = None
        self._moments: tuple[Memory, Memory] | None = None
        self._steps: dict[StepForm, Steps] = {}
        self._in_loops = in_loops
        self._left = device.allocate(8) if in_loops else None
        # Those whose last step is followed by the VAE decoder, in one graph.
        self._decoding: dict[StepForm, Steps] = {}

    def steps(self, form: StepForm) -> Steps:
        """Return steps that are ready to be launched."""
        return self._steps[form]

    def decoding(self, form: StepForm) -> Steps | None:
        """Return those after whose last one there are pixels, if the GPU goes through them."""
        return self._decoding.get(form)

    def prepare(self, form: StepForm) -> bool:
        """Take the memory of a form of step; return whether it is still to be recorded."""
        images, rows = self._images, self._images * form.halves
        if rows not in self._unets:
            _, tokens, width = self._embeddings.shape
            # TensorRT wants tensors at multiples of 256 bytes, where the half need not begin.
            self._conditional = self._device.allocate(FLOAT16.itemsize * rows * tokens * width)
            self._unets[rows] = self._bind(rows, self._conditional.address)
        if form.rescaled and self._moments is None:
            allocate = self._device.allocate
            self._moments = allocate(8 * 4 * PARTS * images), allocate(4 * images)
        return form not in self._steps

    def record(self, form: StepForm, decode: Callable[[], None]) -> None:
        """Run one step outside of a graph, as TensorRT asks, which changes no slot; record another.

        A UNet that cannot be recorded is enqueued piece by piece from then on, with a warning, and
        one that cannot be in a loop has a graph for a step.

        Parameters
        ----------
        form : StepForm
            How it is done.
        decode : callable
            Enqueues what makes pixels of the whole batch's latents; for steps in loops.
        """
        self._enqueue(form, self._idle)
        enqueue = partial(self.enqueue, form)
        if self._plan.recordable:
            unet = self._unets[self._images * form.halves]
            try:
                if not unet.can_record(self._device.stream):
                    raise EngineError("TensorRT says so")
                if not self._record_loops(form, decode):
                    self._steps[form] = GraphPerStep(self._device.record(enqueue))
                return
            except EngineError as error:
                self._plan.recordable = False
                warnings.warn(
                    f"the UNet cannot run in a CUDA graph ({error}), so every step takes the host "
                    "longer",
                    stacklevel=2,
                )
        self._steps[form] = Pieces(enqueue)

    def _record_loops(self, form: StepForm, decode: Callable[[], None]) -> bool:
        """Record steps in a loop, without and with what follows the last one; or warn."""
        if not self._in_loops:
            return False
        assert self._left is not None
        left, repeat, set_steps = (
            self._left.address,
            self._kernel("repeat"),
            self._kernel("set_steps"),
        )

        def body(loop: int) -> None:
            self.enqueue(form)
            repeat(1, left, loop)

        def recorded(after: Callable[[], None]) -> Steps:
            graph = self._device.record_loop(body, after)
            return Loop(graph, lambda steps: set_steps(1, left, steps))

        try:
            self._steps[form] = recorded(lambda: None)
        except EngineError as error:
            self._in_loops = False
            warnings.warn(
                f"the UNet cannot run in a loop of a CUDA graph ({error}), so every step is "
                "launched by itself",
                stacklevel=2,
            )
            return False
        try:
            self._decoding[form] = recorded(decode)
        except EngineError as error:
            warnings.warn(
                f"the VAE decoder cannot run in a CUDA graph ({error}), so it runs by itself",
                stacklevel=2,
            )
        return True

    def enqueue(self, form: StepForm) -> None:
        """Enqueue one step without a graph."""
        self._enqueue(form, self._controls)

    def _enqueue(self, form: StepForm, controls: int) -> None:
        count, images, halves = self._count, self._images, form.halves
        prediction, latents, factors = self._prediction.address, self._latents.address, 0
        sample, timestep = self._sample.address, self._timestep.address
        size = images * count
        self._feed(size, controls, latents, sample, timestep, count, halves, images)
        self._unets[images * halves].enqueue(self._device.stream)
        if form.rescaled:
            assert self._moments is not None
            sums, factors = (memory.address for memory in self._moments)
            self._kernel("sum_moments")(
                images * PARTS, controls, prediction, sums, count, images, PARTS
            )
            self._kernel("rescale")(images, controls, sums, factors, count, images, PARTS)
        self._step(size, controls, prediction, latents, factors, count, halves, images)

    def enqueue_embeddings(self, forms: Collection[StepForm]) -> None:
        """Enqueue the copy of the conditional embeddings, if that half is to run alone."""
        if self._conditional is not None and StepForm(1, False) in forms:
            size = self._conditional.size
            source = Part(self._embeddings.address + size, size)
            self._device.copy(self._conditional, source, size)

    def _bind(self, rows: int, embeddings: int) -> BoundNetwork:
        shape = (rows, *self._latents.shape[1:])
        bindings = {
            "sample": Binding(self._sample.address, shape),
            "timestep": Binding(self._timestep.address, (rows,)),
            "encoder_hidden_states": Binding(embeddings, (rows, *self._embeddings.shape[1:])),
            "out_sample": Binding(self._prediction.address, shape),
        }
        if self._scales is not None:
            bindings[GUIDANCE_INPUT] = self._scales
        return self._plan.bind(bindings, self._scratch)
