"""Every further sampler against diffusers' own code, run in float64 on the same basis vectors."""

from __future__ import annotations

import sys
from itertools import pairwise, product
from types import SimpleNamespace
from unittest import mock

import diffusers
import numpy as np
import pytest
import torch
from scipy.stats import beta as beta_distribution

from bksdm.engines.errors import SamplerError
from bksdm.runtime.samplers import DIFFUSERS_CLASSES, SAMPLERS, step_table
from bksdm.runtime.samplers.config import SchedulerConfig
from bksdm.runtime.samplers.exploding import Levels
from bksdm.runtime.samplers.preserving import visited_levels
from bksdm.runtime.samplers.schedule import beta_quantile

BASE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STEPS = [1, 2, 3, 4, 5, 14, 15, 25, 50]
SPACINGS = [{}, *({f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta"))]
TIMES = [{"timestep_spacing": s, "steps_offset": o}
         for s, o in product(("leading", "linspace", "trailing"), (0, 1))]  # fmt: skip
PREDICTIONS = [{"prediction_type": p} for p in ("epsilon", "v_prediction")]
ORDERS = [{"solver_order": order} for order in (1, 2, 3)]
NO_CLIPPING = [{"clip_sample": False}]
EXPLODING = ("Euler", "Heun", "LMS", "KDPM2")
PRESERVING = ("DPM", "DEIS", "UniPC")


def combinations(*groups):
    return [
        {**BASE, **{k: v for part in chosen for k, v in part.items()}}
        for chosen in product(*groups)
    ]


FAMILIES = {
    "EulerDiscreteScheduler": combinations(SPACINGS, TIMES, PREDICTIONS),
    "EulerAncestralDiscreteScheduler": combinations(TIMES, PREDICTIONS),
    "HeunDiscreteScheduler": combinations(SPACINGS, TIMES, PREDICTIONS),
    "LMSDiscreteScheduler": combinations(SPACINGS, TIMES, PREDICTIONS),
    "KDPM2DiscreteScheduler": combinations(SPACINGS, TIMES, PREDICTIONS),
    "KDPM2AncestralDiscreteScheduler": combinations(SPACINGS, TIMES, PREDICTIONS),
    "DEISMultistepScheduler": combinations(SPACINGS, TIMES, PREDICTIONS, ORDERS),
    "UniPCMultistepScheduler": combinations(
        SPACINGS, TIMES, PREDICTIONS, ORDERS, [{"solver_type": t} for t in ("bh1", "bh2")],
        [{"lower_order_final": flag} for flag in (False, True)],
    ),
    "DPMSolverSinglestepScheduler": combinations(
        SPACINGS, PREDICTIONS, ORDERS, [{"solver_type": t} for t in ("midpoint", "heun")],
        [{"final_sigmas_type": t} for t in ("zero", "sigma_min")],
    ),
    "DPMSolverMultistepScheduler": combinations(
        [{"algorithm_type": "sde-dpmsolver++"}], SPACINGS, TIMES, PREDICTIONS, ORDERS,
        [{"solver_type": t} for t in ("midpoint", "heun")],
    ),
    "DDPMScheduler": combinations(
        NO_CLIPPING, TIMES, PREDICTIONS,
        [{"variance_type": t} for t in ("fixed_small", "fixed_large")],
    ),
    "LCMScheduler": combinations(NO_CLIPPING, PREDICTIONS),
    "TCDScheduler": combinations(NO_CLIPPING, PREDICTIONS),
}  # fmt: skip


def our_levels(class_name, fields, steps):
    """Return the noise levels that we visit; None where a scheduler has timesteps only."""
    if class_name.startswith(EXPLODING):
        whole = class_name.startswith("KDPM2")
        return list(Levels.read(fields, steps, {}, whole_karras=whole).sigmas)
    if not class_name.startswith(PRESERVING):
        return None
    stated = {"timestep_spacing": "linspace", **fields}
    if class_name.startswith("DEIS"):
        stated["final_sigmas_type"] = "sigma_min"
    config = SchedulerConfig.read(stated, {}, {})
    levels = visited_levels(config, steps)[1]
    if class_name.startswith("DEIS") and config.level_spacing:
        levels[-1] = levels[-2]
    return levels


def put_levels(scheduler, levels):
    """Replace the noise levels of a scheduler, and what it computes from them, by float64 ones.

    torch's vectorised float32 power is one unit in the last place off the true root for a fifth of
    the values, so the levels agree to a few of those and the matrices are compared from ours.
    """

    def twice(values):
        return torch.cat([values[:1], values[1:-1].repeat_interleave(2), values[-1:]])

    def spread(values):
        return torch.cat([values[:1], values[1:].repeat_interleave(2), values[-1:]])

    name = type(scheduler).__name__
    sigmas = torch.tensor(levels, dtype=torch.float64)
    shape = {"Heun": twice, "KDPM": spread}.get(name[:4])
    replaced = sigmas if shape is None else shape(sigmas)
    # Karras' levels multiply the unit by their exponent.
    np.testing.assert_allclose(replaced.numpy(), scheduler.sigmas.numpy(), rtol=2**-20)
    scheduler.sigmas = replaced
    if name == "KDPM2DiscreteScheduler":
        scheduler.sigmas_interpol = spread((sigmas * sigmas.roll(1)).sqrt().float().double())
    elif name == "KDPM2AncestralDiscreteScheduler":
        following = torch.cat([sigmas[1:], torch.zeros(1, dtype=torch.float64)])
        up = (following**2 * (sigmas**2 - following**2) / sigmas**2) ** 0.5
        down = (following**2 - up**2) ** 0.5
        down[-1] = 0
        middle = (sigmas * down).sqrt().float().double()
        middle[-2:] = 0
        scheduler.sigmas_interpol = spread(middle)
        scheduler.sigmas_up, scheduler.sigmas_down = spread(up), spread(down)


def reference(scheduler, eta, begin):
    """Run diffusers' code on basis vectors: rows, columns of noise, scales, noise levels."""
    module = sys.modules[type(scheduler).__module__]
    # The tables stay float32-rounded, as diffusers uses them; the arithmetic becomes float64.
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    timesteps = scheduler.timesteps[begin:]
    count = len(timesteps)
    basis = torch.eye(1 + 2 * count, dtype=torch.float64).reshape(-1, 1, 1, 1 + 2 * count)
    drawn = []

    def randn(shape, **options):
        drawn.append(shape)
        return basis[count + len(drawn)].reshape(shape)

    names = SimpleNamespace(**{**vars(torch), "float32": torch.float64})
    extra = {} if eta is None else {"eta": eta}
    picture = torch.eye(2, dtype=torch.float64).reshape(2, 1, 1, 1, 2)
    rows, scales, levels, x = [], [], [], basis[0]
    with (
        mock.patch.object(module, "torch", names),
        mock.patch.object(module, "randn_tensor", randn, create=True),
    ):
        for k, t in enumerate(timesteps):
            rows.append(x.flatten())
            levels.append(scheduler.add_noise(*picture, torch.tensor([t])).flatten())
            one = torch.ones(1, dtype=torch.float64)
            scales.append(float(scheduler.scale_model_input(one, t)))
            x = scheduler.step(basis[k + 1], t, x, **extra).prev_sample
        rows.append(x.flatten())
    whole = torch.stack(rows).numpy()
    noise = whole[:, 1 + count :][:, : len(drawn)]
    return whole[:, : 1 + count], noise, np.array(scales), torch.stack(levels).numpy()


def compare(class_name, fields, steps, eta=None, first=0):
    """Compare one configuration; return False where there is nothing to compare."""
    stated = {"_class_name": class_name, **fields, **({} if eta is None else {"eta": eta})}
    scheduler = getattr(diffusers, class_name)(**fields)
    try:
        levels = our_levels(class_name, fields, steps)
        table = step_table(stated, steps, first=first)
    except SamplerError as error:
        if "twice" in str(error):
            # A step of no length, by which diffusers divides.
            assert levels[-2] in levels[:-2] or any(a == b for a, b in pairwise(levels))
        elif "beyond" in str(error) or "leads to timestep" in str(error):
            scheduler.set_timesteps(steps)
            assert scheduler.timesteps[0] >= 1000
        else:
            raise
        return False
    scheduler.set_timesteps(steps)
    # As the image-to-image pipeline has it.
    begin = first * scheduler.order
    timesteps = scheduler.timesteps[begin:].numpy()
    # Interpolated in float32. An ancestral KDPM2 takes the level between two from σ_down² =
    # σ'² − σ_up², which cancels down to σ'⁴ / σ²: rounding by 2^-23 σ'² is up to 7e-3 of log σ_mid
    # where σ = 500 σ', in two steps, and there a timestep is 0.35.
    rounding = 2e-2 if class_name == "KDPM2AncestralDiscreteScheduler" else 2e-3
    np.testing.assert_allclose(table.timesteps, timesteps, rtol=0, atol=rounding)
    if levels is not None:
        put_levels(scheduler, levels)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    try:
        rows, noise, scales, visited = reference(scheduler, eta, begin)
    except torch.linalg.LinAlgError:
        # diffusers' UniPC fails where its last step is of infinite length and the third order.
        assert levels[-1] == 0
        assert fields["solver_order"] == 3
        assert not fields["lower_order_final"]
        return False
    if not np.isfinite(rows).all():
        # A last step of no length, or of infinite length by a method of more than one step.
        assert levels[-1] in (0, levels[-2])
        return False
    # As in test_samplers: float64 with room for another order of operations. LCM's scalings come
    # from a whole timestep times a float, which is float32 in torch: 2^-24 per step, 50 steps.
    tolerance = 1e-6 if class_name.startswith("LCM") else 1e-9
    near = {"rtol": tolerance, "atol": tolerance}
    np.testing.assert_allclose(table.rows, rows, **near)
    assert table.noise.shape == noise.shape
    np.testing.assert_allclose(table.noise, noise, **near)
    np.testing.assert_allclose(table.input_scale, scales, rtol=1e-12)
    np.testing.assert_allclose(table.levels, [*visited, (1, 0)], rtol=1e-12)
    # The initial scale is float32 in diffusers.
    np.testing.assert_allclose(table.init_noise_sigma, float(scheduler.init_noise_sigma), rtol=2e-7)
    return True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("class_name", FAMILIES)
def test_matrices_equal_diffusers(class_name, steps):
    every = FAMILIES[class_name]
    # TCD's step assumes 0.3 where it is not told.
    eta = 0.3 if class_name.startswith("TCD") else None
    compared = [
        compare(class_name, fields, steps, eta) for fields in every[:: 1 + len(every) // 40]
    ]
    assert any(compared)


BEGUN = {
    **FAMILIES,
    "PNDMScheduler": combinations([{"skip_prk_steps": True}], TIMES, PREDICTIONS),
    "DDIMScheduler": combinations(NO_CLIPPING, TIMES, PREDICTIONS),
    "DPMSolverMultistepScheduler": combinations(
        [{"algorithm_type": f"{kind}dpmsolver++"} for kind in ("", "sde-")], TIMES, ORDERS,
        [{"final_sigmas_type": t} for t in ("zero", "sigma_min")],
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("steps", "first"), [(2, 1), (5, 1), (5, 2), (20, 3), (20, 19), (30, 12)])
@pytest.mark.parametrize("class_name", BEGUN)
def test_begun_in_the_middle_they_still_equal_diffusers(class_name, steps, first):
    every = BEGUN[class_name]
    eta = 0.3 if class_name.startswith("TCD") else None
    compared = [
        compare(class_name, fields, steps, eta, first) for fields in every[:: 1 + len(every) // 20]
    ]
    assert any(compared)


@pytest.mark.parametrize("name", SAMPLERS)
def test_begun_after_the_end_nothing_changes(name):
    fields = {**BASE, "skip_prk_steps": True, "clip_sample": False, "steps_offset": 1}
    table = step_table(fields, 4, name, first=4)
    assert len(table) == table.draws == 0
    assert table.rows.tolist() == [[1.0]]
    assert table.levels.tolist() == [[1.0, 0.0]]


def test_runge_kutta_cannot_begin_in_the_middle():
    with pytest.raises(SamplerError, match="skip_prk_steps"):
        step_table({**BASE, "skip_prk_steps": False}, 10, "pndm", first=2)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("steps", STEPS)
def test_ddim_with_noise_equals_diffusers(steps, eta):
    every = combinations(NO_CLIPPING, TIMES, PREDICTIONS)
    assert any([compare("DDIMScheduler", fields, steps, eta) for fields in every])


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_tcd_equals_diffusers_for_every_eta(eta):
    assert compare("TCDScheduler", {**BASE, "clip_sample": False}, 8, eta)


def test_quantiles_are_scipys():
    p = np.append(np.linspace(0, 1, 101), [1e-9, 1 - 1e-9])
    expected = beta_distribution.ppf(p, 0.6, 0.6)
    np.testing.assert_allclose(beta_quantile(p), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_name_compiles(name):
    fields = {**BASE, "skip_prk_steps": True, "clip_sample": False, "steps_offset": 1}
    table = step_table(fields, 20, name)
    assert np.isfinite(table.rows).all()
    noisy = ("ddpm", "lcm", "euler-a", "kdpm2-a", "dpm++2m-sde")
    assert (table.draws > 0) == name.startswith(noisy)


def test_every_class_is_diffusers_own():
    assert all(hasattr(diffusers, name) for name in DIFFUSERS_CLASSES)


def test_two_spacings_exclude_each_other():
    fields = {"use_karras_sigmas": True, "use_beta_sigmas": True}
    with pytest.raises(SamplerError, match="karras and beta"):
        step_table({"_class_name": "EulerDiscreteScheduler", **fields}, 10)
