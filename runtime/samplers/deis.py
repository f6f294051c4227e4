"""DEIS: exponential integrators, ε extrapolated in log ρ (Zhang & Chen 2022, arXiv 2204.13902)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from bksdm.runtime.samplers.config import SchedulerConfig
from bksdm.runtime.samplers.dpm import refuse_repeated
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

ARGUMENTS = {**MULTISTEP, "algorithm_type": "deis", "solver_type": "logrho"}


def deis(fields: Mapping[str, object], steps: int) -> Solver:
    """Prepare DEIS as diffusers' ``DEISMultistepScheduler`` runs it, orders 1 to 3.

    With ρ = σ/α, x'/α' = x/α + Σ_j ε_j ∫_ρ^ρ' ℓ_j(log τ) dτ, where ℓ_j are the Lagrange polynomials
    of the last values of log ρ.

    Raises
    ------
    SamplerError
        A field is not implemented, or so many steps are asked for that a noise level comes twice.
    """
    # What DPM-Solver calls its own stands for DEIS in diffusers.
    implemented = {**IMPLEMENTED, "algorithm_type": ("deis", "dpmsolver", "dpmsolver++")}
    config = SchedulerConfig.read(fields, ARGUMENTS, implemented)
    config = replace(config, final_sigmas_type="sigma_min")
    times, sigmas = visited_levels(config, steps, ends_on_last=True)
    refuse_repeated(sigmas, steps)

    def solve(x: Vector, predict: Predict, draw: Draw, first: int) -> Vector:
        history: list[Vector] = []
        for k, t in list(enumerate(times))[first:]:
            alpha, sigma = alpha_sigma(sigmas[k])
            data = data_prediction(
                config, x, sigmas[k], predict(x, float(t), alpha_sigma(sigmas[k]))
            )
            history = [(x - alpha * data) / sigma, *history[:2]]
            left = len(times) - k
            most = left if config.lower_order_final and len(times) < SHORT_RUN else 3
            order = min(config.solver_order, most, len(history))
            nodes = sigmas[k + 1 - order : k + 1][::-1]
            weights = log_lagrange_integrals(nodes, sigmas[k], sigmas[k + 1])
            goal, _ = alpha_sigma(sigmas[k + 1])
            moved = sum((w * e for w, e in zip(weights, history, strict=False)), x / alpha)
            x = goal * moved
        return x

    return Solver(solve)


def log_lagrange_integrals(nodes: list[float], start: float, end: float) -> list[float]:
    """Return ∫ ℓ_j(log τ) dτ from ``start`` to ``end`` for up to three nodes.

    By ∫ log τ dτ = τ (log τ − 1) and ∫ log² τ dτ = τ (log² τ − 2 log τ + 2).
    """
    logs = [math.log(node) for node in nodes]

    def integrals(tau: float) -> tuple[float, float, float]:
        log = math.log(tau)
        return tau, tau * (log - 1), tau * (log**2 - 2 * log + 2)

    powers = [b - a for a, b in zip(integrals(start), integrals(end), strict=True)]
    found = []
    for j, own in enumerate(logs):
        # The polynomial in log τ, constant first.
        polynomial = np.array([1.0])
        for i, other in enumerate(logs):
            if i != j:
                polynomial = np.convolve(polynomial, np.array([-other, 1.0]) / (own - other))
        found.append(float(polynomial @ powers[: len(polynomial)]))
    return found


SAMPLERS = (Sampler("DEISMultistepScheduler", deis, spaced("deis", algorithm_type="deis")),)
