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
    """State after evaluation ``index`` of ``total``; the next one starts from ``latents``."""

    index: int
    total: int
    timestep: float
    latents: Latents


def sample(
    table: StepTable,
    start: Latents,
    predict: Callable[[Latents, float, int, Latents], None],
    noises: Latents,
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
    """
    total = len(table)
    history = np.empty((total + 1, start.size), np.float32)
    history[0] = start.reshape(-1)
    rows, added = table.rows.astype(np.float32), table.noise.astype(np.float32)
    drawn = noises.reshape(table.draws, start.size)
    latents = start
    for k, timestep in enumerate(table.timesteps):
        scale = np.float32(table.input_scale[k])
        scaled = latents if scale == 1 else latents * scale
        predict(scaled, float(timestep), k, history[k + 1].reshape(start.shape))
        moved = rows[k + 1, : k + 2] @ history[: k + 2]
        if table.draws:
            moved += added[k + 1] @ drawn
        latents = moved.reshape(start.shape)
        yield Step(k, total, float(timestep), latents)
