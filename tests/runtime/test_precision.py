"""What networks compute in: asked for, refused by name, recorded."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from bksdm.cli import commands
from bksdm.engines import openvino
from bksdm.engines.errors import EngineError, RequestError
from bksdm.engines.registry import capabilities
from bksdm.models import EMOJI
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.pipeline import TextToImage
from bksdm.runtime.precision_choice import precision_for
from bksdm.storage.processor import computes_bfloat16

NEEDS_BFLOAT16 = pytest.mark.skipif(
    not computes_bfloat16(), reason="this processor does not compute bfloat16"
)


def choose(bundle, wanted, engine):
    return precision_for(Bundle.open(bundle), wanted, capabilities(engine))


def test_the_default_is_the_bundles_own(nano_bundle, nano_bundle_fp16):
    assert choose(nano_bundle, None, "onnxruntime") == "float32"
    assert choose(nano_bundle_fp16, None, "auto") == "float16"
    assert choose(nano_bundle, "bfloat16", "openvino") == "bfloat16"
    assert choose(nano_bundle, "bf16", "openvino") == "bfloat16"
    assert choose(nano_bundle, "bfloat16", "auto") == "bfloat16"


@pytest.mark.parametrize(
    ("wanted", "engine", "message"),
    [
        ("bfloat16", "onnxruntime", "precision bfloat16 is not for the engine onnxruntime"),
        ("bfloat16", "tensorrt", "precision bfloat16 is not for the engine tensorrt"),
        ("float16", "openvino", "is float32, not float16; export the model with --dtype float16"),
        ("fp16", "openvino", "is float32, not float16; export the model with --dtype float16"),
        (np.float16, "openvino", "is float32, not float16"),
        ("int8", "openvino", "is float32, not int8; .*bksdm quantize"),
        ("int4", "openvino", "unknown precision 'int4'; known: .*float16, bfloat16, int8, fp8"),
        ("fp8", "onnxruntime", "is float32, not fp8; .*bksdm quantize BUNDLE --to fp8"),
        (8, "openvino", "unknown precision 8"),
    ],
)
def test_others_are_refused_by_name(wanted, engine, message):
    with pytest.raises(RequestError, match=message):
        choose(EMOJI, wanted, engine)


def test_bfloat16_of_float16_is_refused(nano_bundle_fp16):
    with pytest.raises(RequestError, match=r"is float16, not bfloat16; export .*--dtype float32"):
        choose(nano_bundle_fp16, "bfloat16", "openvino")


def test_a_processor_without_it_is_named(monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr(openvino, "computes_bfloat16", lambda: False)
    with pytest.raises(EngineError, match="processor does not compute bfloat16"):
        TextToImage.load(engine="openvino", precision="bfloat16")


@NEEDS_BFLOAT16
def test_bfloat16_is_near_float32_and_says_so(tmp_path, capsys):
    pytest.importorskip("openvino")
    files = [tmp_path / f"{name}.png" for name in ("exact", "rounded", "again")]
    words = ["generate", "a red apple", "--steps", "8", "--seed", "5", "--engine", "openvino"]
    assert commands.run([*words, "-o", str(files[0])]) == 0
    assert commands.run([*words, "--precision", "bfloat16", "-o", str(files[1])]) == 0
    exact, rounded = (np.asarray(Image.open(file)).astype(float) for file in files[:2])
    # 8 bits of a number: pictures of the built-in model were 38 dB and more from exact ones.
    assert 0 < np.square(exact - rounded).mean() < 255**2 / 10**3.4
    assert Image.open(files[1]).info["bksdm:precision"] == "bfloat16"
    capsys.readouterr()
    assert commands.run(["info", str(files[1])]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "command: " in line)
    assert "--precision bfloat16" in line


@NEEDS_BFLOAT16
def test_torchs_word_for_it_means_the_precision():
    pytest.importorskip("openvino")
    model = TextToImage.from_pretrained(EMOJI, "torch.bfloat16", engine="openvino")
    assert model.precision == "bfloat16"
    assert model.to("bfloat16") is model
    with pytest.raises(RequestError, match="this bundle is bfloat16, not float16"):
        model.to("float16")
    with pytest.raises(RequestError, match="computes in float32, not in bfloat16, which is said"):
        TextToImage.load().to("bfloat16")
