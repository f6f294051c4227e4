"""Digests follow the content, and are remembered for large bundles only."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from bksdm.storage import digest
from bksdm.storage.digest import file_digests, joined_digest


@pytest.fixture
def files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    return [tmp_path / "a", tmp_path / "b"]


@pytest.fixture
def remembering(monkeypatch):
    """Remember small files that have just been written, and list what is hashed."""
    monkeypatch.setattr(digest, "RECORD_FROM_BYTES", 0)
    monkeypatch.setattr(digest, "SETTLED_NS", -(10**9))
    hashed = []
    whole = digest.sha256_of
    monkeypatch.setattr(digest, "sha256_of", lambda file: hashed.append(file.name) or whole(file))
    return hashed


def sums(contents):
    return [hashlib.sha256(content.encode()).hexdigest() for content in contents]


def test_digests_are_of_contents(files, tmp_path):
    record = tmp_path / "engines" / "digests.json"
    found = file_digests(files, record)
    assert list(found.items()) == list(zip(files, sums("ab"), strict=True))
    assert not record.exists()
    names = {file.relative_to(tmp_path): found[file] for file in files}
    text = "".join(f"{name} {found[tmp_path / name]}\n" for name in "ab")
    assert joined_digest(names) == hashlib.sha256(text.encode()).hexdigest()


def rewrite_in_place(file):
    file.write_text("x")


def replace(file):
    other = file.with_name("other")
    other.write_text("x")
    other.replace(file)


def replace_by_a_link(file):
    replace(file)
    file.rename(file.with_name("target"))
    file.symlink_to("target")


@pytest.mark.parametrize("change", [rewrite_in_place, replace, replace_by_a_link])
def test_a_file_that_changed_is_hashed_again_whatever_its_times(
    files, tmp_path, remembering, change
):
    record = tmp_path / "engines" / "digests.json"
    file_digests(files, record)
    assert remembering == ["a", "b"]
    remembering.clear()
    file_digests(files, record)
    assert remembering == []
    state = files[1].stat()
    change(files[1])
    os.utime(files[1], ns=(state.st_atime_ns, state.st_mtime_ns))
    assert files[1].stat().st_size == state.st_size
    assert list(file_digests(files, record).values()) == sums("ax")
    assert remembering == ["b"]


def test_a_file_that_has_just_changed_is_not_remembered(files, tmp_path, remembering, monkeypatch):
    monkeypatch.setattr(digest, "SETTLED_NS", 60 * 10**9)
    for _ in range(2):
        file_digests(files, tmp_path / "digests.json")
    assert remembering == ["a", "b"] * 2


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', "[" * 100_000, b"\xff"])
def test_a_damaged_record_is_replaced(files, tmp_path, remembering, content):
    record = tmp_path / "digests.json"
    record.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert list(file_digests(files, record).values()) == sums("ab")
    assert len(json.loads(record.read_text())["files"]) == 2
    # A whole one that somebody has edited.
    record.write_text(record.read_text().replace(sums("b")[0], sums("x")[0]))
    assert list(file_digests(files, record).values()) == sums("ab")


def test_a_record_does_not_grow_without_end(files, tmp_path, remembering, monkeypatch):
    monkeypatch.setattr(digest, "MOST_REMEMBERED", 4)
    record = tmp_path / "digests.json"
    for _ in range(5):
        replace(files[0])
        file_digests(files, record)
    assert len(json.loads(record.read_text())["files"]) == 4


def test_a_record_that_cannot_be_written_is_done_without(files, tmp_path, remembering):
    (tmp_path / "engines").touch()
    assert list(file_digests(files, tmp_path / "engines" / "digests.json").values()) == sums("ab")
