"""Shared by solvers in the variance-preserving form x = α x_0 + σ ε, α² + σ² = 1."""

from __future__ import annotations

import math

import numpy as np

from bksdm.engines.errors import SamplerError
from bksdm.runtime.samplers.config import OFF, SCHEDULE, SchedulerConfig
from bksdm.runtime.samplers.schedule import noise_levels, spaced_levels, timesteps_of_levels
from bksdm.runtime.samplers.table import Vector

# diffusers lowers the order at the end of short runs only.
SHORT_RUN = 15
ARGUMENTS: dict[str, object] = {
    **SCHEDULE,
    "solver_order": 2,
    "thresholding": False,
    "lower_order_final": True,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_flow_sigmas": False,
    "use_dynamic_shifting": False,
    # Few classes take these two, but diffusers keeps them in the configuration of every other.
    "sigma_min": None,
    "sigma_max": None,
}
MULTISTEP: dict[str, object] = {**ARGUMENTS, "timestep_spacing": "linspace", "steps_offset": 0}
IMPLEMENTED: dict[str, tuple[object, ...]] = {
    "thresholding": OFF,
    "use_flow_sigmas": OFF,
    "use_dynamic_shifting": OFF,
}


def alpha_sigma(level: float) -> tuple[float, float]:
    """Return α and σ from σ/α."""
    alpha = (level**2 + 1) ** -0.5
    return alpha, level * alpha


def data_prediction(config: SchedulerConfig, x: Vector, level: float, output: Vector) -> Vector:
    """Return x_0 from the model's output: (x − σ ε) / α, or α x − σ v."""
    alpha, sigma = alpha_sigma(level)
    data: Vector
    if config.prediction_type == "epsilon":
        data = (x - sigma * output) / alpha
    else:
        data = alpha * x - sigma * output
    return data


def visited_levels(
    config: SchedulerConfig, steps: int, whole_karras: bool = True, ends_on_last: bool = False
) -> tuple[list[int], list[float]]:
    """Return timesteps, and the levels σ/α from the first to the final one.

    Parameters
    ----------
    config : SchedulerConfig
        The sampler's fields.
    steps : int
        Number of inference steps.
    whole_karras : bool
        Whether timesteps of Karras' and Lu's levels are rounded; others are cut off.
    ends_on_last : bool
        Whether ``final_sigmas_type`` ``sigma_min`` is the last of spaced levels, and not the
        schedule's first.

    Raises
    ------
    SamplerError
        ``steps`` is out of range, the levels have no order, or a timestep is beyond the trained
        ones.
    """
    train = config.num_train_timesteps
    if not 1 <= steps <= train:
        raise SamplerError(f"num_inference_steps must be from 1 to {train}, not {steps}")
    table = noise_levels(config)
    if -math.log(table[-1]) < config.lambda_min_clipped:
        raise SamplerError(
            f"scheduler config: lambda_min_clipped = {config.lambda_min_clipped:g} leaves out "
            "timesteps, which is not implemented"
        )
    final = float(table[0])
    if config.level_spacing is not None:
        levels = spaced_levels(config, float(table[0]), float(table[-1]), steps)
        times = timesteps_of_levels(levels, table)
        # diffusers makes them whole in the end; only some it rounds before.
        rounds = whole_karras and config.level_spacing in ("karras", "lu")
        times = times.round() if rounds else times
        final = float(levels[-1]) if ends_on_last else final
    else:
        times = _spaced(config, steps)
        if times[0] >= train:
            raise SamplerError("scheduler config: steps_offset leads beyond the training timesteps")
        levels = np.interp(times, np.arange(train), table)
    final = 0.0 if config.final_sigmas_type == "zero" else final
    rounded = np.append(levels, final).astype(np.float32)
    return [int(t) for t in times], [float(level) for level in rounded]


def _spaced(config: SchedulerConfig, steps: int) -> Vector:
    """Return timesteps that leave room for the final level: one more interval than others have."""
    train = config.num_train_timesteps
    if config.timesteps is not None:
        return np.array(config.timesteps, np.float64)
    if config.timestep_spacing == "linspace":
        rising: Vector = np.linspace(0, train - 1, steps + 1).round()
        return rising[:0:-1]
    if config.timestep_spacing == "leading":
        return np.arange(steps, 0, -1.0) * (train // (steps + 1)) + config.steps_offset
    return np.round(np.arange(train, 0, -(train / steps))) - 1
