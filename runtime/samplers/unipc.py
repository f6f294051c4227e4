"""UniPC: a predictor and a corrector of the same form (Zhao et al. 2023, arXiv 2302.04867)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from bksdm.runtime.samplers.config import OFF, SchedulerConfig
from bksdm.runtime.samplers.dpm import refuse_repeated
from bksdm.runtime.samplers.preserving import (
    IMPLEMENTED,
    MULTISTEP,
    alpha_sigma,
    data_prediction,
    visited_levels,
)
from bksdm.runtime.samplers.sampler import Sampler, spaced
from bksdm.runtime.samplers.table import Draw, Predict, Solver, Vector

ARGUMENTS = {
    **MULTISTEP,
    "predict_x0": True,
    "solver_type": "bh2",
    "disable_corrector": [],
    "solver_p": None,
    "final_sigmas_type": "zero",
    "rescale_betas_zero_snr": False,
    "shift_terminal": None,
}


def unipc(fields: Mapping[str, object], steps: int) -> Solver:
    """Prepare UniPC as diffusers' ``UniPCMultistepScheduler`` runs it, orders 1 to 3.

    x' = (σ'/σ) x − α' (e^(−h) − 1) m_0 − α' B(h) Σ_i ρ_i (m_i − m_0) / r_i, where the ρ_i match the
    expansion of the exact solution; the corrector takes the output at x' in besides.

    Raises
    ------
    SamplerError
        A field is not implemented, or so many steps are asked for that a noise level comes twice.
    """
    implemented = {
        **IMPLEMENTED,
        "predict_x0": (True,),
        "disable_corrector": ([],),
        "solver_p": (None,),
        "rescale_betas_zero_snr": OFF,
        "shift_terminal": (None,),
    }
    config = SchedulerConfig.read(fields, ARGUMENTS, implemented)
    times, sigmas = visited_levels(config, steps, ends_on_last=True)
    refuse_repeated(sigmas, steps)
    # bh1 stays itself, and what other solvers call theirs stands for bh2 in diffusers.
    first_form = config.solver_type == "bh1"

    def solve(x: Vector, predict: Predict, draw: Draw, first: int) -> Vector:
        history: list[Vector] = []
        before, order = x, 0
        for k, t in list(enumerate(times))[first:]:
            data = data_prediction(
                config, x, sigmas[k], predict(x, float(t), alpha_sigma(sigmas[k]))
            )
            if k > first:
                visited = sigmas[max(0, k - order) : k + 1]
                x = _update(before, history[:order], visited, first_form, data)
            history = [data, *history[:2]]
            left = len(times) - k if config.lower_order_final else config.solver_order
            order = min(config.solver_order, left, k - first + 1)
            before = x
            x = _update(x, history[:order], sigmas[k + 1 - order : k + 2], first_form, None)
        return x

    return Solver(solve)


def _update(
    x: Vector,
    data: Sequence[Vector],
    sigmas: Sequence[float],
    first_form: bool,
    reached: Vector | None,
) -> Vector:
    """Take one step from the second-last of ``sigmas`` to the last.

    ``data`` is newest first; ``reached`` is the prediction at the end, for the corrector.
    """
    _, sigma = alpha_sigma(sigmas[-2])
    goal, end = alpha_sigma(sigmas[-1])
    if sigmas[-1] == 0:
        return goal * data[0]
    if sigmas[-1] == sigmas[-2]:
        return x
    logs = [-math.log(level) for level in sigmas]
    h = logs[-1] - logs[-2]
    order = len(data)
    ratios = [(logs[-2 - i] - logs[-2]) / h for i in range(1, order)]
    differences = [(m - data[0]) / r for m, r in zip(data[1:], ratios, strict=True)]
    growth = math.expm1(-h)
    scale = -h if first_form else growth
    weights = _weights([*ratios, 1.0], -h, scale, corrector=reached is not None)
    if reached is not None:
        differences.append(reached - data[0])
    correction = sum((w * d for w, d in zip(weights, differences, strict=True)), 0 * x)
    moved: Vector = end / sigma * x - goal * growth * data[0] - goal * scale * correction
    return moved


def _weights(ratios: list[float], h: float, scale: float, corrector: bool) -> list[float]:
    """Return ρ of R ρ = b: R_ij = r_j^i, b_i = i! h φ_(i+1)(h) / B(h); 1/2 at the lowest order."""
    order = len(ratios)
    if order == 1:
        return [0.5] if corrector else []
    if order == 2 and not corrector:
        return [0.5]
    phi, factorial, right = math.expm1(h) / h - 1, 1, []
    for i in range(1, order + 1):
        right.append(phi * factorial / scale)
        factorial *= i + 1
        phi = phi / h - 1 / factorial
    left = np.vander(ratios, order, increasing=True).T
    if not corrector:
        left, right = left[:-1, :-1], right[:-1]
    return [float(w) for w in np.linalg.solve(left, np.array(right))]


SAMPLERS = (
    Sampler("UniPCMultistepScheduler", unipc, spaced("unipc"), {"unipc": ("uni_pc", "uni_pc_bh2")}),
)
