"""The compiled matrices against diffusers' schedulers run on the same basis in float64."""

from __future__ import annotations

from itertools import pairwise, product
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)
from diffusers.schedulers import scheduling_dpmsolver_multistep, scheduling_euler_discrete

from bksdm.engines.errors import SamplerError
from bksdm.runtime.samplers import step_table
from bksdm.runtime.samplers.config import SchedulerConfig
from bksdm.runtime.samplers.dpm import DEFAULTS
from bksdm.runtime.samplers.preserving import visited_levels
from bksdm.runtime.samplers.schedule import alphas_cumprod

# Every training step: minutes in all, and pictures of as many are in tests/parity/test_images.py.
MOST = pytest.param(1000, marks=pytest.mark.slow)
STEPS = [1, 2, 3, 4, 5, 10, 25, 50, 100, MOST]
OPTIONS = {
    "beta_schedule": ["linear", "scaled_linear", "squaredcos_cap_v2", "trained"],
    "timestep_spacing": ["leading", "linspace", "trailing"],
    "steps_offset": [0, 1],
    "set_alpha_to_one": [False, True],
    "prediction_type": ["epsilon", "v_prediction"],
}
TRAINED = list(np.linspace(0.0002, 0.015, 1000))


def configurations(**more):
    names = {**OPTIONS, **more}
    for values in product(*names.values()):
        fields = dict(zip(names, values, strict=True))
        if fields["beta_schedule"] == "trained":
            fields |= {"beta_schedule": "linear", "trained_betas": TRAINED}
        else:
            fields |= {"beta_start": 0.00085, "beta_end": 0.012}
        yield fields


def reference(scheduler, steps):
    """Diffusers' own code on basis vectors: rows, timesteps, input scale, initial noise scale."""
    # The tables stay float32-rounded, as diffusers uses them; the arithmetic becomes float64.
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas.double()
    count = len(scheduler.timesteps)
    basis = torch.eye(count + 1, dtype=torch.float64)
    rows, scales, x = [], [], basis[0]
    for k, t in enumerate(scheduler.timesteps):
        rows.append(x)
        ones = torch.ones(1, dtype=torch.float64)
        scales.append(float(scheduler.scale_model_input(ones, t)))
        x = scheduler.step(basis[k + 1], t, x).prev_sample
    rows.append(x)
    return (
        torch.stack(rows).numpy(),
        scheduler.timesteps.numpy(),
        np.array(scales),
        float(scheduler.init_noise_sigma),
    )


