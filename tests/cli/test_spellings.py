"""Options as other programs spell them."""

from __future__ import annotations

import re

import pytest

from bksdm.cli.picture_options import flags
from bksdm.runtime.generation_config import OPTIONS
from bksdm.runtime.images import read_parameters

ROWS = [
    ("--negative-prompt", "fog", "negative_prompt"),
    ("--guidance-scale", "3.0", "guidance_scale"),
    ("--cfg-scale", "3.0", "guidance_scale"),
    ("--num-inference-steps", "2", "num_inference_steps"),
    ("-s", "2", "num_inference_steps"),
    ("-H", "72", "height"),
    ("-W", "72", "width"),
    ("-n", "2", "num_images_per_prompt"),
    ("--num-images-per-prompt", "2", "num_images_per_prompt"),
    ("--clip-skip", "0", "clip_skip"),
]


@pytest.mark.parametrize(("flag", "value", "name"), ROWS)
def test_every_spelling_means_the_same(draw, tmp_path, flag, value, name):
    path = tmp_path / "x.png"
    for words in ([flag, value], [f"{flag}={value}" if flag[:2] == "--" else flag + value]):
        assert draw("-o", path, *words)[0] == 0
        assert read_parameters(path)[name] == value


@pytest.mark.parametrize(
    "words",
    [
        ["-p", "a fox"],
        ["--prompt", "a fox"],
        ["--prompt=a fox"],
        ["a fox"],
        ["--steps", 2, "a fox"],
    ],
)
def test_a_prompt_may_be_a_flag(run, tiny_bundle, tmp_path, words):
    path = tmp_path / "x.png"
    assert run("generate", *words, "--model", tiny_bundle, "--steps", 1, "-o", path)[0] == 0
    assert read_parameters(path)["prompt"] == "a fox"


def test_prompts_of_both_kinds_are_one_batch(run, tiny_bundle, tmp_path):
    words = ["-p", "a fox", "--prompt=-a cat", "--model", tiny_bundle, "--steps", 1]
    assert run("generate", "a dog", *words, "-o", tmp_path / "x.png")[0] == 0
    drawn = [read_parameters(tmp_path / f"x{n}.png")["prompt"] for n in ("", "-2", "-3")]
    assert drawn == ["a dog", "a fox", "-a cat"]


def test_a_prompt_is_needed(run):
    code, out, err = run("generate", "--steps", 1)
    assert (code, out) == (2, "")
    assert err.startswith("bksdm: error: a prompt is needed")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--negatve", "--negative"),
        ("--negative-promt", "--negative-prompt"),
        ("--guidence-scale", "--guidance-scale"),
        ("--cfg-scal", "--cfg-scale"),
        ("--widht", "--width"),
        # No option is taken for another that begins like it.
        ("--neg", "--negative"),
        ("--num-inference", "--num-inference-steps"),
    ],
)
def test_the_nearest_is_suggested(run, word, meant):
    code, out, err = run("generate", "a dog", word, "x")
    assert (code, out) == (2, "")
    assert f"unknown option '{word}'; did you mean {meant}?" in err


def test_messages_name_an_option_by_its_first_spelling(draw, tmp_path):
    for flag in flags("num_inference_steps"):
        assert "error: --steps: must be a whole number" in draw(flag, "x")[2]
        said = "error: --steps needs a value; one that begins with a dash is written --steps=VALUE"
        assert said in draw(flag)[2]


def test_help_has_every_spelling_once(run):
    said = run("generate", "--help")[1]
    for name in OPTIONS:
        assert re.search(rf"^  {', '.join(map(re.escape, flags(name)))}\b", said, re.MULTILINE)


def test_the_version_is_told(run):
    code, out, _ = run("--version")
    assert code == 0
    assert re.fullmatch(r"bksdm \d+\.\d+\.\d+\n", out)


@pytest.mark.parametrize("size", [1, 7, 8193])
def test_message_and_help_agree_on_sizes(draw, size):
    assert "8 to 8192, a multiple of 8" in OPTIONS["width"].values
    for words in (["--size", f"{size}x64"], ["-W", size]):
        assert f"width must be a whole number from 8 to 8192, not {size}" in draw(*words)[2]
