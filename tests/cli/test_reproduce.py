"""The command that ``bksdm info`` prints draws the same picture, whatever it was drawn with."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from bksdm.cli.reproduce import command_for, shell_quoted
from bksdm.runtime.images import read_record

unix = pytest.mark.skipif(sys.platform == "win32", reason="needs a shell of Unix")


def words_of(command):
    """Return what a shell makes of a command line."""
    program = "import sys; sys.stdout.write('\\0'.join(sys.argv[1:]))"
    line = command.replace("bksdm", f'{sys.executable} -c "{program}"', 1)
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    return done.stdout.decode().split("\0")


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


@pytest.fixture
def again(run, tmp_path, tiny_bundle, monkeypatch):
    """Draw a picture, and run the command of each; return the notes."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / tiny_bundle.name).symlink_to(tiny_bundle)
    monkeypatch.chdir(folder)

    def call(*words, output="x.png", model=True):
        given = ["--model", tiny_bundle] if model else []
        code, out, _ = run("generate", *words, *given, "-o", tmp_path / output)
        assert code == 0
        for number, path in enumerate(out.split("\n")[:-1]):
            found = json.loads(run("info", path, "--json")[1])
            assert f"command: {found['command']}\n" in run("info", path)[1]
            code, out, _ = run(*words_of(found["command"]))
            assert code == 0
            np.testing.assert_array_equal(pixels(out.split()[number]), pixels(path))
            for file in out.split():
                (folder / file).unlink()
        return found.get("notes", [])

    return call


@unix
@pytest.mark.parametrize(
    "words",
    [
        ["a dog", "--steps", 3],
        ["a dog", "--steps", 3, "--seed", 7, "--sampler", "dpm++2m-karras", "--guidance", 3.5],
        ["a dog", "--steps", 2, "--negative", "fog, 'and' \"rain\"", "--size", "72x64"],
        ["a (dog:1.3)", "--steps", 2, "--prompt-weights", "--guidance-rescale", 0.5],
        ["a dog", "--steps", 3, "--sampler", "ddim", "--eta", 0.4, "--seed=-5"],
        ["a dog", "--steps", 3, "--guidance-interval", "0:0.5", "--guidance=-2"],
        ["it's $HOME `x` \\n", "--steps", 1],
        ["two\nlines\t日本 🍎\x1b[31m", "--steps", 1],
        ["-p", "x", "--prompt=--steps", "--steps", 1],
        ["", "--steps", 1],
    ],
)
def test_one_picture_comes_again(again, words):
    assert [note for note in again(*words) if "again-" not in note] == []


@unix
def test_every_picture_of_a_batch_comes_again(again):
    assert again("a dog", "a fox", "--steps", 1, "--seed", "7,8") == [
        "the picture is the one that it writes to again-2.png"
    ]
    again("a dog", "--count", 3, "--steps", 1)
    again("--prompt", "a dog", "--prompt=-a fox", "--count", 2, "--steps", 1)


@unix
@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("x.jpg", []),
        ("x.jpeg", ["--quality", 30]),
        ("x.webp", ["--quality", 95]),
        ("x.webp", ["--lossless"]),
    ],
)
def test_files_of_every_format_come_again(again, output, words):
    assert again("a dog", "--steps", 1, *words, output=output) == []


@unix
def test_a_picture_to_start_from_is_named(again, run, tmp_path):
    Image.effect_noise((70, 64), 50).save(tmp_path / "in put.png")
    Image.effect_noise((70, 64), 90).save(tmp_path / "mask.png")
    words = ["a dog", "--steps", 2, "--image", tmp_path / "in put.png"]
    # They are found beside the picture.
    assert again(*words, "--strength", 0.6) == []
    assert again(*words, "--mask", tmp_path / "mask.png") == []
    assert "'../in put.png'" in run("info", "../x.png")[1]
    Image.new("RGB", (70, 64)).save(tmp_path / "in put.png")
    assert "note: --image: ../in put.png is another picture" in run("info", "../x.png")[1]
    (tmp_path / "mask.png").unlink()
    assert "note: --mask: name the file mask.png\n" in run("info", "../x.png")[1]


