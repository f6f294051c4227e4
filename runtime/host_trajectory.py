"""The latents of a job in numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bksdm.engines.protocol import Array
from bksdm.runtime.inpainting import Latents
from bksdm.runtime.job import DenoisingJob


class HostMoved(NamedTuple):
    """Implements :class:`~bksdm.runtime.sampling.Moved`."""

    previous: Latents
    noise_prediction: Latents
    latents: Latents


class HostTrajectory:
    """x_k = rows[k] · [x_T, ε_0 … ε_{k-1}] + noise[k] · [z_0, z_1 …], in float32.

    Parameters
    ----------
    job : DenoisingJob
        The pictures to make.
    conditioning : mapping
        The UNet's inputs beside the latents and the timestep, by name, [rows, …] in its dtypes;
        with guidance the rows of the unconditional half come first.

    Attributes
    ----------
    latents : ndarray, float32, shape [batch, channels, height, width]
        x_k.
    deep_features : ndarray or None
        Of the last evaluation of the whole UNet, [rows, …], for those that reuse them.
    """

    def __init__(self, job: DenoisingJob, conditioning: Mapping[str, Array]) -> None:
        table, start = job.table, job.latents
        self.conditioning = conditioning
        self.deep_features: Array | None = None
        self.latents = start
        self._inpainting = job.inpainting
        self._input_scale = table.input_scale.astype(np.float32)
        self._rows, self._added = table.rows.astype(np.float32), table.noise.astype(np.float32)
        self._levels = table.levels.astype(np.float32)
        self._history = np.empty((len(table) + 1, start.size), np.float32)
        self._history[0] = start.reshape(-1)
        self._noises = job.noises.reshape(table.draws, start.size)

    def model_input(self, index: int) -> Latents:
        """Return the UNet's input in an evaluation: x_k, scaled."""
        scale = self._input_scale[index]
        return self.latents if scale == 1 else self.latents * scale

    def advance(self, index: int, told: Latents) -> HostMoved:
        """Take the guided noise prediction ε_k, float32 of the latents' shape."""
        previous, shape = self.latents, self.latents.shape
        self._history[index + 1] = told.reshape(-1)
        moved = self._rows[index + 1, : index + 2] @ self._history[: index + 2]
        if len(self._noises):
            moved += self._added[index + 1] @ self._noises
        self.latents = moved.reshape(shape)
        if self._inpainting is not None:
            self.latents = self._inpainting.restored(self.latents, *self._levels[index + 1])
        return HostMoved(previous, self._history[index + 1].reshape(shape), self.latents)