def compare(scheduler_class, name, fields, steps):
    try:
        expected = reference(scheduler_class(**fields), steps)
    except (IndexError, ValueError):
        with pytest.raises(SamplerError):
            step_table(fields, steps, name)
        return False
    table = step_table(fields, steps, name)
    np.testing.assert_array_equal(table.timesteps, expected[1])
    # Coefficients reach 150 at σ_max, so 1e-9 leaves float64 a factor of 1e4 for the order of
    # operations and catches any float32 rounding (1e-5) or wrong index.
    np.testing.assert_allclose(table.rows, expected[0], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(table.input_scale, expected[2], rtol=1e-12)
    # diffusers computes Euler's initial scale in float32.
    np.testing.assert_allclose(table.init_noise_sigma, expected[3], rtol=2e-7)
    return True


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("skip_prk", [True, False])
def test_pndm_equals_diffusers(steps, skip_prk):
    compared = [
        compare(PNDMScheduler, "pndm", fields, steps)
        for fields in configurations(skip_prk_steps=[skip_prk])
    ]
    assert any(compared) or (not skip_prk and steps < 4)


@pytest.mark.parametrize("steps", STEPS)
def test_ddim_equals_diffusers(steps):
    assert any(
        [
            compare(DDIMScheduler, "ddim", {**fields, "clip_sample": False}, steps)
            for fields in configurations()
        ]
    )


@pytest.mark.parametrize("steps", STEPS)
def test_euler_equals_diffusers(steps):
    # EulerDiscreteScheduler.step casts to float32; the same code runs in float64 where the name
    # stands for the wider type.
    names = {**vars(torch), "float32": torch.float64}
    compared = []
    for fields in configurations(set_alpha_to_one=[False]):
        scheduler = EulerDiscreteScheduler(
            **{k: v for k, v in fields.items() if k != "set_alpha_to_one"}
        )
        scheduler.set_timesteps(steps)
        alphas = scheduler.alphas_cumprod.numpy()
        levels = np.sqrt((np.float32(1) - alphas) / alphas)
        times = scheduler.timesteps.numpy()
        sigmas = np.append(np.interp(times, np.arange(1000), levels), 0).astype(np.float32)
        # torch's vectorised float32 power is one unit in the last place off the true root for a
        # fifth of the values, so the levels agree to 2^-23 and the matrices are compared from
        # correctly rounded ones.
        np.testing.assert_allclose(sigmas, scheduler.sigmas.numpy(), rtol=2**-23)
        scheduler.sigmas = torch.from_numpy(sigmas)
        scheduler.set_timesteps = lambda n: None
        with mock.patch.object(scheduling_euler_discrete, "torch", SimpleNamespace(**names)):
            compared.append(compare(lambda s=scheduler, **_: s, "euler", fields, steps))
    assert any(compared)


DPM_OPTIONS = {
    "beta_schedule": ["scaled_linear", "squaredcos_cap_v2"],
    "timestep_spacing": ["leading", "linspace", "trailing"],
    "steps_offset": [0, 1],
    "prediction_type": ["epsilon", "v_prediction"],
    "solver_order": [1, 2, 3],
    "solver_type": ["midpoint", "heun"],
    "lower_order_final": [False, True],
    "euler_at_final": [False, True],
    "final_sigmas_type": ["zero", "sigma_min"],
}


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 14, 15, 25, 100, MOST])
@pytest.mark.parametrize("karras", [False, True])
def test_dpm_multistep_equals_diffusers(steps, karras):
    # Runs in float64 where float32 stands, as with Euler.
    names = {**vars(torch), "float32": torch.float64}
    compared = 0
    values = product(*DPM_OPTIONS.values())
    every = [dict(zip(DPM_OPTIONS, combination, strict=True)) for combination in values]
    # Every fifth of 1152 combinations, which meets all pairs of values; fewer where a run is long.
    for fields in every[:: 5 if steps < 100 else 37 if steps < 1000 else 283]:
        fields = {"beta_start": 0.00085, "beta_end": 0.012, **fields, "use_karras_sigmas": karras}
        scheduler = DPMSolverMultistepScheduler(**fields)
        try:
            scheduler.set_timesteps(steps)
        except IndexError:
            continue
        try:
            times, sigmas = visited_levels(SchedulerConfig.read(fields, DEFAULTS, {}), steps)
        except SamplerError:
            # diffusers clamps a timestep beyond the last one; we refuse it.
            assert scheduler.timesteps[0] >= 1000
            continue
        assert times == scheduler.timesteps.tolist()
        # The same last place of torch's float32 power as with Euler.
        np.testing.assert_allclose(sigmas, scheduler.sigmas.numpy(), rtol=2**-22)
        if any(a == b for a, b in pairwise(sigmas[:-1])):
            with pytest.raises(SamplerError, match="noise level twice"):
                step_table({"_class_name": "DPMSolverMultistepScheduler", **fields}, steps)
            continue
        scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
        scheduler.set_begin_index(0)
        scheduler.set_timesteps = lambda n: None
        with mock.patch.object(scheduling_dpmsolver_multistep, "torch", SimpleNamespace(**names)):
            expected, timesteps, _, initial = reference(scheduler, steps)
        table = step_table({"_class_name": "DPMSolverMultistepScheduler", **fields}, steps)
        np.testing.assert_array_equal(table.timesteps, timesteps)
        if not np.isfinite(expected).all():
            # Heun's form divides by h, which is 0 where the last level is the final one.
            assert karras
            assert fields["final_sigmas_type"] == "sigma_min"
            continue
        # Third differences multiply rounding by 1/h²; still far from float32's 1e-7.
        np.testing.assert_allclose(table.rows, expected, rtol=1e-9, atol=1e-9)
        assert table.init_noise_sigma == initial == 1
        assert (table.input_scale == 1).all()
        compared += 1
    assert compared or steps == 1000


