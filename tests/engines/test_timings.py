"""Timings that one build leaves to the next."""

from __future__ import annotations

import pytest

from bksdm.engines.timings import attach, keep

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
# There the calls exist and do nothing; they are the interface that both flavours share.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Config:
    """TensorRT's builder configuration, as far as timings go."""

    def __init__(self):
        self.attached = None

    def create_timing_cache(self, content):
        return None if content == b"damaged" else bytearray(content)

    def set_timing_cache(self, cache, ignore_mismatch):
        self.attached = cache

    def get_timing_cache(self):
        return self

    def serialize(self):
        return self.attached + b"more"


def test_a_build_starts_from_what_the_last_one_measured(tmp_path):
    path = tmp_path / "engines" / "timings.cache"
    for expected in (b"", b"more", b"moremore"):
        config = Config()
        attach(config, path)
        assert config.attached == expected
        keep(config, path)
    assert [file.name for file in path.parent.iterdir()] == ["timings.cache"]


def test_a_damaged_file_is_as_good_as_none(tmp_path):
    (tmp_path / "timings.cache").write_bytes(b"damaged")
    config = Config()
    attach(config, tmp_path / "timings.cache")
    assert config.attached == b""


def test_the_calls_are_those_of_tensorrt(tmp_path):
    config = trt.Builder(trt.Logger(trt.Logger.ERROR)).create_builder_config()
    attach(config, tmp_path / "timings.cache")
    keep(config, tmp_path / "timings.cache")
    assert (tmp_path / "timings.cache").read_bytes()
