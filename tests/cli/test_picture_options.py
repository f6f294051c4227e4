"""The one list of options, beside every place where an option appears."""

from __future__ import annotations

import argparse
import inspect
import json
from pathlib import Path

import pytest

from bksdm.cli.picture_options import (
    add_picture_options,
    add_prompts,
    options_page,
    picture_options,
)
from bksdm.engines.errors import RequestError
from bksdm.models import EMOJI
from bksdm.runtime.control_options import CONTROL_OPTIONS
from bksdm.runtime.diffusers_names import CALL
from bksdm.runtime.generation_config import DEFAULTS, INPUTS, OPTIONS, GenerationConfig
from bksdm.runtime.images import read_parameters
from bksdm.runtime.lora.use import LoraUse
from bksdm.runtime.pipeline import TextToImage

ROOT = Path(__file__).parents[2]
ALL = {**OPTIONS, **INPUTS}
OTHERS = {
    "negative_prompt": "fog",
    "height": 64,
    "width": 72,
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "num_images_per_prompt": 2,
    "seed": (3, 4),
    "noise": "cuda",
    "sampler": "ddim",
    "eta": 0.5,
    "guidance_rescale": 0.5,
    "guidance_interval": (0.0, 0.5),
    "strength": 0.9,
    "controlnet": ("canny", "depth"),
    "controlnet_conditioning_scale": (0.5, 1.0),
    "guess_mode": True,
    "control_guidance_start": 0.25,
    "control_guidance_end": (0.5, 0.75),
    "timesteps": (900, 500, 1),
    "sigmas": (9.0, 2.5, 0.5, 0.0),
    "prompt_weights": True,
    "long_prompt": True,
    "clip_skip": 1,
    "fast": 2,
    "vae": "tiny",
    "loras": (LoraUse("ink", 0.5),),
}
"""A value of each that is not its default."""


def parsed(*words):
    parser = argparse.ArgumentParser()
    add_prompts(parser)
    add_picture_options(parser)
    return picture_options(parser.parse_args(["a dog", *words]))


def spelled(name, value):
    if isinstance(value, bool):
        return [OPTIONS[name].flag]
    separator = ":" if name == "guidance_interval" else ","
    text = separator.join(map(str, value)) if isinstance(value, tuple) else str(value)
    return [OPTIONS[name].flag, text]


def test_python_has_every_option_with_its_default():
    parameters = dict(inspect.signature(TextToImage.__call__).parameters)
    assert set(parameters) - set(ALL) - set(CALL) == {
        "self",
        "cross_attention_kwargs",
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
        "on_step",
        "output_type",
        "return_dict",
        "mask_image",
    }
    assert set(ALL) <= set(parameters)
    for name, parameter in parameters.items():
        if name in DEFAULTS and name != "prompt":
            assert parameter.default == DEFAULTS[name], name
            assert type(parameter.default) is type(DEFAULTS[name]), name
    # Embeddings can stand in for it.
    assert parameters["prompt"].default is None


def test_the_command_line_has_every_option_with_its_default():
    assert parsed() == GenerationConfig("a dog")
    assert set(OTHERS) == set(OPTIONS) - {"prompt"}
    words = [word for name, value in OTHERS.items() for word in spelled(name, value)]
    assert parsed(*words) == GenerationConfig("a dog", **OTHERS)
    for name, value in OTHERS.items():
        if name != "seed":
            assert getattr(parsed(*spelled(name, value)), name) == value
    assert parsed("--size", "72x64") == GenerationConfig("a dog", width=72, height=64)


def test_the_reference_page_is_made_of_the_options():
    """``python -c "from bksdm.cli.picture_options import *; print(options_page(), end='')"``."""
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == options_page()
    for name in ALL:
        assert f"| `{name}` |" in options_page()


def test_a_picture_carries_every_option_as_it_was_carried_out(run, tmp_path):
    path = tmp_path / "x.png"
    assert run("generate", "a dog", "--steps", 2, "--fast", 3, "-o", path)[0] == 0
    found = read_parameters(path)
    # The model's own sampler and timesteps, and what is of no use without images, stay as they are.
    of_images = {"strength", *CONTROL_OPTIONS}
    assert set(OPTIONS) - set(found) == {"sampler", "timesteps", "sigmas", "loras"} | of_images
    assert found["guidance_interval"] == "0.0:0.6"
    assert (found["height"], found["width"]) == ("128", "128")
    assert found["seed"].isdigit()
    assert found["engine"] == "onnxruntime"
    assert found["scheduler"] == "PNDMScheduler"
    start = ["--image", path, "--steps", 3, "--fast", 3, "--guidance-interval", "0:1"]
    assert run("generate", "a dog", *start, "-o", tmp_path / "y.png", "--engine", "auto")[0] == 0
    found = read_parameters(tmp_path / "y.png")
    assert (found["strength"], found["guidance_interval"]) == ("0.8", "0.0:1.0")
    assert found["engine"] in ("onnxruntime", "openvino") or "unet: " in found["engine"]


def test_options_survive_being_written():
    config = GenerationConfig(
        ["a dog", "a fox"],
        negative_prompt="",
        **{
            name: value for name, value in OTHERS.items() if name not in ("negative_prompt", "seed")
        },
    )
    assert GenerationConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(RequestError, match="unknown option 'stepps'"):
        GenerationConfig.from_dict({"prompt": "a dog", "stepps": 3})


def test_what_ran_can_be_run_again():
    model = TextToImage.load(EMOJI)
    first = model("a green apple", num_inference_steps=2, fast=3)
    again = model.generate(model.request(first.config))
    assert (again.pixels == first.pixels).all()
    assert again.config == first.config
