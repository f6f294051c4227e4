"""DDPM: ancestral sampling of the diffusion process (Ho et al. 2020, arXiv 2006.11239)."""

from __future__ import annotations

from collections.abc import Mapping

from bksdm.runtime.samplers.config import OFF, SCHEDULE, SchedulerConfig
from bksdm.runtime.samplers.sampler import Sampler
from bksdm.runtime.samplers.schedule import spaced_timesteps
from bksdm.runtime.samplers.table import Draw, Predict, Solver, Vector
from bksdm.runtime.samplers.transfer import NoiseLevels

ARGUMENTS = {
    **SCHEDULE,
    "variance_type": "fixed_small",
    "clip_sample": True,
    "thresholding": False,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
}
IMPLEMENTED: dict[str, tuple[object, ...]] = {
    # Without one, as DPM-Solver's configurations have it, diffusers takes the small one.
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", None),
    "clip_sample": OFF,
    "thresholding": OFF,
    "rescale_betas_zero_snr": OFF,
}


def ddpm(fields: Mapping[str, object], steps: int) -> Solver:
    """Prepare DDPM as diffusers' ``DDPMScheduler`` runs it.

    With β = 1 − ᾱ/ᾱ' of one step: x' = √ᾱ' β / (1−ᾱ) x̂_0 + √(1−β) (1−ᾱ') / (1−ᾱ) x + √v z, where
    v is β (1−ᾱ') / (1−ᾱ), or β for ``fixed_large``; without z at timestep 0.

    Raises
    ------
    SamplerError
        A field is not implemented.
    """
    config = SchedulerConfig.read(fields, ARGUMENTS, IMPLEMENTED, ("timesteps",))
    levels = NoiseLevels.of(config)
    times = [int(t) for t in spaced_timesteps(config, steps).round()]

    def solve(x: Vector, predict: Predict, draw: Draw, first: int) -> Vector:
        for k, t in list(enumerate(times))[first:]:
            data = levels.data(x, t, predict(x, t, levels.at(t)))
            alpha = levels.alpha(t)
            following = levels.alpha(times[k + 1]) if k + 1 < len(times) else 1.0
            beta = 1 - alpha / following
            x = (
                following**0.5 * beta / (1 - alpha) * data
                + (alpha / following) ** 0.5 * (1 - following) / (1 - alpha) * x
            )
            if t > 0:
                variance = max((1 - following) / (1 - alpha) * beta, 1e-20)
                if config.variance_type == "fixed_large":
                    variance = beta
                x = x + variance**0.5 * draw()
        return x

    return Solver(solve)


SAMPLERS = (Sampler("DDPMScheduler", ddpm, {"ddpm": {}}),)
