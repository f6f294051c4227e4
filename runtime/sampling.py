"""The diffusion loop: ask for a noise prediction, be told it, move on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from bksdm.runtime.inpainting import Latents
from bksdm.runtime.job import DenoisingJob
from bksdm.runtime.validation import is_false

Told = TypeVar("Told")
Told_contra = TypeVar("Told_contra", contravariant=True)
StepCallback = Callable[["Step"], "bool | None"]
"""Called after every step; returning False cancels."""
Progress = Callable[[int, int], object]
"""Called with the evaluations that are done, and with all."""


class Moved(Protocol):
    """Latents around one step, float32 [batch, channels, height, width], fetched when asked for."""

    @property
    def previous(self) -> Latents:
        """x_k."""
        ...

    @property
    def noise_prediction(self) -> Latents:
        """ε_k, guided."""
        ...

    @property
    def latents(self) -> Latents:
        """x_{k+1}; after the last step x_0."""
        ...


class Trajectory(Protocol[Told_contra]):
    """Where a job's latents are: in numpy or on a GPU."""

    def advance(self, index: int, told: Told_contra) -> Moved:
        """Go from x_k to x_{k+1}, told the noise prediction of evaluation ``index``."""
        ...


@dataclass(frozen=True)
class Step:
    """State after evaluation ``index`` of ``total``.

    What it holds of latents is fetched when it is first asked for; on a GPU that has to be before
    the next step runs.

    Attributes
    ----------
    index, total : int
        Of the evaluations, from 0.
    timestep : float
        The model's timestep, which may be fractional.
    weights : (float, float)
        Parts of x_k and of ε_k in :attr:`denoised`.
    moved : Moved
        Where the latents are.
    denoising : Denoising
        The job that it is a step of.
    """

    index: int
    total: int
    timestep: float
    weights: tuple[float, float]
    moved: Moved
    denoising: Denoising[Any]

    @classmethod
    def of(cls, denoising: Denoising[Any], moved: Moved) -> Step:
        """Return the step that a job has just made."""
        table, index = denoising.job.table, denoising.index - 1
        first, second = map(float, table.denoised[index])
        timestep = float(table.timesteps[index])
        return cls(index, len(table), timestep, (first, second), moved, denoising)

    @cached_property
    def latents(self) -> Latents:
        """x_{k+1}, float32 [batch, channels, height, width]; after the last step x_0."""
        return self.moved.latents

    @cached_property
    def denoised(self) -> Latents:
        """x̂_0, the latents of the picture that the model sees behind the noise."""
        first, second = (np.float32(weight) for weight in self.weights)
        seen: Latents = first * self.moved.previous + second * self.moved.noise_prediction
        return seen


class Cancelled(Exception):
    """The step callback returned False; ``step`` is the last one that ran."""

    def __init__(self, step: Step) -> None:
        super().__init__(f"cancelled after step {step.index + 1} of {step.total}")
        self.step = step


@dataclass
class Watch:
    """Whoever looks on while pictures are made, and may stop it.

    Attributes
    ----------
    callback : callable, optional
        Called with every :class:`Step`; returning False cancels.
    progress : callable, optional
        Told the evaluations that are done, and of how many. On a GPU that costs nothing, unlike a
        callback, and happens in another thread, which may not use the model.
    interrupted : callable
        Asked before every evaluation; where it says True, the latents so far are the result.
    steps : int
        How many evaluations ran.
    """

    callback: StepCallback | None = None
    progress: Progress | None = None
    interrupted: Callable[[], bool] = lambda: False
    steps: int = 0


class Denoising(Generic[Told]):
    """A job on its way through its steps.

    Whoever drives it runs the UNet, for one job or for many::

        while not denoising.done:
            denoising.advance(predict(denoising))

    One thread at a time may drive it.

    Parameters
    ----------
    job : DenoisingJob
        The pictures to make.
    trajectory : Trajectory
        Holds the latents, and decides the type of what :meth:`advance` is told.
    watch : Watch, optional
        Who looks on.

    Attributes
    ----------
    guidance : Guidance or None
        The job's, which a callback may change for the evaluations to come.
    """

    def __init__(
        self, job: DenoisingJob, trajectory: Trajectory[Told], watch: Watch | None = None
    ) -> None:
        self.job = job
        self.trajectory = trajectory
        self.guidance = job.guidance
        self.index = 0
        self._total = len(job.table)
        self._watch = Watch() if watch is None else watch

    @property
    def done(self) -> bool:
        """Whether the latents are the result: x_0, or where it was interrupted."""
        return self.index == self._total or self._watch.interrupted()

    @property
    def timestep(self) -> float:
        """The model's timestep in the next evaluation."""
        return float(self.job.table.timesteps[self.index])

    @property
    def guided(self) -> bool:
        """Whether the next evaluation runs both halves of the UNet's batch."""
        return self.guidance is not None and self.guidance.at(self.index, self._total)

    def advance(self, told: Told) -> None:
        """Take the noise prediction that was asked for, and make the step.

        Raises
        ------
        Cancelled
            The callback returned False.
        """
        moved = self.trajectory.advance(self.index, told)
        self.index += 1
        self._watch.steps = self.index
        if self._watch.callback is not None:
            step = Step.of(self, moved)
            if is_false(self._watch.callback(step)):
                raise Cancelled(step)
