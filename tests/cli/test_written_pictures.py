"""Pictures are written as the end of their name says, and nothing else is."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from bksdm.runtime.images import read_parameters, read_record
from bksdm.runtime.pipeline import TextToImage


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("x.png", "PNG"),
        ("x.PNG", "PNG"),
        ("x.jpg", "JPEG"),
        ("x.JPEG", "JPEG"),
        ("x.webp", "WEBP"),
    ],
)
def test_the_extension_says_the_format(run, tiny_bundle, tmp_path, name, format):
    path = tmp_path / name
    prompt = "a dog, 日本 🍎"
    code, out, err = run(
        "generate", prompt, "--model", tiny_bundle, "--steps", 1, "--seed", 3, "-o", path, "-n", 2
    )
    second = path.with_name(f"x-2{path.suffix}")
    assert (code, out.split()) == (0, [str(path), str(second)])
    assert "seed: 3\n" in err
    with Image.open(second) as picture:
        assert picture.format == format
    found = json.loads(run("info", second, "--json")[1])
    assert (found["prompt"], found["seed"], found["index"]) == (prompt, "3", "1")
    text = read_record(second).a1111
    assert text.startswith(f"{prompt}\nSteps: 1, Sampler: PLMS, CFG scale: 7.5, Seed: 3, Size: 64")
    assert "Batch pos: 1" in text


def test_a_seed_that_was_drawn_is_told(run, tiny_bundle, tmp_path):
    words = ["generate", "a dog", "--model", tiny_bundle, "--steps", 1, "-o", tmp_path / "x.png"]
    code, out, err = run(*words)
    assert (code, out) == (0, f"{tmp_path / 'x.png'}\n")
    assert f"seed: {read_parameters(tmp_path / 'x.png')['seed']}\n" in err
    assert "seed: 4,5\n" in run(*words, "-n", 2, "--seed", "4,5")[2]


def test_quality_and_loss(draw, tmp_path):
    sizes = []
    for name, words in {
        "a.jpg": ["--quality", 10],
        "b.jpg": ["--quality", 95],
        "a.webp": ["--quality", 10],
        "b.webp": ["--quality", 95],
    }.items():
        assert draw("-o", tmp_path / name, *words)[0] == 0
        sizes.append((tmp_path / name).stat().st_size)
        assert read_parameters(tmp_path / name)["quality"] == str(words[1])
    assert sizes[0] < sizes[1]
    assert sizes[2] < sizes[3]
    assert draw("-o", tmp_path / "x.webp", "--lossless")[0] == 0
    assert draw("-o", tmp_path / "x.png")[0] == 0
    with Image.open(tmp_path / "x.webp") as one, Image.open(tmp_path / "x.png") as other:
        assert one.convert("RGB").tobytes() == other.tobytes()


REFUSED = [
    (["-o", "x.gif"], "x.gif: the name of a picture must end in one of .png, .jpg, .jpeg, .webp"),
    (["-o", "x"], "x: the name of a picture must end in one of .png"),
    (["-o", "x.png", "--quality", "90"], "--quality is for JPEG and WebP"),
    (["-o", "-", "--quality", "90"], "--quality is for JPEG and WebP"),
    (["-o", "x.jpg", "--quality", "0"], "--quality must be a whole number from 1 to 100, not 0"),
    (["-o", "x.jpg", "--quality", "x"], "--quality: must be a whole number, not 'x'"),
    (["-o", "x.jpg", "--lossless"], "--lossless is for WebP"),
    (["-o", "x.webp", "--lossless", "--quality", "3"], "--lossless and quality exclude each other"),
    (["-o", "x.jpg", "--negative", "y" * 9000, "--negative", "ü" * 20_000], "no more than 64 KiB"),
    (["-o", "x.png", "--decode-steps"], "--decode-steps does nothing without --preview"),
    (["-o", "x.png", "--shard", "1/2"], "--shard does nothing without --prompts"),
]


@pytest.mark.parametrize(("words", "named"), REFUSED)
def test_what_is_refused_is_so_before_a_model_is_loaded(draw, tmp_path, monkeypatch, words, named):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(TextToImage, "load")
    code, out, err = draw(*words)
    assert (code, out) == (2, "")
    assert named in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--eta", 0.5], "--eta does nothing with this sampler"),
        (["--eta", 0.5, "--sampler", "euler"], "--eta does nothing with this sampler"),
        (["--eta", 0.5, "--sampler", "ddim"], ""),
        (["--eta", 0.5, "--sampler", "TCD"], ""),
        (["--negative", "fog"], ""),
        (["--negative", "fog", "--guidance", 1], "--negative does nothing without guidance"),
        (["--guidance-rescale", 0.5, "--guidance", 0], "--guidance-rescale does nothing without"),
        (["--guidance-interval", "0:1", "--guidance", 1], "--guidance-interval does nothing"),
    ],
)
def test_what_makes_no_difference_is_told(draw, tmp_path, words, told):
    code, _, err = draw("-o", tmp_path / "x.png", *words)
    assert code == 0
    assert [line for line in err.splitlines() if "warning" in line and told not in line] == []
    assert bool(told) == ("warning" in err)
