"""PNDM: pseudo numerical methods for diffusion models (Liu et al. 2022, arXiv 2202.09778)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from bksdm.engines.errors import SamplerError
from bksdm.runtime.samplers.config import SCHEDULE, SchedulerConfig
from bksdm.runtime.samplers.sampler import Sampler
from bksdm.runtime.samplers.schedule import spaced_timesteps
from bksdm.runtime.samplers.table import Draw, Predict, Solver, Vector
from bksdm.runtime.samplers.transfer import NoiseLevels

ARGUMENTS = {
    **SCHEDULE,
    "skip_prk_steps": False,
    "set_alpha_to_one": False,
    "timestep_spacing": "leading",
    "steps_offset": 0,
}
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def pndm(fields: Mapping[str, object], steps: int) -> Solver:
    """Prepare PNDM as diffusers' ``PNDMScheduler`` runs it.

    With ``skip_prk_steps`` (every Stable Diffusion) this is PLMS: Adams–Bashforth of rising order,
    whose first step is evaluated twice, so N steps take N + 1 evaluations. Without, the first three
    steps are pseudo Runge–Kutta, four evaluations each. From a later step on it begins as it does
    from the first: the second evaluation repeats the first step.

    Raises
    ------
    SamplerError
        A field is not implemented, or fewer than 4 steps are asked of the Runge–Kutta start.
    """
    config = SchedulerConfig.read(fields, ARGUMENTS, {})
    levels = NoiseLevels.of(config)
    gap = config.num_train_timesteps // steps if steps > 0 else 0
    times = [int(t) for t in spaced_timesteps(config, steps).round()]
    if not config.skip_prk_steps and len(times) < 4:
        raise SamplerError(f"skip_prk_steps = False needs at least 4 steps, not {steps}")

    def solve(x: Vector, predict: Predict, draw: Draw, first: int) -> Vector:
        if config.skip_prk_steps:
            visited = [*times[:2], times[1], *times[2:]] if steps > 1 else times
            # The repeated one would be left where no step is.
            return _plms(x, visited[first:] if first < steps else [], [], predict)
        if first > 0:
            raise SamplerError("skip_prk_steps = False cannot begin in the middle of the steps")
        x, history = _runge_kutta(x, times[:4], predict)
        return _plms(x, times[3:], history, predict)

    def _plms(x: Vector, visited: Sequence[int], history: list[Vector], predict: Predict) -> Vector:
        start, heun = x, not history
        for k, t in enumerate(visited):
            output = predict(x, t, levels.at(t))
            if k == 1 and heun:
                x = levels.transfer(start, t + gap, t, (output + history[-1]) / 2)
                continue
            history = [*history[-3:], output]
            weights = ADAMS_BASHFORTH[len(history) - 1]
            slope = sum((w * e for w, e in zip(weights, reversed(history), strict=True)), 0 * x)
            x = levels.transfer(x, t, t - gap, slope)
        return x

    def _runge_kutta(
        x: Vector, visited: Sequence[int], predict: Predict
    ) -> tuple[Vector, list[Vector]]:
        history = []
        half = gap // 2
        for t, following in pairwise(visited):
            middle = following + half
            e1 = predict(x, t, levels.at(t))
            e2 = predict(levels.transfer(x, t, t - half, e1), middle, levels.at(middle))
            e3 = predict(levels.transfer(x, t, middle, e2), middle, levels.at(middle))
            e4 = predict(levels.transfer(x, t, middle - half, e3), following, levels.at(following))
            x = levels.transfer(x, t, following, (e1 + 2 * e2 + 2 * e3 + e4) / 6)
            history.append(e1)
        return x, history

    return Solver(solve)


SAMPLERS = (Sampler("PNDMScheduler", pndm, {"pndm": {}}, {"pndm": ("plms",)}),)
