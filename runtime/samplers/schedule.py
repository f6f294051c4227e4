"""Noise levels of the diffusion process and the timesteps visited by a sampler.

The tables are rounded to float32 wherever diffusers rounds them, because that is the schedule a
checkpoint is used with; everything computed from them is float64.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import SamplerError
from bksdm.runtime.samplers.config import SchedulerConfig
from bksdm.runtime.samplers.root import float32_root


def betas(config: SchedulerConfig) -> NDArray[np.float32]:
    """Return β_t, float32 ``[num_train_timesteps]``.

    ``linear``: β evenly spaced; ``scaled_linear``: √β evenly spaced (Rombach et al. 2022);
    ``squaredcos_cap_v2``: β_t = min(1 − ᾱ(t+1)/ᾱ(t), 0.999) with
    ᾱ(t) = cos²((t/T + 0.008) / 1.008 · π/2) (Nichol & Dhariwal 2021).
    """
    count = config.num_train_timesteps
    if config.trained_betas is not None:
        return np.array(config.trained_betas, np.float32)
    if config.beta_schedule == "linear":
        return _linspace(config.beta_start, config.beta_end, count)
    if config.beta_schedule == "scaled_linear":
        return _linspace(config.beta_start**0.5, config.beta_end**0.5, count) ** 2

    def alpha_bar(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    steps = range(count)
    capped = [min(1 - alpha_bar((i + 1) / count) / alpha_bar(i / count), 0.999) for i in steps]
    return np.array(capped, np.float32)


def alphas_cumprod(config: SchedulerConfig) -> NDArray[np.float32]:
    """Return ᾱ_t = Π_{s≤t} (1 − β_s), float32 ``[num_train_timesteps]``, summed up in float64."""
    alphas = np.float32(1.0) - betas(config)
    cumulative = np.cumprod(alphas.astype(np.float64)).astype(np.float32)
    # One over what is smaller is beyond float32.
    if not cumulative[-1] >= np.finfo(np.float32).tiny:
        raise SamplerError("scheduler config: beta_end leaves no signal at the last timestep")
    if not cumulative[0] < 1:
        raise SamplerError("scheduler config: beta_start leaves no noise at the first timestep")
    return cumulative


def spaced_timesteps(config: SchedulerConfig, steps: int) -> NDArray[np.float64]:
    """Return the timesteps of ``steps`` inference steps, descending, unrounded for ``linspace``.

    Table 2 of Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed".

    Raises
    ------
    SamplerError
        ``steps`` is below 1 or beyond the training timesteps.
    """
    train = config.num_train_timesteps
    if config.timesteps is not None:
        return np.array(config.timesteps, np.float64)
    if not 1 <= steps <= train:
        raise SamplerError(f"num_inference_steps must be from 1 to {train}, not {steps}")
    if config.timestep_spacing == "linspace":
        return np.linspace(0, train - 1, steps)[::-1]
    if config.timestep_spacing == "leading":
        return np.arange(steps, dtype=np.float64)[::-1] * (train // steps) + config.steps_offset
    return np.round(np.arange(train, 0, -(train / steps))) - 1


def karras_levels(smallest: float, largest: float, steps: int) -> NDArray[np.float64]:
    """Return σ_i = (σ_max^(1/ρ) + i/(n−1) (σ_min^(1/ρ) − σ_max^(1/ρ)))^ρ, ρ = 7, descending.

    Equation 5 of Karras et al. 2022 (arXiv 2206.00364).
    """
    ramp = np.linspace(0, 1, steps)
    start, end = largest ** (1 / 7), smallest ** (1 / 7)
    levels: NDArray[np.float64] = (start + ramp * (end - start)) ** 7
    return levels


def beta_quantile(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return x with I_x(a, a) = p, a = 0.6: quantiles of the symmetric beta distribution.

    Up to x = 1/2, B(x) = x^a Σ_k (1 − a)_k / k! · x^k / (k + a); beyond, I_x = 1 − I_{1−x}.
    """
    a = 0.6
    k = np.arange(64)
    terms = np.cumprod(np.append(1.0, (k[1:] - a) / k[1:])) / (k + a)

    def incomplete(x: NDArray[np.float64]) -> NDArray[np.float64]:
        total: NDArray[np.float64] = x**a * (x[:, None] ** k @ terms)
        return total

    lower = np.minimum(p, 1 - p)
    goal = lower * 2 * incomplete(np.array([0.5]))
    low, high = np.zeros_like(goal), np.full_like(goal, 0.5)
    # Halving 0.5 sixty times is finer than float64.
    for _ in range(60):
        middle = (low + high) / 2
        below = incomplete(middle) < goal
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    x = np.where(lower == 0, 0.0, (low + high) / 2)
    return np.where(p <= 0.5, x, 1 - x)


