"""Every argument of diffusers' schedulers: its matrix, or a refusal that names it."""

from __future__ import annotations

import inspect
import math
from itertools import product

import diffusers
import numpy as np
import pytest

from bksdm.engines.errors import SamplerError
from bksdm.runtime.samplers import DIFFUSERS_CLASSES, step_table

from .diffusers_matrix import ARRAY, compare, same_levels, scheduler_of

pytestmark = pytest.mark.filterwarnings(ARRAY)

BASE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
}
FLAG, OFF = ([False, True], []), ([False], [True])
VARIANCES = [None, "fixed_small", "fixed_small_log", "fixed_large"]
# By argument: values that are implemented, or do nothing, and values that are refused.
VALUES = {
    "num_train_timesteps": ([333], [0, 1.5]),
    "beta_start": ([0.0003], [0.0, "x"]),
    "beta_end": ([0.015], [1.0, None]),
    "beta_schedule": (["linear", "squaredcos_cap_v2"], ["sigmoid", "laplace", "exp", None]),
    "trained_betas": ([np.linspace(0.0002, 0.015, 1000).tolist()], [[0.1, 0.2]]),
    "prediction_type": (["v_prediction"], ["sample", "flow_prediction", None]),
    "timestep_spacing": (["leading", "linspace", "trailing"], ["karras", None]),
    "steps_offset": ([0, 1, 3], [-1]),
    "set_alpha_to_one": FLAG,
    "skip_prk_steps": FLAG,
    "clip_sample": OFF,
    "clip_sample_range": ([2.0], []),
    "thresholding": OFF,
    "dynamic_thresholding_ratio": ([0.9], []),
    "sample_max_value": ([2.0], []),
    "rescale_betas_zero_snr": OFF,
    "variance_type": (VARIANCES, ["learned", "learned_range"]),
    "interpolation_type": (["linear"], ["log_linear"]),
    "use_karras_sigmas": FLAG,
    "use_exponential_sigmas": FLAG,
    "use_beta_sigmas": FLAG,
    "use_lu_lambdas": FLAG,
    "sigma_min": ([None, 0.002, 0.1], [0.0, "x", 20.0]),
    "sigma_max": ([None, 9.0, 30.0], [-1.0, math.inf, 0.01]),
    "timestep_type": (["discrete"], ["continuous"]),
    "final_sigmas_type": (["zero", "sigma_min"], ["last"]),
    "solver_order": ([1, 2, 3], [0, 4]),
    "algorithm_type": (["dpmsolver++", "sde-dpmsolver++"], ["dpmsolver", "sde-dpmsolver"]),
    "solver_type": (["midpoint", "heun", "logrho", "bh1", "bh2"], ["euler"]),
    "lower_order_final": FLAG,
    "euler_at_final": FLAG,
    "use_flow_sigmas": OFF,
    "flow_shift": ([3.0], []),
    "shift_terminal": ([None], [0.1]),
    "lambda_min_clipped": ([-math.inf, -5.1], [-2.0]),
    "use_dynamic_shifting": OFF,
    "time_shift_type": (["exponential", "linear"], []),
    "predict_x0": ([True], [False]),
    "disable_corrector": ([[]], [[0]]),
    "solver_p": ([None], ["PNDMScheduler"]),
    "original_inference_steps": ([50, 25, 20], [0, 1001]),
    "timestep_scaling": ([10.0, 3.0], ["x"]),
}
# Where a class takes others, or nothing comes of them.
OF_CLASS = {
    "DDPMScheduler": {"variance_type": (VARIANCES, ["fixed_large_log", "learned"])},
    "DPMSolverSinglestepScheduler": {
        "algorithm_type": (["dpmsolver++"], ["dpmsolver", "sde-dpmsolver++"]),
    },
    "DEISMultistepScheduler": {
        "algorithm_type": (["deis", "dpmsolver", "dpmsolver++"], ["sde-dpmsolver++"]),
    },
    "LCMScheduler": {"steps_offset": ([3], []), "timestep_spacing": (["trailing"], [])},
    "TCDScheduler": {
        "steps_offset": ([3], []),
        "timestep_spacing": (["trailing"], []),
        "clip_sample": FLAG,
        "thresholding": FLAG,
        "timestep_scaling": ([3.0], []),
    },
}
# Beside what an argument needs to matter: even levels and few steps, or Karras' and so many that
# the order is not lowered.
CONTEXTS = [({}, 5), ({"use_karras_sigmas": True, "prediction_type": "v_prediction"}, 16)]


def arguments(class_name):
    parameters = inspect.signature(getattr(diffusers, class_name).__init__).parameters
    return [name for name in parameters if name != "self"]


@pytest.mark.parametrize("class_name", DIFFUSERS_CLASSES)
def test_every_argument_gives_diffusers_matrix_or_is_refused_by_name(class_name):
    taken = arguments(class_name)
    eta = 0.3 if class_name == "TCDScheduler" else None
    for name, (context, steps) in product(taken, CONTEXTS):
        # A new argument of diffusers is not in the table: what does it do?
        accepted, refused = {**VALUES, **OF_CLASS.get(class_name, {})}[name]
        if name == "timestep_type" and not context:
            # diffusers asks for it with a velocity only.
            accepted, refused = [*accepted, *refused], []
        around = {k: v for k, v in {**BASE, **context}.items() if k in taken and k != name}
        if name in ("use_exponential_sigmas", "use_beta_sigmas"):
            around.pop("use_karras_sigmas", None)
        reasons = [
            compare(class_name, {**around, name: value}, steps, eta=eta) for value in accepted
        ]
        # Not the last of UniPC's forms and orders, which ends on no number.
        assert None in reasons, (name, reasons)
        assert all(r in (None, "not finite in diffusers") for r in reasons), (name, reasons)
        spaced = around.get("use_karras_sigmas") or not name.startswith("sigma_m")
        for value in refused if spaced else refused[:1]:
            with pytest.raises(SamplerError, match=rf"\b{name}\b"):
                step_table({"_class_name": class_name, **around, name: value}, steps)


