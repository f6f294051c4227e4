"""Samplers of consistency-distilled models: LCM and TCD."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bksdm.engines.errors import SamplerError
from bksdm.runtime.samplers.config import OFF, SCHEDULE, SchedulerConfig
from bksdm.runtime.samplers.sampler import Sampler
from bksdm.runtime.samplers.table import Draw, Predict, Solver, Vector
from bksdm.runtime.samplers.transfer import NoiseLevels

TCD = {
    **SCHEDULE,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "original_inference_steps": 50,
    "rescale_betas_zero_snr": False,
}
LCM = {**TCD, "timestep_scaling": 10.0, "clip_sample": False, "thresholding": False}
SIGMA_DATA = 0.5


def lcm(fields: Mapping[str, object], steps: int) -> Solver:
    """Prepare LCM (Luo et al. 2023, arXiv 2310.04378) as diffusers' ``LCMScheduler`` runs it.

    x̂ = c_out x̂_0 + c_skip x, x' = √ᾱ' x̂ + √(1−ᾱ') z, and x̂ itself in the last step, with
    c_skip = s² / (τ² + s²), c_out = τ / √(τ² + s²), τ = scaling · t, s = 1/2.

    Raises
    ------
    SamplerError
        A field is not implemented, or there are more steps than the model was distilled for.
    """
    off = {"clip_sample": OFF, "thresholding": OFF, "rescale_betas_zero_snr": OFF}
    config = SchedulerConfig.read(fields, LCM, off, ("timesteps",))
    levels, times = NoiseLevels.of(config), distilled_timesteps(config, steps)

    def solve(x: Vector, predict: Predict, draw: Draw, first: int) -> Vector:
        for k, t in list(enumerate(times))[first:]:
            data = levels.data(x, t, predict(x, t, levels.at(t)))
            scaled = t * config.timestep_scaling
            skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
            out = scaled / (scaled**2 + SIGMA_DATA**2) ** 0.5
            x = out * data + skip * x
            if k + 1 < len(times):
                alpha = levels.alpha(times[k + 1])
                x = alpha**0.5 * x + (1 - alpha) ** 0.5 * draw()
        return x

    return Solver(solve)


def tcd(fields: Mapping[str, object], steps: int) -> Solver:
    """Prepare TCD (Zheng et al. 2024, arXiv 2402.19159) as diffusers' ``TCDScheduler`` runs it.

    With s = ⌊(1−η) t'⌋: x_s = √ᾱ_s x̂_0 + √(1−ᾱ_s) ε, x' = √(ᾱ'/ᾱ_s) x_s + √(1 − ᾱ'/ᾱ_s) z.

    Raises
    ------
    SamplerError
        A field is not implemented, or there are more steps than the model was distilled for.
    """
    # diffusers' class takes more, and leaves it alone.
    config = SchedulerConfig.read(fields, TCD, {"rescale_betas_zero_snr": OFF}, ("timesteps",))
    levels, times = NoiseLevels.of(config), distilled_timesteps(config, steps)

    def solve(x: Vector, predict: Predict, draw: Draw, first: int) -> Vector:
        for k, t in list(enumerate(times))[first:]:
            following = times[k + 1] if k + 1 < len(times) else 0
            output = predict(x, t, levels.at(t))
            data, noise = levels.data(x, t, output), levels.noise(x, t, output)
            between = levels.alpha(int(np.floor(np.float32(1 - config.eta) * following)))
            x = between**0.5 * data + (1 - between) ** 0.5 * noise
            if config.eta > 0 and k + 1 < len(times):
                kept = levels.alpha(following) / between
                x = kept**0.5 * x + (1 - kept) ** 0.5 * draw()
        return x

    return Solver(solve)


def distilled_timesteps(config: SchedulerConfig, steps: int) -> list[int]:
    """Return timesteps spread over those of the distillation, descending.

    Raises
    ------
    SamplerError
        There are more steps than those.
    """
    if config.timesteps is not None:
        return list(config.timesteps)
    most = config.original_inference_steps
    if not 1 <= steps <= most:
        raise SamplerError(
            f"num_inference_steps must be from 1 to {most} (original_inference_steps), not {steps}"
        )
    gap = config.num_train_timesteps // most
    trained = np.arange(most, 0, -1) * gap - 1
    chosen = np.floor(np.linspace(0, most, steps, endpoint=False)).astype(int)
    return [int(t) for t in trained[chosen]]


SAMPLERS = (
    Sampler("LCMScheduler", lcm, {"lcm": {}}),
    Sampler("TCDScheduler", tcd, {"tcd": {}}),
)
