"""The latents of a job in numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bksdm.engines.protocol import Array, TensorSpec
from bksdm.runtime.inpainting import Latents
from bksdm.runtime.job import DenoisingJob


class HostMoved(NamedTuple):
    """Implements :class:`~bksdm.runtime.sampling.Moved`."""

    previous: Latents
    noise_prediction: Latents
    latents: Latents


class HostTrajectory:
    """x_k = rows[k] · [x_T, ε_0 … ε_{k-1}] + noise[k] · [z_0, z_1 …], in float32.

    Latents that were changed on the way add carried[k] · [δ_1, δ_2 …].

    Parameters
    ----------
    job : DenoisingJob
        The pictures to make.
    conditioning : mapping
        The UNet's inputs beside the latents and the timestep, by name, [rows, …] in its dtypes;
        with guidance the rows of the unconditional half come first.
    sample, timestep : TensorSpec
        Type and shape of these inputs of the UNet.

    Attributes
    ----------
    latents : ndarray, float32, shape [batch, channels, height, width]
        x_k.
    conditioning : mapping
        As it was given; replaced as a whole.
    shapes : tuple
        Of one image's latents, and of one row of each conditioning.
    deep_features : ndarray or None
        Of the last evaluation of the whole UNet, [rows, …], for those that reuse them.
    """

    def __init__(
        self,
        job: DenoisingJob,
        conditioning: Mapping[str, Array],
        sample: TensorSpec,
        timestep: TensorSpec,
    ) -> None:
        table, start = job.table, job.latents
        self.latents = start
        self.condition(conditioning)
        self.deep_features: Array | None = None
        self._inpainting = job.inpainting
        self._input_scale = table.input_scale.astype(np.float32)
        self._rows, self._added = table.rows.astype(np.float32), table.noise.astype(np.float32)
        self._levels = table.levels.astype(np.float32)
        self._history = np.empty((len(table) + 1, start.size), np.float32)
        self._history[0] = start.reshape(-1)
        self._predictions = self._history[1:].reshape(len(table), *start.shape)
        self._noises = job.noises.reshape(table.draws, start.size)
        self._written: Latents | None = None
        self._carried = table.carried
        self._changes: dict[int, Latents] = {}
        # Both halves, for guidance that is turned on on the way.
        self._sample = np.empty((2, *start.shape), sample.dtype)
        # One timestep per image where its axis is the batch's, else one for all: a scalar, or an
        # axis of its own as Optimum has it.
        self.timestep_per_row = timestep.shape[:1] == sample.shape[:1]
        rows = 2 * len(start) if self.timestep_per_row else 1
        self._timestep = np.empty(rows if timestep.shape else (), timestep.dtype)

    def condition(self, conditioning: Mapping[str, Array]) -> None:
        """Take other conditionings for the evaluations to come."""
        self.conditioning = conditioning
        self.shapes = tuple(array.shape[1:] for array in (self.latents, *conditioning.values()))

    def sample(self, index: int, guided: bool) -> Array:
        """Return the UNet's input in an evaluation: x_k, scaled, once or for both halves."""
        scale = self._input_scale[index]
        shown = self._sample if guided else self._sample[-1:]
        shown[:] = self.latents if scale == 1 else self.latents * scale
        return shown.reshape(-1, *self.latents.shape[1:])

    def timestep(self, value: float, rows: int) -> Array:
        """Return the UNet's timestep for so many rows, in its type and shape."""
        self._timestep.fill(value)
        return self._timestep[-rows:] if self.timestep_per_row else self._timestep

    def prediction(self, index: int) -> Latents:
        """Return where ε_k is kept, so that it can be written there before :meth:`advance`."""
        self._written = self._predictions[index]
        return self._written

    def advance(self, index: int, told: Latents) -> HostMoved:
        """Take the guided noise prediction ε_k, float32 of the latents' shape."""
        previous, shape = self.latents, self.latents.shape
        kept = self._predictions[index]
        if told is not self._written:
            kept[:] = told
        moved = self._rows[index + 1, : index + 2] @ self._history[: index + 2]
        if len(self._noises):
            moved += self._added[index + 1] @ self._noises
        for changed, change in self._changes.items():
            moved += np.float32(self._carried[index + 1, changed]) * change
        self.latents = moved.reshape(shape)
        if self._inpainting is not None:
            self.latents = self._inpainting.restored(self.latents, *self._levels[index + 1])
        return HostMoved(previous, kept, self.latents)

    def change(self, index: int, latents: Latents) -> None:
        """Go on from other latents than the x_{k+1} that evaluation ``index`` led to."""
        if index < self._carried.shape[1]:
            self._changes[index] = (latents - self.latents).reshape(-1)
        self.latents = latents