@unix
def test_the_built_in_model_is_called_by_its_name(again, run, tmp_path):
    assert again("a red apple", "--steps", 2, "--fast", 3, "--seed", 5, model=False) == []
    assert "--steps 2 --seed 5 --fast 3 --model emoji -o" in run("info", tmp_path / "x.png")[1]


def test_a_bundle_that_is_not_here_is_named(draw, run, tmp_path, monkeypatch, tiny_bundle):
    monkeypatch.chdir(tmp_path)
    assert draw("-o", "x.png")[0] == 0
    assert (
        "note: --model: name the folder of the bundle tiny, of digest " in run("info", "x.png")[1]
    )
    (tmp_path / "tiny").mkdir()
    assert "note: --model: tiny is another bundle than" in run("info", "x.png")[1]


def test_a_record_that_somebody_has_changed_is_no_order(tmp_path, run):
    chunks = PngImagePlugin.PngInfo()
    for name, value in {
        "prompt": "x",
        "seed": "--force",
        "model": "$(touch y)",
        "width": "8",
        "index": "-1",
        "command": "rm -rf /",
        "notes": "none",
        "batch": "[1]",
        "engine": "; ls",
        "fast": "9",
    }.items():
        chunks.add_itxt(f"bksdm:{name}", value)
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=chunks)
    found = json.loads(run("info", tmp_path / "x.png", "--json")[1])
    assert words_of(found["command"]) == [
        "generate",
        "x",
        "--width",
        "8",
        "--seed=--force",
        "--fast",
        "9",
        "--model",
        "$(touch y)",
        "--engine",
        "; ls",
        "-o",
        "again.png",
    ]
    assert "rm -rf" not in run("info", tmp_path / "x.png")[1]


def test_steps_have_no_command(draw, run, tmp_path):
    assert draw("-o", tmp_path / "x.png", "--save-steps", tmp_path)[0] == 0
    out = run("info", tmp_path / "step-1.png")[1]
    assert "step: 1 of 1\n" in out
    assert "command" not in out
    assert command_for({"step": "1"}, tmp_path) is None


@unix
@pytest.mark.parametrize("word", ["", "plain", "it's", "a\nb", "\x1b'\\n", "\u202e日本", "\x7f1"])
def test_shells_read_what_was_quoted(word):
    assert words_of(f"bksdm {shell_quoted(word)}") == [word]


WEBUI = (
    "a (dog:1.2) <lora:ink:1>\nNegative prompt: fog\nSteps: 2, Sampler: Euler a, CFG scale: 7, "
    "Seed: 5, Size: 64x64, Model hash: 45dee52b, Model: tiny, Clip skip: 1, Version: v1.9.0"
)


@unix
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_picture_of_a1111s(run, tmp_path, tiny_bundle, monkeypatch, suffix):
    path = tmp_path / f"x.{suffix}"
    image = Image.new("RGB", (8, 8))
    if suffix == "png":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text("parameters", WEBUI)
        image.save(path, pnginfo=chunks)
    else:
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + WEBUI.encode("utf-16-be")
        image.save(path, exif=exif.tobytes())
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("info", path)
    assert code == 0
    assert "Sampler: Euler a\n" in out
    assert "note: --model: tiny has to be exported with `bksdm export` first\n" in out
    assert "note: --lora: name the file of the LoRA ink\n" in out
    (tmp_path / "tiny").symlink_to(tiny_bundle)
    found = json.loads(run("info", path, "--json")[1])
    assert found["notes"] == ["--lora: name the file of the LoRA ink"]
    words = words_of(found["command"])
    assert words[1:] == [
        "a (dog:1.2)",
        "--negative",
        "fog",
        "--size",
        "64x64",
        "--steps",
        "2",
        "--guidance",
        "7.0",
        "--seed",
        "5",
        "--noise",
        "cuda",
        "--sampler",
        "euler-a",
        "--prompt-weights",
        "--lora",
        "ink:1.0",
        "--model",
        "tiny",
        "-o",
        "again.png",
    ]
    assert "ink: no such file" in run(*words)[2]
    at = words.index("--lora")
    del words[at : at + 2]
    assert run(*words)[0] == 0
    text = read_record(tmp_path / "again.png").a1111
    assert text.startswith("a (dog:1.2)\nNegative prompt: fog\nSteps: 2, Sampler: Euler a, CFG sc")
