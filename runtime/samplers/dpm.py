"""DPM-Solver++ in its multistep form, of the ODE and the SDE (Lu et al. 2022, arXiv 2211.01095)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from bksdm.engines.errors import SamplerError
from bksdm.runtime.samplers.config import OFF, SchedulerConfig
from bksdm.runtime.samplers.preserving import (
    IMPLEMENTED,
    MULTISTEP,
    SHORT_RUN,
    alpha_sigma,
    data_prediction,
    visited_levels,
)
from bksdm.runtime.samplers.sampler import Sampler, spaced
from bksdm.runtime.samplers.table import Draw, Predict, Solver, Vector

DPM_SOLVER = {
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "final_sigmas_type": "zero",
    "lambda_min_clipped": -math.inf,
    "variance_type": None,
}
ARGUMENTS = {
    **MULTISTEP,
    **DPM_SOLVER,
    "euler_at_final": False,
    "use_lu_lambdas": False,
    "rescale_betas_zero_snr": False,
}
# diffusers asks only whether the model was taught a variance.
FIXED_VARIANCES = (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")


def dpm_multistep(fields: Mapping[str, object], steps: int) -> Solver:
    """Prepare DPM-Solver++ as diffusers' ``DPMSolverMultistepScheduler`` runs it.

    With data predictions m and λ = log(α/σ), h = λ' − λ, the solution of order k is
    x' = (σ'/σ) x − α' (e^(−h) − 1) m_0 + higher differences of m by λ. The SDE's takes twice the
    interval where m is concerned, x' = (σ'/σ) e^(−h) x − α' (e^(−2h) − 1) m_0 + …, and adds
    σ' √(1 − e^(−2h)) z.

    Raises
    ------
    SamplerError
        A field is not implemented, or so many steps are asked for that a noise level comes twice.
    """
    implemented = {
        **IMPLEMENTED,
        # What DEIS calls its own stands for DPM-Solver++ in diffusers.
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "deis"),
        "variance_type": FIXED_VARIANCES,
        "rescale_betas_zero_snr": OFF,
    }
    config = SchedulerConfig.read(fields, ARGUMENTS, implemented, ("timesteps",))
    whole = config.beta_schedule != "squaredcos_cap_v2"
    times, sigmas = visited_levels(config, steps, whole_karras=whole)
    refuse_repeated(sigmas, steps)
    noisy = config.algorithm_type == "sde-dpmsolver++"
    if noisy and sigmas[-1] > sigmas[-2]:
        raise SamplerError(
            f"scheduler config: sigma_min {sigmas[-2]:g} is below the final level {sigmas[-1]:g}, "
            "and no noise can be added on the way up; take final_sigmas_type zero"
        )

    def solve(x: Vector, predict: Predict, draw: Draw, first: int) -> Vector:
        history: list[Vector] = []
        for k, t in list(enumerate(times))[first:]:
            data = data_prediction(
                config, x, sigmas[k], predict(x, float(t), alpha_sigma(sigmas[k]))
            )
            history = [data, *history[:2]]
            order = min(_order(config, k, len(times)), len(history))
            visited = sigmas[max(0, k - 2) : k + 2]
            noise = draw() if noisy else None
            x = _update(x, history[:order], visited, config.solver_type, noise)
        return x

    return Solver(solve)


def refuse_repeated(sigmas: Sequence[float], steps: int) -> None:
    """Refuse levels of which one follows itself.

    Raises
    ------
    SamplerError
        The interval between them, by which a multistep method divides, is 0.
    """
    if any(a == b for a, b in pairwise(sigmas[:-1])):
        raise SamplerError(
            f"num_inference_steps {steps} visits a noise level twice, which this method cannot; "
            "take fewer steps"
        )


def _order(config: SchedulerConfig, k: int, total: int) -> int:
    """Return the highest order of step k."""
    short = config.lower_order_final and total < SHORT_RUN
    last = short or config.euler_at_final or config.final_sigmas_type == "zero"
    if k == total - 1 and last:
        return 1
    return min(config.solver_order, 2) if k == total - 2 and short else config.solver_order


def _update(
    x: Vector, data: list[Vector], sigmas: list[float], solver_type: str, noise: Vector | None
) -> Vector:
    """Take one step from the second-last of ``sigmas`` to the last; ``data`` is newest first."""
    _, sigma = alpha_sigma(sigmas[-2])
    goal, end = alpha_sigma(sigmas[-1])
    if sigmas[-1] == 0:
        # The interval is infinite; what is left is the data, without noise.
        return goal * data[0]
    if sigmas[-1] == sigmas[-2]:
        return x
    logs = [-math.log(level) for level in sigmas]
    h = logs[-1] - logs[-2]
    # The SDE drifts twice as far towards the data.
    span = h if noise is None else 2 * h
    decay = math.expm1(-span)
    moved: Vector = end / sigma * math.exp(h - span) * x - goal * decay * data[0]
    if noise is not None:
        moved = moved + end * (-decay) ** 0.5 * noise
    if len(data) == 1:
        return moved
    r0 = (logs[-2] - logs[-3]) / h
    newest = (data[0] - data[1]) / r0
    if len(data) == 2:
        if solver_type != "heun":
            return moved - 0.5 * goal * decay * newest
        return moved + goal * (decay / span + 1) * newest
    r1 = (logs[-3] - logs[-4]) / h
    second = (newest - (data[1] - data[2]) / r1) / (r0 + r1)
    first = newest + r0 * second
    # diffusers takes the half away in the SDE's, where the ODE's adds it.
    half = 0.5 if noise is None else -0.5
    bend = half - (decay + span) / span**2
    return moved + goal * (decay / span + 1) * first + goal * bend * second


SAMPLERS = (
    Sampler(
        "DPMSolverMultistepScheduler",
        dpm_multistep,
        {
            name: {
                **stated,
                "solver_order": order,
                "algorithm_type": algorithm,
                "use_lu_lambdas": False,
                "variance_type": None,
            }
            for base, order, algorithm in (
                ("dpm++2m", 2, "dpmsolver++"),
                ("dpm++3m", 3, "dpmsolver++"),
                ("dpm++2m-sde", 2, "sde-dpmsolver++"),
            )
            for name, stated in spaced(base).items()
        },
        {"dpm++2m": ("dpmpp_2m",), "dpm++2m-sde": ("dpmpp_2m_sde", "dpmpp_2m_sde_gpu")},
    ),
)
