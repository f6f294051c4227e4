"""Compile a sampler into one lower-triangular matrix.

Every sampler here is linear in the starting latents and the model's outputs, whatever its code does
with history:  x_k = R[k, 0] · x_T + Σ_{j<k} R[k, j+1] · ε_j + Σ_i S[k, i] · z_i, where z_i is the
noise that stochastic samplers add.  Running the sampler's own code once on basis vectors therefore
reads off R and S, and the loop needs nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Level = tuple[float, float]


class Predict(Protocol):
    """The model as a sampler sees it."""

    def __call__(
        self,
        x: Vector,
        timestep: float,
        level: Level,
        scale: float = 1.0,
        known: Level | None = None,
    ) -> Vector:
        """Return the model's output for the input ``x · scale`` at ``timestep``.

        ``level`` is α and σ of x = α x_0 + σ ε, and ``known`` those that a picture is brought to
        beside x, where diffusers takes others.
        """
        ...


Draw = Callable[[], Vector]
"""Returns fresh unit noise; each call is one draw from the random stream."""


@dataclass(frozen=True)
class Solver:
    """A sampler prepared for one configuration and number of steps.

    ``solve(x, predict, draw, first)`` is the textbook loop from the starting latents to the result,
    without the steps before ``first``, as if x stood at that step's noise level; with all of them,
    ``init_noise_sigma`` is what unit noise is multiplied by to become the starting latents.
    """

    solve: Callable[[Vector, Predict, Draw, int], Vector]
    init_noise_sigma: float = 1.0


@dataclass(frozen=True, kw_only=True)
class StepTable:
    """A compiled sampler with N model evaluations; immutable, float64.

    Attributes
    ----------
    timesteps : ndarray, shape [N]
        What the UNet is told; fractional where a method's levels lie between trained ones.
    input_scale : ndarray, shape [N]
        The UNet's input at evaluation k is ``x_k * input_scale[k]``.
    rows : ndarray, shape [N + 1, N + 1]
        ``x_k = rows[k] @ [x_T, ε_0 … ε_{N-1}]``; row N is the result. Lower triangular.
    init_noise_sigma : float
        ``x_T = init_noise_sigma * noise``.
    noise : ndarray, shape [N + 1, draws]
        ``noise[k] @ [z_0, z_1 …]`` is added to x_k; unit noise in the order in which it is drawn,
        after the starting latents. Without columns where the sampler is deterministic.
    levels : ndarray, shape [N + 1, 2]
        α and σ of ``x_k = α x_0 + σ ε``, as a picture is brought to that noise level; 1 and 0 of
        the result.
    denoised : ndarray, shape [N, 2]
        What the model takes the picture for at evaluation k:
        ``x̂_0 = denoised[k, 0] * x_k + denoised[k, 1] * ε_k``.
    carried : ndarray, shape [N + 1, N - 1]
        What becomes of latents that somebody changes on the way: where δ is added to x_{j+1} before
        evaluation j + 1, ``carried[k, j] * δ`` is added to every later x_k. A method's history
        stays what it was.
    """

    timesteps: Vector
    input_scale: Vector
    rows: Vector
    init_noise_sigma: float
    noise: Vector
    levels: Vector
    denoised: Vector
    carried: Vector

    @property
    def arrays(self) -> tuple[Vector, ...]:
        """All of them, in the order in which a file of tables has them."""
        return (
            self.timesteps,
            self.input_scale,
            self.rows,
            self.noise,
            self.levels,
            self.denoised,
            self.carried,
        )

    @property
    def draws(self) -> int:
        """How often noise is drawn after the starting latents."""
        return int(self.noise.shape[1])

    def __len__(self) -> int:
        return len(self.timesteps)


def denoising(levels: Vector, prediction_type: str) -> Vector:
    """Return the coefficients of x and of the model's output in x̂_0, [N, 2].

    With n² = α² + σ², which is 1 where a method keeps the variance: x/α − σ/α ε of predicted noise
    ε, and α/n² x − σ/n v of a predicted velocity v = (α ε − σ x_0)/n (Salimans & Ho 2022, arXiv
    2202.00512).

    Parameters
    ----------
    levels : ndarray, shape [N, 2]
        α and σ of x = α x_0 + σ ε.
    prediction_type : str
        ``epsilon`` or ``v_prediction``, as diffusers' schedulers name it.
    """
    alpha, sigma = levels.T
    if prediction_type == "epsilon":
        return np.stack([1 / alpha, -sigma / alpha], axis=1)
    norm = np.hypot(alpha, sigma)
    return np.stack([alpha / norm**2, -sigma / norm], axis=1)


def compile_solver(solver: Solver, first: int = 0, prediction_type: str = "epsilon") -> StepTable:
    """Run ``solver`` from its step ``first`` on basis vectors and read off its table."""
    timesteps: list[float] = []
    levels: list[Level] = []
    own_levels: list[Level] = []
    scales: list[float] = []
    drawn = 0

    def count(
        x: Vector, timestep: float, level: Level, scale: float = 1.0, known: Level | None = None
    ) -> Vector:
        timesteps.append(timestep)
        own_levels.append(level)
        levels.append(level if known is None else known)
        scales.append(scale)
        return x

    def count_draw() -> Vector:
        nonlocal drawn
        drawn += 1
        return np.zeros(0)

    solver.solve(np.zeros(0), count, count_draw, first)
    evaluations = len(timesteps)
    changeable = max(evaluations - 1, 0)
    basis = np.eye(1 + evaluations + drawn + changeable)
    outputs = iter(basis[1 : 1 + evaluations])
    noises = iter(basis[1 + evaluations : 1 + evaluations + drawn])
    changes = iter(basis[1 + evaluations + drawn :])
    found: list[Vector] = []

    def record(
        x: Vector, timestep: float, level: Level, scale: float = 1.0, known: Level | None = None
    ) -> Vector:
        found.append(x.copy())
        if len(found) > 1:
            # In place, so that a sampler goes on from it exactly where it goes on from what it
            # showed to the model, and not where it has kept an earlier x.
            x += next(changes)
        return next(outputs)

    found.append(solver.solve(basis[0].copy(), record, lambda: next(noises), first))
    rows, noise, carried = np.split(
        np.stack(found), [1 + evaluations, 1 + evaluations + drawn], axis=1
    )
    table = StepTable(
        timesteps=np.array(timesteps, np.float64),
        input_scale=np.array(scales, np.float64),
        rows=np.ascontiguousarray(rows),
        init_noise_sigma=float(solver.init_noise_sigma),
        noise=np.ascontiguousarray(noise),
        levels=np.array([*levels, (1.0, 0.0)]),
        denoised=denoising(np.array(own_levels, np.float64).reshape(-1, 2), prediction_type),
        carried=np.ascontiguousarray(carried),
    )
    for array in table.arrays:
        array.flags.writeable = False
    return table