@pytest.mark.parametrize("name", ["dpm++2m", "dpm++2m-karras", "dpm++3m", "dpm++3m-karras"])
def test_named_forms_state_what_their_name_says(name):
    fields = {"timestep_spacing": "leading", "steps_offset": 1, "solver_order": 1}
    stated = {"solver_order": int(name[5]), "use_karras_sigmas": name.endswith("karras")}
    found = step_table(fields, 20, name)
    class_name = "DPMSolverMultistepScheduler"
    expected = step_table({"_class_name": class_name, **fields, **stated}, 20)
    np.testing.assert_array_equal(found.rows, expected.rows)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("count", [1, 2, 7, 100, 999, 1000])
def test_schedule_is_bit_equal_to_diffusers(schedule, count):
    fields = {"num_train_timesteps": count, "beta_schedule": schedule}
    ours = alphas_cumprod(SchedulerConfig.read(fields, {}, {}))
    np.testing.assert_array_equal(ours, PNDMScheduler(**fields).alphas_cumprod.numpy())


def test_pndm_evaluates_its_second_timestep_twice():
    table = step_table({"_class_name": "PNDMScheduler", "skip_prk_steps": True}, 25)
    assert len(table) == 26
    assert table.timesteps[1] == table.timesteps[2]
    # The repeated evaluation restarts from x_T: its row does not contain the second output.
    assert table.rows[2, 2] != 0
    assert np.array_equal(table.rows, np.tril(table.rows))


def test_table_applied_to_numbers_equals_the_textbook_code():
    from bksdm.runtime.samplers import SAMPLERS, compile_solver

    solver = SAMPLERS["pndm"]({"skip_prk_steps": True}, 10)
    table = compile_solver(solver)
    rng = np.random.default_rng(0)
    outputs = rng.standard_normal((len(table), 5))
    start = rng.standard_normal(5)
    calls = iter(outputs)
    direct = solver.solve(start, lambda x, t, level: next(calls), lambda: None, 0)
    np.testing.assert_allclose(table.rows[-1] @ np.vstack([start, outputs]), direct, atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"beta_schedule": "sigmoid"}, "beta_schedule"),
        ({"timestep_spacing": 3}, "timestep_spacing"),
        ({"prediction_type": "sample"}, "prediction_type"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps"),
        ({"num_train_timesteps": True}, "num_train_timesteps"),
        ({"beta_start": float("nan")}, "beta_start"),
        ({"trained_betas": [0.1, "x"]}, "trained_betas"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"steps_offset": -1}, "steps_offset"),
        ({"skip_prk_steps": 1}, "skip_prk_steps"),
    ],
)
def test_bad_fields_are_named(fields, named):
    with pytest.raises(SamplerError, match=named):
        step_table({"skip_prk_steps": True, **fields}, 10, "pndm")


@pytest.mark.parametrize("steps", [0, -1, 1001])
@pytest.mark.parametrize("name", ["pndm", "ddim", "euler"])
def test_step_counts_out_of_range_are_refused(name, steps):
    with pytest.raises(SamplerError, match="num_inference_steps"):
        step_table({"skip_prk_steps": True, "clip_sample": False}, steps, name)


def test_unknown_samplers_are_refused_with_the_known_ones():
    with pytest.raises(SamplerError, match="pndm, ddim, ddpm, euler"):
        step_table({}, 10, "magic")
    with pytest.raises(SamplerError, match="_class_name"):
        step_table({"_class_name": "VQDiffusionScheduler"}, 10)


@pytest.mark.parametrize("field", ["clip_sample", "thresholding", "rescale_betas_zero_snr"])
def test_ddim_names_what_it_does_not_implement(field):
    with pytest.raises(SamplerError, match=field):
        step_table({"clip_sample": False, field: True}, 10, "ddim")
