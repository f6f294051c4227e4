"""Batches and sizes as the command line gives them."""

from __future__ import annotations

import pytest

from bksdm.engines.errors import EngineError
from bksdm.engines.profile import Profile


def test_axes_of_each_network():
    profile = Profile.parse("1:2:4", "384x256:512x512:768x640")
    assert profile.axis("unet", "batch").values == (1, 4, 8)
    assert profile.axis("text_encoder", "batch").values == (1, 4, 8)
    assert profile.axis("vae_decoder", "batch").values == (1, 2, 4)
    assert profile.axis("unet", "height").values == (32, 64, 80)
    assert profile.axis("unet", "width").values == (48, 64, 96)
    assert profile.axis("vae_encoder", "8*width").values == (384, 512, 768)
    assert profile.axis("unet", "tokens").values == (77, 77, 77)
    with pytest.raises(EngineError, match="'sequence' is unknown"):
        profile.axis("unet", "sequence")


def test_names_differ_and_are_short():
    assert str(Profile.parse("1", "512x512")) == "b1-512x512"
    assert str(Profile.parse("1:1:4", "512x384")) == "b1.1.4-512x384"


@pytest.mark.parametrize(
    ("batch", "size", "named"),
    [
        ("0", "64x64", "--batch"),
        ("1:2", "64x64", "--batch"),
        ("4:2:1", "64x64", "--batch must not fall"),
        ("x", "64x64", "--batch"),
        ("", "64x64", "--batch"),
        ("１", "64x64", "--batch"),
        ("1", "60x64", "multiple of 8"),
        ("1", "64", "--size"),
        ("1", "64x64:32x32:64x64", "--size must not fall"),
        ("1", "0x64", "--size"),
        ("1", "999999x64", "--size"),
    ],
)
def test_nonsense_is_refused(batch, size, named):
    with pytest.raises(EngineError, match=named):
        Profile.parse(batch, size)
