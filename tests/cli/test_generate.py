"""``bksdm generate`` and ``bksdm info`` as a user runs them."""

from __future__ import annotations

import json

import numpy as np
import torch
from PIL import Image

from bksdm.cli import main
from bksdm.runtime.images import read_parameters


def test_pictures_carry_what_repeats_them(tiny_bundle, tmp_path, capsys):
    first, again = tmp_path / "a.png", tmp_path / "b.png"
    command = ["generate", "a dog", "--model", str(tiny_bundle), "--steps", "2", "--size", "72x64"]
    assert main([*command, "--count", "2", "-o", str(first)]) == 0
    paths = capsys.readouterr().out.split()
    assert paths == [str(first), str(tmp_path / "a-2.png")]
    assert main(["info", str(first), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompt"] == "a dog"
    # The seed was drawn at random; with it, both pictures come again.
    assert main([*command, "--count", "2", "--seed", found["seed"], "-o", str(again)]) == 0
    for one, other in (("a.png", "b.png"), ("a-2.png", "b-2.png")):
        with Image.open(tmp_path / one) as x, Image.open(tmp_path / other) as y:
            assert x.size == (72, 64)
            assert x.tobytes() == y.tobytes()


def test_prompts_and_seeds_of_one_batch(tiny_bundle, tmp_path, capsys):
    """With a seed each, every picture is the one that it is alone."""
    command = ["generate", "--model", str(tiny_bundle), "--steps", "2"]
    output = tmp_path / "a.png"
    assert main([*command, "a dog", "a fox", "--seed", "7,8", "-o", str(output)]) == 0
    paths = [output, tmp_path / "a-2.png"]
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    for path, prompt, seed in zip(paths, ("a dog", "a fox"), ("7", "8"), strict=True):
        found = read_parameters(path)
        assert (found["prompt"], found["seed"]) == (prompt, "7,8")
        assert json.loads(found["batch"]) == ["a dog", "a fox"]
        alone = tmp_path / "alone.png"
        assert main([*command, prompt, "--seed", seed, "-o", str(alone)]) == 0
        with Image.open(path) as one, Image.open(alone) as other:
            difference = np.abs(np.asarray(one, int) - np.asarray(other, int))
            # Products of another batch may add up in another order.
            assert difference.max() <= 1
    assert main([*command, "a dog", "--seed", "7,8", "-o", str(output)]) == 2
    assert "seed" in capsys.readouterr().err


def test_a_picture_to_start_from(tiny_bundle, tmp_path, capsys):
    source, mask, output = (tmp_path / name for name in ("in.webp", "mask.png", "out.png"))
    Image.new("RGBA", (70, 64), (200, 30, 30, 128)).save(source)
    Image.new("L", (70, 64), 0).save(mask)
    command = [
        "generate",
        "a dog",
        "--model",
        str(tiny_bundle),
        "--steps",
        "2",
        "--seed",
        "1",
        "--image",
        str(source),
        "-o",
        str(output),
    ]
    assert main([*command, "--strength", "0.5"]) == 0
    with Image.open(output) as changed:
        assert changed.size == (64, 64)
        pixels = changed.tobytes()
    capsys.readouterr()
    assert main(["info", str(output), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["image"], found["strength"], "mask" in found) == ("in.webp", "0.5", False)
    assert main([*command, "--mask", str(mask)]) == 0
    with Image.open(output) as kept:
        assert kept.tobytes() != pixels


def test_seeds_below_zero_are_those_that_torch_makes_of_them(draw, tmp_path):
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path, seed in zip(paths, ("-1", str(2**64 - 1)), strict=True):
        assert draw("-o", path, "--seed", seed)[0] == 0
        assert read_parameters(path)["seed"] == str(torch.manual_seed(-1).initial_seed())
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_cut_prompt_is_one_line_of_warning(tiny_bundle, tmp_path, capsys):
    command = ["generate", "a " * 80, "--model", str(tiny_bundle), "--steps", "1"]
    assert main([*command, "-o", str(tmp_path / "x.png")]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(lines) == 1
    assert lines[0].strip().startswith("bksdm: warning: cut from the prompt")


def test_samplers_are_listed_with_what_they_cost(capsys):
    assert main(["samplers", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert (listed["pndm"]["evaluations"], listed["pndm"]["noise"]) == (21, False)
    assert listed["heun"]["evaluations"] == 39
    assert (listed["euler-a"]["evaluations"], listed["euler-a"]["noise"]) == (20, True)
    assert main(["samplers"]) == 0
    assert "dpm++2m-karras" in capsys.readouterr().out
