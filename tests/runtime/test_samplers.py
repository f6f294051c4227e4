"""Schedules, tables and refusals; the matrices themselves are in the other files of samplers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler

from bksdm.engines.errors import SamplerError
from bksdm.runtime.samplers import NAMED, SAMPLERS, compile_solver, step_table
from bksdm.runtime.samplers.config import SCHEDULE, SchedulerConfig
from bksdm.runtime.samplers.root import avx512_root, float32_root, zen_root
from bksdm.runtime.samplers.schedule import alphas_cumprod, noise_levels
from bksdm.storage.processor import is_intel_avx512, is_zen

from .diffusers_matrix import same_levels


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("count", [1, 2, 7, 100, 999, 1000])
def test_schedule_is_bit_equal_to_diffusers(schedule, count):
    fields = {"num_train_timesteps": count, "beta_schedule": schedule}
    config = SchedulerConfig.read(fields, SCHEDULE, {})
    alphas = PNDMScheduler(**fields).alphas_cumprod
    np.testing.assert_array_equal(alphas_cumprod(config), alphas.numpy())
    with same_levels():
        levels = ((1 - alphas) / alphas) ** 0.5
    np.testing.assert_array_equal(noise_levels(config), levels.numpy())


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch has no MKL here")
def test_roots_are_torchs_on_this_processor():
    """Of every second mantissa of two octaves, and far from 1."""
    mantissas = (1 + np.arange(0, 2**23, 2) / 2**23).astype(np.float32)
    for scale in (1.0, 2.0, 2.0**-21, 2.0**90):
        x = mantissas * np.float32(scale)
        theirs = torch.from_numpy(x).sqrt().numpy()
        # Known to the bit on these; elsewhere torch may round a root in a thousand the other way.
        known = is_zen() or is_intel_avx512()
        assert (float32_root(x) != theirs).mean() <= (0 if known else 1e-3)


@pytest.mark.parametrize("root", [zen_root, avx512_root])
def test_roots_are_roots(root):
    x = np.geomspace(1e-37, 1e37, 100_001).astype(np.float32)
    # Half a unit in the last place, and at most one more.
    np.testing.assert_allclose(root(x), np.sqrt(x.astype(np.float64)), rtol=1.5 * 2**-23)


def test_pndm_evaluates_its_second_timestep_twice():
    table = step_table({"_class_name": "PNDMScheduler", "skip_prk_steps": True}, 25)
    assert len(table) == 26
    assert table.timesteps[1] == table.timesteps[2]
    # The repeated evaluation restarts from x_T: its row does not contain the second output.
    assert table.rows[2, 2] != 0
    assert np.array_equal(table.rows, np.tril(table.rows))


def test_table_applied_to_numbers_equals_the_textbook_code():
    solver = SAMPLERS["pndm"]({"skip_prk_steps": True}, 10)
    table = compile_solver(solver)
    rng = np.random.default_rng(0)
    outputs = rng.standard_normal((len(table), 5))
    start = rng.standard_normal(5)
    calls = iter(outputs)
    direct = solver.solve(start, lambda x, t, level: next(calls), lambda: None, 0)
    np.testing.assert_allclose(table.rows[-1] @ np.vstack([start, outputs]), direct, atol=1e-12)


def test_a_table_is_compiled_once():
    fields = {"_class_name": "PNDMScheduler", "skip_prk_steps": True}
    assert step_table(fields, 10) is step_table(dict(fields), 10)
    assert step_table(fields, 10, "PLMS") is step_table(fields, 10, "pndm")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"beta_schedule": "sigmoid"}, "beta_schedule"),
        ({"timestep_spacing": 3}, "timestep_spacing"),
        ({"prediction_type": "sample"}, "prediction_type"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps"),
        ({"num_train_timesteps": True}, "num_train_timesteps"),
        ({"beta_start": float("nan")}, "beta_start"),
        ({"beta_start": 10**400}, "beta_start"),
        ({"beta_start": 1e-12}, "beta_start"),
        ({"beta_end": 0.9}, "beta_end"),
        ({"trained_betas": [0.1, "x"]}, "trained_betas"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"steps_offset": -1}, "steps_offset"),
        ({"skip_prk_steps": 1}, "skip_prk_steps"),
        ({"eta": "much"}, "eta"),
    ],
)
def test_bad_fields_are_named(fields, named):
    with pytest.raises(SamplerError, match=named):
        step_table({"skip_prk_steps": True, **fields}, 10, "pndm")


@pytest.mark.parametrize("field", ["clip_sample", "thresholding", "rescale_betas_zero_snr"])
def test_ddim_names_what_it_does_not_implement(field):
    with pytest.raises(SamplerError, match=field):
        step_table({"clip_sample": False, field: True}, 10, "ddim")


@pytest.mark.parametrize("steps", [0, -1, 1001])
@pytest.mark.parametrize("name", NAMED)
def test_step_counts_out_of_range_are_refused(name, steps):
    with pytest.raises(SamplerError, match="num_inference_steps"):
        step_table({"skip_prk_steps": True}, steps, name)


def test_an_unknown_class_is_refused_with_the_known_ones():
    with pytest.raises(SamplerError, match=r"_class_name 'VQDiffusionScheduler'.*PNDMScheduler"):
        step_table({"_class_name": "VQDiffusionScheduler"}, 10)
    with pytest.raises(SamplerError, match="_class_name None"):
        step_table({}, 10)


def assert_finite_or_refused(fields, steps, name):
    """A table of numbers; or one of the refusals that have to do with the schedule's length."""
    try:
        table = step_table(fields, steps, name)
    except SamplerError as error:
        if not any(why in str(error) for why in ("twice", "leaves no", "original_inference_steps")):
            raise
        return
    for array in (table.rows, table.noise, table.timesteps, table.levels, table.denoised):
        assert np.isfinite(array).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", NAMED)
def test_hardly_any_training_steps_give_numbers_or_a_refusal(name):
    """Also where no level lies between two others, and without a warning."""
    for trained, steps in [(1, 1), (2, 1), (2, 2), (3, 2), (3, 3)]:
        fields = {"num_train_timesteps": trained, "skip_prk_steps": True}
        assert_finite_or_refused(fields, steps, name)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["euler-a", "kdpm2-a", "ddim", "lms", "dpm++2m-sde", "unipc-beta"])
def test_levels_that_are_far_apart_or_alike_give_numbers_or_a_refusal(name):
    """Where σ_max/σ_min is beyond 10^9, and where float32 cannot tell neighbours apart."""
    for betas in (np.geomspace(1e-7, 0.6, 100), np.full(100, 6e-8), np.geomspace(0.5, 1e-7, 100)):
        fields = {"num_train_timesteps": 100, "trained_betas": betas.tolist(), "eta": 1.0}
        for steps in (2, 10, 100):
            assert_finite_or_refused(fields, steps, name)
