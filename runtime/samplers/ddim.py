"""DDIM: denoising diffusion implicit models (Song et al. 2020, arXiv 2010.02502)."""

from __future__ import annotations

from collections.abc import Mapping

from bksdm.runtime.samplers.config import OFF, SCHEDULE, SchedulerConfig
from bksdm.runtime.samplers.sampler import Sampler
from bksdm.runtime.samplers.schedule import spaced_timesteps
from bksdm.runtime.samplers.table import Draw, Predict, Solver, Vector
from bksdm.runtime.samplers.transfer import NoiseLevels

ARGUMENTS = {
    **SCHEDULE,
    "clip_sample": True,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "thresholding": False,
    "timestep_spacing": "leading",
    "rescale_betas_zero_snr": False,
}
IMPLEMENTED = {"clip_sample": OFF, "thresholding": OFF, "rescale_betas_zero_snr": OFF}


def ddim(fields: Mapping[str, object], steps: int) -> Solver:
    """Prepare DDIM as diffusers' ``DDIMScheduler`` runs it, with its argument ``eta`` as a field.

    Equation 12: x' = √ᾱ' x̂_0 + √(1 − ᾱ' − s²) ε + s z, s² = η² (1−ᾱ')/(1−ᾱ) (1 − ᾱ/ᾱ').

    Raises
    ------
    SamplerError
        A field is not implemented (``clip_sample``, ``thresholding``, ``rescale_betas_zero_snr``).
    """
    config = SchedulerConfig.read(fields, ARGUMENTS, IMPLEMENTED)
    levels = NoiseLevels.of(config)
    gap = config.num_train_timesteps // steps if steps > 0 else 0
    times = [int(t) for t in spaced_timesteps(config, steps).round()]

    def solve(x: Vector, predict: Predict, draw: Draw, first: int) -> Vector:
        for t in times[first:]:
            output = predict(x, t, levels.at(t))
            if config.eta == 0:
                x = levels.transfer(x, t, t - gap, output)
                continue
            noise = levels.noise(x, t, output)
            alpha, goal = levels.alpha(t), levels.alpha(t - gap)
            spread = config.eta * ((1 - goal) / (1 - alpha) * (1 - alpha / goal)) ** 0.5
            x = (
                goal**0.5 * levels.data(x, t, output)
                + max(1 - goal - spread**2, 0.0) ** 0.5 * noise
                + spread * draw()
            )
        return x

    return Solver(solve)


SAMPLERS = (Sampler("DDIMScheduler", ddim, {"ddim": {}}),)
