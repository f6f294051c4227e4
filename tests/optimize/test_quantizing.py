"""Bundles in int8: what they hold, what they draw, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bksdm.cli import commands
from bksdm.engines.errors import EngineError, ExportError, RequestError
from bksdm.models import EMOJI
from bksdm.optimize.quantizing import SENSITIVE, quantize_bundle
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.integrity import find_damage
from bksdm.runtime.pipeline import TextToImage
from bksdm.storage.graph_file import GraphFile

PROMPTS = ["a red apple", "a green cactus"]


@pytest.fixture(scope="session")
def quantized(shared):
    """The built-in model in int8; what was told of it lies beside it."""

    def make(folder):
        made = quantize_bundle(EMOJI, folder / "bundle", PROMPTS, steps=4)
        (folder / "told.json").write_text(json.dumps([made.products, made.kept, made.pictures]))

    return shared("emoji-int8", make) / "bundle"


def test_it_is_a_bundle_whose_unet_is_in_int8(quantized):
    bundle = Bundle.open(quantized)
    assert bundle.precision == "int8"
    graph = GraphFile.read(bundle.model("unet"))
    exact = GraphFile.read(Bundle.open(EMOJI).model("unet"))
    assert graph.inputs == exact.inputs
    # Weights that are kept stay as they are stored; scales are few.
    assert exact.parameters < graph.parameters < 1.02 * exact.parameters
    sizes = {w.name: w for w in graph.weights}
    assert all(any(part in name for name in sizes) for part in SENSITIVE)
    assert find_damage(quantized) == []


def test_pictures_are_near_those_in_float32(quantized):
    """Rounding to 256 levels is no more than grain: 25 dB is a deviation of 14 levels."""
    products, kept, pictures = json.loads((quantized.parent / "told.json").read_text())
    assert (products, kept) == (129, 36)
    assert min(pictures) > 25


def test_both_engines_on_the_cpu_draw_it(quantized):
    pytest.importorskip("openvino")
    exact, ours, theirs = (
        TextToImage.load(path, engine)(PROMPTS[0], seed=3, num_inference_steps=8)
        for path, engine in (
            (EMOJI, "onnxruntime"),
            (quantized, "onnxruntime"),
            (quantized, "openvino"),
        )
    )
    assert (exact.precision, ours.precision, theirs.precision) == ("float32", "int8", "int8")
    for drawn in (ours, theirs):
        error = np.square(drawn.pixels.astype(float) - exact.pixels).mean()
        assert 0 < error < 255**2 / 10**2.5


def test_auto_takes_the_engine_that_is_faster_in_int8(quantized):
    pytest.importorskip("openvino")
    engines = TextToImage.load(quantized, "auto").engines
    assert engines["unet"] == engines["vae_decoder"] == "openvino"
    assert engines["text_encoder"] == "onnxruntime"


@pytest.mark.slow
def test_the_same_arguments_give_the_same_bundle(quantized, tmp_path):
    quantize_bundle(EMOJI, tmp_path / "again", PROMPTS, steps=4)
    assert Bundle.open(tmp_path / "again").digest() == Bundle.open(quantized).digest()


def test_what_cannot_be_quantised_is_refused(quantized, nano_bundle_fp16, tmp_path):
    with pytest.raises(EngineError, match=r"is float32; fp8 is made of a bundle .* float16"):
        quantize_bundle(EMOJI, tmp_path / "new", PROMPTS, to="fp8")
    with pytest.raises(EngineError, match=r"is int8; int8 is made of .* float32 or float16"):
        quantize_bundle(quantized, tmp_path / "new", PROMPTS)
    with pytest.raises(RequestError, match="unknown precision 'int4'; known: int8, fp8"):
        quantize_bundle(EMOJI, tmp_path / "new", PROMPTS, to="int4")
    with pytest.raises(RequestError, match="openvino draws no pictures in fp8"):
        quantize_bundle(nano_bundle_fp16, tmp_path / "new", PROMPTS, engine="openvino", to="fp8")
    with pytest.raises(RequestError, match="at least one prompt"):
        quantize_bundle(EMOJI, tmp_path / "new", [])
    (tmp_path / "there").mkdir()
    with pytest.raises(ExportError, match="exists already"):
        quantize_bundle(EMOJI, tmp_path / "there", PROMPTS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there"]


def test_nothing_is_left_where_it_fails(monkeypatch, tmp_path):
    def fail(*args, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("bksdm.optimize.quantizing.write_sums", fail)
    with pytest.raises(KeyboardInterrupt):
        quantize_bundle(EMOJI, tmp_path / "new", PROMPTS[:1], steps=1)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_how_near_and_prints_the_path(tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red apple\n")
    target = tmp_path / "new"
    words = ["quantize", "emoji", "-o", str(target), "--prompts", str(prompts), "--steps", "1"]
    code = commands.run([*words, "--engine", "onnxruntime"])
    out, err = capsys.readouterr()
    assert code == 0
    assert out == f"{target}\n"
    assert "129 products in int8, 36 kept" in err
    assert "PSNR in dB: " in err
    index = json.loads((target / "model_index.json").read_text())
    assert index["_quantized"] == {"precision": "int8", "prompts": ["a red apple"], "steps": 1}
