"""BK-SDM-Small at its real size with random weights: 512×512 pixels against diffusers."""

from __future__ import annotations

import gc

import pytest
from diffusers import StableDiffusionPipeline

from bksdm.export.dummy import create_dummy
from bksdm.export.exporter import export
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.pipeline import TextToImage
from bksdm.storage.graph_file import GraphFile

from .pictures import assert_same_pictures, pictures


@pytest.mark.slow
def test_small_counts_and_draws_as_published(tmp_path):
    checkpoint, bundle = tmp_path / "small", tmp_path / "bundle"
    create_dummy("small", checkpoint)
    export(checkpoint, bundle)
    opened = Bundle.open(bundle)
    counts = {name: GraphFile.read(opened.model(name)).parameters for name in opened.components}
    # The decoder's graph begins with post_quant_conv, 4 · 4 weights and 4 biases; the encoder's is
    # what remains of the VAE's 83,653,863.
    assert counts == {
        "text_encoder": 123_060_480,
        "unet": 482_346_884,
        "vae_decoder": 49_490_179 + 20,
        "vae_encoder": 83_653_863 - 49_490_179 - 20,
    }
    reference = StableDiffusionPipeline.from_pretrained(checkpoint)
    reference.set_progress_bar_config(disable=True)
    expected = pictures(reference, "a red apple", seed=0, num_inference_steps=2)
    del reference
    gc.collect()
    ours = TextToImage.load(bundle)("a red apple", num_inference_steps=2, seed=0)
    assert ours.pixels.shape == (1, 512, 512, 3)
    assert_same_pictures(ours.pixels, expected)
