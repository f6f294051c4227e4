"""Euler's method on the probability-flow ODE (Karras et al. 2022, arXiv 2206.00364)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bksdm.runtime.samplers.exploding import Levels, ancestral_split
from bksdm.runtime.samplers.table import Draw, Predict, Solver, Vector


def euler(fields: Mapping[str, object], steps: int) -> Solver:
    """Prepare Euler as diffusers' ``EulerDiscreteScheduler`` runs it without churn.

    x' = x + (σ' − σ) dx/dσ

    Raises
    ------
    SamplerError
        A field is not implemented.
    """
    levels = Levels.read(fields, steps, {"interpolation_type": "linear"})
    # Its timesteps are float32; those of whole numbers stay what they are.
    times = np.array(levels.times, np.float32)

    def solve(x: Vector, predict: Predict, draw: Draw, first: int) -> Vector:
        for k, t in list(enumerate(times))[first:]:
            sigma, following = levels.sigmas[k : k + 2]
            x = x + (following - sigma) * levels.derivative(x, sigma, float(t), predict)
        return x

    return Solver(solve, levels.initial)


def euler_ancestral(fields: Mapping[str, object], steps: int) -> Solver:
    """Prepare Euler with noise as diffusers' ``EulerAncestralDiscreteScheduler`` runs it.

    x' = x + (σ_down − σ) dx/dσ + σ_up z, with fresh noise z in every step.

    Raises
    ------
    SamplerError
        A field is not implemented.
    """
    required = {f"use_{name}_sigmas": False for name in ("karras", "exponential", "beta")}
    levels = Levels.read(fields, steps, {**required, "final_sigmas_type": "zero"})

    def solve(x: Vector, predict: Predict, draw: Draw, first: int) -> Vector:
        for k, t in list(enumerate(levels.times))[first:]:
            sigma = levels.sigmas[k]
            down, up = ancestral_split(sigma, levels.sigmas[k + 1])
            x = x + (down - sigma) * levels.derivative(x, sigma, t, predict) + up * draw()
        return x

    return Solver(solve, levels.initial)
