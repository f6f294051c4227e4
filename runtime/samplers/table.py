"""Compile a sampler into one lower-triangular matrix.

Every sampler here is linear in the starting latents and the model's outputs, whatever its code does
with history:  x_k = R[k, 0] · x_T + Σ_{j<k} R[k, j+1] · ε_j.  Running the sampler's own code once
on basis vectors therefore reads off R, and the loop needs nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


class Predict(Protocol):
    """The model as a sampler sees it."""

    def __call__(self, x: Vector, timestep: float, scale: float = 1.0) -> Vector:
        """Return the model's output for the input ``x · scale`` at ``timestep``."""
        ...


@dataclass(frozen=True)
class Solver:
    """A sampler prepared for one configuration and number of steps.

    ``solve(x, predict)`` is the textbook loop from the starting latents to the result;
    ``init_noise_sigma`` is what unit noise is multiplied by to become the starting latents.
    """

    solve: Callable[[Vector, Predict], Vector]
    init_noise_sigma: float = 1.0


@dataclass(frozen=True)
class StepTable:
    """A compiled sampler with N model evaluations; immutable, float64.

    Attributes
    ----------
    timesteps : ndarray, shape [N]
        What the UNet is told; whole numbers except for Euler with ``linspace`` spacing.
    input_scale : ndarray, shape [N]
        The UNet's input at evaluation k is ``x_k * input_scale[k]``.
    rows : ndarray, shape [N + 1, N + 1]
        ``x_k = rows[k] @ [x_T, ε_0 … ε_{N-1}]``; row N is the result. Lower triangular.
    init_noise_sigma : float
        ``x_T = init_noise_sigma * noise``.
    """

    timesteps: Vector
    input_scale: Vector
    rows: Vector
    init_noise_sigma: float

    def __len__(self) -> int:
        return len(self.timesteps)


def compile_solver(solver: Solver) -> StepTable:
    """Run ``solver`` on basis vectors and read off its table."""
    timesteps: list[float] = []
    scales: list[float] = []

    def count(x: Vector, timestep: float, scale: float = 1.0) -> Vector:
        timesteps.append(timestep)
        scales.append(scale)
        return x

    solver.solve(np.zeros(0), count)
    evaluations = len(timesteps)
    basis = np.eye(evaluations + 1)
    rows: list[Vector] = []

    def record(x: Vector, timestep: float, scale: float = 1.0) -> Vector:
        rows.append(x)
        unit: Vector = basis[len(rows)]
        return unit

    rows.append(solver.solve(basis[0], record))
    table = StepTable(
        np.array(timesteps, np.float64),
        np.array(scales, np.float64),
        np.stack(rows),
        float(solver.init_noise_sigma),
    )
    for array in (table.timesteps, table.input_scale, table.rows):
        array.flags.writeable = False
    return table
