"""``bksdm evaluate``: what it refuses, and what it prints."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bksdm.cli import extras
from bksdm.evaluate import emoji
from bksdm.evaluate.emoji import evaluate_emoji
from bksdm.runtime.generation_config import GenerationConfig
from bksdm.runtime.pipeline import TextToImage


def test_other_models_are_refused(run, tiny_bundle):
    code, _, err = run("evaluate", tiny_bundle)
    assert code == 2
    assert "tiny draws 64×64, and the classifier judges the built-in model's 128×128" in err
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


RUN = ("--reference", "ref.npz", "-o", "run")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Prompts and statistics, both of the right form."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("\n".join(f"a dog {i}" for i in range(10)))
    np.savez(tmp_path / "ref.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    return tmp_path


def test_a_missing_extra_is_named(run, files, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda module: None)
    for words in (("emoji", "--prompts", "p.txt"), ("--merge", "part")):
        code, _, err = run("evaluate", *words, *RUN)
        assert code == 2
        assert "needs torch_fidelity; run: pip install 'bksdm-runtime[evaluate]'" in err
    assert not (files / "run").exists()


@pytest.mark.parametrize(
    ("prompts", "words", "told"),
    [
        ("a dog", RUN, "p.txt: 1 prompts; the inception score is a mean of 10 parts"),
        ('{"prompt": "a"}\n{"prompt": "b", "steps": 0}', RUN, "p.txt: line 2: num_inference_steps"),
        ('{"prompt": ["a", "b"]}', RUN, "p.txt: line 1: asks for 2 pictures"),
        ("a dog", (), "--prompts needs --reference FILE.npz and -o DIR"),
        ("a dog", ("--reference", "p.txt", "-o", "run"), "p.txt: no statistics; a .npz file with"),
        ("a dog", ("--reference", "small.npz", "-o", "run"), "the pictures have 2048 features"),
    ],
)
def test_what_a_run_cannot_be_made_of_is_refused(run, files, monkeypatch, prompts, words, told):
    monkeypatch.setattr(extras, "find_spec", lambda module: module)
    (files / "p.txt").write_text(prompts)
    np.savez(files / "small.npz", mu=np.zeros(768), sigma=np.eye(768))
    code, out, err = run("evaluate", "emoji", "--prompts", "p.txt", *words)
    assert code == 2
    assert told in err
    assert not out
    assert len(err.strip().splitlines()) == 1
    assert not (files / "run").exists()


def test_the_card_is_printed_with_its_source(run):
    code, out, _ = run("evaluate", "--table")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("| model | FID ↓ | IS ↑ | CLIP score ↑ | UNet | in all |")
    assert sum(line.startswith("| BK-SDM-") for line in lines) == 6
    assert lines[-1].startswith("https://huggingface.co/nota-ai/bk-sdm-small-2m")
