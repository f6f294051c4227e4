"""DPM-Solver-2 in σ, as k-diffusion has it (Lu et al. 2022, arXiv 2206.00927)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bksdm.runtime.samplers.config import SchedulerConfig
from bksdm.runtime.samplers.exploding import SPACED, Levels, ancestral_split
from bksdm.runtime.samplers.sampler import Sampler, spaced
from bksdm.runtime.samplers.schedule import timesteps_of_levels
from bksdm.runtime.samplers.table import Draw, Predict, Solver, Vector

ARGUMENTS = {**SPACED, "beta_start": 0.00085, "beta_end": 0.012}


def kdpm2(fields: Mapping[str, object], steps: int) -> Solver:
    """Prepare DPM-Solver-2 as diffusers' ``KDPM2DiscreteScheduler`` runs it: 2 N − 1 evaluations.

    With σ_mid = √(σ σ'): x_mid = x + (σ_mid − σ) d(x, σ), x' = x + (σ' − σ) d(x_mid, σ_mid);
    Euler's step to σ' = 0.

    Raises
    ------
    SamplerError
        A field is not implemented.
    """
    return _prepare(fields, steps, ancestral=False)


def kdpm2_ancestral(fields: Mapping[str, object], steps: int) -> Solver:
    """Prepare it with noise, as diffusers' ``KDPM2AncestralDiscreteScheduler`` runs it.

    The step goes to σ_down, σ_mid = √(σ σ_down), and σ_up z is added.

    Raises
    ------
    SamplerError
        A field is not implemented.
    """
    return _prepare(fields, steps, ancestral=True)


def _prepare(fields: Mapping[str, object], steps: int, ancestral: bool) -> Solver:
    levels = Levels.of(SchedulerConfig.read(fields, ARGUMENTS, {}), steps, whole_karras=True)

    def solve(x: Vector, predict: Predict, draw: Draw, first: int) -> Vector:
        for k, t in list(enumerate(levels.times))[first:]:
            sigma, following = levels.sigmas[k : k + 2]
            down, up = ancestral_split(sigma, following) if ancestral else (following, 0.0)
            slope = levels.derivative(x, sigma, t, predict)
            if following == 0:
                return x - sigma * slope
            # diffusers rounds the level between the two to float32.
            middle = float(np.float32((sigma * down) ** 0.5))
            between = float(timesteps_of_levels(np.array([middle]), levels.table)[0])
            # diffusers brings a picture to the next level where the evaluation is between the two.
            x_mid = x + (middle - sigma) * slope
            slope = levels.derivative(x_mid, middle, between, predict, known=following)
            x = x + (down - sigma) * slope
            if ancestral:
                x = x + up * draw()
        return x

    return Solver(solve, levels.initial)


SAMPLERS = (
    Sampler("KDPM2DiscreteScheduler", kdpm2, spaced("kdpm2"), {"kdpm2": ("dpm_2",)}),
    Sampler(
        "KDPM2AncestralDiscreteScheduler",
        kdpm2_ancestral,
        spaced("kdpm2-a"),
        {"kdpm2-a": ("dpm_2_ancestral", "dpm2_a")},
    ),
)
