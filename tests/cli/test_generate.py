"""``bksdm generate`` and ``bksdm info`` as a user runs them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from bksdm.cli import main
from bksdm.runtime.images import read_parameters


def test_pictures_carry_what_repeats_them(nano_bundle, tmp_path, capsys):
    first, again = tmp_path / "a.png", tmp_path / "b.png"
    command = ["generate", "a dog", "--model", str(nano_bundle), "--steps", "2", "--size", "72x64"]
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


def test_prompts_and_seeds_of_one_batch(nano_bundle, tmp_path, capsys):
    """With a seed each, every picture is the one that it is alone."""
    command = ["generate", "--model", str(nano_bundle), "--steps", "2"]
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


def test_a_picture_to_start_from(nano_bundle, tmp_path, capsys):
    source, mask, output = (tmp_path / name for name in ("in.webp", "mask.png", "out.png"))
    Image.new("RGBA", (70, 64), (200, 30, 30, 128)).save(source)
    Image.new("L", (70, 64), 0).save(mask)
    command = ["generate", "a dog", "--model", str(nano_bundle), "--steps", "2", "--seed", "1",
               "--image", str(source), "-o", str(output)]  # fmt: skip
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


def test_info_tells_a_bundle_and_its_digest(nano_bundle, capsys):
    assert main(["info", str(nano_bundle), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert set(described["components"]) == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    assert described["components"]["unet"]["dtype"] == "float32"
    assert len(described["digest"]) == 64
    # The second time from the record beside the engines.
    assert main(["info", str(nano_bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == described["digest"]
    assert main(["info", str(nano_bundle)]) == 0
    assert "scheduler: PNDMScheduler" in capsys.readouterr().out


def test_a_cut_prompt_is_one_line_of_warning(nano_bundle, tmp_path, capsys):
    command = ["generate", "a " * 80, "--model", str(nano_bundle), "--steps", "1"]
    assert main([*command, "-o", str(tmp_path / "x.png")]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(lines) == 1
    assert lines[0].strip().startswith("bksdm: warning: cut from the prompt")


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_an_interrupt_leaves_nothing(nano_bundle, tmp_path):
    command = [sys.executable, "-m", "bksdm.cli", "generate", "x", "--model", str(nano_bundle),
               "--steps", "900", "-o", str(tmp_path / "x.png")]  # fmt: skip
    # A test run in the background has inherited that interrupts are ignored.
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:  # fmt: skip
        assert process.stderr is not None
        shown = process.stderr.read(8)
        assert shown.strip()[:1] in ("d", "\r"), "the progress bar says that it is drawing"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(20) == 130
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []


def test_samplers_are_listed_with_what_they_cost(capsys):
    assert main(["samplers", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert (listed["pndm"]["evaluations"], listed["pndm"]["noise"]) == (21, False)
    assert listed["heun"]["evaluations"] == 39
    assert (listed["euler-a"]["evaluations"], listed["euler-a"]["noise"]) == (20, True)
    assert main(["samplers"]) == 0
    assert "dpm++2m-karras" in capsys.readouterr().out


@pytest.mark.parametrize("interval", ["0", "a:b", "0:0.5:1", "0.5:0.2", "0:7"])
def test_a_bad_interval_is_named(nano_bundle, tmp_path, capsys, interval):
    command = ["generate", "x", "--model", str(nano_bundle), "-o", str(tmp_path / "x.png")]
    assert main([*command, "--guidance-interval", interval]) == 2
    assert "interval" in capsys.readouterr().err
