"""``--control-image``: names, several of them, what a picture records, and what is refused."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bksdm.cli import main
from bksdm.runtime.images import read_parameters


@pytest.fixture
def draw(controlled, tmp_path, monkeypatch, capsys):
    """Draw in a folder with two pictures; return exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("edges", 1), ("depth", 2)):
        small = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
        Image.fromarray(small).resize((64, 72)).save(f"{name}.png")

    def call(*words):
        given = ["generate", "a cat", "--model", str(controlled[2]), "--steps", "2", "--seed", "1"]
        code = main([*given, *map(str, words)])
        return (code, *capsys.readouterr())

    return call


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_a_name_may_stand_before_the_file_or_by_itself(draw):
    assert draw("--control-image", "canny=edges.png", "-o", "a.png")[0] == 0
    assert draw("--controlnet", "canny", "--control-image", "edges.png", "-o", "b.png")[0] == 0
    assert draw("-o", "plain.png", "--size", "64x72")[0] == 0
    np.testing.assert_array_equal(pixels("a.png"), pixels("b.png"))
    # As large as the control image.
    assert pixels("a.png").shape == (72, 64, 3)
    assert (pixels("a.png") != pixels("plain.png")).any()
    record = read_parameters(Path("a.png"))
    assert (record["controlnet"], record["control_image"]) == ("canny", "edges.png")
    assert record["controlnet_conditioning_scale"] == "1.0"
    assert "control_image" not in read_parameters(Path("plain.png"))


@pytest.mark.parametrize(
    "words",
    [
        ["--control-image", "canny=edges.png"],
        [
            *("--control-image", "canny=edges.png", "--control-image", "depth=depth.png"),
            *("--controlnet-scale", "0.5,1.5", "--guess-mode", "--control-start", "0,0.4"),
            *("--control-end", "0.6,1"),
        ],
        ["--control-image", "shuffle=edges.png", "--controlnet-conditioning-scale", "0.7"],
    ],
)
def test_info_prints_the_command_that_draws_it_again(draw, capsys, controlled, words):
    assert draw(*words, "-o", "x.png")[0] == 0
    assert main(["info", "x.png", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    _, *command = shlex.split(told["command"])
    place = command.index("--model") + 1
    command[place] = str(controlled[2])
    assert main(command) == 0
    np.testing.assert_array_equal(pixels("again.png"), pixels("x.png"))
    assert not [note for note in told.get("notes", ()) if "control-image" in note]


def test_info_tells_of_a_control_image_that_is_gone_or_another(draw, capsys, tmp_path):
    words = ["--control-image", "canny=edges.png", "--control-image", "depth=depth.png"]
    assert draw(*words, "-o", "x.png")[0] == 0
    (tmp_path / "edges.png").unlink()
    (tmp_path / "depth.png").write_bytes((tmp_path / "x.png").read_bytes())
    assert main(["info", "x.png", "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert "--control-image: name the file edges.png" in notes
    assert "--control-image: depth.png is another picture than it was started from" in notes


def test_a_file_of_prompts_is_drawn_with_them(draw, controlled, tmp_path):
    lines = [{"prompt": "a cat"}, {"prompt": "a cat", "controlnet": ["depth"], "guess_mode": True}]
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ["--model", str(controlled[2]), "--steps", "2", "--seed", "1"]
    shown = ["--control-image", "canny=edges.png"]
    assert main(["generate", "--prompts", "lines.jsonl", *words, *shown, "-o", "out"]) == 0
    assert draw(*shown, "-o", "x.png")[0] == 0
    first, second = sorted(Path("out").glob("*.png"))
    np.testing.assert_array_equal(pixels(first), pixels("x.png"))
    record = read_parameters(second)
    assert (record["controlnet"], record["guess_mode"]) == ("depth", "True")


MISTAKES = [
    (["--control-image", "edges.png"], "--controlnet must be named"),
    (["--control-image", "pose=edges.png"], "--controlnet must be of this bundle"),
    (["--controlnet", "canny"], "--controlnet needs a control_image"),
    (["--guess-mode"], "--guess-mode needs a control_image"),
    (["--control-end", "0.5"], "--control-end: control_guidance_end needs a control_image"),
    (["--control-image", "canny=none.png"], "none.png: no such file"),
    (
        ["--control-image", "canny=edges.png", "--control-image", "depth.png"],
        "--control-image NAME=FILE names ControlNets",
    ),
    (
        ["--control-image", "canny=edges.png", "--controlnet", "canny"],
        "--control-image NAME=FILE names ControlNets",
    ),
    (["--control-image", "canny=edges.png", "--fast", "2"], "--fast does not go with"),
    (
        ["--control-image", "canny=edges.png", "--controlnet-scale", "1,2"],
        "--controlnet-scale: controlnet_conditioning_scale has 2 entries",
    ),
    (["--control-image", "canny=edges.png", "--controlnet-scale", "x"], "must be a number"),
    (
        ["--control-image", "canny=edges.png", "--engine", "onnxruntime-cuda"],
        "not for the engine onnxruntime-cuda yet",
    ),
]


@pytest.mark.parametrize(("words", "told"), MISTAKES)
def test_mistakes_are_told_in_one_line(draw, tmp_path, words, told):
    code, out, err = draw(*words, "-o", "x.png")
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert told in line
    assert not (tmp_path / "x.png").exists()


def test_the_built_in_model_has_none(draw, capsys):
    assert main(["generate", "a cat", "--control-image", "edges.png", "-o", "x.png"]) == 2
    assert "export it with `bksdm export --controlnet" in capsys.readouterr().err


def test_a_batch_names_pictures_by_what_is_shown_not_by_its_file(draw, controlled, capsys):
    Path("prompts.txt").write_text("a cat")
    Path("edges.png").rename("lines.png")
    words = ["batch", "prompts.txt", "--model", str(controlled[2]), "--steps", "1", "-o", "out"]

    def told(*pictures):
        capsys.readouterr()
        shown = [word for picture in pictures for word in ("--control-image", picture)]
        assert main([*words, "--processes", "1", *shown]) == 0
        return capsys.readouterr().err.splitlines()[-1]

    assert told("canny=lines.png") == "1 drawn, 0 already there"
    Path("lines.png").rename("edges.png")
    assert told("canny=edges.png") == "0 drawn, 1 already there"
    assert told("canny=depth.png") == "1 drawn, 0 already there"
    assert told("canny=edges.png", "depth=depth.png") == "1 drawn, 0 already there"
    assert told() == "1 drawn, 0 already there"
