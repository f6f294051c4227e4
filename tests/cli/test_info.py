"""What ``bksdm info`` says of bundles and pictures."""

from __future__ import annotations

import json
import re
import shutil

from PIL import Image, PngImagePlugin

from bksdm.models import EMOJI


def test_a_bundle_and_its_digest(run):
    described = json.loads(run("info", EMOJI, "--json")[1])
    halves = {"vae_decoder", "vae_encoder", "vae_decoder_tiny"}
    assert set(described["components"]) == {"text_encoder", "unet", *halves}
    assert described["components"]["unet"]["dtype"] == "float16"
    assert len(described["digest"]) == 64
    assert json.loads(run("info", EMOJI, "--json")[1])["digest"] == described["digest"]
    said = run("info", EMOJI)[1]
    assert "scheduler: PNDMScheduler" in said
    assert "safety_checker: no\n" in said


def test_what_was_built_of_a_bundle_or_that_nothing_was(run, tiny_copy):
    shutil.rmtree(tiny_copy / "engines", ignore_errors=True)
    assert "engines: none\n" in run("info", tiny_copy)[1]
    assert run("build", tiny_copy, "--list") == (0, "", "nothing is built yet\n")
    assert run("build", tiny_copy, "--engine", "onnxruntime")[0] == 0
    code, listed, _ = run("build", tiny_copy, "--list")
    assert code == 0
    assert "graphs-onnxruntime-" in run("info", tiny_copy)[1]
    for name in listed.splitlines():
        assert run("build", tiny_copy, "--remove", name)[0] == 0
    assert run("build", tiny_copy, "--list")[1] == ""


HOSTILE = "a\x1b[31mred\x07 \x9b2J\x7f\u202ecba\u2066\nsteps: 9\r\t\u2028日本 👩🏽‍🚀"


def test_nothing_of_a_picture_reaches_the_terminal_as_an_order(run, tmp_path):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("bksdm:prompt", HOSTILE)
    chunks.add_itxt("bksdm:\x1b]0;title\x07", "x")
    path = tmp_path / "x.png"
    Image.new("RGB", (8, 8)).save(path, pnginfo=chunks)
    code, out, _ = run("info", path)
    assert (code, out) == (
        0,
        (
            r"prompt: a\x1b[31mred\x07 \x9b2J\x7f\u202ecba\u2066\nsteps: 9\r\t\u2028"
            "日本 👩🏽‍🚀\n"
            r"\x1b]0;title\x07: x"
            "\n"
            r"command: bksdm generate $'a\x1b[31mred\x07 \u009b2J\x7f\u202ecba\u2066\x0asteps: 9"
            r"\x0d\x09\u2028"
            "日本 👩🏽‍🚀' -o again.png\nnote: the picture does not say its seed\n"
        ),
    )
    code, out, _ = run("info", path, "--json")
    found = json.loads(out)
    assert found.pop("command").startswith("bksdm generate $'a\\x1b[31mred")
    assert found.pop("notes") == ["the picture does not say its seed"]
    assert found == {"prompt": HOSTILE, "\x1b]0;title\x07": "x"}
    # Printable ASCII and line ends.
    assert re.fullmatch(r"[\x20-\x7e\n]*", out)


ORDERS = "[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2066]"


def test_nor_does_anything_of_an_argument(run, draw, tiny_bundle, tmp_path):
    code, _, err = run(
        "generate", HOSTILE * 20, "--model", tiny_bundle, "--steps", 1, "-o", tmp_path / "x.png"
    )
    assert code == 0
    assert "warning: cut from the prompt" in err
    assert not re.search(ORDERS, err)
    options = ["--seed", "--image", "--model", "--engine", "--sampler", "--size", "--steps"]
    for words in (
        *([option, HOSTILE] for option in options),
        [f"--{HOSTILE}"],
        ["-o", f"{tmp_path}/no/{HOSTILE}"],
    ):
        code, out, err = draw("-o", tmp_path / "x.png", *words)
        assert (code, out) == (2, "")
        assert not re.search(ORDERS, err), words
        assert err.count("\n") == 1
