"""What a sampler is called, and what it takes over from another class's configuration."""

from __future__ import annotations

import json
from functools import lru_cache

import diffusers
import numpy as np
import pytest
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline

from bksdm.cli import main
from bksdm.engines.errors import SamplerError
from bksdm.runtime.samplers import DIFFUSERS_CLASSES, NAMED, sampler_name, step_table
from bksdm.runtime.samplers.names import ALIASES, aliases, meaning

from .diffusers_matrix import ARRAY, compare, matrix_of

pytestmark = pytest.mark.filterwarnings(ARRAY)

BASE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SPELLINGS = {
    "euler_a": "euler-a",
    "Euler a": "euler-a",
    "euler_ancestral": "euler-a",
    "k_euler_ancestral": "euler-a",
    "dpmpp_2m": "dpm++2m",
    "DPM++ 2M": "dpm++2m",
    "sample_dpmpp_2m": "dpm++2m",
    "dpmpp_2m_karras": "dpm++2m-karras",
    "DPM++ 2M Karras": "dpm++2m-karras",
    "k_dpmpp_2m_ka": "dpm++2m-karras",
    "dpmpp_2m_sde": "dpm++2m-sde",
    "dpmpp_2m_sde_karras": "dpm++2m-sde-karras",
    "DPM++ 2M SDE Exponential": "dpm++2m-sde-exponential",
    "DPM++ SDE Karras": "dpm++2s-karras",
    "plms": "pndm",
    "PNDM": "pndm",
    "PNDMScheduler": "pndm",
    "DDIM": "ddim",
    "uni_pc": "unipc",
    "uni_pc_bh2": "unipc",
    "Heun": "heun",
    "LMS Karras": "lms-karras",
    "lms_karras": "lms-karras",
    "dpm_2": "kdpm2",
    "DPM2 Karras": "kdpm2-karras",
    "dpm_2_ancestral": "kdpm2-a",
    "DPM2 a Karras": "kdpm2-a-karras",
    "k_dpm_2_a_ka": "kdpm2-a-karras",
    "EulerAncestralDiscreteScheduler": "euler-a",
    "EulerDiscrete": "EulerDiscreteScheduler",
    "eulerdiscretescheduler": "EulerDiscreteScheduler",
    "DPMSolverMultistep": "DPMSolverMultistepScheduler",
}


@pytest.mark.parametrize(("text", "name"), SPELLINGS.items())
def test_usual_spellings_are_understood(text, name):
    assert sampler_name(text) == name
    assert sampler_name(name) == name


def test_every_name_is_its_own_and_no_two_are_spelled_alike():
    known = [*NAMED, *DIFFUSERS_CLASSES, *(alias for names in ALIASES.values() for alias in names)]
    for name in NAMED:
        assert sampler_name(name) == sampler_name(name.upper().replace("-", "_")) == name
        assert all(sampler_name(alias) == name for alias in aliases(name))
    for name in DIFFUSERS_CLASSES:
        assert meaning(sampler_name(name)) == (name, {})
    keys = {sampler_name(name) for name in known}
    # A class that a name stands for with all its fields is that name.
    whole = {class_name for class_name, stated in NAMED.values() if not stated}
    assert keys == {*NAMED, *DIFFUSERS_CLASSES} - whole


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("DPM++ 2M Karas", "dpm++2m-karras"),
        ("euler-b", "euler"),
        ("DPMSolver", "DPMSolverMulti"),
        ("ddmi", "ddim"),
        ("unipcc", "unipc"),
    ],
)
def test_an_unknown_sampler_is_answered_with_the_nearest(text, nearest):
    with pytest.raises(SamplerError) as caught:
        step_table(BASE, 10, text)
    assert repr(text) in str(caught.value)
    assert nearest in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["magic", "", "x" * 10_000, None, 3, ["ddim"]])
def test_what_is_near_nothing_is_sent_to_the_list(text):
    with pytest.raises(SamplerError, match="`bksdm samplers` lists them all"):
        sampler_name(text)


