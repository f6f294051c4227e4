"""Pictures in every format, with a record that comes back whole and that other programs read."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from bksdm.engines.errors import RequestError
from bksdm.runtime.images import read_parameters, read_record
from bksdm.runtime.picture_formats import (
    FORMATS,
    PictureFormat,
    encode_picture,
    format_of,
    save_picture,
)
from bksdm.runtime.picture_record import PictureRecord

RECORD = PictureRecord(
    {"prompt": "naïve 日本 🍎\nline", "seed": "0", "empty": ""},
    "naïve 日本 🍎\nline\nSteps: 2, Sampler: Euler a, Seed: 0",
)


@pytest.fixture(scope="module")
def image():
    return Image.effect_noise((40, 24), 50).convert("RGB")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("record", [RECORD, PictureRecord(RECORD.own), PictureRecord()])
def test_records_come_back_and_nothing_else_is_left(image, tmp_path, suffix, record):
    path = tmp_path / f"x{suffix}"
    save_picture(image, path, record, PictureFormat(format_of(path)))
    assert read_record(path) == record
    assert read_parameters(path) == dict(record.own)
    with Image.open(path) as picture:
        assert picture.format == FORMATS[suffix]
        assert picture.size == image.size
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_bytes_of_a_name_that_are_no_text_are_escaped(image, tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    record = PictureRecord({"image": "in\udcff.png"}, "in\udcff")
    save_picture(image, path, record, PictureFormat(format_of(path)))
    assert read_record(path) == PictureRecord({"image": "in\\udcff.png"}, "in\\udcff")


def entries(block, offset):
    """Tag to type and content of a big-endian image file directory."""
    (count,) = struct.unpack_from(">H", block, offset)
    found = {}
    for index in range(count):
        tag, kind, length, place = struct.unpack_from(">HHII", block, offset + 2 + 12 * index)
        size = length * {2: 1, 4: 4, 7: 1}[kind]
        inline = offset + 2 + 12 * index + 8
        start = inline if size <= 4 else place
        found[tag] = kind, block[start : start + size]
    return found


@pytest.mark.parametrize("name", ["JPEG", "WEBP"])
def test_exif_is_laid_out_as_a1111_reads_it(image, name):
    """By the standard's types; piexif takes a comment of any other type for a list of numbers."""
    content = encode_picture(image, RECORD, PictureFormat(name))
    block = content[content.index(b"MM\0*") :]
    first = entries(block, struct.unpack_from(">I", block, 4)[0])
    kind, pointer = first[0x8769]
    assert kind == 4
    kind, comment = entries(block, struct.unpack(">I", pointer)[0])[0x9286]
    assert kind == 7
    assert comment == b"UNICODE\0" + RECORD.a1111.encode("utf-16-be")
    kind, description = first[0x010E]
    assert (kind, description[:7], description[-1:]) == (2, b"bksdm:{", b"\0")
    assert description.isascii()


@pytest.mark.parametrize(
    ("comment", "read"),
    [
        (b"UNICODE\0" + "a 日本, b".encode("utf-16-be"), "a 日本, b"),
        (b"UNICODE\0" + "a 日本, b".encode("utf-16-le"), "a 日本, b"),
        (b"ASCII\0\0\0plain", "plain"),
        (bytes(8) + "naïve\0\0".encode(), "naïve"),
        ("a naïve comment".encode(), "a naïve comment"),
        (b"", ""),
    ],
)
def test_comments_of_other_programs_are_read(image, tmp_path, comment, read):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    exif[0x010E] = "a caption of somebody's"
    image.save(tmp_path / "x.jpg", exif=exif.tobytes())
    assert read_record(tmp_path / "x.jpg") == PictureRecord({}, read)


def test_pictures_of_others_carry_no_record(image, tmp_path):
    for number, description in enumerate(["", "bksdm:no", "bksdm:[1]", "bksdm:" + "[" * 5000]):
        exif = Image.Exif()
        exif[0x010E] = description
        path = tmp_path / f"{number}.webp"
        image.save(path, exif=exif.tobytes())
        assert read_record(path) == PictureRecord()
    image.save(tmp_path / "x.png")
    assert read_record(tmp_path / "x.png") == PictureRecord()


def test_png_and_lossless_webp_keep_every_pixel(image):
    for chosen in (PictureFormat(), PictureFormat("WEBP", lossless=True)):
        with Image.open(io.BytesIO(encode_picture(image, RECORD, chosen))) as kept:
            np.testing.assert_array_equal(kept, image)


@pytest.mark.parametrize("name", ["JPEG", "WEBP"])
def test_quality_is_pillows(image, name):
    for quality in (None, 1, 60, 100):
        expected = io.BytesIO()
        image.save(expected, name, **({} if quality is None else {"quality": quality}))
        found = encode_picture(image, PictureRecord(), PictureFormat(name, quality))
        assert found == expected.getvalue()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": "PNG", "quality": 90}, "quality is for JPEG and WebP"),
        ({"name": "JPEG", "quality": 0}, "quality must be a whole number from 1 to 100, not 0"),
        ({"name": "WEBP", "quality": 101}, "quality must be a whole number from 1 to 100"),
        ({"name": "JPEG", "lossless": True}, "lossless is for WebP"),
        ({"name": "WEBP", "lossless": True, "quality": 5}, "lossless and quality exclude"),
    ],
)
def test_what_a_format_has_not_is_refused(arguments, named):
    with pytest.raises(RequestError, match=named):
        PictureFormat(**arguments)


def test_a_record_that_no_jpeg_holds_is_refused(image, tmp_path):
    record = PictureRecord({}, "x" * 40_000)
    with pytest.raises(RequestError, match="no more than 64 KiB"):
        encode_picture(image, record, PictureFormat("JPEG"))
    save_picture(image, tmp_path / "x.webp", record, PictureFormat("WEBP"))
    assert read_record(tmp_path / "x.webp") == record


def test_unwritable_files_are_errors(image, tmp_path):
    with pytest.raises(RequestError, match="cannot write"):
        save_picture(image, tmp_path / "no" / "x.png", RECORD)
