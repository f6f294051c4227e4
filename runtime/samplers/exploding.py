"""Samplers in the variance-exploding form x = x_0 + σ ε (Karras et al. 2022, arXiv 2206.00364)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bksdm.runtime.samplers.config import SCHEDULE, SchedulerConfig
from bksdm.runtime.samplers.schedule import (
    noise_levels,
    spaced_levels,
    spaced_timesteps,
    timesteps_of_levels,
)
from bksdm.runtime.samplers.table import Predict, Vector

ARGUMENTS: dict[str, object] = {**SCHEDULE, "timestep_spacing": "linspace", "steps_offset": 0}
SPACED: dict[str, object] = {
    **ARGUMENTS,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    # Few classes take these two, but diffusers keeps them in the configuration of every other.
    "sigma_min": None,
    "sigma_max": None,
}


@dataclass(frozen=True)
class Levels:
    """The noise levels that a sampler visits.

    Attributes
    ----------
    times
        Timesteps, one per step.
    sigmas
        σ = √((1−ᾱ)/ᾱ), one per step and the final one.
    initial
        What unit noise is multiplied by.
    table
        σ of every trained timestep, float32.
    prediction_type
        What the model's output is.
    """

    times: tuple[float, ...]
    sigmas: tuple[float, ...]
    initial: float
    table: NDArray[np.float32]
    prediction_type: str

    @classmethod
    def of(cls, config: SchedulerConfig, steps: int, whole_karras: bool = False) -> Levels:
        """Choose the levels; ``whole_karras`` rounds the timesteps of Karras' levels.

        Raises
        ------
        SamplerError
            ``steps`` is out of range, or the levels have no order.
        """
        table = noise_levels(config)
        times = spaced_timesteps(config, steps).astype(np.float32).astype(np.float64)
        visited = np.interp(times, np.arange(len(table)), table)
        final = 0.0 if config.final_sigmas_type == "zero" else float(table[0])
        if config.sigmas is not None:
            visited, final = np.array(config.sigmas[:-1], np.float32), config.sigmas[-1]
            times = timesteps_of_levels(visited, table)
        elif config.level_spacing is not None:
            visited = spaced_levels(config, float(visited[-1]), float(visited[0]), steps)
            times = timesteps_of_levels(visited, table)
            if whole_karras and config.level_spacing == "karras":
                times = times.round()
        sigmas = np.append(visited, final).astype(np.float32)
        largest = float(sigmas.max())
        leading = config.timestep_spacing == "leading"
        return cls(
            tuple(float(t) for t in times),
            tuple(float(sigma) for sigma in sigmas),
            (largest**2 + 1) ** 0.5 if leading else largest,
            table,
            config.prediction_type,
        )

    def derivative(
        self,
        x: Vector,
        sigma: float,
        timestep: float,
        predict: Predict,
        known: float | None = None,
    ) -> Vector:
        """Return dx/dσ = (x − x̂_0) / σ; the model sees x / √(σ² + 1).

        ``known`` is the level that a picture is brought to beside x, by default σ.
        """
        shrink = (sigma**2 + 1) ** -0.5
        output = predict(x, timestep, (1.0, sigma), shrink, None if known is None else (1.0, known))
        if self.prediction_type == "epsilon":
            return output
        denoised = -sigma * shrink * output + shrink**2 * x
        slope: Vector = (x - denoised) / sigma
        return slope


def ancestral_split(sigma: float, following: float) -> tuple[float, float]:
    """Return σ_down = σ'²/σ and σ_up of one step: σ_down² + σ_up² = σ'².

    σ_up = √(σ'² (σ² − σ'²) / σ²), as k-diffusion's ancestral samplers have it.
    """
    up = (following**2 * (sigma**2 - following**2) / sigma**2) ** 0.5
    # k-diffusion's √(σ'² − σ_up²) cancels where the levels are far apart.
    return following**2 / sigma, up
