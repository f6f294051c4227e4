"""What solvers in the variance-preserving form x = α x_0 + σ ε, α² + σ² = 1, share."""

from __future__ import annotations

import numpy as np

from bksdm.engines.errors import SamplerError
from bksdm.runtime.samplers.config import SchedulerConfig
from bksdm.runtime.samplers.schedule import alphas_cumprod, spaced_levels, timesteps_of_levels
from bksdm.runtime.samplers.table import Vector

# diffusers lowers the order at the end of short runs only.
SHORT_RUN = 15
REFUSED = {
    "thresholding": False,
    "use_lu_lambdas": False,
    "use_flow_sigmas": False,
    "rescale_betas_zero_snr": False,
    "use_dynamic_shifting": False,
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


def visited_levels(config: SchedulerConfig, steps: int) -> tuple[list[int], list[float]]:
    """Return timesteps, and the levels σ/α from the first to the final one.

    Raises
    ------
    SamplerError
        ``steps`` is out of range, or a timestep beyond the trained ones.
    """
    train = config.num_train_timesteps
    if not 1 <= steps <= train:
        raise SamplerError(f"num_inference_steps must be from 1 to {train}, not {steps}")
    alphas = alphas_cumprod(config)
    table = np.sqrt((np.float32(1) - alphas) / alphas)
    if config.level_spacing is not None:
        levels = spaced_levels(config.level_spacing, float(table[0]), float(table[-1]), steps)
        times = timesteps_of_levels(levels, table)
        # diffusers makes them whole in the end; only some it rounds before.
        rounds = config.level_spacing == "karras" and config.beta_schedule != "squaredcos_cap_v2"
        times = times.round() if rounds else times
    else:
        times = _spaced(config, steps)
        if times[0] >= train:
            raise SamplerError("scheduler config: steps_offset leads beyond the training timesteps")
        levels = np.interp(times, np.arange(train), table)
    final = 0.0 if config.final_sigmas_type == "zero" else float(table[0])
    rounded = np.append(levels, final).astype(np.float32)
    return [int(t) for t in times], [float(level) for level in rounded]


def _spaced(config: SchedulerConfig, steps: int) -> Vector:
    """Return timesteps that leave room for the final level: one more interval than others have."""
    train = config.num_train_timesteps
    if config.timestep_spacing == "linspace":
        return np.linspace(0, train - 1, steps + 1).round()[:0:-1]
    if config.timestep_spacing == "leading":
        return np.arange(steps, 0, -1.0) * (train // (steps + 1)) + config.steps_offset
    return np.round(np.arange(train, 0, -(train / steps))) - 1
