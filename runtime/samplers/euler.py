"""Euler's method on the probability-flow ODE (Karras et al. 2022, arXiv 2206.00364)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bksdm.runtime.samplers.config import CUSTOM, OFF, SchedulerConfig
from bksdm.runtime.samplers.exploding import ARGUMENTS, SPACED, Levels, ancestral_split
from bksdm.runtime.samplers.sampler import Sampler, spaced
from bksdm.runtime.samplers.table import Draw, Predict, Solver, Vector

EULER = {
    **SPACED,
    "interpolation_type": "linear",
    "timestep_type": "discrete",
    "rescale_betas_zero_snr": False,
    "final_sigmas_type": "zero",
}
ANCESTRAL = {**ARGUMENTS, "rescale_betas_zero_snr": False}


def euler(fields: Mapping[str, object], steps: int) -> Solver:
    """Prepare Euler as diffusers' ``EulerDiscreteScheduler`` runs it without churn.

    x' = x + (σ' − σ) dx/dσ

    Raises
    ------
    SamplerError
        A field is not implemented.
    """
    implemented = {"interpolation_type": ("linear",), "rescale_betas_zero_snr": OFF}
    if fields.get("prediction_type") == "v_prediction":
        # Of no other prediction does diffusers make the timesteps continuous.
        implemented["timestep_type"] = ("discrete",)
    levels = Levels.of(SchedulerConfig.read(fields, EULER, implemented, CUSTOM), steps)
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
    config = SchedulerConfig.read(fields, ANCESTRAL, {"rescale_betas_zero_snr": OFF})
    levels = Levels.of(config, steps)

    def solve(x: Vector, predict: Predict, draw: Draw, first: int) -> Vector:
        for k, t in list(enumerate(levels.times))[first:]:
            sigma = levels.sigmas[k]
            down, up = ancestral_split(sigma, levels.sigmas[k + 1])
            x = x + (down - sigma) * levels.derivative(x, sigma, t, predict) + up * draw()
        return x

    return Solver(solve, levels.initial)


SAMPLERS = (
    Sampler("EulerDiscreteScheduler", euler, spaced("euler")),
    Sampler(
        "EulerAncestralDiscreteScheduler",
        euler_ancestral,
        {"euler-a": {}},
        {"euler-a": ("euler_ancestral",)},
    ),
)
