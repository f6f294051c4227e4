"""A1111's text: written so that its WebUI reads it, and read as that does."""

from __future__ import annotations

import pytest

from bksdm.engines.backend import Capabilities
from bksdm.models import EMOJI
from bksdm.runtime.a1111 import A1111Text
from bksdm.runtime.a1111_options import SAMPLERS, a1111_text, options_of
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.generation_config import GenerationConfig
from bksdm.runtime.samplers.names import NAMED

# An example of the WebUI's own documentation.
WEBUI = """girl with an artist's beret, determined, ((eyeshadow)), (coquettish), intricate
Negative prompt: ugly, fat, (((deformed))), [blurry], bad anatomy
Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512, Model hash: 45dee52b"""


@pytest.fixture(scope="module")
def bundle():
    return Bundle.open(EMOJI)


@pytest.fixture
def text(bundle):
    def call(index=0, scheduler=None, **options):
        engine = Capabilities("onnxruntime", feature_reuse=True)
        config = GenerationConfig(**{"prompt": "a dog", "seed": 1, **options})
        config = config.resolve(bundle, engine, (64, 64) if "strength" in options else None)
        return a1111_text(config, index, scheduler or bundle.scheduler, "emoji", "1.0")

    return call


def test_the_text_is_a1111s(text):
    assert text(num_inference_steps=25, sampler="dpm++2m", negative_prompt="a: b,\nc") == (
        "a dog\nNegative prompt: a: b,\nc\nSteps: 25, Sampler: DPM++ 2M, Schedule type: Uniform, "
        "CFG scale: 7.5, Seed: 1, Size: 128x128, Model: emoji, RNG: CPU, "
        "Version: bksdm-runtime 1.0"
    )
    assert text(guidance_scale=7) == (
        "a dog\nSteps: 50, Sampler: PLMS, CFG scale: 7, Seed: 1, Size: 128x128, Model: emoji, "
        "RNG: CPU, Version: bksdm-runtime 1.0"
    )


def test_what_only_some_pictures_have(text):
    assert "Schedule type: Karras" in text(sampler="dpm++2m-karras")
    assert "Denoising strength: 0.4, Clip skip: 3, " in text(strength=0.4, clip_skip=2)
    assert "Eta DDIM: 0.5" in text(sampler="ddim", eta=0.5)
    assert "Eta" not in text(sampler="euler", eta=0.5)
    assert "Emphasis: None" in text(prompt="a (dog)")
    assert "Emphasis" not in text(prompt="a (dog)", prompt_weights=True)
    batch = {"prompt": ["a dog", "a fox"], "num_images_per_prompt": 2}
    assert text(3, **batch).startswith("a fox\nSteps")
    assert "Seed: 1, " in text(3, **batch)
    assert "Batch size: 4, Batch pos: 3, " in text(3, **batch)
    # With a seed each, a picture is what it is alone.
    assert "Seed: 7, " in text(3, **batch, seed=[4, 5, 6, 7])
    assert "Batch" not in text(3, **batch, seed=[4, 5, 6, 7])


def test_the_models_own_sampler_is_named(text, bundle):
    euler = {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True}
    assert "Sampler: Euler, Schedule type: Karras" in text(scheduler=euler)
    unknown = {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}
    assert "Sampler: DPMSolverMultistep, " in text(scheduler=unknown)


@pytest.mark.parametrize("sampler", NAMED)
def test_every_sampler_comes_back(text, sampler):
    options, lost = options_of(A1111Text.read(text(sampler=sampler)))
    assert (options["sampler"], lost) == (sampler, [])


def test_names_are_those_of_samplers():
    assert set(SAMPLERS) <= set(NAMED)


def test_options_come_back(text):
    given = {
        "prompt": "a (dog:1.2)\nNegative",
        "negative_prompt": "fog: 3, b",
        "seed": 2**63,
        "num_inference_steps": 7,
        "guidance_scale": 1.25,
        "width": 72,
        "height": 64,
        "prompt_weights": True,
        "clip_skip": 1,
        "sampler": "ddim",
        "eta": 0.25,
    }
    assert options_of(A1111Text.read(text(**given))) == (given, [])
    options, _ = options_of(A1111Text.read(text(prompt="a (dog)")))
    assert "prompt_weights" not in options


def test_a_text_of_the_webui_is_read():
    read = A1111Text.read(WEBUI)
    assert read.prompt.startswith("girl with an artist's beret")
    assert read.negative_prompt == "ugly, fat, (((deformed))), [blurry], bad anatomy"
    options, lost = options_of(read)
    assert (options["sampler"], options["seed"], options["guidance_scale"]) == (
        "euler-a",
        965400086,
        7.0,
    )
    assert (options["num_inference_steps"], options["width"], options["height"]) == (20, 512, 512)
    assert options["prompt_weights"] is True
    # Its noise is the graphics card's unless it says otherwise.
    assert (options["noise"], lost) == ("cuda", [])


@pytest.mark.parametrize(
    ("line", "option", "value"),
    [
        ("Sampler: DPM++ 2M Karras", "sampler", "dpm++2m-karras"),
        ("Sampler: DPM++ 2M, Schedule type: Karras", "sampler", "dpm++2m-karras"),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", "sampler", "dpm++2m-karras"),
        ("Sampler: Euler, Schedule type: Automatic", "sampler", "euler"),
        ("Sampler: Heun, Schedule type: Exponential", "sampler", "heun-exponential"),
        ("Clip skip: 2", "clip_skip", 1),
        ("Clip skip: 1", "clip_skip", 0),
    ],
)
def test_words_of_the_webui(line, option, value):
    options, lost = options_of(A1111Text.read(f"a dog\nSteps: 3, RNG: CPU, Seed: 1, {line}"))
    assert (options[option], lost) == (value, [])


def test_what_no_option_says_is_named():
    text = (
        "a dog <lora:ink:0.8:0.5>, [a:b:0.5]\nSteps: 3, RNG: CPU, Seed: x, Sampler: DPM adaptive, "
        'VAE: "a, b", Denoising strength: 0.5'
    )
    options, lost = options_of(A1111Text.read(text))
    assert options["prompt"] == "a dog , [a:b:0.5]"
    assert lost == [
        "Sampler: DPM adaptive",
        "Denoising strength: 0.5, with a picture to start from",
        "<lora:ink:0.8:0.5>",
        "[a:b:0.5]",
        "Seed: x",
        "VAE: a, b",
    ]
    assert (
        options_of(A1111Text.read("a prompt: alone, b: c"))[0]["prompt"] == "a prompt: alone, b: c"
    )
    assert A1111Text.read("") == A1111Text("")
    long = f"a\nSteps: {'9' * 5000}, Size: {'9' * 5000}x8, Seed: 1, RNG: CPU"
    assert [what[:8] for what in options_of(A1111Text.read(long))[1]] == ["Steps: 9", "Size: 99"]
