"""DPM-Solver++ in its singlestep form (Lu et al. 2022, arXiv 2211.01095), orders 1 to 3."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from bksdm.runtime.samplers.config import SchedulerConfig
from bksdm.runtime.samplers.dpm import DPM_SOLVER, FIXED_VARIANCES, refuse_repeated
from bksdm.runtime.samplers.preserving import (
    ARGUMENTS,
    IMPLEMENTED,
    alpha_sigma,
    data_prediction,
    visited_levels,
)
from bksdm.runtime.samplers.sampler import Sampler, spaced
from bksdm.runtime.samplers.table import Draw, Predict, Solver, Vector

SINGLESTEP = {**ARGUMENTS, **DPM_SOLVER, "lower_order_final": False}


def dpm_singlestep(fields: Mapping[str, object], steps: int) -> Solver:
    """Prepare it as diffusers' ``DPMSolverSinglestepScheduler`` runs it.

    Steps come in blocks of rising order, each from the start of its block: 1, 2, 3, 1, 2, 3 …

    Raises
    ------
    SamplerError
        A field is not implemented, or so many steps are asked for that a noise level comes twice.
    """
    implemented = {
        **IMPLEMENTED,
        "algorithm_type": ("dpmsolver++", "deis"),
        "variance_type": FIXED_VARIANCES,
    }
    config = SchedulerConfig.read(fields, SINGLESTEP, implemented, ("timesteps",))
    # The class takes no other spacing.
    config = replace(config, timestep_spacing="linspace")
    times, sigmas = visited_levels(config, steps)
    refuse_repeated(sigmas, steps)
    orders = block_orders(config, steps)

    def solve(x: Vector, predict: Predict, draw: Draw, first: int) -> Vector:
        history: list[Vector] = []
        start = x
        for k, t in list(enumerate(times))[first:]:
            history = [
                data_prediction(config, x, sigmas[k], predict(x, float(t), alpha_sigma(sigmas[k]))),
                *history[:2],
            ]
            order = min(orders[k], len(history))
            if order == 1:
                start = x
            x = _update(start, history[:order], sigmas[k + 1 - order : k + 2], config.solver_type)
        return x

    return Solver(solve)


def block_orders(config: SchedulerConfig, steps: int) -> list[int]:
    """Return the order of every step, as diffusers' ``get_order_list`` does."""
    order = config.solver_order
    uneven = steps % order != 0
    lower = config.lower_order_final or uneven or config.final_sigmas_type == "zero"
    block = list(range(1, order + 1))
    if not lower or order == 1:
        orders = block * (steps // order)
    elif order == 2:
        orders = block * (steps // 2) + [1] if uneven else block * (steps // 2 - 1) + [1, 1]
    elif steps % 3 == 0:
        orders = block * (steps // 3 - 1) + [1, 2, 1]
    else:
        orders = block * (steps // 3) + list(range(1, steps % 3 + 1))
    if config.final_sigmas_type == "zero":
        orders[-1] = 1
    return orders


def _update(x: Vector, data: list[Vector], sigmas: list[float], solver_type: str) -> Vector:
    """Step from the first of ``sigmas``, where ``x`` is, to the last; ``data`` is newest first."""
    _, sigma = alpha_sigma(sigmas[0])
    goal, end = alpha_sigma(sigmas[-1])
    if sigmas[-1] == 0:
        return goal * data[0]
    if sigmas[-1] == sigmas[0]:
        return x
    logs = [-math.log(level) for level in sigmas]
    h = logs[-1] - logs[0]
    oldest = data[-1]
    decay = math.expm1(-h)
    moved: Vector = end / sigma * x - goal * decay * oldest
    if len(data) == 1:
        return moved
    slopes = [
        (m - oldest) * h / (log - logs[0]) for m, log in zip(data[-2::-1], logs[1:-1], strict=True)
    ]
    first, second = goal * (decay / h + 1), goal * ((decay + h) / h**2 - 0.5)
    if len(data) == 2:
        return (
            moved - 0.5 * goal * decay * slopes[0]
            if solver_type != "heun"
            else (moved + first * slopes[0])
        )
    if solver_type != "heun":
        return moved + first * slopes[1]
    near, far = ((log - logs[0]) / h for log in logs[1:-1])
    slope = (far * slopes[0] - near * slopes[1]) / (far - near)
    bend = 2 * (slopes[1] - slopes[0]) / (far - near)
    return moved + first * slope - second * bend


SAMPLERS = (
    Sampler(
        "DPMSolverSinglestepScheduler",
        dpm_singlestep,
        {
            name: {
                **stated,
                "solver_order": order,
                "algorithm_type": "dpmsolver++",
                "variance_type": None,
            }
            for base, order in (("dpm++2s", 2), ("dpm++3s", 3))
            for name, stated in spaced(base).items()
        },
        # diffusers' own documentation sets this against the class, which adds no noise.
        {"dpm++2s": ("dpmpp_sde",)},
    ),
)
