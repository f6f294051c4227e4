"""Every sampler's matrix against diffusers' own code, run in float64 on the same basis vectors."""

from __future__ import annotations

import inspect
from itertools import combinations, product

import diffusers
import numpy as np
import pytest
from scipy.stats import beta as beta_distribution

from bksdm.engines.errors import SamplerError
from bksdm.runtime.samplers import DIFFUSERS_CLASSES, NAMED, SAMPLERS, step_table
from bksdm.runtime.samplers.schedule import beta_quantile

from .diffusers_matrix import ARRAY, compare

pytestmark = pytest.mark.filterwarnings(ARRAY)

BASE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TRAINED = {"trained_betas": np.linspace(0.0002, 0.015, 1000).tolist()}
SCHEDULES = [{}, {"beta_schedule": "linear"}, {"beta_schedule": "squaredcos_cap_v2"}, TRAINED]
SPACINGS = [{}, *({f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta"))]
BOUNDS = [{}, {"sigma_min": 0.1}, {"sigma_max": 9.0}, {"sigma_min": 0.05, "sigma_max": 20.0}]
TIMES = [{"timestep_spacing": s} for s in ("leading", "linspace", "trailing")]
OFFSETS = [{"steps_offset": offset} for offset in (0, 1)]
PREDICTIONS = [{"prediction_type": p} for p in ("epsilon", "v_prediction")]
ORDERS = [{"solver_order": order} for order in (1, 2, 3)]
FORMS = [{"solver_type": t} for t in ("midpoint", "heun")]
LOWER = [{"lower_order_final": flag} for flag in (False, True)]
FINALS = [{"final_sigmas_type": t} for t in ("zero", "sigma_min")]
ONES = [{"set_alpha_to_one": flag} for flag in (False, True)]
NO_CLIPPING = [{"clip_sample": False}]
ETAS = [{"eta": eta} for eta in (0.0, 0.3, 1.0)]
STEPS = [1, 2, 3, 4, 5, 7, 14, 15, 25]
# Where the run begins: at its start, at the second step, in the middle.
BEGINNINGS = ["start", "second", "middle"]

_LEVELS = (SCHEDULES, SPACINGS, BOUNDS, TIMES, OFFSETS, PREDICTIONS)
FAMILIES = {
    # Its Runge–Kutta start has another table of steps: see below.
    "PNDMScheduler": ([{"skip_prk_steps": True}], SCHEDULES, TIMES, OFFSETS, PREDICTIONS, ONES),
    "DDIMScheduler": (NO_CLIPPING, SCHEDULES, TIMES, OFFSETS, PREDICTIONS, ONES, ETAS),
    "DDPMScheduler": (
        NO_CLIPPING,
        SCHEDULES,
        TIMES,
        OFFSETS,
        PREDICTIONS,
        [{"variance_type": t} for t in ("fixed_small", "fixed_large")],
    ),
    "EulerDiscreteScheduler": (*_LEVELS, FINALS),
    "EulerAncestralDiscreteScheduler": (SCHEDULES, TIMES, OFFSETS, PREDICTIONS),
    "HeunDiscreteScheduler": _LEVELS,
    "LMSDiscreteScheduler": _LEVELS,
    "KDPM2DiscreteScheduler": _LEVELS,
    "KDPM2AncestralDiscreteScheduler": _LEVELS,
    "DPMSolverMultistepScheduler": (
        SCHEDULES,
        [*SPACINGS, {"use_lu_lambdas": True}],
        BOUNDS,
        TIMES,
        OFFSETS,
        PREDICTIONS,
        ORDERS,
        FORMS,
        LOWER,
        FINALS,
        [{"euler_at_final": flag} for flag in (False, True)],
        [{"algorithm_type": f"{kind}dpmsolver++"} for kind in ("", "sde-")],
    ),
    "DPMSolverSinglestepScheduler": (
        SCHEDULES,
        SPACINGS,
        BOUNDS,
        PREDICTIONS,
        ORDERS,
        FORMS,
        LOWER,
        FINALS,
    ),
    # The others have no number at their last step: see below.
    "UniPCMultistepScheduler": (
        *_LEVELS,
        ORDERS,
        [
            {"solver_type": form, "final_sigmas_type": final, "lower_order_final": lower}
            for form, final, lower in [
                ("bh2", "zero", True),
                *product(("bh1", "bh2"), ("sigma_min",), (False, True)),
            ]
        ],
    ),
    "DEISMultistepScheduler": (*_LEVELS, ORDERS, LOWER),
    "LCMScheduler": (
        NO_CLIPPING,
        SCHEDULES,
        PREDICTIONS,
        [{"timestep_scaling": 4.0}, {}],
        [{"original_inference_steps": n} for n in (50, 25)],
    ),
    "TCDScheduler": (
        SCHEDULES,
        PREDICTIONS,
        ETAS,
        [{"original_inference_steps": n} for n in (50, 25)],
    ),
}


def covering(*groups, seed=0):
    """Return rows, one of each group's values in each, that hold every pair of values of two."""
    rng = np.random.default_rng(seed)
    left = {
        (i, a, j, b)
        for (i, one), (j, other) in combinations(enumerate(groups), 2)
        for a, b in product(range(len(one)), range(len(other)))
    }
    rows = []
    while left:
        # Random rows around one of the missing pairs; the one that adds most is taken.
        i, a, j, b = min(left)
        tried = rng.integers(0, [len(group) for group in groups], (30, len(groups)))
        tried[:, [i, j]] = a, b
        met = [
            left & {(p, r[p], q, r[q]) for p, q in combinations(range(len(groups)), 2)}
            for r in tried.tolist()
        ]
        best = int(np.argmax([len(pairs) for pairs in met]))
        left -= met[best]
        rows.append([group[k] for group, k in zip(groups, tried[best], strict=True)])
    return rows


def compared(class_name, *parts, steps, beginning):
    fields = {k: v for part in ({**BASE}, *parts) for k, v in part.items()}
    eta = fields.pop("eta", None)
    first = {"start": 0, "second": 1, "middle": steps // 2}[beginning]
    return compare(class_name, fields, steps, eta=eta, first=min(first, steps - 1))


@pytest.mark.parametrize("class_name", FAMILIES)
def test_matrices_equal_diffusers(class_name):
    rows = covering(*FAMILIES[class_name], STEPS, BEGINNINGS)
    reasons = [
        compared(class_name, *parts, steps=steps, beginning=beginning)
        for *parts, steps, beginning in rows
    ]
    # Heun's form and the third order have no number where the last level is the final one.
    assert reasons.count(None) > 0.8 * len(rows)


@pytest.mark.slow
@pytest.mark.parametrize("class_name", FAMILIES)
def test_more_matrices_equal_diffusers(class_name):
    every = [*product(*FAMILIES[class_name])]
    rng = np.random.default_rng(1)
    for k in rng.permutation(len(every))[:400]:
        steps, beginning = rng.choice([*STEPS, 50, 100]), rng.choice(BEGINNINGS)
        if "original_inference_steps" in str(every[k]):
            steps = min(steps, 25)
        compared(class_name, *every[k], steps=int(steps), beginning=beginning)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [999, 1000])
@pytest.mark.parametrize("class_name", FAMILIES)
def test_as_many_steps_as_were_trained(class_name, steps):
    """Pictures of as many are in tests/parity/test_images.py."""
    eta = 0.3 if class_name == "TCDScheduler" else None
    for stated in ({}, {"timestep_spacing": "trailing"}, {"use_karras_sigmas": True}):
        compare(class_name, {"clip_sample": False, **BASE, **stated}, steps, eta=eta)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 10, 25])
def test_the_runge_kutta_start_equals_diffusers(steps):
    rows = covering(SCHEDULES, TIMES, OFFSETS, PREDICTIONS, ONES)
    for parts in rows:
        reason = compared("PNDMScheduler", *parts, steps=steps, beginning="start")
        assert reason is None or (steps < 4 and "at least 4" in reason)


def test_runge_kutta_cannot_begin_in_the_middle():
    with pytest.raises(SamplerError, match="skip_prk_steps"):
        step_table({**BASE, "skip_prk_steps": False}, 10, "pndm", first=2)


# TCD takes 0.7 of them in float32, here in float64, which differ where the product is whole.
TIMESTEPS = [[999, 701, 453, 199, 1], [981, 3], [503], [951, 941, 931, 703, 601, 499, 41, 2, 0]]
SIGMAS = [[14.6, 6.0, 2.5, 0.7, 0.03, 0.0], [9.0, 0.0], [12.0, 3.0, 1.0]]


@pytest.mark.parametrize("class_name", FAMILIES)
@pytest.mark.parametrize("kind", ["timesteps", "sigmas"])
def test_stated_timesteps_and_levels_equal_diffusers(class_name, kind):
    """Or are refused, where diffusers refuses them."""
    taken = kind in inspect.signature(getattr(diffusers, class_name).set_timesteps).parameters
    # UniPC takes levels of flow matching only.
    taken = taken and (class_name, kind) != ("UniPCMultistepScheduler", "sigmas")
    for values in TIMESTEPS if kind == "timesteps" else SIGMAS:
        steps = len(values) - (kind == "sigmas")
        fields = {"_class_name": class_name, "clip_sample": False, **BASE, kind: values}
        if not taken:
            with pytest.raises(SamplerError, match=f"this sampler takes no {kind}"):
                step_table(fields, steps)
            continue
        for prediction, first in product(PREDICTIONS, {0, steps // 2}):
            eta = 0.3 if class_name == "TCDScheduler" else None
            stated = {"clip_sample": False, **BASE, **prediction}
            custom = {kind: values}
            reason = compare(class_name, stated, steps, eta=eta, first=first, custom=custom)
            assert reason is None


@pytest.mark.parametrize(
    "name", [name for name in SAMPLERS if name.endswith(("-karras", "-exponential", "-beta"))]
)
def test_stated_timesteps_exclude_another_spacing(name):
    fields = {**BASE, "timesteps": [999, 500, 1]}
    with pytest.raises(SamplerError, match=r"takes no timesteps|timesteps exclude"):
        step_table(fields, 3, name)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_name_compiles(name):
    fields = {**BASE, "skip_prk_steps": True, "steps_offset": 1}
    table = step_table(fields, 20, name)
    assert np.isfinite(table.rows).all()
    noisy = ("ddpm", "lcm", "euler-a", "kdpm2-a", "dpm++2m-sde")
    assert (table.draws > 0) == name.startswith(noisy)
    # Begun after the end nothing changes.
    table = step_table(fields, 4, name, first=4)
    assert len(table) == table.draws == 0
    assert table.rows.tolist() == [[1.0]]
    assert table.levels.tolist() == [[1.0, 0.0]]


def test_quantiles_are_scipys():
    p = np.append(np.linspace(0, 1, 101), [1e-9, 1 - 1e-9])
    expected = beta_distribution.ppf(p, 0.6, 0.6)
    np.testing.assert_allclose(beta_quantile(p), expected, rtol=1e-12, atol=1e-15)


def test_every_class_is_diffusers_own():
    assert all(hasattr(diffusers, name) for name in DIFFUSERS_CLASSES)
    assert {class_name for class_name, _ in NAMED.values()} == set(DIFFUSERS_CLASSES)
    assert set(FAMILIES) == set(DIFFUSERS_CLASSES)


def test_two_spacings_exclude_each_other():
    fields = {"use_karras_sigmas": True, "use_beta_sigmas": True}
    with pytest.raises(SamplerError, match="karras and beta"):
        step_table({"_class_name": "EulerDiscreteScheduler", **fields}, 10)
