"""Euler's method on the probability-flow ODE (Karras et al. 2022, arXiv 2206.00364)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bksdm.runtime.samplers.config import SchedulerConfig
from bksdm.runtime.samplers.schedule import alphas_cumprod, spaced_timesteps
from bksdm.runtime.samplers.table import Predict, Solver, Vector


def euler(fields: Mapping[str, object], steps: int) -> Solver:
    """Prepare Euler as diffusers' ``EulerDiscreteScheduler`` runs it without churn.

    In the variance-exploding form x = x_0 + σ ε with σ = √((1−ᾱ)/ᾱ):  dx/dσ = (x − x̂_0)/σ.

    Raises
    ------
    SamplerError
        A field is not implemented (Karras, exponential or beta sigmas, continuous timesteps …).
    """
    config = SchedulerConfig.read(
        fields,
        defaults={"timestep_spacing": "linspace"},
        required={
            "use_karras_sigmas": False,
            "use_exponential_sigmas": False,
            "use_beta_sigmas": False,
            "rescale_betas_zero_snr": False,
            "interpolation_type": "linear",
            "timestep_type": "discrete",
            "final_sigmas_type": "zero",
        },
    )
    alphas = alphas_cumprod(config)
    levels = np.sqrt((np.float32(1) - alphas) / alphas)
    times = spaced_timesteps(config, steps).astype(np.float32)
    visited = np.interp(times, np.arange(len(levels)), levels).astype(np.float32)
    sigmas = [*visited.astype(np.float64), 0.0]
    largest = float(visited.max())
    leading = config.timestep_spacing == "leading"

    def solve(x: Vector, predict: Predict) -> Vector:
        for t, sigma, following in zip(times, sigmas[:-1], sigmas[1:], strict=True):
            shrink = (sigma**2 + 1) ** -0.5
            output = predict(x, float(t), shrink)
            if config.prediction_type == "epsilon":
                derivative = output
            else:
                denoised = -sigma * shrink * output + shrink**2 * x
                derivative = (x - denoised) / sigma
            x = x + (following - sigma) * derivative
        return x

    return Solver(solve, (largest**2 + 1) ** 0.5 if leading else largest)
