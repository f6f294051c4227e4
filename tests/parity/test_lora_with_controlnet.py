"""A LoRA of the UNet while ControlNets act on it, beside diffusers."""

from __future__ import annotations

import numpy as np
import pytest

from bksdm import TextToImage
from tests.lora_files import random_lora
from tests.parity.controlnet_table import Pipelines, draw

pytestmark = pytest.mark.filterwarnings("ignore")

NEAR = 0.02
"""Levels of 255 between unrounded pixels; both sides compute in float32."""


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    "layers", [r"to_[qkv]$", pytest.param("conv1$|to_out|proj", marks=pytest.mark.slow)]
)
def test_pictures_are_diffusers_own(controlled, tmp_path, engine, layers):
    pytest.importorskip(engine)
    checkpoint, folders, bundle = controlled
    ours = TextToImage.load(bundle, engine)
    file = random_lora(ours.bundle, tmp_path / "style.safetensors", kind=layers)
    pipelines = Pipelines(checkpoint, folders)
    without = draw(pipelines, ours, ("canny", "depth"), "image")
    # The pipelines share their networks.
    pipeline = pipelines(("canny",), "text")
    pipeline.load_lora_weights(tmp_path, weight_name=file.name)
    ours.load_lora(file)
    drawn = draw(pipelines, ours, ("canny", "depth"), "image")
    assert np.abs(drawn.expected - drawn.found).max() < NEAR
    assert np.abs(drawn.found - without.found).max() > 1
    assert np.abs(drawn.found - drawn.plain).max() > 1
    pipeline.unload_lora_weights()
    ours.unload_lora_weights()
    again = draw(pipelines, ours, ("canny", "depth"), "image")
    assert np.array_equal(again.found, without.found)