@pytest.mark.parametrize("class_name", DIFFUSERS_CLASSES)
def test_nothing_stated_gives_what_a_class_does_by_itself(class_name):
    clips = "clip_sample" in arguments(class_name)
    fields = {"clip_sample": False} if clips else {}
    eta = 0.3 if class_name == "TCDScheduler" else None
    assert compare(class_name, fields, 6, eta=eta) is None
    # A flag that is null is off; a number that is null is none.
    null = [
        name
        for name in ("set_alpha_to_one", "lower_order_final", "clip_sample")
        if name in arguments(class_name)
    ]
    finals = {"final_sigmas_type": "sigma_min"}
    assert compare(class_name, {**finals, **dict.fromkeys(null)}, 16, eta=eta) is None
    with pytest.raises(SamplerError, match="num_train_timesteps"):
        step_table({"_class_name": class_name, **fields, "num_train_timesteps": None}, 6)


SPACED = [name for name in DIFFUSERS_CLASSES if "use_beta_sigmas" in arguments(name)]


@pytest.mark.parametrize("spacing", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("class_name", SPACED)
def test_levels_end_where_the_configuration_says(class_name, spacing):
    """Diffusers reads the two fields of every class that spaces levels, even where it takes none.

    Except LMS with Karras' levels.
    """
    assert len(SPACED) == 9
    tables = []
    for bounds in ({}, {"sigma_min": 0.1}, {"sigma_max": 9.0}, {"sigma_min": 0.2, "sigma_max": 30}):
        fields = {**BASE, f"use_{spacing}_sigmas": True, **bounds}
        for final in ("zero", "sigma_min"):
            assert compare(class_name, {**fields, "final_sigmas_type": final}, 4) is None
        tables.append(step_table({"_class_name": class_name, **fields}, 4).levels[:-1])
    differ = [not np.array_equal(tables[0], other) for other in tables[1:]]
    assert differ == [not (class_name == "LMSDiscreteScheduler" and spacing == "karras")] * 3


WHOLE = [name for name in SPACED if name.startswith(("DPM", "UniPC", "DEIS"))]


def random_schedule(rng):
    class_name = str(rng.choice(WHOLE))
    fields = {
        "beta_start": float(rng.choice([1e-4, 0.00085, rng.uniform(5e-5, 2e-3)])),
        "beta_end": float(rng.choice([0.012, 0.02, rng.uniform(0.005, 0.03)])),
        "beta_schedule": str(rng.choice(["linear", "scaled_linear", "squaredcos_cap_v2"])),
        "timestep_spacing": str(rng.choice(["leading", "linspace", "trailing"])),
    }
    spacing = rng.choice(["none", "karras", "exponential", "beta", "lu"])
    if spacing == "lu":
        fields["use_lu_lambdas"] = True
    elif spacing != "none":
        fields[f"use_{spacing}_sigmas"] = True
    if rng.random() < 0.3:
        fields |= {"sigma_min": rng.uniform(0.005, 0.5), "sigma_max": rng.uniform(5.0, 30.0)}
    return class_name, fields, int(rng.choice([1, 2, 3, 5, 7, 10, 20, 25, 30, 50]))


def test_whole_timesteps_are_those_of_diffusers():
    """The first may be 998.99999 or 999, and is cut off: no step of the arithmetic is free."""
    rng = np.random.default_rng(0)
    compared = 0
    for _ in range(400):
        class_name, fields, steps = random_schedule(rng)
        with same_levels():
            scheduler = scheduler_of(class_name, fields, steps)
        expected = scheduler.timesteps.tolist()
        if len(set(scheduler.sigmas[:-1].tolist())) < len(expected):
            with pytest.raises(SamplerError, match="twice"):
                step_table({"_class_name": class_name, **fields}, steps)
            continue
        found = step_table({"_class_name": class_name, **fields}, steps).timesteps.tolist()
        assert found == expected, (class_name, fields, steps)
        compared += 1
    assert compared > 390


@pytest.mark.parametrize(
    ("sampler", "name", "value"),
    [
        *(
            ("dpm++2m", "timesteps", value)
            for value in ([], "linear", 5, {}, [0.5], [True], ["a"], [5, 5], [1, 2], [-1], [[1]])
        ),
        *(
            ("euler", "sigmas", value)
            for value in (
                [],
                "linear",
                5,
                [1.0],
                [1.0, 2.0],
                [2.0, -1.0],
                [2.0, "a"],
                [math.nan, 0.0],
                [2.0, math.nan],
                [math.inf, 0.0],
                [1e7, 0.0],
                [True, False],
            )
        ),
    ],
)
def test_stated_steps_of_another_form_are_refused_by_name(sampler, name, value):
    """They can stand in a checkpoint's file too, where nothing has looked at them before."""
    with pytest.raises(SamplerError, match=name):
        step_table({**BASE, name: value}, 5, sampler)
