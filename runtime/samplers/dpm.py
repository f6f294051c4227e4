"""DPM-Solver++ in its multistep form (Lu et al. 2022, arXiv 2211.01095), orders 1 to 3."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from bksdm.engines.errors import SamplerError
from bksdm.runtime.samplers.config import SchedulerConfig
from bksdm.runtime.samplers.schedule import alphas_cumprod, karras_levels, timesteps_of_levels
from bksdm.runtime.samplers.table import Predict, Solver, Vector

DEFAULTS = {
    "timestep_spacing": "linspace",
    "solver_order": 2,
    "lower_order_final": True,
}
# diffusers lowers the order at the end of short runs only.
SHORT_RUN = 15


def dpm_multistep(fields: Mapping[str, object], steps: int) -> Solver:
    """Prepare DPM-Solver++ as diffusers' ``DPMSolverMultistepScheduler`` runs it.

    With data predictions m and λ = log(α/σ), h = λ' − λ, the solution of order k is
    x' = (σ'/σ) x − α' (e^(−h) − 1) m_0 + higher differences of m by λ.

    Raises
    ------
    SamplerError
        A field is not implemented, or so many steps are asked for that a noise level comes twice.
    """
    config = SchedulerConfig.read(
        fields,
        defaults=DEFAULTS,
        required={
            "algorithm_type": "dpmsolver++",
            "thresholding": False,
            "use_exponential_sigmas": False,
            "use_beta_sigmas": False,
            "use_lu_lambdas": False,
            "use_flow_sigmas": False,
            "rescale_betas_zero_snr": False,
            "use_dynamic_shifting": False,
            "lambda_min_clipped": -math.inf,
            "variance_type": None,
        },
    )
    times, sigmas = _levels(config, steps)
    if any(a == b for a, b in pairwise(sigmas[:-1])):
        raise SamplerError(
            f"num_inference_steps {steps} visits a noise level twice, which DPM-Solver++ cannot; "
            "take fewer steps"
        )

    def solve(x: Vector, predict: Predict) -> Vector:
        history: list[Vector] = []
        for k, t in enumerate(times):
            alpha, sigma = _alpha_sigma(sigmas[k])
            output = predict(x, float(t))
            if config.prediction_type == "epsilon":
                data = (x - sigma * output) / alpha
            else:
                data = alpha * x - sigma * output
            history = [data, *history[:2]]
            order = min(_order(config, k, len(times)), len(history))
            x = _update(x, history[:order], sigmas[max(0, k - 2) : k + 2], config.solver_type)
        return x

    return Solver(solve)


def _order(config: SchedulerConfig, k: int, total: int) -> int:
    """Return the highest order of step k."""
    short = config.lower_order_final and total < SHORT_RUN
    last = short or config.euler_at_final or config.final_sigmas_type == "zero"
    if k == total - 1 and last:
        return 1
    return min(config.solver_order, 2) if k == total - 2 and short else config.solver_order


def _update(x: Vector, data: list[Vector], sigmas: list[float], solver_type: str) -> Vector:
    """Take one step from the second-last of ``sigmas`` to the last; ``data`` is newest first."""
    _, sigma = _alpha_sigma(sigmas[-2])
    goal, end = _alpha_sigma(sigmas[-1])
    if sigmas[-1] == 0:
        return goal * data[0]
    if sigmas[-1] == sigmas[-2]:
        return x
    logs = [-math.log(level) for level in sigmas]
    h = logs[-1] - logs[-2]
    decay = math.expm1(-h)
    moved: Vector = end / sigma * x - goal * decay * data[0]
    if len(data) == 1:
        return moved
    r0 = (logs[-2] - logs[-3]) / h
    newest = (data[0] - data[1]) / r0
    if len(data) == 2:
        if solver_type == "midpoint":
            return moved - 0.5 * goal * decay * newest
        return moved + goal * (decay / h + 1) * newest
    r1 = (logs[-3] - logs[-4]) / h
    second = (newest - (data[1] - data[2]) / r1) / (r0 + r1)
    first = newest + r0 * second
    return moved + goal * (decay / h + 1) * first - goal * ((decay + h) / h**2 - 0.5) * second


def _alpha_sigma(level: float) -> tuple[float, float]:
    """Return α and σ of x = α x_0 + σ ε, α² + σ² = 1, from σ/α."""
    alpha = (level**2 + 1) ** -0.5
    return alpha, level * alpha


def _levels(config: SchedulerConfig, steps: int) -> tuple[list[int], list[float]]:
    """Return timesteps, and the levels σ/α from the first to the final one."""
    train = config.num_train_timesteps
    if not 1 <= steps <= train:
        raise SamplerError(f"num_inference_steps must be from 1 to {train}, not {steps}")
    alphas = alphas_cumprod(config)
    table = np.sqrt((np.float32(1) - alphas) / alphas)
    if config.use_karras_sigmas:
        levels = karras_levels(float(table[0]), float(table[-1]), steps)
        times = timesteps_of_levels(levels, table)
        # diffusers leaves them whole either way, but rounds only where β does not end at 0.999.
        times = times if config.beta_schedule == "squaredcos_cap_v2" else times.round()
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
