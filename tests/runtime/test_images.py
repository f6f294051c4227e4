"""Pixels as diffusers rounds them, and PNG files that say how they were made."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from bksdm.engines.errors import BksdmError, RequestError
from bksdm.runtime.images import read_parameters, save_png, to_pil, to_uint8


def test_every_rounding_equals_diffusers():
    levels = np.arange(-40, 296) / 255 * 2 - 1
    # Every level, every border between two levels, and their neighbours in float32.
    values = np.concatenate([levels, (np.arange(-40, 296) + 0.5) / 255 * 2 - 1]).astype(np.float32)
    values = np.concatenate([values, np.nextafter(values, 9), np.nextafter(values, -9)])
    values = np.concatenate([values, np.random.default_rng(0).normal(0, 0.7, 11568).astype("f4")])
    sample = values.reshape(2, 3, 8, -1)
    expected = VaeImageProcessor().postprocess(torch.from_numpy(sample), output_type="pil")
    pixels = to_uint8(sample)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.stack([np.asarray(image) for image in expected]))


def test_parameters_come_back_and_nothing_else_is_left(tmp_path):
    image = to_pil(np.zeros((1, 8, 8, 3), np.uint8))[0]
    parameters = {"prompt": "naïve 日本 🍎\nline", "seed": "0", "empty": ""}
    save_png(image, tmp_path / "x.png", parameters)
    assert read_parameters(tmp_path / "x.png") == parameters
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_pictures_of_others_carry_no_parameters(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    assert read_parameters(tmp_path / "x.png") == {}


def test_unreadable_and_unwritable_files_are_errors(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(BksdmError, match="not a readable picture"):
        read_parameters(tmp_path / "x.png")
    with pytest.raises(RequestError, match="cannot write"):
        save_png(Image.new("RGB", (4, 4)), tmp_path / "no" / "x.png", {})
