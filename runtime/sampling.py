"""The diffusion loop: one matrix row, one noise prediction, again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bksdm.runtime.samplers import StepTable

Latents = NDArray[np.float32]


@dataclass(frozen=True)
class Step:
    """State after evaluation ``index`` of ``total``; the next one starts from ``latents``.

    Attributes
    ----------
    index, total : int
        Of the evaluations, from 0.
    timestep : float
        What the model was told.
    latents : ndarray, float32, shape [batch, channels, height, width]
        x_{k+1}; after the last one x_0.
    before, output : ndarray, float32, of the same shape
        x_k and what the model, with guidance, made of it.
    weights : (float, float)
        Their parts in ``denoised``.
    """

    index: int
    total: int
    timestep: float
    latents: Latents
    before: Latents
    output: Latents
    weights: tuple[float, float]

    @property
    def denoised(self) -> Latents:
        """x̂_0: the latents of the picture that the model sees behind the noise."""
        first, second = (np.float32(weight) for weight in self.weights)
        return first * self.before + second * self.output


@dataclass(frozen=True)
class Known:
    """What of a picture stays as it was; an ordinary UNet inpaints that way.

    Every sampler works value by value, so replacing some in every step changes nothing else.

    Attributes
    ----------
    latents, noise : ndarray, float32, shape [batch, channels, height, width]
        x_0 of the picture, and the unit noise ε that it is noised with.
    painted : ndarray of bool, shape [batch, 1, height, width]
        Where the picture is made anew.
    """

    latents: Latents
    noise: Latents
    painted: NDArray[np.bool_]

    def restored(self, x: Latents, alpha: np.float32, sigma: np.float32) -> Latents:
        """Return x with α x_0 + σ ε where nothing is painted."""
        return np.where(self.painted, x, alpha * self.latents + sigma * self.noise)


def sample(
    table: StepTable,
    start: Latents,
    predict: Callable[[Latents, float, int, Latents], None],
    noises: Latents,
    known: Known | None = None,
) -> Iterator[Step]:
    """Run a compiled sampler, yielding after every noise prediction; the last step holds x_0.

    x_k = rows[k] · [x_T, ε_0 … ε_{k-1}] + noise[k] · [z_0, z_1 …]

    Parameters
    ----------
    table : StepTable
        The compiled sampler.
    start : ndarray, float32, shape [batch, channels, height, width]
        x_T, already multiplied by ``table.init_noise_sigma``.
    predict : callable
        ``predict(model_input, timestep, index, out)`` writes the guided noise prediction to
        ``out``, float32, of the same shape.
    noises : ndarray, float32, shape [table.draws, *start.shape]
        z_i, unit noise that a stochastic sampler adds; empty for the others.
    known : Known, optional
        What follows the noise levels instead of the sampler.
    """
    total = len(table)
    history = np.empty((total + 1, start.size), np.float32)
    history[0] = start.reshape(-1)
    rows, added = table.rows.astype(np.float32), table.noise.astype(np.float32)
    levels = table.levels.astype(np.float32)
    drawn = noises.reshape(table.draws, start.size)
    latents = start
    for k, timestep in enumerate(table.timesteps):
        scale = np.float32(table.input_scale[k])
        scaled = latents if scale == 1 else latents * scale
        before, output = latents, history[k + 1].reshape(start.shape)
        predict(scaled, float(timestep), k, output)
        moved = rows[k + 1, : k + 2] @ history[: k + 2]
        if table.draws:
            moved += added[k + 1] @ drawn
        latents = moved.reshape(start.shape)
        if known is not None:
            latents = known.restored(latents, *levels[k + 1])
        yield Step(k, total, float(timestep), latents, before, output, tuple(table.denoised[k]))
