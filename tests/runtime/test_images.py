"""Pixels as diffusers rounds them, and pictures that are read from files."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from bksdm.engines.errors import RequestError
from bksdm.runtime.images import open_picture, read_parameters, to_uint8
from bksdm.runtime.picture_formats import encode_picture, save_picture
from bksdm.runtime.picture_record import PictureRecord


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


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Files that hold no picture, by what is said of them."""
    folder = tmp_path_factory.mktemp("broken")
    whole = encode_picture(Image.effect_noise((64, 64), 50), PictureRecord({"prompt": "x"}))
    (folder / "text").write_bytes(b"no picture")
    (folder / "cut").write_bytes(whole[:2000])
    (folder / "changed").write_bytes(whole.replace(b"IDAT", b"IDAX"))
    (folder / "folder").mkdir()
    return {
        folder / "text": "not a readable picture .of no known format",
        folder / "cut": "not a readable picture .image file is truncated",
        folder / "changed": "not a readable picture",
        folder / "folder": "a folder, not a file",
        folder / "missing": "no such file",
        folder / "text" / "x": "no such file",
        folder / ("x" * 300): "cannot be read .File name too long",
    }


def test_what_is_no_picture_is_named(broken):
    for path, named in broken.items():
        with pytest.raises(RequestError, match=named) as caught:
            open_picture(path)
        assert str(caught.value).startswith(f"{path}: ")


def test_pictures_are_opened_by_threads_side_by_side(broken, tmp_path, monkeypatch):
    """Filters of warnings are the whole process's: who swaps them takes others' away."""

    class Forbidden(warnings.catch_warnings):
        def __enter__(self):
            raise AssertionError("swaps the process's filters")

    good, large = tmp_path / "good.png", tmp_path / "large.png"
    save_picture(Image.new("RGB", (30, 20), (1, 2, 3)), good, PictureRecord({"prompt": "x"}))
    Image.new("RGB", (80, 80)).save(large)

    def work(number):
        assert open_picture(good).getpixel((0, 0)) == (1, 2, 3)
        assert read_parameters(good) == {"prompt": "x"}
        for path, named in {large: "80x80 pixels are too many", **broken}.items():
            with pytest.raises(RequestError, match=named):
                open_picture(path)
        return number

    def beside_each_other():
        before = list(warnings.filters), warnings.showwarning
        with monkeypatch.context() as patch, ThreadPoolExecutor(8) as pool:
            patch.setattr(warnings, "catch_warnings", Forbidden)
            patch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
            assert list(pool.map(work, range(20))) == list(range(20))
        assert (list(warnings.filters), warnings.showwarning) == before

    # Pillow itself warns of the large one.
    with pytest.warns(Image.DecompressionBombWarning):
        beside_each_other()
