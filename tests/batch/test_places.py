"""Files are published whole, and what killed writers have left is removed."""

from __future__ import annotations

import os
import sys
import time

import pytest

from bksdm.batch.places import open_place
from bksdm.engines.errors import RequestError
from bksdm.storage.files import PARTIAL

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed; the extra ray has it")


@pytest.fixture(params=["folder", "file", "memory"])
def place(request, tmp_path):
    """Return a place's address."""
    kinds = {
        "folder": str(tmp_path / "a" / "b"),
        "file": f"file://{tmp_path}/a/b",
        "memory": f"memory://{tmp_path.name}/a/b",
    }
    return kinds[request.param]


def test_what_is_published_can_be_read(place):
    opened = open_place(place)
    assert opened.read("x.png") is None
    for content in (b"first", b"second"):
        opened.publish("x.png", content)
        assert open_place(place).read("x.png") == content
    assert opened.path("x.png") == f"{place}/x.png"


def test_a_failure_leaves_nothing_under_the_name(place, monkeypatch):
    opened = open_place(place)

    def fail(*words, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bksdm.storage.files.Path.write_bytes", fail)
    for kind in ("LocalFileSystem", "MemoryFileSystem"):
        module = f"fsspec.implementations.{kind.removesuffix('FileSystem').lower()}"
        monkeypatch.setattr(f"{module}.{kind}.mv", fail, raising=False)
    with pytest.raises((OSError, RequestError), match="No space left"):
        opened.publish("x.png", b"content")
    assert opened.read("x.png") is None


def test_what_killed_writers_left_in_a_bucket_is_removed_when_it_is_old(tmp_path):
    opened = open_place(f"file://{tmp_path}")
    opened.publish("x.png", b"content")
    for name, age in (("new", 60), ("old", 7200)):
        file = tmp_path / f"{PARTIAL}{name}"
        file.write_bytes(b"part")
        os.utime(file, (time.time() - age,) * 2)
    opened.clear()
    assert sorted(os.listdir(tmp_path)) == [f"{PARTIAL}new", "x.png"]


@pytest.mark.parametrize(
    ("url", "told"), [("nowhere://x", "not known: nowhere"), ("ftps+x://y", "not known")]
)
def test_a_place_that_cannot_be_opened_is_refused(url, told):
    with pytest.raises(RequestError, match=told):
        open_place(url)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(
        RequestError, match=r"needs fsspec; run: pip install 'bksdm-runtime\[ray\]'"
    ):
        open_place("s3://bucket/pictures")
