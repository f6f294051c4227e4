"""Progress on the GPU is told without making it wait."""

from __future__ import annotations

import re
import sys
import time

from bksdm.cli import drawing, main
from bksdm.runtime.generation_config import GenerationConfig

CONFIG = GenerationConfig(prompt="a", num_inference_steps=6, seed=0)


def slow(name, values):
    """Take longer than it takes until somebody looks."""
    time.sleep(0.1 * (name == "unet"))
    return values


def test_progress_asks_nothing_of_the_gpu(load, built, device):
    model, told = load(built), []
    request = model.request(CONFIG)
    expected = model.generate(request).pixels
    device.counts.clear()
    model.generate(request)
    quiet = device.counts.copy()
    device.counts.clear()
    result = model.generate(request, progress=lambda *done: told.append(done))
    assert device.counts == quiet
    assert quiet["synchronisations"] == 1
    assert told[-1] == (result.steps, result.steps)
    assert told == sorted(told)
    assert (result.pixels == expected).all()


def test_progress_is_told_in_between(load, built):
    model, told = load(built, slow), set()
    for _ in range(2):
        told.clear()
        result = model.generate(model.request(CONFIG), progress=lambda done, _: told.add(done))
        # On a busy machine some of them may be missed.
        assert len(told) > 2
        assert max(told) == result.steps


def test_generate_waits_once_with_its_bar(load, built, device, monkeypatch, tmp_path, capsys):
    model = load(built, slow)
    model.generate(model.request(CONFIG))
    monkeypatch.setattr(drawing, "load_model", lambda options, bundle: model)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    command = ["generate", "b", "--model", str(built), "--engine", "tensorrt-rtx", "--steps", "6"]
    device.counts.clear()
    assert main([*command, "-o", str(tmp_path / "b.png")]) == 0
    assert device.counts["synchronisations"] == 1
    assert device.counts["graph launches"] == 7
    assert re.search(r"denoise: .* [1-7]/7 ", capsys.readouterr().err)