def test_the_command_lists_aliases(capsys):
    assert main(["samplers"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "dpm_2_ancestral_karras" in lines["kdpm2-a-karras"]
    assert "PNDMScheduler" in lines["pndm"]
    assert set(NAMED) < set(lines)
    assert main(["samplers", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert list(listed) == list(NAMED)
    assert all(sampler_name(alias) == name for name in listed for alias in listed[name]["aliases"])


# What every class makes of its own defaults, and of one field that no other would take.
WRITERS = {
    **{name: {} for name in DIFFUSERS_CLASSES},
    "DDIMScheduler": {"clip_sample": False},
    "DDPMScheduler": {"clip_sample": False, "variance_type": "fixed_large"},
    "EulerDiscreteScheduler": {"use_karras_sigmas": True, "sigma_min": 0.1},
    "PNDMScheduler": {"skip_prk_steps": True, "steps_offset": 1},
    "DPMSolverMultistepScheduler": {
        "algorithm_type": "sde-dpmsolver++",
        "solver_order": 3,
        "use_lu_lambdas": True,
        "final_sigmas_type": "sigma_min",
    },
    "DPMSolverSinglestepScheduler": {"use_exponential_sigmas": True, "solver_type": "heun"},
    "UniPCMultistepScheduler": {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
}
NAMES = [*NAMED, *(name for name in DIFFUSERS_CLASSES if sampler_name(name) == name)]


@lru_cache
def saved(class_name):
    """Return what ``save_config`` writes, and what the scheduler itself holds."""
    scheduler = getattr(diffusers, class_name)(**BASE, **WRITERS[class_name])
    return json.loads(scheduler.to_json_string()), dict(scheduler.config)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_name_takes_over_what_diffusers_does(writer):
    """The reference is ``from_config`` with the fields that the name states."""
    for k, name in enumerate(NAMES):
        class_name, stated = meaning(name)
        if name == "DPMSolverSinglestepScheduler" and writer == "DPMSolverMultistepScheduler":
            with pytest.raises(SamplerError, match="algorithm_type = 'sde-dpmsolver"):
                step_table(saved(writer)[0], 4, name)
            continue
        if name == "DEISMultistepScheduler" and writer == "DPMSolverMultistepScheduler":
            # diffusers' has no such form either.
            with pytest.raises(SamplerError, match="algorithm_type = 'sde-dpmsolver"):
                step_table(saved(writer)[0], 4, name)
            continue
        if writer == "DEISMultistepScheduler" and name.startswith("DPMSolver"):
            # diffusers refuses its own mapping of "deis" without another final level.
            stated = {"algorithm_type": "dpmsolver++"}
        config = saved(writer)[k % 2]
        # TCD's step assumes 0.3 where it is not told.
        eta = 0.0 if class_name == "TCDScheduler" else None
        # Where a field holds what a class would not begin with, DDIM and DDPM do not clip.
        kept = {**stated, "clip_sample": False} if class_name.startswith("DD") else stated
        reason = compare(class_name, config, 4, name, kept, eta=eta)
        assert reason in (None, "not finite in diffusers"), (name, reason)


@pytest.mark.parametrize("variance", ["fixed_large_log", "learned", "learned_range"])
def test_what_only_ddpm_can_be_told_leaves_the_others_alone(variance):
    config = {"_class_name": "DDPMScheduler", **BASE, "variance_type": variance}
    for name in NAMED:
        if name == "ddpm":
            with pytest.raises(SamplerError, match="variance_type"):
                step_table(config, 4, name)
        else:
            step_table(config, 4, name)


def test_a_class_by_name_keeps_the_fields_of_the_configuration():
    config = {"_class_name": "PNDMScheduler", **BASE, "use_karras_sigmas": True}
    euler = step_table(config, 6, "EulerDiscreteScheduler")
    np.testing.assert_array_equal(euler.rows, step_table(config, 6, "euler-karras").rows)
    assert (euler.rows != step_table(config, 6, "euler").rows).any()
    own = {**config, "_class_name": "EulerDiscreteScheduler"}
    np.testing.assert_array_equal(euler.rows, step_table(own, 6).rows)


@pytest.mark.parametrize("name", ["dpm++2m", "dpm++2m-karras", "dpm++3m", "dpm++3m-karras"])
def test_named_forms_state_what_their_name_says(name):
    fields = {"timestep_spacing": "leading", "steps_offset": 1, "solver_order": 1}
    stated = {"solver_order": int(name[5]), "use_karras_sigmas": name.endswith("karras")}
    found = step_table({**fields, "use_lu_lambdas": True}, 20, name)
    class_name = "DPMSolverMultistepScheduler"
    expected = step_table({"_class_name": class_name, **fields, **stated}, 20)
    np.testing.assert_array_equal(found.rows, expected.rows)


@pytest.mark.parametrize("scheduler_class", [DDIMScheduler, DDPMScheduler])
def test_without_clip_sample_a_name_does_what_a_pipeline_does(scheduler_class):
    """A pipeline that is given the scheduler turns clipping off; put into it later, it clips."""
    config = {"_class_name": "PNDMScheduler", **BASE, "steps_offset": 1}
    scheduler = scheduler_class.from_config(config)
    assert scheduler.config.clip_sample
    with pytest.warns(FutureWarning, match="clip_sample"):
        pipeline = StableDiffusionPipeline(
            None, None, None, None, scheduler, None, None, requires_safety_checker=False
        )
    assert not pipeline.scheduler.config.clip_sample
    pipeline.scheduler.set_timesteps(5)
    name = sampler_name(scheduler_class.__name__)
    found, expected = step_table(config, 5, name), matrix_of(pipeline.scheduler)
    np.testing.assert_allclose(found.rows, expected.rows, rtol=1e-9, atol=1e-9)
    # As it does with a configuration whose own class left the field unstated.
    unstated = {**config, "clip_sample": True, "_use_default_values": ["clip_sample"]}
    np.testing.assert_array_equal(step_table(unstated, 5, name).rows, found.rows)
    for sampler, stated in [(name, {"clip_sample": True}), (None, {})]:
        fields = {**config, "_class_name": scheduler_class.__name__, **stated}
        with pytest.raises(SamplerError, match="clip_sample = True is not implemented"):
            step_table(fields, 5, sampler)


def test_fields_that_were_left_unstated_are_the_class_s_own():
    """As diffusers holds them: a DDIM of its own end and spacing does not hand them on."""
    config = dict(DDIMScheduler(**BASE, clip_sample=False).config)
    assert "set_alpha_to_one" in config["_use_default_values"]
    assert compare("PNDMScheduler", config, 4, "pndm") is None
    assert compare("EulerDiscreteScheduler", config, 4, "euler", meaning("euler")[1]) is None
    with pytest.raises(SamplerError, match="_use_default_values"):
        step_table({**config, "_use_default_values": "all"}, 4, "pndm")
