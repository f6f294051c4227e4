"""Optimum opens our bundle, we open Optimum's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline

from bksdm.runtime.pipeline import TextToImage

from .pictures import assert_same_pictures, pictures

PEER = Path(__file__).parents[2] / "benchmarks" / "peers" / "optimum"
PYTHON = PEER / ".venv" / "bin" / "python"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON.is_file(), reason="no environment with Optimum; see benchmarks/peers/optimum"
    ),
]


def peer(*arguments):
    command = [PYTHON, PEER / "peer.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_optimum_draws_the_same_picture_from_our_bundle(nano_bundle, tmp_path):
    pixels = tmp_path / "pixels.npy"
    peer("generate", nano_bundle, pixels, "--prompt", "a red apple", "--steps", "4", "--seed", "7")
    ours = TextToImage.load(nano_bundle)("a red apple", num_inference_steps=4, seed=7)
    assert_same_pictures(ours.pixels, np.load(pixels))


def test_we_draw_the_same_picture_from_optimums_bundle(nano_checkpoint, tmp_path):
    bundle = tmp_path / "theirs"
    peer("export", nano_checkpoint, bundle)
    reference = StableDiffusionPipeline.from_pretrained(nano_checkpoint)
    reference.set_progress_bar_config(disable=True)
    arguments = {
        "num_inference_steps": 4,
        "num_images_per_prompt": 2,
        "negative_prompt": ["dark"] * 2,
    }
    expected = pictures(reference, ["a dog", "a cat"], seed=3, **arguments)
    ours = TextToImage.load(bundle)(["a dog", "a cat"], seed=3, **arguments)
    assert_same_pictures(ours.pixels, expected)
