"""Linear multistep method: Adams–Bashforth with unequal steps in σ (k-diffusion's ``lms``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from bksdm.runtime.samplers.config import SchedulerConfig
from bksdm.runtime.samplers.dpm import refuse_repeated
from bksdm.runtime.samplers.exploding import SPACED, Levels
from bksdm.runtime.samplers.sampler import Sampler, spaced
from bksdm.runtime.samplers.table import Draw, Predict, Solver, Vector

ORDER = 4


def lms(fields: Mapping[str, object], steps: int) -> Solver:
    """Prepare LMS as diffusers' ``LMSDiscreteScheduler`` runs it, of order 4.

    x' = x + Σ_j d_j ∫_σ^σ' ℓ_j(τ) dτ, with ℓ_j the Lagrange polynomials of the last levels.

    Raises
    ------
    SamplerError
        A field is not implemented.
    """
    config = SchedulerConfig.read(fields, SPACED, {})
    if config.level_spacing == "karras":
        # In this class, Karras' levels always end where the schedule does.
        config = replace(config, sigma_min=None, sigma_max=None)
    levels = Levels.of(config, steps)
    refuse_repeated(levels.sigmas, steps)
    times = [float(t) for t in np.array(levels.times, np.float32)]

    def solve(x: Vector, predict: Predict, draw: Draw, first: int) -> Vector:
        history: list[Vector] = []
        for k, t in list(enumerate(times))[first:]:
            history = [levels.derivative(x, levels.sigmas[k], t, predict), *history[: ORDER - 1]]
            nodes = levels.sigmas[max(0, k - ORDER + 1) : k + 1][::-1]
            weights = lagrange_integrals(nodes, levels.sigmas[k], levels.sigmas[k + 1])
            # Begun in the middle, diffusers leaves out what it has no derivative for.
            x = x + sum((w * d for w, d in zip(weights, history, strict=False)), 0 * x)
        return x

    return Solver(solve, levels.initial)


def lagrange_integrals(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """Return ∫ ℓ_j from ``start`` to ``end``; Gauss's rule of 3 points is exact for cubics."""
    points, weights = np.polynomial.legendre.leggauss(3)
    tau = start + (end - start) * (points + 1) / 2
    found = []
    for j, node in enumerate(nodes):
        others = [other for i, other in enumerate(nodes) if i != j]
        values = np.prod([(tau - other) / (node - other) for other in others], axis=0)
        found.append(float((end - start) / 2 * np.sum(weights * values)))
    return found


SAMPLERS = (Sampler("LMSDiscreteScheduler", lms, spaced("lms")),)
