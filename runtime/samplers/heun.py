"""Heun's method, second order (Karras et al. 2022, arXiv 2206.00364, algorithm 1 without churn)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bksdm.runtime.samplers.config import OFF, SchedulerConfig
from bksdm.runtime.samplers.exploding import SPACED, Levels
from bksdm.runtime.samplers.sampler import Sampler, spaced
from bksdm.runtime.samplers.table import Draw, Predict, Solver, Vector

ARGUMENTS = {**SPACED, "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}


def heun(fields: Mapping[str, object], steps: int) -> Solver:
    """Prepare Heun as diffusers' ``HeunDiscreteScheduler`` runs it: 2 N − 1 evaluations.

    x̃ = x + h d(x, σ), x' = x + h (d(x, σ) + d(x̃, σ')) / 2, h = σ' − σ; Euler's step to σ' = 0.

    Raises
    ------
    SamplerError
        A field is not implemented.
    """
    config = SchedulerConfig.read(fields, ARGUMENTS, {"clip_sample": OFF}, ("timesteps",))
    levels = Levels.of(config, steps)
    times = [float(t) for t in np.array(levels.times, np.float32)]

    def solve(x: Vector, predict: Predict, draw: Draw, first: int) -> Vector:
        for k, t in list(enumerate(times))[first:]:
            sigma, following = levels.sigmas[k : k + 2]
            h = following - sigma
            slope = levels.derivative(x, sigma, t, predict)
            reached = x + h * slope
            if following > 0:
                corrected = levels.derivative(reached, following, times[k + 1], predict)
                reached = x + h * (slope + corrected) / 2
            x = reached
        return x

    return Solver(solve, levels.initial)


SAMPLERS = (Sampler("HeunDiscreteScheduler", heun, spaced("heun")),)
