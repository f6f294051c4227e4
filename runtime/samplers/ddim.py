"""DDIM: denoising diffusion implicit models (Song et al. 2020, arXiv 2010.02502), η = 0."""

from __future__ import annotations

from collections.abc import Mapping

from bksdm.runtime.samplers.config import SchedulerConfig
from bksdm.runtime.samplers.schedule import spaced_timesteps
from bksdm.runtime.samplers.table import Predict, Solver, Vector
from bksdm.runtime.samplers.transfer import NoiseLevels


def ddim(fields: Mapping[str, object], steps: int) -> Solver:
    """Prepare deterministic DDIM as diffusers' ``DDIMScheduler`` runs it with ``eta=0``.

    Raises
    ------
    SamplerError
        A field is not implemented (``clip_sample``, ``thresholding``, ``rescale_betas_zero_snr``).
    """
    config = SchedulerConfig.read(
        fields,
        defaults={"set_alpha_to_one": True, "clip_sample": True},
        required={"clip_sample": False, "thresholding": False, "rescale_betas_zero_snr": False},
    )
    levels = NoiseLevels.of(config)
    gap = config.num_train_timesteps // steps if steps > 0 else 0
    times = [int(t) for t in spaced_timesteps(config, steps).round()]

    def solve(x: Vector, predict: Predict) -> Vector:
        for t in times:
            x = levels.transfer(x, t, t - gap, predict(x, t))
        return x

    return Solver(solve)