def noise_levels(config: SchedulerConfig) -> NDArray[np.float32]:
    """Return σ_t/α_t = √((1−ᾱ_t)/ᾱ_t), float32 ``[num_train_timesteps]``."""
    alphas = alphas_cumprod(config)
    return float32_root((np.float32(1) - alphas) / alphas)


def spaced_levels(
    config: SchedulerConfig, smallest: float, largest: float, steps: int
) -> NDArray[np.float64]:
    """Return the noise levels σ/α of ``config.level_spacing``, from the largest to the smallest.

    ``karras``: equation 5 of Karras et al. 2022; ``exponential``: log σ evenly spaced; ``lu``: the
    same from the schedule's own float32 logarithms (Lu et al. 2022, arXiv 2211.01095); ``beta``:
    quantiles of a beta distribution (Lee et al. 2024, arXiv 2407.12173).

    Parameters
    ----------
    config : SchedulerConfig
        Its ``sigma_min`` and ``sigma_max`` take the place of the next two, except in ``lu``.
    smallest, largest : float
        Where the levels end.
    steps : int
        How many there are.

    Raises
    ------
    SamplerError
        A stated end is beyond the other one.
    """
    ramp = np.linspace(0, 1, steps)
    if config.level_spacing == "lu":
        start, end = (float(np.log(np.float32(level))) for level in (largest, smallest))
        return np.exp(start + ramp * (end - start))
    stated = config.sigma_min is not None or config.sigma_max is not None
    smallest = smallest if config.sigma_min is None else config.sigma_min
    largest = largest if config.sigma_max is None else config.sigma_max
    if stated and steps > 1 and smallest >= largest:
        raise SamplerError(
            f"scheduler config: sigma_min {smallest:g} must be below sigma_max {largest:g}; "
            "one that is not stated is the schedule's own"
        )
    if config.level_spacing == "karras":
        return karras_levels(smallest, largest, steps)
    if config.level_spacing == "exponential":
        return np.exp(np.linspace(math.log(largest), math.log(smallest), steps))
    return smallest + beta_quantile(1 - ramp) * (largest - smallest)


def timesteps_of_levels(
    levels: NDArray[np.float64], table: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the timesteps of noise levels, fractional, by interpolating log σ of the schedule."""
    logs, wanted = np.log(table), np.log(np.maximum(levels, 1e-10))
    last = len(logs) - 1
    below = np.clip(np.searchsorted(logs, wanted, side="right") - 1, 0, max(last - 1, 0))
    above = np.minimum(below + 1, last)
    low, high = logs[below], logs[above]
    # Differences of float32 numbers are rounded to float32, as diffusers does.
    part = np.divide(low - wanted, low - high, out=np.zeros_like(wanted), where=low != high)
    part = np.clip(part, 0, 1)
    times: NDArray[np.float64] = (1 - part) * below + part * above
    return times


def _linspace(start: float, end: float, count: int) -> NDArray[np.float32]:
    """Evenly spaced float32 values as ``torch.linspace`` rounds them: from both ends inwards."""
    if count == 1:
        return np.array([start], np.float32)
    first, last = np.float32(start), np.float32(end)
    step = np.float32(np.float32(last - first) / np.float32(count - 1))
    index = np.arange(count)
    # A fused multiply-add rounds once; float64 holds the product exactly, so this does too.
    rising = np.float64(first) + np.float64(step) * index
    falling = np.float64(last) - np.float64(step) * (count - 1 - index)
    spaced: NDArray[np.float32] = np.where(index < count // 2, rising, falling).astype(np.float32)
    return spaced
