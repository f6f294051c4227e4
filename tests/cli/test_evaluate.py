"""``bksdm evaluate``: what it refuses, and what it prints."""

from __future__ import annotations

import json

import pytest

from bksdm.evaluate import emoji
from bksdm.evaluate.emoji import evaluate_emoji
from bksdm.runtime.generation_config import GenerationConfig
from bksdm.runtime.pipeline import TextToImage


def test_other_models_are_refused(run, nano_bundle):
    code, _, err = run("evaluate", nano_bundle)
    assert code == 2
    assert "nano draws 64×64, and the classifier judges the built-in model's 128×128" in err
    assert "give --prompts FILE" in err


def test_the_command_prints_what_the_function_finds(run, monkeypatch):
    few = emoji.evaluation()[:3]
    monkeypatch.setattr(emoji, "evaluation", lambda: few)
    code, out, err = run("evaluate", "emoji", "--steps", 2, "--sampler", "lcm", "--guidance", 1)
    assert code == 0, err
    assert "objects recognised              6 of 6" in out
    code, out, _ = run(
        *("evaluate", "emoji", "--steps", 2, "--sampler", "lcm", "--guidance", 1, "--json")
    )
    described = json.loads(out)
    assert described["precision"] == "float32"
    assert described["options"]["sampler"] == "lcm"
    config = GenerationConfig("", num_inference_steps=2, sampler="lcm", guidance_scale=1.0)
    with TextToImage.load() as model:
        found = evaluate_emoji(model, config)
    assert described["scores"] == found.fields()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "a bundle is needed, as in: bksdm evaluate emoji"),
        (["emoji", "--reference", "a.npz"], "--reference does nothing with the built-in model's"),
        (["emoji", "--merge", "a"], "--merge takes what was measured; leave the bundle out"),
        (["--merge", "a", "--shard", "1/2"], "--shard does nothing with --merge"),
        (["--table", "a", "--json"], "--json does nothing with --table"),
        (["--table", "a"], "a: no such folder; `bksdm evaluate -o` makes one"),
        (["emoji", "--seed", "1,2"], "--seed takes one number here"),
        (["emoji", "--size", "64x64", "--steps", "0"], "--steps"),
        (["emoji", "--count", "2"], "unknown option '--count'"),
    ],
)
def test_what_does_not_go_together_is_refused(run, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("evaluate", *arguments)
    assert code == 2
    assert not out
    assert told in err
    assert err.count("\n") <= 1


def test_the_card_is_printed_with_its_source(run):
    code, out, _ = run("evaluate", "--table")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("| model | FID ↓ | IS ↑ | CLIP score ↑ | UNet | in all |")
    assert sum(line.startswith("| BK-SDM-") for line in lines) == 6
    assert lines[-1].startswith("https://huggingface.co/nota-ai/bk-sdm-small-2m")
